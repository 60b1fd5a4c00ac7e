"""The language of the product: what was once said in a private dialect does not come back."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RETIRED = (
    "has it all",
    " without an answer`",
    "a word to the agent",
    "Leave them as they are",
    "Always in this run",
    "the time is over",
    "and ask for it no more",
    "this is no JSON",
    "in line, 8 runs",
    "runs are under way",
    "queued behind run",
    "No longer followed",
    "Not followed any more",
    "is not followed any more",
    "Was running when this was saved",
    "tells how it ended",
    "goes on from its last checkpoint",
    "→ and returned",
    "Copy Python",
    "is not in the running kernel",
    "The kernel has not answered yet",
    "Say something to the agent",
    "The browser did not allow it",
    "by you before it began",
    "no run is live: nothing to wait for",
    "the message was sent, read",
    "is no length of time",
    "is too short; give a time above zero",
    "cannot be run: it wants",
    "give a name that Python takes for a variable",
    "is no option of it",
    "is here already; name another file",
    "nobody reads what is said to it",
    "is of this kernel; cancel it",
    "It knows:",
    "(mend:",
    "no native cancel: its task is cancelled",
    "mend that; it is saved",
    "in a table that lives",
    "on whose loop:",
)
"""A piece of each string that was replaced, as it was."""


def product_files() -> list[Path]:
    """Return what a user may read: the package, the README, the changelog and the guide."""
    files = [path for kind in ("*.py", "*.js") for path in (ROOT / "nbrun").rglob(kind)]
    return [*files, ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "notebooks").rglob("*.md")]


@pytest.mark.parametrize("words", RETIRED)
def test_a_retired_string_is_nowhere(words: str) -> None:
    """None of the replaced strings is left, in code, comments or documentation."""
    found = [str(p.relative_to(ROOT)) for p in product_files() if words in p.read_text("utf-8")]
    assert found == []
