"""The process executor: the same runs, and whatever an agent does its process can be stopped."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import psutil
import pytest

import nbrun
from nbrun import CancelCause, NotebookSession, Run, RunContext, RunStatus
from nbrun.agents import Process
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung
from nbrun.core.errors import BadOption, RunFailed
from nbrun.core.line_buffer import Printed
from nbrun.host.driver import Driver
from nbrun.host.process import pickling, protocol
from nbrun.host.process.group import ProcessGroup
from tests.fakes import agents, process_agents as fakes
from tests.fakes.agents import BOUND_S, Held

MakeSession = Callable[..., NotebookSession]
Children = Callable[[], set[psutil.Process]]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")

ROOT = Path(__file__).resolve().parents[3]
GRACE_S = 0.2


def start(session: NotebookSession, agent: object, prompt: str = "it", **options: object) -> Run:
    """Start a run in a process of its own."""
    return session.start(agent, prompt, on="process", **options)  # type: ignore[arg-type]


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def wait_for_phase(run: Run, phase: str = "entered") -> None:
    """Return when the run says that it is in this phase."""

    async def follow() -> None:
        async for event in run:
            if isinstance(event.data, ev.RunPhase) and event.data.phase == phase:
                return

    asyncio.run(asyncio.wait_for(follow(), BOUND_S))


def told(run: Run, name: str) -> int:
    """Return the process id that the agent told under this name."""
    (pid,) = [e.data.value for e in run.events() if isinstance(e.data, ev.Custom) and e.data.name == name]
    assert isinstance(pid, int)
    return pid


def rungs(run: Run) -> list[Rung]:
    """Return the rungs of the cancel ladder that were used."""
    return [e.data.rung for e in run.events() if isinstance(e.data, ev.CancelEscalated)]


def logged(run: Run) -> list[tuple[str, str]]:
    """Return level and text of what was logged, in order."""
    return [(e.data.level, e.data.text) for e in run.events() if isinstance(e.data, ev.Log)]


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, waited for by its parent or not."""
    try:
        return str(psutil.Process(pid).status()) == "zombie"
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def new_children() -> Children:
    """Returns the children of this process that it did not have before the test; others' tests may keep some."""
    before = set(psutil.Process().children())
    return lambda: set(psutil.Process().children()) - before


def wait_until(holds: Callable[[], bool], what: str, bound_s: float = BOUND_S) -> None:
    """Return when something holds that nobody tells of."""
    until = time.monotonic() + bound_s
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < until, what
        pause.wait(0.01)


def wait_until_gone(pid: int, bound_s: float = BOUND_S) -> None:
    """Return when a process has ended."""
    wait_until(lambda: is_gone(pid), f"process {pid} lives", bound_s)


# --- what works as it does here ----------------------------------------------------------------------


def test_a_run_is_the_same_in_a_process_of_its_own(session: NotebookSession) -> None:
    """Text, tool, progress, prints, `current()` and the result come as they do from a local run."""
    run = ended(start(session, fakes.says))
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    assert run.output == {"pid": told(run, "pid"), "same": True, "folder": os.getcwd()}
    assert told(run, "pid") != os.getpid()
    assert run.record.text == "some text"
    (tool,) = run.record.tools
    assert (tool.name, tool.args, tool.result, tool.status) == ("look", {"at": "it"}, 42, "ok")
    assert {("stdout", "printed"), ("stdout", "written")} == set(logged(run))
    events = run.events()
    assert [e.seq for e in events] == list(range(len(events)))
    assert [e.ts for e in events[1:]] == sorted(e.ts for e in events[1:])
    assert (events[1].type, events[-1].type) == ("run.started", "run.completed")


def test_what_is_printed_before_the_start_follows_it(session: NotebookSession) -> None:
    """A line that the making of the agent prints, in its process, is logged after `run.started`."""
    run = ended(start(session, fakes.Loud()))
    assert [event.type for event in run.events()[1:3]] == ["run.started", "log"]
    assert logged(run) == [("stdout", "made")]


def test_every_word_of_a_long_stream_arrives(session: NotebookSession) -> None:
    """Twenty thousand deltas come whole, in order, and make the output."""
    count = 20_000
    run = ended(start(session, fakes.streams, str(count)))
    assert run.output == "".join(f"{number} " for number in range(count))
    assert len(run.events()) == count + 3


