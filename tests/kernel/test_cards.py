"""What a card sends from a real kernel: its displays, its updates, its answers, and what a file keeps of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from html.parser import HTMLParser
from typing import Any

import nbformat
import pytest
from markdown_it import MarkdownIt

from tests.kernel.cells import error_line, run_ok, value, wait_for_status, wait_for_text
from tests.kernel.driver import Execution, Kernel, Message

WIDGET = "application/vnd.jupyter.widget-view+json"
RUN = "application/vnd.nbrun.run+json"
STATIC = {"text/html", "text/markdown", "text/plain", RUN}
SAVED_LIMIT = 64 * 1024
LIVE_LIMIT = 256 * 1024
TAGS = {"div", "span", "strong", "code", "pre", "details", "summary", "p", "br", "a"}

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)></pre></div><iframe src='//evil'>"
    '"><svg/onload=alert(3)> [click](javascript:alert(4)) ![x](http://evil/y.png) <http://evil>\n'
    "```\n</code></pre><b>out</b>\n````\n~~~\n# heading\n&lt;script&gt; \u202e \x1b[31m {{7*7}} $$x$$"
)


@pytest.fixture
def kernel(shared_kernel: Kernel) -> Iterator[Kernel]:
    """The module's kernel; afterwards nothing is live in it, and its settings are as before."""
    yield shared_kernel
    run_ok(shared_kernel, "nbrun.session().cancel_all(); freed.set()")
    run_ok(shared_kernel, "for run in nbrun.runs(): run.wait(5)\nfreed.clear()")
    run_ok(shared_kernel, "%config NbRun.card = True\nnbrun.session().cancel_grace_s = 2.0")


class Tags(HTMLParser):
    """Collects the tags and attributes of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what opens."""
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def final_update(kernel: Kernel, cell: Execution) -> dict[str, Any]:
    """Wait for the output that replaces the card; return its data."""
    updates: Callable[[], list[Message]] = lambda: [  # noqa: E731
        output for output in cell.outputs if output["output_type"] == "update_display_data"
    ]
    kernel.wait_until(lambda: bool(updates()))
    (update,) = updates()
    first = cell.outputs[0]
    assert update["transient"]["display_id"] == first["transient"]["display_id"]
    data: dict[str, Any] = update["data"]
    return data


def card_messages(kernel: Kernel, cell: Execution) -> list[Message]:
    """Return all comm messages of the cell's card, in order."""
    model_id = cell.outputs[0]["data"][WIDGET]["model_id"]
    return [m for m in kernel.comms if m["content"]["comm_id"] == model_id]


def states(messages: list[Message]) -> list[dict[str, Any]]:
    """Return the `run` trait of each message that carries it."""
    found = [message["content"]["data"].get("state", {}) for message in messages]
    return [state["run"] for state in found if "run" in state]


def busiest_second(messages: list[Message]) -> int:
    """Return how many of the messages were sent within any one second."""
    times = sorted(_sent_at(message) for message in messages)
    return max(sum(1 for t in times if start <= t < start + 1) for start in times)


def _sent_at(message: Message) -> float:
    date = message["header"]["date"]
    return (date if isinstance(date, datetime) else datetime.fromisoformat(date)).timestamp()


def assert_harmless(data: dict[str, Any]) -> None:
    """Fail if anything of an agent's text is more than text, in HTML or in Markdown."""
    html = Tags(data["text/html"])
    assert html.tags <= TAGS
    assert html.attributes <= {"class", "style", "aria-hidden", "open", "tabindex", "href", "rel", "target"}
    assert all(link.startswith("http://") for link in re.findall('href="([^"]*)', data["text/html"]))
    # Rendered by a renderer that lets raw HTML through, as some front ends do.
    rendered = Tags(MarkdownIt("commonmark", {"html": True}).render(data["text/markdown"]))
    assert rendered.tags <= {"p", "strong", "em", "code", "pre", "ul", "li"}
    assert rendered.attributes <= {"class"}


def has_closed(kernel: Kernel, comm_id: str) -> bool:
    """Return whether the kernel has given the comm up, whichever cell that is told to."""
    return comm_id not in value(kernel, "[*__import__('comm').get_comm_manager().comms]")


