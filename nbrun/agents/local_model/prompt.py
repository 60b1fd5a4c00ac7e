"""A conversation as text for the local model: chat turns, the tools offered, its answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic_ai.exceptions import UnexpectedModelBehavior, UserError
from pydantic_ai.messages import (
    ModelRequest,
    SystemPromptPart,
    TextContent,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.settings import ToolOrOutput
from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic_ai.messages import ModelMessage, UserContent
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.tools import ToolDefinition

# The model's template has no tools. So an answer that may be a tool call must match a JSON schema,
# {"tool": NAME, "args": {…}} or {"tool": "answer", "text": …}. One example of the latter balances the choice: of 18
# prompts that asked for a tool 16 called the right one, and 18 of 24 others were answered. With a second example
# these were 6 and 20; with none, "Hello" called a tool.
_ANSWER: Final = "answer"


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools that an answer may call, and whether it may be text instead."""

    tools: tuple[ToolDefinition, ...]
    may_answer: bool

    @classmethod
    def of(
        cls, messages: Sequence[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> Offer | None:
        """Return what may be called now; None if only text may follow."""
        functions = parameters.declared_function_tools
        outputs = parameters.output_tools
        is_forced = False
        match (settings or {}).get("tool_choice"):
            case "none" | []:
                functions = []
            case "required":
                is_forced = True
            case ToolOrOutput(function_tools=names):
                functions = [tool for tool in functions if tool.name in names]
            case list(names):
                is_forced = True
                functions = [tool for tool in functions if tool.name in names]
                outputs = [tool for tool in outputs if tool.name in names]
        # One round: otherwise this model calls the same tool until the run's limit.
        if not is_forced and _has_returned_tools(messages):
            functions = []
        tools = (*functions, *outputs)
        return cls(tools, parameters.allow_text_output and not is_forced) if tools else None

    def schema(self) -> dict[str, object]:
        """Return the JSON schema of an answer; it is written in the order of the keys."""
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

    def example(self) -> list[tuple[str, str]]:
        """Return the turns that show an answer in text; none if text is not allowed."""
        if not self.may_answer:
            return []
        answer = _call(_ANSWER, "text", "Hello! How can I help you?")
        return [("user", "Hello!"), ("assistant", answer)]


def chat(
    messages: Sequence[ModelMessage], parameters: ModelRequestParameters, offer: Offer | None
) -> list[dict[str, str]]:
    """Return the conversation for the template: one system turn, then the others."""
    turns = [turn for message in messages for turn in _turns(message)]
    if offer is not None and _has_returned_tools(messages):
        turns.append(("user", _question(messages)))  # it takes arguments from the last turn
    system = [text for role, text in turns if role == "system"]
    system += _instructions(messages, parameters)
    others = [turn for turn in turns if turn[0] != "system"]
    if offer is not None:
        system.append(offer.briefing())
        others = [*offer.example(), *others]
    if system:
        others.insert(0, ("system", "\n\n".join(system)))
    return [{"role": role, "content": text} for role, text in others]


def answer_in(written: str) -> str:
    """Return as much of a text answer as the unfinished JSON contains."""
    try:
        reply: dict[str, object] = from_json(written, allow_partial="trailing-strings")
    except ValueError:  # nothing yet
        return ""
    return str(reply.get("text", ""))


def tool_call_in(written: str) -> tuple[str, dict[str, object]]:
    """Return the tool's name and its arguments; raises `UnexpectedModelBehavior` if the JSON is unfinished."""
    try:
        call = json.loads(written)
        return call["tool"], call["args"]
    except (ValueError, KeyError) as error:
        raise UnexpectedModelBehavior(
            "The local demo model's answer ended inside a tool call: raise max_tokens, or give the agent fewer tools.",
            written,
        ) from error


def _instructions(messages: Sequence[ModelMessage], parameters: ModelRequestParameters) -> list[str]:
    if parameters.instruction_parts is not None:
        return [part.content for part in parameters.instruction_parts]
    # The model is used directly, without an agent.
    latest = [message.instructions for message in messages if isinstance(message, ModelRequest)]
    return [text for text in latest[-1:] if text]


def _question(messages: Sequence[ModelMessage]) -> str:
    parts = [part for message in messages for part in message.parts]
    asked = [part.content for part in parts if isinstance(part, UserPromptPart)]
    return _text_of(asked[-1]) if asked else ""


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
                raise UserError(f"The local demo model can't read a {part.part_kind!r} message.")
            case _:
                pass  # another model's thinking or files: no room for them in 4096 tokens


def _text_of(content: str | Sequence[UserContent]) -> str:
    texts: list[str] = []
    for item in [content] if isinstance(content, str) else content:
        match item:
            case str(text) | TextContent(content=text):
                texts.append(text)
            case _:
                kind = type(item).__name__
                raise UserError(f"The local demo model reads text only, but the prompt contains a {kind}.")
    return "\n".join(texts)


def _has_returned_tools(messages: Sequence[ModelMessage]) -> bool:
    return any(isinstance(part, ToolReturnPart) and part.outcome != "retried" for part in messages[-1].parts)


def _form(tool: str, key: str, value: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {"tool": {"const": tool}, key: value},
        "required": ["tool", key],
        "additionalProperties": False,
    }


def _call(tool: str, key: str, value: object) -> str:
    return json.dumps({"tool": tool, key: value}, ensure_ascii=False)
