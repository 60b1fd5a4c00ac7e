"""`%agentrun doctor` in a real kernel: what is fine, what is not, and that looking leaves nothing behind."""

from __future__ import annotations

import re
import sqlite3

import pytest

from tests.kernel.cells import LOAD, run_ok, value, wait_for_text
from tests.kernel.driver import Execution, Kernel

WIDGET = "application/vnd.jupyter.widget-view+json"
THREADS = "sorted(t.name for t in threading.enumerate())"
FILES = "len(os.listdir('/proc/self/fd'))"


def lines_of(cell: Execution) -> dict[str, str]:
    """Return doctor's lines by their subject, those of one subject joined."""
    found: dict[str, str] = {}
    for line in cell.outputs[0]["data"]["text/plain"].splitlines():
        match = re.fullmatch(r"(. (?:ok|note|problem) +)([^:]+): (.*)", line)
        assert match is not None, line
        found[match[2]] = f"{found.get(match[2], '')}{match[1]}{match[3]}\n"
    return found


@pytest.mark.parametrize("kernel", ["7.4", "6.30", "7.3"], indirect=True)
def test_a_healthy_kernel_is_told_to_be_so(loaded_kernel: Kernel) -> None:
    """Each thing has its line, the control channel was tried while the cell blocked, and nothing is left of it."""
    kernel = loaded_kernel
    first = run_ok(kernel, "%agentrun doctor")  # what it imports stays
    assert first.result is None
    assert first.stdout + first.stderr == ""
    threads, files = value(kernel, THREADS), int(value(kernel, FILES))
    for _ in range(5):
        cell = run_ok(kernel, "%agentrun doctor")
    assert value(kernel, THREADS) == threads
    assert int(value(kernel, FILES)) < files + 5  # the kernel's own go up and down by one or two
    lines = lines_of(cell)
    told = lines.pop("ipykernel", "")
    assert bool(told) == ("ipykernel 7.3" in lines["versions"])
    assert not told or re.search(r"^• note .*7\.3\..*may lose the request.*ipykernel>=7\.4", told)
    assert set(lines) == {
        "versions", "SQLite", "front end", "control channel", "subshells", "nest_asyncio", "server", "store",
        "signing", "runs", "model calls",
    }  # fmt: skip
    assert re.search(r"^✔ ok .*Python 3.*nbrun \d.*ipykernel \d.*anywidget \d", lines["versions"])
    assert sqlite3.sqlite_version in lines["SQLite"]
    assert re.search(r"^✔ ok .*a notebook", lines["front end"])
    answer = re.search(r"^✔ ok .*answers in (.*) while this cell", lines["control channel"])
    assert answer is not None
    print(f"round trip on the control channel: {answer[1]}")
    assert "not applied" in lines["nest_asyncio"]
    assert re.search(r"enabled|disabled|not installed in this environment", lines["server"])
    assert value(kernel, "[m for m in __import__('sys').modules if m.startswith('nbrun.server')]") == "[]"
    assert "the first one creates" in lines["store"]
    assert re.search(r"^✔ ok .*runs are signed with .*signing\.key", lines["signing"])
    assert re.search(r"^✔ ok .*seen through .*httpx \d.*; requests of other packages aren't", lines["model calls"])
    assert "0 in progress, 0 of them queued; at most 8 run at once" in lines["runs"]
    assert "problem" not in "".join(lines.values())
    assert WIDGET in cell.outputs[1]["data"]  # where the page writes its own


def test_unseen_model_calls_are_told(loaded_kernel: Kernel) -> None:
    """Where they are switched off, and those of a package that isn't watched."""
    kernel = loaded_kernel
    run_ok(kernel, "import sys, types; sys.modules['pycurl'] = types.ModuleType('pycurl')")
    assert re.search(r"• note .*not seen through pycurl", lines_of(run_ok(kernel, "%agentrun doctor"))["model calls"])
    run_ok(kernel, "del sys.modules['pycurl']\n%config NbRun.watch_calls = False")
    line = lines_of(run_ok(kernel, "%agentrun doctor"))["model calls"]
    assert re.search(r"^• note .*not seen: .*%config NbRun\.watch_calls = True", line)
    assert value(kernel, "nbrun.session().watch_calls") == "False"
    run_ok(kernel, "%config NbRun.watch_calls = True")


def test_live_runs_and_the_store_are_told(renewed_kernel: Kernel) -> None:
    """With a run under way and one that waits: the store's file and its room, the line, the agents' loop."""
    kernel = renewed_kernel
    for name in ("one", "two"):
        run_ok(kernel, f"%%agentrun endless -n {name}\nhi", cell_id="the-same")
    wait_for_text(kernel, "one")
    lines = lines_of(run_ok(kernel, "%agentrun doctor"))
    assert re.search(r"^✔ ok .*session\.db, durable, [\d.]+ .*journal mode WAL", lines["store"])
    assert "GB free" in lines["disk"] or "MB free" in lines["disk"]
    assert re.search(r"^• note .*2 in progress, 1 of them queued.*they start when", lines["runs"])
    assert re.search(r"^✔ ok .*answers in ", lines["agents' loop"])


