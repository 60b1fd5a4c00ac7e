"""Secrets: whatever way one goes in, none is stored, shown, printed or exported."""

from __future__ import annotations

import base64
import html
import json
import os
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlencode

import msgspec
import pytest

import nbrun
from nbrun import NotebookSession, Run, RunContext, cli
from nbrun.core import events as ev
from nbrun.core.commands import FORMS
from nbrun.core.errors import BadOption, IdConflict
from nbrun.core.redaction import ENDINGS, MIN_LENGTH, PARTS, WORDS, Redactor, secrets_in
from nbrun.render.static_card import bundle
from nbrun.ui.cards.view import view
from nbrun.ui.config import NbRun
from tests.fakes.agents import BOUND_S, Held, instant
from tests.fakes.leaks import KEY, LOADED, NAME, failing, leaking, loads_a_key, repeats, writes_files
from tests.fakes.people import asking, until

MakeSession = Callable[..., NotebookSession]

SHOWN = f"[{NAME}]"
RANDOM = "x7Kq9mZpT4"
PIECE = 9
"""So many characters of a secret are more than chance."""


@pytest.fixture
def session(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> NotebookSession:
    """A session in whose environment there is a key."""
    made = make_session()
    monkeypatch.setenv(NAME, KEY)  # after it was made: the next start takes it up
    return made


def everything(session: NotebookSession, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return all that can be seen of a session's runs, by every door there is."""
    seen = []
    for run in session.runs():
        record = run.record
        states = (view(record, 0.0), bundle(record), view(record.brief(), 0.0), bundle(record.brief()))
        seen += [repr(run), repr(record), repr(states)]
        seen += [msgspec.json.encode(event.data).decode() for event in run.events()]
        for form in FORMS:
            path = run.export(folder / f"run.{form}")
            seen.append(path.read_text(encoding="utf-8"))
    seen += [repr(session.runs()), session.runs()._repr_html_(), session.runs().to_pandas().to_csv()]
    capsys.readouterr()
    store = str(session.store.path)
    for run in session.runs():
        cli.main(["show", str(run.number), store])
    cli.main(["list", store])
    cli.main(["doctor", store])
    said = capsys.readouterr()
    files = b"".join(path.read_bytes() for path in Path(store).parent.rglob("*") if path.is_file())
    return "".join([*seen, said.out, said.err, files.decode("utf-8", "replace")])


def pieces_in(text: str) -> list[str]:
    """Return what pieces of the key are in a text."""
    return [KEY[at : at + PIECE] for at in range(len(KEY) - PIECE + 1) if KEY[at : at + PIECE] in text]


@pytest.mark.parametrize("on", ["local", "process"])
def test_a_key_comes_through_no_door(
    on: Literal["local", "process"], session: NotebookSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told by each word of an agent and of people, in whole and letter by letter, it is seen nowhere."""
    with_child = " and a child" if on == "local" else ""
    run = session.start(leaking, f"use {KEY}{with_child}", name=f"with {KEY}", tags={KEY: KEY}, on=on)
    asking(run)
    run.approve(choice="yes", text=KEY, args={"key": KEY, "more": KEY})
    run.steer(f"it is {KEY}")
    assert run.wait(BOUND_S)
    failed = session.start(failing, "tea", on=on)
    assert failed.wait(BOUND_S)
    held = Held(KEY)
    stopped = session.start(held, KEY)
    assert held.entered.wait(BOUND_S)
    stopped.cancel(f"{KEY} is used up").wait(BOUND_S)

    assert (run.status, failed.status, stopped.status) == ("completed", "failed", "cancelled")
    assert run.record.text == f"I know {SHOWN}."
    assert run.record.output == {"answer": SHOWN, SHOWN: SHOWN}
    assert run.record.prompt == f"use {SHOWN}{with_child}"
    assert run.record.tags == {SHOWN: SHOWN}
    assert stopped.reason == f"{SHOWN} is used up"
    assert failed.error is not None
    assert failed.error.message == f"{SHOWN} is not accepted"
    assert SHOWN in failed.error.traceback
    kinds = {event.type for each in session.runs() for event in each.events() if SHOWN in repr(event.data)}
    assert kinds >= {
        "run.created", "run.phase", "progress", "log", "custom", "tool.started", "tool.progress", "tool.finished",
        "text.delta", "reasoning.delta", "tool.args.delta", "message", "raw", "approval.requested",
        "approval.resolved", "steer", "run.completed", "run.failed", "cancel.requested",
        "run.cancelled", *(["child.started"] if with_child else []),
    }  # fmt: skip
    seen = everything(session, tmp_path, capsys)
    assert len(seen) > 10_000
    assert pieces_in(seen) == []


@pytest.mark.parametrize("count", [1, 2, 3, 5, len(KEY)])
def test_no_piece_of_a_stream_shows_it(count: int, session: NotebookSession) -> None:
    """Cut into any number of pieces, no event of text, of reasoning or of arguments has more than its name."""

    async def talks(prompt: str, run: RunContext) -> None:
        size = -(-len(KEY) // count)
        for at in range(0, len(KEY), size):
            piece = KEY[at : at + size]
            run.text(piece)
            run.reasoning(piece)
            run.send(ev.ToolArgsDelta("a", piece))
            run.send(ev.ToolArgsDelta("b", "x"))  # between them: another tool is another stream
        run.text(KEY[:-1])  # a beginning only, at the end: no secret

    run = session.start(talks, "tea")
    assert run.wait(BOUND_S)
    told: dict[str, str] = {}
    for event in run.events():
        if isinstance(event.data, ev.TextDelta | ev.ReasoningDelta):
            told[event.type] = told.get(event.type, "") + event.data.text
        elif isinstance(event.data, ev.ToolArgsDelta):
            told[event.data.id] = told.get(event.data.id, "") + event.data.text
    pieces = -(-len(KEY) // -(-len(KEY) // count))
    assert told == {"text.delta": SHOWN + KEY[:-1], "reasoning.delta": SHOWN, "a": SHOWN, "b": "x" * pieces}


@pytest.mark.parametrize(
    "secret", ['pass"word\\with/every+thing=', "zwei Zeilen\neines Schlüssels", " from-a-file-0123\n"]
)
def test_a_secret_is_known_as_it_stands_in_texts(
    secret: str, session: NotebookSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside JSON, in an address, and without the white space around it; not in an encoding that hides it."""
    monkeypatch.setenv("OTHER_PASSWORD", secret)
    bare = secret.strip()
    for told in (bare, json.dumps({"a": bare}), json.dumps(bare, ensure_ascii=False), f"?k={quote(bare, safe='')}"):
        run = session.start(repeats, told)
        assert run.wait(BOUND_S)
        for text in (run.record.prompt, run.record.output):
            assert isinstance(text, str)
            assert "[OTHER_PASSWORD]" in text
            assert bare not in text
    hidden = base64.b64encode(secret.encode()).decode()
    run = session.start(repeats, hidden)
    assert run.wait(BOUND_S)
    # The limit of it: who encodes a secret hides it from us as well.
    assert run.record.output == hidden


def test_half_a_secret_is_not_left_where_a_long_text_is_cut(session: NotebookSession) -> None:
    """A traceback, a line without an end and a repr are cut between words: what is left is no part of it."""

    class Long:
        def __repr__(self) -> str:
            return f"{'word ' * 398}x{KEY} {'word ' * 50}"

    async def long(prompt: str, run: RunContext) -> None:
        run.emit("long", Long())
        print("word " * 2_000 + KEY[:9], end="")
        print(f"{KEY[9:]} more", end="")
        raise ValueError(f"{KEY}\n" * 2_000)

    run = session.start(long, "tea")
    assert run.wait(BOUND_S)
    assert run.error is not None
    assert len(run.error.traceback) < 21_000
    texts = "".join(msgspec.json.encode(event.data).decode() for event in run.events())
    assert pieces_in(texts) == []


# --- which they are ----------------------------------------------------------------------------------


def test_a_value_that_was_named_is_replaced_from_then_on(session: NotebookSession, store_path: Path) -> None:
    """Also in a stream that has begun; it goes through no file itself."""
    held = Held("before: my-own-")
    run = session.start(held, "tea")
    until(run, lambda record: "my-own-" in record.text)
    session.redact("my-own-secret", "MINE")
    other = session.start(repeats, "a my-own-secret b")
    assert other.wait(BOUND_S)
    assert other.output == "a my-own-secret b"  # the agent's own object is not changed
    assert other.record.output == other.record.prompt == "a [MINE] b"
    held.let_go()
    assert run.wait(BOUND_S)
    assert b"my-own-secret" not in b"".join(path.read_bytes() for path in store_path.parent.iterdir() if path.is_file())

    gate = threading.Event()

    def streams(prompt: str, run: RunContext) -> None:
        run.text("begun ")
        assert gate.wait(BOUND_S)
        run.text("late-secret-1 and on")

    run = session.start(streams, "tea")
    until(run, lambda record: record.text == "begun ")
    session.redact("late-secret-1")
    gate.set()
    assert run.wait(BOUND_S)
    assert run.record.text == "begun [SECRET] and on"


def test_colours_hide_no_secret(session: NotebookSession) -> None:
    """A library that paints numbers prints codes within a key, and pages show it without them."""
    painted = f"{KEY[:8]}\x1b[1;36m{KEY[8:12]}\x1b[0m{KEY[12:]}"

    def prints(prompt: str, run: RunContext) -> None:
        run.log(f"\x1b[1m{painted}\x1b[0m")
        run.log("\x1b[1mtea\x1b[0m")
        run.emit("found", {"key": painted})

    run = session.start(prints, painted)
    assert run.wait(BOUND_S)
    logs = [event.data.text for event in run.events() if isinstance(event.data, ev.Log)]
    assert logs == [SHOWN, "\x1b[1mtea\x1b[0m"]
    assert run.record.prompt == SHOWN
    assert KEY[:8] not in repr(run.events())


@pytest.mark.parametrize("value", ["", "short", " 1234567 ", None])
def test_what_is_too_short_is_refused(value: str, session: NotebookSession) -> None:
    """It is not silently left to be shown: one line says how long a secret is."""
    with pytest.raises(BadOption, match="at least 8 characters"):
        session.redact(value)


def test_more_variables_can_be_named(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `NbRun.secrets`: their values are replaced, whatever their names look like."""
    monkeypatch.setenv("DATABASE_URL", "postgres://me:tea@host/db")
    before = session.start(repeats, "at postgres://me:tea@host/db")
    assert before.record.prompt == "at postgres://me:tea@host/db"  # it is saved now
    session.watch_variables(["DATABASE_URL"])
    after = session.start(repeats, "at postgres://me:tea@host/db")
    assert before.record.prompt == "at postgres://me:tea@host/db"
    assert after.record.prompt == "at [DATABASE_URL]"
    monkeypatch.setenv("DATABASE_URL", "postgres://you:milk@host/db")
    assert session.start(repeats, "at postgres://you:milk@host/db").record.prompt == "at [DATABASE_URL]"


def test_the_settings_tell_the_rule() -> None:
    """`%config NbRun` names every word that makes a variable a secret, the least length, and how to name more."""
    rule = NbRun.class_traits()["secrets"].help
    assert f"shorter than {MIN_LENGTH} characters" in rule
    assert "nbrun.redact(value)" in rule
    for word in (*WORDS, *PARTS):
        assert word in rule
        for name in (f"MY_{word}", f"{word}_X", word.lower()):
            assert secrets_in({name: RANDOM}) == {RANDOM: name}
    for name in ("PASSENGER", "PWD", "BYPASS_X"):
        assert secrets_in({name: RANDOM}) == {}
    for ending in ENDINGS:
        assert secrets_in({f"MY_{ending}": "correct horse"}) == {"correct horse": f"MY_{ending}"}


def test_an_id_holds_no_secret(session: NotebookSession) -> None:
    """It names the run in every place, so it cannot be replaced: it is refused, and nothing is started."""
    with pytest.raises(BadOption, match="LEAKY_API_KEY") as caught:
        session.start(instant, "tea", id=f"run of {KEY}")
    assert KEY not in str(caught.value)
    assert session.runs() == []


def test_the_same_start_is_found_again_though_its_prompt_held_a_secret(session: NotebookSession) -> None:
    """What is compared is what is stored: the key is in neither."""
    first = session.start(instant, f"use {KEY}", id="nightly")
    assert session.start(instant, f"use {KEY}", id="nightly") == first
    with pytest.raises(IdConflict) as caught:
        session.start(instant, f"use {KEY} twice", id="nightly")
    assert KEY not in str(caught.value)


def test_the_functions_of_the_package_work_on_its_session(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nbrun.redact()` is that of the notebook's session."""
    session = make_session()
    monkeypatch.setattr("nbrun.sessions.default._slot", [session])
    nbrun.redact("my-own-secret", "MINE")
    run: Run = session.start(repeats, "my-own-secret")
    assert run.record.prompt == "[MINE]"
    assert bool(Redactor({"my-own-secret": "MINE"}))


# --- the forms and ways of a secret ------------------------------------------------------------------

AWKWARD = "a'b\"c<d>&e/f+g h\\é%x7"
PEM = "-----BEGIN PRIVATE KEY-----\n{}\n{}\n-----END PRIVATE KEY-----".format(
    "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj",
    "MzEfYyjiWA4R4+M2bS1GB4t7NXp98C3SC6dVMvDuictGeurT8jNbvJZHtCSuYEvu",
)
FORMS_OF_IT: list[Callable[[str], str]] = [
    str,
    repr,
    ascii,
    json.dumps,
    lambda s: json.dumps(s, ensure_ascii=False),
    lambda s: json.dumps({"a": json.dumps({"b": s})}),
    lambda s: json.dumps(json.dumps(s, ensure_ascii=False), ensure_ascii=False),
    html.escape,
    lambda s: html.escape(s, quote=False),
    lambda s: html.escape(s).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
    lambda s: html.escape(s).replace("&#x27;", "&apos;"),
    shlex.quote,
    quote,
    lambda s: quote(s, safe=""),
    lambda s: quote(s, safe="").lower() if s.islower() else quote(s, safe=""),
    lambda s: urlencode({"key": s}),
    lambda s: repr(s.encode()),
    lambda s: repr([s, {"k": s}]),
    lambda s: f"Authorization: Bearer {s}\r\n",
    lambda s: f"https://me:{quote(s, safe='')}@host/",
]


@pytest.mark.parametrize("secret", [KEY, AWKWARD, PEM, "x7Kq9mZpT4&<'\""], ids=["key", "awkward", "pem", "short"])
def test_a_secret_is_known_in_the_forms_of_texts(secret: str) -> None:
    """In strings of JSON, of JSON in JSON, of Python, of HTML, of a shell and of a URL, nothing of it is left."""
    redactor = Redactor({secret: "MINE"})
    for form in FORMS_OF_IT:
        text = form(secret)
        shown = redactor.text(f"before {text} after")
        assert "MINE" in shown, text
        assert all(secret[at : at + PIECE] not in shown for at in range(len(secret) - PIECE)), shown


def test_a_private_key_is_known_line_by_line(session: NotebookSession) -> None:
    """A file that is printed as it is read leaves none of its lines in the log."""
    session.redact(PEM, "PEM")

    async def prints(prompt: str) -> None:
        for line in PEM.splitlines():
            print("|", line)

    run = session.start(prints, "")
    assert run.wait(BOUND_S)
    texts = "".join(event.data.text for event in run.events() if isinstance(event.data, ev.Log))
    assert texts.count("[PEM]") == 2
    assert not any(line in texts for line in PEM.splitlines()[1:-1])


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("A_KEY", "x7Kq9mZpT4", None),
        ("GITHUB_TOKEN", "3f2b8c1e-8d11-4c2e-9a77-0c1d2e3f4a5b", None),
        ("DB_PASSWORD", "correcthorse", None),
        ("PGPASSWORD", "correct horse battery", None),
        ("CLIENT_SECRET", "leaves-and-water", None),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None),
        ("ENCRYPTION_KEY", "QUJDREVGR0hJSktMTU5PUA==", None),
        ("SIGNING_KEY", "0123456789abcdef0123456789abcdef", None),
        ("API_TOKEN", "aBcDeFgHiJkLmN", None),
        ("MY_KEY", PEM, None),
        # By the look alone.
        ("MODEL_ACCESS", "sk-proj-abcdefghijklmnop", None),
        ("GH", "ghp_" + "a1B2" * 9, None),
        ("CI", "glpat-abcdefghij0123456789", None),
        ("HUB", "hf_abcdefghijklmnopqrstuvwxyz", None),
        ("CLOUD", "AKIAIOSFODNN7EXAMPLE", None),
        ("MAPS", "AIza" + "Sy0123456789-abcdefghijklmnopqrstuv", None),
        ("SESSION", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", None),
        # Inside a value.
        ("DATABASE_URL", "postgres://me:hunter2two@host/db", "hunter2two"),
        ("BROKER", "amqp://me:p%40ss%3Aword@host", "p@ss:word"),
        ("SERVICE", json.dumps({"type": "service", "private_key": PEM}), PEM),
        ("SERVICE_JSON", json.dumps({"id": "me", "client_secret": "leaves-and-water"}), "leaves-and-water"),
    ],
)
def test_a_value_is_secret_by_its_name_and_its_look(name: str, value: str, secret: str | None) -> None:
    """A name that says so and a value that looks like it; a well-known form alone; a password in an address."""
    found = secrets_in({name: value})
    assert found[secret or value] == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SORT_KEY", "timestamp"), ("PARTITION_KEY", "customer_id"), ("PASS", "production"),
        ("PRIMARY_KEY", "order_id_2024"), ("FOREIGN_KEY", "customerOrderId"), ("SSH_KEY", "/home/me/.ssh/id_rsa"),
        ("KEY_FILE", "~/keys/server1a2b3c4d.pem"), ("TOKEN_URL", "https://example.org/oauth2/token"),
        ("TOKEN_TYPE", "bearer_token"), ("SECRET_NAME", "prod/database/main"), ("KEY_REGION", "us-east-1a-west"),
        ("CREDENTIALS", "application-default"), ("TOKENIZERS_PARALLELISM", "false-or-true"),
        ("CACHE_KEY", "user:profile:12345678"), ("KEY_DATE", "20240131T120000Z"), ("PASS_COUNT", "1234567890"),
        ("KEYBOARD", "x7Kq9mZpT4"), ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/google/key.json"),
        ("PASSWORD_FILE", "/run/secrets/db_password"), ("DB_PASSWORD_SECRET", "/run/secrets/db_password"),
        ("API_KEY_HEADER", "X-Request-Signature"), ("DEFAULT_KEY", "utf8mb4_general_ci"),
        ("TOKEN_FILE", r"C:\Users\me\token1a2b3c4d.txt"), ("SECRET_SERVICE", "org.freedesktop.secrets"),
        ("HOMEPAGE", "https://example.org/a:b@c"), ("DATABASE_URL", "sqlite:///data/me.db"),
    ],
)  # fmt: skip
def test_an_innocent_value_is_not_replaced(name: str, value: str) -> None:
    """Words, names of columns, numbers, dates, places: replaced, they would damage what is stored."""
    assert secrets_in({name: value}) == {}


