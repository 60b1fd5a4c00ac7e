"""Answers and messages by the kernel's control channel and by magics, while a run waits."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.kernel.cells import SOON_S, error_line, run_ok, stored, value, wait_for_status, wait_for_text
from tests.kernel.driver import Kernel, Message
from tests.kernel.test_cancel import BUSY, ask, cancel_request
from tests.kernel.test_cards import card_messages, states

AGENTS = """
async def asks(prompt, run):
    answer = await run.ask(f"Delete {prompt}?", args={"path": prompt})
    return [answer.decision, answer.args, answer.text, answer.by]

async def uses(prompt, run):
    asked = [await run.approve_tool("cut", {"n": 1}) for _ in range(2)]
    return [[answer.decision, answer.args, answer.by] for answer in asked]

async def reads(prompt, run):
    run.text("begun ")
    return [await run.inbox.get(), run.inbox.take()]
"""


@pytest.fixture
def people_kernel(renewed_kernel: Kernel) -> Kernel:
    """A loaded kernel with agents that ask and that read."""
    run_ok(renewed_kernel, AGENTS)
    return renewed_kernel


def click(kernel: Kernel, op: str, name: str, **said: object) -> dict[str, Any]:
    """Return what a page sends to say something to this run."""
    return cancel_request(kernel, name, op=op, **said)


def asked(kernel: Kernel, name: str) -> dict[str, str]:
    """Return what a page sends with its answer to the one question of a run, as it is stored."""
    record = stored(kernel.folder, name)
    assert record is not None
    (question,) = record.pending
    return {"call": question.id, "digest": question.digest}


def sent(reply: Message) -> str:
    """Return what became of a click."""
    return str(reply["outcome"])


def test_an_answer_gets_through_while_the_main_thread_is_busy(people_kernel: Kernel) -> None:
    """In `time.sleep`, a loop and an `await`: the run goes on, in the store, before the cell ends."""
    kernel = people_kernel
    for situation, code in BUSY.items():
        run_ok(kernel, f"%%agentrun asks -n {situation}\ntea")
        wait_for_status(kernel, situation, "waiting")
        request = click(kernel, "approve", situation, **asked(kernel, situation), args={"path": "cup"}, text="go on")
        blocked = kernel.start(code)
        kernel.wait_until(lambda blocked=blocked: "in" in blocked.stdout)  # type: ignore[misc]
        reply = ask(kernel, request)
        assert reply == {"op": "reply", "nonce": request["nonce"], "outcome": "sent"}
        record = wait_for_status(kernel, situation, "completed", SOON_S)
        assert record.output == ["allow", {"path": "cup"}, "go on", "card"]
        assert not blocked.is_done
        kernel.interrupt()
        blocked.wait()


def test_a_tool_is_allowed_for_the_rest_of_its_run_while_a_cell_blocks(people_kernel: Kernel) -> None:
    """With arguments edited as text, whose numbers stay exact; the run goes on to its end, and tells of it."""
    kernel = people_kernel
    run_ok(kernel, "%%agentrun uses -n cutter\ntea")
    wait_for_status(kernel, "cutter", "waiting")
    request = click(kernel, "approve", "cutter", **asked(kernel, "cutter"), always=True)
    blocked = kernel.start(BUSY["sleep"])
    kernel.wait_until(lambda: "in" in blocked.stdout)
    for number, (typed, words) in enumerate([("{", "valid JSON"), ("[1]", "must stay an object")]):
        refused = ask(kernel, request | {"nonce": f"slip-{number}", "args_json": typed})
        assert sent(refused) == "refused"
        assert words in refused["message"]
    assert sent(ask(kernel, request | {"args_json": f'{{"n": {2**60}}}'})) == "sent"
    record = wait_for_status(kernel, "cutter", "completed", SOON_S)
    assert record.output == [["allow", {"n": 2**60}, "card"], ["allow", {"n": 1}, "always"]]
    assert record.always == ("cut",)
    assert not blocked.is_done
    kernel.interrupt()
    blocked.wait()


def test_what_comes_twice_is_done_once(people_kernel: Kernel) -> None:
    """A click comes over two channels with one nonce: one message, one answer, and two equal replies."""
    kernel = people_kernel
    run_ok(kernel, "%%agentrun endless -n long -o long\nhi")
    wait_for_text(kernel, "long")
    request = click(kernel, "steer", "long", text="be brief")
    assert [sent(ask(kernel, request)) for _ in range(3)] == ["sent"] * 3
    kernel.wait_until(lambda: (found := stored(kernel.folder, "long")) is not None and found.steers > 0)
    assert sent(ask(kernel, request | {"nonce": "another", "text": "x"})) == "sent"
    asked = "[e.data.text for e in long.events() if e.type == 'steer']"
    kernel.wait_until(lambda: (found := stored(kernel.folder, "long")) is not None and found.steers > 1)
    assert value(kernel, asked) == "['be brief', 'x']"

    run_ok(kernel, "%%agentrun asks -n asking -o asking\ntea")
    wait_for_status(kernel, "asking", "waiting")
    call = value(kernel, "asking.record.pending[0].id").strip("'")
    request = click(kernel, "deny", "asking", text="no", call=call)
    assert [sent(ask(kernel, request)) for _ in range(2)] == ["sent"] * 2
    wait_for_status(kernel, "asking", "completed")
    assert value(kernel, "asking.output") == "['deny', {'path': 'tea'}, 'no', 'card']"


def test_what_cannot_be_said_is_refused_and_harmless(people_kernel: Kernel) -> None:
    """Unknown calls, wrong types, strange sessions and ended runs are answered in one line."""
    kernel = people_kernel
    run_ok(kernel, "%%agentrun asks -n asking -o asking\ntea")
    wait_for_status(kernel, "asking", "waiting")
    request = click(kernel, "approve", "asking", **asked(kernel, "asking"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"call": None}, "refused"),  # a click is one on a question, never on whichever is open
        ({"call": "ask-9"}, "refused"),
        ({"digest": "of something else"}, "refused"),  # what the page has shown is not what is asked
        ({"digest": ""}, "refused"),
        ({"call": 3}, "refused"),
        ({"choice": "green"}, "refused"),
        ({"choice": ["allow"]}, "refused"),
        ({"op": "deny", "text": {}}, "refused"),
        ({"op": "steer"}, "refused"),
        ({"op": "steer", "text": "x" * 200_000}, "refused"),
        ({"session_id": "session-nobody"}, "not_found"),
        ({"run_id": "last"}, "not_found"),
        ({"op": "answer"}, "unknown_op"),
    ]
    for number, (changes, outcome) in enumerate(cases):
        reply = ask(kernel, request | {"nonce": f"click-{number}"} | changes)
        assert sent(reply) == outcome, changes
        assert "\n" not in str(reply.get("message", ""))
    assert value(kernel, "str(asking.status)") == "'waiting'"
    assert sent(ask(kernel, request)) == "sent"
    wait_for_status(kernel, "asking", "completed")
    late = ask(kernel, request | {"nonce": "late"})
    assert sent(late) == "refused"
    assert "has already ended" in late["message"]
    assert "Traceback" not in kernel.log.read_text()


def test_magics_approve_deny_and_say(people_kernel: Kernel) -> None:
    """Each names its run, or takes the only one that asks; a mistake is one line."""
    kernel = people_kernel
    assert "No run is waiting for an answer" in error_line(kernel.run("%agentrun approve"))
    run_ok(kernel, "%%agentrun asks -n first -o first\ntea")
    wait_for_status(kernel, "first", "waiting")
    cell = run_ok(kernel, "%agentrun approve --args '{\"path\": \"cup\"}' --text 'go on'")
    assert cell.stdout == "Run #1 (first): allowed “Delete tea?”\n"
    assert value(kernel, "first.result(10)") == "['allow', {'path': 'cup'}, 'go on', 'magic']"

    run_ok(kernel, "%%agentrun asks -n second -o second\ntea")
    run_ok(kernel, "%%agentrun asks -n third -o third\ntea")
    wait_for_status(kernel, "second", "waiting")
    wait_for_status(kernel, "third", "waiting")
    assert "2 runs are waiting for an answer" in error_line(kernel.run("%agentrun deny"))
    no_json = error_line(kernel.run("%agentrun approve second --args {"))
    assert "the arguments aren't valid JSON" in no_json
    assert "in single quotes" in no_json
    assert "--reason and -r exclude each other" in error_line(kernel.run("%agentrun deny second --reason a -r b"))
    assert "leave out always" in error_line(kernel.run("%agentrun approve second --always"))
    assert "doesn't ask 'ask-7'" in error_line(kernel.run("%agentrun approve second ask-7"))
    cell = run_ok(kernel, f"%agentrun deny second {asked(kernel, 'second')['call']} -r 'not that one'")
    assert cell.stdout == "Run #2 (second): denied “Delete tea?”\n"
    run_ok(kernel, "%agentrun approve third")
    assert value(kernel, "second.result(10)[:3]") == "['deny', {'path': 'tea'}, 'not that one']"
    assert value(kernel, "third.result(10)[0]") == "'allow'"

    run_ok(kernel, "%%agentrun reads -n 'reads on' -o reading\nhi")
    wait_for_text(kernel, "reads on")
    assert "say needs TEXT" in error_line(kernel.run("%agentrun say last"))
    cell = run_ok(kernel, "%agentrun say 'reads on' don't stop")
    assert re.fullmatch(r"Message sent to run #4 \(reads on\); the agent read it after [\d.]+ m?s\.\n", cell.stdout)
    assert value(kernel, "reading.result(10)") == '["don\'t stop", []]'
    assert "has already ended" in error_line(kernel.run("%agentrun say 'reads on' too late"))

    run_ok(kernel, "%%agentrun uses -n cutter -o cutter\ntea")
    wait_for_status(kernel, "cutter", "waiting")
    cell = run_ok(kernel, "%agentrun say cutter be quick")
    assert cell.stdout == (
        "Message sent to run #5 (cutter); the agent has not read it yet; it has not looked for messages so far.\n"
    )
    cell = run_ok(kernel, "%agentrun approve cutter --always -r fine")
    assert cell.stdout == "Run #5 (cutter): allowed “Use cut?”; cut from now on, too\n"
    assert value(kernel, "[by for _, _, by in cutter.result(10)]") == "['magic', 'always']"


@pytest.mark.parametrize("line", ["approve", "approve cutter", "deny"])
def test_a_line_that_is_run_twice_answers_only_what_was_asked_before(people_kernel: Kernel, line: str) -> None:
    """The agent asks again at once, and the second press came before that question."""
    kernel = people_kernel
    run_ok(kernel, "%%agentrun uses -n cutter -o cutter\ntea")
    wait_for_status(kernel, "cutter", "waiting")
    run_ok(kernel, "import os, time; asked = cutter.pending[0].id")
    kernel.start("while not os.path.exists('sent'): time.sleep(0.01)")
    first = kernel.start(f"%agentrun {line}")
    kernel.start("cutter.live.wait_until(lambda record: record.pending and record.pending[0].id != asked, 10)")
    second = kernel.start(f"%agentrun {line}")
    (kernel.folder / "sent").touch()
    assert "“Use cut?”" in first.wait().stdout
    assert "Run #1 (cutter) has another question since you ran this: “Use cut?”. Run it again" in error_line(
        second.wait()
    )
    run_ok(kernel, f"%agentrun {line}")
    decision = line.split()[0].replace("approve", "allow")
    assert value(kernel, "[each[0] for each in cutter.result(10)]") == f"['{decision}', '{decision}']"


def test_a_static_card_says_that_its_run_waits(people_kernel: Kernel) -> None:
    """Where no live card is shown, the output gets the question, and the line that answers it."""
    kernel = people_kernel
    run_ok(kernel, "%config NbRun.card = False")
    cell = run_ok(kernel, "%%agentrun asks -n asking -o asking\ntea")
    line = "Waiting for you: “Delete tea?”"
    kernel.wait_until(lambda: line in cell.outputs[-1]["data"]["text/plain"])
    assert "– %agentrun approve #1" in cell.outputs[-1]["data"]["text/plain"]
    # An update goes by the display's id, from whichever cell ran last.
    approving = run_ok(kernel, "%agentrun approve #1")

    def latest() -> str:
        return str([*cell.outputs, *approving.outputs][-1]["data"]["text/plain"])

    kernel.wait_until(lambda: "Completed" in latest())
    assert line not in latest()


def test_a_saved_live_card_says_that_its_run_waits(people_kernel: Kernel) -> None:
    """What a notebook file keeps beside the live card is brought up to date when a question is asked."""
    kernel = people_kernel
    run_ok(
        kernel,
        "gate = asyncio.Event()\nasync def asks_later(prompt, run): await gate.wait(); return await asks(prompt, run)",
    )
    cell = run_ok(kernel, "%%agentrun asks_later -n later\ntea")
    line = "Waiting for you: “Delete tea?”"
    assert line not in cell.outputs[-1]["data"]["text/html"]
    cells = [cell, run_ok(kernel, "gate.set()")]

    def latest() -> dict[str, Any]:
        shown: dict[str, Any] = [found for each in cells for found in each.outputs][-1]["data"]
        return shown

    kernel.wait_until(lambda: line in latest()["text/html"])
    assert "application/vnd.jupyter.widget-view+json" in latest()
    cells.append(run_ok(kernel, "%agentrun deny"))
    kernel.wait_until(lambda: "Completed" in latest()["text/html"])
    assert "application/vnd.jupyter.widget-view+json" not in latest()


def test_a_card_says_what_a_child_run_asks(people_kernel: Kernel) -> None:
    """It has no card of its own: its parent's tells how it is answered, until it is."""
    kernel = people_kernel
    run_ok(kernel, "async def parent(prompt, run): return await run.start_child(uses, name='helper')")
    cell = run_ok(kernel, "%%agentrun parent -o parent\ntea")
    line = 'Run #2 (helper): Waiting for you: “Use cut?” {"n":1} – %agentrun approve #2 ask-'

    def notices() -> list[str]:
        notices = [str(notice) for notice in states(card_messages(kernel, cell))[-1]["notices"]]
        return [notice[: len(line)] for notice in notices]  # without the rest of the id

    kernel.wait_until(lambda: line in notices())
    run_ok(kernel, "%agentrun approve #2 --always")
    assert value(kernel, "parent.result(10)[1]") == "['allow', {'n': 1}, 'always']"
    kernel.wait_until(lambda: line not in notices())


def test_a_policy_answers_and_a_headless_cell_is_not_held_up(people_kernel: Kernel) -> None:
    """`--approve auto` allows; a headless cell that waits denies at once, and its card says why."""
    kernel = people_kernel
    run_ok(kernel, "%%agentrun asks -b --approve auto -o allowed\ntea")
    assert value(kernel, "allowed.output[0::3]") == "['allow', '--approve auto']"
    cell = run_ok(kernel, "%%agentrun asks -o denied\ntea", headless=True)
    assert value(kernel, "denied.output[0::3]") == "['deny', 'nobody']"
    assert "use --approve auto" in cell.outputs[0]["data"]["text/plain"]
    run_ok(kernel, "%%agentrun asks -a -n later -o later\ntea", headless=True)
    wait_for_status(kernel, "later", "waiting")  # a later cell can answer this one
    run_ok(kernel, "later.approve()", headless=True)
    assert value(kernel, "later.result(10)[0]") == "'allow'"