@pytest.mark.parametrize("thread", [False, True])
def test_sync_and_threaded_agents_work_there_too(session: NotebookSession, *, thread: bool) -> None:
    """A sync agent gets its thread in the process, an async one does with `thread`."""
    assert start(session, agents.counting, thread=thread).result(BOUND_S) == 3
    assert start(session, agents.talking, thread=thread).result(BOUND_S) == "one two three"


def test_an_agent_of_the_notebook_takes_along_what_it_uses(session: NotebookSession, tmp_path: Path) -> None:
    """A cell's function goes by value with the globals that it uses; another global, which could not, stays."""
    with (tmp_path / "open.txt").open("w") as file:
        cell = {"__name__": "__main__", "unused": file}
        code = "limit = 3\ndef helper(n): return n * limit\nasync def agent(prompt): return helper(14)"
        exec(code, cell)  # noqa: S102 - as a cell is run
        assert start(session, cell["agent"]).result(BOUND_S) == 42
        seven = 7
        assert start(session, lambda prompt: f"{prompt} {seven}").result(BOUND_S) == "it 7"


def test_modules_beside_the_notebook_are_found(
    session: NotebookSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel can import the process can import too."""
    (tmp_path / "beside_the_notebook.py").write_text("ANSWER = 42\n")
    monkeypatch.syspath_prepend(tmp_path)

    async def imports(prompt: str) -> int:
        import beside_the_notebook  # type: ignore[import-not-found]  # written above

        answer: int = beside_the_notebook.ANSWER
        return answer

    assert start(session, imports).result(BOUND_S) == 42


def test_a_module_that_cannot_be_had_there_fails_the_run(
    session: NotebookSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent of a module that only this process knows fails, and the error names the module."""
    module = type(sys)("only_here")
    exec("async def agent(prompt): return 1", module.__dict__)  # noqa: S102 - a module made by hand
    monkeypatch.setitem(sys.modules, "only_here", module)
    run = ended(start(session, module.agent))
    assert run.status is RunStatus.FAILED
    assert "only_here" in str(run.error)


def test_the_scripted_agent_travels(session: NotebookSession) -> None:
    """The built-in agent without a model runs in a process as well."""
    run = ended(start(session, None, model="scripted"))
    assert (run.status, run.record.tools[0].result) == (RunStatus.COMPLETED, 5)


# --- errors ------------------------------------------------------------------------------------------


def test_an_error_comes_with_its_traceback(session: NotebookSession) -> None:
    """What an agent raises fails its run, with its own lines as traceback."""
    run = ended(start(session, fakes.fails))
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert str(run.error) == "ValueError: no luck with it"
    assert "process_agents.py" in run.error.traceback
    assert "nbrun/drive.py" not in run.error.traceback
    with pytest.raises(RunFailed, match="no luck"):
        run.result()


def test_system_exit_is_an_error_like_any_other(session: NotebookSession) -> None:
    """`SystemExit` fails the run; it is not taken for the death of the process."""
    run = ended(start(session, fakes.exits_by_name))
    assert (run.status, str(run.error)) == (RunStatus.FAILED, "SystemExit: 3")


def test_a_process_that_exits_is_named_by_its_code(session: NotebookSession) -> None:
    """`os._exit(7)` fails the run: the code, the last words, the text, tools and usage until then are kept."""
    run = ended(start(session, fakes.exits_at_once))
    assert (run.status, run.cause) == (RunStatus.FAILED, CancelCause.ERROR)
    assert run.error is not None
    assert "the run's process ended with exit code 7" in run.error.message
    assert run.error.traceback.endswith("very last words\n")
    assert [tool.status for tool in run.record.tools] == ["error"]
    assert (run.usage.input_tokens, run.usage.exact) == (5, False)


def test_a_crash_is_named_by_its_signal(session: NotebookSession) -> None:
    """A segmentation fault fails its run only, and its traceback says where Python was."""
    run = ended(start(session, fakes.crashes))
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert "killed by SIGSEGV" in run.error.message
    assert "process_agents.py" in run.error.traceback


def test_an_agent_that_writes_to_any_socket_fails_its_own_run_only(session: NotebookSession) -> None:
    """What is no message on the way to the kernel fails the run, and its process is killed; the next run is fine."""

    async def scribbles(prompt: str, run: RunContext) -> None:
        run.emit("pid", os.getpid())
        print("all before this line is sent")
        for fd in map(int, os.listdir("/dev/fd")):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, b"\0\0\0\4junk")
        await asyncio.Event().wait()

    run = ended(start(session, scribbles))
    assert run.status is RunStatus.FAILED
    wait_until_gone(told(run, "pid"))
    assert start(session, agents.counting).result(BOUND_S) == 3


