"""What follows a run: its resumption, its retry or its replay, each a new run that comes from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from nbrun.agents import PROGRAM, Budget, Replay, builtin, find_adapter, python_cell as cell
from nbrun.core import checkpoint, events as ev, recording
from nbrun.core.cancellation import CancelToken
from nbrun.core.checkpoint import Turn, turns_of
from nbrun.core.errors import Action, AgentNotFound, BadOption, Fix, NotResumable, RunNotFound
from nbrun.core.options import LIMITS, SETUP, RunOptions, trusted
from nbrun.core.record import RunRecord, RunStatus
from nbrun.core.values import shown
from nbrun.render.words import answer_of, run_ref, title
from nbrun.sessions.run import Run
from nbrun.sessions.start import Predecessor

MAX_THREAD = 100
"""Runs of a conversation that are looked back at."""

FindRun = Callable[[int], Run]
FindAgent = Callable[[str], object]
"""Returns the agent that has this name in the notebook, None where there is none."""

_SIMPLE = (int, float, bool, str)
_NOT_AGAIN = frozenset({"prompt", "parent", "predecessor", "target"})


class Plan(msgspec.Struct, frozen=True):
    """A start that goes on from an old run."""

    agent: object
    prompt: str
    options: dict[str, Any]


def resumption(
    run: Run, get: FindRun, agent: object, find: FindAgent, options: Mapping[str, Any]
) -> Plan:
    """Return how to go on from a run's checkpoint.

    Raises
    ------
    NotResumable
        It is live or completed, has no checkpoint, or nothing left of its budget.
    AgentNotFound, BadOption
        Its agent, or a tool, is not here; an option is none.
    """
    _check_ended(run)
    record = run.record
    words = title(record)
    if run.status is RunStatus.COMPLETED:
        fix = Fix(Action.RETRY, run_ref(record))
        raise NotResumable(f"{words} has completed", run=words, fixes=[fix])
    _check_no_replay(record)
    state = _state(run, record)
    usage = record.usage
    whole = _options(record, options)
    restored = checkpoint.Restored(state, usage, record.tool_count)
    _check_budget(words, usage, whole)
    origin = _origin(ev.RESUME, record, record.tool_count)
    found = _found(run, record, agent, find, whole)
    whole["predecessor"] = Predecessor(origin, record.model, usage, restored)
    return Plan(found, record.prompt, whole)


def repetition(
    run: Run, get: FindRun, agent: object, find: FindAgent, options: Mapping[str, Any]
) -> Plan:
    """Return how to run the same inputs again.

    Raises
    ------
    NotResumable
        It is live.
    AgentNotFound, BadOption
        Its agent, or a tool, is not here; an option is none.
    """
    _check_ended(run)
    record = run.record
    _check_no_replay(record)
    whole = _options(record, options)
    found = _found(run, record, agent, find, whole)
    whole["predecessor"] = Predecessor(_origin(ev.RETRY, record), record.model)
    return Plan(found, record.prompt, whole)


def replay(
    run: Run, get: FindRun, _agent: object, _find: FindAgent, options: Mapping[str, Any]
) -> Plan:
    """Return how to show a run once more.

    Raises
    ------
    NotResumable
        It is live.
    BadOption
        An option is none.
    """
    given = dict(options)
    speed = recording.read_speed(given.pop("speed", 1.0))
    _check_ended(run)
    record = run.record
    played = Replay((recording.header(record), run.recorded_events()), speed)
    named: dict[str, Any] = {} if record.name == record.agent else {"name": record.name}
    whole = {"tags": dict(record.tags), **named, **_given(given)}
    whole["predecessor"] = Predecessor(_origin(ev.REPLAY, record), record.model)
    return Plan(played, record.prompt, whole)


def continuation(
    run: Run, get: FindRun, agent: object, find: FindAgent, options: Mapping[str, Any]
) -> Plan:
    """Return how to go on talking from where a run has ended, with another prompt.

    Raises
    ------
    NotResumable
        It is live.
    AgentNotFound, BadOption
        Its agent, or a tool, is not here; an option is none.
    """
    _check_ended(run)
    given = dict(options)
    prompt, target = given.pop("prompt"), given.pop("target", None)
    record = run.record
    whole = {**_setup(record), **_given(given)}
    found = _found(run, record, agent, find, whole)
    if agent is not None:
        whole["target"] = target
    turns = [turn for earlier in thread(run, get) for turn in _turns(earlier)]
    restored = checkpoint.Restored(history=tuple(turns))
    whole["predecessor"] = Predecessor(
        _origin(ev.CONTINUE, record), record.model, restored=restored
    )
    return Plan(found, prompt, whole)


def thread(run: Run, get: FindRun) -> list[Run]:
    """Return the runs of a conversation up to this one, oldest first; those that are not kept any more are left out."""
    runs = [run]
    while len(runs) < MAX_THREAD:
        origin = runs[-1].record.origin
        if origin is None or origin.kind not in (ev.CONTINUE, ev.RESUME) or origin.number is None:
            break
        try:
            runs.append(get(origin.number))
        except RunNotFound:
            break
    return runs[::-1]


def conversation(run: Run, get: FindRun) -> list[Run]:
    """Return the runs of a conversation: up to this one, and from there on along the newest answers."""
    runs = thread(run, get)
    while len(runs) < 2 * MAX_THREAD:
        after = [number for number, kind in runs[-1].followups if kind in (ev.CONTINUE, ev.RESUME)]
        if not after:
            break
        runs.append(get(after[-1]))
    return runs


def _turns(run: Run) -> list[Turn]:
    record = run.record
    is_same_prompt = record.origin is not None and record.origin.kind == ev.RESUME
    return turns_of(None if is_same_prompt else record.prompt, run.events(), answer_of(record))


PLANS = {ev.RESUME: resumption, ev.RETRY: repetition, ev.REPLAY: replay, ev.CONTINUE: continuation}


# --- whether it can be -------------------------------------------------------------------------------


def _check_ended(run: Run) -> None:
    if run.done():
        return
    if run.is_unknown:
        words = title(run.glance)
        raise NotResumable(
            f"The status of {words} can't be seen from here ({run.glance.unseen})",
            run=words,
            fixes=[Fix(Action.LOST, run_ref(run.glance))],
        )
    where = "" if run.live is not None else " in another kernel"
    raise NotResumable(f"{title(run.glance)} is live{where}; wait for it, or cancel it first")


def _check_no_replay(record: RunRecord) -> None:
    if record.origin is not None and record.origin.kind == ev.REPLAY:
        raise NotResumable(f"{title(record)} is a replay; go on from the run that it shows")


def _state(run: Run, record: RunRecord) -> bytes:
    """Return the packed state that the run can be gone on from, if nobody does that already."""
    words, number, store = title(record), record.number, run.store
    followups = [] if number is None else store.followups(number)
    resumed = [store.run(other) for other, kind in followups if kind == ev.RESUME]
    for other in resumed:
        if other is not None and other.record.is_live:
            raise NotResumable(f"{words} is being gone on with as #{other.number}")
    done = [o for o in resumed if o is not None and o.record.status is RunStatus.COMPLETED]
    # Asked first: its checkpoint is deleted only a moment after the end of the other is seen.
    blob = None if number is None or done else store.checkpoint(number)
    if blob is None:
        why = f"was resumed as #{done[-1].number}, which has completed" if done else ""
        raise NotResumable(
            f"{words} {why or 'has no checkpoint'}",
            run=words,
            fixes=[Fix(Action.RETRY, run_ref(record))],
        )
    try:
        checkpoint.unpack(blob)
    except NotResumable as error:
        raise NotResumable(f"{words}: {error}") from None
    return blob


def _check_budget(words: str, usage: ev.Usage, options: Mapping[str, Any]) -> None:
    """Raise for a run with nothing left: what was used up before counts, so it would end at once."""
    given: dict[str, Any] = {name: options.get(name) for name in LIMITS}
    limits = RunOptions(**given)
    if not limits.has_limits:
        return
    excess = Budget(limits, CancelToken(), before=usage).excess
    if excess is None:
        return
    option = next(name for name in LIMITS if excess.startswith(name))
    raise NotResumable(f"{words} has used up its budget ({excess}); give it a larger {option}")


# --- with what it would be ---------------------------------------------------------------------------


def _origin(kind: str, record: RunRecord, tools: int = 0) -> ev.Origin:
    return ev.Origin(kind, record.run_id, record.number, record.name, tools)


def _options(record: RunRecord, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the old run with those that were given now; an id is not repeated."""
    named: dict[str, Any] = {} if record.name == record.agent else {"name": record.name}
    return {
        **trusted(record.options),
        "tags": dict(record.tags),
        **named,
        **_setup(record),
        **_given(given),
    }


