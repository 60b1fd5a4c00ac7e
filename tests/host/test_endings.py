"""What an agent leaves behind may run code that never ends: its run ends all the same, and no other run waits."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from nbrun import NotebookSession, Run, RunContext, current
from nbrun.agents import Output
from nbrun.core import events as ev
from nbrun.host import driver
from tests.fakes import agents
from tests.fakes.agents import BOUND_S

MakeSession = Callable[..., NotebookSession]

over = threading.Event()
entered = threading.Event()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short limit, and at the end a way out of everything that is endless here."""
    monkeypatch.setattr(driver, "LOOK_LIMIT_S", 0.3)
    over.clear()
    entered.clear()
    yield
    over.set()


def spin() -> Any:
    """Compute until the test is over, which a cancel can stop."""
    entered.set()
    while not over.is_set():
        over.wait(0.001)


def hang() -> Any:
    """Wait until the test is over, in one call that nothing can stop."""
    entered.set()
    over.wait()


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def looked_at(forever: Callable[[], Any]) -> dict[str, object]:
    """Return values that call `forever` when they are looked at, by how."""

    class Reprs:
        def __repr__(self) -> str:
            forever()
            return "<seen>"

    class Items(Mapping[str, str]):
        def __getitem__(self, key: str) -> str:
            return "x"

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[str]:
            yield "first"
            forever()

    class Listed(list[str]):
        def __iter__(self) -> Iterator[str]:
            yield "first"
            forever()

    class Classy:
        @property  # type: ignore[misc]  # it is one that can only be read
        def __class__(self) -> type:
            forever()
            return Classy

        def __repr__(self) -> str:
            return str(forever())

    @dataclasses.dataclass
    class Fields:
        name: str = "x"

        def __getattribute__(self, name: str) -> Any:
            return forever()

    class Dumps:
        def model_dump(self) -> object:
            return forever()

    class Keyed:
        def __str__(self) -> str:
            return str(forever())

    return {
        "repr": Reprs(), "items": Items(), "iter": Listed(), "class": Classy(), "fields": Fields(), "dump": Dumps(),
        "key": {Keyed(): 1}, "set": {Reprs()},
    }  # fmt: skip


WAYS = tuple(looked_at(spin))


def returning(value: object, *, is_async: bool) -> Any:
    """Return an agent that returns the value."""

    async def returns(prompt: str) -> object:
        return value

    return returns if is_async else lambda prompt: value


@pytest.mark.parametrize(("forever", "way"), [*((spin, way) for way in WAYS), (hang, "repr"), (hang, "items")])
def test_an_endless_output_costs_only_itself(make_session: MakeSession, forever: Callable[[], Any], way: str) -> None:
    """Others go on meanwhile, the run is completed, and on disk is what could be read: here, and in the next kernel."""
    session = make_session()
    value = {"answer": "paid for", "look": looked_at(forever)[way]}
    run = session.start(returning(value, is_async=forever is spin))
    assert entered.wait(BOUND_S)
    assert ended(session.start(agents.instant, "tea")).output == "done: tea"
    assert ended(run).status == "completed"
    assert run.output is value
    assert any("not stored in full" in notice for notice in run.record.notices)
    assert run.record.detached == (() if forever is spin else ("the code of its output",))
    over.set()
    if forever is hang:
        assert run.live is not None
        assert run.live.wait_until(lambda record: record.detached_finished_at is not None, BOUND_S)
    session.close()
    stored: Any = make_session().get(1).output
    assert stored["answer"] == "paid for"
    assert "looked_at" in str(stored["look"])  # the name of its type