@pytest.mark.parametrize("agent", [fakes.prints_and_exits, fakes.prints_and_crashes])
def test_what_was_printed_before_the_death_is_kept(session: NotebookSession, agent: object) -> None:
    """A line that was printed is on its way before the agent's next one, which may be the process's last."""
    for _ in range(3):
        run = ended(start(session, agent))
        assert run.status is RunStatus.FAILED
        assert [entry for entry in logged(run) if entry[0] == "stdout"] == [("stdout", "one"), ("stdout", "two")]


def test_a_killed_process_is_noticed_at_once(session: NotebookSession) -> None:
    """SIGKILL from outside fails the run within a second, and its message names the likely reason."""
    run = start(session, fakes.waits)
    wait_for_phase(run)
    os.kill(told(run, "pid"), signal.SIGKILL)
    assert run.wait(1.0)
    assert (run.status, run.output) == (RunStatus.FAILED, "so far")
    assert "killed by SIGKILL (out of memory?)" in str(run.error)
    assert ended(start(session, fakes.killed_by_others)).status is RunStatus.FAILED


def test_a_death_while_a_fork_lives_is_noticed_too(session: NotebookSession) -> None:
    """A fork of the agent's keeps the channel open; its parent's death is seen all the same, and takes it along."""

    async def forks(prompt: str, run: RunContext) -> None:
        child = os.fork()
        if child == 0:
            signal.pause()
        run.emit("child", child)
        fakes.enter(run)
        await asyncio.Event().wait()

    run = start(session, forks)
    wait_for_phase(run)
    os.kill(told(run, "pid"), signal.SIGKILL)
    assert run.wait(1.0)
    assert run.status is RunStatus.FAILED
    wait_until_gone(told(run, "child"))


# --- what cannot travel ------------------------------------------------------------------------------


def _with_lock(_log: TextIO) -> object:
    lock = threading.Lock()
    return lambda prompt: lock.locked()


def _with_generator(_log: TextIO) -> object:
    numbers = (number for number in range(3))

    def inner() -> int:
        return next(numbers)

    return lambda prompt: inner()


def _with_file(log: TextIO) -> object:
    return functools.partial(lambda prompt, out: out.write(prompt), out=log)


