"""Amounts: written one way everywhere, and read back."""

from __future__ import annotations

import math

import pytest

from nbrun.core.errors import BadOption
from nbrun.core.quantities import counted, date_and_time, moment, money, size_bytes, size_words


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (None, ""), (0.0, "$0.00"), (0.5, "$0.50"), (12, "$12.00"), (1234.5, "$1,234.50"), (0.000012, "$0.000012"),
        (1e-9, "< $0.000001"), (0.001234, "$0.001234"), (2.001, "$2.001"), (12345.678, "$12,345.68"),
        (math.nan, ""), (math.inf, ""), (-1.0, ""),
    ],
)  # fmt: skip
def test_money_has_cents_and_more_places_where_they_matter(amount: float | None, words: str) -> None:
    """What is no amount, in another's file, is not shown."""
    assert money(amount) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (980, "980 B"), (1_500, "1.5 kB"), (2_000_000, "2 MB"), (999_999, "1 MB"), (2_147_483_648, "2.1 GB"),
     (5e12, "5,000 GB")],
)  # fmt: skip
def test_sizes_are_decimal(count: float, words: str) -> None:
    """As disks are sold, in at most one decimal."""
    assert size_words(count) == words


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("500M", 500_000_000), ("1.5 kB", 1_500), ("2g", 2_000_000_000), ("2GiB", 2 * 1024**3)],
)
def test_sizes_are_read_as_they_are_written(text: str, count: int) -> None:
    """Decimal, unless `i` says that it is binary."""
    assert size_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "-1", "1X"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """With an example of one."""
    with pytest.raises(BadOption, match="isn't a size; use for example 500M"):
        size_bytes(text)


def test_counts_and_times() -> None:
    """A noun in its number; a time that no calendar has is shown as it is."""
    assert (counted(1, "run"), counted(1_204, "run")) == ("1 run", "1,204 runs")
    assert moment(1e300) == "1e+300"
    assert date_and_time(0.0).split(",")[0] in ("1 Jan 1970", "31 Dec 1969")
