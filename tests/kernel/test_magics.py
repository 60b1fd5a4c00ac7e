"""The magics in a real kernel: what a line starts, what the subcommands say, what unloading takes away."""

from __future__ import annotations

import pytest

from nbrun.ui.magics.manual import CELL_EXAMPLES, LINE_EXAMPLES, Example
from tests.kernel.cells import AGENTS, LOAD, error_line, run_ok, stored, value, wait_for_text
from tests.kernel.driver import Kernel

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def shared(shared_kernel: Kernel) -> Kernel:
    """The module's kernel, with nothing live in it."""
    run_ok(shared_kernel, "nbrun.session().cancel_all()\nfor run in nbrun.runs(): run.wait(5)")
    return shared_kernel


# --- loading and unloading -------------------------------------------------------------------------


def test_loading_is_silent_and_starts_nothing(kernel: Kernel) -> None:
    """`%load_ext nbrun` prints nothing, makes no file and starts no thread; a second time neither."""
    before = sorted(path.name for path in kernel.folder.iterdir())
    for _ in range(2):
        cell = run_ok(kernel, LOAD)
        assert [m["msg_type"] for m in cell.messages if m["msg_type"] != "status"] == [
            "execute_input"
        ] or cell.stdout == "The nbrun extension is already loaded. To reload it, use:\n  %reload_ext nbrun\n"
    run_ok(kernel, AGENTS)
    assert value(kernel, "nbrun_threads()") == "[]"
    assert sorted(path.name for path in kernel.folder.iterdir()) == before


def test_unloading_takes_everything_away(kernel: Kernel) -> None:
    """Magics, control handler, wrapped shutdown, settings and what they set, streams, threads: as before the load."""
    state = """(
        'agentrun' in ip.magics_manager.magics['cell'], 'agentrun' in ip.magics_manager.magics['line'],
        'nbrun_request' in ip.kernel.control_handlers,
        getattr(ip.kernel.do_shutdown, '__func__', None) is not type(ip.kernel).do_shutdown,
        [c for c in ip.configurables if type(c).__name__ == 'NbRun'] != [],
        ip.Completer.custom_matchers != [],
        type(sys.stdout.write).__name__, type(sys.stderr.write).__name__, type(input).__name__,
    )"""
    run_ok(kernel, AGENTS + "import sys; ip = get_ipython()")
    bare = value(kernel, state)
    assert bare.startswith("(False, False, False, False, False, False")
    run_ok(kernel, LOAD)
    run_ok(kernel, "%%agentrun endless -n long\nhi")
    wait_for_text(kernel, "long")
    assert value(kernel, state).startswith("(True, True, True, True, True, True, 'RunWriter'")

    limits = "__import__('nbrun.calls').calls.GOVERNOR.limits"
    for setting, text in {
        "requests_per_minute = 60": "Limits(requests=60, tokens=None)",
        "tokens_per_minute = 9_000": "Limits(requests=60, tokens=9000)",
        "requests_per_minute = None": "Limits(requests=None, tokens=9000)",
    }.items():
        run_ok(kernel, f"%config NbRun.{setting}")
        assert value(kernel, limits) == text

    cell = run_ok(kernel, "%unload_ext nbrun")
    assert cell.stdout + cell.stderr == "nbrun was unloaded: 1 run cancelled\n"
    assert value(kernel, limits) == "Limits(requests=None, tokens=None)"
    assert value(kernel, state) == bare
    assert value(kernel, "nbrun_threads_left()") == "[]"
    record = stored(kernel.folder, "long")
    assert record is not None
    assert (record.status, record.cause, record.text) == ("cancelled", "shutdown", "begun ")
    assert kernel.run("%%agentrun say\nhi").error is not None
    assert "%load_ext nbrun" in error_line(kernel.run("nbrun.start(say)"))

    # The last that the run's card heard is its end.
    states = [m["content"]["data"].get("state", {}).get("run") for m in kernel.comms]
    last = [state for state in states if state][-1]
    assert last["status"] == "cancelled"
    assert last["words"].startswith("Cancelled by unloading nbrun")
    run_ok(kernel, LOAD)
    assert value(kernel, "nbrun.get('long').status.value") == "'cancelled'"
    run_ok(kernel, "%%agentrun say -b\nagain")
    assert value(kernel, "nbrun.get('last').output") == "'again'"


