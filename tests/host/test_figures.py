"""pyplot's figures: each run has its own, which nobody else sees, and which are kept with it."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from nbrun import NotebookSession, Run, RunContext
from nbrun.core import events as ev
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def own_figures() -> Iterator[None]:
    """Begin and end without an open figure, as interactive as a notebook is, and without a window."""
    plt.switch_backend("agg")
    with plt.ion():
        yield
        plt.close("all")


def names(run: Run) -> list[str]:
    """Return the names of the run's artifacts when it has ended."""
    assert run.wait(BOUND_S)
    return [artifact.name for artifact in run.artifacts]


async def paints(prompt: str, run: RunContext) -> tuple[str, int]:
    """Draw step by step, as pyplot is meant to be used, and save what there is."""
    for at in range(3):
        plt.plot([at, 2, 3])
        await asyncio.sleep(0)
    plt.title(prompt)
    plt.savefig(buffer := io.BytesIO(), format="png")
    run.artifact("plot.png", buffer.getvalue())
    return plt.gca().get_title(), len(plt.gca().lines)


def paints_in_a_thread(prompt: str, run: RunContext) -> tuple[str, int]:
    """Do the same as a sync agent."""
    for at in range(3):
        plt.plot([at, 2, 3])
        run.sleep(0)
    plt.title(prompt)
    plt.savefig(buffer := io.BytesIO(), format="png")
    run.artifact("plot.png", buffer.getvalue())
    return plt.gca().get_title(), len(plt.gca().lines)


@pytest.mark.parametrize("agent", [paints, paints_in_a_thread])
def test_painters_and_a_cell_draw_into_their_own(session: NotebookSession, agent: object) -> None:
    """Four at once, beside a figure of the notebook's, which gets nobody's line and stays the current one."""
    figure, axes = plt.subplots()
    runs = [session.start(agent, name) for name in "abcd"]
    assert [names(run) for run in runs] == [["plot.png", "figure-1.png"]] * 4
    assert [run.output for run in runs] == [(name, 3) for name in "abcd"]
    assert len(axes.lines) == 0
    assert plt.get_fignums() == [figure.number]
    assert plt.gca() is axes
    assert all(run.artifacts[1].read().startswith(PNG) for run in runs)
    assert runs[0].artifacts[1].media_type == "image/png"


def test_a_cell_can_neither_see_nor_close_a_runs_figure(session: NotebookSession) -> None:
    """`plt.close("all")`, which the end of a cell calls, is for the notebook's figures."""
    drawn, go_on = threading.Event(), threading.Event()

    def paints_slowly(prompt: str) -> int:
        plt.plot([1, 2, 3])
        drawn.set()
        assert go_on.wait(BOUND_S)
        return len(plt.gca().lines)

    run = session.start(paints_slowly)
    assert drawn.wait(BOUND_S)
    assert plt.get_fignums() == []
    plt.close("all")
    go_on.set()
    assert run.result(BOUND_S) == 1
    assert names(run) == ["figure-1.png"]


def test_show_keeps_the_figures_and_closes_them(session: NotebookSession) -> None:
    """As in a cell, a later one begins anew; what is closed is not kept."""

    def paints_three(prompt: str) -> list[int]:
        plt.figure()
        plt.plot([1, 2, 3])
        plt.show()
        plt.figure()
        plt.close()
        plt.subplots()
        return plt.get_fignums()

    run = session.start(paints_three)
    assert names(run) == ["figure-1.png", "figure-2.png"]
    assert run.output == [1]


def test_the_figures_of_a_run_that_fails_or_is_cancelled_are_kept(make_session: MakeSession) -> None:
    """However it ends: they show how far it came. A cancelled run has its grace period for that."""
    session = make_session(cancel_grace_s=BOUND_S)

    async def fails(prompt: str) -> None:
        plt.plot([1, 2, 3])
        raise ValueError("no luck")

    async def waits(prompt: str, run: RunContext) -> None:
        plt.plot([1, 2, 3])
        run.phase("drawn")
        await asyncio.Event().wait()

    assert names(session.start(fails)) == ["figure-1.png"]
    run = session.start(waits)
    assert run.live is not None
    assert run.live.wait_until(lambda record: record.phase == "drawn", BOUND_S)
    run.cancel()
    assert names(run) == ["figure-1.png"]
    assert run.status == "cancelled"


def test_figures_that_a_cancel_has_cost_are_told(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where drawing takes longer than the grace period: the run ends, and its log says what it lacks."""
    begun = threading.Event()

    def saves_slowly(*_: object, **__: object) -> None:
        begun.set()
        assert released.wait(BOUND_S)

    released = threading.Event()
    monkeypatch.setattr(Figure, "savefig", saves_slowly)

    async def draws(prompt: str) -> None:
        plt.plot([1, 2, 3])

    run = session.start(draws)
    assert begun.wait(BOUND_S)
    run.cancel()
    assert run.wait(BOUND_S)
    released.set()
    logs = [event.data.text for event in run.events() if isinstance(event.data, ev.Log)]
    assert "figures were not kept: the run was cancelled" in logs


def test_a_figure_that_cannot_be_drawn_costs_a_warning(session: NotebookSession) -> None:
    """The run completes all the same, and the other figures are kept."""

    def paints_badly(prompt: str) -> str:
        plt.title("$\\frac{$")
        plt.figure()
        return "done"

    run = session.start(paints_badly)
    assert names(run) == ["figure-2.png"]
    assert run.output == "done"
    assert any("figure-1.png is not kept: ValueError" in warning for warning in run.record.notices)


def test_an_agent_never_opens_a_window(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the notebook's backend is: it belongs to the main thread."""
    backend = plt._get_backend_mod()
    monkeypatch.setattr(backend, "new_figure_manager", lambda *_, **__: pytest.fail("the notebook's backend"))

    def paints_once(prompt: str) -> str:
        return type(plt.figure().canvas).__module__

    assert session.start(paints_once).result(BOUND_S) == backend_agg.__name__
    assert mpl.get_backend() == "agg"


def test_an_agent_that_chooses_a_backend_leaves_the_notebooks_alone(session: NotebookSession) -> None:
    """As scripts do, so that no window opens."""
    plt.switch_backend("svg")

    def paints_without_a_window(prompt: str) -> str:
        mpl.use("pdf")
        plt.switch_backend("agg")
        return type(plt.figure().canvas).__module__

    run = session.start(paints_without_a_window)
    assert run.result(BOUND_S) == backend_agg.__name__
    assert mpl.get_backend() == "svg"
    assert names(run) == ["figure-1.png"]
