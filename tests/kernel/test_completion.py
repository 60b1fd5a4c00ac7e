"""Tab in a real kernel, asked as JupyterLab asks; and in a real terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pexpect  # type: ignore[import-untyped]  # comes with IPython, without types
import pytest

from tests.kernel.cells import LOAD, run_ok, store_file, wait_for_text
from tests.kernel.driver import Kernel


def tab(kernel: Kernel, code: str) -> list[str]:
    """Return what a cell becomes by each completion at `|`, without the mark."""
    before, _mark, after = code.partition("|")
    content = {"code": before + after, "cursor_pos": len(before)}
    asked = kernel._executions[kernel.send("complete_request", content)]
    kernel.wait_until(lambda: asked.reply is not None)
    reply = asked.reply or {}
    assert reply["status"] == "ok"
    start, end = reply["cursor_start"], reply["cursor_end"]
    return [f"{(before + after)[:start]}{match}{(before + after)[end:]}" for match in reply["matches"]]


def test_completion_comes_and_goes_with_the_extension(kernel: Kernel) -> None:
    """Before the load and after the unload Tab is as it was; with it, no file is made by it."""
    bare = tab(kernel, "%agentrun |")
    run_ok(kernel, LOAD)
    assert "%agentrun cancel" in tab(kernel, "%agentrun |")
    assert tab(kernel, "%agentrun show |") == []
    assert not store_file(kernel.folder).parent.exists()
    run_ok(kernel, "%unload_ext nbrun")
    assert tab(kernel, "%agentrun |") == bare
    assert "%agentrun cancel" not in bare


@pytest.mark.parametrize("has_jedi", [True, False], ids=["jedi", "no-jedi"])
@pytest.mark.parametrize("is_new", [True, False], ids=["completions", "complete"])
def test_a_line_is_completed_in_place(shared_kernel: Kernel, *, has_jedi: bool, is_new: bool) -> None:
    """By both of IPython's ways, with Jedi and without: ours only, at the right place, in cells of many lines."""
    kernel = shared_kernel
    run_ok(kernel, f"%config IPCompleter.use_jedi = {has_jedi}")
    run_ok(kernel, f"get_ipython().kernel.use_experimental_completions = {is_new}")
    run_ok(kernel, "nbrun.session().cancel_all()\nfor run in nbrun.runs(): run.wait(5)")
    run_ok(kernel, "%%agentrun say -n 'green tea' -b\nhi")
    run_ok(kernel, "%%agentrun endless -o live\nhi")
    wait_for_text(kernel, "endless")
    number = run_ok(kernel, "live.number").result
    assert tab(kernel, "%agentrun canc|") == ["%agentrun cancel"]
    assert tab(kernel, "x = 1\n%agentrun cancel |\ny = 2") == [
        f"x = 1\n%agentrun cancel {ref}\ny = 2" for ref in (f"#{number}", "last", "endless")
    ]
    assert tab(kernel, f"%agentrun show #{number}|") == [f"%agentrun show #{number}"]
    assert tab(kernel, "%agentrun show gre|") == ["%agentrun show 'green tea'"]
    assert tab(kernel, "%%agentrun endl|\nthe prompt") == ["%%agentrun endless\nthe prompt"]
    assert tab(kernel, "%%agentrun endless --if|\nhi") == ["%%agentrun endless --if-running\nhi"]
    assert tab(kernel, "%%agentrun endless --approve=a|") == [
        "%%agentrun endless --approve=ask",
        "%%agentrun endless --approve=auto",
    ]
    assert tab(kernel, "%%agentrun endless --timeout |\nhi") == []
    assert "%config" in tab(kernel, "%confi|")  # others' lines stay theirs


def test_tab_completes_in_a_terminal(tmp_path: Path) -> None:
    """In IPython's own prompt."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("NBRUN_")}
    # It would ask the terminal where the cursor is, and wait for an answer.
    env |= {"IPYTHONDIR": str(tmp_path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    arguments = ["-m", "IPython", "--no-banner", "--no-confirm-exit"]
    child = pexpect.spawn(
        sys.executable, arguments, cwd=str(tmp_path), env=env, encoding="utf-8", timeout=30, dimensions=(40, 160)
    )
    try:
        child.expect(r"In .*1.*: ")
        child.send(f"{LOAD}\r")
        child.expect(r"In .*2.*: ")
        child.send("%agentrun canc\t")
        child.expect("el")  # only what is new may be drawn
        child.send(" --all\r")
        child.expect_exact("No runs in progress.")
    finally:
        child.close(force=True)
