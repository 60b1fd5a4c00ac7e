"""Asks axe what in a page shuts people out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCRIPT = Path(__file__).parents[1] / "js" / "node_modules" / "axe-core" / "axe.min.js"
MEND = "axe is missing: python -m tests js installs it"

_RUN = """async (selector) => {
  const { violations } = await axe.run(selector, { resultTypes: ["violations"] });
  return violations.flatMap(({ id, help, nodes }) => nodes.map(({ html }) => `${id}: ${help}: ${html}`));
}"""


def violations(page: Page, selector: str) -> list[str]:
    """Return each rule that a part of the page breaks, with the node that does; the page's clock has to run."""
    assert SCRIPT.is_file(), MEND
    if not page.evaluate("() => 'axe' in window"):
        page.add_script_tag(path=SCRIPT)
    found: list[str] = page.evaluate(_RUN, selector)
    return found
