"""Calls that may share a connection: those of HTTP/2."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import httpx2
import pytest

from nbrun import events as ev
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S

ANSWER = b'{"usage": {"prompt_tokens": 7, "completion_tokens": 4}}'


class Server:
    """Holds its answers back until `answer()`. Threads: one for each connection, which has the lock while it works."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        """Released with each request."""
        self.connections = 0
        self._lock = threading.Lock()
        self._held: list[tuple[h2.connection.H2Connection, socket.socket, int]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1/chat/completions"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def answer(self) -> None:
        """Answer what has arrived."""
        with self._lock:
            for state, raw, stream in self._held:
                if stream in state.streams and not state.streams[stream].closed:
                    state.send_headers(stream, [(":status", "200"), ("content-type", "application/json")])
                    state.send_data(stream, ANSWER, end_stream=True)
                    with contextlib.suppress(OSError):  # its client has gone
                        raw.sendall(state.data_to_send())
            self._held.clear()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        with raw:
            try:
                raw.sendall(state.data_to_send())
                while data := raw.recv(65536):
                    self._take(raw, state, data)
            except ConnectionError:
                pass
            with self._lock:
                self._held = [held for held in self._held if held[1] is not raw]

    def _take(self, raw: socket.socket, state: h2.connection.H2Connection, data: bytes) -> None:
        with self._lock:
            for event in state.receive_data(data):
                if isinstance(event, h2.events.StreamEnded):
                    self._held.append((state, raw, event.stream_id or 0))
                    self.arrived.release()
            raw.sendall(state.data_to_send())


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a server that has been started."""
    server = Server()
    yield server
    server.close()


def ask(client: Any, url: str) -> None:
    """Make a call."""
    client.post(url, json={"model": "gpt-4o", "messages": []}).raise_for_status()


@pytest.mark.parametrize("package", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_a_cancel_ends_a_call_that_has_a_connection_alone(
    make_session: MakeSession, server: Server, package: ModuleType
) -> None:
    """Each time, at once, and the next call has its answer."""
    session = make_session(cancel_grace_s=2 * BOUND_S)  # so it isn't the grace period that ends it
    with package.Client(http1=False, http2=True, verify=False, timeout=BOUND_S) as client:
        for _ in range(20):
            run = session.start(lambda: ask(client, server.url))
            assert server.arrived.acquire(timeout=BOUND_S)
            run.cancel()
            assert run.wait(BOUND_S)
            assert (run.status, run.record.detached) == ("cancelled", ())
            last = session.start(lambda: ask(client, server.url))
            assert server.arrived.acquire(timeout=BOUND_S)
            server.answer()
            assert last.wait(BOUND_S)
            last.result()


@pytest.mark.parametrize("package", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_a_cancel_leaves_a_connection_that_others_share_alone(
    make_session: MakeSession, server: Server, package: ModuleType
) -> None:
    """The call ends with what comes next; the other one has its answer."""
    session = make_session(cancel_grace_s=2 * BOUND_S)
    with package.Client(http1=False, http2=True, verify=False, timeout=BOUND_S) as client:
        first = session.start(lambda: ask(client, server.url))
        assert server.arrived.acquire(timeout=BOUND_S)
        other = session.start(lambda: ask(client, server.url))
        assert server.arrived.acquire(timeout=BOUND_S)
        first.cancel()
        server.answer()
        assert first.wait(BOUND_S)
        assert other.wait(BOUND_S)
        other.result()
    assert (first.status, server.connections) == ("cancelled", 1)
    assert [event.data.usage for event in other.events() if isinstance(event.data, ev.CallFinished)] == [
        ev.Usage(7, 4, requests=1)
    ]
