"""Runs that come from another one: its resumption, its retry, its replay, or the next turn of its conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from nbrun.agents import CONTINUE, PROGRAM, Budget, Replay, Resuming, builtin, find_adapter, python_cell
from nbrun.core import (
    Action,
    AgentNotFound,
    BadOption,
    CancelToken,
    Fix,
    NotResumable,
    RunNotFound,
    RunOptions,
    RunRecord,
    RunStatus,
    checkpoint,
    events as ev,
    recording,
    shown,
    trusted,
)
from nbrun.core.journal import LOST, Entry
from nbrun.core.options import LIMITS, POLICIES, SETUP
from nbrun.render.words import AGENT, answer_of, named_by, run_ref, title
from nbrun.sessions.run import Run
from nbrun.sessions.start import Predecessor

MAX_THREAD = 100
"""Runs of a conversation that are looked back at."""

FindRun = Callable[[int], Run]
FindAgent = Callable[[str], object]
"""Returns the agent that has this name in the notebook, or None."""

_NOTHING = ev.Usage(cost_usd=0.0)  # without it, a usage has nothing below zero, which would extend a budget
_OF_THE_OLD_RUN = frozenset({"prompt", "parent", "predecessor"})


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
    followup = _Followup(run, run.signed, agent, dict(options), find_agent)
    match kind:
        case ev.RESUME:
            return followup.resume(find_run)
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


def _has_answers(entries: Iterable[Entry]) -> bool:
    return any(entry.kind != LOST for entry in entries)


def _turns(run: Run) -> list[checkpoint.Turn]:
    record = run.whole_record
    is_same_prompt = record.origin is not None and record.origin.kind == ev.RESUME
    prompt = None if is_same_prompt else record.prompt
    return checkpoint.turns_of(prompt, run.events(), answer_of(record))


def _labels(record: RunRecord | ev.RunCreated) -> dict[str, Any]:
    name = {} if record.name == record.agent else {"name": record.name}
    return {"tags": dict(record.tags), **name}


@dataclass(slots=True)
class _Followup:
    """A run that is to come from an old one, which has ended.

    What is run, and how, comes from `signed` only, never from events: the file may have been written by someone else.
    Policies are the new run's own, whoever has started the old one.
    """

    run: Run
    signed: RunRecord | ev.RunCreated | None
    agent: object
    given: dict[str, Any]
    find_agent: FindAgent

    def resume(self, find_run: FindRun) -> Plan:
        record, words = self.run.record, self._title
        if record.status is RunStatus.COMPLETED:
            fix = Fix(Action.RETRY, run_ref(record))
            raise NotResumable(f"{words} has completed", run=words, fixes=[fix])
        self._refuse_replay()
        if self.signed is None:  # its checkpoint may make an agent do anything, so there is only its history
            self._need_agent(ev.RESUME)
            return self._plan(ev.CONTINUE, self.agent, CONTINUE, self._options(), self._history(find_run))
        usage = record.usage.without(_NOTHING)
        state = self._state()
        options = self._options()
        self._check_budget(usage, options)
        agent = self._agent(options)
        # Without a state, the agent runs again from its beginning.
        restored = self._answered(checkpoint.Restored(state, usage, 0 if state is None else record.tool_count))
        if state is not None and agent is not None and not isinstance(find_adapter(agent), Resuming):
            # It may ask the same as before, and mean it to be answered anew; what a framework sends is a whole
            # conversation, and the same only where it was cut off.
            restored = msgspec.structs.replace(restored, before=())
        return self._plan(ev.RESUME, agent, self.signed.prompt, options, restored)

    def retry(self) -> Plan:
        self._refuse_replay()
        self._need_agent(ev.RETRY)
        reuse = bool(self.given.pop(ev.REUSE, False))
        options = self._options()
        prompt = self.run.record.prompt if self.signed is None else self.signed.prompt
        restored = self._answered(checkpoint.Restored()) if reuse else None
        if restored is not None and not _has_answers(restored.journal):
            raise NotResumable(f"{self._title} has no answers that were kept; retry it without reuse", run=self._title)
        return self._plan(ev.RETRY, self._agent(options), prompt, options, restored)

    def replay(self) -> Plan:
        speed = recording.read_speed(self.given.pop("speed", 1.0))
        record = self.run.record
        played = Replay((recording.header(record), self.run.recorded_events()), speed)
        return self._plan(ev.REPLAY, played, record.prompt, {**_labels(record), **self._changes()})

    def next_turn(self, find_run: FindRun) -> Plan:
        if self.run.record.is_replay:  # what it names has never been run here
            self.signed = None
        self._need_agent(ev.CONTINUE)
        prompt = self.given.pop("prompt")
        options = self._changes()
        agent = self._agent(options)
        return self._plan(ev.CONTINUE, agent, prompt, options, self._history(find_run))

    def _answered(self, restored: checkpoint.Restored) -> checkpoint.Restored:
        """Return what a run starts from, with the answers that the old one had; none if it isn't signed."""
        number, store = self.run.number, self.run.store
        if self.signed is None or number is None:
            return restored
        known = store.journal(number)
        since = known if restored.state is None else store.journal(number, since_checkpoint=True)
        before = known[: len(known) - len(since)]
        source = f"run {run_ref(self.run.record)}"
        return msgspec.structs.replace(restored, journal=tuple(since), before=tuple(before), journal_of=source)

    def _history(self, find_run: FindRun) -> checkpoint.Restored:
        turns = tuple(turn for earlier in thread(self.run, find_run) for turn in _turns(earlier))
        return checkpoint.Restored(history=turns)

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
        usage = record.usage.without(_NOTHING) if is_resumed else ev.Usage()
        named = record if kind == ev.REPLAY else self.signed  # a replay only shows it
        model = None if named is None else named.model
        is_reusing = kind == ev.RETRY and restored is not None
        predecessor = Predecessor(origin, model, usage, restored, self._notice(kind, options), is_reusing)
        return Plan(agent, prompt, {**options, "predecessor": predecessor})

    def _notice(self, kind: str, options: dict[str, Any]) -> str | None:
        """Return what the new run's card says of the old one."""
        ref = run_ref(self.run.record)
        if kind == ev.REPLAY:
            return None
        if self.signed is None:
            what = "the prompt is" if kind == ev.RETRY else "the conversation so far is"
            return f"Your nbrun hasn't signed run {ref}: {what} taken from it, and nothing else"
        if kind == ev.CONTINUE:
            return None
        left_out = {name: self.signed.options[name] for name in POLICIES if name in self.signed.options}
        words = [f"{name}={value}" for name, value in left_out.items() if name not in SETUP and name not in options]
        return f"Not taken over from run {ref}: {', '.join(words)}" if words else None

    @property
    def _title(self) -> str:
        return title(self.run.record)

    # --- whether it can be resumed ---------------------------------------------------------------

    def _refuse_replay(self) -> None:
        if self.run.record.is_replay:
            raise NotResumable(f"{self._title} is a replay; resume or retry the run that it shows")

    def _state(self) -> bytes | None:
        """Return the packed state to resume from, None if there are only answers, which it is run again with.

        Raises `NotResumable` if there is neither, or another run has done that or is doing it.
        """
        words, number, store = self._title, self.run.number, self.run.store
        resumed = [store.run(other) for other, kind in self.run.followups if kind == ev.RESUME]
        for other in resumed:
            if other is not None and other.record.is_live:
                raise NotResumable(f"{words} is already being resumed as #{other.number}")
        done = [o for o in resumed if o is not None and o.record.status is RunStatus.COMPLETED]
        # Asked first: its checkpoint is deleted only a moment after the end of the other is seen.
        blob = None if number is None or done else store.checkpoint(number)
        if blob is None and number is not None and not done:
            groups = self.run.record.call_groups
            has_paid = any(group.usage.requests for group in groups)  # else nothing would be paid twice
            if _has_answers(store.journal(number)) or (groups and not has_paid):
                return None
        if blob is None:
            why = "has no checkpoint" if self.run.record.checkpoint is None else "has no checkpoint that is signed"
            why = f"was resumed as #{done[-1].number}, which has completed" if done else why
            fix = Fix(Action.RETRY, run_ref(self.run.record))
            raise NotResumable(f"{words} {why}", run=words, fixes=[fix])
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
        record = self.run.record if self.signed is None else self.signed
        kept = {} if self.signed is None else trusted(self.signed.options)
        return {**kept, **_labels(record), **self._changes()}

    def _changes(self) -> dict[str, Any]:
        target = self.given.pop("target", None)
        if target is not None and self.agent is None:
            raise BadOption("target is the name of the agent that is given with it; give agent= as well")
        if fixed := sorted(_OF_THE_OLD_RUN.intersection(self.given)):
            raise BadOption(f"{fixed[0]} can't be changed here; start a new run instead")
        return self.given if target is None else {**self.given, "target": target}

    # --- its agent -------------------------------------------------------------------------------

    def _need_agent(self, kind: str) -> None:
        """Raise unless the old run is this user's own, or the user has named the agent."""
        if self.signed is not None or self.agent is not None or self.given.get("model") is not None:
            return
        record, words = self.run.record, self._title
        why = "is a replay" if record.is_replay else "isn't signed by your nbrun"
        fixes = [Fix(Action.TRUST, run_ref(record))] if not record.is_replay else []
        if kind != ev.CONTINUE:
            purpose = "run its prompt with an agent that you name" if kind == ev.RETRY else "continue from its history"
            fixes.insert(0, Fix(Action(kind), run_ref(record), purpose=purpose, agent=AGENT))
        raise NotResumable(
            f"{words} {why}, so what it names isn't run ({named_by(record)}); name the agent: agent= or model=",
            run=words,
            fixes=fixes,
        )

    def _agent(self, options: dict[str, Any]) -> object:
        """Return the agent: the one that was given, that of this session, or the one of the same name.

        None for the built-in agent, whose model and tools are then among the options.
        """
        signed, live = self.signed, self.run.live
        if self.agent is not None or signed is None:
            return self.agent
        kept = None if live is None else live.agent
        is_changed = any(options.get(name) is not None for name in ("model", *SETUP))
        if isinstance(kept, builtin.ModelAgent) and is_changed:
            options.update({"model": kept.model, **kept.setup.given(), **options})
            return None
        if options.get("model") is None:
            options["target"] = signed.target  # so that a later kernel finds it for this run as well
            if kept is not None:
                return kept
            if signed.model is None:
                return self._same_agent(signed)
            options["model"] = builtin.named(signed.model)
        self._refuse_unknown_setup(signed, options)
        return None

    def _same_agent(self, signed: RunRecord | ev.RunCreated) -> object:
        words = self._title
        if signed.target == python_cell.TARGET:
            raise AgentNotFound(f"the agent of {words} is its cell: run that cell again")
        name = signed.target or signed.agent
        if name.startswith(PROGRAM):
            raise AgentNotFound(
                f"the command of {words} isn't started from its record; pass agent=nbrun.agents.AcpAgent(…)"
            )
        found = self.find_agent(name)
        if found is None:
            raise AgentNotFound(f"the agent of {words} isn't defined: define {name} first, or pass agent= in Python")
        label = find_adapter(found).label(found)
        if label != signed.agent:
            raise AgentNotFound(
                f"{name} is another agent now ({label}, not {signed.agent}); pass agent= to run {words} with it"
            )
        return found

    def _refuse_unknown_setup(self, signed: RunRecord | ev.RunCreated, options: dict[str, Any]) -> None:
        """Raise if the built-in agent had tools or the like that aren't given again: it would be another one."""
        missing = {name: signed.options[name] for name in SETUP if name in signed.options and name not in options}
        if missing:
            what = "; ".join(f"{name}: {shown(value, 100)}" for name, value in missing.items())
            raise BadOption(
                f"{self._title} was started with more than is taken from a record ({what}); give that again"
            )