class Service:
    """An agent's object, whose method is the agent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def run(self, prompt: str) -> bool:
        """Be an agent."""
        return self.lock.locked()


def _with_method(_log: TextIO) -> object:
    return Service().run


def _with_self(_log: TextIO) -> object:
    return Held()


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (_with_lock, r"'lock' \(_thread.lock\)"),
        (_with_generator, r"'numbers' \(generator\)"),
        (_with_file, r"'out' \(_io.TextIOWrapper\)"),
        (_with_method, r"'Service.run' cannot go .*: 'lock' \(_thread.lock\)"),
        (_with_self, r"'entered' \(threading.Event\)"),
    ],
)
def test_what_cannot_travel_is_named_before_anything_is_begun(
    session: NotebookSession, store_path: Path, tmp_path: Path, make: Callable[[TextIO], object], culprit: str
) -> None:
    """One line names the part and the mend; there is no run, no file and no id used up."""
    line = f"{culprit} cannot be pickled; make it inside the agent, or leave out --on process"
    with (tmp_path / "log.txt").open("w") as log, pytest.raises(BadOption, match=line):
        start(session, make(log))
    assert session.runs() == []
    assert not store_path.exists()
    assert session.start(agents.instant).id == "run-seq-0"


def test_an_agent_that_refuses_to_be_pickled_is_one_line() -> None:
    """An object whose own code raises while it is packed is refused, with what it said."""

    class Refuses:
        def __call__(self, prompt: str) -> None:
            """Never called."""

        def __reduce__(self) -> str:
            raise RuntimeError("not me")

    with pytest.raises(BadOption, match=r"\(not me\); make it inside the agent"):
        pickling.pack(Refuses())


# --- signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [fakes.alarmed, fakes.alarmed_on_the_loop])
@pytest.mark.parametrize("thread", [False, True])
def test_an_agent_has_the_main_thread_and_handles_signals(
    session: NotebookSession, agent: object, *, thread: bool
) -> None:
    """Sync agents have it themselves, async ones by their loop."""
    run = ended(start(session, agent, thread=thread))
    assert (run.error, run.output) == (None, "True True")


def test_an_interrupt_meets_the_agents_code(session: NotebookSession) -> None:
    """As in any program."""
    assert ended(start(session, fakes.interrupts_itself)).output == "interrupted"


def test_an_interrupt_of_an_agent_that_waits_cancels_its_run(session: NotebookSession) -> None:
    """Somebody has sent it to the process."""
    run = start(session, fakes.is_interrupted)
    wait_for_phase(run)
    os.kill(told(run, "pid"), signal.SIGINT)
    assert (ended(run).status, run.cause, run.reason) == (RunStatus.CANCELLED, CancelCause.INTERRUPT, "SIGINT")


# --- cancel ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [fakes.waits, fakes.waits_in_thread])
def test_a_cancel_reaches_the_agent(make_session: MakeSession, agent: object) -> None:
    """An agent that minds its cancel ends long before the grace is over; nothing has to be killed."""
    session = make_session(cancel_grace_s=BOUND_S)
    run = start(session, agent)
    wait_for_phase(run)
    assert run.cancel("enough").wait(BOUND_S / 2)
    assert (run.status, run.cause, run.reason) == (RunStatus.CANCELLED, CancelCause.USER, "enough")
    assert (run.output, run.record.detached) == ("so far", ())
    assert Rung.PROCESS not in rungs(run)
    assert {tool.status for tool in run.record.tools} <= {"cancelled"}
    wait_until_gone(told(run, "pid"))


@pytest.mark.parametrize("agent", [fakes.swallows, fakes.sleeps_in_c, fakes.blocks_loop, fakes.holds_interpreter])
def test_whoever_minds_no_cancel_is_killed(session: NotebookSession, agent: object) -> None:
    """After the grace the group is killed: the run ends cancelled, with what it had said, nothing left behind."""
    run = start(session, agent)
    wait_for_phase(run)
    began = time.monotonic()
    assert run.cancel().wait(BOUND_S)
    took_s = time.monotonic() - began
    assert is_gone(told(run, "pid"))
    assert (run.status, run.cause) == (RunStatus.CANCELLED, CancelCause.USER)
    assert str(run.output).startswith("so far")
    assert (run.record.detached, rungs(run)[-1]) == ((), Rung.PROCESS)
    assert Rung.DETACHED not in rungs(run)
    assert took_s >= GRACE_S
    (end,) = [e for e in run.events() if e.type in ev.END_TYPES]
    assert end == run.events()[-1]


def test_a_cancelled_group_dies_whole(session: NotebookSession) -> None:
    """A program that the agent has started dies with it, whatever signals it minds; usage is a lower bound."""
    run = start(session, fakes.spawns)
    wait_for_phase(run)
    assert run.cancel().wait(BOUND_S)
    wait_until_gone(told(run, "child"))
    assert (run.usage.input_tokens, run.usage.exact) == (5, False)


def test_nothing_stays_after_a_normal_end(session: NotebookSession) -> None:
    """A program that a completed agent has left running is killed, without holding up the run's end."""
    run = ended(start(session, fakes.leaves_behind))
    assert run.output == "done"
    child = told(run, "child")
    wait_until_gone(child)
    assert run.record.detached == ()
    assert run.record.notices[-1] == f"ended with the process of the run: sh (process {child})"


def test_a_cancel_before_the_start_never_enters_the_agent(
    session: NotebookSession, tmp_path: Path, new_children: Children
) -> None:
    """A run that is cancelled while its process comes up ends at once, and its agent leaves no trace."""
    trace = tmp_path / "entered"

    async def leaves_trace(prompt: str) -> None:
        trace.write_text("here")

    run = start(session, leaves_trace)
    wait_until(lambda: new_children() != set(), "no process")
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.started_at) == (RunStatus.CANCELLED, None)
    assert rungs(run) == []
    session.close()
    assert not trace.exists()


