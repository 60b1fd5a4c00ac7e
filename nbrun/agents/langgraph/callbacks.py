"""What nbrun hangs on a run of a LangGraph graph: its callbacks, by which it hears of models and tools at once.

Imported when a run begins, for it imports the framework.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langgraph.constants import TAG_NOSTREAM
from langgraph.errors import GraphBubbleUp, GraphInterrupt

from nbrun.agents import RunContext, events as ev, guarded, plain, pricing

if TYPE_CHECKING:
    from uuid import UUID

    from langgraph.runtime import RunControl

    from nbrun.agents.langgraph.resume import Memory


class Gate(AsyncCallbackHandler):
    """Asks the run's budget before each call of a model.

    Apart from the watch, and no inline callback when it is asked: one that raises leaves those after it as coroutines
    never awaited. While a model speaks it is one: for any other the model waits at each word, outside of its stream,
    and a cancel that comes then leaves the stream open.
    """

    raise_error = True

    def __init__(self, run: RunContext, watch: Callbacks) -> None:
        self._run = run
        self._watch = watch

    @property
    def run_inline(self) -> bool:  # type: ignore[override]  # LangChain reads it anew for each event
        """Whether it is called at once, not as a task."""
        return bool(self._watch.speaking)

    async def on_chat_model_start(self, *call: Any, **more: Any) -> None:
        """Let the call through if something is left for it.

        Raises
        ------
        Cancelled
            Nothing is: no model is called.
        """
        self._run.begin_turn()


class Callbacks(BaseCallbackHandler):
    """Tells what is said, used and done in a graph.

    Threads: of the loop, and of every sync node and tool. `_lock` guards who speaks; the dictionaries have one key a
    call, which only that call's thread writes.
    """

    run_inline = True  # at once and in order; else they would come from a thread of the loop's
    raise_error = True

    def __init__(self, run: RunContext, memory: Memory) -> None:
        self.memory = memory
        self.control: RunControl | None = None
        self.node: str | None = None
        self.denied: set[str] = set()
        self.speaking: set[UUID] = set()  # the models under way
        self._run = run
        self._lock = threading.RLock()
        self._speaker: UUID | None = None
        self._waiting: list[
            tuple[str, bool]
        ] = []  # what was said meanwhile, and whether to its end
        self._words: dict[UUID, list[str]] = {}  # by a model's call, of who waits to speak too
        self._seen: set[str] = set()
        self._within: dict[UUID, str] = {}  # by whatever is called in a tool: the tool's id
        self._tools: dict[UUID, str] = {}
        self._began: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._paused: dict[str, str] = {}  # tools by the interrupt that they wait for

    # --- models ----------------------------------------------------------------------------------

    def on_chat_model_start(
        self, serialized: Any, messages: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **more: Any
    ) -> None:  # fmt: skip
        """Give it the word, unless it is to be silent or is within a tool."""
        self.speaking.add(run_id)
        is_silent = TAG_NOSTREAM in (more.get("tags") or ()) or parent_run_id in self._within
        if not is_silent:
            self._words[run_id] = []

    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **more: Any) -> None:
        """Tell what a model says; one that speaks on after a cancel has not received of it."""
        if self._run.token.cancelled:
            _cancel_again()
        message = getattr(chunk, "message", None)
        if run_id not in self._words or message is None:
            return
        if message.additional_kwargs or not isinstance(message.content, str):
            for block in message.content_blocks:
                if block["type"] == "reasoning":
                    self._run.reasoning(str(block.get("reasoning") or ""))
        self._say(run_id, str(message.text))

    def on_llm_end(self, response: Any, *, run_id: UUID, **more: Any) -> None:
        """Tell what was said as a whole, and what it has used."""
        self.speaking.discard(run_id)
        message = getattr(response.generations[0][0], "message", None)
        if isinstance(message, AIMessage):
            message.id = message.id or f"run-{run_id}"
            self._seen.add(message.id)
            self._tell_usage(message)
        self._end_saying(run_id, "" if message is None else str(message.text))
        self._look_for_people()

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """Let others speak; what was said stands."""
        self.speaking.discard(run_id)
        self._end_saying(run_id, "", is_whole=False)

    def _say(self, run_id: UUID, text: str) -> None:
        """Tell a piece of text, or keep it while another model speaks: their words would be mixed."""
        if not text:
            return
        with guarded(), self._lock:
            if self._speaker is None:
                self._speaker = run_id
            self._words[run_id].append(text)
            if self._speaker == run_id:
                self._run.text(text)

    def _end_saying(self, run_id: UUID, whole: str, is_whole: bool = True) -> None:
        """Tell what has not been told, when it is its turn; then give the next one the word."""
        with guarded(), self._lock:
            words = self._words.pop(run_id, None)
            if words is None:
                return
            said = "".join(words) or whole
            if self._speaker not in (None, run_id):
                self._waiting.append((said, is_whole))
                return
            self._tell_message(said, is_told=bool(words), is_whole=is_whole)
            for other, other_is_whole in self._waiting:
                self._tell_message(other, is_told=False, is_whole=other_is_whole)
            self._waiting.clear()
            self._speaker = next((other for other, kept in self._words.items() if kept), None)
            if self._speaker is not None:
                self._run.text("".join(self._words[self._speaker]))

    def _tell_message(self, said: str, *, is_told: bool, is_whole: bool) -> None:
        if not is_told:
            self._run.text(said)
        if is_whole and said:
            self._run.send(ev.Message("assistant", said))

    def said_by_node(self, message: Any) -> list[ev.EventData]:
        """Return what a node says itself, without a model."""
        is_own = isinstance(message, AIMessage) and not isinstance(message, AIMessageChunk)
        if not is_own or message.id in self._seen or not message.text:
            return []
        text = str(message.text)
        return [ev.TextDelta(text), ev.Message("assistant", text)]

    def _tell_usage(self, message: AIMessage) -> None:
        used = message.usage_metadata
        if used is None:
            self._run.usage(requests=1)
            return
        cached = used.get("input_token_details", {}).get("cache_read") or 0
        about = message.response_metadata
        cost = pricing.cost_usd(
            str(about.get("model_name") or ""), provider=str(about.get("model_provider") or ""),
            input_tokens=used["input_tokens"], output_tokens=used["output_tokens"], cache_read_tokens=cached,
        )  # fmt: skip
        self._run.usage(
            input_tokens=used["input_tokens"], output_tokens=used["output_tokens"], cache_read_tokens=cached,
            reasoning_tokens=used.get("output_token_details", {}).get("reasoning") or 0, requests=1, cost_usd=cost,
        )  # fmt: skip

    # --- tools -----------------------------------------------------------------------------------

    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None, **more: Any
    ) -> None:  # fmt: skip
        """Tell that a tool is entered; not a second time when it goes on after a person's answer."""
        tool_id = str(more.get("tool_call_id") or run_id)
        parent = self._within.get(parent_run_id) if parent_run_id else None
        if parent is not None:  # models number their calls, each from the same beginning
            tool_id = f"{parent}/{tool_id}"
        self._tools[run_id] = self._within[run_id] = tool_id
        if parent is None:
            self.memory.begin_tool(tool_id)
        if tool_id in self._began:
            return
        self._began[tool_id] = self._run.clock.monotonic()
        args = more.get("inputs")
        name = str((serialized or {}).get("name") or more.get("name") or "tool")
        self._run.send(
            ev.ToolStarted(tool_id, name, "function", plain(input_str if args is None else args)),
            parent,
        )

    def on_tool_end(self, output: Any, *, run_id: UUID, **more: Any) -> None:
        """Tell its result."""
        self.memory.keep_result(output)
        status = "error" if getattr(output, "status", "") == "error" else "ok"
        self._finish(run_id, status, output.content if isinstance(output, BaseMessage) else output)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """Report how it ended, unless it waits for a person.

        Source: from langchain-core 1.7.5 on a tool reports a `BaseException` too, so a cancel arrives here.
        """
        if not isinstance(error, Exception) and self._run.token.cancelled:
            self._finish(run_id, "cancelled", None)
            return
        if not isinstance(error, GraphBubbleUp):
            self._finish(run_id, "error", f"{type(error).__name__}: {error}")
            return
        tool_id = self._tools.pop(run_id)
        self.memory.pause_tool(tool_id)
        if isinstance(error, GraphInterrupt):
            for interrupt in error.args[0] if error.args else ():
                self._paused[interrupt.id] = tool_id
        if tool_id.endswith(str(run_id)):  # called by no model: it will go by another id then
            self._tools[run_id] = tool_id
            self._finish(run_id, "cancelled", None)

    def _finish(self, run_id: UUID, status: str, result: object) -> None:
        self._within.pop(run_id, None)
        tool_id = self._tools.pop(run_id)
        ms = (self._run.clock.monotonic() - self._began.pop(tool_id)) * 1000
        status = "denied" if tool_id in self.denied else status
        self._run.send(ev.ToolFinished(tool_id, status, plain(result), round(ms, 3)))
        self._look_for_people()

    def tool_of(self, interrupt: Any) -> str | None:
        """Return the tool that waits at an interrupt, if it is one that does."""
        return self._paused.get(interrupt.id)

    def progress(self, tool_id: str, delta: object) -> list[ev.EventData]:
        """Return that a tool has come further."""
        if tool_id not in self._began:
            return []
        step = self._steps[tool_id] = self._steps.get(tool_id, 0) + 1
        return [ev.ToolProgress(tool_id, step, label=str(delta))]

    # --- nodes -----------------------------------------------------------------------------------

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **more: Any
    ) -> None:  # fmt: skip
        """Tell which node is entered."""
        if parent_run_id in self._within:
            self._within[run_id] = self._within[parent_run_id]
            return
        about = more.get("metadata") or {}
        node = about.get("langgraph_node")
        if node is not None and more.get("name") == node:
            if "|" not in about.get("langgraph_checkpoint_ns", ""):
                self.node = node
            self._run.phase(node)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **more: Any) -> None:
        """Stop after this step if somebody has as_messages."""
        self._within.pop(run_id, None)
        self._look_for_people()

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """Forget it."""
        self._within.pop(run_id, None)

    def _look_for_people(self) -> None:
        if self.control is not None and len(self._run.inbox):
            self.control.request_drain("a person has as_messages")


def _cancel_again() -> None:
    """Cancel the task in which this is called, whose first cancel is lost.

    LangChain's OpenAI models wait for each chunk by `asyncio.wait_for`, and up to Python 3.11 that swallows a cancel
    which comes together with what it waits for. Source: CPython's issue 86296.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # the thread of a sync model, which the ladder stops
        return
    if task is not None:
        task.cancel()
