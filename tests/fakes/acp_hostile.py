"""Programs that speak the Agent Client Protocol as one would not wish: `python -S acp_hostile.py KIND [FILE]`.

Of the standard library alone, so that they start at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SESSION = "s-1"
ODD: tuple[object, ...] = (None, 5, [], {}, {"sessionUpdate": {}}, {"sessionUpdate": "unheard of"})
AMOUNTS: tuple[object, ...] = ("5", None, [], -3.0, 1e400, float("nan"))


def send(message: object) -> None:
    """Write a message."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def receive() -> dict[str, Any]:
    """Return the next message; end with the input."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    message: dict[str, Any] = json.loads(line)
    return message


def answer(message: dict[str, Any], result: object) -> None:
    """Answer a request."""
    send({"jsonrpc": "2.0", "id": message["id"], "result": result})


def update(body: object) -> dict[str, object]:
    """Return an update of the session."""
    params = {"sessionId": SESSION, "update": body}
    return {"jsonrpc": "2.0", "method": "session/update", "params": params}


def says(text: str) -> dict[str, object]:
    """Return an update with words."""
    content = {"type": "text", "text": text}
    return update({"sessionUpdate": "agent_message_chunk", "content": content})


def asks(number: int) -> dict[str, object]:
    """Return a request for permission."""
    options = [
        {"optionId": "yes", "name": "Yes", "kind": "allow_once"},
        {"optionId": "no", "name": "No", "kind": "reject_once"},
    ]
    call = {"toolCallId": "t-1", "title": "rm -rf /"}
    params = {"sessionId": SESSION, "toolCall": call, "options": options}
    return {"jsonrpc": "2.0", "id": number, "method": "session/request_permission", "params": params}


def begin() -> dict[str, Any]:
    """Behave until the prompt, and return that."""
    first = receive()
    answer(first, {"protocolVersion": 1, "agentCapabilities": {}})
    answer(receive(), {"sessionId": SESSION})
    return receive()


def end(prompt: dict[str, Any], reason: str = "end_turn") -> None:
    """End the answer."""
    answer(prompt, {"stopReason": reason})
    receive()


def linger() -> None:
    """Start a program that outlives this one, and mind nothing."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    send(says(f"{child.pid} "))


