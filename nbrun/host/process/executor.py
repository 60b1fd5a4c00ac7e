"""The process executor: each run in a process of its own, which can be killed with all that it has started."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.core import CancelCause, Cancelled, Clock, Printed, Rung, call_soon, events as ev, plain, shown, subreaper
from nbrun.host import driver, escalation, failures
from nbrun.host.process import protocol
from nbrun.host.process.group import ProcessGroup
from nbrun.host.process.relay import Relay, Relayed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.host.attempt import Attempt, IsFull, OnHost, Sink

_log = logging.getLogger("nbrun")

CLOSE_S = 0.1
"""How long a close waits for the processes that it has killed."""
SHUTDOWN_S = 0.6
"""What a run gets at the close of its session, which has only a second for all of them."""
LINGER_S = 1.0
"""What a process gets to exit after the end of its run: handlers at exit, files to be written."""
GIVE_UP_S = 1.0
"""How long a killed process may take to die before its run ends without it."""
LOOK_S = 0.25
"""How often a process is checked for its death; mostly the end of its socket comes first."""
DYING_S = 0.01
"""The same for a process that is about to exit."""
READ_BYTES = 1 << 16
MAX_READS = 64
"""How often a stream is read in one go."""

_SUPERVISE = "space = {{}}; exec(open({file!r}).read(), space); parent = space['supervise']({lifeline}, {parent}); "
_START = (
    "import sys; sys.path[:] = {path!r}; from nbrun.host.process.child import main; main({channel}, {lifeline}, parent)"
)


class ProcessExecutor:
    """Runs each attempt in a process of its own. Threads: of one loop, which no agent is on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sink: Sink | None = None
        self._on_host: OnHost = lambda _host, _is_up: None
        self._processes: dict[tuple[object, object], RunProcess] = {}

    async def open(self, sink: Sink, on_host: OnHost) -> None:
        """Keep where events go."""
        self._sink = sink
        self._on_host = on_host

    async def submit(self, attempts: Sequence[Attempt]) -> None:
        """Start a process for each."""
        if self._sink is None:
            raise RuntimeError("the process executor is not open")
        for attempt in attempts:
            key = (attempt.run_id, attempt.number)
            process = RunProcess(attempt, self._sink, self._clock, self._on_host)
            self._processes[key] = process
            process.task.add_done_callback(partial(self._forget, key))

    def _forget(self, key: tuple[object, object], _task: object) -> None:
        del self._processes[key]

    async def control(self, host: str, op: str, body: dict[str, object]) -> dict[str, object]:
        """Send it to the run's process; its effects come back as events."""
        if op == "ping":
            return {"op": op, "live": len(self._processes)}
        process = self._processes.get((body.get("run_id"), body.get("attempt")))
        if process is None:
            return {"op": op, "outcome": "not_found"}
        whole: Any = plain(body)
        process.control(protocol.Control(op, whole))
        return {"op": op, "outcome": "sent"}

    async def release(self, attempts: Sequence[Attempt]) -> None:
        """Nothing to release: an attempt is never run again here."""

    async def kill_host(self, host: str) -> None:
        """Kill the process of this name."""
        for process in self._processes.values():
            if process.name == host:
                process.kill_by(0.0)

    def hurry(self) -> None:
        """Leave every process no more time than the close of its session has."""
        self._kill_all(SHUTDOWN_S)

    def _kill_all(self, seconds: float) -> None:
        for process in self._processes.values():
            process.kill_by(seconds)

    async def close(self) -> None:
        """Kill every process and its group; wait a moment for that."""
        self._kill_all(0.0)
        if tasks := [process.task for process in self._processes.values()]:
            await asyncio.wait(tasks, timeout=CLOSE_S)


