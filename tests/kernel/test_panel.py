"""The runs panel from a real kernel: what it sends, what it does for its page, what a file keeps of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kernel.cells import run_ok, value, wait_for_text
from tests.kernel.driver import Execution, Kernel, Message
from tests.kernel.test_cancel import BUSY, ask
from tests.kernel.test_cards import STATIC, WIDGET, busiest_second, has_closed

STATIC_TABLE = STATIC - {"application/vnd.nbrun.run+json"}
_nonces = itertools.count()


@pytest.fixture
def kernel(shared_kernel: Kernel) -> Iterator[Kernel]:
    """The module's kernel; afterwards nothing is live in it."""
    yield shared_kernel
    run_ok(shared_kernel, "nbrun.session().cancel_all(); freed.set()")
    run_ok(shared_kernel, "for run in nbrun.runs(): run.wait(5)\nfreed.clear()")


class Panel:
    """A panel on display, as its page sees it."""

    def __init__(self, kernel: Kernel, code: str = "%agentrun", cell_id: str | None = None) -> None:
        self.kernel = kernel
        self.cell = run_ok(kernel, code, cell_id=cell_id)
        self.id = str(self.cell.outputs[0]["data"][WIDGET]["model_id"])
        self.session_id = value(kernel, "nbrun.session().id").strip("'")

    @property
    def messages(self) -> list[Message]:
        """What the kernel has sent to this widget."""
        return [m for m in self.kernel.comms if m["content"]["comm_id"] == self.id]

    @property
    def state(self) -> dict[str, Any]:
        """What the page would have by now."""
        state: dict[str, Any] = {}
        for message in self.messages:
            state |= message["content"]["data"].get("state", {})
        return state

    @property
    def runs(self) -> dict[str, Any]:
        """The table."""
        runs: dict[str, Any] = self.state["panel"]
        return runs

    def row(self, name: str) -> dict[str, Any]:
        """Return the row of the newest run with this name; empty where there is none."""
        return next((row for row in self.runs["rows"] if row["name"] == name), {})

    def statuses(self) -> dict[str, str]:
        """Return the statuses by name."""
        return {row["name"]: row["status"] for row in self.runs["rows"]}

    def wish(self, op: str, **said: object) -> dict[str, Any]:
        """Return what the page sends."""
        known = {"panel": self.id, "nonce": f"panel-{next(_nonces)}", "session_id": self.session_id}
        return {"op": op, **known, **said}

    def send(self, wish: dict[str, Any]) -> None:
        """Send it by the comm."""
        content = {"comm_id": self.id, "data": {"method": "custom", "content": wish}}
        self.kernel.send("comm_msg", content)

    def wait(self, is_met: Callable[[], bool]) -> None:
        """Wait until this is so of the state."""
        self.kernel.wait_until(is_met)

    def wait_answered(self, look: dict[str, Any]) -> None:
        """Wait until the table is what was looked for."""
        self.wait(lambda: bool(self.runs["answered"] == look["nonce"]))

    def replies(self) -> list[dict[str, Any]]:
        """Return what has been answered by the comm."""
        sent = [message["content"]["data"] for message in self.messages]
        return [data["content"] for data in sent if data.get("method") == "custom"]


def updates(cell: Execution) -> list[dict[str, Any]]:
    """Return what was put in the place of the cell's output."""
    return [o["data"] for o in cell.outputs if o["output_type"] == "update_display_data"]


def test_a_panel_follows_the_runs(kernel: Kernel) -> None:
    """A bare `%agentrun` shows them, and each start, wait and end comes into the table; few messages do that."""
    run_ok(kernel, "%%agentrun say -b -n before\nhi")
    panel = Panel(kernel)
    data = panel.cell.outputs[0]["data"]
    assert set(data) == STATIC_TABLE | {WIDGET}
    assert all("before" in data[form] for form in STATIC_TABLE)
    assert "<script" not in data["text/html"]
    assert panel.row("before")["cells"]["status"] == "Completed"
    stored = panel.runs["stored"]
    run_ok(kernel, "%%agentrun endless -n long\nhi")
    panel.wait(lambda: panel.row("long").get("status") == "running")
    assert (panel.runs["live"], panel.runs["stored"]) == (1, stored + 1)
    assert [row["name"] for row in panel.runs["rows"][:2]] == ["long", "before"]
    run_ok(kernel, "for n in range(100): nbrun.start(say, str(n), name=f'many{n}')")
    panel.wait(lambda: panel.statuses().get("many99") == "completed")
    assert len(panel.runs["rows"]) == panel.runs["page"]
    assert panel.runs["has_more"]
    assert panel.row("long") == {}  # 100 newer ones are before it
    run_ok(kernel, "%agentrun cancel long")
    panel.wait(lambda: panel.runs["live"] == 0)
    assert busiest_second(kernel.comms) <= 20