def test_a_setting_that_is_not_valid_keeps_nobody_from_loading(kernel: Kernel) -> None:
    """It is left out, and named: `%config` keeps a value that it has refused, and a profile may have any."""
    cell = run_ok(kernel, f"get_ipython().config.NbRun.keep_runs = -1\n{LOAD}\nimport nbrun")
    assert "nbrun: the setting NbRun.keep_runs is left out: " in cell.stdout
    for setting in ("max_concurrent = 0", "requests_per_minute = 0", "journal = 'maybe'"):
        kernel.run(f"%config NbRun.{setting}")
        cell = run_ok(kernel, "%reload_ext nbrun")
        assert f"NbRun.{setting.split()[0]} is left out" in cell.stdout
        assert cell.stdout.count("is left out") == 1
    assert run_ok(kernel, "%reload_ext nbrun").stdout == ""
    assert value(kernel, "nbrun.session().max_concurrent") == "8"


def test_reloading_twice_leaves_one_of_everything(loaded_kernel: Kernel) -> None:
    """After `%reload_ext` twice a run starts, answers once, and is told to stop once."""
    kernel = loaded_kernel
    for said in ("", "nbrun was unloaded: 1 run cancelled\n"):
        assert run_ok(kernel, "%reload_ext nbrun").stdout == said
        run_ok(kernel, "%%agentrun endless -n long\nhi")
        wait_for_text(kernel, "long")
    assert value(kernel, "[str(r.status) for r in nbrun.runs()]") == "['running', 'cancelled']"
    assert value(kernel, "nbrun_threads()") == (
        "['nbrun-cards', 'nbrun-host', 'nbrun-watchdog', 'nbrun-writer', 'nbrun-writer-watch']"
    )
    configurables = "[type(c).__name__ for c in get_ipython().configurables].count('NbRun')"
    assert value(kernel, configurables) == "1"
    run_ok(kernel, "%unload_ext nbrun")
    assert value(kernel, "nbrun_threads_left()") == "[]"
    assert value(kernel, "hasattr(get_ipython().kernel.do_shutdown, '__func__')") == "True"


def test_settings_are_shown_and_changed(loaded_kernel: Kernel) -> None:
    """`%config NbRun` lists every setting; a changed one holds for the next run."""
    kernel = loaded_kernel
    listed = run_ok(kernel, "%config NbRun").stdout
    settings = ("model", "store", "max_concurrent", "cancel_grace_s", "card", "reentrant_loop", "secrets")
    for setting in settings:
        assert f"NbRun.{setting}=" in listed
    assert "PASSWORD" in listed  # the rule by which a variable is a secret
    run_ok(kernel, "%env DATABASE_URL=postgres://me:tea@host\n%config NbRun.secrets = ['DATABASE_URL']")
    run_ok(kernel, "%%agentrun say -b\nat postgres://me:tea@host")
    assert value(kernel, "nbrun.get('last').record.output") == "'at [DATABASE_URL]'"
    run_ok(kernel, "%config NbRun.model = 'scripted'\n%config NbRun.card = False")
    cell = run_ok(kernel, "%%agentrun\nhi")
    assert all(WIDGET not in output["data"] for output in cell.outputs)
    assert cell.outputs[0]["data"]["text/plain"]
    assert value(kernel, "nbrun.get('last').record.model") == "'scripted (no model)'"
    run_ok(kernel, "nbrun.get('last').wait(10)")
    assert run_ok(kernel, "%config NbRun.max_concurrent = 30\n%config NbRun.cancel_grace_s = 0.5").stdout == ""
    assert value(kernel, "(nbrun.session().max_concurrent, nbrun.session().cancel_grace_s)") == "(30, 0.5)"
    later = run_ok(kernel, "%config NbRun.store = 'elsewhere.db'").stdout
    assert later.startswith("NbRun.store: Takes effect the next time nbrun is loaded")


