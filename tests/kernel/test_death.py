"""Kernels that die, restart and share a folder: what the next one finds."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

import pytest

from tests.kernel.cells import error_line, loaded, run_ok, stored, stored_events, value, wait_for_status, wait_for_text
from tests.kernel.driver import CONTROL_TIMEOUT_S, Kernel


def shut_down(kernel: Kernel, *, restart: bool = False) -> None:
    """Ask the kernel to shut down; return when it answers, or is gone with its answer unsent."""
    client = kernel.client
    client.control_channel.send(client.session.msg("shutdown_request", {"restart": restart}))
    give_up_at = time.monotonic() + CONTROL_TIMEOUT_S
    while kernel.is_alive:
        assert time.monotonic() < give_up_at, "the kernel goes on"
        try:
            reply = client.get_control_msg(timeout=0.1)
        except queue.Empty:
            continue
        if reply["msg_type"] == "shutdown_reply":
            break


def test_a_killed_kernels_run_is_lost_with_all_it_had_shown(renewed_kernel: Kernel) -> None:
    """After SIGKILL the next kernel shows the run as `lost`; every event that was public is there, without gap."""
    kernel = renewed_kernel
    run_ok(
        kernel,
        "async def talker(prompt, run):\n"
        "    with run.tool('search', {'q': prompt}):\n"
        "        pass\n"
        "    for n in range(100_000):\n"
        "        yield f'word{n} '\n"
        "        await asyncio.sleep(0.002)",
    )
    run_ok(kernel, "%%agentrun talker -n talk\ntea")
    kernel.wait_until(lambda: len(stored_events(kernel.folder, "talk")) > 100)
    # What the kernel itself shows, in the words of a card or a loop over the run.
    shown = value(kernel, "[(e.seq, e.type, e.ts) for e in nbrun.get('talk').events()]")
    kernel.kill()
    before = stored_events(kernel.folder, "talk")
    record = stored(kernel.folder, "talk")
    assert record is not None
    assert record.status == "running"
    kernel.restart()

    loaded(kernel)
    run_ok(kernel, "run = nbrun.get('talk')")
    assert value(kernel, "(str(run.status), str(run.cause), run.done())") == ("('lost', 'kernel_died', True)")
    after = value(kernel, "[(e.seq, e.type, e.ts) for e in run.events()]")
    assert after.startswith(shown.removesuffix("]"))
    events = stored_events(kernel.folder, "talk")
    assert events[:-1] == before
    assert events[-1].type == "run.lost"
    assert [event.seq for event in events] == list(range(len(events)))
    words = "".join(e.data.text for e in events if e.type == "text.delta")  # type: ignore[attr-defined]
    assert words == "".join(f"word{n} " for n in range(words.count("word")))
    assert value(kernel, "run.text") == repr(words)

    line = error_line(kernel.run("run.result()"))
    assert line.startswith("RunLost: ")
    assert "run.events()" in line
    assert "Lost: its kernel died" in str(run_ok(kernel, "%agentrun show talk").outputs)
    assert "has already ended" in run_ok(kernel, "%agentrun cancel talk").stdout
    # Nothing that was entered runs again, and the next run has the next number.
    run_ok(kernel, "%%agentrun say -b -n next\nhi")
    assert value(kernel, "nbrun.get('next').number == run.number + 1") == "True"
    assert value(kernel, "str(nbrun.get('talk').status)") == "'lost'"


def test_a_queued_run_of_a_killed_kernel_is_lost_too(renewed_kernel: Kernel) -> None:
    """What waited in line when the kernel died was never entered, and does not stay "queued" for ever."""
    kernel = renewed_kernel
    run_ok(kernel, "%%agentrun endless -n first\nhi", cell_id="same")
    run_ok(kernel, "%%agentrun endless -n second\nhi", cell_id="same")
    wait_for_text(kernel, "first")
    wait_for_status(kernel, "second", "queued")
    kernel.kill()
    kernel.restart()
    loaded(kernel)
    assert value(kernel, "[str(run.status) for run in nbrun.runs()]") == "['lost', 'lost']"
    assert value(kernel, "nbrun.get('second').started_at") == "None"


def test_a_finished_run_is_whole_after_a_restart(renewed_kernel: Kernel) -> None:
    """Output, events, tools and usage read in the new kernel are those of the old one."""
    kernel = renewed_kernel
    code = (
        "(run.output, run.name, str(run.status), run.record.tags, run.record.tools, run.usage,"
        " run.record.prompt, run.started_at, run.ended_at, run.events())"
    )
    run_ok(kernel, "%%agentrun --model scripted -b -n poem --tag kind=haiku -o run\nWrite a haiku.")
    whole = value(kernel, code)
    assert "Steam curls" in whole
    run_ok(kernel, "def give(prompt): return {'cups': [1, 2.5, None], 'tea': 'grün'}")
    run_ok(kernel, "%%agentrun give -b\nhi")
    kernel.restart()

    loaded(kernel)
    assert value(kernel, "nbrun.get('last').output") == ("{'cups': [1, 2.5, None], 'tea': 'grün'}")
    run_ok(kernel, "run = nbrun.get('poem')")
    assert value(kernel, code) == whole
    assert value(kernel, "run.result()") == value(kernel, "run.output")
    assert value(kernel, "(await run) == run.output") == "True"
    assert value(kernel, "len(nbrun.runs())") == "2"


@pytest.mark.parametrize("agent", ["endless", "tidy", "stubborn"])
def test_a_shutdown_records_the_live_run_and_is_not_held_up(loaded_kernel: Kernel, agent: str) -> None:
    """The shutdown request is answered within the bound, whatever the agent does; the run is `cancelled`."""
    kernel = loaded_kernel
    run_ok(kernel, f"%%agentrun {agent} -n live\nhi")
    wait_for_text(kernel, "live")
    shut_down(kernel)
    record = stored(kernel.folder, "live")
    assert record is not None
    assert (record.status, record.cause, record.text) == ("cancelled", "shutdown", "begun ")
    assert bool(record.detached) == (agent != "endless")


def test_a_restart_with_a_live_run_records_it(renewed_kernel: Kernel) -> None:
    """As ↻ in a front end: the new kernel finds the run `cancelled` by the shutdown, not `lost`."""
    kernel = renewed_kernel
    run_ok(kernel, "%%agentrun stubborn -n live\nhi")
    wait_for_text(kernel, "live")
    kernel.restart()
    loaded(kernel)
    assert value(kernel, "(str(nbrun.get('live').status), str(nbrun.get('live').cause))") == (
        "('cancelled', 'shutdown')"
    )
    assert "shutdown" in error_line(kernel.run("nbrun.get('live').result()"))


@pytest.mark.parametrize("kernel", ["python3", "6.30"], indirect=True)
def test_a_restart_records_every_live_run_before_the_kernel_goes(loaded_kernel: Kernel) -> None:
    """Running, queued, cleaning up and waited for: each is stored as cancelled by the shutdown, in the old kernel."""
    kernel = loaded_kernel
    run_ok(kernel, "%%agentrun endless -n running\nhi", cell_id="same")
    run_ok(kernel, "%%agentrun endless -n queued\nhi", cell_id="same")
    run_ok(kernel, "%%agentrun tidy -n cleans\nhi")
    kernel.start("%%agentrun endless -b -n waited\nhi")
    for name in ("running", "cleans", "waited"):
        wait_for_text(kernel, name)
    wait_for_status(kernel, "queued", "queued")

    shut_down(kernel, restart=True)
    names = ("running", "queued", "cleans", "waited")
    before = [stored(kernel.folder, name) for name in names]  # what its end alone has left
    for record in before:
        assert record is not None
        assert (record.status, record.cause) == ("cancelled", "shutdown"), record.name
    assert before[1] is not None
    assert before[1].started_at is None  # never entered

    kernel.restart()
    loaded(kernel)
    assert [stored(kernel.folder, name) for name in names] == before
    assert value(kernel, "{str(run.status) for run in nbrun.runs()}") == "{'cancelled'}"


def test_a_shutdown_while_a_cell_waits_for_the_run(loaded_kernel: Kernel) -> None:
    """The request comes on the control thread while the main thread waits in the cell: both end."""
    kernel = loaded_kernel
    kernel.start("%%agentrun endless -b -n live\nhi")
    wait_for_text(kernel, "live")
    shut_down(kernel)
    record = stored(kernel.folder, "live")
    assert record is not None
    assert (record.status, record.cause) == ("cancelled", "shutdown")


def test_two_kernels_share_a_folder(start_kernel: Callable[..., Kernel]) -> None:
    """One store file, unique numbers, no errors; each sees the other's runs and cancels only its own."""
    one, two = loaded(start_kernel()), loaded(start_kernel())
    run_ok(one, "%%agentrun endless -n long -o long\nhi")
    wait_for_text(one, "long")
    cells = [
        kernel.start("runs = [nbrun.start(say, str(n)) for n in range(40)]; [r.result(10) for r in runs]")
        for kernel in (one, two)
    ]
    for cell in cells:
        assert cell.wait().error is None
    numbers = "sorted(r.number for r in nbrun.runs())"
    assert value(one, numbers) == value(two, numbers) == str(list(range(1, 82)))
    assert value(two, "[r.problem for r in runs if r.problem]") == "[]"

    # The other's live run is live here too, and not ours to stop.
    run_ok(two, "other = nbrun.get('long')")
    assert value(two, "(str(other.status), other.done(), other.wait(0.2))") == ("('running', False, False)")
    assert value(two, "str(other.cancel().outcome)") == "'foreign'"
    assert "another kernel" in run_ok(two, "%agentrun cancel long").stdout
    assert run_ok(two, "%agentrun cancel").stdout == "No runs in progress.\n"
    assert value(one, "(str(long.status), long.cause)") == "('running', None)"
    assert "Still running when" in str(run_ok(two, "%agentrun show long").outputs)
    # Loading again looks for the lost; the neighbour's run is not.
    run_ok(two, "%reload_ext nbrun\nother = nbrun.get('long')")
    assert value(two, "str(other.status)") == "'running'"

    waits = two.start("print('waiting', flush=True); print(other.wait(10), str(other.status))")
    two.wait_until(lambda: "waiting" in waits.stdout)
    run_ok(one, "long.cancel('enough')")
    assert waits.wait().stdout.splitlines()[-1] == "True cancelled"
    assert value(two, "(other.reason, other.text)") == "('enough', 'begun ')"

    # One dies: the other's next load says so, and its own runs are as they were.
    run_ok(one, "%%agentrun endless -n orphan\nhi")
    wait_for_text(one, "orphan")
    one.kill()
    run_ok(two, "%reload_ext nbrun")
    assert value(two, "str(nbrun.get('orphan').status)") == "'lost'"
    assert value(two, "{str(r.status) for r in nbrun.runs() if r.name == 'say'}") == "{'completed'}"