def test_a_card_is_a_widget_and_static_output_at_first_and_static_at_last(kernel: Kernel) -> None:
    """The first display has the widget and every static form; the end replaces it by the static forms only."""
    cell = run_ok(kernel, "%%agentrun soon -n tea\nhi")
    first = cell.outputs[0]
    assert first["output_type"] == "display_data"
    assert set(first["data"]) == STATIC | {WIDGET}
    data = final_update(kernel, cell)
    assert set(data) == STATIC
    for form in STATIC - {RUN}:
        assert "Completed" in data[form]
        assert "hi" in data[form]
        assert "<script" not in data[form]
    record = data[RUN]
    assert (record["status"], record["name"], record["output"]) == ("completed", "tea", "hi")
    assert json.loads(json.dumps(record)) == record
    messages = card_messages(kernel, cell)
    # It stays open: of another page, or of this one after a reload, it may be all that can show the end.
    assert [m["msg_type"] for m in messages].count("comm_close") == 0
    assert messages[0]["msg_type"] == "comm_open"
    assert states(messages)[-1]["status"] == "completed"


def test_the_oldest_ended_cards_are_closed(kernel: Kernel) -> None:
    """Widgets do not pile up for ever: beyond so many ended ones the oldest is closed; live ones never are."""
    endless = run_ok(kernel, "%%agentrun endless -n endless\nhi")
    run_ok(kernel, "from nbrun.ui.cards import board\nboard.KEEP_ENDED = 2")
    cells = []
    for number in range(4):
        cells.append(run_ok(kernel, f"%%agentrun soon -n old{number}\nhi"))
        final_update(kernel, cells[-1])
    first, second, third, last = (cell.outputs[0]["data"][WIDGET]["model_id"] for cell in cells)
    kernel.wait_until(lambda: has_closed(kernel, second))
    assert has_closed(kernel, first)
    assert not has_closed(kernel, third)
    assert not has_closed(kernel, last)
    assert not has_closed(kernel, endless.outputs[0]["data"][WIDGET]["model_id"])
    run_ok(kernel, "board.KEEP_ENDED = 100")


def test_unloading_closes_the_widgets(kernel: Kernel) -> None:
    """A kernel that goes on without nbrun holds no card of it, nor what they are drawn by."""
    cell = run_ok(kernel, "%%agentrun soon -n unloaded\nhi")
    final_update(kernel, cell)
    run_ok(kernel, "%unload_ext nbrun")
    assert has_closed(kernel, cell.outputs[0]["data"][WIDGET]["model_id"])
    assert has_closed(kernel, card_messages(kernel, cell)[0]["content"]["data"]["state"]["code_id"])
    run_ok(kernel, "%load_ext nbrun")


def test_a_card_comes_also_after_a_cell_has_closed_all_widgets(kernel: Kernel) -> None:
    """What the next card is drawn by is there again, as if it were the first."""
    final_update(kernel, run_ok(kernel, "%%agentrun soon -n first\nhi"))
    run_ok(kernel, "import ipywidgets\nipywidgets.Widget.close_all()")
    cell = run_ok(kernel, "%%agentrun soon -n second\nhi")
    final_update(kernel, cell)
    opened = card_messages(kernel, cell)[0]["content"]["data"]["state"]
    assert not has_closed(kernel, opened["code_id"])


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "static"])
def test_a_card_tells_when_what_was_left_running_has_ended(kernel: Kernel, is_live: bool) -> None:
    """The end names what goes on; when that ends, card and output are brought up to date."""
    run_ok(kernel, f"%config NbRun.card = {is_live}\nnbrun.session().cancel_grace_s = 0.05")
    cell = run_ok(kernel, "%%agentrun tidy -n left -o left\nhi")
    wait_for_text(kernel, "left")

    def last_output() -> str:
        updates = [o for o in cell.outputs if o["output_type"] == "update_display_data"]
        return str(updates[-1]["data"]["text/plain"]) if updates else ""

    run_ok(kernel, "left.cancel('enough').wait(5)")
    kernel.wait_until(lambda: "still running: tidy" in last_output())
    assert "“enough”" in last_output()
    run_ok(kernel, "freed.set()")
    kernel.wait_until(lambda: "tidy ended" in last_output())
    assert "still running" not in last_output()
    if is_live:
        state = states(card_messages(kernel, cell))[-1]
        assert any("tidy ended" in note for note in state["notes"])


