"""Fixtures and order for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

BROWSER = Path(__file__).parent / "browser"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the browser's tests last: Playwright leaves an event loop running, and `asyncio.run` minds it."""
    items.sort(key=lambda item: item.path.is_relative_to(BROWSER))
