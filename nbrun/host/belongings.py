"""What a run has started beside its own task: knows its tasks, threads and processes, and stops them.

What a library keeps for later runs, such as the task that reads a client's connection, is not the run's, though it was
started inside. The code tells: a task, thread or process is the run's if the agent's code has started it or runs in
it. What a library starts is the run's only if the library waits for it, as `gather()`, `Executor.submit()` and
`subprocess.run()` do for their callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context
from functools import partial, wraps
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, ref

from nbrun.agents import Cancelled, Process, RunContext, ThreadCall, Work, call_here, current_run, is_quiet
from nbrun.core import module_lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

T = TypeVar("T")

_NBRUN = os.path.dirname(os.path.dirname(__file__)) + os.sep
_FOLDER = os.path.dirname(os.__file__) + os.sep
_PACKAGES = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_WAITED_FOR = frozenset({
    "gather", "as_completed", "wait_for", "shield", "submit",  # asyncio, executors
    "run", "call", "check_call", "check_output", "getstatusoutput",  # subprocess
})  # fmt: skip
"""Functions of the standard library whose callers wait for what they start."""


# Whose code it is, by file. No enum: this is asked for each task.
_AGENT, _LIBRARY, _STANDARD, _OURS = "agent", "library", "standard library", "nbrun"
_known: dict[str, str] = {}


def _owner_of(code: CodeType) -> str:
    path = code.co_filename
    return _known.get(path) or _find_owner(path)


def _find_owner(path: str) -> str:
    if path.startswith(_NBRUN):
        found = _OURS
    elif any(part in path for part in _PACKAGES):
        found = _LIBRARY
    else:  # a cell has a file of its own, or none
        found = _STANDARD if path.startswith((_FOLDER, "<frozen ")) else _AGENT
    _known[path] = found
    return found


def _is_own(run: RunContext, target: object, frame: FrameType | None, *, is_waited_for: bool = False) -> bool | None:
    """Return whether the run owns what `frame` starts, in which `target` runs; None if nbrun itself starts it."""
    code = _code_of(target)
    whose = _STANDARD
    if code is not None and _owner_of(code) is _AGENT:
        return True
    while frame is not None and (whose := _owner_of(frame.f_code)) is _STANDARD:
        code = frame.f_code
        is_waited_for = is_waited_for or code.co_name in _WAITED_FOR or code.co_filename.endswith("taskgroups.py")
        frame = frame.f_back
    if frame is None or whose is _OURS:
        return None
    return whose is _AGENT or (is_waited_for and not _is_in_library_task(run))


def _frame(depth: int) -> FrameType:
    """Return the frame that is so many calls above the caller's."""
    return sys._getframe(depth + 1)


def _code_of(target: object) -> CodeType | None:
    while isinstance(target, partial):
        target = target.func
    return getattr(target, "__code__", None)  # a method has its function's


def _is_in_library_task(run: RunContext) -> bool:
    if run.library_tasks is None:
        return False
    try:
        return asyncio.current_task() in run.library_tasks
    except RuntimeError:  # no event loop runs here
        return False


def _is_entry(function: object) -> bool:
    """Return whether it is the `run` of a context, as in `submit(copy_context().run, function)`."""
    return isinstance(getattr(function, "__self__", None), Context)


def _name_of(target: object) -> str:
    while isinstance(target, partial):
        target = target.args[0] if _is_entry(target.func) else target.func
    return str(getattr(target, "__name__", type(target).__name__))


def claim_task(run: RunContext, task: asyncio.Task[Any], work: object) -> None:
    """Note whose a new task is; `work` is its coroutine. Called by the loop's task factory."""
    if type(work) is not CoroutineType:  # the end of a generator that nobody has closed, say
        return
    is_own = _owner_of(work.cr_code) is _AGENT or _is_own(run, None, _frame(2))
    if is_own:
        if run.tasks is None:
            run.tasks = WeakKeyDictionary()
        run.tasks[task] = ref(asyncio.current_task(task.get_loop()) or task)
    elif is_own is not None:
        is_nested = _is_in_library_task(run)
        if run.library_tasks is None:
            run.library_tasks = WeakKeyDictionary()
        run.library_tasks[task] = is_nested


def _task_name(task: asyncio.Task[Any]) -> str:
    name = str(getattr(task.get_coro(), "__qualname__", ""))
    return name.rpartition("<locals>.")[2] or task.get_name()