def test_a_queued_card_says_what_it_waits_for(kernel: Kernel) -> None:
    """Its place in line is on the card, and moves up when a run before it ends, which has no card of its own."""
    run_ok(
        kernel,
        "gates = [asyncio.Event() for _ in range(9)]\n"
        "async def gated(prompt): await gates[int(prompt)].wait()\n"
        "async def free(number): gates[number].set()\n"
        "held = [nbrun.start(gated, str(n), name=f'held{n}') for n in range(9)]",
    )
    cell = run_ok(kernel, "%%agentrun soon -n queued\nhi")

    def words() -> str:
        return str(states(card_messages(kernel, cell))[-1]["words"])

    assert words() == "Queued (2nd of 2) · 8 of 8 slots busy"
    run_ok(kernel, "held[8].cancel()")
    kernel.wait_until(lambda: words() == "Queued (next) · 8 of 8 slots busy")
    table = run_ok(kernel, "%agentrun list").outputs[0]["data"]["text/plain"]
    assert "Queued (next)" in table
    run_ok(kernel, "held[0].cancel()")
    kernel.wait_until(lambda: words().startswith("Completed"))


def test_progress_and_prints_are_on_the_card(kernel: Kernel) -> None:
    """How far it came and what it printed are shown while it runs, and kept in the output."""
    run_ok(
        kernel,
        "async def prints_on(prompt, run):\n"
        "    for n in range(30):\n"
        "        print(f'\\x1b[32mpage {n}\\x1b[0m')\n"
        "        run.progress(n + 1, 40, 'pages')\n"
        "    await asyncio.Event().wait()\n",
    )
    cell = run_ok(kernel, "%%agentrun prints_on -n prints_on -o prints_on_run\nhi")
    last: Callable[[], dict[str, Any]] = lambda: states(card_messages(kernel, cell))[-1]  # noqa: E731
    kernel.wait_until(lambda: last()["log_count"] == 30 and last()["progress"]["part"] == 0.75)
    assert last()["progress"]["words"] == "30 of 40 · pages"
    assert last()["log"] == [f"page {n}" for n in range(10, 30)]
    run_ok(kernel, "prints_on_run.cancel()")
    html = final_update(kernel, cell)["text/html"]
    for words in ("30 of 40 · pages", "Log (30 lines)", "… 10 earlier lines", "page 29"):
        assert words in html
    assert "[32m" not in html


def test_hostile_text_stays_text_wherever_it_comes_from(kernel: Kernel) -> None:
    """Text, names, tools, errors and reasons with markup and fences in them become text, live and static."""
    run_ok(
        kernel,
        f"bad = {HOSTILE!r}\n"
        "async def hostile(prompt, run):\n"
        "    run.phase(bad); run.log(bad); print(bad); run.progress(1, 2, bad)\n"
        "    with run.tool(bad, {bad: bad}) as tool:\n"
        "        tool.result = bad\n"
        "    run.text(bad)\n"
        "    await asyncio.sleep(0.5)\n"  # its card is shown while it is live
        "    if prompt == 'fail':\n"
        "        raise ValueError(bad)\n"
        "    await asyncio.Event().wait()\n"
        "hostile.__name__ = bad",
    )
    failed = run_ok(kernel, "%%agentrun hostile --name '<b>`x`</b> *a* [l](//evil)'\nfail")
    assert_harmless(failed.outputs[0]["data"])
    data = final_update(kernel, failed)
    assert_harmless(data)
    assert "&lt;script&gt;alert(1)" in data["text/html"]
    stopped = run_ok(kernel, "%%agentrun hostile -o run -n hostile\nwait")
    wait_for_text(kernel, "hostile")
    run_ok(kernel, "run.cancel(bad)")
    assert_harmless(final_update(kernel, stopped))
    table = run_ok(kernel, "%agentrun list").outputs[0]["data"]["text/html"]
    assert Tags(table).tags <= {"table", "thead", "tbody", "tr", "th", "td", "span"}


