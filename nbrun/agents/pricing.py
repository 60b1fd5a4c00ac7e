"""What tokens cost, for frameworks that report a model and its usage but no price: offline, from genai-prices."""

from __future__ import annotations


def cost_usd(
    model: str, *, provider: str = "", input_tokens: int = 0, output_tokens: int = 0, cache_read_tokens: int = 0
) -> float | None:
    """Return what a model call costs, in US dollars; None if its price is unknown.

    The first time this imports the table of prices, which takes 0.2 s: call it after the model call. `model` is its
    provider's name for it, `provider:name` or `provider/name`; an empty `provider` is taken from it. `input_tokens`
    include those read from a cache.
    """
    try:
        from genai_prices import Usage, calc_price
    except ImportError:  # it comes with pydantic-ai
        return None
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=cache_read_tokens)
    for name, whose in _references(model, provider):
        try:
            return float(calc_price(usage, name, provider_id=whose).total_price)
        except (LookupError, ValueError):  # the table has no price for this model or these counts
            continue
    return None


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
