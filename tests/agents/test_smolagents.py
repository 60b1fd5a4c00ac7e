"""What is particular to agents of smolagents: code as a row, tools inside of it, memory, variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from smolagents import CodeAgent, FinalAnswerTool, LocalPythonExecutor, Model, Tool, tool
from smolagents.local_python_executor import InterpreterError
from smolagents.models import ChatMessage, MessageRole
from smolagents.monitoring import TokenUsage

import nbrun
from nbrun import NotebookSession, Run, RunStatus
from nbrun.agents.smolagents.resume import checkpoint_of, restore
from tests.agents.conformance import log
from tests.fakes.agents import BOUND_S
from tests.fakes.people import until


class Coder(Model):  # type: ignore[misc]  # the package has no types
    """Writes one piece of code after the other, and does not stream."""

    def __init__(self, *pieces: str) -> None:
        super().__init__(model_id="coder")
        self._pieces = pieces
        self.asked: list[list[str]] = []

    def generate(self, messages: Sequence[Any], **_more: Any) -> ChatMessage:
        """Write the next one."""
        texts = [part["text"] for message in messages for part in message.content]
        self.asked.append(texts)
        piece = self._pieces[sum(m.role.value == "tool-response" for m in messages)]
        content = f"Thought: so be it.\n<code>\n{piece}\n</code>"
        return ChatMessage(MessageRole.ASSISTANT, content, token_usage=TokenUsage(10, 5))


@tool  # type: ignore[untyped-decorator]  # the same
def brew(tea: str) -> str:
    """Brew tea.

    Args:
        tea: which one
    """
    return f"a cup of {tea}"


def ended(run: Run) -> Run:
    """Return the run when it has ended, its log looked at."""
    assert run.wait(BOUND_S), run.record
    log.check(run)
    return run


def test_code_is_a_row_and_so_are_the_tools_that_it_uses(session: NotebookSession) -> None:
    """What it printed and gave is the row's result; a later step has its variables, and the answer is the output."""
    model = Coder("cup = brew(tea='sencha')\nprint(cup)", "final_answer([cup, 2])")
    agent = CodeAgent([brew], model, name="coder")
    run = ended(session.start(agent, "Some tea."))
    assert run.result() == ["a cup of sencha", 2]
    assert [(t.name, t.kind, t.status) for t in run.record.tools] == [
        ("python_interpreter", "python", "ok"),
        ("brew", "function", "ok"),
        ("python_interpreter", "python", "ok"),
    ]
    first, used, _ = run.record.tools
    assert "brew(tea='sencha')" in str(first.args)
    assert "a cup of sencha" in str(first.result)
    assert (used.args, used.result) == ({"tea": "sencha"}, "a cup of sencha")
    assert run.text.startswith("Thought: so be it.")
    assert (run.usage.requests, run.usage.input_tokens, run.usage.output_tokens) == (2, 20, 10)
    assert run.record.log == ()  # nothing of what it shows in a terminal
    assert len(agent.memory.steps) == 3  # the user's agent knows its last run


def test_code_that_fails_is_told_and_gone_on_from(session: NotebookSession) -> None:
    """The row is an error with the framework's words; its next try counts."""
    model = Coder("1 / 0", "final_answer('well')")
    run = ended(session.start(CodeAgent([], model), "Divide."))
    assert run.result() == "well"
    assert [t.status for t in run.record.tools] == ["error", "ok"]
    assert "ZeroDivisionError" in str(run.record.tools[0].result)


def test_code_that_computes_for_ever_is_stopped(session: NotebookSession) -> None:
    """It runs in the run's own thread, where a cancel reaches it."""
    run = session.start(CodeAgent([], Coder("while True:\n    pass"), name="coder"), "Compute.")
    until(run, lambda record: bool(record.tools))
    run.cancel()
    ended(run)
    assert (run.status, run.error, run.record.detached) == (RunStatus.CANCELLED, None, ())


def test_what_was_said_before_is_its_memory(session: NotebookSession) -> None:
    """A run that continues another has its question and answer before its own."""
    model = Coder("final_answer('sencha')")
    first = ended(session.start(CodeAgent([], model), "Which tea?"))
    other = Coder("final_answer('a cup')")
    run = ended(first.continue_with("How much?", agent=CodeAgent([], other)))
    assert run.result() == "a cup"
    asked = "\n".join(other.asked[0])
    assert asked.index("Which tea?") < asked.index("so be it") < asked.index("How much?")


def test_a_budget_stops_it_before_the_next_call(session: NotebookSession) -> None:
    """Each call of its model counts."""
    model = Coder("print(1)", "print(2)", "final_answer(3)")
    run = ended(session.start(CodeAgent([], model), "Count.", max_turns=2))
    assert (run.status, run.cause) == (RunStatus.CANCELLED, "budget")
    assert len(model.asked) == 2


def test_a_tool_that_asks_may_be_one_in_code(session: NotebookSession) -> None:
    """The code waits for the answer, which may change what it gave."""
    careful = nbrun.needs_approval(brew)
    try:
        agent = CodeAgent([careful], Coder("final_answer(brew(tea='sencha'))"))
        run = session.start(agent, "Some tea.")
        until(run, lambda record: bool(record.pending))
        run.approve(args={"tea": "assam"})
        assert ended(run).result() == "a cup of assam"
    finally:
        del brew.needs_approval


