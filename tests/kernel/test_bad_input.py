"""A user's mistake is one line that says how to fix it, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nbrun.agents.builtin import KEYS
from tests.kernel.cells import error_line, run_ok, store_file, value
from tests.kernel.driver import Kernel

SETUP = f"""\
import math as a_module
a_number = 5
ten_cups = 10
class AClass:
    pass
def wants_three(one, two, three):
    pass
for key in {sorted(name for names in KEYS.values() for name in names)}:
    os.environ.pop(key, None)
"""


@pytest.fixture(scope="module")
def kernel(shared_kernel: Kernel) -> Kernel:
    """A kernel in which no run was ever started."""
    run_ok(shared_kernel, SETUP)
    return shared_kernel


@pytest.fixture(autouse=True)
def nothing_left(kernel: Kernel) -> Iterator[None]:
    """Fail the test if there is a run, a thread or a file of nbrun after it."""
    yield
    assert value(kernel, "(list(nbrun.runs()), nbrun_threads())") == "([], [])"
    assert not store_file(kernel.folder).parent.exists()


@pytest.mark.parametrize(
    ("line", "body", "kind", "fix"),
    [
        pytest.param("nobody", "hi", "AgentNotFound", "define it", id="unknown-target"),
        pytest.param("sai", "hi", "AgentNotFound", "did you mean say?", id="misspelt-target"),
        pytest.param("ten_cup", "hi", "AgentNotFound", "define it", id="near-a-variable"),
        pytest.param("quitt", "hi", "AgentNotFound", "define it", id="near-an-own-of-ipython"),
        pytest.param("say(prompt)", "hi", "BadOption", "write %%agentrun say,", id="call"),
        pytest.param("say -n last", "hi", "BadOption", "another name", id="name-is-a-reference"),
        pytest.param("say -n '#3'", "hi", "BadOption", "another name", id="name-is-a-number"),
        pytest.param("say --name=-1", "hi", "BadOption", "another name", id="name-is-a-place"),
        pytest.param("say --name ''", "hi", "BadOption", "name is empty", id="empty-name"),
        pytest.param("say --id ''", "hi", "BadOption", "id is empty", id="empty-id"),
        pytest.param("a_module", "hi", "AgentNotFound", "give a function", id="module"),
        pytest.param("a_number", "hi", "AgentNotFound", "give a function", id="number"),
        pytest.param("AClass", "hi", "AgentNotFound", "give a function", id="class"),
        pytest.param("wants_three", "hi", "AgentNotFound", "functools.partial", id="three-arguments"),
        pytest.param("say two", "hi", "BadOption", "leave out 'two'", id="two-targets"),
        pytest.param("say --nmae x", "hi", "BadOption", "--name", id="unknown-option"),
        pytest.param("say --name", "hi", "BadOption", "--name NAME", id="missing-value"),
        pytest.param("say --timeout abc", "hi", "BadOption", "use for example 90s", id="no-duration"),
        pytest.param("say --timeout 5 parsecs", "hi", "BadOption", "leave out 'parsecs'", id="two-words"),
        pytest.param("say --timeout 0s", "hi", "BadOption", "greater than zero", id="zero"),
        pytest.param("say --timeout -5s", "hi", "BadOption", "for example 90s", id="negative"),
        pytest.param("say --timeout=-5s", "hi", "BadOption", "for example 90s", id="negative-joined"),
        pytest.param("say --timeout 9999999h", "hi", "BadOption", "at most a year", id="absurd"),
        pytest.param("say --timeout nan", "hi", "BadOption", "use for example 90s", id="nan"),
        pytest.param("say --timeout 1e400", "hi", "BadOption", "use for example 90s", id="infinite"),
        pytest.param(f"say --timeout {'9' * 400}s", "hi", "BadOption", "at most a year", id="overflow"),
        pytest.param("--model openai:gpt-5", "hi", "BadOption", "OPENAI_API_KEY", id="no-key"),
        pytest.param("--model nonsense", "hi", "BadOption", "give local", id="unknown-model"),
        pytest.param("--model nobody:x", "hi", "BadOption", "provider", id="unknown-provider"),
        pytest.param("say --model local", "hi", "BadOption", "not both", id="target-and-model"),
        pytest.param("say", "   \n  ", "BadOption", "write it below", id="blank-body"),
        pytest.param("--python", "  ", "BadOption", "write it below", id="no-code"),
        pytest.param("say", "a {nothing}", "BadOption", "--no-interpolate", id="unknown-name"),
        pytest.param("say", "a {os.nix}", "BadOption", "--no-interpolate", id="no-attribute"),
        pytest.param("say", "a {a_number[0]}", "BadOption", "--no-interpolate", id="no-index"),
        pytest.param("--python", "1 +", "BadOption", "line 1", id="invalid-code"),
        pytest.param("--python", "\x00", "BadOption", "Python", id="null-byte"),
        pytest.param("--python say", "1", "BadOption", "leave out TARGET", id="python-and-target"),
        pytest.param("say --block --noblock", "hi", "BadOption", "give one", id="both-ways"),
        pytest.param("say 'tea", "hi", "BadOption", "close the quote", id="open-quote"),
        pytest.param("say --if-running wait", "hi", "BadOption", "queue", id="unknown-choice"),
        pytest.param("say --tag tea", "hi", "BadOption", "key=value", id="no-tag"),
        pytest.param("say --out 5x", "hi", "BadOption", "variable", id="no-name"),
        pytest.param("say --out class", "hi", "BadOption", "variable", id="keyword"),
    ],
)
def test_a_start_with_a_mistake_is_one_line(kernel: Kernel, line: str, body: str, kind: str, fix: str) -> None:
    """The line begins with the error's kind and says what to write instead; nothing is started."""
    said = error_line(kernel.run(f"%%agentrun {line}\n{body}"))
    assert said.startswith(f"{kind}: ")
    assert fix in said
    assert len(said) < 500


