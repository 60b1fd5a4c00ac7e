"""The page's side of a widget: its JavaScript files as the one ES module that a widget has to be."""

from __future__ import annotations

import re
from pathlib import Path

STATIC = Path(__file__).parents[1] / "static"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+\.js)";\n', re.MULTILINE)
_COMMENT = re.compile(r"^ */\*\*.*?\*/\n", re.MULTILINE | re.DOTALL)
_EXPORT = re.compile(r"^export (?!default )", re.MULTILINE)
_VIEW = re.compile(r"^export default .*;\n", re.MULTILINE)


def page_module(name: str) -> str:
    """Return the file `name` of the folder `static` with what it imports in front of it, once each.

    The files share one scope in the end, so their top-level names differ from one another. Comments are left out:
    it is sent to every page.
    """
    texts: dict[str, str] = {}
    _collect(name, texts)
    parts = [_VIEW.sub("", text) for text in texts.values()]  # a view that another one has in it
    return "\n".join([*parts[:-1], texts[name]])


def page_style(*names: str) -> str:
    """Return these style sheets of the folder `static` as one."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)


def _collect(name: str, texts: dict[str, str]) -> None:
    if name in texts:
        return
    text = (STATIC / name).read_text(encoding="utf-8")
    for needed in _IMPORT.findall(text):
        _collect(needed, texts)
    texts[name] = _COMMENT.sub("", _EXPORT.sub("", _IMPORT.sub("", text)))