def test_filters_pages_and_cards_are_had_while_a_cell_blocks(kernel: Kernel) -> None:
    """What the page asks for comes by the control channel too; what comes twice is done once."""
    run_ok(kernel, "for n in range(60): nbrun.start(say, 'tea', name=f'page{n}')")
    run_ok(kernel, "%%agentrun broken -n sad\nhi")
    run_ok(kernel, "%%agentrun endless -n talker\nhi")
    wait_for_text(kernel, "talker")
    panel = Panel(kernel, "nbrun.panel()")
    blocked = kernel.start(BUSY["sleep"])
    kernel.wait_until(lambda: "in" in blocked.stdout)

    look = panel.wish("look", status="failed", text=" SAD ", page="newest")
    assert ask(kernel, look)["outcome"] == "sent"
    panel.wait_answered(look)
    assert panel.statuses() == {"sad": "failed"}
    assert (panel.runs["status"], panel.runs["text"]) == ("failed", "SAD")

    back = panel.wish("look", status="", text="", page="newest")
    more = panel.wish("look", status="", text="", page="more")
    for wish in (back, more):
        ask(kernel, wish)
        panel.wait_answered(wish)
    assert panel.runs["has_newer"]
    assert {row["number"] for row in panel.runs["rows"]}.isdisjoint({panel.runs["stored"]})
    assert ask(kernel, look)["outcome"] == "sent"  # by its second channel, late: it changes nothing
    ask(kernel, newer := panel.wish("look", status="", text="", page="newer"))
    panel.wait_answered(newer)
    assert (panel.runs["status"], panel.runs["has_newer"]) == ("", False)

    ask(kernel, panel.wish("open", key=panel.row("sad")["key"]))
    panel.wait(lambda: panel.runs["open"] == panel.row("sad")["key"])
    assert panel.state["run"]["error"] == "ValueError: the kettle is empty"
    ask(kernel, panel.wish("open", key=panel.row("talker")["key"]))
    panel.wait(lambda: panel.state["run"]["name"] == "talker")
    assert panel.state["run"]["text"] == "begun "
    cancel = panel.wish("cancel", run_id=panel.row("talker")["id"], by="panel")
    assert ask(kernel, cancel)["outcome"] == "requested"
    panel.wait(lambda: panel.state["run"]["status"] == "cancelled")
    panel.wait(lambda: panel.row("talker").get("status") == "cancelled")
    assert not blocked.is_done
    kernel.interrupt()
    blocked.wait()
    assert value(kernel, "nbrun.get('talker').record.cancelled_by") == "'panel'"
    assert ask(kernel, panel.wish("look", status="odd", text="", page=""))["outcome"] == "refused"
    assert ask(kernel, panel.wish("open", panel="another", key=""))["outcome"] == "refused"


def test_cancel_all_is_of_its_moment(kernel: Kernel) -> None:
    """All that is live is cancelled; the same click again, by its other channel, leaves what has begun since."""
    panel = Panel(kernel)
    for name in ("one", "two", "three"):
        run_ok(kernel, f"%%agentrun endless -n {name}\nhi")
        wait_for_text(kernel, name)
    click = panel.wish("cancel_all")
    assert ask(kernel, click | {"session_id": "another"})["outcome"] == "not_found"
    assert ask(kernel, click) == {"op": "reply", "nonce": click["nonce"], "outcome": "requested", "count": 3}
    panel.wait(lambda: [panel.statuses().get(name) for name in ("one", "two", "three")] == ["cancelled"] * 3)
    run_ok(kernel, "%%agentrun endless -n four -o four\nhi")
    wait_for_text(kernel, "four")
    panel.send(click)
    panel.wait(lambda: bool(panel.replies()))
    assert panel.replies()[0]["count"] == 3
    assert value(kernel, "str(four.status)") == "'running'"
    panel.send(panel.wish("cancel_all"))
    panel.wait(lambda: panel.statuses().get("four") == "cancelled")