def test_what_is_wrong_is_told_with_its_mend(loaded_kernel: Kernel) -> None:
    """A blocked loop, an unsaved store, a lost handler, a patched loop: each is a problem, and says what to do."""
    kernel = loaded_kernel
    run_ok(kernel, "gate = threading.Event()\nasync def blocking(prompt): gate.wait(30)")
    run_ok(kernel, "os.mkdir('.nbrun'); os.mkdir('.nbrun/session.db')")
    run_ok(kernel, "os.environ['XDG_DATA_HOME'] = '/proc/nothing'\n%reload_ext nbrun")
    run_ok(kernel, "%%agentrun blocking -a\nhi")
    run_ok(kernel, "handler = get_ipython().kernel.control_handlers.pop('nbrun_request')")
    run_ok(kernel, "patched = type('Patched', (), {'__module__': 'nest_asyncio'})")
    run_ok(
        kernel,
        "import types\nmodule = types.ModuleType('nest_asyncio')\n"
        "exec('def run_forever(self): pass', module.__dict__)\n"
        "kind = type(asyncio.get_running_loop())\nkind.run_forever = module.run_forever",
    )
    try:
        lines = lines_of(run_ok(kernel, "%agentrun doctor"))
    finally:
        run_ok(kernel, "del kind.run_forever\ngate.set()")
    assert re.search(r"^✘ problem .*blocked.*--thread", lines["agents' loop"], re.M)
    assert re.search(r"^✘ problem .*in memory only.*make its folder writable", lines["store"])
    assert re.search(r"^• note .*for this kernel only", lines["signing"])
    assert re.search(r"^✘ problem .*handler was removed.*%reload_ext nbrun", lines["control channel"])
    assert re.search(r"^✘ problem .*loses clicks.*nest_asyncio2", lines["nest_asyncio"])


def test_a_silent_control_channel_is_a_problem_and_a_failing_probe_a_line(loaded_kernel: Kernel) -> None:
    """No answer is waited for longer than 2 s; an error of one probe does not hide what the others found."""
    kernel = loaded_kernel
    run_ok(
        kernel,
        "async def silent(*_args): pass\nkernel = get_ipython().kernel\n"
        "kernel.control_handlers['nbrun_request'] = silent\n"
        "extension = get_ipython().nbrun_extension\nheld = extension.session.store\n"
        "extension.session.store = None",
    )
    lines = lines_of(run_ok(kernel, "%agentrun doctor"))
    run_ok(kernel, "extension.session.store = held")
    assert re.search(r"^✘ problem .*no answer in 2 s", lines["control channel"])
    assert re.search(r"^• note .*the check failed: AttributeError", lines["store"])
    assert "versions" in lines


def test_a_headless_notebook_has_no_page_to_ask(renewed_kernel: Kernel) -> None:
    """The output is static, and says why the page was not tried."""
    cell = renewed_kernel.run("%agentrun doctor", headless=True)
    (output,) = cell.outputs
    assert set(output["data"]) == {"text/plain", "text/html"}
    assert "<script" not in output["data"]["text/html"]
    lines = lines_of(cell)
    assert "headless" in lines["front end"]
    assert "not checked: headless" in lines["page"]
    assert "answers in" in lines["control channel"]


def test_the_page_is_answered_and_what_it_finds_stays(kernel: Kernel) -> None:
    """A question down the comm gets its answer; what the page then tells stays, escaped, without the widget."""
    run_ok(kernel, LOAD)
    run_ok(kernel, "%agentrun doctor")
    (comm_id,) = {
        m["content"]["comm_id"]
        for m in kernel.comms
        if m["msg_type"] == "comm_open" and "kernel_id" in m["content"]["data"]["state"]
    }

    def tell(content: object) -> Execution:
        data = {"method": "custom", "content": content}
        msg_id = kernel.send("comm_msg", {"comm_id": comm_id, "data": data})
        return kernel._executions[msg_id]

    tell({"op": "ping", "nonce": "n-1"})
    answer = {"op": "reply", "nonce": "n-1", "outcome": "pong"}
    kernel.wait_until(lambda: any(m["content"].get("data", {}).get("content") == answer for m in kernel.comms))
    finding = {"sign": "ok", "subject": "page", "text": "<b>by message</b> in 6 ms", "fix": ""}
    told = tell({"op": "found", "findings": [finding, 5, {"sign": "evil"}]})
    kernel.wait_until(lambda: bool(told.outputs))
    data = told.outputs[0]["data"]
    assert data["text/plain"].splitlines()[0] == "✔ ok       page: <b>by message</b> in 6 ms"
    assert "&lt;b&gt;" in data["text/html"]
    assert WIDGET not in data
    kernel.wait_until(lambda: any(m["msg_type"] == "comm_close" for m in kernel.comms))
