"""What a run of a LlamaIndex workflow is gone on from: its context, and what people were being asked.

Whoever wrote the store may have written it: no class is imported for it and no answer of a person is taken from it.

Imported when a run begins, for it imports the framework.
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

from nbrun.agents import NotResumable, RunContext, State, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    Fields = dict[str, Any]

MEMORY, BUFFER = "__nbrun_memory", "ChatMemoryBuffer"

REST = 20.0
"""How many times as long as a save has taken, none is made: it reads all that the workflow has done."""


class Memory:
    """Keeps a workflow's context as its run's checkpoint.

    Threads: of the loop that the workflow is on.

    Parameters
    ----------
    asked : what people are being asked, by the name of the event and its fields.
    """

    def __init__(self, run: RunContext, workflow: Any, handler: Any, asked: Any = ()) -> None:
        self._run = run
        self._handler = handler
        self._serializer = _Known(workflow)
        self._asked: list[tuple[str, Fields]] = [(name, plain(fields)) for name, fields in asked]  # type: ignore[misc]
        self._next_at = 0.0
        self._has_warned = False

    def begin_asking(self, name: str, fields: Fields) -> bool:
        """Take that a person is asked; return False where that is so already."""
        if (name, plain(fields)) in self._asked:
            return False
        self._asked.append((name, plain(fields)))  # type: ignore[arg-type]
        self.save(is_last=True)
        return True

    def end_asking(self, name: str, fields: Fields) -> None:
        """Take that there is an answer."""
        self._asked.remove((name, plain(fields)))  # type: ignore[arg-type]

    def save(self, is_last: bool = False) -> None:
        """Keep what there is, unless that was done lately."""
        clock = self._run.clock
        began = clock.monotonic()
        if self._handler.is_done() or (began < self._next_at and not is_last):
            return
        try:
            context = self._handler.ctx.to_dict(self._serializer)
            # What cannot be kept is to be told, not to be replaced by its `repr`.
            self._run.checkpoint({"context": json.dumps(context), "asked": self._asked})
        except (TypeError, ValueError) as error:
            if not self._has_warned:
                self._has_warned = True
                words = str(error).partition("\n")[0]
                self._run.log(f"it can't be resumed from this point: {words}", "warning")
        self._next_at = clock.monotonic() + REST * (clock.monotonic() - began)


def fields_of(event: Any) -> Fields:
    """Return an event's fields, those that it does not declare among them."""
    fields = event.model_dump()
    fields.update(fields.pop("_data", None) or {})
    return {str(name): value for name, value in fields.items()}


def response_class(handler: Any) -> Any:
    """Return the class of the response that a workflow waits for."""
    known = {_name(one): one for one in _responses(HumanResponseEvent)}
    awaited = {
        waiter["waiting_for_event"]
        for worker in _workers(handler.ctx.to_dict(include_state=False))
        for waiter in worker["collected_waiters"]
        if waiter["resolved_event"] is None
    }
    found = [known[name] for name in awaited if name in known]
    if not found:
        found = [e for e in handler._workflow.events if issubclass(e, HumanResponseEvent)]
    return found[0] if len(found) == 1 else HumanResponseEvent


