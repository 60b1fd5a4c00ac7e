"""Runs seen and cancelled over the Jupyter server, which needs no notebook page and no free kernel."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest

from nbrun.core.events import RunEvent
from tests.kernel.cells import SOON_S, run_ok, stored, stored_events, value, wait_for_status, wait_for_text
from tests.server.driver import ServedKernel, ServerProcess

NOWHERE = "nbrun/api/kernels/00000000-0000-0000-0000-000000000000"


@contextmanager
def live_run(kernel: ServedKernel, name: str) -> Iterator[str]:
    """A run that goes on until it is cancelled; its id. At the end it is cancelled."""
    run_ok(kernel, f"%%agentrun endless -n {name} -o made\nhi")
    wait_for_text(kernel, name)
    record = stored(kernel.folder, name)
    assert record is not None
    try:
        yield record.run_id
    finally:
        kernel.interrupt()
        run_ok(kernel, "_ = [receipt.wait(9) for receipt in nbrun.session().cancel_all()]")


@contextmanager
def blocked(kernel: ServedKernel) -> Iterator[None]:
    """A cell that blocks the kernel's main thread; it must still do so at the end, and is interrupted."""
    cell = kernel.start("print('in', flush=True)\nfor _ in range(60): time.sleep(1)")
    kernel.wait_until(lambda: "in" in cell.stdout)
    try:
        yield
        assert not cell.is_done
    finally:
        kernel.interrupt()
        cell.wait()


def is_going_on(kernel: ServedKernel, name: str) -> bool:
    """Return whether nobody has asked this run to stop."""
    record = stored(kernel.folder, name)
    return record is not None and record.status == "running" and record.cause is None


def cancel_event(kernel: ServedKernel, name: str) -> RunEvent:
    """Return the one request that stands in a run's log."""
    (event,) = [event for event in stored_events(kernel.folder, name) if event.type == "cancel.requested"]
    return event


def test_the_list_shows_live_runs_while_a_cell_blocks(server: ServerProcess, kernel: ServedKernel) -> None:
    """What is live, newest first, in words and without a prompt; what has ended is not in it."""
    assert server.ask("GET", f"{kernel.api}/runs").body == {"runs": [], "total": 0}
    with live_run(kernel, "first") as first, live_run(kernel, "second") as second:
        session_id = value(kernel, "nbrun.session().id").strip("'")
        with blocked(kernel):
            answer = server.ask("GET", f"{kernel.api}/runs")
        assert (answer.status, answer.body["total"]) == (200, 2)
        assert [run["id"] for run in answer.body["runs"]] == [second, first]
        record = stored(kernel.folder, "first")
        assert record is not None
        assert answer.body["runs"][1] == {
            "id": first,
            "number": record.number,
            "name": "first",
            "agent": "endless",
            "status": "running",
            "words": "Running",
            "created_at": record.created_at,
            "started_at": record.started_at,
            "session_id": session_id,
        }
    assert server.ask("GET", f"{kernel.api}/runs").body == {"runs": [], "total": 0}


def test_a_long_list_is_cut(server: ServerProcess, kernel: ServedKernel) -> None:
    """At most 200 runs, the newest, and how many there are: a cancel does not wait behind thousands."""
    run_ok(kernel, "made = [nbrun.start(endless, 'hi') for _ in range(205)]")
    try:
        began = time.monotonic()
        body = server.ask("GET", f"{kernel.api}/runs").body
        print(f"200 runs listed after {(time.monotonic() - began) * 1000:.0f} ms")
        assert (len(body["runs"]), body["total"]) == (200, 205)
        assert body["runs"][0]["id"] == value(kernel, "made[-1].id").strip("'")
    finally:
        run_ok(kernel, "_ = [receipt.wait(9) for receipt in nbrun.session().cancel_all()]")


def test_cancel_ends_a_run_while_a_cell_blocks(server: ServerProcess, kernel: ServedKernel) -> None:
    """The run is cancelled, and stored so, before the cell has ended; who asked and why stand in its log."""
    with live_run(kernel, "job") as run_id, live_run(kernel, "beside"):
        with blocked(kernel):
            began = time.monotonic()
            answer = server.ask("POST", f"{kernel.api}/runs/{run_id}/cancel", {"reason": "enough"})
            answered_s = time.monotonic() - began
            record = wait_for_status(kernel, "job", "cancelled", SOON_S)
            ended_s = time.monotonic() - began
        print(f"answered after {answered_s * 1000:.0f} ms, stored after {ended_s * 1000:.0f} ms")
        assert (answer.status, answer.body) == (200, {"outcome": "requested"})
        assert (record.cause, record.reason) == ("user", "enough")
        assert (record.cancelled_by, record.rung, record.text) == ("server", "task", "begun ")  # no grace period
        assert is_going_on(kernel, "beside")
        assert cancel_event(kernel, "job").data.by == "server"  # type: ignore[attr-defined]


