"""Prices of models, offline."""

from __future__ import annotations

import socket
import sys

import pytest

from nbrun.agents.pricing import cost_usd

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


def test_without_the_table_there_is_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """A framework can be used without it."""
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert cost_usd("gpt-4o", input_tokens=1) is None
