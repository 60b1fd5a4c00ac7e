"""What tokens cost, for frameworks that tell their model and usage and no price: offline, from genai-prices."""

from __future__ import annotations


def cost_usd(
    model: str,
    *,
    provider: str = "",
    input_tokens: int = 0,
    output_tokens: int = 0,
    cache_read_tokens: int = 0,
) -> float | None:
    """Return what a call of a model costs, in US dollars; None where its price is not known.

    To be called where a call has ended; the first time it imports the table of prices, which takes 0.2 s.

    Parameters
    ----------
    model : as its provider calls it, or `provider:name`, or `provider/name`.
    provider : whose model it is, such as `openai`; where it is empty the model's name has to tell.
    input_tokens : all that were sent, those among them that came from a cache too.
    """
    try:
        from genai_prices import Usage, calc_price
    except ImportError:  # it comes with pydantic-ai
        return None
    usage = Usage(
        input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=cache_read_tokens
    )
    for name, whose in _references(model, provider):
        try:
            return float(calc_price(usage, name, provider_id=whose).total_price)
        except (LookupError, ValueError):  # a model, or counts, that the table has no price for
            continue
    return None


def _references(model: str, provider: str) -> list[tuple[str, str | None]]:
    """Return what the model may be known by, the most exact first; never another provider's model of that name."""
    found: list[tuple[str, str | None]] = []
    if provider:
        found.append((model, provider))
    for mark in (":", "/"):
        prefix, is_marked, name = model.partition(mark)
        if is_marked and name:
            found.append((name, prefix))
    return found or [(model, None)]
