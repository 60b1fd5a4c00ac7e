"""Code that an agent runs in the notebook: on the kernel's main thread, between cells or while one waits for it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbrun.agents import current_run
from nbrun.core import BadOption, Latch

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(eq=False)
class Job:
    """A piece of code that an agent has submitted, and its results, which are complete once it is `done`."""

    code: str
    done: Latch = field(default_factory=Latch)
    printed: str = ""
    outputs: list[dict[str, Any]] = field(default_factory=list)  # MIME bundles, in their order
    error: BaseException | None = None
    is_cancelled: bool = False


class MainThread:
    """Runs code in the notebook's namespace while no cell is running, or while one only waits for a run.

    Threads: `submit()` and `cancel()` from any thread; `_lock` guards `_waiting` and `_running`; the main thread does
    the rest.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        # Source: ipykernel reads its main shell on this loop, on the main thread.
        self._loop = shell.kernel.io_loop.asyncio_loop
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._is_busy = True  # a cell is running: it made this
        shell.events.register("pre_run_cell", self._begin_cell)
        shell.events.register("post_run_cell", self._end_cell)

    def close(self) -> None:
        """Accept no more code, and detach from the shell."""
        self._shell.events.unregister("pre_run_cell", self._begin_cell)
        self._shell.events.unregister("post_run_cell", self._end_cell)
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
        for job in waiting:
            job.is_cancelled = True
            job.done.set()

    @property
    def is_busy(self) -> bool:
        """Whether code has to wait, for a cell or for other code."""
        return self._is_busy or self._running is not None

    def submit(self, code: str) -> Job:
        """Run code as soon as no cell is running."""
        job = Job(code)
        with self._lock:
            self._waiting.append(job)
        # It is the notebook's code, not the agent's: it prints and draws as a cell does.
        context = copy_context()
        context.run(current_run.set, None)
        self._loop.call_soon_threadsafe(self._next, context=context)
        return job

    def cancel(self, job: Job) -> None:
        """Withdraw code, or interrupt it if it is running; other code isn't touched."""
        job.is_cancelled = True
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
                job.done.set()
            elif self._running is job:
                # Under the lock, so that it never hits other code.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # --- the main thread -------------------------------------------------------------------------

    def run_here(self) -> None:
        """Run what waits, within a cell that only waits itself; an interrupt by ■ is meant for the cell, too."""
        while (job := self._take()) is not None:
            self._execute(job)
            if isinstance(job.error, KeyboardInterrupt) and not job.is_cancelled:
                raise job.error

    def _begin_cell(self, *_: object) -> None:
        if self._running is None:  # else it is an agent's code, run by `_execute()`
            self._is_busy = True

    def _end_cell(self, *_: object) -> None:
        if self._running is None:
            self._is_busy = False
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Run what waits, one piece per turn of the loop, so that cells get their turns."""
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
        except BaseException as error:  # raised by IPython itself, or an interrupt at the very end
            job.error = job.error or error
        finally:
            job.done.set()

    def _run(self, job: Job) -> None:
        from IPython.utils.capture import capture_output

        if self._has_await(job.code):
            job.error = BadOption("this tool can't run top-level await; remove it")
            return
        # The trap first: it would replace the capturing display hook by the shell's own.
        with self._shell.display_trap, capture_output() as captured:
            result = self._shell.run_cell(job.code, store_history=False)
        job.error = result.error_before_exec or result.error_in_exec
        job.printed = captured.stdout + captured.stderr
        job.outputs = [dict(output.data) for output in captured.outputs]

    def _has_await(self, code: str) -> bool:
        try:
            transformed = self._shell.transform_cell(code)
        except Exception:  # whatever it is: running the code reports it better
            return False
        return bool(self._shell.should_run_async(code, transformed_cell=transformed))

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let SIGINT interrupt what runs within, and no more. Source: ipykernel ignores it between cells."""
        former = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            is_over = False
            while not is_over:  # a signal sent before may arrive at any line here
                with contextlib.suppress(KeyboardInterrupt):
                    with self._lock:
                        self._running = None
                    signal.signal(signal.SIGINT, former)
                    is_over = True
