"""The checkpoint of a run of a LlamaIndex workflow: its context, and its open questions.

The store may have been edited: restoring imports no module, and every question is asked again.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from workflows import Context
from workflows.context.serializers import JsonSerializer
from workflows.errors import ContextSerdeError
from workflows.events import Event, HumanResponseEvent

from nbrun.agents import RunContext, State, plain, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

Fields = dict[str, Any]

MEMORY, BUFFER = "__nbrun_memory", "ChatMemoryBuffer"
# The fields that an answer adds to its question.
ANSWER = ("response", "approved", "args", "reason")
# After a save, as a multiple of its duration, because each save reads the whole context.
PAUSE = 20.0


class Checkpoint:
    """Saves the context of a workflow, and its open questions: the event's name and its fields."""

    def __init__(self, run: RunContext, workflow: Any, handler: Any, questions: Any = ()) -> None:
        self._run = run
        self._handler = handler
        self._serializer = _Serializer(workflow)
        self._questions: list[tuple[str, object]] = [(n, plain(fields)) for n, fields in questions]
        self._next_at = 0.0
        self._has_warned = False

    def begin_asking(self, name: str, fields: Fields) -> bool:
        """Save that the user is asked; return False if it's already so."""
        if (name, plain(fields)) in self._questions:
            return False
        self._questions.append((name, plain(fields)))
        self.save(is_last=True)
        return True

    def end_asking(self, name: str, fields: Fields) -> None:
        """Remove a question that is answered."""
        self._questions.remove((name, plain(fields)))

    def save(self, is_last: bool = False) -> None:
        """Save the context, unless that was done just before."""
        clock = self._run.clock
        began = clock.monotonic()
        if self._handler.is_done() or (began < self._next_at and not is_last):
            return
        try:
            context = self._handler.ctx.to_dict(self._serializer)
            # As text: what isn't JSON has to fail here, and not to be replaced by its `repr`.
            self._run.checkpoint({"context": json.dumps(context), "asked": self._questions})
        except (TypeError, ValueError) as error:
            if not self._has_warned:
                self._has_warned = True
                why = str(error).partition("\n")[0]
                self._run.log(f"it can't be resumed from this point: {why}", "warning")
        self._next_at = clock.monotonic() + PAUSE * (clock.monotonic() - began)


def fields_of(event: Any) -> Fields:
    """Return an event's fields, including undeclared ones."""
    fields = event.model_dump()
    fields.update(fields.pop("_data", None) or {})
    return {str(name): value for name, value in fields.items()}


def response_class(workflow: Any, handler: Any) -> Any:
    """Return the class of the response that a workflow waits for."""
    known = {_name(one): one for one in _subclasses(HumanResponseEvent)}
    awaited = {
        waiter["waiting_for_event"]
        for worker in _workers(handler.ctx.to_dict(include_state=False))
        for waiter in worker["collected_waiters"]
        if waiter["resolved_event"] is None
    }
    found = [known[name] for name in awaited if name in known]
    if not found:
        found = [e for e in workflow.events if issubclass(e, HumanResponseEvent)]
    return found[0] if len(found) == 1 else HumanResponseEvent


def restore(workflow: Any, state: State) -> tuple[Any, list[tuple[str, Fields]]]:
    """Return the context to resume with, and the questions to ask again; raise `NotResumable` if it can't be read."""
    kept: Any = state
    try:
        whole = json.loads(kept["context"])
        asked = [(str(name), dict(fields)) for name, fields in kept["asked"]]
        for name, fields in _without_answers(whole):
            if (name, fields) not in asked:
                asked.append((name, fields))
        return Context.from_dict(workflow, whole, _Serializer(workflow)), asked
    except (LookupError, TypeError, ValueError, AttributeError, ContextSerdeError) as error:
        raise unreadable(error) from None


