"""What an agent raised, as text: nothing that its own code does can keep a run from its end."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, TypeVar

from nbrun.core import events as ev
from nbrun.core.recording import RecordedError
from nbrun.core.text import clean_text
from nbrun.host import loops

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

T = TypeVar("T")

_TRACEBACK_LIMIT = 20_000


def safely(function: Callable[[], T], otherwise: T) -> T:
    """Return what the function gives, or `otherwise` whatever it raises."""
    try:
        return function()
    except (
        BaseException
    ):  # an agent's own code: also its SystemExit must not eat the end of its run
        return otherwise


def described(error: BaseException) -> ev.ErrorInfo:
    """Return an exception as text, whatever its own code does."""
    if isinstance(error, RecordedError):
        return error.info
    otherwise = ev.ErrorInfo(type(error).__name__, "(this error cannot be described)")
    return safely(lambda: describe(error), otherwise)


def describe(error: BaseException) -> ev.ErrorInfo:
    """Return an exception as text, with its traceback cut to a readable size."""
    try:
        message = str(error)
    except Exception as broken:  # somebody's __str__; the run must get its end all the same
        message = f"<str failed: {type(broken).__name__}>"
    if isinstance(error, asyncio.CancelledError):
        message = message or "the agent raised CancelledError, but nobody had cancelled the run"
    if (mend := loops.mend(error) or _foreign_loop(error)) is not None:
        message = f"{message}\n{mend}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame):
        trace = trace.tb_next  # how we got to the agent tells its author nothing
    lines = "".join(traceback.format_exception(type(error), error, trace))
    return ev.ErrorInfo(type(error).__name__, clean_text(message), clean_text(_last_lines(lines)))


_FOREIGN = (
    "bound to a different event loop",
    "attached to a different loop",
    "Event loop is closed",
)
_CHAIN = 10  # frameworks wrap what their clients raise, some of them twice


def _foreign_loop(error: BaseException) -> str | None:
    """Return what helps an agent whose client has been used on another event loop; None for other errors."""
    cause: BaseException | None = error
    for _ in range(_CHAIN):
        if isinstance(cause, RuntimeError) and any(said in str(cause) for said in _FOREIGN):
            return (
                "the agent, or its client, has been used on another event loop: where cells await it too, "
                "run it with --loop kernel; else make its client within the agent"
            )
        cause = cause and (cause.__cause__ or cause.__context__)
    return None


def _last_lines(text: str) -> str:
    """Return the end of a text, from a line's beginning on: half a secret would not be known as one."""
    if len(text) <= _TRACEBACK_LIMIT:
        return text
    end = text[-_TRACEBACK_LIMIT:]
    return end.partition("\n")[2] or end


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "nbrun"
