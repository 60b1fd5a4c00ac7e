"""Event loops: on a thread of their own, and loops that can be entered again."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nbrun.agents import Worker, current_run
from nbrun.core import BadOption, Cancelled, call_soon, current_guard, module_lock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator


T = TypeVar("T")


class LoopThread:
    """An event loop on a daemon thread, which keeps references to its tasks; or `is_here`: on this one, by `run()`.

    Threads: `spawn()` and `start()` on the loop; everything else from any thread. `_tasks` is of the loop;
    `_calls` is filled by any thread and emptied by the loop.
    """

    moved_by: str | None = None
    """The run for which others had to change between this loop and another one; None if there was none."""

    def __init__(
        self,
        name: str,
        make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
        *,
        is_here: bool = False,
    ) -> None:
        self.loop = make_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: deque[Callable[[], object]] = deque()
        self._is_called = False
        self.on_close: list[Callable[[], object]] = []  # called by whoever closes it, not on the loop
        self._is_stopping = False
        self._forget = self._tasks.discard
        self.context = Context()  # of callbacks that need none: a copy for each costs memory
        self._thread = threading.current_thread()
        if not is_here:
            self._thread = threading.Thread(target=self.run, name=name, daemon=True)
            self._thread.start()
        self.ident = self._thread.ident  # of the thread

    def spawn(self, work: Coroutine[Any, Any, Any], name: str, context: Context | None = None) -> asyncio.Task[Any]:
        """Start a task, in `context` or a copy of the current one, and keep it until it ends."""
        task = self.start(work, name, context, self._forget)
        self._tasks.add(task)
        return task

    def start(
        self,
        work: Coroutine[Any, Any, Any],
        name: str,
        context: Context | None,
        on_end: Callable[[asyncio.Task[Any]], object],
    ) -> asyncio.Task[Any]:
        """Start a task that the caller keeps until `on_end(task)` is called."""
        before = current_guard.set(None)  # it is nbrun's own, even if an agent has caused it
        try:
            task = self.loop.create_task(work, name=name, context=context)
        finally:
            current_guard.reset(before)
        task.add_done_callback(on_end, context=self.context)
        return task

    def call(self, function: Callable[[], object]) -> None:
        """Call `function` on the loop, in the order of the calls; not when it is closed."""
        self._calls.append(function)
        if not self._is_called:  # else it is awake already; waking it again costs fifty times this
            self._is_called = True
            call_soon(self.loop, self._run_calls, self.context)

    @property
    def is_behind(self) -> bool:
        """Whether a call waits for the loop."""
        return self._is_called

    @property
    def is_current(self) -> bool:
        """Whether this code runs on the loop's thread, where a blocking wait would stop every run."""
        return threading.current_thread() is self._thread

    def close(self, timeout_s: float) -> bool:
        """Stop the loop; return whether its thread has ended within the time. May be called again to wait."""
        if not self._is_stopping:  # a second stop would hit the loop while its tasks see their end
            self._is_stopping = True
            for callback in self.on_close:
                callback()
            call_soon(self.loop, self.loop.stop)
        if not self.is_current:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run_calls(self) -> None:
        self._is_called = False  # first: a call from here on wakes the loop again
        try:
            for _ in range(len(self._calls)):
                function = self._calls.popleft()
                try:
                    function()
                except Exception as error:  # as the loop does: one callback does not stop another
                    self.loop.call_exception_handler({"message": f"{function!r} failed", "exception": error})
        finally:
            if self._calls and not self._is_called:  # nor does a SystemExit that leaves here
                self._is_called = True
                self.loop.call_soon(self._run_calls, context=self.context)

    def run(self) -> None:
        """Run the loop until `close()`."""
        asyncio.set_event_loop(self.loop)
        while not self._is_stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt, Cancelled):
                # asyncio lets these out of a task that an agent has started on the side. They end
                # that task; they must not end the loop of everybody's runs.
                continue
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        try:
            self.loop.run_until_complete(asyncio.sleep(0))  # lets each see its CancelledError once
        finally:
            self.loop.close()


may_enter: ContextVar[bool] = ContextVar("nbrun_may_enter", default=False)
"""Whether the code that runs may enter its loop again, if that is one of these."""