def test_agents_may_enter_the_loop_again_where_that_is_asked_for(loaded_kernel: Kernel) -> None:
    """Without the setting the error names it; with it the next run works, and the kernel's loop is as ever."""
    kernel = loaded_kernel
    run_ok(
        kernel,
        """
import asyncio

async def nests(prompt):
    work = asyncio.sleep(0, "nested")
    try:
        return asyncio.run(work)
    finally:
        work.close()
""",
    )
    run_ok(kernel, "failed = nbrun.start(nests); failed.wait(10)")
    assert value(kernel, "'%config NbRun.reentrant_loop = True' in str(failed.error)") == "True"
    run_ok(kernel, "%config NbRun.reentrant_loop = True")
    assert value(kernel, "nbrun.start(nests).result(10)") == "'nested'"
    assert value(kernel, "hasattr(asyncio.get_event_loop(), '_nest_patched')") == "False"
    run_ok(kernel, "%config NbRun.reentrant_loop = False")


# --- starting --------------------------------------------------------------------------------------


def test_the_cell_returns_at_once_and_others_run_meanwhile(shared: Kernel) -> None:
    """A run that never ends holds up neither its own cell nor the next one."""
    cell = run_ok(shared, "%%agentrun endless -o long\nhi")
    assert cell.result is None
    assert cell.stdout + cell.stderr == ""
    assert WIDGET in cell.outputs[0]["data"]
    assert run_ok(shared, "6 * 7").result == "42"
    assert value(shared, "(long.done(), long.record.prompt)") == "(False, 'hi')"
    run_ok(shared, "long.cancel().wait(5)")


def test_a_run_has_the_name_tags_and_variable_that_the_line_gives(shared: Kernel) -> None:
    """`-n`, `--tag` and `-o` name the run, label it and put it into the notebook."""
    run_ok(shared, "%%agentrun say -b -n 'green tea' --tag kind=green --tag cup=2 -o tea\nhi")
    assert value(shared, "(tea.name, tea.record.tags, tea.output)") == (
        "('green tea', {'kind': 'green', 'cup': '2'}, 'hi')"
    )
    assert value(shared, "nbrun.get('green tea') == tea == nbrun.get('last')") == "True"
    assert value(shared, "[r.name for r in nbrun.runs(tag='cup=2')]") == "['green tea']"


def test_a_method_is_an_agent_and_a_text_is_not(shared: Kernel) -> None:
    """`bot.chat` names a method, also for a retry; a variable that is a str is said to be one, with the fix."""
    run_ok(
        shared, "class Bot:\n    def chat(self, prompt):\n        return f'bot: {prompt}'\nbot, topic = Bot(), 'tea'"
    )
    run_ok(shared, "%%agentrun bot.chat -b -o chatted\n{topic}")
    assert value(shared, "(chatted.output, chatted.retry().result(10))") == "('bot: tea', 'bot: tea')"
    assert "No agent 'bot.talk'" in error_line(shared.run("%%agentrun bot.talk\nhi"))
    assert "No agent 'bot.__class__'" in error_line(shared.run("%%agentrun bot.__class__\nhi"))
    refused = error_line(shared.run("%%agentrun topic\nhi"))
    assert refused.startswith("AgentNotFound: topic is a str, not an agent. ")
    assert refused.endswith("write {topic} in the prompt below it")


def test_a_time_limit_cancels_and_says_so(shared: Kernel) -> None:
    """`--timeout` ends the run as cancelled with the cause `deadline`; the words say "timed out"."""
    run_ok(shared, "%%agentrun endless --timeout 300ms -o late\nhi")
    assert value(shared, "(late.wait(5), str(late.status), str(late.cause))") == ("(True, 'cancelled', 'deadline')")
    assert "Timed out after" in value(shared, "late")


