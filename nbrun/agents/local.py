"""The tiny local model as a pydantic-ai ``Model``: in process, token by token, no HTTP."""

# How an answer is made:
#
#   event loop          LocalModel.request_stream makes a _Decoding and queues it
#   nbrun-local-model   the one decode thread; hands every token back with call_soon_threadsafe
#   event loop          LocalStream turns the tokens into pydantic-ai's events
#
# One answer at a time, in the order asked for. Measured on one core: two answers of 80 tokens side
# by side in the runtime's slots took 2.0 s, one after the other 1.6 s. A queue of our own also lets
# a request that still waits be cancelled at once.
#
# The runtime calls its server in process, and opens a loopback port all the same. Nothing of ours
# goes through it, and whoever finds it lacks the key, which is random and forgotten.

from __future__ import annotations

import asyncio
import atexit
import importlib
import json
import os
import queue
import secrets
import threading
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NotRequired, Protocol, TypedDict

from pydantic_ai.exceptions import ModelAPIError, UnexpectedModelBehavior, UserError
from pydantic_ai.messages import (
    ModelRequest,
    SystemPromptPart,
    TextContent,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.profiles import InlineDefsJsonSchemaTransformer, ModelProfile
from pydantic_ai.settings import ToolOrOutput
from pydantic_ai.usage import RequestUsage
from pydantic_core import from_json

from nbrun.agents.local_install import find_model_file, missing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from pydantic_ai import RunContext
    from pydantic_ai.messages import (
        FinishReason,
        ModelMessage,
        ModelResponse,
        ModelResponseStreamEvent,
        UserContent,
    )
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.tools import ToolDefinition

MODEL_NAME: Final = "smollm2-135m"
CONTEXT_TOKENS: Final = 4096
"""Prompt and answer together; the runtime refuses a longer prompt."""

# At temperature 0 this model repeats itself; 0.2 with top_p 0.9 mends most of it.
_DEFAULTS: Final[dict[str, object]] = {"max_tokens": 256, "temperature": 0.2, "top_p": 0.9}
# pydantic-ai's name of each setting that is honoured → the runtime's
_SETTINGS: Final = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop_sequences": "stop",
}
# A cancel is heard between batches of the prompt: 64 tokens are 0.3 s on one core (the runtime's
# own 2048 are 12 s), and reading a prompt takes 6 % longer.
_BATCH_TOKENS: Final = 64


