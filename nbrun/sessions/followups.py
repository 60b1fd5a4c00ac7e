"""Runs that come from another one: its resumption, its retry, its replay, or the next turn of its conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from nbrun.agents import PROGRAM, Budget, Replay, builtin, find_adapter, python_cell
from nbrun.core import (
    Action,
    AgentNotFound,
    BadOption,
    CancelToken,
    Fix,
    NotResumable,
    RunNotFound,
    RunOptions,
    RunStatus,
    checkpoint,
    events as ev,
    recording,
    shown,
    trusted,
)
from nbrun.core.options import LIMITS, SETUP
from nbrun.render.words import answer_of, run_ref, title
from nbrun.sessions.run import Run
from nbrun.sessions.start import Predecessor

MAX_THREAD = 100
"""Runs of a conversation that are looked back at."""

FindRun = Callable[[int], Run]
FindAgent = Callable[[str], object]
"""Returns the agent that has this name in the notebook, or None."""

_SIMPLE = (int, float, bool, str)
_OF_THE_OLD_RUN = frozenset({"prompt", "parent", "predecessor", "target"})
_WHAT = {"tools": "a tool", "output_type": "the output type", "settings": "the settings"}


class Plan(NamedTuple):
    """The start of a run that comes from another one."""

    agent: object
    prompt: str
    options: dict[str, Any]


def plan(kind: str, run: Run, agent: object, options: dict[str, Any], find_agent: FindAgent, find_run: FindRun) -> Plan:
    """Return what to start; raises as `NotebookSession.follow()` says."""
    if not run.done():
        record = run.glance
        words = title(record)
        if run.is_unknown:
            raise NotResumable(
                f"The status of {words} can't be seen from here ({record.unseen})",
                run=words,
                fixes=[Fix(Action.LOST, run_ref(record))],
            )
        where = "" if run.live is not None else " in another kernel"
        raise NotResumable(f"{words} is still running{where}; wait for it, or cancel it first")
    followup = _Followup(run, agent, dict(options), find_agent)
    match kind:
        case ev.RESUME:
            return followup.resume()
        case ev.RETRY:
            return followup.retry()
        case ev.REPLAY:
            return followup.replay()
        case _:
            return followup.next_turn(find_run)


def thread(run: Run, find_run: FindRun) -> list[Run]:
    """Return the runs of a conversation up to this one, oldest first, without those that are no longer stored."""
    runs = [run]
    while len(runs) < MAX_THREAD:
        origin = runs[-1].record.origin
        if origin is None or origin.kind not in (ev.CONTINUE, ev.RESUME) or origin.number is None:
            break
        try:
            runs.append(find_run(origin.number))
        except RunNotFound:
            break
    return runs[::-1]


def conversation(run: Run, find_run: FindRun) -> list[Run]:
    """Return the runs of a conversation: up to this one, and from there on along the newest answers."""
    runs = thread(run, find_run)
    while len(runs) < 2 * MAX_THREAD:
        after = [number for number, kind in runs[-1].followups if kind in (ev.CONTINUE, ev.RESUME)]
        if not after:
            break
        runs.append(find_run(after[-1]))
    return runs


def _turns(run: Run) -> list[checkpoint.Turn]:
    record = run.record
    is_same_prompt = record.origin is not None and record.origin.kind == ev.RESUME
    prompt = None if is_same_prompt else record.prompt
    return checkpoint.turns_of(prompt, run.events(), answer_of(record))


@dataclass(slots=True)
class _Followup:
    """A run that is to come from an old one, which has ended.

    Of the old run's record only what is harmless is used: its file may have been written by someone else.
    """

    run: Run
    agent: object
    given: dict[str, Any]
    find_agent: FindAgent

    def resume(self) -> Plan:
        record, words = self.run.record, self._title
        if record.status is RunStatus.COMPLETED:
            fix = Fix(Action.RETRY, run_ref(record))
            raise NotResumable(f"{words} has completed", run=words, fixes=[fix])
        self._refuse_replay()
        restored = checkpoint.Restored(self._state(), record.usage, record.tool_count)
        options = self._options()
        self._check_budget(record.usage, options)
        agent = self._agent(options)
        return self._plan(ev.RESUME, agent, record.prompt, options, restored)

    def retry(self) -> Plan:
        self._refuse_replay()
        options = self._options()
        return self._plan(ev.RETRY, self._agent(options), self.run.record.prompt, options)

    def replay(self) -> Plan:
        speed = recording.read_speed(self.given.pop("speed", 1.0))
        record = self.run.record
        played = Replay((recording.header(record), self.run.recorded_events()), speed)
        return self._plan(ev.REPLAY, played, record.prompt, {**self._labels(), **self._changes()})

    def next_turn(self, find_run: FindRun) -> Plan:
        prompt, target = self.given.pop("prompt"), self.given.pop("target", None)
        options = {**self._setup(), **self._changes()}
        agent = self._agent(options)
        if self.agent is not None:
            options["target"] = target
        turns = tuple(turn for earlier in thread(self.run, find_run) for turn in _turns(earlier))
        return self._plan(ev.CONTINUE, agent, prompt, options, checkpoint.Restored(history=turns))

    def _plan(
        self,
        kind: str,
        agent: object,
        prompt: str,
        options: dict[str, Any],
        restored: checkpoint.Restored | None = None,
    ) -> Plan:
        record, is_resumed = self.run.record, kind == ev.RESUME
        tools = record.tool_count if is_resumed else 0
        origin = ev.Origin(kind, record.run_id, record.number, record.name, tools)
        usage = record.usage if is_resumed else ev.Usage()
        predecessor = Predecessor(origin, record.model, usage, restored)
        return Plan(agent, prompt, {**options, "predecessor": predecessor})

    @property
    def _title(self) -> str:
        return title(self.run.record)

    # --- whether it can be resumed ---------------------------------------------------------------

    def _refuse_replay(self) -> None:
        if self.run.record.is_replay:
            raise NotResumable(f"{self._title} is a replay; resume or retry the run that it shows")

    def _state(self) -> bytes:
        """Return the packed state to resume from, unless another run has done that or is doing it."""
        words, number, store = self._title, self.run.number, self.run.store
        resumed = [store.run(other) for other, kind in self.run.followups if kind == ev.RESUME]
        for other in resumed:
            if other is not None and other.record.is_live:
                raise NotResumable(f"{words} is already being resumed as #{other.number}")
        done = [o for o in resumed if o is not None and o.record.status is RunStatus.COMPLETED]
        # Asked first: its checkpoint is deleted only a moment after the end of the other is seen.
        blob = None if number is None or done else store.checkpoint(number)
        if blob is None:
            why = f"was resumed as #{done[-1].number}, which has completed" if done else ""
            fix = Fix(Action.RETRY, run_ref(self.run.record))
            raise NotResumable(f"{words} {why or 'has no checkpoint'}", run=words, fixes=[fix])
        try:
            checkpoint.unpack(blob)
        except NotResumable as error:
            raise NotResumable(f"{words}: {error}") from None
        return blob

    def _check_budget(self, usage: ev.Usage, options: dict[str, Any]) -> None:
        """Raise for a run with nothing left: its usage so far counts, so it would end at once."""
        given: dict[str, Any] = {name: options.get(name) for name in LIMITS}
        limits = RunOptions(**given)
        excess = Budget(limits, CancelToken(), before=usage).excess if limits.has_limits else None
        if excess is not None:
            option = next(name for name in LIMITS if excess.startswith(name))
            raise NotResumable(f"{self._title} has used up its budget ({excess}); give it a larger {option}")

    # --- its options -----------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        """Return the options of the old run with the changes; an id is not repeated."""
        kept = trusted(self.run.record.options)
        return {**kept, **self._labels(), **self._setup(), **self._changes()}

    def _labels(self) -> dict[str, Any]:
        record = self.run.record
        name = {} if record.name == record.agent else {"name": record.name}
        return {"tags": dict(record.tags), **name}

    def _setup(self) -> dict[str, Any]:
        """Return what the built-in agent was made of: functions and types by their names."""
        kept = self.run.record.options
        setup: dict[str, Any] = {}
        if isinstance(tools := kept.get("tools"), list):
            setup["tools"] = [str(name) for name in tools]
        for option in ("system", "output_type", "settings"):
            if isinstance(text := kept.get(option), str):
                setup[option] = text
        if isinstance(settings := kept.get("settings"), dict):
            # Numbers and the like: anything else could be sent anywhere.
            simple = {name: value for name, value in settings.items() if type(value) in _SIMPLE}
            setup["settings"] = simple
        return setup

    def _changes(self) -> dict[str, Any]:
        if fixed := sorted(_OF_THE_OLD_RUN.intersection(self.given)):
            raise BadOption(f"{fixed[0]} can't be changed here; start a new run instead")
        return self.given

    # --- its agent -------------------------------------------------------------------------------

    def _agent(self, options: dict[str, Any]) -> object:
        """Return the agent: the one that was given, that of this session, or the one of the same name.

        None for the built-in agent, whose model and tools are then among the options.
        """
        record, live = self.run.record, self.run.live
        agent = self.agent
        if agent is None and options.get("model") is None:
            options["target"] = record.target  # so that a later kernel finds it for this run as well
            if live is not None and live.agent is not None:
                agent = live.agent
            elif record.model is None:
                return self._same_agent()
            else:
                options["model"] = builtin.named(record.model)
        if agent is None:
            self._find_setup(options)
        else:
            for option in SETUP:  # it has that
                options.pop(option, None)
        return agent

    def _same_agent(self) -> object:
        record, words = self.run.record, self._title
        if record.target == python_cell.TARGET:
            raise AgentNotFound(f"the agent of {words} is its cell: run that cell again")
        name = record.target or record.agent
        if name.startswith(PROGRAM):
            raise AgentNotFound(
                f"the command of {words} isn't started from its record; pass agent=nbrun.agents.AcpAgent(…)"
            )
        found = self.find_agent(name)
        if found is None:
            raise AgentNotFound(f"the agent of {words} isn't defined: define {name} first, or pass agent= in Python")
        label = find_adapter(found).label(found)
        if label != record.agent:
            raise AgentNotFound(
                f"{name} is another agent now ({label}, not {record.agent}); pass agent= to run {words} with it"
            )
        return found

    def _find_setup(self, options: dict[str, Any]) -> None:
        """Put functions and types in the place of their names."""
        servers = self.run.record.options.get("mcp")
        if isinstance(servers, list) and not options.get("mcp"):  # a command would be executed
            used = shown(", ".join(str(server) for server in servers), 100)
            raise BadOption(f"{self._title} used MCP servers ({used}); pass mcp= again")
        if tools := options.get("tools"):
            options["tools"] = [self._by_name(tool, "tools") for tool in tools]
        for option in ("output_type", "settings"):
            if isinstance(options.get(option), str):
                options[option] = self._by_name(options[option], option)

    def _by_name(self, named: object, option: str) -> object:
        found = self.find_agent(named) if isinstance(named, str) else named
        if found is None:
            raise AgentNotFound(
                f"{_WHAT[option]} of {self._title} isn't defined: define {named} first, or pass {option}= in Python"
            )
        return found