def test_a_cell_that_is_run_again_queues_rejects_or_replaces(shared: Kernel) -> None:
    """`--if-running` decides what becomes of a live run of the same cell; other cells do not matter."""
    run_ok(shared, "%%agentrun endless -o first\nhi", cell_id="again")
    run_ok(shared, "%%agentrun endless -o second\nhi", cell_id="again")
    assert value(shared, "(first.number + 1, str(second.status))") == (f"({value(shared, 'second.number')}, 'queued')")
    assert f"waiting for run #{value(shared, 'first.number')}" in value(shared, "second.status_words()")
    refused = error_line(shared.run("%%agentrun endless --if-running reject\nhi", cell_id="again"))
    assert refused.startswith("RunRejected: ")
    assert "use if_running='queue'" in refused
    run_ok(shared, "%%agentrun say --if-running reject -b -o other\nhi", cell_id="elsewhere")
    assert value(shared, "other.output") == "'hi'"

    run_ok(shared, "%%agentrun say --if-running replace -o third\nhi", cell_id="again")
    assert value(shared, "third.result(10)") == "'hi'"
    assert value(shared, "[(str(r.status), str(r.cause)) for r in (first, second)]") == (
        "[('cancelled', 'replaced'), ('cancelled', 'replaced')]"
    )


def test_an_id_starts_only_once(shared: Kernel) -> None:
    """The same `--id` and inputs give the same run, unexecuted; other inputs are refused in one line."""
    run_ok(shared, "entered = []\nasync def counted(prompt):\n    entered.append(prompt)\n    return prompt")
    for out in ("one", "two"):
        run_ok(shared, f"%%agentrun counted -b --id only-once -o {out}\nhi")
    assert value(shared, "(one == two, entered, two.output)") == "(True, ['hi'], 'hi')"
    refused = error_line(shared.run("%%agentrun counted -b --id only-once\nho"))
    assert refused.startswith("IdConflict: ")
    assert value(shared, "entered") == "['hi']"


def test_the_body_can_be_python(shared: Kernel) -> None:
    """`--python` runs the body in the notebook's namespace, awaits at its top, gives its last value."""
    run_ok(shared, "%%agentrun --python -b -o cell\nawait asyncio.sleep(0)\nfound = {'a': 1}\nlen(found) + 1")
    assert value(shared, "(cell.output, found)") == "(2, {'a': 1})"
    run_ok(shared, "%%agentrun --python -b -o cell\n{name: 1 for name in found}\n")
    assert value(shared, "cell.output") == "{'a': 1}"
    assert "ZeroDivisionError" in error_line(shared.run("%%agentrun --python -b\n1 / 0"))


def test_an_agent_that_blocks_gets_a_thread(shared: Kernel) -> None:
    """`--thread` drives an async agent on a loop of its own, so that others go on while it blocks."""
    run_ok(
        shared,
        "gate = threading.Event()\n"
        "async def blocking(prompt):\n    gate.wait(20)\n    return threading.current_thread().name",
    )
    run_ok(shared, "%%agentrun blocking --thread -o aside\nhi")
    run_ok(shared, "%%agentrun say -b -o beside\nhi")
    assert value(shared, "(aside.done(), beside.output)") == "(False, 'hi')"
    assert value(shared, "(gate.set(), aside.result(5).startswith('nbrun-agent'))[1]") == "True"


def test_names_in_the_prompt_become_their_values(shared: Kernel) -> None:
    """`{name}`, attributes, indexes and keys are looked up; other braces stay, and nothing is evaluated."""
    run_ok(shared, "kind = 'oolong'; cups = ['big', 'small']; box = {'a b': 3}; gone = []")
    body = "{kind} {cups[1]} {box['a b']} {os.name} {{kind}} {\"json\": 1} {1 + 1} {} {gone.append(1)}"
    run_ok(shared, f"%%agentrun say -b -o said\n{body}")
    assert value(shared, "(said.output, gone)") == repr(
        ('oolong small 3 posix {kind} {"json": 1} {1 + 1} {} {gone.append(1)}', [])
    )
    run_ok(shared, "%%agentrun say -b -o said --no-interpolate\n{kind} {nothing}")
    assert value(shared, "said.output") == "'{kind} {nothing}'"


