"""Tab completion of `%agentrun` and `%%agentrun`: words of the table of commands, agents and runs."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import AsyncIterator, Collection, Iterator
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import msgspec
from IPython.core.completer import SimpleCompletion, context_matcher

from nbrun.agents import registered
from nbrun.core import LIVE, TERMINAL, RunStatus
from nbrun.core.commands import Argument, Command, number_of
from nbrun.store import RunReference, newest_references
from nbrun.ui.magics.options import CELL, LINE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nbrun.sessions import NotebookSession, Run

_log = logging.getLogger("nbrun")

_FUNCTIONS = (FunctionType, MethodType)
SUBCOMMANDS = tuple(command.verb for command in LINE.commands)
_UNKNOWN = Command("", "")

RUN_LIMIT = 30
"""How many of the newest runs are offered."""
NAME_LIMIT = 60
"""Names longer than this are not offered: the run's number is quicker."""

_LIVE = frozenset(LIVE)
_ASKING = frozenset({RunStatus.WAITING})
_FITTING = {
    "cancel": _LIVE, "wait": _LIVE, "say": _LIVE, "approve": _ASKING, "deny": _ASKING,
    "continue": TERMINAL, "result": TERMINAL, "retry": TERMINAL, "replay": TERMINAL, "rm": TERMINAL,
    "lost": _LIVE,
    "resume": TERMINAL - {RunStatus.COMPLETED},
}  # fmt: skip
"""Subcommand → the statuses of the runs that fit; all runs fit for what is not listed."""
_FOR_SETS = ("cancel", "wait", "retry", "resume", "show")


# --- the line --------------------------------------------------------------------------------------


class Typed(msgspec.Struct, frozen=True):
    """A line of ours up to the cursor: the whole words, and the one that is being typed, as it is."""

    is_cell: bool
    words: tuple[str, ...]
    word: str


_OURS = re.compile(r"(?:[^%'\"#]*=)?\s*(%%?)agentrun\s(.*)", re.DOTALL)


def read_typed(text: str) -> Typed | None:
    """Return what was typed of a line; None if it isn't ours."""
    if (ours := _OURS.fullmatch(text)) is None:
        return None
    line, begin, quote = ours[2], 0, ""
    for index, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter.isspace():
            begin = index + 1
    try:
        words = shlex.split(line[:begin])
    except ValueError:  # a backslash at its end
        return None
    return Typed(ours[1] == "%%", tuple(words), line[begin:])


# --- what fits there -------------------------------------------------------------------------------


class Offer(msgspec.Struct, frozen=True):
    """What may be at the cursor: the piece of text that is replaced, the texts that fit, and of what kind they are."""

    fragment: str
    texts: tuple[str, ...]
    kind: str