@pytest.mark.parametrize(
    "character",
    ["x", "&", '"', "🫖", "\\x00", "`", "\\n"],
    ids=["plain", "amp", "quote", "wide", "null", "tick", "lines"],
)
def test_a_saved_card_is_small_however_long_the_run(kernel: Kernel, character: str) -> None:
    """1 MB of text and 200 tools with long arguments: what the file keeps stays below 64 KiB."""
    run_ok(
        kernel,
        "async def long(prompt, run):\n"
        "    await asyncio.sleep(0.5)\n"  # its card is shown while it is live
        "    for n in range(200):\n"
        f"        with run.tool('search' + '{character}' * 300, {{'q': '{character}' * 2000}}) as tool:\n"
        f"            tool.result = '{character}' * 2000\n"
        "    for n in range(1000):\n"
        f"        yield '{character}' * 1000\n"
        f"    raise ValueError('{character}' * 50_000)",
    )
    cell = run_ok(kernel, "%%agentrun long -n long\nhi")
    data = final_update(kernel, cell)
    output = nbformat.v4.new_output("display_data", data)
    full = nbformat.v4.new_code_cell(outputs=[output])
    empty = nbformat.v4.new_code_cell()
    saved, bare = (nbformat.writes(nbformat.v4.new_notebook(cells=[one])) for one in (full, empty))
    assert len(saved.encode()) - len(bare.encode()) <= SAVED_LIMIT
    if character == "x":  # and not cut for nothing
        assert len(data["text/plain"]) > 10_000
    assert "Failed" in data["text/plain"]
    for state in states(card_messages(kernel, cell)):
        assert len(json.dumps(state, ensure_ascii=False).encode()) <= LIVE_LIMIT
    run_ok(kernel, "assert len(nbrun.get('long').text) >= 1_000_000")


def test_updates_are_coalesced_and_the_last_state_arrives(kernel: Kernel) -> None:
    """3,000 deltas in two seconds are at most ten messages in any second; the last has all the text."""
    run_ok(
        kernel,
        "async def chatty(prompt):\n"
        "    for n in range(3000):\n"
        "        yield f'{n} '\n"
        "        if n % 15 == 14:\n"
        "            await asyncio.sleep(0.01)\n",
    )
    cell = run_ok(kernel, "%%agentrun chatty -n chatty -o run\nhi")
    data = final_update(kernel, cell)
    assert "2998 2999" in data["text/plain"]
    updates = [m for m in card_messages(kernel, cell) if m["msg_type"] == "comm_msg"]
    assert any(state["live"] and state["text"] for state in states(updates))  # it was seen while it ran
    assert busiest_second(updates) <= 10
    last = states(updates)[-1]
    assert last["status"] == "completed"
    assert last["result"].endswith("2998 2999 ")
    assert "2998 2999" in last["blocks"][-1]["html"]
    assert value(kernel, "[e.type for e in run.events()].count('text.delta')") == "3000"

    cells = [run_ok(kernel, f"%%agentrun chatty -n chatty{n}\nhi") for n in range(5)]
    for one in cells:
        assert "2998 2999" in final_update(kernel, one)["text/plain"]
    together = [m for one in cells for m in card_messages(kernel, one) if m["msg_type"] == "comm_msg"]
    assert busiest_second(together) <= 20


def test_a_wave_of_endings_keeps_to_the_budget_and_leaves_nothing_behind(kernel: Kernel) -> None:
    """Twelve cards end at once: states and outputs are at most twenty messages in any second; then nobody listens."""
    run_ok(
        kernel,
        "async def talks(prompt):\n"
        "    while True:\n"
        "        yield 'word '\n"
        "        await asyncio.sleep(0.005)\n"
        "comms = __import__('comm').get_comm_manager().comms\n"
        "open_before = len(comms)",
    )
    cell = run_ok(
        kernel, "wave = [nbrun.start(talks, name=f'wave{n}') for n in range(12)]\nfor run in wave: run.display()"
    )
    wait_for_text(kernel, "wave0")
    run_ok(kernel, "nbrun.session().cancel_all()")

    def outputs() -> list[Message]:
        return [m for m in cell.messages if m["msg_type"] == "update_display_data"]

    kernel.wait_until(lambda: len(outputs()) == 12)
    ids = {output["data"][WIDGET]["model_id"] for output in cell.outputs[:12]}
    mine = [m for m in kernel.comms if m["content"]["comm_id"] in ids]
    ended = {m["content"]["comm_id"] for m in mine if not (states([m]) or [{"live": True}])[0]["live"]}
    assert ended == ids
    updates = [m for m in mine if m["msg_type"] == "comm_msg"]
    assert busiest_second([*updates, *outputs()]) <= 20
    # The code of all cards is sent by the first one of a kernel.
    opened = [m for m in mine if m["msg_type"] == "comm_open"]
    assert max(len(json.dumps(m["content"])) for m in opened) < 16_000
    assert value(kernel, "{len(run.live.listeners) for run in wave}") == "{0}"
    # For pages that have not seen the end each is kept, with its layout; and, if these are the first, what all share.
    assert value(kernel, "len(comms) - open_before") in {"24", "25"}


