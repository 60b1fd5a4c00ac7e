"""One run of a smolagents agent: its steps, its tools and its managed agents, as events.

Everything here is called on the run's own thread, or on those that the framework starts for tools; none has a loop.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
from typing import TYPE_CHECKING, Any

from rich.console import Console
from smolagents import CodeAgent, LocalPythonExecutor, memory
from smolagents.agents import ActionOutput
from smolagents.local_python_executor import MAX_EXECUTION_TIME_SECONDS
from smolagents.models import ChatMessageStreamDelta
from smolagents.monitoring import AgentLogger, LogLevel, Monitor
from smolagents.utils import AgentError

from nbrun.agents import RunContext, Tools, asks_first, clean_text, events as ev, plain, pricing
from nbrun.agents.smolagents.resume import checkpoint_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


PYTHON = "python_interpreter"
ANSWER = "final_answer"


class Watched:
    """A copy of an agent that reports its model calls, code and tools. Threads: the run's own; `interrupt()` any."""

    def __init__(self, agent: Any, run: RunContext, numbers: Iterator[int]) -> None:
        self._mine = mine = copy.copy(agent)
        self._original = agent
        self._run = run
        self._numbers = numbers  # for the ids of tools, unique in the run
        self._code = Tools(run.clock)  # the code that is running
        self._is_running = True
        # Silent, because the card shows what it would print.
        mine.logger = AgentLogger(LogLevel.OFF, Console(file=io.StringIO(), quiet=True))
        mine.monitor = Monitor(mine.model, mine.logger)
        mine.step_callbacks = _callbacks(agent, mine.monitor)
        mine.memory = memory.AgentMemory(agent.system_prompt)
        mine.state = dict(agent.state)
        mine.tools = {name: self._watched(tool) for name, tool in agent.tools.items()}
        mine.managed_agents = {name: Managed(other, run, numbers) for name, other in agent.managed_agents.items()}
        mine.write_memory_to_messages = self._before_a_turn(mine.write_memory_to_messages)
        if isinstance(mine, CodeAgent) and isinstance(mine.python_executor, LocalPythonExecutor):
            mine.python_executor = _executor(mine.python_executor)

    def interrupt(self) -> None:
        """Stop it and its managed agents before their next step."""
        self._mine.interrupt()
        for other in self._mine.managed_agents.values():
            other.interrupt()

    def _take_messages(self) -> None:
        """Add the user's messages; only the agent of the run gets them."""

    def _share_memory(self) -> None:
        """Give the user's agent the memory of this run."""
        self._original.memory = self._mine.memory

    def _note(self, step: object) -> None:
        """Report the code and the usage of a step."""
        run = self._run
        match step:
            case memory.ToolCall(name=name, arguments=code, id=id_) if name == PYTHON:
                tool_id = f"{id_}-{next(self._numbers)}-{run.run_id[-6:]}"
                for event in self._code.start(tool_id, PYTHON, code, "python"):
                    run.send(event)
            case memory.PlanningStep():
                self._count(step)
            case memory.ActionStep(error=error):
                self._count(step)
                status = "ok" if error is None else "error"
                result = clean_text(step.observations or "") if error is None else str(error)
                for tool_id in list(self._code.began):
                    run.send(self._code.finish(tool_id, status, result))
                if error is not None:
                    run.log(f"{type(error).__name__}: {error}")

    def _count(self, step: memory.ActionStep | memory.PlanningStep) -> None:
        if (usage := step.token_usage) is not None:
            used = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
            model = getattr(self._mine.model, "model_id", None)
            self._run.usage(**used, cost_usd=pricing.cost_usd(model, **used) if model else None)

    # --- between the framework and its parts -----------------------------------------------------

    def _before_a_turn(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that the framework calls before each model call."""

        def written(*args: Any, **kwargs: Any) -> Any:
            if self._is_running:  # otherwise it is for a summary
                self._take_messages()
                self._run.begin_turn()
            return write(*args, **kwargs)

        return written

    def _watched(self, tool: Any) -> Any:
        """Return a copy of a tool that is shown while it runs, and asks first if it is marked so."""
        has_row = tool.name not in (ANSWER, PYTHON)
        if not has_row and not asks_first(tool):
            return tool
        mine, forward, names = copy.copy(tool), tool.forward, list(tool.inputs)

        @functools.wraps(forward)
        def watched(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            use = functools.partial(forward, *args, **kwargs)
            if asks_first(tool):
                message = f"Use {tool.name}?"
                answer = self._run.ask_sync(message, args=given, tool=tool.name, editable=True)
                if not answer:
                    tool_id = f"denied-{next(self._numbers)}"
                    self._run.send(ev.ToolStarted(tool_id, tool.name, args=plain(given)))
                    self._run.send(ev.ToolFinished(tool_id, "denied", answer.text or None))
                    return f"The user did not allow {tool.name}: {answer.text or 'no'}"
                if isinstance(answer.args, dict):  # exactly those that the user saw, or edited ones
                    given = dict(answer.args)
                    use = functools.partial(forward, **given)
            if not has_row:
                return use()
            with self._run.tool(tool.name, given) as scope:
                scope.result = use()
            return scope.result

        mine.forward = watched
        return mine


class Instrument(Watched):
    """The agent of a run itself."""

    def __init__(self, agent: Any, run: RunContext) -> None:
        super().__init__(agent, run, itertools.count(1))
        self._text: list[str] = []

    def drive(self, task: str | None, past: Sequence[Any]) -> object:
        """Run the agent on a task, after these steps; return its answer. None: on the task that is among them."""
        mine, run = self._mine, self._run
        mine.memory.steps = list(past)
        known = "" if task is not None else next((step.task for step in past if isinstance(step, memory.TaskStep)), "")
        output: object = None
        try:
            stream = mine.run(known if task is None else task, stream=True, reset=False)
            if task is None:
                mine.memory.steps.pop()  # it has added the task once more
            # Always read to its end: closed in the middle of a step, the agent would not stop.
            for item in stream:
                output = self._take(item, output)
        except AgentError:
            run.token.raise_if_cancelled()  # the error comes from interrupt()
            raise
        finally:
            self._share_memory()
        run.token.raise_if_cancelled()
        return output

    def _take(self, item: object, output: object) -> object:
        run = self._run
        match item:
            case ChatMessageStreamDelta(content=str(text)) if text:
                self._text.append(text)
                run.text(text)
            case memory.ToolCall() | ActionOutput():
                self._end_message()
                self._note(item)
            case memory.PlanningStep(plan=plan):
                run.phase("planning")
                self._note(item)
                run.log(plan)
            case memory.ActionStep():
                self._end_step(item)
            case memory.FinalAnswerStep(output=answer):
                return answer.to_raw() if hasattr(answer, "to_raw") else answer
        return output

    def _end_message(self) -> None:
        text, self._text = "".join(self._text), []
        if text:
            self._run.send(ev.Message("assistant", clean_text(text)))

    def _end_step(self, step: memory.ActionStep) -> None:
        if not self._text and not self._mine.stream_outputs and isinstance(step.model_output, str):
            self._run.text(step.model_output)  # the model doesn't stream
            self._text.append(step.model_output)
        self._end_message()
        self._note(step)
        if not self._run.token.cancelled and not step.is_final_answer:  # with it, another answer would be asked for
            self._run.checkpoint(checkpoint_of(self._mine.memory.steps))

    def _take_messages(self) -> None:
        self._mine.memory.steps += [memory.TaskStep(text) for text in self._run.inbox.take()]


class Managed(Watched):
    """A managed agent, as its manager calls it: shown as a tool, with its answer as the result."""

    def __init__(self, agent: Any, run: RunContext, numbers: Iterator[int]) -> None:
        super().__init__(agent, run, numbers)
        self._is_running = False
        # `run()` calls this also without streaming; nothing public gives the steps of a managed agent.
        self._stream = self._mine._run_stream
        self._mine._run_stream = self._reported

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the agent: its name, its description, its inputs."""
        return getattr(self.__dict__["_mine"], name)

    def __call__(self, task: str, **more: Any) -> object:
        """Run a task for the manager; return the report."""
        with self._run.tool(self._mine.name, {"task": task, **more}, "agent") as scope:
            try:
                scope.result = self._mine(task, **more)
            except AgentError:
                self._run.token.raise_if_cancelled()  # the error comes from interrupt()
                raise
        return scope.result

    def _reported(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        self._is_running = True
        try:
            for item in self._stream(*args, **kwargs):
                self._note(item)
                yield item
        finally:
            self._is_running = False
            self._share_memory()


def _executor(executor: LocalPythonExecutor) -> LocalPythonExecutor:
    """Return a copy of the executor of an agent's code, with its own variables."""
    mine = copy.copy(executor)
    mine.state = {"__name__": "__main__"}
    # With the framework's default limit, the code would run in another thread, which a cancel can't interrupt.
    if mine.timeout_seconds == MAX_EXECUTION_TIME_SECONDS:
        mine.timeout_seconds = None
    return mine


def _callbacks(agent: Any, monitor: Monitor) -> memory.CallbackRegistry:
    """Return the user's callbacks, with this run's monitor in place of the agent's own."""
    made = memory.CallbackRegistry()
    # Private, because the registry can't be listed otherwise.
    for kind, callbacks in agent.step_callbacks._callbacks.items():
        for callback in callbacks:
            is_own = getattr(callback, "__self__", None) is agent.monitor
            made.register(kind, monitor.update_metrics if is_own else callback)
    return made