def main(kind: str, file: str) -> None:
    """Do it."""
    match kind:
        case "says nothing":
            time.sleep(600)
        case "is no agent":
            print("usage: agent [options]", file=sys.stderr)
            sys.exit(2)
        case "wants a login":
            first = receive()
            answer(first, {"protocolVersion": 1, "agentCapabilities": {}})
            error = {"code": -32000, "message": "Authentication required", "data": "run: agent login"}
            send({"jsonrpc": "2.0", "id": receive()["id"], "error": error})
            receive()
        case "never answers":
            begin()
            linger()
            time.sleep(600)
        case "ignores a cancel":
            begin()
            linger()
            while True:
                send(says("more "))
                time.sleep(0.01)
        case "floods and ignores a cancel":
            begin()
            linger()
            line = json.dumps(says("x")) + "\n"
            while True:
                sys.stdout.write(line * 1_000)
        case "dies":
            begin()
            linger()
            send(says("half a "))
            sys.stdout.write('{"jsonrpc": "2.0", "meth')
            sys.stdout.flush()
            print("the cup is broken", file=sys.stderr)
            sys.exit(3)
        case "floods":
            prompt = begin()
            line = json.dumps(says("x")) + "\n"
            for _ in range(100):
                sys.stdout.write(line * 1_000)
            end(prompt)
        case "floods its errors":
            prompt = begin()
            sys.stderr.write("e" * 99 + "\n" + ("f" * 99 + "\n") * 200_000)
            send(says("done"))
            end(prompt)
        case "asks after a cancel":
            prompt = begin()
            send(says("half "))
            while receive().get("method") != "session/cancel":
                pass
            send(asks(77))
            Path(file).write_text(json.dumps(receive()["result"]), encoding="utf-8")
            end(prompt, "cancelled")
        case "writes garbage":
            prompt = begin()
            for garbage in ("no json", "[" * 200_000, "5", '"text"', "[]", "{}", "\x00\xff", ""):
                sys.stdout.write(garbage + "\n")
            for odd in ODD:
                send(update(odd))
            send({"jsonrpc": "2.0", "method": "session/update", "params": 5})
            send({"jsonrpc": "2.0", "method": 5, "id": 9})
            send({"jsonrpc": "2.0", "id": 999, "result": {}})
            send({"jsonrpc": "2.0", "id": ["a"], "result": {}})
            for _ in range(1_000):
                send({"jsonrpc": "2.0", "method": "unheard/of"})
            send({"jsonrpc": "2.0", "id": 8, "method": "fs/read_text_file", "params": {"path": "/etc/passwd"}})
            chunk: Any = {"sessionUpdate": "agent_message_chunk"}
            for content in (None, 5, {"type": "text"}, {"type": "text", "text": 5}, ["x"]):
                send(update({**chunk, "content": content}))
            tool: Any = {"sessionUpdate": "tool_call_update"}
            send(update({**tool, "toolCallId": ["a"], "title": 5, "status": {}, "content": 5}))
            send(update({**tool, "toolCallId": ["a"], "status": "completed", "content": [5, {}]}))
            send(update({**tool, "toolCallId": ["a"], "status": "failed"}))
            deep: Any = "x"
            for _ in range(300):
                deep = {"a": [deep]}
            send(update({**tool, "toolCallId": "deep", "rawInput": deep, "rawOutput": deep, "status": "completed"}))
            send(update({"sessionUpdate": "plan", "entries": [5, {"status": []}, None]}))
            cost: Any = {"sessionUpdate": "usage_update"}
            for amount in AMOUNTS:
                send(update({**cost, "cost": {"amount": amount, "currency": "USD"}}))
            send(says("done"))
            end(prompt)
        case "writes a long line":
            prompt = begin()
            sys.stdout.write(json.dumps(says("x" * 50_000_000)) + "\n")
            send(says("done"))
            end(prompt)
        case "leaves a program behind":
            prompt = begin()
            linger()
            end(prompt)
        case "answers nonsense":
            answer(receive(), {"protocolVersion": "a lot", "agentCapabilities": [5]})
            receive()
        case "answers no error":
            send({"jsonrpc": "2.0", "id": receive()["id"], "error": ["no", 5]})
            receive()
        case "asks and asks":
            begin()
            send(says("half "))
            for number in range(5_000):
                send(asks(number))
            while receive().get("method") != "session/cancel":
                pass
            time.sleep(600)
        case "does as the file says":
            prompt = begin()
            answers = []
            for message in json.loads(Path(file).read_text(encoding="utf-8")):
                send(message)
                if "id" in message:
                    answers.append(receive()["result"]["outcome"].get("optionId"))
                    Path(file + ".answers").write_text(json.dumps(answers), encoding="utf-8")
            end(prompt)
        case "asks too much at once":
            prompt = begin()
            many: Any = asks(1)
            many["params"]["options"] = [{}] * 300_000
            send(many)
            error = receive()["error"]
            send(says(error["message"]))
            end(prompt)
        case "asks by odd requests":
            begin()
            for number in range(500):
                for _ in range(5):
                    send({"jsonrpc": "2.0", "id": 1, "method": 5, "error": "x"})
                send(asks(number))
            while receive().get("method") != "session/cancel":
                pass
            time.sleep(600)
        case "tells its key":
            prompt = begin()
            send(says(f"my key is {os.environ['POET_API_KEY']}"))
            end(prompt)
        case "begins late":
            answer(receive(), {"protocolVersion": 1, "agentCapabilities": {}})
            late = receive()
            print("asked for a session", file=sys.stderr, flush=True)
            time.sleep(0.3)
            answer(late, {"sessionId": SESSION})
            Path(file).write_text(str(receive()["method"]), encoding="utf-8")
            time.sleep(600)
        case "costs":
            answer(receive(), {"protocolVersion": 1, "agentCapabilities": {"loadSession": True}})
            opened = receive()
            is_loaded = opened["method"] == "session/load"
            answer(opened, {} if is_loaded else {"sessionId": SESSION})
            prompt = receive()
            cost = {"amount": 5.1 if is_loaded else 5.0, "currency": "USD"}
            send(update({"sessionUpdate": "usage_update", "used": 1, "size": 9, "cost": cost}))
            send(says("some words"))
            if not is_loaded:
                receive()
            usage = {"inputTokens": 10**30, "outputTokens": 5 + 2 * is_loaded, "totalTokens": 9}
            reason = "end_turn" if is_loaded else "cancelled"
            answer(prompt, {"stopReason": reason, "usage": usage})
            receive()
        case "refuses":
            end(begin(), "refusal")
        case _:
            raise ValueError(kind)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
