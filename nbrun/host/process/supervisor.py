"""The process of one run, seen from the kernel: started, listened to, and put away with all it has started."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

from nbrun.core import events as ev
from nbrun.core.cancellation import CancelCause, Rung
from nbrun.core.errors import Cancelled
from nbrun.core.line_buffer import Printed
from nbrun.host.escalation import LAST_S
from nbrun.host.failures import describe
from nbrun.host.process.group import ProcessGroup
from nbrun.host.process.protocol import (
    Batch,
    Begin,
    Cancel,
    Control,
    Frames,
    Message,
    Ready,
    frame,
    unpack_event,
)
from nbrun.host.process.relay import Relay, Told

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.core.clock import Clock
    from nbrun.core.values import Plain
    from nbrun.host.attempt import Attempt, Sink

_log = logging.getLogger("nbrun")

SHUTDOWN_S = 0.6
"""What a run gets at the close of its session, which has only a second for all of them."""
LINGER_S = 1.0
"""What a process gets to come to its end after its run's: handlers at exit, files to be written."""
GIVE_UP_S = 1.0
"""How long a killed process may take to die before its run ends without it."""
MAX_READS = 64
"""How often a stream is read in one go, 64 KiB each."""
DYING_S = 0.01
"""How often it is looked for a process that is about to end."""
LOOK_S = 0.25
"""How often it is looked whether the process lives; mostly its socket tells."""

_START = (
    "import sys; sys.path[:] = {path!r}; "
    "from nbrun.host.process.child import main; main({channel}, {lifeline}, {parent})"
)


