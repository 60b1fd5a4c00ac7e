"""Blocking waits on the main thread, in which ■ Interrupt acts at once and cancels the waited run only."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from nbrun.core import CancelCause, Interrupted, printable
from nbrun.host.escalation import LAST_S
from nbrun.render import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbrun.sessions import Run

TICK_S = 0.05


def is_headless(shell: Any) -> bool:
    """Return whether nobody is watching: a program executes the notebook, or `NBRUN_BLOCK` says so."""
    forced = os.environ.get("NBRUN_BLOCK")
    return forced == "1" if forced in ("0", "1") else is_executed(shell)


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


def _parent(shell: Any) -> dict[str, Any]:
    """Return the message that the running cell came with; an empty one without a kernel."""
    return (shell.get_parent() if hasattr(shell, "get_parent") else None) or {}


def wait_for(run: Run, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Wait for the run to end, and call `meanwhile` between short waits."""
    while not run.wait(TICK_S):
        meanwhile()


@contextmanager
def cancelled_by_interrupt(run: Run, grace_s: float) -> Iterator[None]:
    """Have ■ or Ctrl-C cancel this run and no other, whenever it comes: also while the run is being shown.

    After the run's grace period to stop, this raises `Interrupted`.
    """
    try:
        yield
    except KeyboardInterrupt:
        run.cancel(cause=CancelCause.INTERRUPT)
        with suppress(KeyboardInterrupt):  # a second one skips the grace period, too
            run.wait(grace_s + 2 * LAST_S)
        message = f"{words.opening(run.record)}: {words.status_words(run.record)}"
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
