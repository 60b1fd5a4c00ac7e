"""Agents for processes of their own: each says its process id, and most of them would not be stopped elsewhere."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable

import nbrun
from nbrun import RunContext

FOR_EVER_S = 600.0


def enter(run: RunContext) -> None:
    """Say which process this is, and that it is here."""
    run.emit("pid", os.getpid())
    run.phase("entered")


async def says(prompt: str, run: RunContext) -> dict[str, object]:
    """Do a little of everything."""
    enter(run)
    run.text("some text")
    with run.tool("look", {"at": prompt}) as tool:
        tool.result = 42
    run.progress(1, 2)
    print("printed")
    os.write(1, b"written\n")
    return {"pid": os.getpid(), "same": nbrun.current() is run, "folder": os.getcwd()}


class Loud:
    """An agent whose making, where it arrives, prints."""

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        """Be made anew there."""
        return loud, ()

    async def __call__(self, prompt: str) -> str:
        """Return at once."""
        return prompt


def loud() -> Loud:
    """Make it."""
    os.write(1, b"made\n")
    return Loud()


async def streams(prompt: str) -> AsyncIterator[str]:
    """Say as many words as the prompt says."""
    for number in range(int(prompt)):
        yield f"{number} "


async def fails(prompt: str) -> None:
    """Raise."""
    raise ValueError(f"no luck with {prompt}")


async def exits_by_name(prompt: str) -> None:
    """Ask for the end of the process, as Python does."""
    raise SystemExit(3)


async def exits_at_once(prompt: str, run: RunContext) -> None:
    """End the process past all of Python, with a few last words."""
    enter(run)
    with run.tool("open"):
        run.usage(input_tokens=5)
        sys.stderr.write("last words\n")
        os.write(2, b"very last words\n")
        await asyncio.sleep(0.05)  # what was said goes over first
        os._exit(7)


async def prints_and_exits(prompt: str) -> None:
    """Print two lines, and end the process in the next moment."""
    print("one")
    print("two")
    os._exit(3)


def prints_and_crashes(prompt: str) -> None:
    """Print a line, in a thread, and touch what is nobody's."""
    print("one")
    print("two")
    ctypes.string_at(0)


async def crashes(prompt: str) -> None:
    """Touch what is nobody's."""
    ctypes.string_at(0)


async def waits(prompt: str, run: RunContext) -> None:
    """Wait for a cancel, with a tool open."""
    enter(run)
    run.text("so far")
    with run.tool("wait"):
        await asyncio.sleep(FOR_EVER_S)


def waits_in_thread(prompt: str, run: RunContext) -> None:
    """Wait for a cancel, in a thread."""
    enter(run)
    run.text("so far")
    run.sleep(FOR_EVER_S)


async def swallows(prompt: str, run: RunContext) -> None:
    """Mind no cancel."""
    enter(run)
    run.text("so far")
    run.usage(input_tokens=5)
    while True:
        try:
            await asyncio.sleep(FOR_EVER_S)
        except asyncio.CancelledError:
            run.text(", undisturbed")


def sleeps_in_c(prompt: str, run: RunContext) -> None:
    """Sleep in C, in a thread."""
    enter(run)
    run.text("so far")
    time.sleep(FOR_EVER_S)


async def blocks_loop(prompt: str, run: RunContext) -> None:
    """Sleep in C, on the event loop."""
    enter(run)
    run.text("so far")
    time.sleep(FOR_EVER_S)  # noqa: ASYNC251 - the point


async def holds_interpreter(prompt: str, run: RunContext) -> None:
    """Keep every other thread of the process from running, for minutes."""
    enter(run)
    run.text("so far")
    time.sleep(0.1)  # noqa: ASYNC251 - what was said goes over first
    sum(range(10**11))


async def spawns(prompt: str, run: RunContext) -> None:
    """Start a program that minds no SIGTERM, and wait; swallows its cancel."""
    child = subprocess.Popen(["/bin/sh", "-c", 'trap "" TERM; sleep 600'])  # noqa: ASYNC220
    run.emit("child", child.pid)
    await swallows(prompt, run)


async def leaves_behind(prompt: str, run: RunContext) -> str:
    """Start a program that minds no SIGTERM, and end."""
    child = subprocess.Popen(["/bin/sh", "-c", 'trap "" TERM; sleep 600'])  # noqa: ASYNC220
    run.emit("child", child.pid)
    return "done"


async def cancels_itself(prompt: str, run: RunContext) -> None:
    """Fire its own token and mind it."""
    run.token.cancel("had enough")
    await asyncio.sleep(FOR_EVER_S)


async def killed_by_others(prompt: str, run: RunContext) -> None:
    """Be killed as the system kills who takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def alarmed(prompt: str, run: RunContext) -> str:
    """Handle a signal, as a sync agent on the main thread may; a C call that waits is ended by it."""
    received: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, _frame: received.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, former)
    return f"{threading.current_thread() is threading.main_thread()} {received == [signal.SIGUSR1]}"


async def alarmed_on_the_loop(prompt: str, run: RunContext) -> str:
    """The same as an async agent, by its loop."""
    received = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, received.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await received.wait()
    return f"{threading.current_thread() is threading.main_thread()} True"


def interrupts_itself(prompt: str, run: RunContext) -> str:
    """Get SIGINT where its own code runs."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(FOR_EVER_S)
    except KeyboardInterrupt:
        return "interrupted"
    return "not interrupted"


async def is_interrupted(prompt: str, run: RunContext) -> None:
    """Wait for SIGINT, which comes from outside."""
    enter(run)
    await asyncio.sleep(FOR_EVER_S)


LEAVE = {
    "session": "exec setsid -f sh -c '{say}'",
    "nohup": "nohup setsid sh -c '{say}' >/dev/null 2>&1 &",
    "without environment": "exec env -i setsid -f /bin/sh -c '{say}'",
    "daemon": "setsid -f setsid -f sh -c 'cd /; {say}'",
}
"""Ways to start a process that has another session, and whose parent has ended."""


def leave(way: str, run: RunContext) -> None:
    """Start a process that leaves, and emit its id, which it says itself."""
    said, say = os.pipe()
    os.set_inheritable(say, True)
    line = LEAVE[way].format(say=f"echo $$ >&{say}; trap : TERM; while :; do sleep 600; done")
    subprocess.run(["/bin/sh", "-c", line], check=True, close_fds=False)
    os.close(say)
    with os.fdopen(said) as lines:
        run.emit("child", int(lines.readline()))


async def leaves_and_swallows(way: str, run: RunContext) -> None:
    """Start a process that leaves, and mind no cancel."""
    leave(way, run)
    await swallows(way, run)


async def leaves_and_crashes(way: str, run: RunContext) -> None:
    """Start a process that leaves, and die."""
    leave(way, run)
    enter(run)
    print("this goes over first")
    os._exit(7)


async def leaves_and_is_killed(way: str, run: RunContext) -> None:
    """Start a process that leaves, and be killed with its group."""
    leave(way, run)
    enter(run)
    print("this goes over first")
    os.killpg(0, signal.SIGKILL)


async def leaves_and_returns(way: str, run: RunContext) -> str:
    """Start a process that leaves, and end."""
    leave(way, run)
    enter(run)
    return "done"


async def leaves_and_stops_the_subreaper(way: str, run: RunContext) -> None:
    """Stop the process above, which is to end what leaves."""
    leave(way, run)
    os.kill(os.getppid(), signal.SIGSTOP)
    await swallows(way, run)
