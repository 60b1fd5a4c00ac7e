"""The harness page, driven: a card with a fake model in place of Jupyter."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

HERE = Path(__file__).parent
STATIC = HERE.parents[1] / "nbrun" / "ui" / "static"
NOW = 1_800_000_000.0  # the kernel's clock and the page's, unless a test sets them apart


class StaticFiles(SimpleHTTPRequestHandler):
    """Serves the harness at / and the shipped files at /static/."""

    def translate_path(self, path: str) -> str:
        """Return the file for a request path; nothing else on this machine is reachable."""
        name = Path(path.split("?")[0]).name or "index.html"
        return str((STATIC if path.startswith("/static/") else HERE / "harness") / name)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""


@contextmanager
def serve() -> Iterator[str]:
    """Serve the harness page on loopback; gives its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), StaticFiles) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join(timeout=5)


class CardPage:
    """A page with one card, at a clock that only the test moves."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.clock.install(time=NOW)

    def open(self, run: dict[str, Any], *, channels: str = "kernel", theme: str = "light") -> None:
        """Load the harness, stop its clock and show the run."""
        self.page.goto(f"{self.address}?theme={theme}")
        self.page.wait_for_function("() => window.harness")
        self.page.clock.pause_at(NOW + 60)
        self.page.clock.set_system_time(NOW)
        self.page.evaluate("([run, channels]) => harness.mount(run, channels)", [run, channels])

    def update(self, **fields: Any) -> None:
        """Send a new state and let the page paint it."""
        self.page.evaluate("(fields) => harness.update(fields)", fields)
        self.pass_ms(20)

    def show(self, run: dict[str, Any]) -> None:
        """Put a card of another run in the place of this one."""
        self.page.evaluate("(run) => { harness.cleanup(); harness.mount(run) }", run)

    def reply(self, outcome: str) -> None:
        """Let the kernel answer the latest click, and the page paint that."""
        self.page.evaluate("(outcome) => harness.reply(outcome)", outcome)
        self.pass_ms(20)

    def pass_ms(self, ms: int) -> None:
        """Move the page's clock; timers and animation frames that fall due are run."""
        self.page.clock.run_for(ms)

    def part(self, name: str) -> Locator:
        """Return the card's element of that name."""
        return self.page.locator(f".nbrun-card__{name}")

    @property
    def cancel(self) -> Locator:
        """The button, however it is labelled now."""
        return self.part("cancel")

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.page.evaluate(f"() => {expression}")