def managed(*tools: Any) -> CodeAgent:
    """Return an agent that has another one brew tea."""
    helper = CodeAgent(
        list(tools), Coder("cup = brew(tea='sencha')", "final_answer(cup)"), name="helper", description="Brews."
    )
    return CodeAgent([], Coder("cup = helper(task='Sencha.')", "final_answer('served')"), managed_agents=[helper])


def test_an_agent_that_another_one_manages_is_a_row(session: NotebookSession) -> None:
    """With its tools; its calls and tokens are the run's, and nothing that it shows in a terminal is in the log."""
    run = ended(session.start(managed(brew), "Some tea."))
    assert run.result() == "served"
    assert [(t.name, t.kind, t.status) for t in run.record.tools] == [
        ("python_interpreter", "python", "ok"),
        ("helper", "agent", "ok"),
        ("python_interpreter", "python", "ok"),
        ("brew", "function", "ok"),
        ("python_interpreter", "python", "ok"),
        ("python_interpreter", "python", "ok"),
    ]
    helped = run.record.tools[1]
    assert helped.args == {"task": "Sencha."}
    assert "a cup of sencha" in str(helped.result)
    assert (run.usage.requests, run.usage.input_tokens) == (4, 40)
    assert run.record.log == ()


def test_a_budget_holds_for_the_agents_that_it_manages(session: NotebookSession) -> None:
    """The call that would be one too many is none of its manager's."""
    run = ended(session.start(managed(brew), "Some tea.", max_turns=2))
    assert (run.status, run.cause) == (RunStatus.CANCELLED, "budget")
    assert run.usage.requests == 2


def test_a_tool_asks_in_whichever_agent_has_it(session: NotebookSession) -> None:
    """What is marked so is not used without a person, and a cancel is heard there."""
    careful = nbrun.needs_approval(brew)
    try:
        run = session.start(managed(careful), "Some tea.")
        until(run, lambda record: bool(record.pending))
        run.approve()
        assert ended(run).result() == "served"
        cut = session.start(managed(careful), "Some tea.")
        until(cut, lambda record: bool(record.pending))
        cut.cancel()
        assert ended(cut).status is RunStatus.CANCELLED
        assert {t.status for t in cut.record.tools if t.name == "helper"} == {"cancelled"}
    finally:
        del brew.needs_approval


@pytest.mark.parametrize("state", [None, 5, {}, [5, None, {"task": 5}, {"said": "x", "calls": [5, ["a"]], "seen": ""}]])
def test_a_memory_that_somebody_else_has_written_is_only_words(state: Any) -> None:
    """What is no step is left out, and nothing is called for it."""
    assert all(set(kept) <= {"task", "plan", "said", "calls", "seen"} for kept in checkpoint_of(restore(state)))


def test_what_the_framework_calls_by_name_asks_as_well(session: NotebookSession) -> None:
    """Code is run, and an answer given, when a person has allowed it: once, and in one row."""
    careful = nbrun.needs_approval(FinalAnswerTool())
    agent = CodeAgent([careful], Coder("final_answer('well')"))
    run = session.start(agent, "Answer.")
    until(run, lambda record: bool(record.pending))
    assert run.record.pending[0].tool == "final_answer"
    run.approve()
    assert ended(run).result() == "well"
    assert [t.name for t in run.record.tools] == ["python_interpreter"]


def test_the_users_own_executor_runs_the_code(session: NotebookSession) -> None:
    """In a copy for each run, so that no variable of one is another's."""

    class Refuses(LocalPythonExecutor):  # type: ignore[misc]  # the package has no types
        def __call__(self, code_action: str) -> Any:
            if "brew" in code_action:
                raise InterpreterError("no tea today")
            return super().__call__(code_action)

    executor = Refuses([], additional_functions={"twice": lambda number: 2 * number})
    model = Coder("brew(tea='sencha')", "final_answer(twice(21))")
    run = ended(session.start(CodeAgent([brew], model, executor=executor), "Some tea."))
    assert run.result() == 42
    assert "no tea today" in str(run.record.tools[0].result)
    limited = CodeAgent([], Coder("final_answer(1)"), executor_kwargs={"max_print_outputs_length": 9})
    assert ended(session.start(limited, "One.")).result() == 1


def test_the_users_agent_stays_as_it_was(session: NotebookSession) -> None:
    """But for its memory: what it counts by hand, it counts after a run as well."""
    agent = CodeAgent([], Coder("final_answer(1)"))
    monitor, tools, logger = agent.monitor, dict(agent.tools), agent.logger
    for _ in range(2):
        assert ended(session.start(agent, "One.")).record.log == ()
    assert (agent.monitor, agent.tools, agent.logger) == (monitor, tools, logger)
    agent.logger.level = -1  # else it would be printed here
    assert agent.run("One.") == 1
    assert agent.monitor.total_input_token_count == 10


def test_a_tool_is_called_as_it_was(session: NotebookSession) -> None:
    """By place or by name, as many as there are."""

    class Join(Tool):  # type: ignore[misc]  # the same
        name, description, output_type = "join", "Joins.", "string"
        inputs: ClassVar[dict[str, Any]] = {"parts": {"type": "any", "description": "what"}}
        skip_forward_signature_validation = True

        def forward(self, *parts: str, sep: str = "-") -> str:
            return sep.join(parts)

    model = Coder("print(join('a', 'b', 'c'))", "final_answer(join('a', 'b', sep='+'))")
    run = ended(session.start(CodeAgent([Join()], model), "Join."))
    assert run.result() == "a+b"
    assert [t.result for t in run.record.tools if t.name == "join"] == ["a-b-c", "a+b"]