def _setup(record: RunRecord) -> dict[str, Any]:
    """Return what the built-in agent was given: functions and types by their names."""
    kept = record.options
    setup: dict[str, Any] = {}
    if isinstance(tools := kept.get("tools"), list):
        setup["tools"] = [str(name) for name in tools]
    for option in ("system", "output_type", "settings"):
        if isinstance(text := kept.get(option), str):
            setup[option] = text
    if isinstance(settings := kept.get("settings"), dict):
        # Numbers and the like: what else may stand there could be sent anywhere.
        simple = {name: value for name, value in settings.items() if type(value) in _SIMPLE}
        setup["settings"] = simple
    return setup


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    if strange := sorted(_NOT_AGAIN.intersection(options)):
        raise BadOption(f"{strange[0]} is that of the old run; start a new one to change it")
    return dict(options)


def _found(
    run: Run, record: RunRecord, agent: object, find: FindAgent, options: dict[str, Any]
) -> object:
    """Return the agent: the one that was given, that of this session, or the one of the same name.

    None for the built-in agent, whose model and tools are then among the options.
    """
    if agent is not None or options.get("model") is not None:
        if agent is not None:
            _drop_setup(options)
        else:
            _find_setup(record, find, options)
        return agent
    options["target"] = record.target  # so that a later kernel finds it for the follow-up as well
    live = run.live
    if live is not None and live.agent is not None:
        _drop_setup(options)  # it has that
        return live.agent
    if record.model is not None:
        options["model"] = builtin.named(record.model)
        _find_setup(record, find, options)
        return None
    return _same_agent(record, find)


