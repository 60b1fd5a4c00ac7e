"""The callbacks of a run of a LangGraph graph: they report its models and tools at once."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langgraph.constants import TAG_NOSTREAM
from langgraph.errors import GraphBubbleUp, GraphInterrupt

from nbrun.agents import RunContext, Tools, events as ev, guarded, plain, pricing

if TYPE_CHECKING:
    from uuid import UUID

    from langgraph.runtime import RunControl

    from nbrun.agents.langgraph.resume import Checkpoint


class Gate(AsyncCallbackHandler):
    """Checks the run's budget before each model call.

    Separate from `Callbacks`, and not inline at that moment: an inline callback that raises leaves the later ones as
    coroutines never awaited. While a model streams it is inline: for others the model waits at each token, outside of
    its stream, and a cancel at that moment leaves the stream open.
    """

    raise_error = True

    def __init__(self, run: RunContext, callbacks: Callbacks) -> None:
        self._run = run
        self._callbacks = callbacks

    @property
    def run_inline(self) -> bool:  # type: ignore[override]  # LangChain reads it for each event
        """Whether it is called directly, not as a task."""
        return bool(self._callbacks.streaming)

    async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Count a model call; raise `Cancelled` if the budget is used up."""
        self._run.begin_turn()


class Callbacks(BaseCallbackHandler):
    """Reports text, usage, tools and nodes.

    Threads: the loop, and every sync node and tool. `_lock` guards which model's text is shown; the dictionaries have
    a key for each call, which only that call's thread writes.
    """

    run_inline = True  # at once and in order; otherwise they would come from an executor's thread
    raise_error = True

    def __init__(self, run: RunContext, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.control: RunControl | None = None
        self.node: str | None = None
        self.denied: set[str] = set()
        self.streaming: set[UUID] = set()  # model calls in progress
        self._run = run
        self._lock = threading.RLock()
        self._shown: UUID | None = None  # the model call whose text is shown as it comes
        self._waiting: list[tuple[str, bool]] = []  # texts of calls that ended meanwhile; is it complete
        self._texts: dict[UUID, list[str]] = {}  # by model call
        self._seen: set[str] = set()
        self._within: dict[UUID, str] = {}  # for each call inside a tool: the tool's id
        self._tool_ids: dict[UUID, str] = {}
        self._tools = Tools(run.clock)
        self._steps: dict[str, int] = {}
        self.paused: dict[str, str] = {}  # tools by the interrupt that they wait for

    def map(self, mode: str, part: Any) -> list[ev.EventData]:
        """Return nbrun's events for a part of the stream, except what the callbacks report."""
        match mode:
            case "messages":
                message, text = part[0], str(part[0].text)
                is_own = isinstance(message, AIMessage) and not isinstance(message, AIMessageChunk)
                if text and is_own and message.id not in self._seen:  # from a node, not a model
                    return [ev.TextDelta(text), ev.Message("assistant", text)]
            case "tools" if part["event"] == "tool-output-delta":
                tool_id = part["tool_call_id"]
                if tool_id in self._tools.began:
                    step = self._steps[tool_id] = self._steps.get(tool_id, 0) + 1
                    return [ev.ToolProgress(tool_id, step, label=str(part["delta"]))]
            case "custom":
                return [ev.Custom("custom", plain(part))]
            case "values" if isinstance(part, dict):
                self.checkpoint.keep(part.get("messages"))
        return []

    # --- models ----------------------------------------------------------------------------------

    def on_chat_model_start(
        self, serialized: Any, messages: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **more: Any
    ) -> None:
        """Show the model's text, unless it is tagged as silent or runs within a tool."""
        self.streaming.add(run_id)
        if TAG_NOSTREAM not in (more.get("tags") or ()) and parent_run_id not in self._within:
            self._texts[run_id] = []

    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **more: Any) -> None:
        """Report a token; a model that streams after a cancel is cancelled again."""
        if self._run.token.cancelled:
            _cancel_again()
        message = getattr(chunk, "message", None)
        if run_id not in self._texts or message is None:
            return
        if message.additional_kwargs or not isinstance(message.content, str):
            for block in message.content_blocks:
                if block["type"] == "reasoning":
                    self._run.reasoning(str(block.get("reasoning") or ""))
        if text := str(message.text):
            with guarded(), self._lock:
                self._shown = self._shown or run_id
                self._texts[run_id].append(text)
                if self._shown == run_id:
                    self._run.text(text)

    def on_llm_end(self, response: Any, *, run_id: UUID, **more: Any) -> None:
        """Report the message and its usage."""
        self.streaming.discard(run_id)
        message = getattr(response.generations[0][0], "message", None)
        if isinstance(message, AIMessage):
            message.id = message.id or f"run-{run_id}"
            self._seen.add(message.id)
            self._report_usage(message)
        self._end_text(run_id, "" if message is None else str(message.text))
        self._stop_for_messages()

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """Keep the text so far, without a message."""
        self.streaming.discard(run_id)
        self._end_text(run_id, "", is_complete=False)

    def _end_text(self, run_id: UUID, whole: str, is_complete: bool = True) -> None:
        """Report the text of a call that ended, once no other call's is shown; then show the next one's."""
        with guarded(), self._lock:
            parts = self._texts.pop(run_id, None)
            if parts is None:
                return
            text = "".join(parts) or whole
            if self._shown not in (None, run_id):
                self._waiting.append((text, is_complete))
                return
            if not parts:
                self._run.text(text)
            self._report_message(text, is_complete)
            for other, other_is_complete in self._waiting:
                self._run.text(other)
                self._report_message(other, other_is_complete)
            self._waiting.clear()
            self._shown = next((other for other, kept in self._texts.items() if kept), None)
            if self._shown is not None:
                self._run.text("".join(self._texts[self._shown]))

    def _report_message(self, text: str, is_complete: bool) -> None:
        if is_complete and text:
            self._run.send(ev.Message("assistant", text))

    def _report_usage(self, message: AIMessage) -> None:
        used = message.usage_metadata
        if used is None:
            self._run.usage(requests=1)
            return
        tokens = {
            "input_tokens": used["input_tokens"], "output_tokens": used["output_tokens"],
            "cache_read_tokens": used.get("input_token_details", {}).get("cache_read") or 0,
        }  # fmt: skip
        about = message.response_metadata
        model, provider = (str(about.get(key) or "") for key in ("model_name", "model_provider"))
        cost = pricing.cost_usd(model, provider=provider, **tokens)
        reasoning = used.get("output_token_details", {}).get("reasoning") or 0
        self._run.usage(**tokens, reasoning_tokens=reasoning, requests=1, cost_usd=cost)

    # --- tools -----------------------------------------------------------------------------------

    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None, **more: Any
    ) -> None:
        """Report the start of a tool; only once if it starts again after the user's answer."""
        tool_id = str(more.get("tool_call_id") or run_id)
        parent = self._within.get(parent_run_id) if parent_run_id else None
        if parent is not None:  # each model numbers its calls from the start
            tool_id = f"{parent}/{tool_id}"
        self._tool_ids[run_id] = self._within[run_id] = tool_id
        if parent is None:
            self.checkpoint.begin_tool(tool_id)
        args = more.get("inputs")
        name = str((serialized or {}).get("name") or more.get("name") or "tool")
        for event in self._tools.start(tool_id, name, input_str if args is None else args):
            self._run.send(event, parent)

    def on_tool_end(self, output: Any, *, run_id: UUID, **more: Any) -> None:
        """Report the result of a tool."""
        self.checkpoint.keep_result(output)
        status = "error" if getattr(output, "status", "") == "error" else "ok"
        self._finish(run_id, status, output.content if isinstance(output, BaseMessage) else output)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """Report how a tool failed, unless it waits for the user.

        Source: from langchain-core 1.7.5 on a tool reports a `BaseException` too, so a cancel arrives here.
        """
        if not isinstance(error, Exception) and self._run.token.cancelled:
            self._finish(run_id, "cancelled", None)
            return
        if not isinstance(error, GraphBubbleUp):
            self._finish(run_id, "error", f"{type(error).__name__}: {error}")
            return
        tool_id = self._tool_ids.pop(run_id)
        self.checkpoint.pause_tool(tool_id)
        if isinstance(error, GraphInterrupt):
            for interrupt in error.args[0] if error.args else ():
                self.paused[interrupt.id] = tool_id
        if tool_id.endswith(str(run_id)):  # not called by a model: it gets another id next time
            self._tool_ids[run_id] = tool_id
            self._finish(run_id, "cancelled", None)

    def _finish(self, run_id: UUID, status: str, result: object) -> None:
        self._within.pop(run_id, None)
        tool_id = self._tool_ids.pop(run_id)
        status = "denied" if tool_id in self.denied else status
        self._run.send(self._tools.finish(tool_id, status, result))
        self._stop_for_messages()

    # --- nodes -----------------------------------------------------------------------------------

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **more: Any
    ) -> None:
        """Report the node that starts."""
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
        """Stop after this step if there are messages for the run."""
        self._within.pop(run_id, None)
        self._stop_for_messages()

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """Forget the call."""
        self._within.pop(run_id, None)

    def _stop_for_messages(self) -> None:
        if self.control is not None and len(self._run.inbox):
            self.control.request_drain("a message is waiting")


def _cancel_again() -> None:
    """Cancel the current task, whose first cancel was lost.

    LangChain's OpenAI models wait for each chunk with `asyncio.wait_for`, which up to Python 3.11 swallows a cancel
    that arrives together with the chunk. Source: CPython's issue 86296.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # the thread of a sync model, which the host stops
        return
    if task is not None:
        task.cancel()
