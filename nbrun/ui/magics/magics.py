"""The magics `%%agentrun` and `%agentrun`: they parse, call and show."""

from __future__ import annotations

import inspect
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class

from nbrun.agents import ALLOW, DENY, by_name, registered
from nbrun.agents.python_cell import TARGET as CELL_TARGET, PythonCell, check_code
from nbrun.core import (
    AgentNotFound,
    ApprovalRequested,
    BadOption,
    CancelOutcome,
    CancelReceipt,
    NotPending,
    RunNotFinished,
    RunRecord,
    Steered,
    counted,
    duration,
    events as ev,
    moment,
    printable,
    shown,
    visible,
)
from nbrun.core.commands import CASSETTE, FILTERS, asks_for_help, close_to
from nbrun.core.options import defaults
from nbrun.render.words import opening, title, trust_words
from nbrun.sessions import LIST_LIMIT, RunSet
from nbrun.ui.kernel.requests import read_args
from nbrun.ui.kernel.waiting import cell_id, is_answerable, sent_at
from nbrun.ui.magics.manual import CELL_EXAMPLES, LINE_EXAMPLES, Example, help_text, manual
from nbrun.ui.magics.options import LINE, SET_FLAGS
from nbrun.ui.magics.parsing import interpolate, look_up, read_cell, read_line, template

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nbrun.sessions import Run, RunList
    from nbrun.ui.presenter import Presenter

ARGS_EXAMPLE = 'write --args \'{"path": "x"}\' in single quotes'
RECEIPT_S = 0.5
"""How long `%agentrun say` waits for its message to be read."""
SHOWN_RECEIPTS = 5
"""A cancel of all runs prints at most this many lines; for more runs, it prints counts."""

_OUTCOMES = {
    CancelOutcome.REQUESTED: "cancel requested",
    CancelOutcome.ALREADY_REQUESTED: "cancel already requested",
    CancelOutcome.ALREADY_FINISHED: "already ended",
    CancelOutcome.NOT_FOUND: "not found",
    CancelOutcome.FOREIGN: "belong to another kernel; cancel them there",
}

SHOWN_LINES = 200
"""How many lines are shown by default."""
_PAGE = 2_000

_UNMARKED = frozenset({"stdout", "info"})

Given = SimpleNamespace
"""What a line gives, by the names of its arguments; None for what it doesn't."""
F = TypeVar("F", bound=Callable[..., object])


def _with_manual(examples: tuple[Example, ...]) -> Callable[[F], F]:
    """Have `?` show the whole manual of a magic; its docstring is the first line."""

    def decorate(magic: F) -> F:
        magic.__doc__ = manual(magic.__doc__ or "", examples)
        return magic

    return decorate


