"""The process of an ACP agent: in a group of its own, its lines read within bounds, gone when its run is over."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import itertools
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from nbrun.agents import NbrunError, RunContext, plain, shown
from nbrun.core import size_words

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nbrun.agents.acp.command import AcpAgent

MAX_LINE = 2_000_000
"""The longest message, in bytes; a longer one is skipped and logged."""
MAX_REQUESTS = 20
"""How many requests of the agent may be unanswered at a time."""
MAX_ID = 200
"""The longest request id, in characters; the answer repeats it."""
MAX_OPTIONS = 20
"""How many options of a question are read."""
PERMISSION = "session/request_permission"
MAX_ERRORS = 1_000_000
"""How many bytes of its standard error go into the run's log."""
LEAVE_S = 1.0
"""How long it may take to exit once its input is closed."""

_BUFFER = 1 << 16
_LINES_AT_ONCE = 100  # then others have their turn on the loop
_TAIL = 2_000

Message = dict[str, Any]


class AcpProcess:
    """An agent's process, and the messages to and from it: what the protocol's package calls a transport.

    Threads: of one event loop.

    Parameters
    ----------
    take : gets each update of a session in turn; what it awaits holds the agent back.
    held : the end of the lifeline that only this process holds.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        run: RunContext,
        label: str,
        take: Callable[[object], Awaitable[None]],
        held: int,
    ) -> None:
        self._process = process
        self._held = held
        self._run = run
        self._label = label
        self._take = take
        self._last_words = b""
        self._garbage = 0
        self._unanswered = 0
        self._answered = asyncio.Event()
        self._errors = asyncio.create_task(self._log_errors(), name=f"nbrun-acp-{run.run_id}")

    @classmethod
    async def start(
        cls, agent: AcpAgent, run: RunContext, take: Callable[[object], Awaitable[None]]
    ) -> AcpProcess:
        """Start the program, tied to this kernel: where that is killed, the whole group is.

        Raises
        ------
        NbrunError
            It cannot be started.
        """
        lifeline, held = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *agent.argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, cwd=agent.folder, env={**os.environ, **(agent.env or {})},
                start_new_session=True, pass_fds=(lifeline,), limit=_BUFFER,
            )  # fmt: skip
        except OSError as error:
            os.close(held)
            why = error.strerror or error
            raise NbrunError(f"{agent.label} could not be started: {why}") from error
        except BaseException:  # a cancel: asyncio has ended what it had begun
            os.close(held)
            raise
        else:
            _tie(lifeline, process.pid)
        finally:
            os.close(lifeline)
        return cls(process, run, agent.label, take, held)

    # --- the transport ---------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Write a message; an answer is one when the agent has read what was written before it."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            with contextlib.suppress(ConnectionError):  # it is gone, which the reading side tells
                await self._process.stdin.drain()
        finally:
            if "method" not in message:
                self._unanswered -= 1
                self._answered.set()

    async def receive(self) -> Message | None:
        """Return the next answer or request of the agent; None at the end.

        Updates are handed on from here, in their order. What is neither is left out: the connection would take it for
        a mistake of its own.
        """
        for number in itertools.count(1):
            line = await self._line()
            if line is None:
                return None
            if number % _LINES_AT_ONCE == 0:
                await asyncio.sleep(0)
            message = self._read(line) or {}
            match message:
                case {"method": str(), "id": int() | str() as known_as}:
                    self._unanswered += 1
                    await self._has_room()
                    if len(str(known_as)) <= MAX_ID:
                        return _trimmed(message)
                    refused = {"code": -32600, "message": "the request's id is too long"}
                    await self.send({"jsonrpc": "2.0", "id": None, "error": refused})
                case {"method": "session/update"}:
                    await self._take(message.get("params"))
                case {"method": _}:
                    pass
                case {"id": int(), "error": error} if not isinstance(error, dict):
                    return {**message, "error": {"message": shown(plain(error), 200)}}
                case {"id": int()}:
                    return message
        return None

    async def _has_room(self) -> None:
        """Hold the agent back while too many of its requests have no answer: a person can give few at a time."""
        while self._unanswered > MAX_REQUESTS:
            self._answered.clear()
            await self._answered.wait()

    async def close(self) -> None:
        """Do nothing: `end()` ends the process, which is more than a connection's end."""

    async def _line(self) -> bytes | None:
        """Return the next line; None at the end. One that is too long is skipped, and never held whole."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - the same
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                part, is_whole = await stdout.readuntil(b"\n"), True
            except asyncio.LimitOverrunError as error:
                part, is_whole = await stdout.readexactly(error.consumed), False
            except asyncio.IncompleteReadError:
                return None
            size += len(part)
            if size <= MAX_LINE:
                parts.append(part)
            else:
                parts.clear()
            if is_whole and size <= MAX_LINE:
                return b"".join(parts)
            if is_whole:
                words = f"a message of {size_words(size)} from {self._label} was skipped because it is too long"
                self._run.log(words, "warning")
                size = 0

    def _read(self, line: bytes) -> Message | None:
        """Return the message of a line; what is none is told of once, and counted."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if isinstance(message, dict):
            return message
        if line.strip():
            self._garbage += 1
            if self._garbage == 1:
                text = shown(line[:300].decode(errors="replace"), 200)
                self._run.log(
                    f"{self._label} wrote a line that isn't a valid message: {text}", "warning"
                )
        return None

    # --- its end ---------------------------------------------------------------------------------

    async def fate(self) -> str:
        """Return what has become of it, for the error of a run that it has left: how it ended, and its last words."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), LEAVE_S)
        code = self._process.returncode
        if code is None:
            how = "closed its output"
        elif code < 0:
            how = f"was killed by signal {-code}"
        else:
            how = f"ended with exit code {code}"
        self.kill()  # else what it has started would keep its standard error open
        await asyncio.wait({self._errors}, timeout=LEAVE_S)
        words = shown(self._last_words.decode(errors="replace").strip(), 500)
        return f"{self._label} {how} before it had answered{f': {words}' if words else ''}"

    async def end(self, *, at_once: bool) -> None:
        """Hang up, let it end by itself for a moment, and kill what is left of its group."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
            if not at_once:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), LEAVE_S)
        finally:
            self.kill()
            os.close(self._held)
            self._errors.cancel()
            # Its pipes may be full of what nobody reads any more. The process class has no close() of its own, and
            # what it stands on must not be closed before the process was waited for: it would take its exit code.
            transport = self._process._transport  # type: ignore[attr-defined]
            for pipe in map(transport.get_pipe_transport, range(3)):
                if pipe is not None:
                    pipe.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), LEAVE_S)
            transport.close()
            if self._garbage > 1:
                self._run.log(
                    f"{self._label} wrote {self._garbage:,} lines that aren't valid messages"
                )

    def kill(self) -> None:
        """Kill its group: what it has started may live on after it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody of it is left
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _log_errors(self) -> None:
        """Write what it says on its standard error into the run's log, up to a limit."""
        stderr = self._process.stderr
        assert stderr is not None  # noqa: S101 - it was started with a pipe
        size = 0
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end within a letter
        while part := await stderr.read(_BUFFER):
            self._last_words = (self._last_words + part)[-_TAIL:]
            if size < MAX_ERRORS:
                self._run.write(decoder.decode(part), "stderr")
                if size + len(part) >= MAX_ERRORS:
                    self._run.log(
                        f"{self._label} wrote more to its standard error than nbrun keeps"
                    )
            size += len(part)


