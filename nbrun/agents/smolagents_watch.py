"""One run of a smolagents agent: its steps as events, its tools under our eyes, its memory as data.

Everything here is called on the run's own thread, for the framework knows no other.
"""

from __future__ import annotations

import copy
import functools
import io
from typing import TYPE_CHECKING, Any

from rich.console import Console
from smolagents import CodeAgent, LocalPythonExecutor
from smolagents.agents import ActionOutput
from smolagents.memory import (
    ActionStep,
    AgentMemory,
    CallbackRegistry,
    FinalAnswerStep,
    PlanningStep,
    TaskStep,
    ToolCall,
)
from smolagents.models import ChatMessageStreamDelta
from smolagents.monitoring import AgentLogger, LogLevel, Monitor, Timing
from smolagents.utils import AgentError

from nbrun import events as ev
from nbrun.agents import prices
from nbrun.agents.setup import asks_first
from nbrun.conversation import USER
from nbrun.encoding import clean_text, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.checkpoint import State
    from nbrun.context import RunContext
    from nbrun.conversation import Turn

PYTHON = "python_interpreter"
ANSWER = "final_answer"
GO_ON = "You were interrupted. Go on from where you stopped."
NO_VARIABLES = " The variables of your earlier code are gone."


class Watch:
    """Drives a copy of the agent, so that any number of runs may have one agent at once.

    Threads: of the run's own; `interrupt()` of any.
    """

    def __init__(self, agent: Any, run: RunContext) -> None:
        self._original = agent
        self._run = run
        self._mine = mine = copy.copy(agent)
        # What it prints for people is on the card; a live display in a thread would be noise.
        mine.logger = AgentLogger(LogLevel.OFF, Console(file=io.StringIO(), quiet=True))
        mine.monitor = Monitor(mine.model, mine.logger)
        mine.step_callbacks = _callbacks(agent, mine.monitor)
        mine.memory = AgentMemory(agent.system_prompt)
        mine.state = dict(agent.state)
        mine.tools = {name: self._watched(tool) for name, tool in agent.tools.items()}
        mine.write_memory_to_messages = self._before_a_turn(mine.write_memory_to_messages)
        if isinstance(mine, CodeAgent) and isinstance(mine.python_executor, LocalPythonExecutor):
            # Its own time limit would have the code run in another thread, where no cancel reaches it.
            kwargs = {"timeout_seconds": None} | mine.executor_kwargs
            mine.python_executor = LocalPythonExecutor(
                mine.additional_authorized_imports,
                max_print_outputs_length=mine.max_print_outputs_length, **kwargs,
            )  # fmt: skip
        self._text: list[str] = []
        self._code: tuple[str, float] | None = None
        self._denied = 0

    def interrupt(self) -> None:
        """Have it stop before its next step."""
        self._mine.interrupt()

    def drive(self, task: str, past: Sequence[Any]) -> object:
        """Run the agent on a task, after what was before; return its answer."""
        mine, run = self._mine, self._run
        mine.memory.steps = list(past)
        output: object = None
        try:
            # Drained to its end, whatever happens: closed in the middle of a step it would not stop.
            for item in mine.run(task, stream=True, reset=False):
                output = self._take(item, output)
        except AgentError:
            run.token.raise_if_cancelled()  # it was we who have interrupted it
            raise
        finally:
            self._original.memory, self._original.monitor = mine.memory, mine.monitor
        run.token.raise_if_cancelled()
        return output

    def _take(self, item: object, output: object) -> object:
        run = self._run
        match item:
            case ChatMessageStreamDelta(content=str(text)) if text:
                self._text.append(text)
                run.text(text)
            case ToolCall(name=name, arguments=code, id=id_) if name == PYTHON:
                self._say()
                self._code = f"{id_}-{run.run_id[-6:]}", run.clock.monotonic()
                run.send(ev.ToolStarted(self._code[0], PYTHON, "python", plain(code)))
            case ToolCall() | ActionOutput():
                self._say()
            case PlanningStep(plan=plan):
                run.phase("planning")
                self._count(item)
                run.log(plan)
            case ActionStep():
                self._end_step(item)
            case FinalAnswerStep(output=answer):
                return answer.to_raw() if hasattr(answer, "to_raw") else answer
        return output

    def _say(self) -> None:
        """Tell the message that has become whole, if there is one."""
        text, self._text = "".join(self._text), []
        if text:
            self._run.send(ev.Message("assistant", clean_text(text)))

    def _end_step(self, step: ActionStep) -> None:
        if not self._text and not self._mine.stream_outputs and isinstance(step.model_output, str):
            self._run.text(step.model_output)  # its model does not stream
            self._text.append(step.model_output)
        self._say()
        self._count(step)
        error = step.error
        if self._code is not None:
            (tool_id, began), self._code = self._code, None
            status = "ok" if error is None else "error"
            result = clean_text(step.observations or "") if error is None else str(error)
            ms = round((self._run.clock.monotonic() - began) * 1000, 3)
            self._run.send(ev.ToolFinished(tool_id, status, plain(result), ms))
        if error is not None:
            self._run.log(f"{type(error).__name__}: {error}")
        if not self._run.token.cancelled:
            self._run.checkpoint(packed(self._mine.memory.steps))

    def _count(self, step: ActionStep | PlanningStep) -> None:
        if (usage := step.token_usage) is not None:
            used = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
            model = getattr(self._mine.model, "model_id", None)
            self._run.usage(**used, cost_usd=prices.cost_usd(model, **used) if model else None)

    # --- between the framework and its parts -----------------------------------------------------

    def _before_a_turn(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """Return what the framework calls before each call of its model."""

        def written(*args: Any, **kwargs: Any) -> Any:
            self._mine.memory.steps += [TaskStep(text) for text in self._run.inbox.take()]
            self._run.begin_turn()
            return write(*args, **kwargs)

        return written

    def _watched(self, tool: Any) -> Any:
        """Return a copy of a tool that is shown while it runs, and asks first where it is marked so."""
        if tool.name in (ANSWER, PYTHON):
            return tool
        mine, forward, names = copy.copy(tool), tool.forward, list(tool.inputs)

        @functools.wraps(forward)
        def watched(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if asks_first(tool):
                answer = self._run.ask_sync(
                    f"Use {tool.name}?", args=given, tool=tool.name, editable=True
                )
                if not answer:
                    self._denied += 1
                    tool_id = f"denied-{self._denied}"
                    self._run.send(ev.ToolStarted(tool_id, tool.name, args=plain(given)))
                    self._run.send(ev.ToolFinished(tool_id, "denied", answer.text or None))
                    return f"A person did not allow {tool.name}: {answer.text or 'no'}"
                given = dict(answer.args) if isinstance(answer.args, dict) else given
            with self._run.tool(tool.name, given) as scope:
                scope.result = forward(**given)
            return scope.result

        mine.forward = watched
        return mine


def _callbacks(agent: Any, monitor: Monitor) -> CallbackRegistry:
    """Return the user's callbacks; of the agent's own, which counts and prints, this run's."""
    made = CallbackRegistry()
    for kind, callbacks in agent.step_callbacks._callbacks.items():
        for callback in callbacks:
            is_own = getattr(callback, "__self__", None) is agent.monitor
            made.register(kind, monitor.update_metrics if is_own else callback)
    return made


# --- its memory as data --------------------------------------------------------------------------------


def packed(steps: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the memory as JSON-like data: what was asked, said, called and seen."""
    kept: list[dict[str, Any]] = []
    for step in steps:
        match step:
            case TaskStep(task=task):
                kept.append({"task": task})
            case PlanningStep(plan=plan):
                kept.append({"plan": plan})
            case ActionStep():
                calls = [
                    [call.name, plain(call.arguments), call.id] for call in step.tool_calls or ()
                ]
                seen = step.observations if step.error is None else f"Error: {step.error}"
                said = step.model_output if isinstance(step.model_output, str) else ""
                kept.append({"said": said, "calls": calls, "seen": seen or ""})
    return kept


def unpacked(state: State) -> list[Any]:
    """Return a memory from what was kept of it; what is no step of one is left out."""
    steps: list[Any] = []
    for kept in state if isinstance(state, list) else []:
        match kept:
            case {"task": str(task)} | {"plan": str(task)}:
                steps.append(TaskStep(task))
            case {"said": str(said), "calls": list(calls), "seen": str(seen)}:
                made = [
                    ToolCall(str(call[0]), call[1], str(call[2]))
                    for call in calls
                    if isinstance(call, list) and len(call) == 3
                ]
                steps.append(
                    ActionStep(
                        len(steps), Timing(0.0, 0.0), tool_calls=made or None, model_output=said,
                        observations=seen or None,
                    )
                )  # fmt: skip
    return steps


def spoken(history: Sequence[Turn]) -> list[Any]:
    """Return what was said in earlier runs as steps of a memory."""
    return [
        TaskStep(turn.text)
        if turn.role == USER
        else ActionStep(0, Timing(0.0, 0.0), model_output=turn.text)
        for turn in history
    ]


def go_on(agent: object) -> str:
    """Return what an agent is told that goes on."""
    return GO_ON + (NO_VARIABLES if isinstance(agent, CodeAgent) else "")
