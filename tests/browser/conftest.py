"""A browser and a JupyterLab server for the whole session, a picture of every page that a test fails on."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

from tests.browser import card_page, chromium
from tests.browser.card_page import CardPage
from tests.browser.clicks import Row, table
from tests.browser.lab import LabNotebook, LabServer, Source

SCREENSHOTS = Path(__file__).parent / "screenshots"
CLICKS = "clicks"  # the property of a test that holds what its clicks took
_open = ExitStack()  # Playwright and the browser
TIMEOUT_S = 180  # a journey through Lab takes 30 to 60 seconds on a busy machine with two cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time, unless they set their own."""
    for item in items:
        is_here = item.path.is_relative_to(Path(__file__).parent)
        if is_here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """Stop Playwright when a worker goes on with other tests: it leaves an event loop running."""
    try:
        return (yield)
    finally:
        if nextitem is not None and not nextitem.path.is_relative_to(Path(__file__).parent):
            _open.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Take the pictures while the pages of the failed test are still open."""
    report = yield
    browser = getattr(item, "funcargs", {}).get("browser")
    if report.failed and call.when != "teardown" and isinstance(browser, Browser):
        for path in _take_screenshots(browser, item.nodeid):
            report.sections.append(("screenshot", str(path)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show how long a click on Cancel took to the agent's token."""
    reports = terminalreporter.getreports("passed")
    properties = [each for report in reports for each in report.user_properties]
    rows = [Row(title, tuple(seconds)) for name, (title, seconds) in properties if name == CLICKS]
    if rows:
        terminalreporter.section("click on Cancel to the agent's token")
        for line in table(rows):
            terminalreporter.write_line(line)


def _take_screenshots(browser: Browser, name: str) -> Iterator[Path]:
    SCREENSHOTS.mkdir(exist_ok=True)
    pages = [page for context in browser.contexts for page in context.pages]
    for number, page in enumerate(pages):
        path = SCREENSHOTS / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{number}.png"
        try:
            page.screenshot(path=path, timeout=5_000)
        except Error as error:  # a crashed page: the test's own failure says more
            path = path.with_suffix(".txt")
            path.write_text(str(error), encoding="utf-8")
        yield path


@pytest.fixture(scope="session")
def chromium_path() -> Path:
    """The Chromium to test in; installed if it was not there. There is no skipping."""
    return chromium.find_quick()


@pytest.fixture(scope="session")
def browser(chromium_path: Path) -> Iterator[Browser]:
    """One headless Chromium; a test takes a context of its own from it."""
    with _open:
        playwright = _open.enter_context(sync_playwright())
        launch = playwright.chromium.launch
        yield _open.enter_context(launch(executable_path=chromium_path, headless=True, args=list(chromium.ARGS)))


@pytest.fixture(scope="session")
def harness() -> Iterator[str]:
    """The address of the harness page, on loopback."""
    with card_page.serve() as address:
        yield address


@pytest.fixture
def card(browser: Browser, harness: str) -> Iterator[CardPage]:
    """A fresh page; a test that leaves an error in its console has failed."""
    page = browser.new_page()
    card = CardPage(page, harness)
    yield card
    page.close()
    assert card.complaints == []


@pytest.fixture
def whole_browser_card(browser: Browser, harness: str) -> Iterator[CardPage]:
    """The same in a whole Chromium, which also shows notifications."""
    path = chromium.find_or_install()
    with browser.browser_type.launch(executable_path=path, headless=True, args=list(chromium.ARGS)) as whole:
        card = CardPage(whole.new_page(), harness)
        yield card
        assert card.complaints == []


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """One JupyterLab server on a loopback port, with settings of its own; ended at the end of the session."""
    with LabServer(tmp_path_factory.mktemp("lab"), keeps_pages=True) as server:
        yield server


@pytest.fixture
def open_notebook(browser: Browser, lab: LabServer) -> Iterator[Callable[..., LabNotebook]]:
    """Open notebooks in Lab; arguments as in `LabServer.open`."""
    with ExitStack() as stack:

        def open_one(source: Source, *, kernel_name: str = "python3") -> LabNotebook:
            return stack.enter_context(lab.open(browser, source, kernel_name=kernel_name))

        yield open_one