def test_a_target_may_be_a_registered_agent_or_none(shared: Kernel) -> None:
    """`@nbrun.agent` makes a name known; without a target the model speaks."""
    run_ok(shared, "@nbrun.agent\ndef known(prompt): return prompt.upper()\ndel known")
    run_ok(shared, "%%agentrun known -b -o loud\nhi")
    assert value(shared, "loud.output") == "'HI'"
    run_ok(shared, "%%agentrun --model scripted -b -o poem\nWrite a haiku.")
    assert "Steam curls" in value(shared, "poem.output")
    assert value(shared, "[t.name for t in poem.record.tools]") == "['count_syllables']"


# --- the subcommands -------------------------------------------------------------------------------


def test_list_shows_the_runs_newest_first(shared: Kernel) -> None:
    """`list` and `ls` give the table, in text and in HTML."""
    run_ok(shared, "%%agentrun say -b -n older\nhi")
    run_ok(shared, "%%agentrun say -b -n newer\nhi")
    for line in ("%agentrun list", "%agentrun ls"):
        cell = run_ok(shared, line)
        table = cell.result
        assert table is not None
        rows = table.splitlines()
        assert rows[0].split()[:3] == ["Run", "Name", "Status"]  # the others as there is room
        assert ("newer" in rows[1], "older" in rows[2]) == (True, True)
        assert "<table " in cell.outputs[0]["data"]["text/html"]


def test_result_gives_the_output_or_raises_in_one_line(shared: Kernel) -> None:
    """`result` returns the live object; a run that failed, or has not ended, is one line."""
    run_ok(shared, "the_list = [1]\ndef give(prompt): return the_list")
    run_ok(shared, "%%agentrun give -b\nhi")
    assert run_ok(shared, "%agentrun result").result == "[1]"
    run_ok(shared, "got = %agentrun result last\ngot is the_list or 1 / 0")
    run_ok(shared, "%%agentrun broken -n sad\nhi")
    run_ok(shared, "%agentrun wait sad")
    assert "the kettle is empty" in error_line(shared.run("%agentrun result sad"))
    run_ok(shared, "%%agentrun endless -n long\nhi")
    assert "%agentrun wait" in error_line(shared.run("%agentrun result long"))


def test_show_brings_the_card(shared: Kernel) -> None:
    """`show` gives a live card for a live run, static output for an ended one; several at once."""
    run_ok(shared, "%%agentrun endless -n long -o long\nhi")
    run_ok(shared, "%%agentrun say -b -n short\nhi")
    live, ended = run_ok(shared, "%agentrun show long short").outputs
    assert WIDGET in live["data"]
    assert set(ended["data"]) == {"text/html", "text/markdown", "text/plain", "application/vnd.nbrun.run+json"}
    assert "Completed" in ended["data"]["text/plain"]


def test_wait_waits_and_a_time_limit_leaves_the_run_alive(shared: Kernel) -> None:
    """`wait` waits for all live runs or the named ones; over its limit is one line, and the run goes on."""
    run_ok(shared, "gate = asyncio.Event()\nasync def gated(prompt):\n    await asyncio.sleep(0.3)\n    return prompt")
    run_ok(shared, "%%agentrun gated -o one\nhi")
    run_ok(shared, "%%agentrun gated -o two\nhi")
    cell = run_ok(shared, "%agentrun wait")
    assert cell.stdout.count("Completed") == 2
    assert value(shared, "(one.done(), two.done())") == "(True, True)"
    assert run_ok(shared, "%agentrun wait").stdout == "No runs in progress.\n"
    run_ok(shared, "%%agentrun endless -o long\nhi")
    assert "hasn't finished after" in error_line(shared.run("%agentrun wait last --timeout 200ms"))
    assert value(shared, "long.done()") == "False"


