"""Code that an agent runs in the notebook: on the kernel's main thread, between cells."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from nbrun.core.errors import BadOption
from nbrun.core.latches import Latch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Job:
    """One piece of code on its way.

    Threads: `cancel()` from any; the rest is written on the main thread, before `done` is set.
    """

    def __init__(self, code: str, interrupt: Callable[[Job], None]) -> None:
        self.code = code
        self.done = Latch()
        self.printed = ""
        self.outputs: list[dict[str, Any]] = []  # MIME bundles, in their order
        self.error: BaseException | None = None
        self.is_cancelled = False
        self._interrupt = interrupt

    def cancel(self) -> None:
        """Take it back, or interrupt it; no other code."""
        self.is_cancelled = True
        self._interrupt(self)


class MainThread:
    """Runs code in the notebook's namespace while no cell is running, or while one only waits for a run.

    Threads: `submit()` from any; `_waiting` and `_running` are guarded by `_lock`; the rest is of the main thread.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        # Source: ipykernel's main shell is read on this loop, and the main thread runs it.
        self._loop = shell.kernel.io_loop.asyncio_loop
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._is_busy = True  # it is made for a cell that is being run
        shell.events.register("pre_run_cell", self._begin_cell)
        shell.events.register("post_run_cell", self._end_cell)

    def close(self) -> None:
        """Take no more code, and let go of the shell."""
        self._shell.events.unregister("pre_run_cell", self._begin_cell)
        self._shell.events.unregister("post_run_cell", self._end_cell)
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
        for job in waiting:
            job.cancel()
            job.done.set()

    @property
    def is_busy(self) -> bool:
        """Whether code has to wait, for a cell or for other code."""
        return self._is_busy or self._running is not None

    def submit(self, code: str) -> Job:
        """Have code run as soon as no cell is running."""
        job = Job(code, self._interrupt)
        with self._lock:
            self._waiting.append(job)
        self._loop.call_soon_threadsafe(self._next)
        return job

    def _interrupt(self, job: Job) -> None:
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
                job.done.set()
            elif self._running is job:
                # Under the lock, so that it never comes when other code has its turn.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # --- the main thread -------------------------------------------------------------------------

    def run_here(self) -> None:
        """Run what waits, in a cell that has nothing else to do.

        Raises
        ------
        KeyboardInterrupt
            ■ came meanwhile: it is the cell's as well.
        """
        while (job := self._take()) is not None:
            self._execute(job)
            if isinstance(job.error, KeyboardInterrupt) and not job.is_cancelled:
                raise job.error

    def _begin_cell(self, *_: object) -> None:
        if self._running is None:  # else it is our own
            self._is_busy = True

    def _end_cell(self, *_: object) -> None:
        if self._running is None:
            self._is_busy = False
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Run what waits, one piece in each turn of the loop, so that cells have theirs."""
        if not self._is_busy and (job := self._take()) is not None:
            self._execute(job)
            self._loop.call_soon(self._next)

    def _take(self) -> Job | None:
        with self._lock:
            if self._running is None and self._waiting:
                self._running = self._waiting.popleft()
                return self._running
        return None

    def _execute(self, job: Job) -> None:
        try:
            with self._interruptible():
                self._run(job)
        except BaseException as error:  # of IPython itself, or an interrupt at the very end
            job.error = job.error or error
        finally:
            job.done.set()

    def _run(self, job: Job) -> None:
        from IPython.utils.capture import capture_output

        if self._has_await(job.code):
            job.error = BadOption("top-level await is not for this tool; leave await out")
            return
        # The trap first: it would put the shell's own display hook in place of what captures.
        with self._shell.display_trap, capture_output() as captured:
            result = self._shell.run_cell(job.code, store_history=False)
        job.error = result.error_before_exec or result.error_in_exec
        job.printed = captured.stdout + captured.stderr
        job.outputs = [dict(output.data) for output in captured.outputs]

    def _has_await(self, code: str) -> bool:
        try:
            transformed = self._shell.transform_cell(code)
        except Exception:  # of what kind ever: running it tells it better
            return False
        return bool(self._shell.should_run_async(code, transformed_cell=transformed))

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Have SIGINT interrupt what runs within, and nothing else afterwards.

        Source: ipykernel ignores the signal between two cells.
        """
        former = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            is_over = False
            while not is_over:  # a signal from before may come at any line of this
                with contextlib.suppress(KeyboardInterrupt):
                    with self._lock:
                        self._running = None
                    signal.signal(signal.SIGINT, former)
                    is_over = True