def test_the_outcome_says_what_a_cancel_did(server: ServerProcess, kernel: ServedKernel) -> None:
    """Requested, already requested, already finished; what is no run of this session is not found."""
    run_ok(kernel, "freed.clear()")
    run_ok(kernel, "%%agentrun tidy -n slow\nhi")
    wait_for_text(kernel, "slow")
    record = stored(kernel.folder, "slow")
    assert record is not None
    path = f"{kernel.api}/runs/{record.run_id}/cancel"
    for stranger in ("run-nobody", "last", "-1", "slow", str(record.number), "%2e%2e", "a%2Fb"):
        answer = server.ask("POST", f"{kernel.api}/runs/{stranger}/cancel")
        assert (answer.status, answer.body) == (404, {"outcome": "not_found"}), stranger
    other = server.ask("POST", path, {"session_id": "session-nobody"})
    assert (other.status, other.body) == (404, {"outcome": "not_found"})
    assert is_going_on(kernel, "slow")

    own = {"session_id": record.session_id}
    assert server.ask("POST", path, own).body == {"outcome": "requested"}
    wait_for_status(kernel, "slow", "cancelling")
    assert server.ask("POST", path).body == {"outcome": "already_requested"}
    run_ok(kernel, "freed.set()")
    ended = wait_for_status(kernel, "slow", "cancelled")
    answer = server.ask("POST", path)
    assert (answer.status, answer.body) == (200, {"outcome": "already_finished"})
    assert stored(kernel.folder, "slow") == ended


def test_a_stale_run_id_hits_nothing_after_a_reload(server: ServerProcess, kernel: ServedKernel) -> None:
    """A run of an earlier session is not found, also where a new run took its id: the page named its session."""
    run_ok(kernel, "%%agentrun endless -n old --id nightly\nhi")
    wait_for_text(kernel, "old")
    (old,) = server.ask("GET", f"{kernel.api}/runs").body["runs"]
    run_ok(kernel, "%reload_ext nbrun")
    path = f"{kernel.api}/runs/nightly/cancel"
    assert server.ask("POST", path).status == 404
    run_ok(kernel, "%config NbRun.store = 'elsewhere.db'")
    run_ok(kernel, "%reload_ext nbrun")
    run_ok(kernel, "%%agentrun endless -n new --id nightly -o new\nhi")
    answer = server.ask("POST", path, {"session_id": old["session_id"]})
    assert (answer.status, answer.body) == (404, {"outcome": "not_found"})
    assert value(kernel, "(new.wait(0.2), new.id, new.cause)") == "(False, 'nightly', None)"
    (new,) = server.ask("GET", f"{kernel.api}/runs").body["runs"]
    assert server.ask("POST", path, {"session_id": new["session_id"]}).status == 200
    assert value(kernel, "new.wait(5)") == "True"
    run_ok(kernel, "%config NbRun.store = ''")
    run_ok(kernel, "%reload_ext nbrun")


def test_only_the_server_may_leave_the_session_out(kernel: ServedKernel) -> None:
    """A request of anybody else names it; and who is on no list counts as a card."""
    with live_run(kernel, "job") as run_id:
        request = {"op": "cancel", "run_id": run_id, "by": "somebody"}
        others: list[object] = ["somebody", "card", "", None, ["server"], {}]
        for by in others:
            assert kernel.control("nbrun_request", request | {"by": by})["outcome"] == "not_found"
        assert is_going_on(kernel, "job")
        session_id = value(kernel, "nbrun.session().id").strip("'")
        reply = kernel.control("nbrun_request", request | {"session_id": session_id})
        assert reply["outcome"] == "requested"
        assert wait_for_status(kernel, "job", "cancelled").cancelled_by == "card"