def restore(workflow: Any, state: State) -> tuple[Any, list[tuple[str, Fields]]]:
    """Return the context to go on from, and what people are to be asked.

    Raises
    ------
    NotResumable
        Another version of LlamaIndex has kept it, or it has objects of classes that are not there.
    """
    kept: Any = state
    try:
        whole = json.loads(kept["context"])
        asked = [(str(name), dict(fields)) for name, fields in kept["asked"]]
        for name, fields in _taken_back(whole):
            if (name, fields) not in asked:
                asked.append((name, fields))
        return Context.from_dict(workflow, whole, _Known(workflow)), asked
    except (LookupError, TypeError, ValueError, AttributeError, ContextSerdeError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise NotResumable(
            f"its checkpoint cannot be read ({why}); retry starts it again"
        ) from None


class _Known(JsonSerializer):
    """Makes objects of the classes that the workflow knows, and of none that had to be imported for it."""

    def __init__(self, workflow: Any) -> None:
        super().__init__()
        events = [e for e in workflow.events if isinstance(e, type) and issubclass(e, Event)]
        classes = [*events, workflow.start_event_class, workflow.stop_event_class]
        self._classes = {
            name: one for one in classes for name in (_name(one), _name(one, "__qualname__"))
        }
        self._packages = {one.__module__.partition(".")[0] for one in (type(workflow), *classes)}
        self._packages |= {"llama_index", "workflows"}

    def resolve_class(self, qualified_name: str) -> type[Any]:
        module, _, name = qualified_name.rpartition(".")
        one: Any = self._classes.get(qualified_name)
        if one is None and module.partition(".")[0] in self._packages and module in sys.modules:
            one = getattr(sys.modules[module], name, None)
        if not (isinstance(one, type) and issubclass(one, BaseModel)):
            raise ValueError(f"{qualified_name} isn't a class of this workflow")  # noqa: TRY004 - what it raises itself
        return one

    def serialize_value(self, value: Any) -> Any:
        """Return it as JSON; the memory of LlamaIndex's agents too, which it leaves out itself."""
        if type(value).__name__ != BUFFER:
            return super().serialize_value(value)
        messages = [message.model_dump(mode="json") for message in value.get_all()]
        return {MEMORY: messages, "token_limit": value.token_limit}

    def deserialize_value(self, data: Any) -> Any:
        """Return what it was."""
        if not isinstance(data, dict) or MEMORY not in data:
            return super().deserialize_value(data)
        from llama_index.core.llms import ChatMessage  # type: ignore[import-not-found]
        from llama_index.core.memory import ChatMemoryBuffer  # type: ignore[import-not-found]

        messages = [ChatMessage.model_validate(message) for message in data[MEMORY]]
        return ChatMemoryBuffer.from_defaults(messages, token_limit=data["token_limit"])


def _responses(base: type[Any]) -> Iterator[type[Any]]:
    yield base
    for one in base.__subclasses__():
        yield from _responses(one)


def _name(one: type[Any], part: str = "__name__") -> str:
    return f"{one.__module__}.{getattr(one, part)}"


def _workers(whole: Any) -> Iterator[dict[str, Any]]:
    """Yield the state of each step, of workflows within this one as well."""
    if isinstance(whole, dict):
        if "collected_waiters" in whole:
            yield whole
        for part in whole.values():
            yield from _workers(part)


def _taken_back(whole: Any) -> list[tuple[str, Fields]]:
    """Take the answers of people out of a context; return what was answered, as it is to be asked again."""
    answers: list[str] = []
    for worker in _workers(whole):
        again = set()
        for waiter in worker["collected_waiters"]:
            if waiter["resolved_event"] is not None:
                answers.append(waiter["resolved_event"])
                waiter["resolved_event"] = None
                again.add(waiter["work_item_id"])  # the step begins anew with the answer
        for place in ("queue", "in_progress"):
            begun = [entry for entry in worker[place] if entry["work_item_id"] not in again]
            worker[place] = [entry for entry in begun if not _answers_in(entry, answers)]
        for events in worker["collected_events"].values():
            events[:] = [event for event in events if not _answers_in(event, answers)]
        collected = worker["static_collect_events"]
        collected[:] = [event for event in collected if not _answers_in(event, answers)]
    whole["deliveries"] = [
        one for one in whole.get("deliveries", ()) if not _answers_in(one, answers)
    ]
    requests: list[tuple[str, Fields]] = []
    for answer in answers:
        value = json.loads(answer)["value"]
        fields = {**value, **(value.pop("_data", None) or {})}
        fields.pop("_data", None)
        requests.append(("", {n: v for n, v in fields.items() if n not in _OURS}))
    return requests


_OURS = ("response", "approved", "args", "reason")


def _answers_in(part: Any, answers: list[str]) -> bool:
    """Return whether an answer of a person is in a part of a context, which is added to these."""
    if isinstance(part, dict | list):
        parts = part.values() if isinstance(part, dict) else part
        found = [
            _answers_in(value, answers) for value in parts
        ]  # all of them, whatever the first has
        return any(found)
    if not isinstance(part, str) or '"qualified_name"' not in part:
        return False
    event = json.loads(part)
    names = {
        name
        for one in _responses(HumanResponseEvent)
        for name in (_name(one), _name(one, "__qualname__"))
    }
    if not isinstance(event, dict) or event.get("qualified_name") not in names:
        return False
    answers.append(part)
    return True