def test_cancel_says_what_it_did(shared: Kernel) -> None:
    """`cancel` stops the newest live run, the named ones or all; with nothing to stop it says so."""
    assert run_ok(shared, "%agentrun cancel").stdout == "No runs in progress.\n"
    for name in ("a", "b", "c", "d"):
        run_ok(shared, f"%%agentrun endless -n {name} -o {name}\nhi")
    number = value(shared, "d.number")
    assert run_ok(shared, "%agentrun cancel").stdout == f"Run #{number} (d): cancel requested\n"
    assert value(shared, "(d.wait(5), str(d.cause), a.done())") == "(True, 'user', False)"
    run_ok(shared, "%agentrun stop b --reason 'too slow'")
    assert value(shared, "(b.wait(5), b.reason, a.done(), c.done())") == ("(True, 'too slow', False, False)")
    assert "has already ended" in run_ok(shared, "%agentrun cancel b").stdout
    assert len(run_ok(shared, "%agentrun cancel --all").stdout.splitlines()) == 2
    assert value(shared, "[r.wait(5) for r in (a, c)]") == "[True, True]"
    for _ in range(7):
        run_ok(shared, "%%agentrun endless\nhi")
    assert run_ok(shared, "%agentrun cancel --all").stdout == "7 runs: cancel requested\n"
    # An unknown name beside a known one stops nothing.
    run_ok(shared, "%%agentrun endless -n e -o e\nhi")
    assert error_line(shared.run("%agentrun cancel e nobody")).startswith("RunNotFound: ")
    assert value(shared, "e.record.status.value in ('queued', 'running')") == "True"


def test_help_and_the_manual_name_every_option(shared: Kernel) -> None:
    """`%agentrun help` lists the subcommands, `?` these and the options, below examples."""
    listed = run_ok(shared, "%agentrun help").stdout
    assert run_ok(shared, "%agentrun --help").stdout == listed
    assert run_ok(shared, "%agentrun cancel -h").stdout.startswith("%agentrun cancel [REF…")
    for subcommand in ("list", "show", "result", "wait", "cancel", "help"):
        assert f"%agentrun {subcommand}" in listed
    assert run_ok(shared, "%agentrun help stop").stdout.startswith("%agentrun cancel [REF…")
    assert error_line(shared.run("%agentrun help nonsense")).startswith("BadOption: ")
    for magic, begin in (("%%agentrun", "Start an agent run"), ("%agentrun", "List, show, wait")):
        cell = run_ok(shared, f"{magic}?")
        assert cell.reply is not None
        (page,) = (p for p in cell.reply["payload"] if p["source"] == "page")
        manual = page["data"]["text/plain"]
        assert manual.index(begin) < manual.index("Examples") < manual.index("--name")
        for option in (
            "--name", "--out", "--block", "--noblock", "--timeout", "--model", "--if-running", "--tag",
            "--id", "--python", "--thread", "--no-interpolate", "TARGET",
        ):  # fmt: skip
            assert option in manual


@pytest.mark.parametrize("example", [*CELL_EXAMPLES, *LINE_EXAMPLES], ids=lambda one: one.title)
def test_the_examples_of_the_manual_run(shared: Kernel, example: Example) -> None:
    """Each as it stands, one cell after another; what they start completes."""
    for cell in example.cells:
        run_ok(shared, cell)
    if example in CELL_EXAMPLES:
        newest = "nbrun.get('last')"
        assert value(shared, f"({newest}.wait(15), str({newest}.status))") == "(True, 'completed')"
        if "--python" in example.cells[-1]:
            assert value(shared, "nbrun.get('sum').output") == "42"


def test_any_run_is_shown_again_in_any_cell(kernel: Kernel) -> None:
    """A live one by a live card, an ended one by a static one, also in a later kernel; by any reference."""
    run_ok(kernel, LOAD)
    run_ok(kernel, AGENTS)
    run_ok(kernel, "%%agentrun endless -n long\nhi")
    run_ok(kernel, "%%agentrun say -n short -b\nhello there")
    for ref in ("long", "#1", "-2"):
        assert WIDGET in run_ok(kernel, f"%agentrun show {ref}").outputs[0]["data"]
    for ref in ("", "last", "short", "2"):
        (output,) = run_ok(kernel, f"%agentrun show {ref}").outputs
        assert WIDGET not in output["data"]
        assert "hello there" in output["data"]["text/html"]
    kernel.restart()
    run_ok(kernel, LOAD)
    first, second = run_ok(kernel, "%agentrun show 1 last").outputs
    assert "Cancelled by kernel shutdown" in first["data"]["text/plain"]
    assert "hello there" in second["data"]["text/plain"]