def test_a_cards_messages_belong_to_the_cell_that_started_it(kernel: Kernel) -> None:
    """Updates and the final output name the starting cell as their parent, also while other cells run."""
    cell = run_ok(kernel, "%%agentrun endless -n own -o run\nhi")
    wait_for_text(kernel, "own")
    other = run_ok(kernel, "run.cancel().wait(5); print('here')")
    final_update(kernel, cell)
    assert {m["parent_header"]["msg_id"] for m in card_messages(kernel, cell)} == {cell.msg_id}
    assert other.stdout == "here\n"
    assert other.outputs == []


def test_what_an_agent_prints_is_in_its_log_and_in_no_cell(kernel: Kernel) -> None:
    """Prints of async and of sync agents, of their tasks too, go to the run; a cell's own prints stay its own."""
    run_ok(
        kernel,
        "import sys\n"
        "async def prints(prompt):\n"
        "    for n in range(20):\n"
        "        print('stray', n)\n"
        "        print('worse', n, file=sys.stderr)\n"
        "        await asyncio.sleep(0.02)\n"
        "def prints_too(prompt):\n"
        "    for n in range(20):\n"
        "        print('stray', n)\n"
        "        time.sleep(0.02)\n",
    )
    cells = [run_ok(kernel, f"%%agentrun {name} -o {name}_run\nhi") for name in ("prints", "prints_too")]
    cells.append(run_ok(kernel, "print('mine'); prints_run.wait(10), prints_too_run.wait(10)"))
    for cell in cells[:2]:
        final_update(kernel, cell)
    for cell in cells:
        assert "stray" not in cell.stdout + cell.stderr
        assert "worse" not in cell.stdout + cell.stderr
    assert cells[2].stdout == "mine\n"
    logs = "''.join(e.data.text for e in {0}.events() if e.type == 'log' and e.data.level == '{1}')"
    out = value(kernel, f"{logs.format('prints_run', 'stdout')}.count('stray')")
    err = value(kernel, f"{logs.format('prints_run', 'stderr')}.count('worse')")
    sync = value(kernel, f"{logs.format('prints_too_run', 'stdout')}.count('stray')")
    assert (out, err, sync) == ("20", "20", "20")


def test_a_click_cancels_and_is_answered(kernel: Kernel) -> None:
    """A cancel sent to the card's comm stops its run and no other, and is answered with its nonce."""
    beside = run_ok(kernel, "%%agentrun endless -n beside -o beside\nhi")
    cell = run_ok(kernel, "%%agentrun endless -n clicked\nhi")
    wait_for_text(kernel, "clicked")
    for form in STATIC - {RUN}:  # what a file keeps that is saved while the run goes on
        assert "when the notebook was saved" in cell.outputs[0]["data"][form]
    opened = card_messages(kernel, cell)[0]["content"]["data"]["state"]
    click = {"op": "cancel", "nonce": "n1", "run_id": opened["run"]["id"], "session_id": opened["session_id"]}
    comm_id = cell.outputs[0]["data"][WIDGET]["model_id"]

    def send(content: object) -> None:
        kernel.send("comm_msg", {"comm_id": comm_id, "data": {"method": "custom", "content": content}})

    def replies() -> list[dict[str, Any]]:
        data = [m["content"]["data"] for m in card_messages(kernel, cell)]
        return [d["content"] for d in data if d.get("method") == "custom"]

    for nonsense in ("cancel", {"op": "explode"}, {**click, "run_id": 5, "nonce": "n0"}):
        send(nonsense)
    send(click)
    kernel.wait_until(lambda: any(reply["nonce"] == "n1" for reply in replies()))
    assert [reply["outcome"] for reply in replies()] == ["unknown_op", "not_found", "requested"]
    record = wait_for_status(kernel, "clicked", "cancelled")
    assert record.cause == "user"
    assert "Cancelled by you" in final_update(kernel, cell)["text/plain"]
    assert value(kernel, "(str(beside.status), beside.cause)") == "('running', None)"
    assert states(card_messages(kernel, beside))[-1]["live"]


def test_a_run_that_fails_to_start_shows_no_card(kernel: Kernel) -> None:
    """Bad input sends no comm and no display."""
    opened = [m for m in kernel.comms if m["msg_type"] == "comm_open"]
    cell = kernel.run("%%agentrun nobody\nhi")
    assert error_line(cell).startswith("AgentNotFound")
    assert [output["output_type"] for output in cell.outputs] == ["error"]
    assert [m for m in kernel.comms if m["msg_type"] == "comm_open"] == opened


