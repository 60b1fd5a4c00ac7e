"""Cancel by the kernel's control channel: it gets through whatever the main thread does."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.kernel.cells import SOON_S, run_ok, stored, value, wait_for_status, wait_for_text
from tests.kernel.driver import Kernel, Message

BUSY = {
    # In steps: CPython notes a signal that comes just before the system call, and sleeps to the end all the same.
    "sleep": "print('in', flush=True)\nfor _ in range(30): time.sleep(1)",
    "loop": "print('in', flush=True)\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass",
    # In steps, since an interrupt of an `await` acts only when the loop next wakes.
    "await": "print('in', flush=True)\nfor _ in range(300): await asyncio.sleep(0.1)",
}


def cancel_request(kernel: Kernel, name: str, **changes: object) -> dict[str, Any]:
    """Return what a card's button sends for this run."""
    record = stored(kernel.folder, name)
    assert record is not None
    request: dict[str, Any] = {
        "op": "cancel",
        "nonce": f"click-{name}",
        "run_id": record.run_id,
        "session_id": value(kernel, "nbrun.session().id").strip("'"),
    }
    return request | changes


def ask(kernel: Kernel, request: object) -> Message:
    """Send a request on the control channel and return the reply."""
    return kernel.control("nbrun_request", request)  # type: ignore[arg-type]  # also what is no dict


@pytest.mark.parametrize("kernel", ["python3", "6.30"], indirect=True)
def test_cancel_gets_through_while_the_main_thread_is_busy(loaded_kernel: Kernel) -> None:
    """In `time.sleep`, a pure loop and an `await`: the run is cancelled, in the store, before the cell ends."""
    kernel = loaded_kernel
    for situation, code in BUSY.items():
        run_ok(kernel, f"%%agentrun endless -n {situation}\nhi")
        wait_for_text(kernel, situation)
        request = cancel_request(kernel, situation)
        blocked = kernel.start(code)
        kernel.wait_until(lambda blocked=blocked: "in" in blocked.stdout)  # type: ignore[misc]

        began = time.monotonic()
        reply = ask(kernel, request)
        heard_s = time.monotonic() - began
        assert reply == {"op": "reply", "nonce": request["nonce"], "outcome": "requested"}
        record = wait_for_status(kernel, situation, "cancelled", SOON_S)
        ended_s = time.monotonic() - began
        print(f"{situation}: heard after {heard_s * 1000:.0f} ms, stored after {ended_s * 1000:.0f} ms")
        assert not blocked.is_done
        assert (record.cause, record.rung, record.text) == ("user", "task", "begun ")  # at once: no grace period

        kernel.interrupt()
        blocked.wait()
        assert run_ok(kernel, "6 * 7").result == "42"


def test_the_reply_says_what_the_request_did(renewed_kernel: Kernel) -> None:
    """Requested once, then already requested, at last already finished; a stranger's run is not found."""
    kernel = renewed_kernel
    run_ok(kernel, "%%agentrun tidy -n slow -o slow\nhi")
    run_ok(kernel, "%%agentrun endless -n beside -o beside\nhi")
    wait_for_text(kernel, "slow")
    wait_for_text(kernel, "beside")
    request = cancel_request(kernel, "slow")
    strangers: list[dict[str, Any]] = [
        {"run_id": "run-nobody"},
        {"session_id": "session-nobody"},
        {"run_id": ""},
        # A request names its run by id: what moves, such as `last`, could stop another run than the one shown.
        {"run_id": "last"},
        {"run_id": "-1"},
        {"run_id": "slow"},
        {"run_id": "1"},
    ]
    for changes in strangers:
        assert ask(kernel, request | changes)["outcome"] == "not_found", changes
    assert value(kernel, "(slow.cause, beside.cause)") == "(None, None)"

    assert ask(kernel, request)["outcome"] == "requested"
    wait_for_status(kernel, "slow", "cancelling")
    assert ask(kernel, request)["outcome"] == "already_requested"
    run_ok(kernel, "freed.set()")
    record = wait_for_status(kernel, "slow", "cancelled")
    assert ask(kernel, request)["outcome"] == "already_finished"
    assert stored(kernel.folder, "slow") == record
    assert value(kernel, "(str(beside.status), beside.cause)") == "('running', None)"
    # Ten requests are one in the log.
    asked = "[e.type for e in slow.events()].count('cancel.requested')"
    assert value(kernel, asked) == "1"


