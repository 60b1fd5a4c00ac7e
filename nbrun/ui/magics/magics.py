"""The magics `%%agentrun` and `%agentrun`: they parse, call and show."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import magic_arguments

from nbrun.agents import ALLOW, DENY, by_name, registered
from nbrun.agents.python_cell import TARGET, PythonCell, check_code
from nbrun.core.cancellation import CancelOutcome, CancelReceipt
from nbrun.core.durations import duration_s
from nbrun.core.errors import AgentNotFound, BadOption, NotPending, RunNotFinished
from nbrun.core.events import CONTINUE
from nbrun.core.record import Steered
from nbrun.core.text import printable
from nbrun.core.values import shown
from nbrun.render.words import receipt_words, title
from nbrun.sessions.session import LIST_LIMIT
from nbrun.ui.kernel.requests import read_args
from nbrun.ui.kernel.waiting import cell_id
from nbrun.ui.magics.interpolation import interpolate
from nbrun.ui.magics.manual import CELL_EXAMPLES, LINE_EXAMPLES, Example, manual
from nbrun.ui.magics.options import ALIASES, SUBCOMMANDS, help_text, run_options, usage_text
from nbrun.ui.magics.parsing import (
    Request,
    close_to,
    read_request,
    read_sequel,
    read_subcommand,
    refuse_flags,
    take_flag,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.core.events import ApprovalRequested
    from nbrun.core.record import RunRecord
    from nbrun.sessions.run import Run
    from nbrun.sessions.run_list import RunList
    from nbrun.ui.presenter import Presenter

ARGS_MEND = 'write --args \'{"path": "x"}\' in single quotes'
RECEIPT_S = 0.5
"""How long `%agentrun say` looks whether its message is read."""
SHOWN_RECEIPTS = 5
"""Lines that a cancel of all runs prints at most; more of them are counted."""

_OUTCOMES = {
    CancelOutcome.REQUESTED: "cancel requested",
    CancelOutcome.ALREADY_REQUESTED: "a cancel was requested already",
    CancelOutcome.ALREADY_FINISHED: "had ended already",
    CancelOutcome.NOT_FOUND: "not found",
    CancelOutcome.FOREIGN: "of another kernel; cancel them there",
}
LIST_FILTERS = ("status", "name", "agent", "tag", "since", "text")

F = TypeVar("F", bound=Callable[..., object])


def _with_manual(examples: tuple[Example, ...]) -> Callable[[F], F]:
    """Have `?` show the whole manual of a magic; its docstring is the first line."""

    def decorate(magic: F) -> F:
        # IPython has made it, and put its help for the docstring.
        parser = getattr(magic, "parser", None)
        magic.__doc__ = manual((parser.description if parser else magic.__doc__) or "", examples)
        return magic

    return decorate


@magics_class
class AgentMagics(Magics):
    """`%%agentrun` starts a run; `%agentrun` lists, shows, waits for and cancels runs."""

    def __init__(self, extension: Presenter) -> None:
        super().__init__(extension.shell)
        self._extension = extension

    @_with_manual(CELL_EXAMPLES)
    @magic_arguments()
    @run_options
    @cell_magic
    def agentrun(self, line: str, cell: str) -> None:
        """Start an agent run on the text of this cell and show its card; the cell returns at once."""
        session = self._extension.session
        request = read_request(self.agentrun, line)
        agent, prompt = self._agent(request), self._prompt(request, cell)
        options = {
            "name": request.name, "id": request.id, "timeout_s": request.timeout_s,
            "if_running": request.if_running, "thread": request.thread, "loop": request.loop,
            "on": request.on, "tags": request.tags,
            "cell_id": cell_id(self._extension.shell), "max_turns": request.max_turns,
            "max_tokens": request.max_tokens, "max_cost": request.max_cost, "keep_object": request.keep_object,
            "approve": request.approve, "answerable": self._extension.is_answerable(request.block),
            "target": TARGET if request.python else request.target,
            **self._resolved({"tools": request.tools or None, "system": request.system,
                              "output_type": request.output, "mcp": request.mcp or None,
                              "settings": request.settings}),
        }  # fmt: skip
        if request.continues is None:
            run = session.start(agent, prompt, model=request.model or self._model(agent), **options)
        else:
            again = {**options, **({} if request.model is None else {"model": request.model})}
            run = session.follow(CONTINUE, request.continues, agent, prompt=prompt, **again)
        if request.out is not None:
            self._extension.shell.user_ns[request.out] = run
        self._extension.present(run, request.block)

    @_with_manual(LINE_EXAMPLES)
    @line_magic("agentrun")  # type: ignore[arg-type]  # IPython's untyped decorator seems to take nothing
    def agentrun_line(self, line: str) -> object:
        """List, show, wait for and cancel the runs of this notebook."""
        self._refuse_agent(line)
        if not line.strip() and self._extension.has_page:
            self._extension.show_panel()
            return None
        verb, words = read_subcommand(line)
        if {"-h", "--help"}.intersection(words):
            print(usage_text(verb))
            return None
        return getattr(self, f"_{verb}")(words)

    # --- the subcommands -------------------------------------------------------------------------

    def _list(self, words: list[str]) -> RunList:
        given = {name: take_flag(words, f"--{name}", has_value=True) for name in LIST_FILTERS}
        limit = take_flag(words, "--limit", has_value=True)
        before = take_flag(words, "--before", has_value=True)
        refuse_flags("list", words)
        self._no_more("list", words)
        session = self._extension.session
        count = LIST_LIMIT if limit is None else whole_number(limit, "--limit")
        older = None if before is None else session.get(before)
        return session.runs(**given, limit=count, before=older)

    def _show(self, words: list[str]) -> None:
        with_thread = take_flag(words, "--thread", has_value=False)
        refuse_flags("show", words)
        session = self._extension.session
        runs = [session.get(ref) for ref in words or ["last"]]
        if with_thread:
            from nbrun.sessions.followups import conversation  # with the first that asks for it

            runs = [each for run in runs for each in conversation(run, session.get)]
        for run in runs:
            self._extension.show(run)

    def _result(self, words: list[str]) -> object:
        refuse_flags("result", words)
        run = self._extension.session.get(words[0] if words else "last")
        if not run.done():
            raise RunNotFinished(f"{run!r} has not finished; %agentrun wait waits for it")
        run.result(0)  # raises unless it completed
        return run.result_view()

    def _wait(self, words: list[str]) -> None:
        timeout = take_flag(words, "--timeout", has_value=True)
        refuse_flags("wait", words)
        session = self._extension.session
        runs = [session.get(ref) for ref in words] if words else list(reversed(session.live_runs))
        self._extension.wait(runs, None if timeout is None else duration_s(timeout))

    def _cancel(self, words: list[str]) -> None:
        reason = take_flag(words, "--reason", has_value=True)
        everything = take_flag(words, "--all", has_value=False)
        refuse_flags("cancel", words)
        if everything and words:
            raise BadOption("give runs or --all, not both")
        session = self._extension.session
        if everything:
            receipts = session.cancel_all(reason, by="magic")
        elif words:
            runs = [session.get(ref) for ref in words]  # all are looked up before any is stopped
            receipts = [session.cancel(run, reason, by="magic") for run in runs]
        else:
            receipts = [session.cancel_current(reason, by="magic")]
        print("\n".join(_receipt_lines(receipts, is_long=everything is not None)))

    def _lost(self, words: list[str]) -> None:
        refuse_flags("lost", words)
        if not words:
            raise BadOption("%agentrun lost wants runs: %agentrun list shows which are unknown")
        for run in [self._extension.session.get(ref) for ref in words]:
            run.mark_lost()
            print(repr(run))

    def _rm(self, words: list[str]) -> None:
        everything = take_flag(words, "--all-ended", has_value=False)
        refuse_flags("rm", words)
        if bool(everything) == bool(words):
            raise BadOption("name the runs to remove, or give --all-ended: %agentrun rm #3 #4")
        session = self._extension.session
        gone = session.remove_ended() if everything else session.remove(*words)
        what = ", ".join(f"#{number}" for number in sorted(gone)[:20])
        more = "" if len(gone) <= 20 else " …"
        print(f"removed {len(gone)} run{'' if len(gone) == 1 else 's'}: {what}{more}" if gone
              else "no run has ended: nothing to remove")  # fmt: skip

    def _export(self, words: list[str]) -> None:
        from nbrun.render.export import read_form

        out, form = (take_flag(words, flag, has_value=True) for flag in ("--out", "--form"))
        refuse_flags("export", words)
        self._no_more("export", words[1:])
        run = self._extension.session.get(words[0] if words else "last")
        path = None if out is None else Path(out)
        form = read_form(form, path)
        if path is None:
            path = Path(f"run-{run.number or 'unsaved'}.{form}")
            if path.exists():
                raise BadOption(f"{path} is here already; name another file with --out")
        try:
            print(f"{run!r}: written to {run.export(path, form)}")
        except OSError as error:
            raise BadOption(
                f"{path} cannot be written ({error.strerror}); name another file with --out"
            ) from None

    def _doctor(self, words: list[str]) -> None:
        from nbrun.ui import doctor

        self._no_more("doctor", words)
        doctor.show(self._extension)

    def _retry(self, words: list[str]) -> None:
        self._follow("retry", words)

    def _resume(self, words: list[str]) -> None:
        self._follow("resume", words)

    def _replay(self, words: list[str]) -> None:
        self._follow("replay", words)

    def _follow(self, kind: str, words: list[str]) -> None:
        """Start a run that comes from another one, and show its card."""
        asked, extension = read_sequel(self.agentrun, kind, words), self._extension
        answerable = extension.is_answerable(asked.block)
        options = self._resolved(asked.options)
        run = extension.session.follow(kind, asked.ref, answerable=answerable, **options)
        if asked.out is not None:
            extension.shell.user_ns[asked.out] = run
        extension.present(run, asked.block)

    def _approve(self, words: list[str]) -> None:
        args = take_flag(words, "--args", has_value=True)
        choice = take_flag(words, "--choose", has_value=True)
        always = take_flag(words, "--always", has_value=False) is not None
        text = _take_word(words, "--text")
        refuse_flags("approve", words)
        run, call = self._asking("approve", words)
        edited = None if args is None else read_args(args, ARGS_MEND)
        self._answer(run, call, choice or ALLOW, args=edited, text=text, always=always)

    def _deny(self, words: list[str]) -> None:
        reason = _take_word(words, "--reason")
        refuse_flags("deny", words)
        run, call = self._asking("deny", words)
        self._answer(run, call, DENY, text=reason)

    def _answer(self, run: Run, call: str | None, decision: str, **said: Any) -> None:
        asked = run.answer(call, decision, **said, by="magic")
        words = {ALLOW: "allowed", DENY: "denied"}.get(decision, f"chose {decision} for")
        always = f"; {shown(asked.tool, 80)} from here on, too" if said.get("always") else ""
        told = f"{title(run.record)}: {words} {_asked_words(asked, run.record)}{always}"
        print(printable(told))

    def _asking(self, verb: str, words: list[str]) -> tuple[Run, str | None]:
        """Return the run that is answered, and the question that the line names, if it names one."""
        self._no_more(verb, words[2:])
        session = self._extension.session
        if words:
            return session.get(words[0]), words[1] if len(words) > 1 else None
        asking = [run for run in session.live_runs if run.pending]
        if len(asking) != 1:
            runs = ", ".join(f"#{run.number} ({run.name})" for run in asking)
            raise NotPending(
                f"{len(asking)} runs ask something: {runs}; name one: %agentrun {verb} #{asking[0].number}"
                if asking
                else "no run asks anything: there is nothing to answer"
            )
        return asking[0], None

    def _say(self, words: list[str]) -> None:
        if len(words) < 2:
            raise BadOption("%agentrun say wants a run and a text: %agentrun say last and be brief")
        run = self._extension.session.get(words[0])
        steer_id = run.steer(words[1], by="magic")
        print(f"{title(run.record)}: the message was sent, {_receipt(run, steer_id)}")

    def _logs(self, words: list[str]) -> None:
        from nbrun.ui.magics.logs import SHOWN_LINES, log_text

        count = take_flag(words, "-n", has_value=True)
        refuse_flags("logs", words)
        self._no_more("logs", words[1:])
        if count is not None and not (count.isdecimal() and int(count[:9]) > 0):
            raise BadOption(f"-n {count}: give a whole number of lines, at least 1")
        run = self._extension.session.get(words[0] if words else "last")
        print(log_text(run, SHOWN_LINES if count is None else int(count[:9])))

    def _agents(self, words: list[str]) -> None:
        self._no_more("agents", words)
        from nbrun.ui.magics.agent_list import agents_text

        shell = self._extension.shell
        print(agents_text(shell.user_ns, shell.user_ns_hidden, self._extension.config.model))

    def _help(self, words: list[str]) -> None:
        self._no_more("help", words[1:])
        if not words:
            print(help_text())
            return
        verb, _none = read_subcommand(words[0])
        print(usage_text(verb))

    # --- reading ---------------------------------------------------------------------------------

    def _no_more(self, verb: str, words: list[str]) -> None:
        if words:
            raise BadOption(f"%agentrun {verb} takes nothing more; leave '{' '.join(words)}' out")

    def _agent(self, request: Request) -> object:
        """Return the object that the line names, or None for the built-in agent."""
        if request.python:
            return PythonCell(self._extension.shell.user_ns)
        if request.target is None:
            return None
        names: dict[str, Any] = self._extension.shell.user_ns
        found = names[request.target] if request.target in names else by_name(request.target)
        if found is not None:
            return found
        near = close_to(request.target, self._known_agents(), 1)
        hint = f"did you mean {near[0]}?" if near else "define it in a cell above, or use --model"
        raise AgentNotFound(f"there is no '{request.target}' in this notebook; {hint}")

    def _resolved(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return options with the notebook's own objects in the place of their names."""
        names: dict[str, Any] = self._extension.shell.user_ns
        found = {name: value for name, value in options.items() if value is not None}
        if tools := found.get("tools"):
            found["tools"] = [function for name in tools for function in self._tools(name)]
        if isinstance(names.get(found.get("system", "")), str):
            found["system"] = names[found["system"]]
        if (kind := found.get("output_type")) is not None:
            if not isinstance(names.get(kind), type):
                raise BadOption(
                    f"--output {kind}: there is no such class in this notebook; define it above"
                )
            found["output_type"] = names[kind]
        if (name := found.get("settings")) is not None:
            if not (isinstance(names.get(name), Mapping) or callable(names.get(name))):
                raise BadOption(
                    f"--settings {name}: there is no such dict in this notebook; define it above"
                )
            found["settings"] = names[name]
        return found

    def _tools(self, name: str) -> Sequence[Callable[..., object]]:
        names: dict[str, Any] = {**registered(), **self._extension.shell.user_ns}
        if name not in names:
            toolset = self._extension.toolset(name)
            if toolset is None:
                raise BadOption(
                    f"--tools {name}: there is no such function in this notebook; define it above"
                )
            return toolset
        if not callable(names[name]):
            raise BadOption(f"--tools {name}: it is {type(names[name]).__name__}, not a function")
        return (names[name],)

    def _known_agents(self) -> dict[str, object]:
        """Return what can be run, by name: the registered agents, and what the notebook itself has made."""
        from nbrun.ui.magics.agent_list import agents_in

        shell = self._extension.shell
        return {**registered(), **agents_in(shell.user_ns, shell.user_ns_hidden)}

    def _refuse_agent(self, line: str) -> None:
        """Raise `BadOption` for a `%agentrun` line that names an agent in place of a subcommand."""
        word = (line.split() or [""])[0]
        if word in {"", *SUBCOMMANDS, *ALIASES} or word not in (agents := self._known_agents()):
            return
        what = "a function" if inspect.isroutine(agents[word]) else "an agent"
        raise BadOption(f"{word} is {what} here: write %%agentrun {word}, and the prompt below it")

    def _prompt(self, request: Request, cell: str) -> str:
        text = cell.strip("\n").rstrip()
        if not text.strip():
            what = "Python to run" if request.python else "prompt"
            raise BadOption(f"the cell has no {what}: write it below the %%agentrun line")
        if request.python:
            check_code(text)
            return text
        if not request.interpolate:
            return text
        return interpolate(text, self._extension.shell.user_ns)

    def _model(self, agent: object) -> str | None:
        return (self._extension.config.model or None) if agent is None else None


