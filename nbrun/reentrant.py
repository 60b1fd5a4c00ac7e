"""An event loop that can be entered again: for agents that call `asyncio.run()` where a loop is running already."""

from __future__ import annotations

import asyncio
import sys
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from nbrun.cancellation import call_soon
from nbrun.context import current_run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

T = TypeVar("T")

_OPTIONS = "run it with --thread, or set %config NbRun.reentrant_loop = True"
_MENDS = {
    "cannot be called from a running event loop": _OPTIONS,
    "loop is already running": _OPTIONS,
    "while another loop is running": "call what does so by `await run.in_thread(function)`",
}


class Reentrant(asyncio.BaseEventLoop):
    """What an event loop gets beside that: a cancel reaches what it was entered for.

    Threads: of the loop, but `call_soon_threadsafe()`, as ever.
    """

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Return what the future gives, while the loop goes on with everything else."""
        run = current_run.get() if self.is_running() else None
        if run is None:
            return super().run_until_complete(future)
        # The task that is under way here cannot be cancelled before this returns; the one within can.
        inner: asyncio.Future[T] = asyncio.ensure_future(future, loop=self)  # type: ignore[arg-type]  # as asyncio's own
        cancel = run.token.add_first(lambda _request: call_soon(self, inner.cancel))
        try:
            return super().run_until_complete(inner)
        finally:
            cancel.remove()

    def close(self) -> None:
        """Close it; with the last of its kind, `asyncio.run()` is as it was."""
        if not self.is_closed():
            super().close()
            _release()


def _default_class() -> type[asyncio.BaseEventLoop]:
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop
    return asyncio.SelectorEventLoop


@lru_cache(maxsize=1)
def _loop_class() -> type[Reentrant]:
    """Return the class of such loops: of its own, for nest-asyncio2 changes classes, and the kernel's must stay."""
    import nest_asyncio2

    entered = type("EnteredLoop", (_default_class(),), {})
    first = entered()
    # Not its apply(): that exchanges asyncio's tasks and futures for slower ones, everywhere.
    nest_asyncio2._patch_loop(first)
    first.close()
    made: type[Reentrant] = type("ReentrantLoop", (Reentrant, entered), {})
    return made


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop that can be entered again, also by `asyncio.run()`; to be closed."""
    loop = _loop_class()()
    _take()
    return loop


# --- asyncio.run() --------------------------------------------------------------------------------

_lock = threading.Lock()
_loops = 0
_original: Callable[..., Any] = asyncio.run


def _run(main: Any, **options: Any) -> Any:
    """Run a coroutine: on the loop that is running where that is one of ours, else as `asyncio.run()` does."""
    loop = asyncio._get_running_loop()
    if isinstance(loop, Reentrant):
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
        if _loops == 0 and asyncio.run is _run:  # else somebody has put theirs around it
            asyncio.run = _original


def mend(error: BaseException) -> str | None:
    """Return what helps an agent that failed because it started a loop within a loop; None for other errors."""
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    found = next((words for said, words in _MENDS.items() if said in text), None)
    return found and f"the agent starts an event loop where one is running already: {found}"
