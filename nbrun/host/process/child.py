"""The host in a process of its own, for one attempt: the other end of `process.executor`.

The agent has the main thread, the only one that can handle signals: an async agent by the host's loop, which runs
there, a sync one itself, and the loop has another thread. `nbrun-sender` sends, `nbrun-commands` receives cancels and
notices the kernel's death. Neither of these two needs the loop, so an agent that blocks it is reported and stopped
like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import os
import queue
import selectors
import signal
import socket
import sys
import threading
from collections import deque
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun.agents import find_adapter
from nbrun.agents.context.threads import drive_by
from nbrun.agents.functions import ADAPTER, is_async
from nbrun.calls import GOVERNOR, Limits
from nbrun.core import (
    ArtifactFiles,
    ArtifactWriter,
    CancelCause,
    Cancelled,
    CancelToken,
    JournalFiles,
    Journals,
    RunOptions,
    SecretRegistry,
    SystemClock,
    current_guard,
    events as ev,
    size_words,
)
from nbrun.host import capture, failures, loops
from nbrun.host.attempt import Attempt, HostEvent, IsFull
from nbrun.host.host import RunHost
from nbrun.host.process import pickling
from nbrun.host.process.protocol import (
    FULL,
    MAX_BYTES,
    Batch,
    Begin,
    Cancel,
    Control,
    Frames,
    Message,
    PackedEvent,
    Ready,
    Secrets,
    Stored,
    Sync,
    frame,
    pack_event,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BATCH = 256
"""Events that go in one message at most."""
PAUSE_BYTES = 4_000_000
"""How many bytes may wait to be sent before the agent is paused, about."""
LOOK_S = 1.0
"""How often to check whether the kernel is still the parent, in case its death was not noticed otherwise."""
CLEANUP_S = 0.2
"""What tasks that the agent has left behind get for their cleanup."""


def main(channel_fd: int, lifeline_fd: int, parent_pid: int) -> None:
    """Drive the one attempt that comes over the channel, and return."""
    os.set_inheritable(channel_fd, False)  # what the agent starts must not keep them open
    os.set_inheritable(lifeline_fd, False)
    _tie_to_kernel(lifeline_fd)
    faulthandler.enable()
    # Never closed: the kernel's messages must be read until this process exits.
    ProcessHost(socket.socket(fileno=channel_fd), lifeline_fd, parent_pid).run()


def _tie_to_kernel(lifeline_fd: int) -> None:
    """Have the system kill this process and all of its group when the kernel is gone.

    Only the kernel can write to the lifeline, a pipe, and never does. When the kernel's end goes, Linux signals all of
    the group, also while a call into C holds the interpreter; PR_SET_PDEATHSIG would spare what the agent started.
    """
    if sys.platform != "linux":
        return  # the commands' thread watches the lifeline too
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC)


def _die() -> None:
    """End this process and everything that its agent has started."""
    with contextlib.suppress(OSError):  # it leads no group: there is only itself
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _artifact_writer(begin: Begin, keyring: SecretRegistry) -> ArtifactWriter | None:
    """Return what writes the agent's files where its kernel would: a folder may have more than one writer."""
    if not begin.files:
        return None
    files = ArtifactFiles(Path(begin.files))
    return ArtifactWriter(lambda: files, keyring)


def _journals(begin: Begin, keyring: SecretRegistry) -> Journals:
    """Return where the run's journal is kept, if it is: in the file that its kernel reads."""
    files = JournalFiles(Path(begin.files) if begin.files else None)
    journals = Journals(begin.session_id, lambda: files, lambda _run_id: begin.journal_key, keyring)
    journals.is_on = bool(begin.journal_key and begin.files)
    return journals


def _too_large(event: HostEvent, size: int) -> HostEvent:
    """Return what is sent in place of an event that no message can hold."""
    what = f"{event.data.TYPE} has {size_words(size)}, which is too much to be sent to the kernel; write it to a file"
    data = ev.RunFailed(ev.ErrorInfo("TooLarge", what)) if event.data.TYPE in ev.END_TYPES else ev.Log(what, "warning")
    return HostEvent(event.run_id, event.attempt, event.n, event.ts, data, event.parent)