def test_a_body_that_is_wrong_changes_nothing(server: ServerProcess, kernel: ServedKernel) -> None:
    """No JSON, no object, no text, unknown names, too long a reason: 400 and one line; the run goes on."""
    with live_run(kernel, "job") as run_id:
        path = f"{kernel.api}/runs/{run_id}/cancel"
        wrong: list[object] = [
            b"{",
            b"\xff\xfe",
            b"[" * 100_000,
            b"null ,",
            [],
            "text",
            1,
            {"reason": 1},
            {"reason": ["enough"]},
            {"session_id": {}},
            {"resaon": "enough"},
            {"by": "card"},
            {"reason": "x" * 1001},
        ]
        for body in wrong:
            answer = server.ask("POST", path, body)
            assert answer.status == 400, str(body)[:60]
            assert "\n" not in answer.body["message"]
        assert is_going_on(kernel, "job")
        # And a reason may be anything that is text; the log keeps what can be stored of it.
        answer = server.ask("POST", path, b'{"reason": "\\ud800 \\u0000 enough", "session_id": null}')
        assert answer.body == {"outcome": "requested"}
        wait_for_status(kernel, "job", "cancelled")
        assert str(cancel_event(kernel, "job").data.reason).endswith("enough")  # type: ignore[attr-defined]


def test_strangers_see_and_cancel_nothing(server: ServerProcess, kernel: ServedKernel) -> None:
    """Without a token, or with a wrong one: 403, told nothing, and the run goes on."""
    with live_run(kernel, "job") as run_id:
        stranger = server.visitor()
        for headers in ({}, {"Authorization": "token wrong"}):
            seen = stranger.ask("GET", f"{kernel.api}/runs", headers=headers)
            done = stranger.ask("POST", f"{kernel.api}/runs/{run_id}/cancel", headers=headers)
            assert (seen.status, done.status) == (403, 403)
            assert set(seen.body) == {"message", "reason"}
            # Nor whether there is such a kernel.
            assert stranger.ask("GET", f"{NOWHERE}/runs", headers=headers).status == 403
        assert is_going_on(kernel, "job")


def test_another_site_cannot_cancel_with_a_persons_cookie(server: ServerProcess, kernel: ServedKernel) -> None:
    """A logged-in browser needs the XSRF token that only the server's own pages know; else 403."""
    with live_run(kernel, "job") as run_id:
        path = f"{kernel.api}/runs/{run_id}/cancel"
        person = server.visitor()
        person.log_in(server.token)
        assert person.ask("GET", f"{kernel.api}/runs").body["total"] == 1  # logged in indeed
        assert person.ask("POST", path).status == 403
        assert person.ask("POST", path, headers={"X-XSRFToken": "guessed"}).status == 403
        own = {"X-XSRFToken": person.xsrf}
        away = {"Origin": "http://elsewhere.example"}
        assert person.ask("POST", path, headers=own | away).status == 404
        assert is_going_on(kernel, "job")
        assert person.ask("POST", path, headers=own).body == {"outcome": "requested"}
        wait_for_status(kernel, "job", "cancelled")


def test_the_authorizer_decides_who_may_look_and_who_may_cancel(server: ServerProcess, kernel: ServedKernel) -> None:
    """To look takes `read contents`, to cancel `execute kernels`, and neither needs the other."""
    with live_run(kernel, "job") as run_id:
        look, cancel = f"{kernel.api}/runs", f"{kernel.api}/runs/{run_id}/cancel"
        with server.denying("execute kernels"):
            assert server.ask("POST", cancel).status == 403
            assert server.ask("GET", look).status == 200
        assert is_going_on(kernel, "job")
        with server.denying("read contents"):
            assert server.ask("GET", look).status == 403
            assert server.ask("GET", f"{NOWHERE}/runs").status == 403
            assert server.ask("POST", cancel).status == 200
        wait_for_status(kernel, "job", "cancelled")


def test_what_is_not_there_is_404(server: ServerProcess, kernel: ServedKernel) -> None:
    """No such kernel, no such address: 404; a method that an address lacks: 405."""
    for path in (NOWHERE, "nbrun/api/kernels/x"):
        look, done = server.ask("GET", f"{path}/runs"), server.ask("POST", f"{path}/runs/r/cancel")
        assert (look.status, done.status) == (404, 404)
        assert look.body["message"].startswith("Kernel does not exist")
    assert server.ask("GET", f"{kernel.api}/runs/r").status == 404
    assert server.ask("GET", f"{kernel.api}/runs/r/cancel").status == 405
    assert server.ask("DELETE", f"{kernel.api}/runs").status == 405