@pytest.mark.parametrize(
    ("line", "kind", "fix"),
    [
        pytest.param("result #7", "RunNotFound", "%agentrun list", id="unknown-number"),
        pytest.param("show tea", "RunNotFound", "%agentrun list", id="unknown-name"),
        pytest.param("wait run-x", "RunNotFound", "%agentrun list", id="unknown-id"),
        pytest.param("cancel -3", "RunNotFound", "%agentrun list", id="unknown-position"),
        pytest.param("result", "RunNotFound", "%agentrun list", id="no-run-at-all"),
        pytest.param("result ''", "RunNotFound", "%agentrun list", id="empty-reference"),
        pytest.param(f"result {'9' * 30}", "RunNotFound", "%agentrun list", id="huge-number"),
        pytest.param("canel", "BadOption", "did you mean cancel?", id="misspelt-subcommand"),
        pytest.param("nonsense", "BadOption", "cancel", id="unknown-subcommand"),
        pytest.param("soon", "BadOption", "write %%agentrun soon,", id="one-per-cent-sign"),
        pytest.param("soon hi", "BadOption", "soon is a function: write", id="a-whole-start"),
        pytest.param("ten_cups", "BadOption", "put %%agentrun on the first line", id="no-agent"),
        pytest.param("cancel -a", "BadOption", "did you mean --all?", id="near-an-option"),
        pytest.param("list 5", "BadOption", "leave out '5'", id="too-many-words"),
        pytest.param("list --status done", "BadOption", "queued, running", id="no-status"),
        pytest.param("list --limit 0", "BadOption", "at least 1", id="no-limit"),
        pytest.param("list --before tea", "RunNotFound", "%agentrun list", id="no-such-page"),
        pytest.param("list --since soon", "BadOption", "use for example 90s", id="no-moment"),
        pytest.param("list --stats failed", "BadOption", "did you mean --status?", id="near-a-filter"),
        pytest.param("cancel --now", "BadOption", "%agentrun cancel [REF", id="unknown-option"),
        pytest.param("cancel 1 --all", "BadOption", "not both", id="runs-and-all"),
        pytest.param("cancel --reason", "BadOption", "--reason needs a value", id="missing-value"),
        pytest.param("wait --timeout soon", "BadOption", "use for example 90s", id="no-duration"),
        pytest.param("show 'tea", "BadOption", "close the quote", id="open-quote"),
    ],
)
def test_a_subcommand_with_a_mistake_is_one_line(kernel: Kernel, line: str, kind: str, fix: str) -> None:
    """The line begins with the error's kind and says what to write instead."""
    said = error_line(kernel.run(f"%agentrun {line}"))
    assert said.startswith(f"{kind}: ")
    assert fix in said


def test_an_empty_body_is_one_line(kernel: Kernel) -> None:
    """IPython itself refuses a cell magic without a body; it says so on the error stream, in one line."""
    cell = kernel.run("%%agentrun say")
    assert cell.error is not None
    assert cell.error["traceback"] == []
    assert len(cell.stderr.strip().splitlines()) == 1
    assert "the cell body is empty" in cell.stderr


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("nbrun.start(a_number)", "AgentNotFound"),
        ("nbrun.start('nobody')", "AgentNotFound"),
        ("nbrun.start(say, timeout_s=-1)", "BadOption"),
        ("nbrun.start(say, timeout_s=float('nan'))", "BadOption"),
        ("nbrun.start(say, if_running='wait')", "BadOption"),
        ("nbrun.start(say, on='moon')", "BadOption"),
        ("nbrun.start(say, None)", "BadOption"),
        ("nbrun.start(say, 3)", "BadOption"),
        ("nbrun.start(say, id=3)", "BadOption"),
        ("nbrun.get('tea')", "RunNotFound"),
        ("nbrun.get(7)", "RunNotFound"),
    ],
)
def test_a_call_with_a_mistake_is_one_line(kernel: Kernel, call: str, kind: str) -> None:
    """What is raised from Python is shown in one line too."""
    assert error_line(kernel.run(call)).startswith(f"{kind}: ")