def test_a_cancel_in_line_starts_no_process(make_session: MakeSession, held: Held, new_children: Children) -> None:
    """A run that is cancelled while it waits for its turn ends without a process."""
    session = make_session(max_concurrent=1)
    session.start(held)
    run = start(session, fakes.says)
    assert run.cancel().wait(BOUND_S)
    assert [e.type for e in run.events()] == ["run.created", "cancel.requested", "run.cancelled"]
    assert new_children() == set()
    assert "nbrun-processes" not in [thread.name for thread in threading.enumerate()]


def test_a_token_that_the_agent_fires_is_fired_here_too(session: NotebookSession) -> None:
    """An agent that cancels itself ends cancelled, and the request stands in the log before the end."""
    run = ended(start(session, fakes.cancels_itself))
    assert (run.status, run.reason) == (RunStatus.CANCELLED, "had enough")
    types = [e.type for e in run.events()]
    assert types.index("cancel.requested") < types.index("run.cancelled")


@pytest.mark.parametrize("agent", [fakes.waits, fakes.blocks_loop])
def test_a_time_limit_holds_whatever_the_agent_does(session: NotebookSession, agent: object) -> None:
    """A deadline ends the run as `deadline`, also where the agent blocks the loop that could tell it."""
    run = ended(start(session, agent, timeout_s=1.2))
    assert (run.status, run.cause) == (RunStatus.CANCELLED, CancelCause.DEADLINE)
    request = next(e.data for e in run.events() if isinstance(e.data, ev.CancelRequested))
    assert request.by == "its time limit"
    assert run.started_at is not None
    assert run.ended_at is not None
    assert run.ended_at - run.started_at >= 1.2
    assert run.record.notices == ()  # to block a loop of one's own is no fault


# --- side by side ------------------------------------------------------------------------------------


def test_a_local_run_is_not_disturbed(session: NotebookSession, held: Held) -> None:
    """While a process is killed and another dies, a local run goes on; a blocked local loop disturbs no process."""
    neighbour = session.start(held)
    assert held.entered.wait(BOUND_S)
    killed, died = start(session, fakes.swallows), start(session, fakes.exits_at_once)
    wait_for_phase(killed)
    killed.cancel()
    ended(killed), ended(died)
    assert neighbour.status is RunStatus.RUNNING
    held.let_go()
    assert neighbour.result(BOUND_S) == "held"
    blocker = agents.BlockingLoop()
    run = start(session, fakes.waits)
    wait_for_phase(run)
    session.start(blocker)
    try:
        assert blocker.entered.wait(BOUND_S)
        assert run.cancel().wait(BOUND_S / 2)
    finally:
        blocker.gate.set()


def test_ten_at_once_leave_nothing(make_session: MakeSession, new_children: Children) -> None:
    """Ten processes side by side come to their ends; no thread, file descriptor or child of them is left."""
    session = make_session(max_concurrent=10)
    me = psutil.Process()
    assert ended(start(session, fakes.says)).events()  # what a session itself needs is there now
    wait_until(lambda: new_children() == set(), "a child is left")
    before = me.num_fds(), threading.active_count()
    runs = [start(session, fakes.says) for _ in range(10)]
    pids = {told(ended(run), "pid") for run in runs}
    assert len(pids) == 10
    assert {run.status for run in runs} == {RunStatus.COMPLETED}
    wait_until(lambda: new_children() == set(), "children are left")
    wait_until(lambda: threading.active_count() <= before[1], "threads are left")
    wait_until(lambda: me.num_fds() <= before[0], "file descriptors are left")


def test_a_word_of_the_session_reaches_the_host(session: NotebookSession) -> None:
    """`control()` comes to the attempt's drive in its process, also when it was said before the agent was entered."""

    async def listens(prompt: str, run: RunContext) -> object:
        heard = asyncio.get_running_loop().create_future()
        # In its own process an agent may change what a host does with a word.
        Driver.control = lambda self, op, body: heard.set_result([op, body["text"]])  # type: ignore[method-assign,assignment,return-value]
        return await heard

    run = start(session, listens)
    assert run.live is not None
    wait_until(lambda: run.id in session.parts.scheduler._places, "it isn't sent")
    session.parts.scheduler.control(run.live, "steer", {"text": "left"})
    assert run.result(BOUND_S) == ["steer", "left"]


