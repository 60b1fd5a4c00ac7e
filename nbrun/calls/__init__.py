"""Knows every model call that a run makes, whatever code makes it: counts, limits and closes it.

The providers' packages share one seam, the HTTP client, so its transports are changed while nbrun is loaded. A request
outside of a run passes through them untouched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nbrun.calls.governor import GOVERNOR, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CLIENTS", "GOVERNOR", "Limits", "instrument"]

CLIENTS = {
    "httpx": "transports",
    "httpx2": "transports",  # its successor, with the same classes
    "aiohttp": "aiohttp",
    "urllib3": "urllib3",  # below requests
}
"""The packages that can be changed, and the module of this room that does it."""


def instrument(package: Any) -> Callable[[], None]:
    """Have a package report the calls of runs; return what undoes it."""
    changes = importlib.import_module(f"nbrun.calls.{CLIENTS[package.__name__]}")  # with the first such package
    undo: Callable[[], None] = changes.instrument(package)
    return undo
