"""Redaction: no secret is shown, however its text is cut into deltas."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from nbrun.core.redaction import Redactor, StreamRedactor, secrets_in

KEY = "sk-test-0123456789"
LONGER = KEY + "-admin"


def streamed(redactor: Redactor, deltas: list[str]) -> list[str]:
    """Return what a stream of deltas shows, piece by piece, its end included."""
    stream = StreamRedactor(redactor)
    return [*(stream.feed(delta) for delta in deltas), stream.flush()]


def test_a_secret_is_replaced_by_its_name() -> None:
    """Every occurrence becomes `[NAME]`."""
    redactor = Redactor({KEY: "OPENAI_API_KEY"})
    assert redactor.text(f"{KEY} and {KEY}!") == "[OPENAI_API_KEY] and [OPENAI_API_KEY]!"


def test_data_is_redacted_through_and_through() -> None:
    """Lists, objects and the keys of objects hold no secret; other values stay as they are."""
    redactor = Redactor({KEY: "K"})
    assert redactor.data({KEY: [1, None, {"deep": f"<{KEY}>"}]}) == {"[K]": [1, None, {"deep": "<[K]>"}]}


def test_short_values_are_left_alone() -> None:
    """A value under 8 characters would tear holes into ordinary words."""
    redactor = Redactor({"secret7": "SHORT_KEY"})
    assert not redactor
    assert redactor.text("secret7") == "secret7"


def test_the_longer_of_two_secrets_wins() -> None:
    """A secret that begins with another one is replaced whole."""
    redactor = Redactor({KEY: "SHORT", LONGER: "LONG"})
    assert redactor.text(f"{LONGER} {KEY}") == "[LONG] [SHORT]"


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("OPENAI_API_KEY", True),
        ("GITHUB_TOKEN", True),
        ("DB_PASSWORD", True),
        ("aws_secret_access_key", True),
        ("CLIENT_SECRET", True),
        ("HOME", False),
        ("KEYBOARD_LAYOUT", False),
        ("MONKEY", False),
        ("TOKENIZERS_PARALLELISM", False),
    ],
)
def test_names_that_look_like_keys_are_found(name: str, *, is_secret: bool) -> None:
    """Of the environment, only what its name calls a key, token, secret or password is taken."""
    assert bool(secrets_in({name: "x7Kq9mZpT4"})) is is_secret


def test_a_secret_split_over_deltas_never_shows() -> None:
    """Cut between any two letters, the secret is replaced as if it had come at once."""
    redactor = Redactor({KEY: "K"})
    for cut in range(len(KEY) + 1):
        shown = streamed(redactor, [f"a {KEY[:cut]}", f"{KEY[cut:]} b"])
        assert "".join(shown) == "a [K] b"


def test_a_secret_in_single_letters_never_shows() -> None:
    """Nothing of it is shown before it is known to be whole."""
    shown = streamed(Redactor({KEY: "K"}), list(f"a{KEY}b"))
    assert "".join(shown) == "a[K]b"
    assert not any(piece in KEY for piece in shown if piece and piece not in ("a", "b", "[K]"))


def test_what_only_began_like_a_secret_is_shown_when_it_breaks() -> None:
    """The held suffix comes out with the letter that made it harmless."""
    stream = StreamRedactor(Redactor({KEY: "K"}))
    assert stream.feed("say sk-te") == "say "
    assert stream.feed("a") == "sk-tea"


def test_what_was_held_comes_out_at_the_end() -> None:
    """A text that ends with the beginning of a secret is shown whole."""
    stream = StreamRedactor(Redactor({KEY: "K"}))
    assert stream.feed("sk-te") == ""
    assert stream.flush() == "sk-te"
    assert stream.flush() == ""


def test_a_secret_that_begins_a_longer_one_is_held_until_that_is_settled() -> None:
    """The rest of the longer secret must not come out after the shorter one was replaced."""
    redactor = Redactor({KEY: "SHORT", LONGER: "LONG"})
    assert "".join(streamed(redactor, [KEY, "-admin"])) == "[LONG]"
    assert "".join(streamed(redactor, [KEY, "-user"])) == "[SHORT]-user"
    assert "".join(streamed(redactor, [KEY])) == "[SHORT]"


def test_text_without_secrets_is_not_held() -> None:
    """What cannot be part of a secret is shown at once."""
    stream = StreamRedactor(Redactor({KEY: "K"}))
    assert stream.feed("nothing to hide here") == "nothing to hide here"


# Few letters, so that secrets overlap each other and themselves.
SECRETS = st.lists(
    st.text("ab-", min_size=8, max_size=11)
    | st.integers(8, 14).map(lambda length: "abaababaabaab-"[:length]),
    min_size=1, max_size=4, unique=True,
)  # fmt: skip


@given(SECRETS, st.data())
@settings(max_examples=250, deadline=None)
def test_any_split_of_any_text_shows_the_same(secrets: list[str], data: st.DataObject) -> None:
    """The pieces of a stream, joined, are the whole text redacted, and no secret is in them."""
    redactor = Redactor({secret: f"S{number}" for number, secret in enumerate(secrets)})
    parts = data.draw(st.lists(st.text("ab-", max_size=6) | st.sampled_from(secrets), max_size=8))
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    edges = [0, *cuts, len(text)]
    deltas = [text[start:end] for start, end in pairwise(edges)]
    shown = "".join(streamed(redactor, deltas))
    assert shown == redactor.text(text)
    assert not any(secret in shown for secret in secrets)
