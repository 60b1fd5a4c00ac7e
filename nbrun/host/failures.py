"""An exception as text, whatever its own code does: nothing may keep a run from its end."""

from __future__ import annotations

import asyncio
import itertools
import threading
import traceback
from functools import partial
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from nbrun.core import Cancelled, RecordedError, clean_text, events as ev, is_simple, shown, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_TRACEBACK_LIMIT = 20_000
_CHAIN = 50  # errors that are looked at: frameworks wrap what their clients raise, and a group holds many
_MEMBERS = 1_000  # errors of a group that are counted
_NAMED = 5  # errors of a group that its message names

_REENTERED = "the agent starts an event loop where one is running already: "
_REENTER = f"{_REENTERED}run it with --thread, or set %config NbRun.reentrant_loop = True"
_SIGNALS = "the agent is not on the main thread, the only one that can handle signals: run it with --on process"
_HINTS = (  # for an error of this class that says this
    ("RuntimeError", "cannot be called from a running event loop", _REENTER),
    ("RuntimeError", "cannot be called when an event loop is already running", _REENTER),
    ("RuntimeError", "loop is already running", _REENTER),
    (
        "RuntimeError", "while another loop is running",
        f"{_REENTERED}call that code by `await run.in_thread(function)`",
    ),
    (
        "RuntimeError", "There is no current event loop in thread",
        "a sync agent runs in a thread, which has no event loop: use asyncio.run(…), or make the agent async",
    ),
    ("ValueError", "signal only works in main thread", _SIGNALS),
    ("RuntimeError", "set_wakeup_fd only works in main thread", _SIGNALS),  # of asyncio's add_signal_handler()
    (
        "ProgrammingError", "SQLite objects created in a thread can only be used in that same thread",
        "the agent is not on the thread that has made the connection: connect inside the agent, or with "
        "sqlite3.connect(…, check_same_thread=False)",
    ),
)  # fmt: skip
_FOREIGN = ("bound to a different event loop", "attached to a different loop", "Event loop is closed")
_FOREIGN_HINT = (
    "the agent, or its client, was used on another event loop (a run with --thread has its own): if cells await it "
    "too, run it with --loop kernel; if nbrun was reloaded, create it again; else create its client inside the agent"
)
_OWN_LOOP_HINT = (
    "a sync agent starts a new event loop in each run, and its client was made on another one: make the agent async, "
    "and await what it calls; or create its client inside the agent"
)
_MOVED_HINT = (
    "{} was cancelled but blocked the event loop of the runs, so some went to another loop, where this client doesn't "
    "work: create the client again, and run that agent with --thread"
)


def safely(function: Callable[[], T], otherwise: T) -> T:
    """Return what the function returns, or `otherwise` whatever it raises."""
    try:
        return function()
    except BaseException:  # an agent's own code: not even its SystemExit may eat the end of its run
        return otherwise


def describe(error: BaseException, moved_by: str | None = None) -> ev.ErrorInfo:
    """Return an exception as text, with its traceback cut to a readable size; `moved_by` as in `LoopThread`.

    It runs the exception's own code, which may take any time.
    """
    if issubclass(type(error), RecordedError):
        return error.info  # type: ignore[attr-defined, no-any-return]  # of that class
    return safely(lambda: _describe(error, moved_by), undescribed(error))


def undescribed(error: BaseException) -> ev.ErrorInfo:
    """Return what can be said of an exception without its own code."""
    words = "(this error cannot be described: its own code failed, or took too long)"
    return ev.ErrorInfo(_last_name(error), _message(error) if _is_pythons(error) else words)


def brief(error: BaseException) -> str:
    """Return an exception in a line, without running code of its own."""
    return f"{_last_name(error)}: {_message(error)}" if _is_pythons(error) else _last_name(error)


def say(what: str, error: BaseException, report: Callable[[str], object]) -> None:
    """Report an exception in a line; from a thread, if that runs code of its own. Threads: any."""
    if _is_pythons(error):
        report(f"{what}: {brief(error)}")
        return
    name = partial(_say, what, error, report)
    try:
        threading.Thread(target=name, name="nbrun-error", daemon=True).start()
    except RuntimeError:  # the system has no more threads
        report(f"{what}: {brief(error)}")


def _say(what: str, error: BaseException, report: Callable[[str], object]) -> None:
    report(f"{what}: {_last_name(error)}: {safely(lambda: _message(error), '')}")


def is_plain(error: BaseException) -> bool:
    """Return whether describing an exception, and those that led to it, runs no code of theirs."""
    return all(_is_pythons(one) and is_simple(getattr(one, "__notes__", None)) for one in _chain(error))


