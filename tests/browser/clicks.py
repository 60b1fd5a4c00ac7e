"""A notebook in which Cancel is clicked while the main thread is busy, and what each click took."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from playwright.sync_api import Locator, expect

from tests.browser.lab import LabNotebook

MANY = 8  # as many runs as a session drives at once

_SETUP = """%load_ext nbrun
import asyncio, json, time
import nbrun
fired = {}
batch = 0
async def waits(prompt, run):
    run.token.add_callback(lambda _request: fired.setdefault(prompt, time.time()))
    run.text('begun')
    await asyncio.Event().wait()
def show(count):
    global batch
    nbrun.session().cancel_all()  # what an earlier test has left
    batch += 1
    for n in range(count):
        name = f'{batch}.{n}'
        nbrun.start(waits, name, name=name).display()
"""
_BUSY = {
    # In steps: CPython notes a signal that comes just before the system call, and sleeps to the end all the same.
    "sleep": "print('in', batch, flush=True)\nfor _ in range(60): time.sleep(1)",
    "loop": ("print('in', batch, flush=True)\nuntil = time.monotonic() + 60\nwhile time.monotonic() < until: pass"),
    # In steps, since an interrupt of an `await` acts only when the loop next wakes.
    "await": "print('in', batch, flush=True)\nfor _ in range(600): await asyncio.sleep(0.1)",
}
STATES = ("idle", *_BUSY)
CELLS = (_SETUP, "show(1)", f"show({MANY})", "print(json.dumps(fired))", *_BUSY.values())
_SETUP_AT, _SHOW_ONE_AT, _SHOW_MANY_AT, _FIRED_AT, _BUSY_AT = range(5)

_NOTE_CLICKS = """() => {
    window.clicks = {};
    const note = (event) => {
        const card = event.target.closest?.(".nbrun-card__cancel")?.closest(".nbrun-card");
        if (card) window.clicks[card.getAttribute("aria-label").replace("Run ", "")] = Date.now() / 1000;
    };
    document.addEventListener("click", note, true);
}"""

# The kernel connection is the page's own: closed is closed for the card, and for nobody else.
_CLOSE_ROADS = """(closed) => {
    const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
    delete kernel.sendShellMessage;
    delete kernel.sendControlMessage;
    window.lost = [];
    const close = (method, channel, isClick) => {
        const send = kernel[method];
        kernel[method] = (message, ...rest) => {
            if (!isClick(message)) return send.call(kernel, message, ...rest);
            window.lost.push(channel);
            return { msg: message, dispose() {} };
        };
    };
    if (closed.includes("comm"))
        close("sendShellMessage", "comm", ({ content }) => content.data?.content?.op === "cancel");
    if (closed.includes("control"))
        close("sendControlMessage", "control", ({ header }) => header.msg_type === "nbrun_request");
    if (closed.includes("method")) kernel.sendControlMessage = undefined;
}"""


@dataclass(frozen=True, slots=True)
class Row:
    """What the clicks of one row of the matrix took, from the click in the page to the agent's token."""

    title: str
    seconds: tuple[float, ...]

    def __str__(self) -> str:
        p50, most = (1000 * take(self.seconds) for take in (statistics.median, max))
        return f"{self.title:<36} {len(self.seconds):>4} {p50:>8.0f} {most:>8.0f}"


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table: a row each, and all of them together."""
    head = f"{'':<36} {'n':>4} {'p50, ms':>8} {'max, ms':>8}"
    total = Row("all", tuple(seconds for row in rows for seconds in row.seconds))
    return [head, *map(str, rows), str(total)]


class ClickPage:
    """One open notebook for many clicks on Cancel, each on a run of its own."""

    def __init__(self, notebook: LabNotebook, title: str, version: str) -> None:
        self.title = title
        self.version = version
        """The kernel's ipykernel, such as "6.30"."""
        self.sockets: list[str] = []
        """The addresses of the websockets that the page has opened since the last batch was shown."""
        self._notebook = notebook
        self._page = notebook.page
        self._batch = self._count = 0
        self._cards = notebook.output(_SHOW_ONE_AT)
        notebook.page.on("websocket", lambda socket: self.sockets.append(socket.url))
        notebook.run_and_wait(_SETUP_AT)
        self._page.evaluate(_NOTE_CLICKS)

    def show(self, count: int = 1, *, closed: Sequence[str] = ()) -> None:
        """Start runs and show their cards; `closed` channels then lose every click.

        Parameters
        ----------
        closed
            Of `comm` (the widget's message), `control` (the page's control channel) and `method` (that
            channel is none of the page's, so the card opens a websocket).
        """
        at = _SHOW_ONE_AT if count == 1 else _SHOW_MANY_AT
        self._batch += 1
        self._count = count
        self._cards = self._notebook.output(at)
        self._notebook.run_and_wait(at)
        shown = self._cards.locator(".nbrun-card").get_by_text("begun", exact=True)
        expect(shown).to_have_count(count)  # each stands in its static card, which says the same
        self._page.evaluate(_CLOSE_ROADS, list(closed))
        self.sockets.clear()

    @contextmanager
    def busy(self, state: str) -> Iterator[None]:
        """Keep the main thread in this state meanwhile; afterwards it is idle, by an interrupt."""
        if state == "idle":
            yield
            return
        at = _BUSY_AT + list(_BUSY).index(state)
        self._notebook.run_cell(at)
        try:
            expect(self._notebook.output(at)).to_contain_text(f"in {self._batch}")
            yield
            expect(self._notebook.prompt(at)).to_have_text("[*]:")  # all before the cell's end
        finally:
            self._notebook.interrupt()
            self._notebook.wait_cell(at)

    def click(self) -> None:
        """Click on the Cancel of every card, one after the other."""
        button = self._cards.get_by_role("button", name="Cancel", exact=True)
        for _ in range(self._count):  # not as many as there are: while a card is drawn in its place, there is none
            button.first.click()

    def expect_cancelled(self, count: int = 1) -> None:
        """Wait until every card says that its run is cancelled."""
        expect(self._said("Cancelled by you")).to_have_count(count)

    def expect_told(self) -> None:
        """Wait until the card says how it stands: cancelled, or that the kernel has not answered."""
        expect(self._cards).to_contain_text(re.compile("Cancelled by you|No answer from the kernel yet"))

    @property
    def lost(self) -> list[str]:
        """The closed channels by which a click was sent since the last batch was shown."""
        lost: list[str] = self._page.evaluate("() => window.lost")
        return lost

    def row(self, state: str) -> Row:
        """Return what the clicks of the last batch took; runs a cell."""
        self._notebook.run_and_wait(_FIRED_AT)
        fired = json.loads(self._notebook.outputs(_FIRED_AT)[0])
        clicks: dict[str, float] = self._page.evaluate("() => window.clicks")
        names = [name for name in clicks if name.startswith(f"{self._batch}.")]
        return Row(f"{self.title}, {state}", tuple(fired[name] - clicks[name] for name in names))

    def _said(self, words: str) -> Locator:
        # Live or static: a card's head says it once; a live card lies over its static one.
        return self._cards.locator(".nbrun-card__words, .nbrun-static").filter(has_text=words, visible=True)
