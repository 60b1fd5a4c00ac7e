"""Prices of models, offline."""

from __future__ import annotations

import socket
import sys

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data import providers

from nbrun.agents.pricing import _find_tiers, cost_usd

MILLION = 1_000_000


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a socket fails."""

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("a price was asked for over the network")

    monkeypatch.setattr(socket, "socket", refuse)


def test_a_known_model_has_a_price_by_any_of_its_names() -> None:
    """With its provider before it, beside it, or without one."""
    price = cost_usd("gpt-4o", input_tokens=MILLION)
    assert price is not None
    assert price > 0
    assert cost_usd("openai:gpt-4o", input_tokens=MILLION) == price
    assert cost_usd("openai/gpt-4o", input_tokens=MILLION) == price
    assert cost_usd("gpt-4o", provider="openai", input_tokens=MILLION) == price
    both = cost_usd("gpt-4o", input_tokens=MILLION, output_tokens=MILLION)
    assert both is not None
    assert both > price
    cached = cost_usd("gpt-4o", input_tokens=MILLION, cache_read_tokens=MILLION)
    assert cached is not None
    assert 0 < cached < price


@pytest.mark.parametrize("model", ["", "nobody:gpt-4o", "gpt-of-nobody", "local", ":", "a:b:c"])
def test_an_unknown_model_has_none(model: str) -> None:
    """None, and not zero; a model of an unknown provider is not taken for another's of that name."""
    assert cost_usd(model, input_tokens=1) is None
    assert cost_usd("gpt-4o", provider="nobody", input_tokens=1) is None


def test_the_rates_are_those_of_the_table() -> None:
    """Also where they depend on the number of input tokens, and for tokens that are written to a cache."""
    tried = 0
    for provider in providers:
        for model in provider.models[:3]:
            for asked in (7, 200_000, 200_001, 900_000):
                tokens = {
                    "input_tokens": asked,
                    "output_tokens": 11,
                    "cache_read_tokens": asked // 3,
                    "cache_write_tokens": asked // 2,
                }
                try:
                    expected = calc_price(Usage(**tokens), model.id, provider_id=provider.id).total_price
                except (LookupError, ValueError):
                    continue
                assert cost_usd(model.id, provider=provider.id, **tokens) == pytest.approx(float(expected))
                tried += 1
    assert tried > 100


def test_counts_that_cannot_be_have_no_price() -> None:
    """More tokens came from the cache than there were."""
    assert cost_usd("gpt-4o", input_tokens=1, cache_read_tokens=2) is None
    assert cost_usd("gpt-4o", output_tokens=-1) is None


def test_without_the_table_there_is_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """A framework can be used without it; rates that were found are kept for a while, so none were asked for before."""
    _find_tiers.cache_clear()
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert cost_usd("gpt-4o", input_tokens=1) is None