def _same_agent(record: RunRecord, find: FindAgent) -> object:
    words = title(record)
    if record.target == cell.TARGET:
        raise AgentNotFound(f"the agent of {words} is its cell: run that cell again")
    name = record.target or record.agent
    if name.startswith(PROGRAM):  # not taken from the store: somebody else may have written it
        raise AgentNotFound(
            f"the command of {words} is not started from its record; pass agent=nbrun.agents.AcpAgent(…)"
        )
    found = find(name)
    if found is None:
        raise AgentNotFound(
            f"the agent of {words} is not here: define {name} first, or pass agent= in Python"
        )
    label = find_adapter(found).label(found)
    if label != record.agent:
        raise AgentNotFound(
            f"{name} is another agent now ({label}, not {record.agent}); pass agent= to run {words} with it"
        )
    return found


def _drop_setup(options: dict[str, Any]) -> None:
    for option in SETUP:
        options.pop(option, None)


def _find_setup(record: RunRecord, find: FindAgent, options: dict[str, Any]) -> None:
    """Put functions and types in the place of their names."""
    servers = record.options.get("mcp")
    # Not taken from the store, which somebody else may have written: a command would be executed.
    if isinstance(servers, list) and not options.get("mcp"):
        used = shown(", ".join(str(server) for server in servers), 100)
        raise BadOption(f"{title(record)} used MCP servers ({used}); give them again with --mcp")
    tools = [_by_name(record, find, tool, "tools") for tool in options.get("tools") or ()]
    if tools:
        options["tools"] = tools
    for option in ("output_type", "settings"):
        if isinstance(options.get(option), str):
            options[option] = _by_name(record, find, options[option], option)


_WHAT = {"tools": "a tool", "output_type": "the output type", "settings": "the settings"}


def _by_name(record: RunRecord, find: FindAgent, named: object, option: str) -> object:
    if not isinstance(named, str):
        return named
    found = find(named)
    if found is None:
        what = _WHAT[option]
        raise AgentNotFound(
            f"{what} of {title(record)} is not here: define {named} first, or pass {option}= in Python"
        )
    return found