class Completion:
    """Completes our magics in one shell. Threads: any, also a subshell's: nothing is kept between two calls."""

    def __init__(self, shell: Any, session: NotebookSession) -> None:
        self._shell = shell
        self._session = session
        # Before all others: if the line is ours, they need not even look.
        mark = context_matcher(priority=1000, identifier="nbrun")
        self._matcher: Any = mark(lambda context: self._match(context))

    def open(self) -> None:
        """Take part in the shell's completion."""
        self._shell.Completer.custom_matchers.append(self._matcher)

    def close(self) -> None:
        """Take part no longer."""
        if self._matcher in self._shell.Completer.custom_matchers:
            self._shell.Completer.custom_matchers.remove(self._matcher)

    def _match(self, context: Any) -> dict[str, Any]:
        try:
            offer = self.offer(context.text_until_cursor)
        except Exception:  # whatever it is, nobody who presses Tab wants to read about it
            _log.debug("no completion", exc_info=True)
            offer = None
        if offer is None:
            return {"completions": []}
        texts = _Only(SimpleCompletion(text, type=offer.kind) for text in offer.texts)
        found = {"completions": texts, "matched_fragment": offer.fragment}
        return {**found, "ordered": True, "suppress": True}

    def offer(self, text: str) -> Offer | None:
        """Return what fits at the end of this text; None if the line isn't ours."""
        typed = read_typed(text)
        if typed is None:
            return None
        if typed.is_cell:
            return self._of_line(CELL, typed.words, typed.word)
        if not typed.words:
            return _offer(typed.word, SUBCOMMANDS, "subcommand")
        command = LINE.find(typed.words[0])
        return self._of_line(command or _UNKNOWN, typed.words[1:], typed.word)

    def _of_line(self, command: Command, words: Sequence[str], word: str) -> Offer | None:
        line, flags = command.walk(words), command.flags()
        flag, equals, value = word.partition("=")
        if equals and flag in flags:
            return self._of_kind(flags[flag], flag.strip("-"), words, value)
        if line.pending is not None:
            return self._of_kind(line.pending, line.pending.names[-1].strip("-"), words, word)
        given = {argument.key for argument, _, _ in line.given if argument and not argument.gather}
        left = [flag for flag, argument in flags.items() if argument.key not in given]
        if word.startswith("-"):
            return _offer(word, left, "option")
        has_agent = command is CELL and not given.isdisjoint(("model", "python"))
        if line.place is None or has_agent:
            return _offer(word, [flag for flag in left if flag.startswith("--")], "option")
        return self._of_kind(line.place, command.verb, words, word)

    def _of_kind(self, argument: Argument, verb: str, words: Sequence[str], word: str) -> Offer | None:
        """Return what fits for an argument: one of its choices, or what its usage calls `REF`, `MODEL` …."""
        if argument.choices:
            return _offer(word, argument.choices, "value")
        match argument.takes or argument.names[0]:
            case "FILE" | "PATH":
                return None  # IPython knows the files
            case "REF":
                return _offer(word, self._references(verb, words, word), "run")
            case "CALL":
                return _offer(word, self._calls(words), "question")
            case "TARGET":
                return _offer(word, self._targets(), "agent")
            case "MODEL":
                from nbrun.agents.builtin import KNOWN  # with the first Tab: a load must be quick

                return _offer(word, KNOWN, "model")
            case "STATUS":
                return _offer(word, map(str, RunStatus), "status")
            case "SUBCOMMAND":
                return _offer(word, SUBCOMMANDS, "subcommand")
            case "FUNCTION":
                return _offer(word.rpartition(",")[2], ["notebook", *self._named(_FUNCTIONS)], "function")
            case "TYPE":
                return _offer(word, self._named((type,)), "class")
            case "TEXT|NAME":
                return _offer(word, self._named((str,)), "str")
            case "INPUTS":
                return _offer(word, self._named((Collection, Iterator, AsyncIterator), without=(str, bytes)), "inputs")
            case "DICT":
                return _offer(word, self._named((dict,)), "dict")
            case examples if "|" in examples and not examples.isupper():
                return _offer(word, examples.split("|"), "value")
            case _:
                return Offer(word, (), "")

    def _named(self, kinds: tuple[type, ...], without: tuple[type, ...] = ()) -> list[str]:
        """Return the names of the notebook's own values of some classes; no code of theirs runs."""
        names, hidden = dict(self._shell.user_ns), self._shell.user_ns_hidden
        own = [name for name in names if not name.startswith("_") and name not in hidden]
        types = {name: type(names[name]) for name in own}
        return sorted(name for name in own if issubclass(types[name], kinds) and not issubclass(types[name], without))

    def _targets(self) -> list[str]:
        from nbrun.ui.magics.agent_list import agents_in  # as above

        own = agents_in(self._shell.user_ns, self._shell.user_ns_hidden)
        return [*dict.fromkeys([*registered(), *sorted(own)])]

    def _references(self, verb: str, words: Sequence[str], word: str) -> list[str]:
        """Return `#3` and the like, the newest first, then names, and ids if one was begun."""
        fitting = [run for run in self._fitting(verb) if not run.is_named_in(words)]
        sign = "" if word[:1].isdigit() else "#"
        numbers = [f"{sign}{run.number}" for run in fitting if run.number]
        names = [run.name for run in fitting if number_of(run.name) is None]
        ids = [run.run_id for run in fitting] if word.startswith("run-") else []
        last = ["last"] if verb != "rm" and self._last() in [run.run_id for run in fitting] else []
        of_sets = [f"set-{number}" for number in self._session.recent_sets] if verb in _FOR_SETS else []
        return [*dict.fromkeys([*numbers, *last, *names, *of_sets, *ids])]

    def _last(self) -> str | None:
        """Return the id of the run that `last` means; one of this session goes before all others."""
        runs = [*_references(self._session.recent_runs(RUN_LIMIT)), *self._runs()]
        return next((run.run_id for run in runs if not run.is_child), None)

    def _fitting(self, verb: str) -> list[RunReference]:
        """Return the newest runs that fit a subcommand, newest first."""
        statuses = _FITTING.get(verb)
        if statuses is None:
            return self._runs()
        if verb != "lost" and statuses <= _LIVE:  # this session's, however many came after them
            found = _references(self._session.live_runs[:RUN_LIMIT])
        elif verb == "lost":
            ours = {run.id for run in self._session.live_runs}
            found = [run for run in self._runs() if run.run_id not in ours]
        else:
            found = self._runs()
        return [run for run in found if run.status in statuses]

    def _runs(self) -> list[RunReference]:
        """Return the newest runs, newest first: those in memory as they are now, others as the file has them."""
        session = self._session
        runs = _references(session.recent_runs(RUN_LIMIT))
        if session.store.path is not None:  # else all there is is in memory
            known = {run.number for run in runs}
            stored = newest_references(session.store.path, RUN_LIMIT, session.clock)
            runs += [run for run in stored if run.number not in known]
        return sorted(runs, key=lambda run: -(run.number or 2**62))[:RUN_LIMIT]

    def _calls(self, words: Sequence[str]) -> list[str]:
        """Return the questions of the live run that the line names first."""
        ref = words[0] if words else None
        ref = self._last() if ref == "last" else ref
        for run in self._session.live_runs:
            if ref is not None and (run.number == number_of(ref) or ref in (run.name, run.id)):
                return [asked.id for asked in run.pending]
        return []


def _references(runs: Iterable[Run]) -> list[RunReference]:
    return [RunReference(run.number or 0, run.id, run.name, run.status, run.parent_id is not None) for run in runs]


def _offer(word: str, texts: Iterable[str], kind: str) -> Offer:
    """Return the texts that begin with the word, quoted where necessary."""
    quote = word[:1] if word[:1] in ("'", '"') else ""
    begin = word.removeprefix(quote)
    texts = [*texts]
    fitting = [text for text in texts if text.startswith(begin)] or [
        text for text in texts if text.lower().startswith(begin.lower())
    ]
    quoted = (_quoted(text, quote) for text in fitting)
    return Offer(word, tuple(text for text in quoted if text is not None), kind)


def _quoted(text: str, quote: str) -> str | None:
    """Return a text as one word of a line; None for what nobody would type."""
    if not text.isprintable() or "\\" in text or len(text) > NAME_LIMIT:
        return None
    if not quote and not re.search(r"[\s'\"]", text):
        return text
    free = [mark for mark in (quote or "'", quote or '"') if mark not in text]
    return f"{free[0]}{text}{free[0]}" if free else None


class _Only(list[SimpleCompletion]):
    """Our completions and no others, even if there are none: IPython adds keywords and files to an empty list."""

    def __len__(self) -> int:
        return max(1, super().__len__())
