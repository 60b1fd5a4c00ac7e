"""A small process above a program: when the program ends, or the kernel, so does everything that it has started.

On Linux a process whose parent has ended gets the nearest subreaper as its parent, whatever session or group it is in.
So nothing that the program starts can leave: neither by `setsid` and `nohup`, nor as a daemon. The kernel itself is no
subreaper, because it would have to wait for everybody's orphans.

This file is run by itself, before anything of nbrun is imported, so it needs the standard library only.
"""

import contextlib
import errno
import os
import resource
import select
import signal
import sys
from os import _exit as exit_now

IS_SUPPORTED = sys.platform == "linux"

_SET_DEATH_SIGNAL, _SET_NAME, _SET_SUBREAPER = 1, 15, 36  # of prctl(2)
_AGAIN_MS = 10
_LOOK_MS = 1_000
"""How often to check whether the kernel is still the parent: a fork of it may keep the lifeline open."""
_NOT_FOUND = 127  # as a shell exits when it can't run a program


def supervised(argv: list[str], lifeline: int = -1) -> list[str]:
    """Return the command that runs a program below a subreaper, and exits as the program does.

    SIGTERM ends all of it. So does the end of `lifeline`, an inherited pipe that only the kernel can write to.
    """
    if not IS_SUPPORTED:
        return argv
    return [sys.executable, "-I", "-S", __file__, str(lifeline), str(os.getpid()), *argv]


def supervise(lifeline: int, kernel: int) -> int:
    """Fork: return in the new process, with the subreaper's process id; the subreaper itself never returns."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    prctl(_SET_SUBREAPER, 1, 0, 0, 0)
    wake, wake_too = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_too, warn_on_full_buffer=False)
    asked: list[int] = []
    numbers = (signal.SIGCHLD, signal.SIGTERM)
    for number in numbers:
        signal.signal(number, lambda number, _frame: asked.append(number) if number == signal.SIGTERM else None)
    parent = os.getpid()
    program = os.fork()
    if program:
        prctl(_SET_NAME, b"nbrun-subreaper", 0, 0, 0)
        _watch(program, (lifeline, wake, wake_too), kernel, asked)
    signal.set_wakeup_fd(-1)
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    os.close(wake)
    os.close(wake_too)
    os.setsid()
    prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        exit_now(1)
    return parent


def _watch(program: int, kept: tuple[int, int, int], kernel: int, asked: list[int]) -> None:
    """Wait until the program and all below it have ended, kill what must end, and exit as the program did."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):  # a pipe of the program's ends with the program
        os.dup2(nothing, fd)
    lifeline, wake, _ = kept
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(fd)
    poll = select.poll()
    for fd in (wake, lifeline):
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    status: int | None = None
    must_end = False
    while True:
        for fd, _ in poll.poll(_AGAIN_MS if must_end else _LOOK_MS):
            if fd == lifeline:
                poll.unregister(fd)
                must_end = True
            else:
                os.read(wake, 4096)
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == program:
                    status = found[1]
        except ChildProcessError:  # nothing is left
            _exit_as(status)
        must_end = must_end or bool(asked) or status is not None or os.getppid() != kernel
        if must_end:
            for pid in _children():
                with contextlib.suppress(OSError):  # it has become another user's
                    os.kill(pid, signal.SIGKILL)


def _children() -> list[int]:
    """Return this process's children; none of their numbers can be in use again, as nobody else waits for them."""
    found = []
    parent = b"%d" % os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, above = file.read().rpartition(b")")[2].split()[:2]
                if above == parent and state not in b"ZX":
                    found.append(int(name))
    return found


def _exit_as(status: int | None) -> None:
    code = 1 if status is None else os.waitstatus_to_exitcode(status)
    if code >= 0:
        exit_now(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has left one
    with contextlib.suppress(OSError):  # SIGKILL has no handler
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    exit_now(128 - code)


def _why(program: str, error: OSError) -> str:
    """Return why a program can't be executed; of a script, the system doesn't say which interpreter is missing."""
    import shutil

    with contextlib.suppress(OSError), open(shutil.which(program) or program, "rb") as file:
        first = file.readline(300).rstrip(b"\n")
        if first.startswith(b"#!"):
            return f"its first line, {first.decode(errors='replace')!r}, names no program that can be executed"
        if error.errno == errno.ENOEXEC:
            return "it is neither a program for this machine nor a script that begins with #!"
    return str(error.strerror)


if __name__ == "__main__":
    inherited, above = map(int, sys.argv[1:3])
    supervise(inherited, above)
    if inherited >= 0:
        os.close(inherited)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 - what the user has named
    except OSError as error:
        sys.stderr.write(f"{sys.argv[3]} could not be started: {_why(sys.argv[3], error)}\n")
        exit_now(_NOT_FOUND)