class RunProcess:
    """One attempt in a process of its own, which leads a group with everything that the agent starts.

    Not asyncio's own subprocesses: they wait for a process as soon as it exits, and from then on its number, by which
    its group is killed, may belong to another process. `on_host` is called with the name of the process when it is up
    and when it is gone. Threads: of the executor's loop.
    """

    def __init__(self, attempt: Attempt, sink: Sink, clock: Clock, on_host: OnHost) -> None:
        self.name = ""
        self._attempt = attempt
        self._relay = Relay(attempt, sink, clock)
        self._clock = clock
        self._on_host = on_host
        self._loop = asyncio.get_running_loop()
        self._exited = self._loop.create_future()  # or killed, and does not die
        self._look_s = LOOK_S
        self._killing: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._readers: dict[int, Callable[[], object]] = {}
        self._frames = protocol.Frames(protocol.MAX_BYTES)
        self._outgoing = bytearray()
        self._early: deque[protocol.Control] = deque()  # until the agent is entered
        self._printed: dict[int, Printed] = {}
        self._unlogged: deque[ev.Log] = deque()
        self._refusal: Exception | None = None  # of a message that isn't valid
        self._has_begun = False
        self._sync = protocol.Sync(0)  # the last one that has come
        self._is_syncing = self._is_hurried = False
        self._secrets: dict[str, str] = {}  # that came from the process
        self._cut_off: ev.RunCancelled | None = None  # the end that the host has sent before it was killed
        self.task = self._loop.create_task(self._main(), name=f"nbrun-process-{attempt.run_id}")

    def control(self, message: protocol.Control) -> None:
        """Send a message to the host, when its agent has been entered."""
        self._early.append(message)
        self._send_early()

    def kill_by(self, seconds: float) -> None:
        """Have the group killed so many seconds from now, or sooner if that was decided before."""
        at = self._loop.time() + seconds
        if self._killing is None or at < self._killing.when():
            self._kill_at(at)

    def _kill_at(self, at: float) -> None:
        if self._killing is not None:
            self._killing.cancel()
        self._killing = self._loop.call_at(at, self._kill)

    def _kill(self) -> None:
        if not self._exited.done():
            self._group.kill()
            self._loop.call_later(GIVE_UP_S / 2, self._group.kill_directly)
            self._loop.call_later(GIVE_UP_S, self._note_exit)
            self._look_closely()

    async def _main(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                await self._run(stack)
        except Exception as error:  # a mistake of ours must not leave a run without its end
            _log.exception("cannot follow the process of %s", self._attempt.run_id)
            self._relay.fail(failures.describe(error))
        finally:
            for timer in (self._killing, self._deadline):
                if timer is not None:
                    timer.cancel()
            if self.name:
                self._on_host(self.name, False)

    async def _run(self, stack: contextlib.ExitStack) -> None:
        token = self._attempt.token
        if token.cancelled:  # while it was queued
            self._relay.cancel(token.cause or CancelCause.SHUTDOWN, token.reason, ())
            return
        try:
            group = self._group = self._open(stack)
        except (OSError, ValueError) as error:
            message = f"the run's process could not be started: {error}"
            self._relay.fail(ev.ErrorInfo(type(error).__name__, message))
            return
        self._on_host(self.name, True)
        handle = token.add_first(lambda _request: call_soon(self._loop, self._pass_on_cancel))
        stack.callback(handle.remove)
        self._listen()
        self._look()
        try:
            await self._exited
            await group.let_die(GIVE_UP_S / 2)
        finally:
            left = group.put_away()
        self._receive_rest()
        self._read_all_printed()
        self._log_unlogged()
        if not self._relay.is_ended:
            self._end_dead(group, left)

    # --- the process -----------------------------------------------------------------------------

    def _open(self, stack: contextlib.ExitStack) -> ProcessGroup:
        """Start the process; what it needs of ours is closed here again, what is ours with the stack."""
        self._channel, theirs = socket.socketpair()
        stack.callback(self._channel.close)
        lifeline, our_lifeline = os.pipe()
        stack.callback(os.close, our_lifeline)  # the system kills the group when it goes
        try:
            supervise = _SUPERVISE if subreaper.IS_SUPPORTED else "parent = {parent}; "
            code = (supervise + _START).format(
                path=[entry for entry in sys.path if isinstance(entry, str)], channel=theirs.fileno(),
                lifeline=lifeline, file=subreaper.__file__, parent=os.getpid(),
            )  # fmt: skip
            group = ProcessGroup(code, (theirs.fileno(), lifeline))
        finally:
            theirs.close()
            os.close(lifeline)
        stack.callback(group.close)
        self.name = f"process-{group.pid}"
        self._channel.setblocking(False)
        self._readers[self._channel.fileno()] = self._receive
        for fd, level in group.streams():
            self._printed[fd] = Printed(level)
            self._readers[fd] = partial(self._read_printed, fd)
        stack.callback(self._loop.remove_writer, self._channel)
        stack.callback(self._stop_listening)
        return group

    def _look(self) -> None:
        if self._group.is_dead():
            self._note_exit()
        elif not self._exited.done():
            self._loop.call_later(self._look_s, self._look)

    def _look_closely(self) -> None:
        """Check for the process's death often: it is near."""
        if self._look_s != DYING_S:
            self._look_s = DYING_S
            self._look()

    def _note_exit(self) -> None:
        if not self._exited.done():
            self._exited.set_result(None)

    # --- cancel ----------------------------------------------------------------------------------

    def _pass_on_cancel(self) -> None:
        token = self._attempt.token
        if self._has_begun:
            self._send(protocol.Cancel(token.reason, token.cause or CancelCause.USER))
            self.kill_by(self._attempt.grace_s + escalation.LAST_S)
        else:  # its agent is never entered
            self.kill_by(0.0)

    def _fire(self, reason: str | None, cause: CancelCause) -> None:
        """Fire the run's token here; a callback of it cannot keep its process from being followed."""
        try:
            self._attempt.token.cancel(reason, cause, patience_s=0.0)
        except (Exception, Cancelled):
            _log.exception("a cancel callback of %s failed", self._attempt.run_id)

    def _fire_deadline(self) -> None:
        if not self._relay.is_ended:
            self._fire(None, CancelCause.DEADLINE)

    # --- what is sent and received ---------------------------------------------------------------

    def _send(self, message: protocol.Message) -> None:
        if self._exited.done():  # a cancel or an answer may come a moment late
            return
        self._outgoing += protocol.frame(message)
        self._write()

    def _write(self) -> None:
        """Write what the socket takes, and the rest when it takes more."""
        try:
            sent = self._channel.send(self._outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:  # it is dying, and the rest is not read
            sent = len(self._outgoing)
        del self._outgoing[:sent]
        if self._outgoing:
            self._loop.add_writer(self._channel, self._write)
        else:
            self._loop.remove_writer(self._channel)

    def _send_early(self) -> None:
        while self._relay.is_entered and self._early:
            self._send(self._early.popleft())

    def _listen(self) -> None:
        for fd, read in self._readers.items():
            self._loop.add_reader(fd, self._try, read)

    def _stop_listening(self) -> None:
        for fd in self._readers:
            self._loop.remove_reader(fd)

    def _resume_listening(self, is_full: IsFull) -> None:
        if self._exited.done():
            return
        if is_full():
            self._loop.call_later(driver.PAUSE_S, self._resume_listening, is_full)
        else:
            self._listen()

    def _try(self, read: Callable[[], object]) -> None:
        try:
            read()
        except Exception as error:  # what is no message, say: an agent may write to any file
            if not self._exited.done():
                self._exited.set_exception(error)

    def _close_reader(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        del self._readers[fd]

    def _hand_on(self, events: Sequence[Relayed]) -> None:
        """Hand events on; while too much waits to be stored, read nothing: the agent then has to wait."""
        is_full = self._relay.pass_on(events)
        if is_full is not None and not self._exited.done():
            self._stop_listening()
            self._loop.call_later(driver.PAUSE_S, self._resume_listening, is_full)

    def _receive(self) -> bool:
        """Take what has come over the channel; return whether there may be more."""
        try:
            data = self._channel.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close_reader(self._channel.fileno())
            self.kill_by(GIVE_UP_S)  # it is dying, or its agent has closed what is not its own
            self._look_closely()
            return False
        try:
            for message in self._frames.feed(data):
                self._hear(message)
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:  # an agent may write to any file
            self._refusal = self._refusal or error
            self._close_reader(self._channel.fileno())
            self.kill_by(0.0)
            return False
        return True

    def _receive_rest(self) -> None:
        while self._channel.fileno() in self._readers and self._receive():
            pass

    def _read_printed(self, fd: int) -> bool:
        """Take what the process has printed past its agent's run; return whether there may be more."""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close_reader(fd)
        printed = self._printed[fd]
        self._log_printed(printed, printed.feed(data))
        return bool(data)

    def _read_all_printed(self) -> None:
        """Take all that was printed before this moment, also without a line's end."""
        for fd, printed in self._printed.items():
            for _ in range(MAX_READS):  # what still prints is not what was printed before
                if fd not in self._readers or not self._read_printed(fd):
                    break
            self._log_printed(printed, printed.rest())

    def _log_printed(self, printed: Printed, text: str) -> None:
        if text:
            self._unlogged.append(ev.Log(text, printed.level))
        if self._relay.is_entered:
            self._log_unlogged()

    def _log_unlogged(self) -> None:
        """Log what was printed; what overtook the start of the run has waited until then."""
        while self._unlogged:
            self._hand_on([(self._clock.now(), self._unlogged.popleft(), None)])

    def _hear(self, message: protocol.Message) -> None:
        match message:
            case protocol.Ready():
                if self._has_begun:
                    raise ValueError("it was ready before")
                if not self._attempt.token.cancelled:
                    self._has_begun = True
                    self._send(protocol.begin(self._attempt, self.name))
            case protocol.Cancel(reason=reason, cause=cause):
                self._fire(reason, cause)
            case protocol.Secrets(found=found):
                if (writer := self._attempt.artifact_writer) is not None:
                    self._secrets |= protocol.new_secrets(found, writer.keyring.known)
                    if len(self._secrets) > protocol.MAX_SECRETS:  # each makes every text of the run slower
                        raise ValueError(f"it has more than {protocol.MAX_SECRETS} secrets")
                    if self._attempt.add_secrets is not None:
                        self._attempt.add_secrets(self._secrets)
            case protocol.Batch(events=events):
                self._pass_on_valid(events)
            case protocol.Sync():
                self._sync = message
                if not self._is_syncing:
                    self._answer_sync(0)
                elif message.is_urgent and not self._is_hurried and self._attempt.when_stored is not None:
                    self._is_hurried = True
                    self._attempt.when_stored(lambda: None, is_urgent=True)
            case _:
                raise ValueError(f"only the kernel sends a {type(message).__name__}")

    def _answer_sync(self, known: int) -> None:
        """Tell the process what is stored by now, and look for what it has asked for since; one thing at a time."""
        if known:
            self._send(protocol.Stored(known))
        wanted, when_stored = self._sync, self._attempt.when_stored
        self._is_syncing = wanted.number > known and when_stored is not None
        self._is_hurried = wanted.is_urgent
        if self._is_syncing and when_stored is not None:
            answer = partial(self._answer_sync, wanted.number)
            when_stored(lambda: call_soon(self._loop, answer), is_urgent=wanted.is_urgent)

    def _pass_on_valid(self, events: Sequence[protocol.PackedEvent]) -> None:
        """Hand on the events up to the first that isn't valid; that raises `ValueError`."""
        valid: list[Relayed] = []
        has_started = self._relay.is_entered
        try:
            for number, packed in enumerate(events, 1):
                data = protocol.unpack_event(packed)
                if isinstance(data, ev.RunStarted) and (has_started or data.host != self.name):
                    raise ValueError("a run starts once, on its own host")
                has_started = has_started or isinstance(data, ev.RunStarted)
                if data.TYPE in ev.END_TYPES and number < len(events):
                    raise ValueError("events come after the end")
                valid.append((packed.ts, data, packed.parent))
        finally:
            self._pass_on(valid)

    def _pass_on(self, events: list[Relayed]) -> None:
        """Hand on events of the host; an end comes last in its batch, and is handled apart."""
        # Where the host would leave something behind, it is killed: that is another step of the escalation.
        events = [event for event in events if not _is_detaching(event[1])]
        if not events:
            return
        end = events[-1][1]
        if end.TYPE not in ev.END_TYPES:
            was_entered = self._relay.is_entered
            self._hand_on(events)
            if self._relay.is_entered and not was_entered:
                self._note_entered()
            return
        self._hand_on(events[:-1])
        self._read_all_printed()
        self._log_unlogged()
        if isinstance(end, ev.RunCancelled):
            self._fire(end.reason, end.cause)  # before the end, the log has the request to stop
            if end.detached:  # here nothing is left behind: it is killed, and that is its run's end
                self._cut_off = end
                self.kill_by(0.0)
                return
        elif isinstance(end, ev.RunCompleted | ev.RunFailed) and end.detached:  # it ends with its process, too
            note = ev.Log(f"ended with the process of the run: {', '.join(end.detached)}", "warning")
            self._hand_on([(events[-1][0], note, None)])
            end = msgspec.structs.replace(end, detached=())
        self._hand_on([(events[-1][0], end, events[-1][2])])
        self._kill_at(self._loop.time() + LINGER_S)

    def _note_entered(self) -> None:
        self._send_early()
        if (deadline := self._relay.deadline) is not None:
            left_s = max(0.0, deadline - self._clock.now())
            self._deadline = self._loop.call_later(left_s, self._fire_deadline)

    # --- the end of a process that has not sent one ----------------------------------------------

    def _end_dead(self, group: ProcessGroup, left: tuple[str, ...]) -> None:
        """Send the end that the process did not live to send."""
        token = self._attempt.token
        if self._refusal is not None:
            message = f"the run's process sent a message that isn't valid: {shown(str(self._refusal), 200)}"
            self._relay.fail(ev.ErrorInfo("InvalidMessage", message))
            return
        if not token.cancelled or not (group.was_killed or self._cut_off):
            words = "".join(p.last_words() for p in self._printed.values() if p.level == "stderr")
            self._relay.fail(ev.ErrorInfo(ev.PROCESS_DIED, f"the run's process {group.fate}", words))
            return
        if self._has_begun:
            note = f"killed process group {group.pid}"
            self._relay.say(ev.CancelEscalated(Rung.PROCESS, note))
        self._relay.cancel(token.cause or CancelCause.USER, token.reason, left, self._cut_off)


def _is_detaching(data: ev.EventData) -> bool:
    return isinstance(data, ev.CancelEscalated) and data.rung is Rung.DETACHED
