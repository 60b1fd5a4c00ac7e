"""The runs panel in a real Chromium, with a fake model in place of Jupyter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.test_card import HOSTILE, NOW, SCREENSHOTS, CardPage, make_run
from tests.browser.test_card import address as address  # a fixture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator

WORDS = {
    "queued": "Queued: 1st in line, 8 runs are under way",
    "running": "Running",
    "waiting": "Waiting for you",
    "cancelling": "Cancelling… (asking the agent)",
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Cancelled by you after 12 s",
    "lost": "Lost: its kernel died",
}
LIVE = {"queued", "running", "waiting", "cancelling"}
MAX_NODES = 2_000


def make_row(number: int, status: str = "completed", **fields: Any) -> dict[str, Any]:
    """Return what the kernel sends of a run, which began 12 s ago."""
    is_live = status in LIVE
    row = {
        "key": f"session-id/run-{number}",
        "id": f"run-{number}",
        "number": number,
        "name": f"chapter {number}",
        "agent": "openai:gpt-5-mini",
        "status": status,
        "words": WORDS[status],
        "live": is_live,
        "own": True,
        "created_at": NOW - 14,
        "started_at": None if status == "queued" else NOW - 12,
        "ended_at": None if is_live else NOW - 3,
        "usage": {"input_tokens": 1204, "output_tokens": 340, "exact": True, "cost_usd": 0.0123},
    }
    return row | fields


def make_runs(rows: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Return what the kernel sends of a panel with these rows."""
    runs = {
        "id": "panel-id",
        "rows": rows,
        "live": sum(row["live"] for row in rows),
        "stored": 1204,
        "status": "",
        "text": "",
        "page": 50,
        "has_more": False,
        "has_newer": False,
        "open": "",
        "answered": "",
        "problem": "",
        "is_over": False,
        "is_stale": False,
        "now": NOW,
    }
    return runs | fields


class PanelPage(CardPage):
    """A page with one panel, at a clock that only the test moves."""

    def open_panel(
        self, runs: dict[str, Any], run: dict[str, Any] | None = None, theme: str = "light"
    ) -> None:
        """Load the harness, stop its clock and show the panel, with the card of an open run."""
        self.page.goto(f"{self.address}?theme={theme}")
        self.page.wait_for_function("() => window.harness")
        self.page.clock.pause_at(NOW + 60)
        self.page.clock.set_system_time(NOW)
        self.page.evaluate(
            "([runs, run]) => harness.mountPanel(runs, run)", [runs, {} if run is None else run]
        )

    def update_panel(self, run: dict[str, Any] | None = None, **fields: Any) -> None:
        """Send a new state and let the page paint it."""
        self.page.evaluate("([fields, run]) => harness.updatePanel(fields, run)", [fields, run])
        self.pass_ms(20)

    def row(self, number: int) -> Locator:
        """Return the row of a run."""
        return self.page.locator(f'tr[data-key="session-id/run-{number}"]')

    def piece(self, name: str) -> Locator:
        """Return the panel's element of that name."""
        return self.page.locator(f".nbrun-panel__{name}")

    @property
    def asked(self) -> list[dict[str, Any]]:
        """What the page has sent by widget message, without the nonces."""
        sent = self.ask("harness.model.sent")
        return [{k: v for k, v in one.items() if k not in ("nonce", "session_id")} for one in sent]

    def answer(self, outcome: str = "sent") -> str:
        """Let the kernel answer the latest request; return its nonce."""
        self.reply(outcome)
        return str(self.ask("harness.model.sent.at(-1).nonce"))


@pytest.fixture
def panel(browser: Browser, address: str) -> Iterator[PanelPage]:
    """A fresh page; a test that leaves an error in its console has failed."""
    page = browser.new_page()
    panel = PanelPage(page, address)
    yield panel
    page.close()
    assert panel.complaints == []


ALL_STATUSES = [make_row(20 - at, status) for at, status in enumerate(WORDS)]
OPEN_RUN = make_run(
    id="run-19", number=19, name="chapter 19", text="Once upon a time there was a comet.",
    tools=[{"id": "a", "name": "search", "args": '{"q": "comets"}', "status": "ok", "ms": 140, "result": "5 hits"}],
)  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark", "none"])
def test_pictures(panel: PanelPage, theme: str) -> None:
    """Pictures for people to look at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    rows = [
        *ALL_STATUSES,
        make_row(11, name="a very long name of a run that somebody has given " * 2),
    ]
    for width in (1000, 640, 320):
        panel.page.set_viewport_size({"width": width, "height": 900})
        runs = make_runs(rows, open="session-id/run-19", has_more=True)
        panel.open_panel(runs, OPEN_RUN, theme=theme)
        panel.page.screenshot(path=SCREENSHOTS / f"panel-{theme}-{width}.png", full_page=True)
        assert panel.ask("document.documentElement.scrollWidth <= innerWidth")