class _PoolCall(ThreadCall):
    """A call of a run's on a pool's thread."""

    def __init__(self, run: RunContext, function: Callable[[], Any]) -> None:
        super().__init__(_name_of(function))
        self._run = run
        self._function: Callable[[], Any] | None = function
        self.future: Future[Any] | None = None

    def __call__(self) -> Any:
        """Make the call, in the pool's thread, which is the run's meanwhile."""
        call: Any = self._function
        enter: Any = getattr(call, "func", None)
        if _is_entry(enter):  # the function is taken out, to see its own guard
            return enter(self._call, partial(*call.args, **call.keywords))
        return self._call(call)

    def _call(self, function: Callable[[], T]) -> T:
        before = current_run.set(self._run)
        try:
            return self.run(function)
        finally:
            current_run.reset(before)

    def stop(self) -> bool:
        """Take it out of the pool's queue, or end what an event loop was entered for there."""
        future = self.future
        return (future is not None and future.cancel()) or super().stop()

    def finish(self) -> None:
        """Note that it has ended, or will not be made."""
        super().finish()
        self._function = self.future = None  # which lead back here
        self._run.drop_work(self)


def _claimed(run: RunContext | None, target: object, frame: FrameType) -> RunContext | None:
    """Return the run, if it owns a call that `frame` hands to a pool."""
    return run if run is not None and _is_own(run, target, frame, is_waited_for=True) else None


class _AnyioCalls(queue.Queue[Any]):
    """The queue of one of anyio's worker threads, which serves the runs of a loop in turn.

    Source: anyio puts `(context, function, args, …)` for a call and None for the end, and reports each call as done.
    """

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self._calls: deque[_PoolCall | None] = deque()

    def _put(self, item: Any) -> None:
        if item is not None:
            context, function, args, *rest = item
            call = None
            if run := _claimed(current_run.get(), function, _frame(2)):
                call = _PoolCall(run, partial(function, *args))
                run.add_work(call)
                item = context, call, (), *rest
            self._calls.append(call)
        super()._put(item)

    def task_done(self) -> None:
        """Note that the oldest call has been made, or was cancelled before."""
        if (call := self._calls.popleft()) is not None:
            call.finish()
        super().task_done()


# --- what the standard library starts for a run; installed while there is a host ---------------------

_lock = module_lock()
_hosts = 0
_originals: dict[str, Any] = {}


@wraps(threading.Thread.start)
def _start_thread(thread: threading.Thread) -> None:
    kind = type(thread)
    if kind.__name__ == "WorkerThread" and kind.__module__.startswith("anyio."):
        thread.queue = _AnyioCalls(thread.queue.maxsize)  # type: ignore[attr-defined]
    run = current_run.get()
    function = getattr(thread, "_target", None) or thread.run
    frame = _frame(1)
    # What the standard library starts unasked, as a pool's threads, serves others as well.
    start = _originals["start"]
    if run is None or _owner_of(frame.f_code) is _STANDARD or not _is_own(run, function, frame):
        start(thread)
        return
    call = _PoolCall(run, thread.run)
    call.name = _name_of(function) if function != thread.run else thread.name

    def main() -> None:
        del thread.run  # the class's again
        try:
            with contextlib.suppress(Cancelled):
                call()
        except asyncio.CancelledError:  # of a loop of its own: nobody has to read of that
            if not run.token.cancelled:
                raise
        finally:
            call.finish()

    thread.run = main  # type: ignore[method-assign]
    run.add_work(call)
    try:
        start(thread)
    except RuntimeError:  # it was started before, or the system has no more threads
        call.finish()
        raise