class Reentrant(asyncio.BaseEventLoop):
    """Adds to an event loop that can be entered again: a cancel of the run reaches what it was entered for.

    Threads: of the loop, except `call_soon_threadsafe()`, as ever.
    """

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Return the future's result, while the loop continues with everything else."""
        if self.is_running() and not may_enter.get():
            raise RuntimeError("This event loop is already running")  # in asyncio's own words
        run = current_run.get() if self.is_running() else None
        if run is None:
            return super().run_until_complete(future)
        # The task that runs here cannot be cancelled before this returns; the inner one can.
        inner: asyncio.Future[T] = asyncio.ensure_future(future, loop=self)  # type: ignore[arg-type]  # as asyncio's own
        cancel = run.token.add_first(lambda _request: call_soon(self, inner.cancel))
        try:
            return super().run_until_complete(inner)
        finally:
            cancel.remove()

    def close(self) -> None:
        """Close it; with the last such loop, `asyncio.run()` is restored."""
        if not self.is_closed():
            super().close()
            _release()


def _default_class() -> type[asyncio.BaseEventLoop]:
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop
    return asyncio.SelectorEventLoop


_classes: dict[type[asyncio.BaseEventLoop], type[Reentrant]] = {}


def _loop_class(known: type[asyncio.BaseEventLoop]) -> type[Reentrant]:
    """Return a class of such loops: a new one, for nest-asyncio2 changes classes, and the kernel's must stay."""
    if known in _classes:
        return _classes[known]
    import nest_asyncio2

    entered = type("EnteredLoop", (known,), {})
    first = entered()
    # Not its apply(): that replaces asyncio's tasks and futures by slower ones, everywhere.
    nest_asyncio2._patch_loop(first)
    first.close()
    return _classes.setdefault(known, type("ReentrantLoop", (Reentrant, entered), {}))


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop that can be entered again, also by `asyncio.run()`; to be closed."""
    loop = _loop_class(_default_class())()
    _take()
    return loop


def make_reentrant(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Return a function that makes a loop one that can be entered again, to be called on it; it may be running.

    Raises
    ------
    BadOption
        The loop isn't one of asyncio's own.
    """
    if not isinstance(loop, asyncio.BaseEventLoop):
        name = f"{type(loop).__module__}.{type(loop).__qualname__}"
        raise BadOption(f"reentrant_loop needs asyncio's own event loop, not {name}; don't set that event loop policy")
    kind = type(loop) if isinstance(loop, Reentrant) else _loop_class(type(loop))

    def change() -> None:
        if not isinstance(loop, Reentrant):
            loop.__class__ = kind
            loop._num_runs_pending = 1  # type: ignore[attr-defined]  # nest-asyncio2 counts them; one is this
            _take()

    return change


_lock = module_lock()
_loops = 0
_original: Callable[..., Any] = asyncio.run


def _run(main: Any, **options: Any) -> Any:
    """Run a coroutine: on the running loop if that is one of ours, else as `asyncio.run()` does."""
    loop = asyncio._get_running_loop()
    if isinstance(loop, Reentrant) and may_enter.get():
        return loop.run_until_complete(main)
    return _original(main, **options)


def _take() -> None:
    global _loops, _original
    with _lock:
        _loops += 1
        if _loops == 1:
            _original, asyncio.run = asyncio.run, _run


def _release() -> None:
    global _loops
    with _lock:
        _loops -= 1
        if _loops == 0 and asyncio.run is _run:  # else another library has wrapped it
            asyncio.run = _original


class RunThreads(ThreadPoolExecutor):
    """Gives each `asyncio.to_thread()` of an agent a thread of its own, which a cancel of the run reaches and names.

    asyncio's own would delay the kernel's exit, and not say what they run. Threads: `submit()` on the host's loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(max_workers=1)  # it starts none: asyncio takes no other class
        self._loop = loop

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Start a thread for the call."""
        context, call = copy_context(), partial(fn, *args, **kwargs)
        owner = getattr(call.func, "__self__", None)
        if isinstance(owner, Context):
            # asyncio submits `context.run(function)`. The function is taken out, so that it sees its own guard.
            function: Callable[..., T] = call.args[0]
            context, call = owner, partial(function, *call.args[1:], **call.keywords)
        run = current_run.get()
        name = getattr(call.func, "__name__", "a thread")
        worker: Worker[T] = Worker(run.run_id if run else "aside", call, context, name=name)
        if run is None:
            return worker.start()
        run.add_work(worker)
        future = worker.start()
        drop = partial(run.drop_work, worker)
        future.add_done_callback(lambda _future: call_soon(self._loop, drop))
        return future