@pytest.mark.parametrize(("forever", "way"), [(spin, "repr"), (spin, "iter"), (hang, "dump")])
def test_a_cancel_ends_a_run_whose_output_is_endless(
    make_session: MakeSession, way: str, forever: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It doesn't wait for the limit, and what was paid for is kept."""
    monkeypatch.setattr(driver, "LOOK_LIMIT_S", 300.0)
    session = make_session()
    run = session.start(returning(["paid for", looked_at(forever)[way]], is_async=forever is spin))
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert run.status == "cancelled"
    assert "paid for" in str(run.record.output)


class Announces:
    """Says in the log that it is looked at, and hangs."""

    def __repr__(self) -> str:
        current().text("looked at")
        threading.Event().wait()
        return ""


async def returns_what_hangs(prompt: str) -> object:
    """Return something of value, too."""
    return ["paid for", Announces()]


def test_a_process_that_is_killed_over_its_output_has_sent_it(make_session: MakeSession) -> None:
    """What could be read of it is in the record, though the thread that hangs ends only with the process."""
    run = make_session(cancel_grace_s=2.0).start(returns_what_hangs, on="process")
    assert run.live is not None
    assert run.live.wait_until(lambda record: record.text == "looked at", BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == ("cancelled", ())
    assert "paid for" in str(run.record.output)


@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_part_costs_only_itself(session: NotebookSession, way: str) -> None:
    """One that raises leaves the others whole, and no limit has to pass."""

    def raises() -> None:
        raise RuntimeError("not today")

    run = ended(session.start(returning(["paid for", looked_at(raises)[way]], is_async=True)))
    assert run.status == "completed"
    stored: Any = run.record.output
    assert stored[0] == "paid for"
    assert run.record.notices == ()


class Says(Exception):
    """An error whose text is what a function makes of it."""

    def __init__(self, text: Callable[[], Any]) -> None:
        super().__init__("args")
        self._text = text

    def __str__(self) -> str:
        return self._text()  # type: ignore[no-any-return]

    __repr__ = __str__


def raising(error: BaseException, *, is_async: bool) -> Any:
    """Return an agent that raises the error."""

    def raises(prompt: str) -> None:
        raise error

    async def raises_later(prompt: str) -> None:
        raise error

    return raises_later if is_async else raises


@pytest.mark.parametrize("forever", [spin, hang])
def test_an_endless_error_is_a_failure_with_its_name(make_session: MakeSession, forever: Callable[[], Any]) -> None:
    """Others go on meanwhile."""
    session = make_session()
    run = session.start(raising(Says(forever), is_async=forever is spin))
    assert entered.wait(BOUND_S)
    assert ended(session.start(agents.instant, "tea")).output == "done: tea"
    assert ended(run).status == "failed"
    assert run.error is not None
    assert run.error.type == "Says"
    assert run.record.detached == (() if forever is spin else ("the text of its error",))


def nested(depth: int) -> Exception:
    """Return a group in a group in a group …."""
    error: Exception = ValueError("innermost")
    for number in range(depth):
        error = ExceptionGroup(f"group {number}", [error])
    return error


def circle() -> BaseException:
    """Return an error that caused itself, by way of another one."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


class Disguised(Exception):
    """An error that says it is of another class."""

    @property  # type: ignore[misc]  # it is one that can only be read
    def __class__(self) -> type:
        raise RuntimeError("no class")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (nested(1_000), "innermost"),
        (ExceptionGroup("two", [nested(900), ValueError("beside")]), "beside"),
        (circle(), "first"),
        (Disguised("under a mask"), "under a mask"),
        (Says(lambda: 5), "str failed: TypeError"),
        (Says(lambda: 1 / 0), "str failed: ZeroDivisionError"),
    ],
    ids=["nested", "two", "circle", "disguised", "number", "raises"],
)
def test_an_odd_error_is_told_as_far_as_it_can_be(session: NotebookSession, error: BaseException, words: str) -> None:
    """Its run has failed with it, and its message is there."""
    run = ended(session.start(raising(error, is_async=True)))
    assert run.error is not None
    assert run.error.type == type(error).__name__
    assert words in run.error.message
    assert run.error.traceback


async def returns_its_run(prompt: str, run: RunContext) -> object:
    """Return the context."""
    return run


async def returns_itself(prompt: str) -> object:
    """Return the agent."""
    return returns_itself


async def returns_a_generator(prompt: str) -> object:
    """Return what could go on for ever."""
    return (number for number in iter(int, 1))


async def returns_a_circle(prompt: str) -> object:
    """Return what contains itself, twice over."""
    circle: dict[str, Any] = {}
    circle["left"], circle["right"] = circle, [circle]
    return circle


@pytest.mark.parametrize("agent", [returns_its_run, returns_itself, returns_a_generator, returns_a_circle])
def test_an_odd_output_is_completed(session: NotebookSession, agent: object) -> None:
    """It is stored as something."""
    run = ended(session.start(agent))
    assert run.status == "completed"
    assert run.record.output is not None


class Sly(str):
    """A text with code of its own."""

    __slots__ = ()

    def isascii(self) -> bool:
        """Fail."""
        raise RuntimeError("no")

    def __str__(self) -> str:
        raise RuntimeError("no")

    def __len__(self) -> int:
        raise RuntimeError("no")

    def __hash__(self) -> int:
        raise RuntimeError("no")


class Mask:
    """What says that it is a text."""

    @property  # type: ignore[misc]  # it is one that can only be read
    def __class__(self) -> type:
        return str


async def yields_sly(prompt: str) -> Any:
    """Yield a text with code of its own."""
    yield Sly("a")
    yield Sly("b")


async def sends_sly(prompt: str, run: RunContext) -> None:
    """Send events that hold such texts."""
    run.send(ev.ToolStarted(Sly("t"), Sly("tool"), args=Sly("args")))
    run.send(ev.ToolArgsDelta(Sly("t"), Sly("{}")))
    run.send(ev.ToolFinished(Sly("t"), "ok", Sly("result")))
    run.write(Sly("printed\n"))
    run.phase(Sly("phase"))
    run.send(ev.TextDelta(Sly("ab")))


@pytest.mark.parametrize("agent", [yields_sly, sends_sly])
def test_a_text_with_code_of_its_own_is_a_text(session: NotebookSession, agent: object) -> None:
    """None of its code is run under a lock, or where other runs wait."""
    run = ended(session.start(agent))
    assert (run.status, run.text) == ("completed", "ab")
    assert all(tool.result == "result" for tool in run.record.tools)


async def yields_a_mask(prompt: str) -> Any:
    """Yield what is no text."""
    yield "a"
    yield Mask()


async def sends_a_mask(prompt: str, run: RunContext) -> None:
    """Send what is no text."""
    run.text("a")
    run.send(ev.TextDelta(Mask()))  # type: ignore[arg-type]


@pytest.mark.parametrize("agent", [yields_a_mask, sends_a_mask])
def test_what_is_no_text_is_the_agents_own_mistake(session: NotebookSession, agent: object) -> None:
    """Its run fails, and has its end."""
    run = ended(session.start(agent))
    assert (run.status, run.text) == ("failed", "a")
    assert run.error is not None
    assert "str" in run.error.message


@pytest.mark.parametrize("way", ["repr", "items", "fields", "key"])
@pytest.mark.parametrize("is_sync", [False, True])
def test_an_endless_event_is_stopped_where_it_is_sent(make_session: MakeSession, way: str, is_sync: bool) -> None:
    """It is the agent's own code that hangs: a cancel stops it there, and nobody else ever looks at the value."""
    session = make_session(cancel_grace_s=0.1)
    value: Any = looked_at(spin)[way]

    async def sends(prompt: str, run: RunContext) -> None:
        run.text("paid for")
        run.send(ev.Custom("odd", {"value": value}))

    def sends_from_a_thread(prompt: str, run: RunContext) -> None:
        run.text("paid for")
        run.send(ev.Custom("odd", {"value": value}))

    run = session.start(sends_from_a_thread if is_sync else sends)
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.text, run.record.detached) == ("cancelled", "paid for", ())
    assert ended(session.start(agents.instant, "tea")).output == "done: tea"


class Yields:
    """A third party's adapter, whose events hold what an agent gave it."""

    name = "yields"

    def __init__(self, data: object) -> None:
        self.data = data

    def match(self, agent: object) -> bool:
        """Return whether it is this one."""
        return agent is self

    def check(self, agent: object) -> None:
        """Accept it."""

    def label(self, agent: object) -> str:
        """Return a name."""
        return "yields"

    async def events(self, agent: object, prompt: str, run: RunContext) -> Any:
        """Yield the event, then an output."""
        yield ev.Custom("odd", self.data)  # type: ignore[arg-type]
        yield Output("paid for")


@pytest.mark.parametrize("way", ["repr", "iter", "fields", "key"])
def test_an_endless_event_of_an_adapter_is_stopped_where_it_is_yielded(
    make_session: MakeSession, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel stops it there: the store's writer, and with it all runs, would otherwise wait for ever."""
    session = make_session(cancel_grace_s=0.1)
    adapter = Yields(looked_at(spin)[way])
    monkeypatch.setattr("nbrun.host.driver.find_adapter", lambda _agent: adapter)
    monkeypatch.setattr("nbrun.sessions.start.find_adapter", lambda _agent: adapter)
    run = session.start(adapter)
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert run.status == "cancelled"


def test_a_state_that_hangs_is_stopped(make_session: MakeSession) -> None:
    """A checkpoint's own code is the agent's: a cancel reaches it."""
    session = make_session(cancel_grace_s=0.1)

    def saves(prompt: str, run: RunContext) -> None:
        run.checkpoint({"state": looked_at(spin)["repr"]})

    run = session.start(saves)
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == ("cancelled", ())


def test_a_tool_that_raises_the_unsayable_ends_with_it(session: NotebookSession) -> None:
    """The tool has its end, and the agent its own error."""

    async def uses(prompt: str, run: RunContext) -> str:
        try:
            with run.tool("broken"):
                await raising(Says(lambda: 1 / 0), is_async=True)("")
        except Says:
            pass
        return "went on"

    run = ended(session.start(uses))
    assert run.output == "went on"
    assert [(tool.status, tool.result) for tool in run.record.tools] == [("error", "Says")]


def test_what_a_background_task_raises_is_looked_at_aside(session: NotebookSession) -> None:
    """The loop of all runs doesn't call its code; the log has it as soon as it can be told."""

    async def leaves(prompt: str, run: RunContext) -> str:
        async def fails() -> None:
            raise Says(hang)

        task = asyncio.create_task(fails())
        await asyncio.wait([task])
        del task
        for _ in range(3):
            await asyncio.sleep(0)
        return "done"

    run = session.start(leaves)
    assert ended(run).output == "done"
    assert ended(session.start(agents.instant, "tea")).output == "done: tea"


class Clings:
    """An object that does not let itself be dropped."""

    def __del__(self) -> None:
        """Hang."""
        hang()


@pytest.mark.parametrize("is_raised", [False, True])
def test_what_hangs_when_it_is_dropped_holds_up_nobody(
    session: NotebookSession, is_raised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output that is kept no longer, and the variables of an error, are released where nobody waits for that."""
    monkeypatch.setattr("nbrun.sessions.catalog.KEEP_ENDED", 1)

    async def clings(prompt: str) -> object:
        kept = Clings()
        if is_raised:
            raise ValueError("no luck")
        return [kept]

    ended(session.start(clings))
    for _ in range(2):
        ended(session.start(agents.failing))
    assert entered.wait(BOUND_S)
    assert ended(session.start(agents.instant, "tea")).output == "done: tea"
