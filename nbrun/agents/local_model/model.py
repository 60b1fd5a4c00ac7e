"""The tiny local model as a pydantic-ai `Model`: in this process, token by token, without HTTP."""

# How an answer is made:
#
#   event loop          LocalModel.request_stream makes a Decoding and submits it
#   nbrun-local-model   the one decode thread; passes every token back with call_soon_threadsafe
#   event loop          LocalStream turns the tokens into pydantic-ai's events

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.profiles import InlineDefsJsonSchemaTransformer, ModelProfile

from nbrun.agents.local_model.decoder import CONTEXT_TOKENS, MODEL_NAME, Decoding, submit
from nbrun.agents.local_model.prompt import Offer, answer_in, chat, tool_call_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pydantic_ai import RunContext
    from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

# At temperature 0 this model repeats itself; 0.2 with top_p 0.9 avoids most of it.
_DEFAULTS: Final[dict[str, object]] = {"max_tokens": 256, "temperature": 0.2, "top_p": 0.9}
# Without it, 10 of 25 haikus repeated themselves, 6 of them up to their token limit; with it none of 75 answers did.
# Not for tool calls, whose JSON has to repeat itself.
_REPEAT_PENALTY: Final = 1.1
# pydantic-ai's name of each supported setting → the runtime's
_SETTINGS: Final = {
    "max_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "stop_sequences": "stop",
}  # fmt: skip


class LocalModel(Model):
    """SmolLM2 with 135 million parameters, on this machine's CPU: for demos, tests and teaching.

    It reads and writes text, and its facts are often wrong. Function tools work as well as so small a model can
    choose: at most one call in an answer, and after the tools have returned it answers in words. The model is loaded
    at the first request, once in a process, and kept until `decoder.close()`.

    Threads: any number of event loops may use any number of instances; requests wait in one queue.

    Parameters
    ----------
    model_file : a model of the user's own, in the GGUF format, instead of the demo model; one is loaded at a time.
    settings : defaults of this instance: `max_tokens` (256), `temperature` (0.2), `top_p` (0.9), `top_k`, `seed`,
        `presence_penalty`, `frequency_penalty`, `stop_sequences`, `tool_choice`.
    """

    unsupported_settings = frozenset({"timeout", "logit_bias", "extra_body"})

    def __init__(self, model_file: Path | None = None, *, settings: ModelSettings | None = None) -> None:
        self._model_file = model_file
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
        return _name(self._model_file)

    @property
    def system(self) -> str:
        """The provider's name."""
        return "local"

    @property
    def label(self) -> str:
        """The model's name for the user, which says that it is tiny."""
        if self._model_file is not None:
            return self._model_file.name
        return "SmolLM2 135M (tiny demo model)"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Return the whole answer."""
        async with self.request_stream(messages, model_settings, model_request_parameters) as response:
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

        Raises pydantic-ai's `UserError` if a part of the local model is missing, or a message contains more than
        text; `ModelAPIError` if the prompt is too long, or the model was closed; `UnexpectedModelBehavior` if the
        answer ended in the middle of a tool call.
        """
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        offer = Offer.of(messages, settings, parameters)
        body: dict[str, object] = {
            **_sampling(settings),
            "messages": chat(messages, parameters, offer),
            "stream": True,
            # For chunks at which to cancel while the prompt is read, and for a usage to report if the last chunk,
            # which has the totals, never comes.
            "return_progress": True,
            "timings_per_token": True,
        }
        if offer is not None:
            schema = {"schema": offer.schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            body["repeat_penalty"] = _REPEAT_PENALTY
        decoding = Decoding(body, self._model_file)
        submit(decoding)
        try:
            yield LocalStream(parameters, decoding=decoding, is_constrained=offer is not None)
        finally:
            decoding.stop()


@dataclass(kw_only=True)
class LocalStream(StreamedResponse):
    """One answer of the local model, as pydantic-ai reads it."""

    decoding: Decoding
    is_constrained: bool
    # pydantic-ai's own time of a response; a run's times come from nbrun's clock.
    asked_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def model_name(self) -> str:
        """The model's name, without its provider."""
        return _name(self.decoding.model_file)

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
        return self.asked_at

    async def close_stream(self) -> None:
        """Stop decoding; an iteration that waits for the next token ends at once."""
        self.decoding.stop()

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        written = ""
        shown = ""
        parts = self._parts_manager
        async for piece in self.decoding.pieces():
            self._usage = piece.usage or self._usage
            self.finish_reason = piece.finish_reason or self.finish_reason
            written += piece.text
            text = answer_in(written) if self.is_constrained else written
            if delta := text.removeprefix(shown):
                for event in parts.handle_text_delta(vendor_part_id="text", content=delta):
                    yield event
            shown = text
        if self.is_constrained and not shown and not self.decoding.is_stopped:
            name, args = tool_call_in(written)
            yield parts.handle_tool_call_part(vendor_part_id=None, tool_name=name, args=args)
            self.finish_reason = "tool_call"


def _name(model_file: Path | None) -> str:
    return MODEL_NAME if model_file is None else model_file.stem


def _sampling(settings: ModelSettings | None) -> dict[str, object]:
    asked = {
        _SETTINGS[name]: value for name, value in (settings or {}).items() if name in _SETTINGS and value is not None
    }
    return _DEFAULTS | asked
