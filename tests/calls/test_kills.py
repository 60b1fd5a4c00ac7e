"""A run that is killed anywhere is resumed without paying for an answer again that its agent has had."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from nbrun.core import SystemClock
from nbrun.store import SessionStore
from tests.fakes.agents import BOUND_S
from tests.fakes.provider import ASKED, Provider
from tests.fakes.resumable import KINDS, MODEL

LOOKS = 3
"""How often an agent is told to look something up before it gets its answer."""


def reply(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the message that answers a request: a tool to call, or in the end the answer."""
    turn = sum(message["role"] == "assistant" for message in asked["messages"])
    names = [tool["function"]["name"] for tool in asked.get("tools", ())]
    if turn < LOOKS:
        name, args = "look_up", json.dumps({"number": turn})
    elif "final_answer" in names:
        name, args = "final_answer", json.dumps({"answer": "It is done."})
    else:
        return {"role": "assistant", "content": "It is done."}
    call: dict[str, Any] = {"id": f"look-{turn}", "type": "function", "function": {"name": name, "arguments": args}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def shared(**fields: Any) -> dict[str, Any]:
    """Return what all answers have in common."""
    return {"id": "c-1", "created": 1700000000, "model": MODEL, **fields}


class Paid(Provider):
    """A provider that answers as `reply` says, notes what it was paid for, and kills at a moment that is set."""

    def __init__(self) -> None:
        super().__init__()
        self.paid: list[str] = []
        self.victim = 0
        self._is_aimed = threading.Event()
        self.moments_left = 0
        self.wait_s = 0.0

    def kill_at(self, moments: int, wait_s: float) -> None:
        """Kill a process, which `aim()` names, so long after so many moments: a request has come, a piece was sent."""
        self.moments_left, self.wait_s = moments, wait_s
        self._is_aimed.clear()

    def aim(self, victim: int) -> None:
        """Say which process."""
        self.victim = victim
        self._is_aimed.set()

    def _moment(self) -> None:
        self.moments_left -= 1
        if self.moments_left == 0:
            assert self._is_aimed.wait(BOUND_S)
            timer = threading.Timer(self.wait_s, self._kill)
            timer.start() if self.wait_s else self._kill()

    def _kill(self) -> None:
        if victim := self.victim:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(victim, signal.SIGKILL)

    def answer(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        """Answer, streamed or at once."""
        self._moment()
        message = reply(asked)
        usage = {"prompt_tokens": ASKED, "completion_tokens": 4, "total_tokens": ASKED + 4}
        reason = "tool_calls" if "tool_calls" in message else "stop"
        handler.send_response(200)
        if not asked.get("stream"):
            choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reason}
            body = json.dumps(shared(object="chat.completion", choices=[choice], usage=usage)).encode()
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        else:
            handler.send_header("Content-Type", "text/event-stream")
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
            if "tool_calls" in message:
                deltas.append({"tool_calls": [{"index": 0, **message["tool_calls"][0]}]})
            else:
                deltas += [{"content": word} for word in ("It ", "is ", "done.")]
            chunks: list[list[dict[str, Any]]] = [
                [{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas
            ]
            chunks += [[{"index": 0, "delta": {}, "finish_reason": reason}], []]
            for choices in chunks:
                last: dict[str, Any] = {} if choices else {"usage": usage}
                self._piece(handler, json.dumps(shared(object="chat.completion.chunk", choices=choices, **last)))
            self._piece(handler, "[DONE]")
            handler.wfile.write(b"0\r\n\r\n")
        self.paid.append(json.dumps(asked, sort_keys=True))
        self._moment()

    def _piece(self, handler: BaseHTTPRequestHandler, data: str) -> None:
        line = f"data: {data}\n\n".encode()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        handler.wfile.flush()
        self._moment()


class Makers:
    """The process that makes those of one kind."""

    def __init__(self, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.resumable", kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        self._next("ready")

    def _next(self, *kinds: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = json.loads(self._process.stdout.readline())
        assert line["is"] in kinds, line
        return dict(line)

    def begin(self, do: str, url: str, store: Path) -> int:
        """Have a process start or resume a run; return its pid."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "url": url, "store": str(store)}) + "\n")
        self._process.stdin.flush()
        return int(self._next("forked")["pid"])

    def end(self) -> str | None:
        """Return what its run has returned, when it is gone; None if it was killed before."""
        line = self._next("done", "gone")
        if line["is"] == "gone":
            return None
        self._next("gone")
        return str(line["output"])

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def made(kind: str) -> Iterator[Makers]:
    """Give what makes processes of a kind."""
    makers = Makers(kind)
    try:
        yield makers
    finally:
        makers.close()


def kept(store: Path) -> int | None:
    """Return how many answers the newest run has kept; None if its begin was not stored yet."""
    reading = SessionStore([store], SystemClock())
    try:
        newest = reading.runs(limit=1)
        return len(reading.journal(newest[0].number)) if newest else None
    finally:
        reading.close(1.0)


def kill_and_resume(kind: str, folder: Path, seeds: range) -> None:
    """Kill a run at a random moment for each seed, and resume it; compare with one that nobody kills."""
    provider = Paid()
    with provider, made(kind) as makers:
        url = f"{provider.url}/v1"
        (folder / "whole").mkdir()
        makers.begin("start", url, folder / "whole" / "runs.db")
        provider.moments_left = 0
        unbroken = makers.end()
        calls, moments = len(provider.paid), -provider.moments_left
        assert unbroken is not None
        assert calls == LOOKS + 1
        killed = asked_again = 0
        for seed in seeds:
            chance = random.Random(f"{kind} {seed}")  # noqa: S311 - to be the same each time
            place = folder / str(seed)
            place.mkdir()
            provider.paid.clear()
            provider.kill_at(chance.randint(1, moments), chance.choice((0.0, 0.0, chance.uniform(0.0, 0.05))))
            provider.aim(makers.begin("start", url, place / "runs.db"))
            output = makers.end()
            provider.aim(0)
            if output is None:
                killed += 1
                had = kept(place / "runs.db")
                on_its_way = len(provider.paid) - (had or 0)
                assert on_its_way in (0, 1), "the agent goes on only with an answer that is kept"
                asked_again += on_its_way
                makers.begin("start" if had is None else "resume", url, place / "runs.db")
                output = makers.end()
                twice = [asked for asked, count in Counter(provider.paid).items() if count > 1]
                assert len(twice) <= on_its_way, f"seed {seed}: paid twice"
                assert len(provider.paid) <= calls + on_its_way, f"seed {seed}: an answer was paid for and not used"
            assert output == unbroken, f"seed {seed}"
        print(f"{kind}: {killed} of {len(seeds)} killed, {asked_again} answers on their way")
        assert killed > len(seeds) / 2


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_no_call_is_paid_twice(kind: str, tmp_path: Path) -> None:
    """At a few moments, with agents of each kind."""
    kill_and_resume(kind, tmp_path, range(3))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_no_call_is_paid_twice_at_twenty_moments(kind: str, tmp_path: Path) -> None:
    """The same at twenty."""
    kill_and_resume(kind, tmp_path, range(20))