def test_a_child_run_may_be_in_a_process(session: NotebookSession) -> None:
    """A local run starts a child in a process, and a cancel of the parent ends it; there itself it starts none."""

    async def outer(prompt: str, run: RunContext) -> object:
        return await run.start_child(fakes.swallows, on="process", name="inner")

    parent = session.start(outer)
    wait_until(lambda: any(run.name == "inner" for run in session.runs()), "no child")
    child = session.get("inner")
    wait_for_phase(child)
    assert parent.cancel().wait(BOUND_S)
    assert (child.status, child.cause) == (RunStatus.CANCELLED, CancelCause.PARENT)
    assert is_gone(told(child, "pid"))
    refused = ended(start(session, outer))
    assert "can't start child runs; leave it out" in str(refused.error)


def test_a_cancel_that_comes_when_its_process_has_ended_is_no_error(
    session: NotebookSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its channel is closed by the time that the loop passes the cancel on."""
    put_away = ProcessGroup.put_away

    def cancelled_late(group: ProcessGroup) -> tuple[str, ...]:
        if run.live is not None:
            run.live.token.cancel()
        return put_away(group)

    monkeypatch.setattr(ProcessGroup, "put_away", cancelled_late)
    run = start(session, agents.instant)
    assert ended(run).status is RunStatus.COMPLETED
    wait_until(lambda: run.live is not None and run.live.token.cancelled, "it lingers")
    session.close()
    assert "Exception in callback" not in caplog.text


def test_close_ends_the_processes_in_time(make_session: MakeSession) -> None:
    """Closing the session ends stubborn processes and all they have started in time, grace or no grace."""
    session = make_session(cancel_grace_s=30.0)
    runs = [start(session, agent) for agent in (fakes.spawns, fakes.blocks_loop, fakes.waits)]
    for run in runs:
        wait_for_phase(run)
    runs[0].cancel()  # its grace has begun, and is cut short
    session.close()  # longer than this test may take, if it waited for a grace
    for run in runs:
        assert run.status is RunStatus.CANCELLED
        assert run.cause is (CancelCause.USER if run is runs[0] else CancelCause.SHUTDOWN)
        assert run.record.detached == ()
        wait_until_gone(told(run, "pid"))
    wait_until_gone(told(runs[0], "child"))


# --- forged messages ---------------------------------------------------------------------------------


def _event(data: ev.EventData, ts: float | None = None) -> protocol.PackedEvent:
    return protocol.PackedEvent(time.time() if ts is None else ts, data.TYPE, ev.encode_data(data), None)


FORGED: dict[str, tuple[bytes, str]] = {
    "a length of 4 GiB": (b"\xff\xff\xff\xffx", "are allowed"),
    "one byte too long": ((protocol.MAX_BYTES + 1).to_bytes(4, "big"), "are allowed"),
    "no message": (b"\0\0\0\4junk", "isn't valid"),
    "ready again": (protocol.frame(protocol.Ready()), "ready before"),
    "many secrets": (
        protocol.frame(protocol.Secrets({f"secret-number-{n}": "KEY" for n in range(101)})),
        "more than 100",
    ),
    "a long secret": (protocol.frame(protocol.Secrets({"x" * 33_000: "KEY"})), "longer than"),
    "a control": (protocol.frame(protocol.Control("steer", {})), "only the kernel"),
} | {
    name: (protocol.frame(protocol.Batch([_event(ev.TextDelta("before")), *forged])), why)
    for name, forged, why in [
        ("renamed", [_event(ev.RunCreated("s", "another", "a", number=99))], "can't send run.created"),
        ("lost", [_event(ev.RunLost("no"))], "can't send run.lost"),
        ("requested", [_event(ev.CancelRequested(CancelCause.USER))], "can't send cancel.requested"),
        ("detached", [_event(ev.DetachedFinished("x"))], "can't send detached.finished"),
        ("a child", [_event(ev.ChildStarted("run-seq-0", "mine", 1))], "can't send child.started"),
        ("started again", [_event(ev.RunStarted("process-1"))], "starts once"),
        ("no time", [_event(ev.Log("x"), float("nan"))], "no valid time"),
        ("after the end", [_event(ev.RunCompleted(1)), _event(ev.Log("x"))], "after the end"),
    ]
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_message_fails_the_run_with_one_line(session: NotebookSession, name: str) -> None:
    """It keeps its name and number, and the events before."""
    forged, why = FORGED[name]

    async def forges(prompt: str, run: RunContext) -> None:
        run.text("so far ")
        print("all before this line is sent")
        for fd in map(int, os.listdir("/dev/fd")):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, forged)
        await asyncio.Event().wait()

    run = ended(start(session, forges))
    assert (run.status, run.name, run.number) == (RunStatus.FAILED, "forges", 1)
    assert run.error is not None
    assert run.error.type == "InvalidMessage"
    assert why in run.error.message
    assert run.text.startswith("so far ")


def test_what_a_process_names_as_secret_is_replaced_in_its_run_only(session: NotebookSession) -> None:
    """Its words are no secrets of others, whose texts stay as they are; and of its own, none is stored."""

    async def names(prompt: str, run: RunContext) -> str:
        os.environ["MY_PASSWORD"] = "ordinary words"
        run.text("these are ordinary")
        run.text(" words")
        with run.tool("look", {"at": "ordinary words"}):
            pass
        return "ordinary words"

    def says(prompt: str, run: RunContext) -> str:
        run.text("these are ordinary")
        run.text(" words")
        return "ordinary words"

    run = ended(start(session, names))
    assert (run.text, run.record.output) == ("these are [MY_PASSWORD]", "[MY_PASSWORD]")
    assert run.record.tools[0].args == {"at": "[MY_PASSWORD]"}
    other = ended(session.start(says, ""))
    assert (other.text, other.record.output) == ("these are ordinary words", "ordinary words")
    third = ended(start(session, says))
    assert (third.text, third.record.output) == ("these are ordinary words", "ordinary words")


# --- what leaves -------------------------------------------------------------------------------------

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")


@LINUX
@pytest.mark.parametrize("way", fakes.LEAVE)
def test_what_leaves_dies_with_a_cancelled_run(session: NotebookSession, way: str) -> None:
    """Neither a session of its own nor the death of its parent saves it."""
    run = start(session, fakes.leaves_and_swallows, way)
    wait_for_phase(run)
    assert not is_gone(told(run, "child"))
    assert run.cancel().wait(BOUND_S)
    assert is_gone(told(run, "child"))
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())


@LINUX
@pytest.mark.parametrize("way", ["daemon", "without environment"])
@pytest.mark.parametrize(
    ("agent", "status"),
    [
        (fakes.leaves_and_crashes, RunStatus.FAILED),
        (fakes.leaves_and_is_killed, RunStatus.FAILED),
        (fakes.leaves_and_returns, RunStatus.COMPLETED),
    ],
)
def test_what_leaves_dies_with_the_process_of_its_run(
    session: NotebookSession, agent: object, status: RunStatus, way: str
) -> None:
    """However that ends."""
    run = ended(start(session, agent, way))
    assert run.status is status
    wait_until_gone(told(run, "child"))
    wait_until_gone(told(run, "pid"))
    if agent is fakes.leaves_and_crashes:
        assert "ended with exit code 7" in str(run.error)


@LINUX
def test_what_was_killed_has_a_moment_to_die(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a process is still there just after its SIGKILL: it is not named as left behind."""
    looks = iter(range(3))
    is_alive = Process.is_alive
    monkeypatch.setattr(Process, "is_alive", lambda process: next(looks, None) is not None or is_alive(process))
    run = start(session, fakes.leaves_and_stops_the_subreaper, "daemon")
    wait_for_phase(run)
    assert run.cancel().wait(BOUND_S)
    assert list(looks) == []
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())