def _trimmed(request: Message) -> Message:
    """Return a request with what we look at of it; of any other than a question nothing, for we do nothing else.

    The package would mix `_meta` into the parameters that it has read, and say in its answer, with the part itself,
    what is wrong in each of any number of parts.
    """
    params: Message = {}
    if request["method"] == PERMISSION:
        given = as_dict(request.get("params"))
        call, options = as_dict(given.get("toolCall")), given.get("options")
        listed = options[:MAX_OPTIONS] if isinstance(options, list) else []
        params = {
            "sessionId": given.get("sessionId"),
            "toolCall": {name: call[name] for name in ("toolCallId", "title", "rawInput") if name in call},
            "options": [
                {name: as_dict(option).get(name) for name in ("optionId", "name", "kind")} for option in listed
            ],
        }  # fmt: skip
    return {**request, "params": params}


def as_dict(value: object) -> Message:
    """Return a part that should be one, of a message of which any may be anything; else an empty one."""
    return value if isinstance(value, dict) else {}


def _tie(lifeline: int, pid: int) -> None:
    """Have Linux kill the group when this process is gone, whatever its members are doing.

    The lifeline is a pipe whose other end only this process holds. Elsewhere an agent hears of our end by its
    standard input, which is closed then.

    Source: `fcntl(2)`, F_SETSIG: the settings are those of the open pipe, which the agent has inherited.
    """
    if sys.platform != "linux":
        return
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -pid)
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
