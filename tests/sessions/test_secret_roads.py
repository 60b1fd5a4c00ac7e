"""The roads by which a secret could get to the disk, to a card or out of the kernel: none leads there."""

from __future__ import annotations

# ruff: noqa: D103 - the name of a road says it all
import asyncio
import base64
import dataclasses
import getpass
import json
import logging
import os
import pprint
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from nbrun import NotebookSession, Run, RunContext, cli
from nbrun.agents import Replay
from nbrun.core import events as ev
from nbrun.core.commands import FORMS
from nbrun.core.errors import BadOption
from nbrun.render.static_card import bundle
from nbrun.ui.cards.view import view
from tests.fakes.agents import BOUND_S
from tests.fakes.people import asking, until

MakeSession = Callable[..., NotebookSession]

NAME = "LEAKY_API_KEY"
KEY = "sk-test-0123456789"
SHOWN = f"[{NAME}]"
PIECE = 9
"""So many characters of a secret are more than chance."""


class Place(NamedTuple):
    """Where a road begins."""

    session: NotebookSession
    folder: Path
    store_path: Path

    def run(self, agent: object, prompt: str = "tea", **options: Any) -> Run:
        """Start an agent, and return its run when it has ended."""
        run = self.session.start(agent, prompt, **options)
        assert run.wait(BOUND_S)
        return run


