"""Knows every model call that a run makes, whatever code makes it: counts, limits and closes it.

The providers' packages share one seam, the HTTP client, so its transports are changed while nbrun is loaded. A request
outside of a run passes through them untouched.
"""

from __future__ import annotations

from nbrun.calls.transports import CLIENTS, instrument

__all__ = ["CLIENTS", "instrument"]