def test_the_log_and_the_agents_are_listed(shared: Kernel) -> None:
    """`%agentrun logs` prints what a run has printed, `%agentrun agents` what can be run; both mind their words."""
    run_ok(shared, "async def prints(prompt):\n    print('one\\ntwo')")
    run_ok(shared, "%%agentrun prints -n printer -b\nhi")
    for ref in ("", "printer -n 5"):
        lines = run_ok(shared, f"%agentrun logs {ref}").stdout.splitlines()
        assert [line.split()[1:] for line in lines] == [["one"], ["two"]]
    assert run_ok(shared, "%agentrun logs last -n 1").stdout.splitlines()[1].endswith("  two")
    for words in ("-n 0", "-n many", "last 3", "--all"):
        assert error_line(shared.run(f"%agentrun logs {words}")).startswith("BadOption: ")
    listed = run_ok(shared, "%agentrun agents").stdout
    assert "✔ prints" in listed
    assert "✔ scripted" in listed
    assert error_line(shared.run("%agentrun agents all")).startswith("BadOption: ")


def test_runs_are_listed_by_filter_and_written_to_files(shared: Kernel) -> None:
    """`%agentrun list` takes what `nbrun.runs()` takes; `%agentrun export` names its file after the run, once."""
    run_ok(shared, "%%agentrun say -b -n kept --tag set=a\nred tea")
    run_ok(shared, "%%agentrun say -b -n left\ngreen tea")
    for options in ("--name kept", "--tag set=a", "--tag set", "--text RED --since 1h --limit 1"):
        table = run_ok(shared, f"%agentrun list {options}").outputs[0]["data"]["text/plain"]
        assert "kept" in table
        assert "left" not in table
    assert "kept" in value(shared, "repr(nbrun.runs(before=nbrun.get('left'), limit=1))")

    number = value(shared, "nbrun.get('kept').number")
    file = f"run-{number}.md"
    assert file in run_ok(shared, "%agentrun export kept --form md").stdout
    assert "red tea" in (shared.folder / file).read_text(encoding="utf-8")
    assert "choose another file" in error_line(shared.run("%agentrun export kept --form md"))
    # A link that leads nowhere yet would be followed: somebody else could choose the file.
    run_ok(shared, f"import os; os.symlink('away.html', 'run-{number}.html')")
    assert "choose another file" in error_line(shared.run("%agentrun export kept --form html"))
    assert "jsonl, json" in error_line(shared.run("%agentrun export kept --form pdf"))
    assert "can't be written" in error_line(shared.run("%agentrun export kept --out no/x.md"))
    assert "mine.html" in run_ok(shared, "%agentrun export kept --out mine.html").stdout
    assert (shared.folder / "mine.html").read_bytes().startswith(b"<!doctype html>")


def test_a_set_is_shown_and_cancelled_by_its_reference(shared: Kernel) -> None:
    """`show` displays it, `cancel` stops it, and what takes a single run says so."""
    run_ok(shared, "graded = nbrun.map(endless, ['a', 'b', 'c'], concurrency=1)")
    ref = value(shared, "graded.id").strip("'")
    assert ref.startswith("set-")
    assert f"{ref}: cancel requested" in run_ok(shared, f"%agentrun cancel {ref}").stdout.replace("set #", "set-")
    assert value(shared, "(await graded).status") == "'cancelled'"
    data = run_ok(shared, f"%agentrun show {ref}").outputs[0]["data"]
    assert "3 cancelled" in data["text/plain"]
    assert "<strong>Cancelled after" in data["text/html"]
    assert f"{ref} is a set of runs, and this takes a single run" in error_line(shared.run(f"%agentrun result {ref}"))