@LINUX
def test_an_agent_that_stops_what_watches_it_is_killed_all_the_same(session: NotebookSession) -> None:
    """And so is what has left: its parent is the one that was stopped."""
    run = start(session, fakes.leaves_and_stops_the_subreaper, "daemon")
    wait_for_phase(run)
    assert run.cancel().wait(BOUND_S)
    wait_until_gone(told(run, "child"))
    wait_until_gone(told(run, "pid"))
    assert run.status is RunStatus.CANCELLED


# --- the kernel dies ---------------------------------------------------------------------------------

KERNEL = """
import os, signal, sys, nbrun
from tests.fakes import process_agents
session = nbrun.NotebookSession(store=sys.argv[1])
agent, way = getattr(process_agents, sys.argv[2]), sys.argv[3]

async def with_program(prompt, run):
    import subprocess
    child = subprocess.Popen(["/bin/sh", "-c", 'trap "" TERM; sleep 600'])
    if way in process_agents.LEAVE:
        process_agents.leave(way, run)
    else:
        run.emit("child", child.pid)
    await agent(prompt, run)

run = session.start(with_program, on="process")
pids = {}
while len(pids) < 2 or run.phase != "entered" or run.text != "so far":
    pids = {e.data.name: e.data.value for e in run.events() if e.type == "custom"}
fork = os.fork() if sys.argv[3] == "forked" else None
if fork == 0:
    signal.pause()  # it holds all that the kernel has open
print(pids["pid"], pids["child"], fork or "", flush=True)
run.wait()
"""