def _asked_words(asked: ApprovalRequested, record: RunRecord) -> str:
    """Return what was asked: the tool it is about, where that is known, else the question."""
    name = next((tool.name for tool in record.tools if tool.id == asked.tool_id), None)
    return f"“{shown(asked.message, 80)}”" if name is None else f"`{shown(name, 80)}`"


def _receipt_lines(receipts: list[CancelReceipt], *, is_long: bool) -> list[str]:
    """Return a line a receipt; of many that nobody has named, one line for all with the same outcome."""
    if not receipts:
        return ["no run is live: nothing to cancel"]
    if not is_long or len(receipts) <= SHOWN_RECEIPTS:
        return [str(receipt) for receipt in receipts]
    outcomes = Counter(receipt.outcome for receipt in receipts)
    return [f"{count:,} runs: {_OUTCOMES[outcome]}" for outcome, count in outcomes.items()]


def _take_word(words: list[str], flag: str) -> str | None:
    """Take what is to be said with an answer, under its name or as `-r`."""
    text, short = (take_flag(words, name, has_value=True) for name in (flag, "-r"))
    if text is not None and short is not None:
        raise BadOption(f"{flag} and -r are the same: give one")
    return text if short is None else short


def _receipt(run: Run, steer_id: str) -> str:
    """Return whether the agent has read a message, after a moment in which it may."""

    def sent(record: RunRecord) -> Steered | None:
        return next((one for one in record.steered if one.id == steer_id), None)

    def is_told(record: RunRecord) -> bool:
        message = sent(record)
        return not record.is_live or (message is not None and message.taken_at is not None)

    if run.live is not None:
        run.live.wait_until(is_told, RECEIPT_S)
    record = run.record
    words = receipt_words(sent(record) or Steered(0, ""), record)
    is_deaf = record.is_live and not record.is_steerable
    return f"{words}; the agent has not looked for messages so far" if is_deaf else words