class LocalModel(Model):
    """SmolLM2 with 135 million parameters, on this machine's CPU: for demos, tests and teaching.

    It reads and writes text. Its facts are often wrong. Function tools work as far as so small a
    model can choose: at most one call an answer, and once the tools have returned it answers in
    words. The model is loaded at the first request, once a process, and kept until `close`.

    Threads: any number of event loops may use any number of instances; requests wait in one queue.

    Parameters
    ----------
    settings
        Defaults of this instance: ``max_tokens`` (256), ``temperature`` (0.2), ``top_p`` (0.9),
        ``top_k``, ``seed``, ``presence_penalty``, ``frequency_penalty``, ``stop_sequences``,
        ``tool_choice``.
    """

    unsupported_settings = frozenset({"timeout", "logit_bias", "extra_body"})

    def __init__(self, *, settings: ModelSettings | None = None) -> None:
        profile = ModelProfile(
            json_schema_transformer=InlineDefsJsonSchemaTransformer,
            # The runtime would take a user's "<|im_end|>" for the end of the user's turn.
            may_tokenize_special_tokens_in_content=True,
            context_window=CONTEXT_TOKENS,
            supports_image_input=False,
            supports_document_input=False,
            supports_audio_file_input=False,
            supports_video_input=False,
        )
        super().__init__(settings=settings, profile=profile)

    @property
    def model_name(self) -> str:
        """The model's name, without its provider."""
        return MODEL_NAME

    @property
    def system(self) -> str:
        """The provider's name."""
        return "local"

    @property
    def label(self) -> str:
        """What people read: the name, and that it is tiny."""
        return "SmolLM2 135M (tiny demo model)"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Return the whole answer."""
        async with self.request_stream(
            messages, model_settings, model_request_parameters
        ) as response:
            async for _ in response:
                pass
            return response.get()

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[object] | None = None,
    ) -> AsyncIterator[StreamedResponse]:
        """Yield the answer as it is decoded; leaving the block stops the decoding.

        Raises
        ------
        pydantic_ai.UserError
            When a part of the local model is missing, or a message holds more than text.
        pydantic_ai.ModelAPIError
            When the prompt is too long, or the model was closed.
        pydantic_ai.UnexpectedModelBehavior
            When the answer ended in the middle of a tool call.
        """
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        offer = _Offer.of(messages, settings, parameters)
        body: dict[str, object] = _DEFAULTS | {
            "messages": _chat(messages, parameters, offer),
            "stream": True,
            # So that there is something to cancel at while the prompt is read, and a usage to tell
            # when the last chunk, which has the sums, never comes.
            "return_progress": True,
            "timings_per_token": True,
        }
        for name, value in (settings or {}).items():
            if name in _SETTINGS and value is not None:
                body[_SETTINGS[name]] = value
        if offer is not None:
            schema = {"schema": offer.schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        decoding = _Decoding(body)
        _submit(decoding)
        try:
            yield LocalStream(parameters, decoding=decoding, constrained=offer is not None)
        finally:
            decoding.stop()


@dataclass
class LocalStream(StreamedResponse):
    """One answer of the local model, as pydantic-ai reads it."""

    _: KW_ONLY
    decoding: _Decoding
    constrained: bool
    # pydantic-ai stamps a response itself; a run's own times come from nbrun's clock.
    answered_at: datetime = field(default_factory=partial(datetime.now, UTC))

    @property
    def model_name(self) -> str:
        """The model's name, without its provider."""
        return MODEL_NAME

    @property
    def provider_name(self) -> str:
        """The provider's name."""
        return "local"

    @property
    def provider_url(self) -> None:
        """Nothing: the model runs in this process."""
        return

    @property
    def timestamp(self) -> datetime:
        """When the request was made."""
        return self.answered_at

    async def close_stream(self) -> None:
        """Stop decoding; an iteration that waits for the next token ends at once."""
        self.decoding.stop()

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        written = ""
        shown = ""
        async for piece in self.decoding.pieces():
            self._usage = piece.usage or self._usage
            self.finish_reason = piece.finish_reason or self.finish_reason
            written += piece.text
            text = _answer_in(written) if self.constrained else written
            for event in self._text_events(text.removeprefix(shown)):
                yield event
            shown = text
        if self.constrained and not shown and not self.decoding.is_stopped:
            name, args = _tool_call_in(written)
            yield self._parts_manager.handle_tool_call_part(
                vendor_part_id=None, tool_name=name, args=args
            )
            self.finish_reason = "tool_call"

    def _text_events(self, delta: str) -> Iterator[ModelResponseStreamEvent]:
        if delta:
            yield from self._parts_manager.handle_text_delta(vendor_part_id="text", content=delta)


def close(timeout_s: float = 5.0) -> None:
    """Stop what is decoded and what waits, and let the model go; the next request loads it again.

    Decoding ends between two tokens, so a busy machine needs some 0.5 s; after `timeout_s` the
    thread, a daemon, is left behind. Called at interpreter exit too.
    """
    global _decoder
    with _decoder_lock:
        decoder, _decoder = _decoder, None
    if decoder is not None:
        atexit.unregister(close)
        decoder.close(timeout_s)


# --- the decode thread ----------------------------------------------------------------------------


class _Delta(TypedDict, total=False):
    content: str | None


class _Choice(TypedDict):
    finish_reason: str | None
    delta: _Delta


class _Timings(TypedDict):
    cache_n: int
    prompt_n: int
    predicted_n: int


class _Complaint(TypedDict):
    message: str
    n_prompt_tokens: NotRequired[int]  # only when these are too many


class _Chunk(TypedDict, total=False):
    """What the runtime's callback is called with; only what is read here."""

    choices: list[_Choice]
    timings: _Timings
    error: _Complaint


