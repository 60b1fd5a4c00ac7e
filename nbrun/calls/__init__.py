"""Knows every model call that a run makes, whatever code makes it: counts, limits and closes it.

The providers' packages share one seam, the HTTP client, so its transports are changed while nbrun is loaded. A request
outside of a run passes through them untouched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbrun.calls import aiohttp, transports, urllib3
from nbrun.calls.governor import GOVERNOR, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CLIENTS", "GOVERNOR", "Limits", "instrument"]

CLIENTS: dict[str, Callable[[Any], Callable[[], None]]] = {
    "httpx": transports.instrument,
    "httpx2": transports.instrument,  # its successor, with the same classes
    "aiohttp": aiohttp.instrument,
    "urllib3": urllib3.instrument,  # below requests
}
"""The packages that can be changed."""


def instrument(package: Any) -> Callable[[], None]:
    """Have a package report the calls of runs; return what undoes it."""
    return CLIENTS[package.__name__](package)
