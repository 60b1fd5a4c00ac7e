"""Keeps apart by run what Python has once per process: what is printed and logged, redirected and typed in.

A stream is captured by shadowing its `write`, not by putting another object in its place: logging handlers and others
may hold it since long before the first run. IPython does the same during each cell, and at its end puts back what was
there when the cell began, so this is renewed as cells begin and end. What goes past Python, to a file descriptor,
belongs to the whole process.
"""

from __future__ import annotations

import builtins
import contextlib
import getpass
import os
import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO
from weakref import WeakSet

from nbrun.agents import RunContext, current_run
from nbrun.agents.context.approvals import NOBODY
from nbrun.core import NbrunError, current_guard, is_on_loop, module_lock
from nbrun.host import packages

if TYPE_CHECKING:
    from collections.abc import Callable

_lock = module_lock()
_users = 0
_streams: WeakSet[Any] = WeakSet()  # those that are captured
_untold: WeakSet[RunContext] = WeakSet()  # runs whose log doesn't yet say that output may be missing there
_manager: Any = contextlib.redirect_stdout.__base__  # of redirect_stderr, too
_enter, _exit = _manager.__enter__, _manager.__exit__


class _Redirect(NamedTuple):
    """Where a run has its prints go meanwhile: a stream, or the log at another level."""

    run: RunContext
    level: str
    target: Any
    manager: object


_redirects: ContextVar[tuple[_Redirect, ...]] = ContextVar("nbrun_redirects", default=())


class RunWriter:
    """The `write` of a stream: a run's text goes to its log, all else to the stream. Threads: any."""

    def __init__(self, stream: TextIO, level: str) -> None:
        self._stream = stream
        self._shadowed = vars(stream).get("write")  # IPython's, during a cell; else the method of its class
        self._write = stream.write
        self.level = level

    def __call__(self, text: str) -> int:
        """Write to the run's log inside an agent, else to the stream."""
        run = current_run.get()
        if run is None:
            # Source: ipykernel reads what goes to the file descriptor on this thread of the stream's.
            if _untold and threading.current_thread() is getattr(self._stream, "watch_fd_thread", None):
                _tell_of_descriptor(self.level)
            return self._write(text)
        target = _target(run, self.level)
        if isinstance(target, str):
            run.write(text, target)
        elif target is not None:
            target.write(text)
        return len(text)

    def release(self) -> None:
        """Put back what was there before."""
        if self._shadowed is None:
            del self._stream.write
        else:
            self._stream.write = self._shadowed  # type: ignore[method-assign]


def _target(run: RunContext, level: str) -> Any:
    """Return where a run's prints go: a stream, None for nowhere, or the level of its log."""
    found = (redirect.target for redirect in reversed(_redirects.get()) if redirect[:2] == (run, level))
    return next(found, level)


def _tell_of_descriptor(level: str) -> None:
    """Log in each run, once, that there is output which may be its own."""
    with _lock:
        runs = tuple(_untold)
        _untold.clear()
    for run in runs:
        run.log(
            f"during this run, a subprocess, os.write() or C code wrote to the process's {level}. Runs in one "
            "process share that output, so it is shown in a cell; with --on process it goes into the log of its run"
        )


def watch(run: RunContext) -> None:
    """Log it in this run, while it lives, if its log may lack output."""
    with _lock:
        _untold.add(run)


# --- installing --------------------------------------------------------------------------------------


def install() -> None:
    """Capture what the process has once, until `remove()` was called as often."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _manager.__enter__, _manager.__exit__ = _enter_redirect, _exit_redirect
            packages.separate()
    renew()


def renew() -> None:
    """Capture streams and inputs that are new: a cell or another library has put its own in their place."""
    with _lock:
        if not _users:
            return
        for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
            _capture(getattr(sys, name), name.strip("_"))
        for owner, name in _INPUTS:
            if not isinstance(vars(owner)[name], Asking):
                setattr(owner, name, Asking(vars(owner)[name], is_secret=owner is getpass))


def _capture(stream: Any, level: str) -> None:
    if not isinstance(getattr(stream, "write", None), RunWriter):
        with contextlib.suppress(AttributeError, TypeError):  # none, or one that takes no attributes
            stream.write = RunWriter(stream, level)
            _streams.add(stream)


def _after_fork() -> None:
    """Leave the run to the parent: in a child process nothing that is printed would reach its log."""
    current_run.set(None)
    current_guard.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def remove() -> None:
    """Restore everything, unless another library has replaced ours by now."""
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        for stream in tuple(_streams):
            while isinstance(writer := vars(stream).get("write"), RunWriter):
                writer.release()
        _streams.clear()
        for owner, name in _INPUTS:
            setattr(owner, name, unasked(vars(owner)[name]))
        _manager.__enter__, _manager.__exit__ = _enter, _exit
        packages.unite()


# --- redirect_stdout() and redirect_stderr() ---------------------------------------------------------


def _enter_redirect(manager: Any) -> Any:
    run = current_run.get()
    level, target = manager._stream, manager._new_target
    if run is None:
        with _lock:  # before it is in place: a run may print at any moment, and still has its own log
            _capture(target, level)
        return _enter(manager)
    write = getattr(target, "write", None)
    where = _target(run, write.level) if isinstance(write, RunWriter) else target
    _redirects.set((*_redirects.get(), _Redirect(run, level, where, manager)))
    return target


def _exit_redirect(manager: Any, *error: object) -> None:
    redirects = _redirects.get()
    mine = [redirect for redirect in redirects if redirect.manager is manager]
    if mine:
        _redirects.set(tuple(redirect for redirect in redirects if redirect is not mine[-1]))
        return
    with contextlib.suppress(IndexError):  # it was entered in another task of a run
        _exit(manager, *error)


# --- input() and getpass() ---------------------------------------------------------------------------


class Asking:
    """Stands for `input` or `getpass.getpass`: in a run, it asks the run's question. Threads: any."""

    def __init__(self, original: Callable[..., str], *, is_secret: bool = False) -> None:
        self.original = original
        self._is_secret = is_secret

    def __call__(self, prompt: object = "", *args: Any, **options: Any) -> str:
        """Return the line that is typed; raises `EOFError` if the question gets no answer."""
        run = current_run.get()
        if run is None:
            return self.original(prompt, *args, **options)
        is_secret = self._is_secret or options.get("password") is True  # as ipykernel calls it
        name = "getpass()" if is_secret else "input()"
        if is_on_loop():
            raise NbrunError(
                f"{name} would block this event loop; use `await run.ask(…)`, or call it by `await run.in_thread(…)`"
            )
        run.flush_lines()  # what is asked is often printed before
        answer = run.read_line(str(prompt), is_secret=is_secret)
        if not answer:
            nobody = "nobody can answer in a headless notebook" if answer.by == NOBODY else "the question was denied"
            raise EOFError(f"{name} got no answer: {answer.text or nobody}")
        return answer.text


_INPUTS: tuple[tuple[Any, str], ...] = ((builtins, "input"), (getpass, "getpass"))


def unasked(function: Any) -> Any:
    """Return what `function` was before it asked the questions of runs."""
    while isinstance(function, Asking):
        function = function.original
    return function
