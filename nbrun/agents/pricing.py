"""What tokens cost, for frameworks that report a model and its usage but no price: offline, from genai-prices."""

from __future__ import annotations

import time
from bisect import bisect_left
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal


class _Rates(NamedTuple):
    """What a model costs, in US dollars: a request, and a token of each kind."""

    request: Decimal
    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal


def cost_usd(
    model: str,
    *,
    provider: str = "",
    input_tokens: int = 0,
    output_tokens: int = 0,
    cache_read_tokens: int = 0,
    cache_write_tokens: int = 0,
) -> float | None:
    """Return what a model call costs, in US dollars; None if its price is unknown.

    The first time this imports the table of prices, which takes 0.2 s: call it after the model call. `model` is its
    provider's name for it, `provider:name` or `provider/name`; an empty `provider` is taken from it. `input_tokens`
    include those read from a cache and those written to it.
    """
    try:
        starts, tiers = _find_tiers(model, provider, int(time.time() // 60))
    except ImportError:  # the table comes with pydantic-ai
        return None
    plain_tokens = input_tokens - cache_read_tokens - cache_write_tokens
    if not tiers or min(plain_tokens, output_tokens, cache_read_tokens, cache_write_tokens) < 0:
        return None
    rates = tiers[bisect_left(starts, input_tokens)]
    counts = plain_tokens, output_tokens, cache_read_tokens, cache_write_tokens
    return float(sum((rate * count for rate, count in zip(rates[1:], counts, strict=True)), rates.request))


@lru_cache(256)
def _find_tiers(model: str, provider: str, _minute: int) -> tuple[list[int], list[_Rates]]:
    """Return the numbers of input tokens above which other rates apply, and all the rates; none if they are unknown.

    Source: genai-prices takes 80 us to price a call. A price may depend on the hour, and its table may be updated, so
    what is found here is used for a minute.
    """
    from genai_prices import Usage, calc_price
    from genai_prices.types import TieredPrices

    for name, whose in _references(model, provider):

        def price(name: str = name, whose: str | None = whose, **tokens: int) -> Any:
            return calc_price(Usage(**tokens), name, provider_id=whose)

        try:
            prices = vars(price().model_price).values()
            starts = sorted({tier.start for one in prices if isinstance(one, TieredPrices) for tier in one.tiers})
            return starts, [_find_rates(price, start + 1) for start in (0, *starts)]
        except (LookupError, ValueError):  # the table has no price for this model
            continue
    return [], []


def _find_rates(price: Callable[..., Any], count: int) -> _Rates:
    """Return the rates of requests with `count` input tokens; `price` is of a request with tokens of some kinds."""
    nothing, plain, read, written, both = (
        price(**dict.fromkeys(kinds, count)).total_price
        for kinds in (
            (),
            ("input_tokens",),
            ("input_tokens", "cache_read_tokens"),
            ("input_tokens", "cache_write_tokens"),
            ("input_tokens", "output_tokens"),
        )
    )
    rates = (plain - nothing, both - plain, read - nothing, written - nothing)
    return _Rates(nothing, *(rate / count for rate in rates))


def _references(model: str, provider: str) -> list[tuple[str, str | None]]:
    """Return the names under which to look it up, best first; never another provider's model of the same name."""
    found: list[tuple[str, str | None]] = []
    if provider:
        found.append((model, provider))
    for mark in (":", "/"):
        prefix, is_marked, name = model.partition(mark)
        if is_marked and name:
            found.append((name, prefix))
    return found or [(model, None)]
