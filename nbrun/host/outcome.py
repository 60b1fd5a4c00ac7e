"""How an attempt ends: what is kept of its output before, and the one event that says it."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from nbrun.agents.context.threads import Worker
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelCause
from nbrun.host.failures import described

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.core.cancellation import CancelToken
    from nbrun.core.values import Plain
    from nbrun.host.attempt import Attempt
    from nbrun.host.loops import LoopThread

LOOK_LIMIT_S = 5.0
"""How long an output's own code may take to show it, before its run ends without."""
OBJECT_LIMIT_S = 60.0
"""The same where the object is to be kept, which may be large."""


async def keep_output(
    attempt: Attempt, output: object, thread: LoopThread, tell: Callable[[ev.EventData], None]
) -> None:
    """Have kept what is wanted of an output, before the end: in a thread, for its own code is asked to show it.

    Neither that code's time nor its mistakes are the run's: it is waited for so long, and not after a cancel.
    """
    keeper, token, keep_object = attempt.keeper, attempt.token, attempt.options.keep_object
    if token.cancelled:
        return
    if keeper is None:
        if keep_object:
            tell(
                ev.Log("the object of its output is not kept: there is no folder for it", "warning")
            )
        return
    if not keeper.wants(output, keep_object):
        return
    not_kept = "how its output looks is not kept"
    keep = partial(keeper.keep_output, output, keep_object)
    work = Worker(attempt.run_id, keep, copy_context(), name="output")
    limit_s = OBJECT_LIMIT_S if keep_object else LOOK_LIMIT_S
    try:
        kept = asyncio.wrap_future(work.start())
    except RuntimeError as no_thread:
        tell(ev.Log(f"{not_kept}: {no_thread}", "warning"))
        return
    hurry = token.add_callback(lambda _request: thread.call(kept.cancel))
    await asyncio.wait({kept}, timeout=limit_s)
    hurry.remove()
    if not kept.done():
        kept.cancel()
        work.interrupt()
        tell(ev.Log(f"{not_kept}: that took over {limit_s:g} s", "warning"))
    elif kept.cancelled():
        work.interrupt()
    elif (error := kept.exception()) is not None:  # a SystemExit, say, of its own code
        tell(ev.Log(f"{not_kept} ({described(error)})", "warning"))
    else:
        for data in kept.result():
            tell(data)


def end_event(
    token: CancelToken,
    output: Plain,
    error: ev.ErrorInfo | None,
    usage: ev.Usage | None,
    is_signal: bool,
    detached: tuple[str, ...],
) -> ev.EventData:
    """Return the end event, by the token and by what was raised; never by the text of a result.

    Parameters
    ----------
    error : what was raised, if that was not what had been asked for.
    is_signal : whether a cancel's own exception was raised.
    detached : what has not stopped.
    """
    if token.cancelled:
        if usage is not None and (error is not None or is_signal or detached):
            usage = msgspec.structs.replace(usage, exact=False)  # its last report never came
        return ev.RunCancelled(
            cause=token.cause or CancelCause.USER,
            reason=token.reason,
            output=output,
            error=None if is_signal else error,
            usage=usage,
            detached=detached,
        )
    if error is not None:
        return ev.RunFailed(error, output, usage)
    return ev.RunCompleted(output, usage)