@pytest.mark.parametrize(
    ("agent", "fork"),
    [
        ("waits", ""),
        ("blocks_loop", ""),
        ("holds_interpreter", ""),
        ("blocks_loop", "forked"),
        ("blocks_loop", "daemon"),
        ("holds_interpreter", "without environment"),
    ],
)
def test_a_killed_kernel_leaves_no_orphan(tmp_path: Path, agent: str, fork: str) -> None:
    """SIGKILL of the kernel takes the process and what it has started along, whatever the agent is doing.

    So it does where a fork of the kernel lives on, and keeps open what the kernel had.
    """
    if agent == "holds_interpreter" and sys.platform != "linux":
        pytest.skip("only Linux kills a group by itself")
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL, str(tmp_path / "runs.db"), agent, fork],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert kernel.stdout is not None
    pids = [int(word) for word in kernel.stdout.readline().split()]
    try:
        assert len(pids) == (3 if fork == "forked" else 2)
        assert not any(map(is_gone, pids))
        if agent == "holds_interpreter":  # it does when it computes, and no more sleeps
            process = psutil.Process(pids[0])
            used_s = process.cpu_times().user
            wait_until(lambda: process.cpu_times().user > used_s + 0.2, "it does not compute")
        kernel.kill()
        for pid in pids[:2]:
            wait_until_gone(pid, 4.0)
    finally:
        for pid in pids[2:]:
            os.kill(pid, signal.SIGKILL)
        kernel.kill()
        kernel.communicate()


# --- small parts -------------------------------------------------------------------------------------


def test_printed_bytes_become_whole_lines() -> None:
    """Lines are given when they are whole, characters when all their bytes are here, the rest at the end."""
    printed = Printed("stdout")
    assert printed.feed(b"one\ntw") == "one"
    assert printed.feed(b"o \xc3") == ""
    assert printed.feed(b"\xa4\n\nrest") == "two ä\n"
    assert printed.rest() == "rest"
    assert printed.feed(b"") == ""
    assert printed.tail == "one\ntwo ä\n\nrest"


def test_what_is_cut_of_printed_text_is_cut_between_words() -> None:
    """A line without an end waits for a space to be cut at, and last words begin with a line: no half of a secret."""
    printed = Printed("stdout")
    assert printed.feed(b"word " * 2_500 + b"half-") == ("word " * 2_500).removesuffix(" ")
    assert printed.feed(b"a-secret\n") == "half-a-secret"
    # Without one it is marked as cut, on both sides: a half of a secret is found beside the mark.
    assert printed.feed(b"x" * 10_001) == "x" * 6_001 + "…"
    assert printed.feed(b"\n") == "…" + "x" * 4_000
    printed.feed(b"a-long-line\n" * 1_000)
    assert printed.last_words() == "a-long-line\n" * (4_000 // 12)


def test_nbrun_does_not_grow_for_those_who_need_no_process() -> None:
    """Importing nbrun loads neither cloudpickle nor the process executor."""
    ask = "import sys, nbrun; print(*(m for m in sys.modules if 'pickle' in m or 'run_process' in m))"
    answer = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "cloudpickle" not in answer.stdout
    assert "run_process" not in answer.stdout
    assert nbrun.__doc__