class RunProcess:
    """One attempt in a process of its own, which leads a group with all that the agent starts.

    Threads: `begin()`, `control()` and `kill()` from any; everything else is of the thread `nbrun-process-…`,
    which starts the process and outlives it.

    Parameters
    ----------
    on_host : hears of the process by name, when it is up and when it has gone.
    """

    def __init__(
        self,
        attempt: Attempt,
        sink: Sink,
        clock: Clock,
        on_host: Callable[[RunProcess, bool], None],
    ) -> None:
        self.name = ""
        self._attempt = attempt
        self._relay = Relay(attempt, sink, clock)
        self._clock = clock
        self._on_host = on_host
        self._words: deque[Control] = deque()
        self._is_unwanted = self._is_hurried = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._thread = threading.Thread(
            target=self._main, name=f"nbrun-process-{attempt.run_id}", daemon=True
        )
        self._selector = selectors.DefaultSelector()
        self._frames = Frames()
        self._outgoing = bytearray()
        self._printed: dict[int, Printed] = {}
        self._unlogged: deque[ev.Log] = deque()
        # What has happened, in about this order.
        self._has_begun = False
        self._has_told_cancel = False
        self._has_passed_deadline = False
        self._is_detaching = False
        self._kill_at: float | None = None  # by the monotonic clock

    def begin(self) -> None:
        """Start the thread, and with it the process."""
        self._thread.start()

    def control(self, op: str, body: dict[str, Plain]) -> None:
        """Send a word to the host, when its agent has been entered."""
        self._words.append(Control(op, body))
        self._wake()

    def hurry(self) -> None:
        """Leave the process no more time than the close of its session has."""
        self._is_hurried = True
        self._wake()

    def kill(self) -> None:
        """Kill the process and its group."""
        self._is_unwanted = True
        self._wake()

    def join(self, timeout_s: float) -> bool:
        """Wait until all is put away; return whether it is."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is awake, or gone
            self._wake_in.send(b"\0")

    def _main(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                for part in (self._wake_in, self._wake_out, self._selector):
                    stack.callback(part.close)
                handle = self._attempt.token.add_first(lambda _request: self._wake())
                stack.callback(handle.remove)
                try:
                    self._run(stack)
                except Exception as error:  # a mistake of ours must not leave a run without its end
                    _log.exception("the process of %s cannot be followed", self._attempt.run_id)
                    self._relay.fail(describe(error))
        finally:
            self._on_host(self, False)

    def _run(self, stack: contextlib.ExitStack) -> None:
        token = self._attempt.token
        if token.cancelled or self._is_unwanted:  # while it waited in line
            self._relay.cancel(token.cause or CancelCause.SHUTDOWN, token.reason, ())
            return
        try:
            group = self._open(stack)
        except (OSError, ValueError) as error:
            self._relay.fail(not_started(error))
            return
        is_dead = False
        try:
            self._follow(group)
        finally:
            is_dead = group.put_away(GIVE_UP_S)
        while self._channel in self._selector.get_map() and self._receive():
            pass
        self._read_all_printed()
        self._log_unlogged()
        if not self._relay.is_ended:
            self._end_dead(group, is_dead)

    # --- the process -----------------------------------------------------------------------------

    def _open(self, stack: contextlib.ExitStack) -> ProcessGroup:
        """Start the process; what it needs of ours is closed here again, what is ours with the stack."""
        channel, theirs = socket.socketpair()
        stack.callback(channel.close)
        lifeline, our_lifeline = os.pipe()
        stack.callback(os.close, our_lifeline)  # the last: the system kills the group when it goes
        try:
            code = _START.format(
                path=[entry for entry in sys.path if isinstance(entry, str)],
                channel=theirs.fileno(), lifeline=lifeline, parent=os.getpid(),
            )  # fmt: skip
            group = ProcessGroup(code, (theirs.fileno(), lifeline))
        finally:
            theirs.close()
            os.close(lifeline)
        stack.callback(group.close)
        self.name = f"process-{group.pid}"
        self._on_host(self, True)
        channel.setblocking(False)
        self._channel = channel
        self._selector.register(channel, selectors.EVENT_READ)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        for fd, level in group.streams():
            self._printed[fd] = Printed(level)
            self._selector.register(fd, selectors.EVENT_READ)
        return group

    def _follow(self, group: ProcessGroup) -> None:
        """Pass on what the process sends and does, until it is dead or does not die."""
        while not group.is_dead():
            self._obey()
            now = self._clock.monotonic()
            if self._kill_at is not None and now >= self._kill_at:
                if now >= self._kill_at + GIVE_UP_S and group.was_killed:
                    return
                group.kill()
            for key, _ in self._selector.select(self._patience_s(now)):
                if key.fileobj in self._selector.get_map():  # else it was read to its end meanwhile
                    self._read(key.fileobj)

    def _patience_s(self, now: float) -> float:
        """Return for how long nothing needs to be looked at if nothing comes."""
        if self._channel not in self._selector.get_map():
            return DYING_S
        times = [LOOK_S]
        if self._kill_at is not None:
            times.append(max(self._kill_at - now, DYING_S))
        if self._relay.deadline is not None and not self._has_passed_deadline:
            times.append(self._relay.deadline - self._clock.now())
        return max(0.0, min(times))

    def _obey(self) -> None:
        """Do what was asked for since the last look, and what the time asks for."""
        token = self._attempt.token
        if self._is_unwanted:
            self._kill_by(0.0)
        if self._is_hurried:
            self._is_hurried = False
            self._kill_by(SHUTDOWN_S)
        deadline = self._relay.deadline
        if deadline is not None and not self._has_passed_deadline:
            self._has_passed_deadline = self._clock.now() >= deadline
            if self._has_passed_deadline and not self._relay.is_ended:
                self._fire(None, CancelCause.DEADLINE)
        if token.cancelled and not self._has_told_cancel:
            self._has_told_cancel = True
            if self._has_begun:
                self._send(Cancel(token.reason, token.cause or CancelCause.USER))
                self._kill_by(self._attempt.grace_s + LAST_S)
            else:  # its agent is never entered
                self._kill_by(0.0)
        while self._relay.is_entered and self._words:
            self._send(self._words.popleft())
        self._write()

    def _kill_by(self, seconds: float) -> None:
        """Have the group killed so many seconds from now, or sooner if that was decided before."""
        at = self._clock.monotonic() + seconds
        self._kill_at = at if self._kill_at is None else min(at, self._kill_at)

    def _fire(self, reason: str | None, cause: CancelCause) -> None:
        """Fire the run's token here; what hangs on it cannot keep its process from being followed."""
        try:
            self._attempt.token.cancel(reason, cause, patience_s=0.0)
        except (Exception, Cancelled):
            _log.exception("a cancel callback of %s failed", self._attempt.run_id)

    # --- the channel -----------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        self._outgoing += frame(message)

    def _write(self) -> None:
        """Write what the socket takes; the rest when it takes more."""
        if self._channel not in self._selector.get_map():
            return
        while self._outgoing:
            try:
                sent = self._channel.send(self._outgoing)
            except BlockingIOError:
                break
            except OSError:  # it is dying; the rest is for nobody
                self._outgoing.clear()
                break
            del self._outgoing[:sent]
        wanted = selectors.EVENT_WRITE if self._outgoing else 0
        self._selector.modify(self._channel, selectors.EVENT_READ | wanted)

    def _read(self, source: object) -> None:
        """Read what one of the sources has."""
        if source is self._wake_out:
            self._wake_out.recv(4096)
        elif source is self._channel:
            self._receive()
        elif isinstance(source, int):
            self._read_printed(source)

    def _receive(self) -> bool:
        """Take what has come over the channel; return whether there may be more."""
        try:
            data = self._channel.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(self._channel)
            self._kill_by(GIVE_UP_S)  # it is dying, or its agent has closed what is not its own
            return False
        for message in self._frames.feed(data):
            self._hear(message)
        return True

    def _read_printed(self, source: int) -> bool:
        """Take what the process has printed past its agent's run; return whether there may be more."""
        try:
            data = os.read(source, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(source)
        printed = self._printed[source]
        self._log_printed(printed, printed.feed(data))
        return bool(data)

    def _read_all_printed(self) -> None:
        """Take all that was printed before this moment, also without a line's end."""
        for source, printed in self._printed.items():
            for _ in range(MAX_READS):  # what still prints is not what was printed before
                if source not in self._selector.get_map() or not self._read_printed(source):
                    break
            self._log_printed(printed, printed.rest())

    def _log_printed(self, printed: Printed, text: str) -> None:
        if text:
            self._unlogged.append(ev.Log(text, printed.level))
        if self._relay.is_entered:
            self._log_unlogged()

    def _log_unlogged(self) -> None:
        """Log what was printed; until then what overtakes the start of the run has waited."""
        while self._unlogged:
            self._relay.say(self._unlogged.popleft())

    def _hear(self, message: Message) -> None:
        match message:
            case Ready():
                attempt = self._attempt
                if not attempt.token.cancelled:
                    self._has_begun = True
                    self._send(
                        Begin(
                            attempt.run_id, attempt.number, attempt.parcel, attempt.prompt, attempt.grace_s,
                            attempt.timeout_s, attempt.thread, attempt.limits, attempt.approve, self.name,
                            attempt.reentrant_loop, attempt.keep_object, _folder_of(attempt),
                            attempt.restored,
                        )
                    )  # fmt: skip
            case Cancel(reason=reason, cause=cause):
                self._fire(reason, cause)
            case Batch(events=events):
                self._pass_on([(e.ts, unpack_event(e), e.parent) for e in events])
            case _:
                pass

    def _pass_on(self, events: list[Told]) -> None:
        """Hand on events of the host; an end comes last in its batch, and is looked at first."""
        # Where the host would leave something behind, it is killed; that is another rung.
        events = [told for told in events if not _tells_detached(told[1])]
        if not events:
            return
        end = events[-1][1]
        if end.TYPE not in ev.END_TYPES:
            self._relay.pass_on(events)
            return
        self._relay.pass_on(events[:-1])
        self._read_all_printed()
        self._log_unlogged()
        if isinstance(end, ev.RunCancelled):
            self._fire(end.reason, end.cause)  # the log says first that it was asked to stop
            if end.detached:  # here nothing is left behind: it is killed, and that is its run's end
                self._is_detaching = True
                self._kill_by(0.0)
                return
        self._relay.pass_on(events[-1:])
        self._kill_at = self._clock.monotonic() + LINGER_S

    # --- the end of a process that has not told one ----------------------------------------------

    def _end_dead(self, group: ProcessGroup, is_dead: bool) -> None:
        """Send the end that the process did not live to send."""
        token = self._attempt.token
        if not token.cancelled or not (group.was_killed or self._is_detaching):
            words = "".join(p.last_words() for p in self._printed.values() if p.level == "stderr")
            self._relay.fail(ev.ErrorInfo("ProcessDied", f"the run's process {group.fate}", words))
            return
        if self._has_begun:
            note = f"killed process group {group.pid}"
            self._relay.say(ev.CancelEscalated(Rung.PROCESS, note))
        detached = () if is_dead else (self.name,)
        self._relay.cancel(token.cause or CancelCause.USER, token.reason, detached)


def _folder_of(attempt: Attempt) -> str:
    folder = None if attempt.keeper is None else attempt.keeper.folder
    return "" if folder is None else str(folder)


def not_started(error: Exception) -> ev.ErrorInfo:
    """Return why there is no process."""
    return ev.ErrorInfo(type(error).__name__, f"the run's process could not be started: {error}")


def _tells_detached(data: ev.EventData) -> bool:
    return isinstance(data, ev.CancelEscalated) and data.rung is Rung.DETACHED