def test_without_live_cards_the_static_one_follows_its_run(kernel: Kernel) -> None:
    """With `NbRun.card` off the output is static from the start, and shows the end when it comes."""
    run_ok(kernel, "%config NbRun.card = False")
    shown = kernel.run("%%agentrun --python\nimport asyncio\nawait asyncio.sleep(0.3)", cell_id="c-off")
    kernel.wait_until(lambda: any(m["msg_type"] == "update_display_data" for m in shown.messages), 10)
    updates = [m for m in shown.messages if m["msg_type"] == "update_display_data"]
    first = shown.outputs[0]["data"]["text/plain"]
    assert "when this was drawn" in first
    assert "Updated when the run ends" in first
    assert set(updates[-1]["content"]["data"]) == STATIC
    assert "Completed" in updates[-1]["content"]["data"]["text/plain"]
    run_ok(kernel, "%config NbRun.card = True")


def test_a_page_that_draws_cards_in_their_places_gets_no_widget_in_its_file(kernel: Kernel) -> None:
    """Once it has said so, outputs are the static card with the widget's place, and its end is sent to who asks."""
    first = run_ok(kernel, "%%agentrun endless -n first\nhi")
    state = card_messages(kernel, first)[0]["content"]["data"]["state"]
    assert WIDGET in first.outputs[0]["data"]
    comm_id = first.outputs[0]["data"][WIDGET]["model_id"]

    def send(op: str) -> None:
        data = {"method": "custom", "content": {"op": op}}
        kernel.send("comm_msg", {"comm_id": comm_id, "data": data})

    def sent() -> list[dict[str, Any]]:
        data = [m["content"]["data"] for m in kernel.comms if m["content"]["comm_id"] == comm_id]
        return [d["content"] for d in data if d.get("method") == "custom"]

    send("placed")
    placed = final_update(kernel, first)
    send("placed")
    send("static")  # of a live run there is no end
    assert set(placed) == STATIC
    assert f'<div class="nbrun-place {state["place"]}">' in placed["text/html"]
    second = run_ok(kernel, "%%agentrun endless -n second\nhi")
    assert set(second.outputs[0]["data"]) == STATIC
    assert 'class="nbrun-place ' in second.outputs[0]["data"]["text/html"]
    assert f'{state["place"]}"' not in second.outputs[0]["data"]["text/html"]
    assert sent() == []
    run_ok(kernel, "nbrun.get('first').cancel().wait(5)")
    send("static")
    kernel.wait_until(lambda: bool(sent()))
    (end,) = sent()
    assert end["op"] == "static"
    assert set(end["data"]) == STATIC
    assert "Cancelled by you" in end["data"]["text/html"]
    assert f'<div class="nbrun-place {state["place"]} nbrun-final">' in end["data"]["text/html"]
    kernel.wait_until(lambda: "Cancelled by you" in first.outputs[-1]["data"]["text/html"])
    updates = [each for each in first.outputs if each["output_type"] == "update_display_data"]
    assert len(updates) == 2  # in its place, and the end
    run_ok(kernel, "get_ipython().nbrun_extension.presenter.board.is_placed = False")


def test_a_page_that_does_not_find_the_code_is_sent_it(kernel: Kernel) -> None:
    """All cards name one model that has it; a page that asks instead gets the same."""
    cells = [run_ok(kernel, f"%%agentrun endless -n code{n}\nhi") for n in range(2)]
    opened = [card_messages(kernel, cell)[0]["content"] for cell in cells]
    (code_id,) = {content["data"]["state"]["code_id"] for content in opened}
    (shared,) = [
        m["content"]["data"]["state"]
        for m in kernel.comms
        if m["msg_type"] == "comm_open" and m["content"]["comm_id"] == code_id
    ]
    data = {"method": "custom", "content": {"op": "code"}}
    kernel.send("comm_msg", {"comm_id": opened[0]["comm_id"], "data": data})

    def sent() -> list[Message]:
        mine = [m["content"]["data"] for m in card_messages(kernel, cells[0])]
        return [data["content"] for data in mine if data.get("method") == "custom"]

    kernel.wait_until(lambda: bool(sent()))
    assert sent() == [{"op": "code", "text": shared["text"], "style": shared["style"]}]


def test_how_much_is_kept_can_be_changed(shared_kernel: Kernel) -> None:
    """From then on, without loading again."""
    run_ok(shared_kernel, "%config NbRun.keep_runs = 3")
    assert value(shared_kernel, "nbrun.session().store.keep.runs") == "3"
    run_ok(shared_kernel, "%config NbRun.keep_runs = 10_000")
