"""Blocking waits on the main thread, in which ■ Interrupt acts at once and cancels the waited run only."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import datetime
from io import StringIO
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nbrun.agents import current_run
from nbrun.core import CancelCause, Interrupted, printable
from nbrun.host import capture
from nbrun.host.escalation import LAST_S
from nbrun.render import words
from nbrun.sessions import RunSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbrun.sessions import Run

TICK_S = 0.05


def is_headless(shell: Any) -> bool:
    """Return whether nobody is watching: a program executes the notebook, or `NBRUN_BLOCK` says so."""
    forced = os.environ.get("NBRUN_BLOCK")
    return forced == "1" if forced in ("0", "1") else is_executed(shell)


def is_answerable(shell: Any, block: bool | None) -> bool:
    """Return whether somebody could answer a run's questions: nobody can if a headless cell waits for it."""
    return block is False or getattr(shell, "kernel", None) is None or not is_headless(shell)


def is_executed(shell: Any) -> bool:
    """Return whether nbclient runs the cell, for itself, nbconvert or papermill.

    Source: front ends send `allow_stdin` true and a cell id; nbclient sends neither.
    """
    return bool(_parent(shell)) and not _can_ask(shell) and not cell_id(shell)


def is_console(shell: Any) -> bool:
    """Return whether the cell was typed in a program that shows text only, such as jupyter console.

    Source: a page gives its messages random ids; a Python program's begin with that of its session (jupyter_client).
    """
    header = _parent(shell).get("header", {})
    is_python = str(header.get("msg_id")).startswith(f"{header.get('session')}_")
    return is_python and _can_ask(shell) and not cell_id(shell)


def _can_ask(shell: Any) -> bool:
    return bool(_parent(shell).get("content", {}).get("allow_stdin", False))


def cell_id(shell: Any) -> str | None:
    """Return the id of the running cell, if the front end sends it."""
    found = _parent(shell).get("metadata", {}).get("cellId")
    return found if isinstance(found, str) else None


def sent_at(shell: Any) -> float | None:
    """Return when the running cell was sent, in epoch seconds of the page's clock; None if that isn't known."""
    found = _parent(shell).get("header", {}).get("date")
    return found.timestamp() if isinstance(found, datetime) else None


def _parent(shell: Any) -> dict[str, Any]:
    """Return the message that the running cell came with; an empty one without a kernel."""
    return (shell.get_parent() if hasattr(shell, "get_parent") else None) or {}


@contextmanager
def cancelled_by_interrupt(run: Run | RunSet, grace_s: float) -> Iterator[None]:
    """Have ■ or Ctrl-C cancel this run or set and no other, whenever it comes: also while the run is being shown.

    After the run's grace period to stop, this raises `Interrupted`.
    """
    try:
        yield
    except KeyboardInterrupt:
        run.cancel(cause=CancelCause.INTERRUPT)
        with suppress(KeyboardInterrupt):  # a second one skips the grace period, too
            run.wait(grace_s + 2 * LAST_S)
        message = (
            repr(run) if isinstance(run, RunSet) else f"{words.opening(run.record)}: {words.status_words(run.record)}"
        )
        raise Interrupted(printable(message)) from None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay ■, on the main thread, until something short is done that must not be left half done."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is None:  # None: not Python's to give back
        yield
        return
    held: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *signalled: held.append(signalled))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held and callable(before):
            before(*held[0])


def wrap_shutdown(kernel: Any, close: Callable[[], None]) -> Callable[[], None]:
    """Have `close` called when the kernel is asked to shut down, before it does; return what undoes this.

    Source: ipykernel calls `do_shutdown(restart)` on its control thread; `atexit` may not run while a child
    process is alive.
    """
    original = kernel.do_shutdown

    def do_shutdown(restart: bool) -> Any:
        close()
        return original(restart)

    kernel.do_shutdown = do_shutdown

    def restore() -> None:
        if kernel.do_shutdown is do_shutdown:  # else another library has wrapped it since
            kernel.do_shutdown = original

    return restore


def kernel_id(kernel: Any) -> str:
    """Return the server's id of the kernel, or "". Source: Jupyter's connection file is `kernel-<id>.json`."""
    config = getattr(getattr(kernel, "parent", None), "connection_file", "")
    name = os.path.basename(str(config)).removesuffix(".json")
    return name.removeprefix("kernel-") if name.startswith("kernel-") else ""


def renew_capture(shell: Any) -> Callable[[], None]:
    """Have what runs print and ask for captured again whenever a cell begins or ends; return what undoes this.

    Source: for each cell IPython shadows the `write` of both streams, and puts back at its end what was there before;
    ipykernel does so with `input()` and `getpass()`. Code that imported `getpass` in a cell keeps the kernel's; all of
    them call `_input_request()`. A terminal calls `prompt_for_code()` between cells.
    """
    owner = getattr(shell, "kernel", None) or shell
    at_end = "_restore_input" if owner is not shell else "prompt_for_code"
    replaced: dict[str, Any] = {}
    if (former := getattr(owner, at_end, None)) is not None:
        replaced[at_end] = _around(former, capture.renew)
    if owner is not shell:
        replaced["_input_request"] = capture.Asking(owner._input_request)
    vars(owner).update(replaced)
    shell.events.register("pre_run_cell", _renew)

    def restore() -> None:
        shell.events.unregister("pre_run_cell", _renew)
        for name, ours in replaced.items():
            if vars(owner).get(name) is ours:  # else another library has wrapped it since
                delattr(owner, name)
        if owner is not shell:
            owner._sys_raw_input = capture.unasked(owner._sys_raw_input)
            owner._save_getpass = capture.unasked(owner._save_getpass)

    return restore


def _renew(*_: object) -> None:
    capture.renew()


def _around(function: Callable[..., Any], renew: Callable[[], None]) -> Callable[..., Any]:
    """Return the function with a call of `renew` before and after it."""

    def call(*args: Any, **options: Any) -> Any:
        renew()
        try:
            return function(*args, **options)
        finally:
            renew()

    return call


def wrap_capture() -> Callable[[], None]:
    """Keep what runs print out of `%%capture` and `capture_output()` of a cell; return what undoes this.

    An agent's own `capture_output()` captures what it prints, and nobody else's prints.
    """
    from IPython.utils.capture import CapturedIO, capture_output

    kind: Any = capture_output
    enter, leave = kind.__enter__, kind.__exit__
    stacks: WeakKeyDictionary[Any, ExitStack] = WeakKeyDictionary()

    def enter_apart(manager: Any) -> Any:
        stack = stacks[manager] = ExitStack()
        # Not by IPython's streams: until they were captured, what a run prints would go there.
        out = stack.enter_context(redirect_stdout(StringIO())) if manager.stdout else None
        err = stack.enter_context(redirect_stderr(StringIO())) if manager.stderr else None
        if current_run.get() is not None:
            return CapturedIO(out, err, [])
        wanted = manager.stdout, manager.stderr
        manager.stdout = manager.stderr = False
        enter(manager)
        manager.stdout, manager.stderr = wanted
        stack.push(lambda *error: leave(manager, *error))
        return CapturedIO(out, err, manager.shell.display_pub.outputs if manager.display else None)

    def leave_apart(manager: Any, *error: Any) -> None:
        stack = stacks.pop(manager, None)
        if stack is None:  # it was entered before: `%load_ext nbrun` below `%%capture`
            leave(manager, *error)
        else:
            stack.__exit__(*error)

    kind.__enter__, kind.__exit__ = enter_apart, leave_apart

    def restore() -> None:
        kind.__enter__, kind.__exit__ = enter, leave

    return restore