def test_a_file_gets_what_the_page_asks_it_to_keep(kernel: Kernel) -> None:
    """What was drawn first is stale when runs have ended; the output then has the newest runs and the widget."""
    panel = Panel(kernel)
    assert not panel.runs["is_stale"]
    run_ok(kernel, "%%agentrun say -b -n fresh\nhi")
    panel.wait(lambda: panel.runs["is_stale"])
    panel.send(panel.wish("keep"))
    panel.wait(lambda: bool(updates(panel.cell)))
    (data,) = updates(panel.cell)
    assert set(data) == STATIC_TABLE | {WIDGET}
    assert "fresh" in data["text/markdown"]
    panel.wait(lambda: not panel.runs["is_stale"])


def test_removed_runs_leave_the_table(kernel: Kernel) -> None:
    """`%agentrun rm` is seen."""
    run_ok(kernel, "%%agentrun say -b -n gone\nhi")
    panel = Panel(kernel)
    assert panel.row("gone")
    run_ok(kernel, "%agentrun rm gone")
    panel.wait(lambda: not panel.row("gone"))


def test_panels_do_not_pile_up(kernel: Kernel) -> None:
    """A cell that is run again has one; of many the oldest become static tables, and their widgets are closed."""
    first = Panel(kernel, cell_id="the-cell")
    again = Panel(kernel, cell_id="the-cell")
    kernel.wait_until(lambda: has_closed(kernel, first.id))
    others = [Panel(kernel) for _ in range(4)]
    kernel.wait_until(lambda: has_closed(kernel, again.id))
    assert not has_closed(kernel, others[0].id)
    assert set(updates(again.cell)[-1]) == STATIC_TABLE
    assert ask(kernel, again.wish("open", key=""))["outcome"] == "refused"


def test_without_a_page_it_is_the_list(kernel: Kernel) -> None:
    """Headless, and where cards are switched off, `%agentrun` and `nbrun.panel()` give what `list` gives."""
    run_ok(kernel, "%%agentrun say -b -n listed\nhi")
    for code in ("%agentrun", "nbrun.panel()", "%agentrun list"):
        output = run_ok(kernel, code, headless=True).outputs[0]  # the first cell's end also updates the card above
        assert WIDGET not in output["data"]
        assert output["data"]["text/plain"].splitlines()[1].split()[1] == "listed"
    run_ok(kernel, "%config NbRun.card = False")
    (output,) = run_ok(kernel, "%agentrun").outputs
    assert WIDGET not in output["data"]
    run_ok(kernel, "%config NbRun.card = True")


DRAWS_SLOWLY = """
from nbrun.ui.panel.panel import Panel

draw = Panel.draw
Panel.draw = lambda self: (time.sleep(0.5), draw(self))[1]
"""


@pytest.mark.parametrize("drawing", ["", DRAWS_SLOWLY], ids=["quickly", "slowly"])
def test_the_end_of_the_session_leaves_a_table_in_which_nothing_is_live(kernel: Kernel, drawing: str) -> None:
    """Unloading: the last state says so, the output is static, the widget is closed, the threads are gone.

    Also where a busy machine draws more slowly than a shutdown would wait for.
    """
    run_ok(kernel, drawing)
    run_ok(kernel, "%%agentrun endless -n final\nhi")
    wait_for_text(kernel, "final")
    panel = Panel(kernel)
    assert panel.runs["live"] == 1
    run_ok(kernel, "%unload_ext nbrun")
    kernel.wait_until(lambda: has_closed(kernel, panel.id))
    assert (panel.runs["is_over"], panel.runs["live"]) == (True, 0)
    assert panel.row("final")["status"] == "cancelled"
    data = updates(panel.cell)[-1]
    assert set(data) == STATIC_TABLE
    assert "Cancelled by unloading nbrun" in data["text/html"]
    assert "Was " not in data["text/plain"]
    assert value(kernel, "nbrun_threads_left()") == "[]"
    run_ok(kernel, "%load_ext nbrun")
    if drawing:
        run_ok(kernel, "Panel.draw = draw")
