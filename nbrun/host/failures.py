"""An exception as text, whatever its own code does: nothing may keep a run from its end."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, TypeVar

from nbrun.core import RecordedError, clean_text, events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

T = TypeVar("T")

_TRACEBACK_LIMIT = 20_000
_CHAIN = 10  # frameworks wrap what their clients raise, some of them twice

_REENTER = "run it with --thread, or set %config NbRun.reentrant_loop = True"
_REENTERED = "the agent starts an event loop where one is running already: "
_HINTS = {
    "cannot be called from a running event loop": _REENTERED + _REENTER,
    "loop is already running": _REENTERED + _REENTER,
    "while another loop is running": f"{_REENTERED}call that code by `await run.in_thread(function)`",
}
_FOREIGN = ("bound to a different event loop", "attached to a different loop", "Event loop is closed")
_FOREIGN_HINT = (
    "the agent, or its client, was used on another event loop: if cells await it too, run it with --loop kernel; "
    "else create its client inside the agent"
)


def safely(function: Callable[[], T], otherwise: T) -> T:
    """Return what the function returns, or `otherwise` whatever it raises."""
    try:
        return function()
    except BaseException:  # an agent's own code: not even its SystemExit may eat the end of its run
        return otherwise


def describe(error: BaseException) -> ev.ErrorInfo:
    """Return an exception as text, with its traceback cut to a readable size."""
    if isinstance(error, RecordedError):
        return error.info
    otherwise = ev.ErrorInfo(type(error).__name__, "(this error cannot be described)")
    return safely(lambda: _describe(error), otherwise)


def _describe(error: BaseException) -> ev.ErrorInfo:
    try:
        message = str(error)
    except Exception as broken:  # in a __str__ of the agent's
        message = f"<str failed: {type(broken).__name__}>"
    if isinstance(error, asyncio.CancelledError):
        message = message or "the agent raised CancelledError, but the run was not cancelled"
    if (hint := _hint(error)) is not None:
        message = f"{message}\n{hint}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame):
        trace = trace.tb_next  # how we got to the agent does not help its author
    lines = "".join(traceback.format_exception(type(error), error, trace))
    return ev.ErrorInfo(type(error).__name__, clean_text(message), clean_text(_last_lines(lines)))


def _hint(error: BaseException) -> str | None:
    """Return a hint for an agent that failed over its event loop; None for other errors."""
    if isinstance(error, RuntimeError):
        for text, hint in _HINTS.items():
            if text in str(error):
                return hint
    is_foreign = any(
        isinstance(cause, RuntimeError) and any(text in str(cause) for text in _FOREIGN) for cause in _chain(error)
    )
    return _FOREIGN_HINT if is_foreign else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_CHAIN):
        if error is not None:
            yield error
            error = error.__cause__ or error.__context__


def _last_lines(text: str) -> str:
    """Return the end of a text, from the beginning of a line: half a secret would not be recognised."""
    if len(text) <= _TRACEBACK_LIMIT:
        return text
    end = text[-_TRACEBACK_LIMIT:]
    return end.partition("\n")[2] or end


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "nbrun"