@magics_class
class AgentMagics(Magics):
    """`%%agentrun` starts a run; `%agentrun` lists, shows, waits for and cancels runs."""

    def __init__(self, presenter: Presenter) -> None:
        super().__init__(presenter.shell)
        self._presenter = presenter
        self._answered: dict[str, float] = {}  # when the last question of a run was answered by a line, by its id

    @_with_manual(CELL_EXAMPLES)
    @cell_magic
    def agentrun(self, line: str, cell: str) -> None:
        """Start an agent run with the text of this cell as its prompt and show its card; the cell returns at once."""
        given = read_cell(line)
        if given.map is not None:
            self._map(given, cell)
            return
        agent, prompt, shell = self._agent(given), self._prompt(given, cell), self._presenter.shell
        more = {
            "cell_id": cell_id(shell),
            "answerable": is_answerable(shell, given.block),
            "target": CELL_TARGET if given.python else given.target,
            **self._options(given),
        }
        session = self._presenter.session
        if given.continues is not None:
            run = session.follow(ev.CONTINUE, given.continues, agent, prompt=prompt, **more)
        else:
            model = self._presenter.config.model or None
            run = session.start(agent, prompt, **({"model": model} if agent is None else {}) | more)
        self._present(run, given)

    def _map(self, given: Given, cell: str) -> None:
        """Start a set of runs, and show its card."""
        names = self._presenter.shell.user_ns
        inputs, text = look_up(given.map, names), cell.strip("\n").rstrip()
        own = {option.key: value for option in SET_FLAGS.values() if (value := getattr(given, option.key)) is not None}
        if given.score is not None:
            own["score"] = self._function("--score", given.score)
        if given.target is None:
            own["model"] = given.model or self._presenter.config.model or None
        prompt = template(text, names) if text.strip() else None
        options = {**self._options(given), **own, "target": given.target}
        found = self._presenter.session.map(self._agent(given), inputs, template=prompt, **options)
        self._assign(found, given)
        self._presenter.present_set(found, given.block, may_fail=given.max_failures is not None)

    @_with_manual(LINE_EXAMPLES)
    @line_magic("agentrun")  # type: ignore[arg-type]  # IPython's untyped decorator seems to take nothing
    def agentrun_line(self, line: str) -> object:
        """List, show, wait for and cancel the runs of this notebook."""
        self._refuse_agent(line)
        if not line.strip() and self._presenter.has_page:
            self._presenter.show_panel()
            return None
        command, words = read_line(line)
        if asks_for_help(words):
            print(command.manual())
            return None
        return getattr(self, f"_{command.verb}")(command.parse(words))

    # --- the subcommands -------------------------------------------------------------------------

    def _list(self, given: Given) -> RunList:
        session = self._presenter.session
        limit = given.limit or LIST_LIMIT
        older = None if given.before is None else session.get_run(given.before)
        filters = {each.key: getattr(given, each.key) for each in FILTERS}
        return session.runs(**filters, limit=limit, before=older)

    def _show(self, given: Given) -> None:
        if given.refs and all(isinstance(self._presenter.session.get(ref), RunSet) for ref in given.refs):
            for ref in given.refs:
                self._presenter.show_set(self._presenter.session.get(ref))
            return
        runs = self._runs(given, ["last"])
        if given.thread:
            from nbrun.sessions.followups import conversation  # with the first that asks for it

            runs = [each for run in runs for each in conversation(run, self._presenter.session.get_run)]
        for run in runs:
            self._presenter.show(run)

    def _compare(self, given: Given) -> object:
        return self._presenter.session.compare(given.first, given.second)

    def _result(self, given: Given) -> object:
        run = self._run(given)
        if not run.done():
            raise RunNotFinished(f"{run!r} has not finished. Wait for it with %agentrun wait")
        self._presenter.raise_end(run)  # unless it completed
        return run.result_view()

    def _wait(self, given: Given) -> None:
        session = self._presenter.session
        named = [session.get(ref) for ref in given.refs or ()]
        self._presenter.wait(named or session.in_progress()[::-1], given.timeout)

    def _cancel(self, given: Given) -> None:
        session = self._presenter.session
        if given.all:
            receipts = session.cancel_all(given.reason, by="magic")
        elif given.refs:
            found = [session.get(ref) for ref in given.refs]  # all are looked up before any is stopped
            receipts = [session.cancel(each, given.reason, by="magic") for each in found]
        else:
            receipts = [session.cancel_current(given.reason, by="magic")]
        print("\n".join(_receipt_lines(receipts, is_long=bool(given.all))))

    def _trust(self, given: Given) -> None:
        """Show what runs name that may be anybody's, and sign them if the user says so."""
        if not (given.refs or given.all):
            raise BadOption("Name the runs to trust, or add --all: %agentrun trust #3 #4")
        store = self._presenter.session.store
        numbers = [run.number for run in self._runs(given) if run.number is not None and run.live is None]
        found = store.unsigned(None if given.all else numbers)
        if not found:
            print("Your nbrun has signed them: nothing to do.")
            return
        text, question = trust_words([(one.number, one.created, one.checkpoint is not None) for one in found])
        print(text)
        if self._presenter.confirms(question):
            store.trust(found)
            print(f"Trusted: {counted(len(found), 'run')}.")
        else:
            print("Nothing was changed.")

    def _lost(self, given: Given) -> None:
        for run in self._runs(given):
            run.mark_lost()
            print(repr(run))

    def _rm(self, given: Given) -> None:
        if not (given.refs or given.all_ended):
            raise BadOption("Name the runs to remove, or add --all-ended: %agentrun rm #3 #4")
        session = self._presenter.session
        gone = session.remove_ended() if given.all_ended else session.remove(*given.refs)
        what = ", ".join(f"#{number}" for number in sorted(gone)[:20])
        more = "" if len(gone) <= 20 else " …"
        print(f"Removed {len(gone)} run{'' if len(gone) == 1 else 's'}: {what}{more}" if gone
              else "No run has ended: nothing to remove.")  # fmt: skip

    def _export(self, given: Given) -> None:
        from nbrun.render.export import read_form

        run = self._run(given)
        path = None if given.out is None else Path(given.out)
        form = CASSETTE if given.form == CASSETTE else read_form(given.form, path)
        if path is None:
            path = Path(f"run-{run.number or 'unsaved'}.{f'{form}.jsonl' if form == CASSETTE else form}")
            if path.exists() or path.is_symlink():  # a link that leads nowhere would be followed
                raise BadOption(f"{path} already exists; choose another file with --out")
        try:
            print(f"{run!r}: saved to {run.export(path, form)}")
        except OSError as error:
            raise BadOption(f"{path} can't be written ({error.strerror}); choose another file with --out") from None

    def _doctor(self, _given: Given) -> None:
        from nbrun.ui import doctor

        doctor.show(self._presenter)

    def _retry(self, given: Given) -> None:
        self._follow("retry", given)

    def _resume(self, given: Given) -> None:
        self._follow("resume", given)

    def _replay(self, given: Given) -> None:
        self._follow("replay", given)

    def _follow(self, kind: str, given: Given) -> None:
        """Start a run that comes from another one, and show its card."""
        found = self._presenter.session.get(given.ref or "last")
        if isinstance(found, RunSet):
            self._run_again(kind, found, given)
            return
        if getattr(given, "error", None) is not None:
            raise BadOption("--error is for a set of runs, such as set-12")
        options = self._options(given)
        if getattr(given, "reuse", None):
            options["reuse"] = True
        agent = None
        if getattr(given, "target", None) is not None:
            agent, options["target"] = self._named_agent(given.target), given.target
        answerable = is_answerable(self._presenter.shell, given.block)
        run = self._presenter.session.follow(kind, given.ref or "last", agent, answerable=answerable, **options)
        self._present(run, given)

    def _run_again(self, kind: str, found: RunSet, given: Given) -> None:
        """Retry or resume a set, and show its card."""
        options = self._options(given)
        agent = None if given.target is None else self._named_agent(given.target)
        if getattr(given, "reuse", None):
            raise BadOption("--reuse is for a single run")
        if kind == "resume":
            found.resume(agent, **options)
        else:
            found.retry(agent, error=given.error, **options)
        self._assign(found, given)
        self._presenter.present_set(found, given.block)

    def _approve(self, given: Given) -> None:
        run = self._asking("approve", given)
        self._refuse_repeated(run, given)
        edited = None if given.args is None else read_args(given.args, ARGS_EXAMPLE)
        decision, always = given.choose or ALLOW, bool(given.always)
        self._answer(run, given.call, decision, args=edited, text=given.text, always=always)

    def _deny(self, given: Given) -> None:
        run = self._asking("deny", given)
        self._refuse_repeated(run, given)
        self._answer(run, given.call, DENY, text=given.reason)

    def _refuse_repeated(self, run: Run, given: Given) -> None:
        """Raise if the line was sent before the last question was answered, and another one would be answered now.

        A key was held, or pressed twice: nobody has seen that question yet.
        """
        sent = sent_at(self._presenter.shell)
        answered = self._answered.values() if given.ref is None else [self._answered.get(run.id, 0.0)]
        if given.call is None and sent is not None and sent < max(answered, default=0.0) and run.pending:
            asked = shown(run.pending[0].message, 80)
            raise NotPending(f"{opening(run.record)} has another question since you ran this: “{asked}”. Run it again")

    def _answer(self, run: Run, call: str | None, decision: str, **more: Any) -> None:
        asked = run.answer(call, decision, **more, by="magic")
        self._answered[run.id] = self._presenter.session.clock.now()
        words = {ALLOW: "allowed", DENY: "denied"}.get(decision, f"chose {decision} for")
        always = f"; {shown(asked.tool, 80)} from now on, too" if more.get("always") else ""
        print(printable(f"{opening(run.record)}: {words} {_asked_words(asked, run.record)}{always}"))

    def _asking(self, verb: str, given: Given) -> Run:
        """Return the run that is answered: by default the only one that is waiting for an answer."""
        if given.ref is not None:
            return self._run(given)
        asking = [run for run in self._presenter.session.live_runs if run.pending]
        if not asking:
            raise NotPending("No run is waiting for an answer.")
        if len(asking) > 1:
            runs = ", ".join(f"#{run.number} ({run.name})" for run in asking)
            raise NotPending(
                f"{len(asking)} runs are waiting for an answer: {runs}. Name one: %agentrun {verb} #{asking[0].number}"
            )
        return asking[0]

    def _say(self, given: Given) -> None:
        run = self._run(given)
        steer_id = run.steer(given.text, by="magic")
        print(f"Message sent to {title(run.record)}; {_receipt(run, steer_id)}.")

    def _logs(self, given: Given) -> None:
        print(log_text(self._run(given), given.n or SHOWN_LINES))

    def _agents(self, _given: Given) -> None:
        from nbrun.ui.magics.agent_list import agents_text

        shell = self._presenter.shell
        print(agents_text(shell.user_ns, shell.user_ns_hidden, self._presenter.config.model))

    def _help(self, given: Given) -> None:
        print(help_text() if given.subcommand is None else read_line(given.subcommand)[0].manual())

    # --- reading ---------------------------------------------------------------------------------

    def _run(self, given: Given) -> Run:
        return self._presenter.session.get_run("last" if given.ref is None else given.ref)

    def _runs(self, given: Given, without: Iterable[Run | str] = ()) -> list[Run]:
        """Return the runs that the line names, or else the given ones."""
        return [self._presenter.session.get_run(ref) for ref in given.refs or without]

    def _assign(self, found: Run | RunSet, given: Given) -> None:
        if given.out is not None:
            self._presenter.shell.user_ns[given.out] = found

    def _present(self, run: Run, given: Given) -> None:
        self._assign(run, given)
        self._presenter.present(run, given.block)

    def _options(self, given: Given) -> dict[str, Any]:
        """Return the options of a run that the line gives, with the notebook's objects in place of their names."""
        values = {name: getattr(given, name, None) for name in defaults()}
        found = {name: value for name, value in values.items() if value is not None}
        if tools := found.get("tools"):
            found["tools"] = [function for name in tools for function in self._tools(name)]
        names: dict[str, Any] = self._presenter.shell.user_ns
        if isinstance(names.get(found.get("system", "")), str):
            found["system"] = names[found["system"]]
        if (kind := found.get("output_type")) is not None:
            if not isinstance(names.get(kind), type):
                raise _undefined("--output", kind, "class")
            found["output_type"] = names[kind]
        if (name := found.get("settings")) is not None:
            if not (isinstance(names.get(name), Mapping) or callable(names.get(name))):
                raise _undefined("--settings", name, "dict")
            found["settings"] = names[name]
        return found

    def _agent(self, given: Given) -> object:
        """Return the object that the line names, or None for the built-in agent."""
        if given.python:
            return PythonCell(self._presenter.shell.user_ns)
        return None if given.target is None else self._named_agent(given.target)

    def _named_agent(self, name: str) -> object:
        names: dict[str, Any] = self._presenter.shell.user_ns
        found = names[name] if name in names else by_name(name)
        if found is None and "." in name:
            found = self._presenter.find_agent(name)
        if isinstance(found, str) and by_name(found) is None:
            raise AgentNotFound(
                f"{name} is a str, not an agent. Name an agent or a --model on the line, "
                f"and write {{{name}}} in the prompt below it"
            )
        if found is not None:
            return found
        near = close_to(name, self._known_agents(), 1)
        hint = f"did you mean {near[0]}?" if near else "define it in a cell above, or use --model"
        raise AgentNotFound(f"No agent '{name}' found in this notebook; {hint}")

    def _function(self, flag: str, name: str) -> Callable[..., object]:
        found = self._presenter.shell.user_ns.get(name)
        if not callable(found):
            raise _undefined(flag, name, "function")
        function: Callable[..., object] = found
        return function

    def _tools(self, name: str) -> Sequence[Callable[..., object]]:
        names: dict[str, Any] = {**registered(), **self._presenter.shell.user_ns}
        if name not in names:
            toolset = self._presenter.toolset(name)
            if toolset is None:
                raise _undefined("--tools", name, "function")
            return toolset
        if not callable(names[name]):
            raise BadOption(f"--tools {name}: not a function but {type(names[name]).__name__}")
        return (names[name],)

    def _known_agents(self) -> dict[str, object]:
        """Return the agents by name: the registered ones, and those of the notebook."""
        from nbrun.ui.magics.agent_list import agents_in

        shell = self._presenter.shell
        return {**registered(), **agents_in(shell.user_ns, shell.user_ns_hidden)}

    def _refuse_agent(self, line: str) -> None:
        """Raise `BadOption` for a `%agentrun` line that names an agent in place of a subcommand."""
        word = (line.split() or [""])[0]
        if not word or LINE.find(word) or word not in (agents := self._known_agents()):
            return
        what = "a function" if inspect.isroutine(agents[word]) else "an agent"
        raise BadOption(f"{word} is {what}: write %%agentrun {word}, and the prompt below it")

    def _prompt(self, given: Given, cell: str) -> str:
        text = cell.strip("\n").rstrip()
        if not text.strip():
            what = "code" if given.python else "prompt"
            raise BadOption(f"The cell has no {what}: write it below the %%agentrun line")
        if given.python:
            check_code(text)
            return text
        if given.interpolate is False:
            return text
        return interpolate(text, self._presenter.shell.user_ns)