class ProcessHost:
    """Drives one attempt and sends its events.

    Threads: `run()` on the main thread; `_send_all()` on the sender's; `_receive()` on the commands' thread, the only
    one that receives. `_outgoing` is written by all, and emptied under `_lock`: by the sender, and by one that prints.
    `_jobs` is for the main thread, filled by any, and closed by the sender.
    """

    def __init__(self, channel: socket.socket, lifeline_fd: int, parent_pid: int) -> None:
        self._channel = channel
        self._lifeline_fd = lifeline_fd
        self._parent_pid = parent_pid
        self._token = CancelToken()
        self._clock = SystemClock()
        self._begun: queue.SimpleQueue[Begin] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._outgoing: deque[tuple[HostEvent | Cancel | Sync, int]] = deque()  # each with about its bytes
        self._syncs: dict[int, Callable[[], object]] = {}  # what waits for the kernel to have stored it
        self._sync_numbers = itertools.count(1)
        self._put_bytes = self._sent_bytes = 0  # of events so far; the first by the driver, the second under `_lock`
        self._wake = threading.Event()
        self._lock = threading.RLock()
        self._is_sending = self._has_sent_end = False
        self._pid = os.getpid()
        self._thread: loops.LoopThread | None = None
        self._host: RunHost | None = None
        self._keyring: SecretRegistry | None = None
        self._known_there: Mapping[str, str] = {}  # the secrets that the kernel knows

    def run(self) -> None:
        """Receive the attempt, drive it, and return when its end was sent."""
        threading.Thread(target=self._receive, name="nbrun-commands", daemon=True).start()
        self._send(Ready())
        begin = self._begun.get()
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            agent = pickling.unpack(begin.pickled)
            is_sync = bool(begin.options.get("thread")) or (find_adapter(agent) is ADAPTER and not is_async(agent))
        except Exception as error:  # the agent's modules are its author's code; no adapter is found here, say
            self._fail(begin, error)
        else:
            self._start(begin, agent, is_sync)
        threading.Thread(target=self._send_all, name="nbrun-sender", daemon=True).start()
        while (job := self._jobs.get()) is not None:
            job()

    def _interrupt(self, *_: object) -> None:
        """Handle SIGINT: a `KeyboardInterrupt` in the agent's code, as in any program; where it waits, a cancel."""
        guard = current_guard.get()
        if guard is not None and guard.is_open:
            raise KeyboardInterrupt
        self._token.cancel("SIGINT", CancelCause.INTERRUPT, patience_s=0.0)

    def _start(self, begin: Begin, agent: object, is_sync: bool) -> None:
        capture.install()
        GOVERNOR.set_limits(Limits(*begin.rates))
        self._keyring = keyring = SecretRegistry(os.environ, begin.secrets, begin.secret_variables)
        self._known_there = begin.secrets
        self._token.add_first(lambda request: self._put(Cancel(request.reason, request.cause)))
        attempt = Attempt(
            begin.run_id, begin.number, agent, begin.prompt, self._token, copy_context(),
            RunOptions(**begin.options), begin.answerable, begin.grace_s,
            artifact_writer=_artifact_writer(begin, keyring), restored=begin.restored,
            reentrant_loop=begin.reentrant_loop, watch_calls=begin.watch_calls, journals=_journals(begin, keyring),
            when_stored=self._call_when_stored,
        )  # fmt: skip
        make_loop = loops.new_loop if begin.reentrant_loop else asyncio.new_event_loop
        self._thread = thread = loops.LoopThread("nbrun-host", make_loop, is_here=not is_sync)
        self._host = host = RunHost(thread, self._take, self._clock, begin.host, is_shared=False)

        def enter() -> None:
            try:
                host.begin(attempt)
            except Exception as error:  # the kernel waits for an end
                self._fail(begin, error)

        if is_sync:
            drive_by(self._jobs.put)
        else:
            self._jobs.put(thread.run)
        thread.call(enter)

    def _fail(self, begin: Begin, error: Exception) -> None:
        data = ev.RunFailed(failures.describe(error))
        self._put(HostEvent(begin.run_id, begin.number, 0, self._clock.now(), data))

    # --- sending ---------------------------------------------------------------------------------

    def _send_all(self) -> None:
        while not self._has_sent_end:
            self._wake.wait()
            self._wake.clear()
            self._send_waiting()
        if self._thread is not None:
            self._thread.close(CLEANUP_S)
        self._jobs.put(None)

    def _take(self, events: Sequence[HostEvent]) -> IsFull | None:
        """Take events of the driver, from any thread; the agent should pause while what is returned is true."""
        for event in events:
            if self._keyring is not None and event.data.TYPE not in ev.DELTA_TYPES:  # a key that is set for a moment
                self._keyring.look()
            weight = ev.weight(event.data)
            self._put(event, weight)
            self._put_bytes += weight
        # What was printed is sent before the agent continues: its next line may be the process's last.
        if os.getpid() == self._pid and any(isinstance(event.data, ev.Log) for event in events):
            self._send_waiting()
        return self._is_full if self._is_full() else None

    def _is_full(self) -> bool:
        return self._put_bytes - self._sent_bytes > PAUSE_BYTES

    def _call_when_stored(self, function: Callable[[], object], *, is_urgent: bool = False) -> None:
        """Call `function` when the kernel has stored what was sent until now."""
        number = next(self._sync_numbers)
        self._syncs[number] = function
        self._put(Sync(number, is_urgent))

    def _put(self, item: HostEvent | Cancel | Sync, weight: int = 0) -> None:
        self._outgoing.append((item, weight))
        if not self._wake.is_set():
            self._wake.set()

    def _send_waiting(self) -> None:
        """Send what waits, up to the end."""
        with self._lock:
            if self._is_sending:  # by this same thread: an object that was collected has printed
                return
            self._is_sending = True
            try:
                while self._outgoing and not self._has_sent_end:
                    self._send_batch()
            finally:
                self._is_sending = False

    def _send_batch(self) -> None:
        batch: list[PackedEvent] = []
        behind: Cancel | Sync | None = None
        size, sent, is_end = 0, 0, False
        while self._outgoing and len(batch) < BATCH and size < FULL:
            item, weight = self._outgoing.popleft()
            sent += weight
            if not isinstance(item, HostEvent):
                behind = item
                break
            is_end = item.data.TYPE in ev.END_TYPES
            packed = pack_event(item)
            if len(packed.data) > MAX_BYTES - FULL:
                packed = pack_event(_too_large(item, len(packed.data)))
            size += len(packed.data)
            batch.append(packed)
            if is_end:
                break
        if batch:
            self._send_secrets()
            self._send(Batch(batch))
            self._has_sent_end = is_end
        self._sent_bytes += sent
        if behind is not None:
            self._send(behind)

    def _send_secrets(self) -> None:
        """Send the secrets that are new in the environment: what is sent from now on may hold them."""
        if self._keyring is not None:
            self._keyring.look()
            if (known := self._keyring.known) is not self._known_there:
                self._known_there = known
                self._send(Secrets(dict(known)))

    def _send(self, message: Message) -> None:
        try:
            self._channel.sendall(frame(message))
        except OSError:  # the kernel is gone
            _die()

    # --- receiving -------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Receive the kernel's messages until it is gone, and then end with it."""
        frames = Frames()
        selector = selectors.DefaultSelector()
        selector.register(self._channel, selectors.EVENT_READ)
        selector.register(self._lifeline_fd, selectors.EVENT_READ)
        while True:
            readable = [key.fileobj for key, _ in selector.select(LOOK_S)]
            if self._lifeline_fd in readable or os.getppid() != self._parent_pid:
                _die()
            if self._channel not in readable:
                continue
            try:
                data = self._channel.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                _die()
            for message in frames.feed(data):
                self._hear(message)

    def _hear(self, message: Message) -> None:
        match message:
            case Begin():
                self._begun.put(message)
            case Cancel(reason=reason, cause=cause):
                # The agent's callbacks may raise; the next message must still be received.
                with contextlib.suppress(Exception, Cancelled):
                    self._token.cancel(reason, cause, patience_s=0.0)
            case Control(op=op, body=body):
                thread, host = self._thread, self._host
                if thread is not None and host is not None:
                    thread.call(lambda: host.control(op, dict(body)))
            case Stored(number=upto):
                for number in sorted(self._syncs):
                    if number <= upto:
                        self._syncs.pop(number)()
            case _:
                pass
