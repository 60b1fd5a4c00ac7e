"""Blocking waits on the main thread, in which ■ Interrupt is prompt and cancels the waited run only."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from nbrun.core.cancellation import CancelCause
from nbrun.core.errors import Interrupted
from nbrun.core.text import printable
from nbrun.host.escalation import LAST_S
from nbrun.render.words import status_words, title

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbrun.sessions.run import Run

TICK_S = 0.05


def is_headless(shell: Any) -> bool:
    """Return whether nobody looks on: nbclient, papermill, nbconvert, or `NBRUN_BLOCK` says so.

    Source: front ends send `allow_stdin` true and a cell id; the headless executors send neither.
    """
    forced = os.environ.get("NBRUN_BLOCK")
    if forced in ("0", "1"):
        return forced == "1"
    parent = shell.get_parent() if hasattr(shell, "get_parent") else None
    if not parent:
        return False
    return not parent.get("content", {}).get("allow_stdin", False) and not cell_id(shell)


def cell_id(shell: Any) -> str | None:
    """Return the id of the cell that is being run, where the front end tells it."""
    parent = shell.get_parent() if hasattr(shell, "get_parent") else None
    found = (parent or {}).get("metadata", {}).get("cellId")
    return found if isinstance(found, str) else None


def wait_for(run: Run, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Wait for the run's end in short steps, and do something in between."""
    while not run.wait(TICK_S):
        meanwhile()


@contextmanager
def cancelled_by_interrupt(run: Run, grace_s: float) -> Iterator[None]:
    """Have ■ or Ctrl-C stop this run and no other, wherever it hits: also while the run is being shown.

    Raises
    ------
    Interrupted
        It came: this run was cancelled, and had its grace to stop.
    """
    try:
        yield
    except KeyboardInterrupt:
        run.cancel(cause=CancelCause.INTERRUPT)
        with suppress(
            KeyboardInterrupt
        ):  # a second one: does not want to wait for the grace either
            run.wait(grace_s + 2 * LAST_S)
        record = run.record
        raise Interrupted(printable(f"{title(record)}: {status_words(record)}")) from None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold ■ back while something short is done, so that it is not left half-made; it comes right after.

    On other threads than the main one there is nothing to hold back.
    """
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
    """Have `close` called at the kernel's shutdown request, before the kernel's own; return the way back.

    Source: ipykernel calls `do_shutdown(restart)` on its control thread; `atexit` alone is not sure to run
    when a child process is alive.
    """
    original = kernel.do_shutdown

    def do_shutdown(restart: bool) -> Any:
        close()
        return original(restart)

    kernel.do_shutdown = do_shutdown

    def restore() -> None:
        if kernel.do_shutdown is do_shutdown:  # else somebody has wrapped it after us
            kernel.do_shutdown = original

    return restore


def kernel_id(kernel: Any) -> str:
    """Return the kernel's id as the server knows it, or nothing.

    Source: Jupyter names the connection file `kernel-<id>.json`.
    """
    config = getattr(getattr(kernel, "parent", None), "connection_file", "")
    name = os.path.basename(str(config)).removesuffix(".json")
    return name.removeprefix("kernel-") if name.startswith("kernel-") else ""