def _asked_words(asked: ApprovalRequested, record: RunRecord) -> str:
    """Return what was asked: the tool that it is about, if known, else the question."""
    name = next((tool.name for tool in record.tools if tool.id == asked.tool_id), None)
    return f"“{shown(asked.message, 80)}”" if name is None else f"`{shown(name, 80)}`"


def _receipt_lines(receipts: list[CancelReceipt], *, is_long: bool) -> list[str]:
    """Return a line for each receipt; for many runs that nobody named, one for each outcome."""
    if not receipts:
        return ["No runs in progress."]
    if not is_long or len(receipts) <= SHOWN_RECEIPTS:
        return [str(receipt) for receipt in receipts]
    outcomes = Counter(receipt.outcome for receipt in receipts)
    return [f"{count:,} runs: {_OUTCOMES[outcome]}" for outcome, count in outcomes.items()]


def _receipt(run: Run, steer_id: str) -> str:
    """Return whether the agent has read a message, after giving it a moment to do so."""

    def sent(record: RunRecord) -> Steered | None:
        return next((one for one in record.steered if one.id == steer_id), None)

    def is_settled(record: RunRecord) -> bool:
        message = sent(record)
        return not record.is_live or (message is not None and message.taken_at is not None)

    if run.live is not None:
        run.live.wait_until(is_settled, RECEIPT_S)
    record = run.record
    message = sent(record) or Steered(0, "")
    if message.taken_at is not None:
        return f"the agent read it after {duration(max(0.0, message.taken_at - message.at))}"
    if not record.is_live:
        return "the run ended before the agent read it"
    hint = "" if record.is_steerable else "; it has not looked for messages so far"
    return f"the agent has not read it yet{hint}"


def _undefined(flag: str, name: str, what: str) -> BadOption:
    return BadOption(f"{flag} {name}: no {what} of this name in this notebook; define it above")


def log_text(run: Run, count: int) -> str:
    """Return the last lines of a run's log, the newest last, below the number of those left out."""
    lines: deque[str] = deque(maxlen=count)
    total, after = 0, -1
    until = run.glance.event_count  # a live run may log faster than this reads
    while after < until - 1 and (page := run.events(after, _PAGE)):
        after = page[-1].seq
        for event in page:
            if isinstance(event.data, ev.Log):
                found = _lines(event.ts, event.data)
                lines.extend(found)
                total += len(found)
    if not total:
        return f"{opening(run.record)} has logged nothing."
    left_out = total - len(lines)
    head = [f"… {left_out:,} earlier lines; -n {total} shows all"] if left_out else []
    return "\n".join([*head, *lines])


def _lines(at: float, log: ev.Log) -> list[str]:
    time = moment(at, "%H:%M:%S")
    mark = "" if log.level in _UNMARKED else f"{visible(log.level)}: "
    return [f"{time}  {mark}{visible(line)}" for line in log.text.splitlines() or [""]]
