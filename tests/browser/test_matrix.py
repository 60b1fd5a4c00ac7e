"""The click matrix: Cancel is clicked in Lab and in Notebook 7, on every ipykernel, whatever the main thread does.

`pytest -m matrix tests/browser` clicks through all of it; an ordinary run through a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser

from tests import kernels
from tests.browser.clicks import CELLS, MANY, STATES, ClickPage, Row
from tests.browser.conftest import CLICKS
from tests.browser.lab import LabNotebook, LabServer
from tests.browser.notebook7 import Notebook7

FRONT_ENDS: dict[str, type[LabNotebook]] = {"Lab": LabNotebook, "Notebook 7": Notebook7}
ALL = [(front_end, version) for front_end in FRONT_ENDS for version in kernels.VERSIONS]
ORDINARY = [page for page in ALL if page[0] == "Lab" or page[1] == kernels.NEWEST]

# Where Lab has a subshell for widgets and the kernel's replies leave it in use: elsewhere a widget's message
# waits for the cell's end. (7.4 replies to a click in the shell that it last sent from.)
COMM_PASSES_A_CELL = ("7.3",)

Note = Callable[[Row], None]


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest, browser: Browser, lab: LabServer) -> Iterator[ClickPage]:
    """One notebook for all clicks of a front end and an ipykernel."""
    front_end, version = request.param
    with lab.open(browser, CELLS, kernel_name=version, page=FRONT_ENDS[front_end]) as notebook:
        yield ClickPage(notebook, f"{front_end}, ipykernel {version}", version)


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    """Keeps what clicks have taken; it is shown at the end of the session."""
    return lambda row: record_property(CLICKS, (row.title, row.seconds))


def pages(params: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """Run a test in each of these front ends and kernels, with one notebook open at a time."""
    ids = ["-".join(param).replace(" ", "") for param in params]
    return pytest.mark.parametrize("page", params, ids=ids, indirect=True)


@pages(ORDINARY)
@pytest.mark.parametrize("state", STATES)
def test_a_click_is_heard_before_the_cell_ends(page: ClickPage, note: Note, state: str) -> None:
    """The agent's token fires, and the card says so, while the main thread is as it was at the click."""
    page.show()
    with page.busy(state):
        page.click()
        page.expect_cancelled()
    row = page.row(state)
    note(row)
    assert len(row.seconds) == 1


@pytest.mark.matrix
@pages(ALL)
@pytest.mark.parametrize("state", STATES)
def test_every_click_is_heard_before_the_cell_ends(page: ClickPage, note: Note, state: str) -> None:
    """The same for many clicks in a row, each on the card of another run."""
    page.show(MANY)
    with page.busy(state):
        page.click()
        page.expect_cancelled(MANY)
    row = page.row(state)
    note(row)
    assert len(row.seconds) == MANY


@pages(ORDINARY)
def test_the_control_channel_alone_passes_a_blocked_cell(page: ClickPage) -> None:
    """With the widget's message lost, Cancel is heard during `time.sleep` on every ipykernel."""
    page.show(closed=["comm"])
    with page.busy("sleep"):
        page.click()
        page.expect_cancelled()
    assert page.lost == ["comm"]
    assert page.sockets == []  # by the page's own connection


@pages(ORDINARY)
def test_a_websocket_alone_passes_a_blocked_cell(page: ClickPage) -> None:
    """Where the page's kernel has no control messages either, the card opens the channel itself."""
    page.show(closed=["comm", "method"])
    with page.busy("sleep"):
        page.click()
        page.expect_cancelled()
    assert page.lost == ["comm"]
    (address,) = page.sockets
    assert "/channels?session_id=" in address


@pages(ORDINARY)
def test_the_widgets_message_alone_reaches_an_idle_kernel(page: ClickPage) -> None:
    """With the request on the control channel lost, Cancel is heard as any widget's click is."""
    page.show(closed=["control"])
    page.click()
    page.expect_cancelled()
    assert page.lost == ["control"]
    assert page.sockets == []


@pages(ORDINARY)
def test_the_widgets_message_alone_is_heard_at_the_cells_end_at_the_latest(page: ClickPage) -> None:
    """During `time.sleep` it passes where widgets have a subshell; else the card says that it waits."""
    page.show(closed=["control"])
    with page.busy("sleep"):
        page.click()
        if page.version in COMM_PASSES_A_CELL:
            page.expect_cancelled()
        else:
            page.expect_told()
    page.expect_cancelled()
    assert page.lost == ["control"]
