#!/usr/bin/env python3
"""Claude Code as its Agent SDK sees it: speaks its JSON lines, follows the script in `NBRUN_SCRIPT`, needs no packages.

It keeps its sessions in the folder `NBRUN_SESSIONS`, and can resume them. Tools are functions of the SDK's process.
With `NBRUN_STUBBORN=start` it answers nothing, with `NBRUN_STUBBORN=end` it can only be killed.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

MODEL = "claude-script"
SERVER = "poet"
QUESTIONS = "AskUserQuestion"


class Interrupted(Exception):
    """The turn was interrupted."""


class Cli:
    """One process of it; `argv` are its options."""

    def __init__(self, argv: list[str]) -> None:
        self._stubborn = os.environ.get("NBRUN_STUBBORN", "")
        if self._stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._turns = json.loads(os.environ["NBRUN_SCRIPT"])
        self._max_turns = int(argv[argv.index("--max-turns") + 1]) if "--max-turns" in argv else None
        resumed = [word.removeprefix("--resume=") for word in argv if word.startswith("--resume=")]
        self._session = resumed[0] if resumed else str(uuid.uuid4())
        self._file = Path(os.environ["NBRUN_SESSIONS"]) / f"{self._session}.json"
        self._results: list[str] = json.loads(self._file.read_text(encoding="utf-8")) if resumed else []
        self._numbers = itertools.count(1)
        self._answers: dict[str, dict[str, Any]] = {}
        self._prompts: list[tuple[str, str]] = []  # id, text
        self._heard: list[str] = []
        self._taken: list[str] = []
        self._is_stopped = False
        self._requests = 0

    # --- the protocol ----------------------------------------------------------------------------

    def _send(self, kind: str, **parts: Any) -> None:
        print(json.dumps({"type": kind, "session_id": self._session, "uuid": str(uuid.uuid4()), **parts}), flush=True)

    def _read(self) -> None:
        """Take the next message; leave at the end of the input."""
        line = sys.stdin.readline()
        while self._stubborn == "start" or (self._stubborn and not line):
            signal.pause()
        if not line:
            sys.exit(0)
        message = json.loads(line)
        match message["type"]:
            case "user":
                self._prompts.append((message.get("uuid", ""), message["message"]["content"]))
            case "control_response":
                self._answers[message["response"]["request_id"]] = message["response"]
            case "control_request":
                if message["request"]["subtype"] == "interrupt":
                    self._is_stopped = not self._stubborn
                answer = {"subtype": "success", "request_id": message["request_id"], "response": {}}
                self._send("control_response", response=answer)

    def _ask(self, **request: Any) -> dict[str, Any]:
        known = f"cli-{next(self._numbers)}"
        self._send("control_request", request_id=known, request=request)
        while known not in self._answers:
            if self._is_stopped:
                raise Interrupted
            self._read()
        answer = self._answers.pop(known)
        assert answer["subtype"] == "success", answer
        response: dict[str, Any] = answer["response"]
        return response

    def _mcp(self, method: str, **params: Any) -> dict[str, Any]:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if not method.startswith("notifications/"):
            message["id"] = next(self._numbers)
        response: dict[str, Any] = self._ask(subtype="mcp_message", server_name=SERVER, message=message)["mcp_response"]
        return response

    # --- a turn ----------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer prompts until the input ends."""
        while True:
            while not self._prompts:
                self._read()
            if self._requests == 0:
                client = {"name": "fake", "version": "1"}
                self._mcp("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client)
                self._mcp("notifications/initialized")
                self._send("system", subtype="init", model=MODEL, tools=[], claude_code_version="2.1.300")
            self._is_stopped, self._taken = False, []
            self._take_prompts(is_first=self._requests == 0)
            try:
                self._turn()
            except Interrupted:
                self._end("error_during_execution", is_error=True, terminal_reason="aborted_streaming")

    def _take_prompts(self, is_first: bool = False) -> None:
        self._taken += [known for known, _ in self._prompts]
        self._heard += [text for _, text in self._prompts[is_first:]]
        self._prompts.clear()

    def _turn(self) -> None:
        said = ""
        for number in itertools.count(len(self._results)):
            if self._requests == self._max_turns:
                self._end("error_max_turns", is_error=True, errors=["Reached maximum number of turns"])
                sys.exit(1)
            turn = self._turns[number]
            said = self._say(turn)
            for place, call in enumerate(turn["calls"]):
                self._results.append(self._use(f"call-{number}-{place}", **call))
            self._file.write_text(json.dumps(self._results), encoding="utf-8")
            if not turn["calls"]:
                break
            self._take_prompts()
        self._end("success", is_error=False, result=said)

    def _say(self, turn: dict[str, Any]) -> str:
        self._requests += 1
        usage = {"input_tokens": 7, "cache_read_input_tokens": 3, "output_tokens": 1}
        self._stream("message_start", message={"model": MODEL, "usage": usage})
        words = [
            word.replace("{results}", " | ".join(self._results)).replace("{heard}", " | ".join(self._heard))
            for word in turn["words"]
        ]
        for word in words:
            self._stream("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
        while turn["stalls"]:
            self._read()
            if self._is_stopped:
                raise Interrupted
        if turn["fails"]:
            self._end("success", is_error=True, result=f"API Error: {turn['fails']}")
            sys.exit(1)
        if words:
            self._assistant({"type": "text", "text": "".join(words)})
        self._stream("message_delta", delta={}, usage={"output_tokens": 5})
        self._stream("message_stop")
        return "".join(words)

    def _use(self, known: str, name: str, args: dict[str, Any], asks: bool) -> str:
        full = name if name == QUESTIONS else f"mcp__{SERVER}__{name}"
        self._assistant({"type": "tool_use", "id": known, "name": full, "input": args})
        try:
            if asks:
                asked: dict[str, Any] = {
                    "tool_name": full,
                    "input": args,
                    "permission_suggestions": [],
                    "blocked_path": None,
                }
                answer = self._ask(subtype="can_use_tool", tool_use_id=known, **asked)
                if answer["behavior"] == "deny":
                    return self._result(known, answer["message"], is_error=True)
                args = answer["updatedInput"]
            if name == QUESTIONS:
                return self._result(known, json.dumps(args["answers"]), is_error=False)
            made = self._mcp("tools/call", name=name, arguments=args)["result"]
        except Interrupted:
            self._result(known, "[Request interrupted by user]", is_error=True)
            raise
        return self._result(known, made["content"][0]["text"], is_error=bool(made.get("isError")))

    # --- what it sends ---------------------------------------------------------------------------

    def _stream(self, kind: str, **parts: Any) -> None:
        self._send("stream_event", event={"type": kind, **parts}, parent_tool_use_id=None)

    def _assistant(self, block: dict[str, Any]) -> None:
        self._send("assistant", message={"model": MODEL, "content": [block]}, parent_tool_use_id=None)

    def _result(self, known: str, text: str, *, is_error: bool) -> str:
        content = [{"type": "text", "text": text}]
        block = {"type": "tool_result", "tool_use_id": known, "content": content, "is_error": is_error}
        self._send("user", message={"role": "user", "content": [block]}, parent_tool_use_id=None)
        return text

    def _end(self, subtype: str, **parts: Any) -> None:
        count = self._requests
        used = {"inputTokens": 7, "cacheReadInputTokens": 3, "cacheCreationInputTokens": 0, "outputTokens": 5}
        total = {name: value * count for name, value in used.items()}
        self._send(
            "result", subtype=subtype, duration_ms=1, duration_api_ms=1, num_turns=count,
            total_cost_usd=0.25 * count, usage={}, modelUsage={MODEL: total}, user_message_uuids=self._taken, **parts,
        )  # fmt: skip


if __name__ == "__main__":
    Cli(sys.argv).serve()
