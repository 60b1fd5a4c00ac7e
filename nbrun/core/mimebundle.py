"""An output's rendering in Jupyter: reduced to what can be kept, and made safe to show again.

A kept bundle is JSON: `{"data": {MIME type: text}, "note": text}`, images as base64. It is not trusted when it is read:
Jupyter runs the scripts of whatever a cell displays, and a store may come from anywhere.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.core.quantities import size_words
from nbrun.core.text import clean_text, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TEXT, HTML, IMAGES = "text/plain", "text/html", ("image/png", "image/jpeg")
KINDS = (TEXT, HTML, *IMAGES)
"""What is kept. No SVG, Markdown, LaTeX or JavaScript: a page would run the scripts in them."""
LIMIT = 5_000_000
"""Bytes of a bundle; of a larger one only the text is kept."""
TEXT_LIMIT = 100_000

_SCHEMES = ("http://", "https://")
_INLINE = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "gif"))


def packed(data: Mapping[str, object], redact: Callable[[str], str]) -> bytes | None:
    """Return what is kept of a bundle; None if that is only a text, which the log has."""
    texts = {kind: text for kind in KINDS if (text := _text(kind, data.get(kind))) is not None}
    if not texts.keys() - {TEXT}:
        return None
    for kind in (TEXT, HTML):
        if kind in texts:
            texts[kind] = redact(texts[kind])
    if TEXT in texts:
        texts[TEXT] = texts[TEXT][:TEXT_LIMIT]
    note = ""
    size = sum(len(text.encode()) for text in texts.values())
    if size > LIMIT:
        note = f"{', '.join(texts.keys() - {TEXT})} of {size_words(size)}: too large to keep"
        texts = {TEXT: texts.get(TEXT, "")}
    return msgspec.json.encode({"data": texts, "note": note})


def _text(kind: str, value: object) -> str | None:
    if isinstance(value, bytes | bytearray) and kind in IMAGES:
        return base64.b64encode(value).decode()
    return clean_text(value) if isinstance(value, str) else None


def unpacked(blob: bytes) -> dict[str, str]:
    """Return a kept bundle as it can be shown: HTML without active content, and only valid images."""
    try:
        read: Any = msgspec.json.decode(blob)
        data, note = dict(read["data"]), str(read.get("note", ""))
    except (msgspec.DecodeError, RecursionError, TypeError, ValueError, KeyError, AttributeError):
        return {TEXT: "(the saved rendering of this output cannot be read)"}
    text = data.get(TEXT)
    lines = [text if isinstance(text, str) else "", f"({note})" if note else ""]
    shown = {TEXT: printable("\n".join(line for line in lines if line))}
    html = data.get(HTML)
    if isinstance(html, str) and html:
        shown[HTML] = safe_html(html)
    for kind in IMAGES:
        image = data.get(kind)
        if isinstance(image, str) and (clean := _image(image)) is not None:
            shown[kind] = clean
    return shown


def _image(text: str) -> str | None:
    """Return clean base64: pages write it into an attribute as it is."""
    try:
        return base64.b64encode(base64.b64decode("".join(text.split()), validate=True)).decode()
    except (binascii.Error, ValueError):
        return None


def safe_html(html: str) -> str:
    """Return HTML without scripts, styles, forms, ids and remote images, and with links to http(s) only."""
    import nh3  # with the first one

    clean = nh3.clean(
        html,
        attribute_filter=_attribute,
        url_schemes={"http", "https", "data"},
        link_rel="noopener noreferrer nofollow",
    )
    # The class keeps dollar signs from being set as formulas.
    return f'<div class="mathjax_ignore tex2jax_ignore">{clean}</div>'


def _attribute(tag: str, name: str, value: str) -> str | None:
    if name == "src":
        return value if value.startswith(_INLINE) else None
    if name in ("href", "cite"):
        return value if value.lower().startswith(_SCHEMES) else None
    return value