class _Server(Protocol):
    """The one method of ``xllamacpp.Server`` that is used: it returns when the answer is done.

    It calls `on_chunk` on the calling thread and without a limit on its time; True means stop. It
    prints an exception of the callback and goes on, so the callback must not raise.
    """

    def handle_chat_completions(
        self, body: dict[str, object], on_chunk: Callable[[_Chunk], bool]
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    usage: RequestUsage | None
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None = None


class _Decoding:
    """One answer on its way from the decode thread to the event loop that asked for it.

    Threads: made and read (`pieces`) on the loop; `take` and `end` are called by the decode thread;
    `stop` by any. `is_stopped` goes from False to True once and is read without a lock: a decode
    thread that sees it late decodes one token more, which `pieces` drops.
    """

    def __init__(self, body: dict[str, object]) -> None:
        self.body = body
        self.is_stopped = False
        self._loop = asyncio.get_running_loop()
        self._arrivals: asyncio.Queue[_Piece | _End] = asyncio.Queue()

    def stop(self) -> None:
        """Ask for no more tokens; whoever reads `pieces` reaches its end."""
        self.is_stopped = True
        self._hand_over(_End())

    def take(self, chunk: _Chunk) -> bool:
        """Pass a chunk on to the loop; return whether to stop decoding. Never raises."""
        if self.is_stopped:
            return True
        try:
            self._hand_over(_piece_of(chunk))
        except Exception as error:  # the runtime would only print it
            self.end(error)
            return True
        return self.is_stopped

    def end(self, error: Exception | None = None) -> None:
        """Say that no token will follow, and why if that is a failure."""
        self._hand_over(_End(error))

    async def pieces(self) -> AsyncIterator[_Piece]:
        """Yield what was decoded, in order, until the end or `stop`; raise what went wrong."""
        while isinstance(arrival := await self._arrivals.get(), _Piece):
            if self.is_stopped:
                return
            yield arrival
        if arrival.error is not None:
            raise arrival.error

    def _hand_over(self, arrival: _Piece | _End) -> None:
        try:
            self._loop.call_soon_threadsafe(self._arrivals.put_nowait, arrival)
        except RuntimeError:  # the loop is closed: nobody is left to read
            self.is_stopped = True


class _Decoder:
    """The thread that decodes one answer after the other, and has the model.

    Threads: `submit` and `close` from any thread, under `_decoder_lock`'s order: nothing is
    submitted after `close`. `_is_closing` is written by `close` only.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[_Decoding | None] = queue.SimpleQueue()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="nbrun-local-model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; in a forked child it does not."""
        return self._thread.is_alive()

    def submit(self, decoding: _Decoding) -> None:
        self._waiting.put(decoding)

    def close(self, timeout_s: float) -> None:
        # A daemon thread that comes back from C++ while the interpreter goes down takes the process
        # with it: that is why exit waits here, for one token.
        self._is_closing = True
        self._waiting.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        # A local, so that it goes with this thread; and never in a forked child, where the threads
        # that its destructor waits for do not exist.
        server: _Server | None = None
        while (decoding := self._waiting.get()) is not None:
            if decoding.is_stopped:  # cancelled while it waited
                continue
            try:
                if not self._is_closing:
                    server = server or _load()
                    on_chunk = partial(self._pass_on, decoding)
                    server.handle_chat_completions(decoding.body, on_chunk)
                decoding.end(_failure("it was closed") if self._is_closing else None)
            except UserError as error:
                decoding.end(error)
            except Exception as error:  # told to the run that asked; the thread serves the next one
                failure = _failure(str(error))
                failure.__cause__ = error
                decoding.end(failure)

    def _pass_on(self, decoding: _Decoding, chunk: _Chunk) -> bool:
        return self._is_closing or decoding.take(chunk)


_decoder: _Decoder | None = None
_decoder_lock = threading.Lock()


def _submit(decoding: _Decoding) -> None:
    global _decoder
    with _decoder_lock:
        if _decoder is None or not _decoder.is_alive:
            _decoder = _Decoder()
            atexit.register(close)
        _decoder.submit(decoding)  # under the lock, so never behind the None of close()


def _load() -> _Server:
    """Load the model: 250 MB."""
    # The runtime holds the GIL all the while: 0.25 to 0.4 s in which nothing else runs in this
    # process, seconds on a busy machine. Its trial run and its look at the memory would double that.
    if (lack := missing()) is not None:
        raise UserError(lack)
    xllamacpp = importlib.import_module("xllamacpp")
    threads = max(1, (os.cpu_count() or 1) // 2)  # with all of them, busy barriers fight for cores
    params = xllamacpp.CommonParams()
    params.model.path = str(find_model_file())
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup = params.fit_params = False
    params.cache_ram_mib = 0  # else up to 8 GiB of old prompts are kept
    params.verbosity = -1  # not a line on stderr
    params.hostnames = ["127.0.0.1"]  # an empty list crashes the process
    params.api_keys = [secrets.token_urlsafe(32)]
    params.ui = params.endpoint_slots = False
    params.n_threads_http = 1
    server: _Server = xllamacpp.Server(params)
    return server


def _piece_of(chunk: _Chunk) -> _Piece:
    if (complaint := chunk.get("error")) is not None:
        if (tokens := complaint.get("n_prompt_tokens")) is None:
            raise _failure(complaint["message"])
        raise _failure(
            f"it reads {CONTEXT_TOKENS} tokens and the conversation has {tokens}. Shorten it."
        )
    usage: RequestUsage | None = None
    if (timings := chunk.get("timings")) is not None:
        usage = RequestUsage(
            input_tokens=timings["cache_n"] + timings["prompt_n"],
            cache_read_tokens=timings["cache_n"],
            output_tokens=timings["predicted_n"],
        )
    choice = next(iter(chunk.get("choices", [])), None)
    if choice is None:
        return _Piece("", usage, None)
    reason: FinishReason | None = None
    if choice["finish_reason"] is not None:
        reason = "length" if choice["finish_reason"] == "length" else "stop"
    return _Piece(choice["delta"].get("content") or "", usage, reason)


def _failure(reason: str) -> ModelAPIError:
    return ModelAPIError(MODEL_NAME, f"The local demo model gave no answer: {reason}")


# --- what the model reads and writes --------------------------------------------------------------

# The model's template knows no tools. So an answer that may be a tool call is held to a JSON schema,
# {"tool": NAME, "args": {…}} or {"tool": "answer", "text": …}. One example of the latter makes the
# choice a fair one: of 18 prompts that asked for a tool 16 called the right one, and 18 of 24 others
# were answered. With a second example these were 6 and 20; with none, "Hello" called a tool.
_ANSWER: Final = "answer"
_EXAMPLE: Final = ("Hello!", "Hello! How can I help you?")


@dataclass(frozen=True, slots=True)
class _Offer:
    """The tools that an answer may call, and whether it may be words instead."""

    tools: tuple[ToolDefinition, ...]
    may_answer: bool

    @classmethod
    def of(
        cls,
        messages: Sequence[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> _Offer | None:
        """Return what may be called now, None when only words may follow."""
        functions = parameters.declared_function_tools
        outputs = parameters.output_tools
        choice = (settings or {}).get("tool_choice")
        is_forced = choice == "required" or (isinstance(choice, list) and choice != [])
        if isinstance(choice, list):
            functions = [tool for tool in functions if tool.name in choice]
            outputs = [tool for tool in outputs if tool.name in choice or not choice]
        elif isinstance(choice, ToolOrOutput):
            functions = [tool for tool in functions if tool.name in choice.function_tools]
        elif choice == "none":
            functions = []
        # One round: left to itself this model calls the same tool until the run's limit.
        if not is_forced and _has_returned_tools(messages):
            functions = []
        tools = (*functions, *outputs)
        return cls(tools, parameters.allow_text_output and not is_forced) if tools else None

    def schema(self) -> dict[str, object]:
        """Return the JSON schema of an answer; the order of the keys is the order of writing."""
        forms = [_form(tool.name, "args", tool.parameters_json_schema) for tool in self.tools]
        if self.may_answer:
            forms.append(_form(_ANSWER, "text", {"type": "string"}))
        return {"anyOf": forms}

    def briefing(self) -> str:
        """Return the lines of the system prompt that say what may be called."""
        lines = ["You are a helpful assistant that replies with one JSON object. The tools:"]
        for tool in self.tools:
            named = tool.parameters_json_schema.get("properties", {})
            args = {name: schema.get("type", "any") for name, schema in named.items()}
            lines.append(f"{_call(tool.name, 'args', args)} - {tool.description or tool.name}")
        if self.may_answer:
            lines.append(f"{_call(_ANSWER, 'text', 'string')} - Answer in words if no tool fits.")
        return "\n".join(lines)

    def example(self) -> Iterator[tuple[str, str]]:
        """Yield the turns that show an answer in words, where words may be answered."""
        if self.may_answer:
            prompt, answer = _EXAMPLE
            yield "user", prompt
            yield "assistant", _call(_ANSWER, "text", answer)


def _chat(
    messages: Sequence[ModelMessage], parameters: ModelRequestParameters, offer: _Offer | None
) -> list[dict[str, str]]:
    """Return the conversation as the template takes it: one system turn, then the others."""
    turns = [turn for message in messages for turn in _turns(message)]
    parts = parameters.instruction_parts
    if parts is None:  # asked directly, without an agent
        latest = [message.instructions for message in messages if isinstance(message, ModelRequest)]
        instructions = [text for text in latest[-1:] if text]
    else:
        instructions = [part.content for part in parts]
    system = [text for role, text in turns if role == "system"] + instructions
    if offer is not None:
        system.append(offer.briefing())
    chat = [("system", "\n\n".join(system))] if system else []
    chat += offer.example() if offer is not None else ()
    chat += (turn for turn in turns if turn[0] != "system")
    return [{"role": role, "content": text} for role, text in chat]


def _turns(message: ModelMessage) -> Iterator[tuple[str, str]]:
    for part in message.parts:
        match part:
            case SystemPromptPart(content=text):
                yield "system", text
            case UserPromptPart(content=content):
                yield "user", _text_of(content)
            case ToolReturnPart(tool_name=name):
                result = f"{name} returned: {part.model_response_str()}"
                yield "user", f"{result}\n\nAnswer my question in a sentence with this result."
            case TextPart(content=text):
                yield "assistant", text
            case ToolCallPart(tool_name=name):
                yield "assistant", _call(name, "args", json.loads(part.args_as_json_str()))
            case _ if isinstance(message, ModelRequest):
                raise UserError(f"The local demo model cannot read a {part.part_kind!r} message.")
            case _:
                pass  # another model's thinking or files: not worth its 4096 tokens


def _text_of(content: str | Sequence[UserContent]) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for item in content:
        match item:
            case str():
                texts.append(item)
            case TextContent():
                texts.append(item.content)
            case _:
                kind = type(item).__name__
                raise UserError(f"The local demo model reads text only, the prompt has a {kind}.")
    return "\n".join(texts)


def _has_returned_tools(messages: Sequence[ModelMessage]) -> bool:
    return any(
        isinstance(part, ToolReturnPart) and part.outcome != "retried"
        for part in messages[-1].parts
    )


def _form(tool: str, key: str, value: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {"tool": {"const": tool}, key: value},
        "required": ["tool", key],
        "additionalProperties": False,
    }


def _call(tool: str, key: str, value: object) -> str:
    return json.dumps({"tool": tool, key: value}, ensure_ascii=False)


def _answer_in(written: str) -> str:
    """Return as much of an answer in words as the unfinished JSON text holds."""
    try:
        reply: dict[str, object] = from_json(written, allow_partial="trailing-strings")
    except ValueError:  # nothing yet
        return ""
    return str(reply.get("text", ""))


def _tool_call_in(written: str) -> tuple[str, dict[str, object]]:
    try:
        call = json.loads(written)
        return call["tool"], call["args"]
    except (ValueError, KeyError) as error:
        raise UnexpectedModelBehavior(
            "The local demo model's answer ended inside a tool call: raise max_tokens, "
            "or give the agent fewer tools.",
            written,
        ) from error