@pytest.fixture
def place(make_session: MakeSession, tmp_path: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A session in whose environment there is a key."""
    session = make_session()
    monkeypatch.setenv(NAME, KEY)
    return Place(session, tmp_path, store_path)


def everything(place: Place) -> str:
    """Return what can be seen of a session's runs, on disk, in cards, in exports and in tables."""
    session, seen = place.session, []
    for run in session.runs():
        record = run.record
        seen += [repr(run), repr(record), repr((view(record, 0.0), bundle(record), bundle(record.brief())))]
        seen += [repr(event) for event in run.events()]
        seen += [msgspec.json.encode(event.data).decode() for event in run.events()]
        seen += [run.export(place.folder / f"run.{form}").read_text(encoding="utf-8") for form in FORMS]
        seen += [artifact.read().decode("utf-8", "replace") for artifact in run.artifacts]
    seen += [repr(session.runs()), session.runs()._repr_html_()]
    session.close()
    folder = place.store_path.parent
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return "".join([*seen, *names, *(data.decode("utf-8", "replace") for data in files)])


def pieces_in(text: str, secret: str = KEY) -> list[str]:
    """Return what pieces of a secret are in a text."""
    pieces = [secret[at : at + PIECE] for at in range(len(secret) - PIECE + 1)]
    return [piece for piece in pieces if piece in text]


HALF, REST = KEY[:9], KEY[9:]
ROADS: dict[str, Callable[[Place], object]] = {}


def road(function: Callable[[Place], object]) -> Callable[[Place], object]:
    """Add a road: what it returns is looked at as well."""
    ROADS[function.__name__] = function
    return function


def agent_road(function: Callable[[RunContext], object]) -> Callable[[RunContext], object]:
    """Add a road of an agent, in a thread of the kernel."""

    def agent(prompt: str, run: RunContext) -> object:
        return function(run)

    ROADS[function.__name__] = lambda place: repr(place.run(agent).error)
    return function


# --- an agent's events ---------------------------------------------------------------------------


@agent_road
def text_in_pieces(run: RunContext) -> None:
    for letter in KEY:
        run.text(letter)


@agent_road
def text_around_a_tool(run: RunContext) -> None:
    run.text(HALF)
    with run.tool("look"):
        run.text(REST)


@road
def text_of_two_children_in_turns(place: Place) -> object:
    def talks(prompt: str, run: RunContext) -> None:
        for letter in KEY:
            run.send(ev.TextDelta(letter), "a")
            run.send(ev.TextDelta("-"), "b")
            run.send(ev.Message("assistant", "-"), "b")

    events = place.run(talks).events()
    return "".join(event.data.text for event in events if isinstance(event.data, ev.TextDelta) and event.parent == "a")


@agent_road
def reasoning_in_pieces(run: RunContext) -> None:
    for letter in KEY:
        run.reasoning(letter)
        run.text("-")


@agent_road
def arguments_in_pieces(run: RunContext) -> None:
    for letter in KEY:
        run.send(ev.ToolArgsDelta("a", letter))
        run.send(ev.ToolArgsDelta("b", "-"))


@agent_road
def arguments_as_json_in_json(run: RunContext) -> None:
    with run.tool("post", {"body": json.dumps({"headers": json.dumps({"Authorization": f"Bearer {KEY}"})})}):
        pass


@agent_road
def arguments_by_key(run: RunContext) -> None:
    with run.tool("post", {KEY: {KEY: [KEY]}, ("tuple", KEY): 1}):
        pass


@agent_road
def a_tools_name(run: RunContext) -> None:
    with run.tool(KEY, kind=KEY):
        pass


@agent_road
def a_tools_id(run: RunContext) -> None:
    run.send(ev.ToolStarted(KEY, "look"))
    run.send(ev.ToolArgsDelta(KEY, "{}"))
    run.send(ev.ToolProgress(KEY, 1, 2, "half"))
    run.send(ev.ToolFinished(KEY))


@agent_road
def the_id_of_a_parent(run: RunContext) -> None:
    run.send(ev.Log("inside"), KEY)
    run.send(ev.TextDelta("inside"), KEY)


@agent_road
def a_tools_result(run: RunContext) -> None:
    with run.tool("read") as tool:
        tool.result = {"bytes": KEY.encode(), "set": {KEY}, "url": f"https://me:{KEY}@host/?key={KEY}"}


@agent_road
def a_tools_progress(run: RunContext) -> None:
    with run.tool("read") as tool:
        tool.progress(1, 2, KEY)


@agent_road
def a_tools_error(run: RunContext) -> None:
    with run.tool("read"):
        raise OSError(KEY)


@agent_road
def phases_and_progress(run: RunContext) -> None:
    run.phase(KEY)
    run.progress(1, 2, KEY)


@agent_road
def a_log(run: RunContext) -> None:
    run.log(KEY)
    run.log(KEY, "warning")
    run.log("two lines", KEY)


@agent_road
def own_events(run: RunContext) -> None:
    run.emit(KEY, {KEY: KEY})
    run.send(ev.Raw(KEY, {"header": f"Bearer {KEY}"}))
    run.send(ev.Message("assistant", KEY))
    run.send(ev.StepStarted(KEY))
    run.send(ev.Unknown(KEY, {"a": KEY}))


@agent_road
def a_checkpoint(run: RunContext) -> None:
    run.checkpoint({"key": KEY, KEY: 1})
    raise OSError("kept only if the run fails")


@agent_road
def a_checkpoint_of_bytes(run: RunContext) -> None:
    run.checkpoint(json.dumps({"key": KEY}).encode())
    raise OSError("kept only if the run fails")


@agent_road
def bytes_in_a_checkpoint(run: RunContext) -> None:
    run.checkpoint({"state": [KEY.encode()]})
    raise OSError("kept only if the run fails")


@agent_road
def a_long_repr_without_spaces(run: RunContext) -> None:
    class Long:
        def __repr__(self) -> str:
            return f"{'x' * 1_990}{KEY}{'x' * 50}"

    run.emit("long", Long())


@agent_road
def an_error_of_a_group(run: RunContext) -> None:
    raise ExceptionGroup("two", [ValueError(f"{'x' * 185}{KEY}{'x' * 50}"), KeyError(KEY)])


@agent_road
def an_error_with_a_note(run: RunContext) -> None:
    error = ValueError(f"{KEY} is not accepted")
    error.add_note(f"it was {KEY}")
    raise error from KeyError(KEY)


@agent_road
def an_error_of_a_class_with_that_name(run: RunContext) -> None:
    raise type(KEY, (Exception,), {"__module__": "__main__"})


@agent_road
def an_error_with_a_long_traceback(run: RunContext) -> None:
    raise ValueError(f"{KEY}\n" * 2_000)


@agent_road
def a_line_of_code_in_a_traceback(run: RunContext) -> None:
    raise ValueError("sk-test-0123456789"[:3])


# --- what is printed -----------------------------------------------------------------------------


@agent_road
def prints(run: RunContext) -> None:
    print(KEY)
    print(KEY, file=sys.stderr)
    pprint.pprint({"key": KEY, "list": [KEY] * 20})


@agent_road
def prints_letter_by_letter(run: RunContext) -> None:
    for letter in KEY:
        print(letter, end="", flush=True)


@agent_road
def prints_a_long_line(run: RunContext) -> None:
    print("word " * 2_000 + HALF, end="")
    print(f"{REST} more", end="")


@agent_road
def prints_a_long_line_without_spaces(run: RunContext) -> None:
    print("x" * 4_998 + KEY + "x" * 5_000, end="")
    print("more", end="")


@agent_road
def logs_and_warns(run: RunContext) -> None:
    logging.getLogger("httpx").warning("headers: %s", {"Authorization": f"Bearer {KEY}"})
    warnings.warn(f"careful with {KEY}", UserWarning, stacklevel=1)


# --- files and outputs ---------------------------------------------------------------------------


@agent_road
def files(run: RunContext) -> None:
    run.artifact("notes.txt", f"{'x' * 295}{KEY}")
    run.artifact(f"{KEY}.bin", b"\x00", f"text/{KEY}")
    run.artifact("broken.txt", f"\ud800{KEY}")


@agent_road
def an_output_of_texts(run: RunContext) -> object:
    return {KEY: [KEY, (KEY,), {"deep": json.dumps(KEY)}]}


@agent_road
def an_output_of_objects(run: RunContext) -> object:
    @dataclasses.dataclass
    class Login:
        key: str
        raw: bytes

    class Opaque:
        def __repr__(self) -> str:
            return f"<client {KEY}>"

    return [Login(KEY, KEY.encode()), Opaque(), Path(f"/home/{KEY}"), ValueError(KEY)]


class Shown:
    """Has a rendering of its own, in which the key is where the text is cut."""

    def renderings(self) -> dict[str, object]:
        """Return it as Jupyter would."""
        return {"text/plain": "x" * 99_990 + KEY + "x" * 50, "text/html": f"<b title='{KEY}'>{KEY}</b>"}


@road
def an_outputs_rendering(place: Place) -> object:
    place.session.parts.artifact_writer.on_format = lambda value: value.renderings()  # type: ignore[attr-defined]

    def shows(prompt: str) -> Shown:
        return Shown()

    run = place.run(shows)
    assert [artifact.name for artifact in run.artifacts] == ["output"]
    return None


@road
def a_kept_object(place: Place) -> object:
    return place.run(lambda prompt: {"key": KEY}, keep_object=True).record.output


# --- what a person gives -------------------------------------------------------------------------


@road
def a_prompt_and_labels(place: Place) -> object:
    def agent(prompt: str) -> str:
        return prompt

    agent.__name__ = agent.__qualname__ = f"uses_{KEY}"
    run = place.run(agent, f"use {KEY}", name=f"with {KEY}", tags={KEY: KEY})
    return [run.record.prompt, run.record.agent]


@road
def an_id(place: Place) -> object:
    with pytest.raises(BadOption) as caught:
        place.run(lambda prompt: prompt, id=f"run of {KEY}")
    return str(caught.value)


@road
def a_question_and_its_answer(place: Place) -> object:
    async def asks(prompt: str, run: RunContext) -> object:
        answer = await run.ask(f"Use {KEY}?", args={KEY: [KEY]}, tool=f"tool {KEY}", tool_id=KEY)
        return answer.args

    run = place.session.start(asks, "tea")
    asking(run)
    run.approve(text=f"yes, {KEY}", args={"key": KEY})
    assert run.wait(BOUND_S)
    return None


@road
def options_of_a_question(place: Place) -> object:
    async def asks(prompt: str, run: RunContext) -> str:
        answer = await run.ask("Which?", options=(f"use {KEY}", "another"))
        assert answer.decision == f"use {KEY}"
        return answer.decision

    run = place.session.start(asks, "tea")
    (asked,) = asking(run)
    run.approve(choice=asked.options[0])
    assert run.wait(BOUND_S)
    assert run.record.output == f"use {SHOWN}"
    return None


@road
def a_typed_password(place: Place) -> object:
    def types(prompt: str) -> str:
        return f"typed {getpass.getpass(f'{KEY}: ')} {input(f'{KEY}? ')}"

    run = place.session.start(types, "tea")
    (first,) = asking(run)
    run.approve(text="typed-secret-1")
    until(run, lambda record: bool(record.pending) and record.pending[0].id != first.id)
    run.approve(text=f"typed-secret-1 {KEY}")
    assert run.wait(BOUND_S)
    seen = everything(place)
    assert "typed-secret-1" not in seen
    return seen


@road
def a_message_and_a_cancel(place: Place) -> object:
    async def listens(prompt: str, run: RunContext) -> None:
        run.log(await run.inbox.get())
        await asyncio.Event().wait()

    run = place.session.start(listens, "tea")
    until(run, lambda record: record.status == "running")
    run.steer(f"it is {KEY}")
    until(run, lambda record: bool(record.log))
    run.cancel(f"{KEY} is used up").wait(BOUND_S)
    return run.reason


# --- children and processes ----------------------------------------------------------------------


@road
def a_child(place: Place) -> object:
    async def fails(prompt: str) -> None:
        raise ValueError(prompt)

    async def parent(prompt: str, run: RunContext) -> object:
        return await run.start_child(fails, KEY, name=KEY, tags={"a": KEY})

    return repr(place.run(parent).error)


def _dies(prompt: str) -> None:
    os.write(2, f"fatal: {KEY}\n".encode())
    os.write(2, f"{'x' * 3_990}{KEY}{'x' * 3_990}".encode())
    os._exit(3)


@road
def a_process_that_dies(place: Place) -> object:
    return repr(place.run(_dies, on="process").error)


def _starts_others(prompt: str) -> bytes:
    subprocess.run([sys.executable, "-c", f"print({KEY!r})"], check=True)
    return KEY.encode()


@road
def a_process_of_a_process(place: Place) -> object:
    run = place.run(_starts_others, on="process")
    assert run.error is None
    return run.record.output


def _sets_for_a_moment(prompt: str, run: RunContext) -> None:
    os.environ["MOMENT_API_KEY"] = "moment-0123456789"
    try:
        run.log("moment-0123456789")
        run.text("moment-0123456789")
    finally:
        del os.environ["MOMENT_API_KEY"]


@road
def a_key_of_a_moment(place: Place) -> object:
    place.run(_sets_for_a_moment)
    seen = everything(place)
    assert "moment-0123456789" not in seen
    return None


@road
def a_key_of_a_moment_in_a_process(place: Place) -> object:
    place.run(_sets_for_a_moment, on="process")
    seen = everything(place)
    assert "moment-0123456789" not in seen
    return None


# --- what nbrun itself writes --------------------------------------------------------------------


@road
def an_event_of_a_wrong_type(place: Place) -> object:
    def sends(prompt: str, run: RunContext) -> None:
        run.send(ev.Progress(KEY, KEY, KEY))  # type: ignore[arg-type]
        run.send(ev.Log({KEY: KEY}))  # type: ignore[arg-type]

    return repr(place.run(sends).record)


@road
def an_observer_that_fails(place: Place) -> object:
    class Fails:
        def on_event(self, record: object, event: object) -> None:
            raise ValueError(KEY)

    place.session.close()
    session = NotebookSession(observers=[Fails()], store=place.store_path)
    run = session.start(lambda prompt: prompt, "tea")
    assert run.wait(BOUND_S)
    session.close()
    return None


@road
def a_recording(place: Place) -> object:
    def says(prompt: str, run: RunContext) -> str:
        run.text(KEY)
        return prompt

    path = place.folder / "recorded.jsonl"
    place.run(says, KEY).save_recording(path)
    place.run(Replay(path, speed="max"))
    return path.read_text()


@road
def commands(place: Place) -> object:
    place.run(lambda prompt: prompt, KEY)
    store = str(place.session.store.path)
    for command in (["show", "1"], ["list"], ["doctor"]):
        cli.main([*command, store])
    return None


# --- which they are ------------------------------------------------------------------------------


@road
def a_key_that_is_removed(place: Place) -> object:
    def says(prompt: str, run: RunContext) -> str:
        os.environ.pop(NAME)
        run.text(KEY)
        return KEY

    return place.run(says).record.output


@road
def a_key_given_to_redact(place: Place) -> object:
    place.session.redact("my-own-secret", "MINE")
    assert place.run(lambda prompt: prompt, "my-own-secret").record.output == "[MINE]"
    assert "my-own-secret" not in everything(place)
    return None


UNSEEN = (
    "a_kept_object",
    "bytes_in_a_checkpoint",
    "a_key_of_a_moment",
    "a_key_of_a_moment_in_a_process",
    "a_key_given_to_redact",
)
"""Roads on which the key itself isn't shown by its name."""


@pytest.mark.parametrize("name", ROADS)
def test_no_road_leads_out(
    name: str, place: Place, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Not to a file, not to a card, an export or a table, not to what nbrun logs or prints."""
    returned = repr(ROADS[name](place))
    seen = everything(place)
    said = capfd.readouterr()
    logged = "".join(caplog.handler.format(record) for record in caplog.records if record.name == "nbrun")
    places = {"returned": returned, "seen": seen, "out": said.out, "err": said.err, "log": logged}
    encoded = base64.b64encode(KEY.encode()).decode()
    for where, text in places.items():
        found = pieces_in(text) + pieces_in(text, encoded)
        assert found == [], f"in {where}: {text[max(0, text.find(found[0]) - 150) : text.find(found[0]) + 60]!r}"
    assert f"[{NAME}]" in "".join(places.values()) or name in UNSEEN