@wraps(ThreadPoolExecutor.submit)  # type: ignore[arg-type]  # it is generic
def _submit_call(executor: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    submit: Callable[..., Future[Any]] = _originals["submit"]
    run = _claimed(current_run.get(), fn, _frame(1))
    if run is None:
        return submit(executor, fn, *args, **kwargs)
    call = _PoolCall(run, partial(fn, *args, **kwargs))
    run.add_work(call)
    try:
        call.future = future = submit(executor, call)
    except BaseException:
        call.finish()
        raise
    future.add_done_callback(lambda _future: call.finish())
    return future


@wraps(subprocess.Popen.__init__)
def _open_process(process: subprocess.Popen[Any], args: Any, *others: Any, **options: Any) -> None:
    _originals["__init__"](process, args, *others, **options)
    run = current_run.get()
    if run is None or not _is_own(run, None, _frame(1)):
        return
    for work in run.work:
        if isinstance(work, Process) and not work.is_alive():
            run.drop_work(work)
    import psutil

    with contextlib.suppress(psutil.Error):  # it has ended already
        run.add_work(Process(psutil.Process(process.pid), args))


@wraps(asyncio.BaseEventLoop.run_until_complete)
def _run_until_complete(loop: asyncio.BaseEventLoop, future: Any) -> Any:
    enter: Any = _originals["run_until_complete"]
    call = call_here()
    return enter(loop, future) if call is None else call.run_until_complete(enter, loop, future)


_HOOKS: tuple[tuple[type, str, Any], ...] = (
    (asyncio.BaseEventLoop, "run_until_complete", _run_until_complete),
    (threading.Thread, "start", _start_thread),
    (ThreadPoolExecutor, "submit", _submit_call),
    (subprocess.Popen, "__init__", _open_process),
)
_installed: set[str] = set()


def watch() -> None:
    """Have runs own the threads and processes that they start, until `unwatch()` was called as often."""
    global _hosts
    with _lock:
        _hosts += 1
        for owner, name, hook in _HOOKS:
            if name not in _installed:
                _installed.add(name)
                _originals[name] = getattr(owner, name)
                setattr(owner, name, hook)


def unwatch() -> None:
    """Leave the standard library as it was; a hook that another library has wrapped by now stays, and does nothing."""
    global _hosts
    with _lock:
        _hosts -= 1
        for owner, name, hook in () if _hosts else _HOOKS:
            if getattr(owner, name) is hook:
                setattr(owner, name, _originals[name])
                _installed.discard(name)


# --- the end of it -----------------------------------------------------------------------------------


class Belongings:
    """What one run has started and is still running. Threads: of the host's loop."""

    __slots__ = ("_run",)

    def __init__(self, run: RunContext) -> None:
        self._run = run

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Return its tasks on the host's loop."""
        return [task for task in self._run.tasks or () if not task.done()]

    def work(self) -> list[Work]:
        """Return its threads and processes."""
        return [work for work in self._run.work if work.is_alive()]

    @property
    def is_running(self) -> bool:
        """Whether anything of it runs."""
        return bool(self.tasks() or self.work())

    def names(self) -> tuple[str, ...]:
        """Return what to call them, each name once."""
        names = [*(work.name for work in self.work()), *(_task_name(task) for task in self.tasks())]
        return tuple(dict.fromkeys(names))

    def library_names(self) -> tuple[str, ...]:
        """Return the names of the tasks that its libraries go on with, without those that these have started."""
        tasks = (self._run.library_tasks or {}).items()
        return tuple(dict.fromkeys(_task_name(task) for task, is_nested in tasks if not is_nested and is_quiet(task)))

    def stop(self, *, processes: bool = True) -> tuple[str, ...]:
        """Cancel its tasks, and ask what can be asked to end; return the names."""
        work = [one for one in self.work() if (processes or not isinstance(one, Process)) and one.stop()]
        return tuple(dict.fromkeys([*(one.name for one in work), *self.stop_tasks()]))

    def stop_tasks(self) -> tuple[str, ...]:
        """Cancel its tasks; return the names of those that hear of it now.

        A task comes before those that it has started, so that a `TaskGroup` in it ends its own: they must not be
        cancelled a second time, in their cleanup. Those that it leaves running are cancelled when it has ended.
        """
        makers, tasks = self._run.tasks or {}, set(self.tasks())
        made_by: dict[object, list[asyncio.Task[Any]]] = {}
        for task in tasks:
            maker = makers[task]()
            made_by.setdefault(maker if maker in tasks and maker is not task else None, []).append(task)

        def cancel(made: list[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
            quiet = [task for task in made if is_quiet(task)]
            for task in made:
                task.add_done_callback(lambda ended: cancel(made_by.pop(ended, [])))
            for task in quiet:
                task.cancel()
            return quiet

        return tuple(dict.fromkeys(map(_task_name, cancel(made_by.pop(None, [])))))

    def stop_all_tasks(self) -> bool:
        """Cancel those of its tasks that have not been, whoever has started them; return whether there were any."""
        return bool([task.cancel() for task in self.tasks() if is_quiet(task)])

    async def ended(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing runs any more; return whether that came within the time."""
        if not self.is_running:  # as mostly; a task that is destroyed with its loop comes here, too
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while tasks := self.tasks():
                    await asyncio.wait(tasks)
                for work in self._run.work:
                    await work.ended()
        return not self.is_running