def test_requests_at_the_same_time_are_all_answered(server: ServerProcess, kernel: ServedKernel) -> None:
    """Twenty at once, each of which gets its own answer, and nothing of them is left in the server."""
    process = psutil.Process(server.pid)
    with live_run(kernel, "job"), ThreadPoolExecutor(20) as pool:
        server.ask("GET", f"{kernel.api}/runs")  # what is made only once is there now
        before = (process.num_fds(), process.num_threads())
        asked = [pool.submit(server.ask, "GET", f"{kernel.api}/runs") for _ in range(20)]
        assert [answer.result().status for answer in asked] == [200] * 20
        kernel.wait_until(lambda: (process.num_fds(), process.num_threads()) <= before)


def test_a_kernel_without_nbrun_is_given_up_in_time(server: ServerProcess, bare_kernel: ServedKernel) -> None:
    """504 and one line with the mend; others are served meanwhile, and nothing is left."""
    process = psutil.Process(server.pid)
    before = (process.num_fds(), process.num_threads())
    paths = (("GET", "runs"), ("POST", "runs/run-1/cancel"))
    with ThreadPoolExecutor(len(paths)) as pool:
        asked = [pool.submit(server.ask, how, f"{bare_kernel.api}/{path}") for how, path in paths]
        assert server.ask("GET", "api/status").status == 200
        assert not any(each.done() for each in asked)  # served while these wait
        answers = [answer.result() for answer in asked]
    assert [answer.status for answer in answers] == [504, 504]
    assert {answer.body["message"] for answer in answers} == {
        "no answer from the kernel within 2 s. Load nbrun in it, or wait until the code that blocks"
        " it is done; it may still act on this request"
    }
    bare_kernel.wait_until(lambda: (process.num_fds(), process.num_threads()) <= before)


@pytest.mark.parametrize("content", ["a line of text", ["a", "list"], 7])
def test_a_reply_that_is_no_object_is_no_answer(
    server: ServerProcess, bare_kernel: ServedKernel, content: object
) -> None:
    """Any code in a kernel can send one: the server says so in one line, and has no error of its own."""
    bare_kernel.run(f"""
kernel = get_ipython().kernel
async def reply(stream, ident, parent):
    kernel.session.send(stream, "nbrun_reply", {json.dumps(content)!r}, parent, ident)  # a text is sent as it is
kernel.control_handlers["nbrun_request"] = reply
""")
    answer = server.ask("GET", f"{bare_kernel.api}/runs")
    assert (answer.status, answer.body["message"]) == (504, "the kernel's answer isn't one of nbrun's")


ODD_FRAMES = {
    "header is a list": "['[]', parent, '{}', '{}']",
    "parent is a list": "[head, '[]', '{}', '{}']",
    "parent is a number": "[head, '7', '{}', '{}']",
    "content is no JSON": "[head, parent, '{}', '{']",
    "content is no text": "[head, parent, '{}', b'\\xff\\xfe']",
    "content is deep": "[head, parent, '{}', '[' * 200_000 + ']' * 200_000]",
    "header is deep": "['[' * 200_000 + ']' * 200_000, parent, '{}', '{}']",
    "a time is no time": '[\'{"msg_type": "nbrun_reply", "date": "9999-99-99T99:99:99Z"}\', parent, \'{}\', \'{}\']',
    "too few": "[head]",
    "no type": "['{}', parent, '{}', '{}']",
}


@pytest.mark.parametrize("frames", ODD_FRAMES.values(), ids=ODD_FRAMES)
def test_a_reply_that_is_no_message_is_no_answer(server: ServerProcess, bare_kernel: ServedKernel, frames: str) -> None:
    """It is signed with the kernel's key, which any code there has."""
    bare_kernel.run(f"""
import json
kernel = get_ipython().kernel
async def reply(stream, ident, parent_message):
    session = kernel.session
    head = session.pack(session.msg_header("nbrun_reply"))
    parent = session.pack(parent_message["header"])
    frames = [frame.encode() if isinstance(frame, str) else frame for frame in {frames}]
    stream.send_multipart([*ident, b"<IDS|MSG>", session.sign(frames), *frames])
kernel.control_handlers["nbrun_request"] = reply
""")
    answer = server.ask("GET", f"{bare_kernel.api}/runs")
    assert (answer.status, "\n" in answer.body["message"]) == (504, False)


def test_looking_keeps_a_busy_kernel_busy(server: ServerProcess, kernel: ServedKernel) -> None:
    """The server does not take the kernel for idle while its cell runs: its culler could end it."""
    with blocked(kernel):
        for _ in range(3):  # the status that the kernel sends after an answer may come later than that
            assert server.ask("GET", f"{kernel.api}/runs").status == 200
        model = server.ask("GET", f"api/kernels/{kernel.id}").body
        assert model["execution_state"] == "busy"