def test_unknown_and_malformed_requests_are_answered_and_harmless(renewed_kernel: Kernel) -> None:
    """Whatever comes in is answered, changes nothing, and the next proper request is heard."""
    kernel = renewed_kernel
    run_ok(kernel, "%%agentrun endless -n long -o long\nhi")
    wait_for_text(kernel, "long")
    request = cancel_request(kernel, "long")
    run_id, session_id = request["run_id"], request["session_id"]
    cases: list[tuple[object, str]] = [
        ({}, "unknown_op"),
        ({"op": "explode", "run_id": run_id, "session_id": session_id}, "unknown_op"),
        ({"op": ["cancel"], "run_id": run_id, "session_id": session_id}, "unknown_op"),
        ({"op": None}, "unknown_op"),
        ({"op": "cancel"}, "not_found"),
        ({"op": "cancel", "run_id": run_id}, "not_found"),
        ({"op": "cancel", "run_id": None, "session_id": session_id}, "not_found"),
        ({"op": "cancel", "run_id": [run_id], "session_id": session_id}, "not_found"),
        ({"op": "cancel", "run_id": 1, "session_id": session_id}, "not_found"),
        ({"op": "cancel", "run_id": {}, "session_id": {}, "nonce": [1]}, "not_found"),
        ({"op": "cancel", "run_id": "\x00'; DROP", "session_id": session_id}, "not_found"),
        ({"op": "cancel", "run_id": "x" * 100_000, "session_id": session_id}, "not_found"),
        ({"op": "cancel", "run_id": "9" * 5_000, "session_id": session_id}, "not_found"),
        # As bytes, since the client packs nothing but objects.
        (b"[]", "unknown_op"),
        (b'"cancel"', "unknown_op"),
        (b"null", "unknown_op"),
        (b'{"op": "\\ud800"}', "unknown_op"),
        (b'{"op": "cancel", "run_id": "\\ud800", "session_id": "%s"}' % session_id.encode(), "not_found"),
    ]
    for content, outcome in cases:
        reply = ask(kernel, content)
        assert reply["outcome"] == outcome, content
        assert reply["nonce"] is None
    assert value(kernel, "(str(long.status), long.cause)") == "('running', None)"
    assert "Traceback" not in kernel.log.read_text()
    assert ask(kernel, request)["outcome"] == "requested"
    wait_for_status(kernel, "long", "cancelled")


def test_the_handler_goes_with_the_extension(renewed_kernel: Kernel) -> None:
    """A card of an earlier load finds nothing: its session is not this one's."""
    kernel = renewed_kernel
    run_ok(kernel, "%%agentrun endless -n long\nhi")
    wait_for_text(kernel, "long")
    old = cancel_request(kernel, "long")
    run_ok(kernel, "%reload_ext nbrun")
    run_ok(kernel, "%%agentrun endless -n long -o long\nhi")
    wait_for_text(kernel, "long")
    assert ask(kernel, old)["outcome"] == "not_found"
    assert value(kernel, "(str(long.status), long.cause)") == "('running', None)"


def test_what_a_cancel_leaves_behind(renewed_kernel: Kernel) -> None:
    """Open tools end as cancelled, partial text is the output, and nothing comes after the end."""
    kernel = renewed_kernel
    run_ok(
        kernel,
        "after = []\n"
        "async def working(prompt, run):\n"
        "    run.text('so far')\n"
        "    try:\n"
        "        with run.tool('search', {'q': prompt}):\n"
        "            await asyncio.Event().wait()\n"
        "    finally:\n"
        "        after.append('cleaned')",
    )
    run_ok(kernel, "%%agentrun working -n job -o job\ntea")
    kernel.wait_until(lambda: bool((found := stored(kernel.folder, "job")) and found.tools))
    assert ask(kernel, cancel_request(kernel, "job"))["outcome"] == "requested"
    wait_for_status(kernel, "job", "cancelled")
    assert value(kernel, "(after, job.output, [t.status for t in job.record.tools])") == (
        "(['cleaned'], 'so far', ['cancelled'])"
    )
    assert value(kernel, "[e.seq for e in job.events()] == list(range(len(job.events())))") == "True"
    assert value(kernel, "job.events()[-1].type") == "'run.cancelled'"
