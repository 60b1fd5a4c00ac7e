"""The ES modules that widgets bring to a page."""

from __future__ import annotations

import re

import pytest

from nbrun.ui.cards.esm import STATIC, page_module

VIEWS = {
    "code.js": "initialize, render",
    "card.js": "initialize, render",
    "doctor.js": "render",
    "panel.js": "initialize: initializePanel, render: renderPanel",
    "set.js": "initialize: initializeSet, render: renderSet",
}


@pytest.mark.parametrize("name", VIEWS)
def test_module_stands_alone(name: str) -> None:
    """It imports nothing, has one export, and says no top-level name twice."""
    module = page_module(name)
    assert not re.search(r"^import ", module, re.MULTILINE)
    assert re.findall(r"^export .*", module, re.MULTILINE) == [f"export default {{ {VIEWS[name]} }};"]
    declared = r"^(?:async )?(?:function|const|let|class) (?:(\w+)|[\[{]([^\]}]*)[\]}] =)"
    found = re.findall(declared, module, re.MULTILINE)
    names = [name for one, several in found for name in re.findall(r"\w+", one or several)]
    assert names
    assert sorted(set(names)) == sorted(names)


def test_each_file_is_in_some_module() -> None:
    """No file of the folder is forgotten, and the code of the channels is in all modules."""
    modules = [page_module(name) for name in VIEWS]
    for path in STATIC.glob("*.js"):
        [*_, last] = re.findall(r"function (\w+)", path.read_text(encoding="utf-8")) or [""]
        assert any(f"function {last}(" in module for module in modules), path.name
    assert all("function sendBySocket(" in page_module(name) for name in VIEWS if name != "code.js")


def test_module_has_no_comments_for_its_readers() -> None:
    """What is sent to every page is code."""
    assert "\n/**" not in page_module("card.js")
