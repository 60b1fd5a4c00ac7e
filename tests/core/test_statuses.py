"""Each place that lists the statuses of a run has all of them: what a new status has to be added to."""

from __future__ import annotations

import re
from pathlib import Path

import nbrun
from nbrun import RunStatus
from nbrun.core.record import LIVE, TERMINAL, TRANSITIONS
from nbrun.render.static_card import STILL
from nbrun.store import schema

STATIC = Path(nbrun.__file__).parent / "ui" / "static"


def test_every_status_is_live_or_an_end() -> None:
    """And each live one has its transitions."""
    assert {*LIVE, *TERMINAL} == {*RunStatus}
    assert {*TRANSITIONS} >= {*LIVE}


def test_the_index_of_live_runs_has_every_live_status() -> None:
    """Another one is another version of the schema: without its word in the index, such runs are not found."""
    (index,) = (text for version in schema.VERSIONS for text in version if "runs_by_status" in text)
    assert f"status IN ({schema.LIVE_STATUSES})" in index


def test_a_saved_card_says_what_a_live_run_still_does() -> None:
    """A notebook that is opened again shows no moment of the past as if it were now."""
    assert {*STILL} == {*LIVE}


def test_the_panel_filters_by_every_status_and_the_card_has_a_colour_for_each() -> None:
    """Live ones first, then the ends; a status without a colour would look like no status."""
    panel = (STATIC / "panel.js").read_text(encoding="utf-8")
    choices = [re.findall(r'"(\w+)"', line) for line in re.findall(r"(?:LIVE|ENDED)_CHOICES = \[(.*?)\]", panel)]
    assert choices[0] == ["live", *LIVE]
    assert {*choices[1]} == {*map(str, TERMINAL)}
    colours = (STATIC / "card.css").read_text(encoding="utf-8")
    missing = [status for status in RunStatus if f"={status}]" not in colours.replace('"', "")]
    assert missing == []