def _is_pythons(error: BaseException) -> bool:
    """Return whether neither an exception's class nor what it was made of has code of its own."""
    kind = type(error)
    args = BaseException.args.__get__(error)  # type: ignore[attr-defined]  # not by an attribute of its class
    is_known = "." not in type_name(error) or kind is asyncio.CancelledError or kind is Cancelled
    return is_known and not issubclass(kind, _SUGGESTING) and is_simple(args)


_SUGGESTING = AttributeError, ImportError, NameError, SyntaxError  # their tracebacks ask objects for what they have


def _describe(error: BaseException, moved_by: str | None) -> ev.ErrorInfo:
    message = _message(error)
    if issubclass(type(error), BaseExceptionGroup):
        inner = list(itertools.islice(_members(error), _MEMBERS))  # type: ignore[arg-type]
        names = [f"{type(one).__name__}: {shown(_message(one))}".removesuffix(": ") for one in inner[:_NAMED]]
        more = [f"… {len(inner) - _NAMED} more"] if len(inner) > _NAMED else []
        message = f"{message}: {'; '.join(names + more)}"
    if issubclass(type(error), asyncio.CancelledError):
        message = message or "the agent raised CancelledError, but the run was not cancelled"
    if (hint := safely(lambda: _hint(error, moved_by), None)) is not None:
        message = f"{message}\n{hint}"
    leave_out_ours(error)
    return ev.ErrorInfo(_last_name(error), clean_text(message), clean_text(_last_lines(_traceback(error))))


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # groups that are nested too deeply, say
        return "".join(traceback.format_tb(error.__traceback__))


def _last_name(error: BaseException) -> str:
    return clean_text(type_name(error).rpartition(".")[2])


def _message(error: BaseException) -> str:
    try:
        return clean_text(str(error))
    except Exception as broken:  # in a __str__ of the agent's
        return f"<str failed: {type(broken).__name__}>"


def _hint(error: BaseException, moved_by: str | None) -> str | None:
    """Return a hint for an agent that failed over its event loop or its thread; None for other errors."""
    for one in _chain(error, has_context=False):  # code that tries something else has handled what is the context
        classes, message = {base.__name__ for base in type(one).__mro__}, _message(one)
        for kind, text, hint in _HINTS:
            if kind in classes and text in message:
                return hint
    chain = list(_chain(error))
    if not any(isinstance(one, RuntimeError) and any(text in _message(one) for text in _FOREIGN) for one in chain):
        return None
    if any(map(_starts_a_loop, chain)):
        return _OWN_LOOP_HINT
    return _MOVED_HINT.format(f"{moved_by[0].upper()}{moved_by[1:]}") if moved_by else _FOREIGN_HINT


def _starts_a_loop(error: BaseException) -> bool:
    """Return whether the agent's own code has started the event loop in which this was raised."""
    callers: set[str] = set()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "run_until_complete":
            return bool(callers - {"nbrun", "asyncio"})
        callers.add(_package(frame))
    return False


def _members(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    waiting: list[BaseException] = [group]  # no recursion: groups may be nested deeply
    while waiting:
        one = waiting.pop()
        if issubclass(type(one), BaseExceptionGroup):
            waiting += reversed(one.exceptions)  # type: ignore[attr-defined]  # of that class
        else:
            yield one


def _chain(error: BaseException, *, has_context: bool = True) -> Iterator[BaseException]:
    """Yield an error, those in it if it is a group, and those that led to it; each once."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _CHAIN:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = one.exceptions if issubclass(type(one), BaseExceptionGroup) else ()  # type: ignore[attr-defined]
        led_here = (one.__cause__, one.__context__ if has_context else None)
        waiting += [*inner, *(led for led in led_here if led is not None)]


def leave_out_ours(error: BaseException) -> None:
    """Take nbrun's own frames out of an error's traceback, except where it was raised by nbrun itself.

    How it got to the agent does not help its author, and a frame keeps alive whatever its function knew.
    """
    for one in _chain(error):
        steps: list[TracebackType] = []
        step = one.__traceback__
        while step is not None:
            steps.append(step)
            step = step.tb_next
        kept: TracebackType | None = None
        for step in reversed(steps):
            if kept is None or _package(step.tb_frame) != "nbrun":
                kept = TracebackType(kept, step.tb_frame, step.tb_lasti, step.tb_lineno)
        one.__traceback__ = kept


def _last_lines(text: str) -> str:
    """Return the end of a text, from the beginning of a line, else marked as cut: half a secret is found there."""
    if len(text) <= _TRACEBACK_LIMIT:
        return text
    end = text[-_TRACEBACK_LIMIT:]
    return end.partition("\n")[2] or f"…{end}"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