class _Serializer(JsonSerializer):
    """Restores objects of the workflow's own classes only, and imports no module for it."""

    def __init__(self, workflow: Any) -> None:
        super().__init__()
        events = [e for e in workflow.events if isinstance(e, type) and issubclass(e, Event)]
        classes = [*events, workflow.start_event_class, workflow.stop_event_class]
        self._classes = {name: one for one in classes for name in (_name(one), _name(one, "__qualname__"))}
        self._packages = {one.__module__.partition(".")[0] for one in (type(workflow), *classes)}
        self._packages |= {"llama_index", "workflows"}

    def resolve_class(self, qualified_name: str) -> type[Any]:
        module, _, name = qualified_name.rpartition(".")
        one: Any = self._classes.get(qualified_name)
        if one is None and module.partition(".")[0] in self._packages and module in sys.modules:
            one = getattr(sys.modules[module], name, None)
        if not (isinstance(one, type) and issubclass(one, BaseModel)):
            raise ValueError(f"{qualified_name} isn't a class of this workflow")  # noqa: TRY004 - as the framework
        return one

    def serialize_value(self, value: Any) -> Any:
        """Return a value as JSON, with the memory of agents, which the framework leaves out."""
        if type(value).__name__ != BUFFER:
            return super().serialize_value(value)
        messages = [message.model_dump(mode="json") for message in value.get_all()]
        return {MEMORY: messages, "token_limit": value.token_limit}

    def deserialize_value(self, data: Any) -> Any:
        if not isinstance(data, dict) or MEMORY not in data:
            return super().deserialize_value(data)
        from llama_index.core.llms import ChatMessage  # type: ignore[import-not-found]
        from llama_index.core.memory import ChatMemoryBuffer  # type: ignore[import-not-found]

        messages = [ChatMessage.model_validate(message) for message in data[MEMORY]]
        return ChatMemoryBuffer.from_defaults(messages, token_limit=data["token_limit"])


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    yield base
    for one in base.__subclasses__():
        yield from _subclasses(one)


def _name(one: type[Any], part: str = "__name__") -> str:
    return f"{one.__module__}.{getattr(one, part)}"


def _workers(whole: Any) -> Iterator[dict[str, Any]]:
    """Yield the state of each step, also in nested workflows."""
    if isinstance(whole, dict):
        if "collected_waiters" in whole:
            yield whole
        for part in whole.values():
            yield from _workers(part)


def _without_answers(whole: Any) -> list[tuple[str, Fields]]:
    """Remove the user's answers from a context; return the questions that they answered."""
    answers: list[str] = []
    for worker in _workers(whole):
        again = set()
        for waiter in worker["collected_waiters"]:
            if waiter["resolved_event"] is not None:
                answers.append(waiter["resolved_event"])
                waiter["resolved_event"] = None
                again.add(waiter["work_item_id"])  # its step was restarted with the answer
        for place in ("queue", "in_progress"):
            begun = [entry for entry in worker[place] if entry["work_item_id"] not in again]
            worker[place] = [entry for entry in begun if not _answers_in(entry, answers)]
        for events in worker["collected_events"].values():
            events[:] = [event for event in events if not _answers_in(event, answers)]
        collected = worker["static_collect_events"]
        collected[:] = [event for event in collected if not _answers_in(event, answers)]
    whole["deliveries"] = [one for one in whole.get("deliveries", ()) if not _answers_in(one, answers)]
    questions: list[tuple[str, Fields]] = []
    for answer in answers:
        value = json.loads(answer)["value"]
        fields = {**value, **(value.pop("_data", None) or {})}
        fields.pop("_data", None)
        questions.append(("", {n: v for n, v in fields.items() if n not in ANSWER}))
    return questions


def _answers_in(part: Any, answers: list[str]) -> bool:
    """Return whether a part of a context has an answer of the user in it, and add it to `answers`."""
    if isinstance(part, dict | list):
        parts = part.values() if isinstance(part, dict) else part
        return sum(_answers_in(value, answers) for value in parts) > 0  # looks at all of them
    if not isinstance(part, str) or '"qualified_name"' not in part:
        return False
    event = json.loads(part)
    name = event.get("qualified_name") if isinstance(event, dict) else None
    found = any(name in (_name(one), _name(one, "__qualname__")) for one in _subclasses(HumanResponseEvent))
    answers += [part] if found else []
    return found