@pytest.mark.parametrize("on", ["local", "process"])
def test_a_key_that_an_agent_sets_is_known_at_once(on: Literal["local", "process"], session: NotebookSession) -> None:
    """As by `load_dotenv()` in its first line; and it stays known when the variable is gone.

    One that only a run's process has had is known in that run: it may call anything a secret.
    """
    run = session.start(loads_a_key, "", on=on)
    assert run.wait(BOUND_S)
    assert run.error is None
    assert run.record.output == "loaded [LOADED_API_KEY]"
    os.environ.pop("LOADED_API_KEY", None)
    later = session.start(repeats, f"again {LOADED}")
    assert later.wait(BOUND_S)
    assert later.record.output == ("again [LOADED_API_KEY]" if on == "local" else f"again {LOADED}")


def test_a_key_that_is_removed_stays_a_secret(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that still have it may still show it; the same for one that is replaced by another."""
    held = Held(f"late {KEY} ")
    run = session.start(held, "tea")
    monkeypatch.setenv(NAME, "another-0123456789")
    between = session.start(repeats, f"{KEY} another-0123456789")
    monkeypatch.delenv(NAME)
    last = session.start(repeats, f"{KEY} another-0123456789")
    held.let_go()
    for each in (run, between, last):
        assert each.wait(BOUND_S)
    assert run.record.text.startswith(f"late {SHOWN}")
    assert between.record.output == last.record.output == f"{SHOWN} {SHOWN}"


def test_files_of_a_process_hold_no_secret_of_the_session(session: NotebookSession) -> None:
    """Neither one given to `redact()`, nor one of a variable that `NbRun.secrets` names."""
    session.redact("my-own-secret", "MINE")
    session.watch_variables(["PLAIN_NAME"])
    run = session.start(writes_files, "my-own-secret", on="process")
    assert run.wait(BOUND_S)
    assert run.error is None
    assert run.artifacts[0].read().decode() == "[MINE] and [PLAIN_NAME]"
