"""The process of an ACP agent: in its own group, which is killed when the run ends; its output is bounded."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import itertools
import json
import os
import signal
from typing import TYPE_CHECKING, Any

from nbrun.agents import NbrunError, RunContext, plain, shown
from nbrun.core import size_words
from nbrun.core.subreaper import IS_SUPPORTED, supervised

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nbrun.agents.acp.command import AcpAgent

MAX_LINE = 2_000_000  # bytes of a message; a longer one is skipped and logged
MAX_REQUESTS = 20  # of the agent, unanswered at a time
MAX_ID = 200  # characters of a request's id, which the answer repeats
MAX_OPTIONS = 20  # of a question
PERMISSION = "session/request_permission"
MAX_ERRORS = 1_000_000  # bytes of its standard error in the run's log
LEAVE_S = 1.0  # for it to exit once its input is closed

_BUFFER = 1 << 16
_LINES_AT_ONCE = 100  # before other tasks of the loop get a turn
_TAIL = 2_000

Message = dict[str, Any]


class AcpProcess:
    """An agent's process and its messages: a transport, in the terms of the protocol's package."""

    def __init__(
        self, process: asyncio.subprocess.Process, run: RunContext, label: str,
        take: Callable[[object], Awaitable[None]], held: int,
    ) -> None:  # fmt: skip
        self._process = process
        self._held = held  # this process's end of the lifeline
        self._run = run
        self._label = label
        self._take = take  # gets the updates in turn; the agent waits until it returns
        self._tail = b""
        self._invalid = 0
        self._unanswered = 0
        self._answered = asyncio.Event()
        self._errors = asyncio.create_task(self._log_errors(), name=f"nbrun-acp-{run.run_id}")

    @classmethod
    async def start(cls, agent: AcpAgent, run: RunContext, take: Callable[[object], Awaitable[None]]) -> AcpProcess:
        """Start the program, whose group is killed if this kernel is; raise `NbrunError` if it can't be started."""
        lifeline, held = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *supervised(agent.argv, lifeline), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, cwd=agent.folder, env={**os.environ, **(agent.env or {})},
                start_new_session=True, pass_fds=(lifeline,), limit=_BUFFER,
            )  # fmt: skip
        except OSError as error:
            os.close(held)
            why = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else error
            raise NbrunError(f"{agent.label} could not be started: {why}") from error
        except BaseException:  # a cancel: asyncio has ended the process
            os.close(held)
            raise
        finally:
            os.close(lifeline)
        return cls(process, run, agent.label, take, held)

    # --- the transport ---------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Write a message; a request counts as answered once its answer is written."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            with contextlib.suppress(ConnectionError):  # the reading side reports the end
                await self._process.stdin.drain()
        finally:
            if "method" not in message:
                self._unanswered -= 1
                self._answered.set()

    async def receive(self) -> Message | None:
        """Return the agent's next answer or request; None at the end.

        Updates go to `take`, in their order. Anything else is skipped, because the connection would fail on it.
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
        """Wait while too many of the agent's requests are unanswered."""
        while self._unanswered > MAX_REQUESTS:
            self._answered.clear()
            await self._answered.wait()

    async def close(self) -> None:
        """Do nothing: `end()` ends the whole process."""

    async def _line(self) -> bytes | None:
        """Return the next line; None at the end. A line that is too long is skipped as it is read."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - it was started with a pipe
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
                message = f"a message of {size_words(size)} from {self._label} was skipped because it is too long"
                self._run.log(message, "warning")
                size = 0

    def _read(self, line: bytes) -> Message | None:
        """Return the message in a line; the first invalid line is logged, the others are counted."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if isinstance(message, dict):
            return message
        if line.strip():
            self._invalid += 1
            if self._invalid == 1:
                text = shown(line.decode(errors="replace"), 200)
                message = f"{self._label} wrote a line that isn't a valid message: {text}"
                self._run.log(message, "warning")
        return None

    # --- the end ---------------------------------------------------------------------------------

    async def fate(self) -> str:
        """Return how the process ended, with the end of its standard error, for the error of the run."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), LEAVE_S)
        code = self._process.returncode
        if code is None:
            how = "closed its output"
        elif code < 0:
            how = f"was killed by signal {-code}"
        else:
            how = f"ended with exit code {code}"
        self.kill()  # otherwise its children could keep its standard error open
        await asyncio.wait({self._errors}, timeout=LEAVE_S)
        text = shown(self._tail.decode(errors="replace").strip(), 500)
        return f"{self._label} {how} before it had answered{f': {text}' if text else ''}"

    async def end(self, *, at_once: bool) -> None:
        """Close its input, give it a moment to exit, and kill what is left of its group."""
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
            # Private, because `Process` has no close(). Its pipes are closed first, as they may be full and unread;
            # the transport only after wait(), because its close() discards the exit code.
            transport = self._process._transport  # type: ignore[attr-defined]
            for pipe in map(transport.get_pipe_transport, range(3)):
                if pipe is not None:
                    pipe.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), LEAVE_S)
            transport.close()
            if (count := self._invalid) > 1:
                self._run.log(f"{self._label} wrote {count:,} lines that aren't valid messages")

    def kill(self) -> None:
        """Kill it with all below it, in whatever session that is; elsewhere than on Linux, its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone
            if not IS_SUPPORTED:
                os.killpg(self._process.pid, signal.SIGKILL)
            elif self._process.returncode is None:  # it ends last
                os.kill(self._process.pid, signal.SIGTERM)

    async def _log_errors(self) -> None:
        """Copy its standard error into the run's log, up to a limit."""
        stderr = self._process.stderr
        assert stderr is not None  # noqa: S101 - it was started with a pipe
        size = 0
        # Incremental, because a read may end within a character.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while part := await stderr.read(_BUFFER):
            self._tail = (self._tail + part)[-_TAIL:]
            if size < MAX_ERRORS:
                self._run.write(decoder.decode(part), "stderr")
                if size + len(part) >= MAX_ERRORS:
                    self._run.log(f"{self._label} wrote more to its standard error than nbrun keeps")
            size += len(part)


def _trimmed(request: Message) -> Message:
    """Return a request with only the parameters that nbrun uses: those of permission requests.

    The package would merge `_meta` into them, and its answer would repeat every invalid one, however many there are.
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
        }
    return {**request, "params": params}


def as_dict(value: object) -> Message:
    """Return a part of a message if it is a dict, otherwise an empty one."""
    return value if isinstance(value, dict) else {}
