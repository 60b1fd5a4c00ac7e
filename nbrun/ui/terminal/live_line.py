"""A run in a terminal or console: a line that is updated while it is waited for, and its questions; Ctrl-C cancels."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

from nbrun.agents import ALLOW, DENY
from nbrun.agents.context.approvals import SECRET
from nbrun.core import UserError, duration, events as ev, is_whole, plain, printable, readable, shown, visible
from nbrun.render import static_card, words
from nbrun.sessions import NotebookSession, Run, RunSet, check_edited
from nbrun.ui.kernel import requests, waiting
from nbrun.ui.terminal import keyboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.text import Text


EDIT, ALWAYS = "edit", "always"
STILL_S = 0.7
"""How long a question takes no answer: a second "y" may come late, as the second click of a double click does."""
END = "\x04"  # Ctrl-D, where any line is an answer


def show_until_end(run: Run, session: NotebookSession, kernel: Any = None) -> None:
    """Show the run's line until it has ended, then its static card as text; Ctrl-C cancels it (`Interrupted`).

    A `kernel` shows it in its console, which it asks for what is typed.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    console, now = Console(force_jupyter=False), session.clock.now
    began = run.created_at or now()

    def line() -> Text:
        record = run.record
        parts = [
            run.status_words(),
            f"{shown(record.name, 60)} #{record.number}",
            duration(max(0.0, (record.ended_at or now()) - began)),
            words.progress_words(record.progress),
            words.usage_words(record.usage),
        ]
        head = printable(" · ".join(part for part in parts if part))
        text = printable(shown(record.text[-400:], 400))
        tail = _end(text, console.width - cell_len(head) - 3)
        return Text(f"{head} · {tail}" if tail else head, overflow="ellipsis", no_wrap=True)

    asked: set[str] = set()  # an answered question may be pending for a moment more

    def unasked() -> list[ev.ApprovalRequested]:
        return [question for question in run.pending if question.id not in asked]

    try:
        with waiting.cancelled_by_interrupt(run, session.cancel_grace_s):
            while not run.done():
                with _live(line, console):  # left for a question: else it would be drawn over what is typed
                    while not unasked() and not run.wait(waiting.TICK_S):
                        pass
                for question in unasked():
                    asked.add(question.id)
                    _Question(run, question, session, console, kernel).ask()
    finally:
        console.print(Text(static_card.plain_text(run.record, run.problem)))


def show_set_until_end(found: RunSet, session: NotebookSession, kernel: Any = None) -> None:
    """Show a line of how many inputs of a set have ended until it is done, and ask what its runs ask."""
    from rich.console import Console
    from rich.text import Text

    console = Console(force_jupyter=False)
    asked: set[tuple[str, str]] = set()

    def line() -> Text:
        usage = words.usage_words(found.usage)
        return Text(f"{found!r} · {usage}" if usage else repr(found), overflow="ellipsis", no_wrap=True)

    def unasked() -> list[tuple[Run, ev.ApprovalRequested]]:
        return [
            (run, question)
            for run in session.live_runs
            if run.glance.member is not None and run.glance.member.set == found.number
            for question in run.pending
            if (run.id, question.id) not in asked
        ]

    while not found.done():
        with _live(line, console):
            while not unasked() and not found.wait(waiting.TICK_S):
                pass
        for run, question in unasked():
            asked.add((run.id, question.id))
            _Question(run, question, session, console, kernel).ask()


@contextmanager
def _live(line: Callable[[], Text], console: Console) -> Iterator[None]:
    """Draw a line until this is left; what is printed meanwhile is drawn above it, but not what runs print."""
    from rich.file_proxy import FileProxy
    from rich.live import Live

    live = Live(
        get_renderable=line,
        console=console,
        refresh_per_second=10,
        transient=True,
        redirect_stdout=False,  # it would put its streams in place before they are captured
        redirect_stderr=False,
    )
    with ExitStack() as stack:
        if console.is_terminal:
            stack.enter_context(redirect_stdout(FileProxy(console, sys.stdout)))
            stack.enter_context(redirect_stderr(FileProxy(console, sys.stderr)))
        stack.enter_context(live)
        yield


def _end(text: str, width: int) -> str:
    """Return as much of the end of a text as fits into `width` columns: the newest is of most interest."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    while text and cell_len(text) >= width:
        text = text[1:]
    return f"…{text}" if text else ""


def _quoted(text: str) -> str:
    """Return what an agent says, so that none of its lines looks like one of nbrun's."""
    return "? " + text.replace("\n", "\n  │ ")


class _Reply(NamedTuple):
    """A clear answer that was typed."""

    decision: str
    text: str = ""
    is_always: bool = False


class _Question:
    """A run's question, asked in the terminal until it is answered, here or elsewhere."""

    def __init__(
        self, run: Run, asked: ev.ApprovalRequested, session: NotebookSession, console: Console, kernel: Any
    ) -> None:
        self._run, self._asked, self._session, self._console = run, asked, session, console
        self._kernel = kernel
        self._edited: object = None  # the arguments, where they were changed

    def ask(self) -> None:
        """Ask until there is an answer; what isn't understood costs one line, and the question is asked again."""
        asked = self._asked
        args = "" if asked.args is None else f" {readable(asked.args)}"
        self._say(_quoted(f"{asked.message}{args}"))
        if not is_whole(asked.args):
            self._say("  this isn't all of the arguments; see run.pending before you allow them")
        if asked.hidden:
            self._say(f"  hidden secrets, which the tool gets: {', '.join(asked.hidden)}")
        if asked.deadline is not None:
            left_s = max(0.0, asked.deadline - self._session.clock.now())
            self._say(f"  denied automatically in {duration(left_s)} if you don't answer")
        # Then it can have been read; what is typed until now was meant for something else.
        if self._kernel is None and (ahead := keyboard.discard_typed_ahead(STILL_S)):
            self._say(f"  (typed before the question, so discarded: {ahead})")
        reply = self._read_reply()
        if reply is None:
            self._say(f"\n  {self._resolution()}")
            return
        try:
            decision, text, always = reply
            edited = None if decision == DENY else self._edited
            self._run.answer(asked.id, decision, args=edited, text=text, always=always, by="terminal")
        except UserError as error:  # its time was up at this moment
            self._say(f"  {error}")

    def _say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(visible(text)))

    def _read_reply(self) -> _Reply | None:
        """Return the answer that is typed, None if the question is no longer pending; edits arguments on the way."""
        if self._asked.input:
            line = self._typed("  > ", at_end=END)
            return None if line is None else _Reply(DENY) if line == END else _Reply(ALLOW, line)
        choices = self._choices()
        while True:
            typed = self._typed(f"  [{'/'.join(choices)}] ")
            if typed is None:
                return None
            if EDIT in choices and typed.lower() in ("e", EDIT):
                typed = self._typed("  arguments as JSON (an empty line keeps them): ")
                if typed is None:
                    return None
                self._edit(typed)
            elif reply := self._reply(typed):
                return reply
            else:
                self._say(f"  answer with one of: {'/'.join(choices)}. An empty line means no; to say why: n REASON")

    def _choices(self) -> tuple[str, ...]:
        """Return the words that answer the question; the last one, in capitals, is what an empty line means."""
        asked = self._asked
        if asked.options:
            return (*asked.options, "N")
        always = (ALWAYS,) if asked.tool else ()
        edit = (EDIT,) if asked.editable and asked.args is not None else ()
        return ("y", *always, *edit, "N")

    def _typed(self, prompt: str, at_end: str = "") -> str | None:
        """Return the line that is typed, `at_end` for Ctrl-D; None if the question is no longer pending."""
        is_secret = self._asked.input == SECRET

        def is_pending() -> bool:
            return any(self._asked.id == other.id for other in self._run.pending)

        try:
            if self._kernel is not None:  # a kernel's console offers no way to take the question back
                read = self._kernel.getpass if is_secret else self._kernel.raw_input
                return str(read(visible(prompt))).strip()
            return keyboard.next_line(visible(prompt), is_pending, is_secret=is_secret)
        except EOFError:
            self._console.print()
            return at_end
        except KeyboardInterrupt:
            self._console.print()
            raise

    def _edit(self, typed: str) -> None:
        """Take the arguments that were typed, if any, and show them."""
        if not typed:
            return
        try:
            args = requests.read_args(typed)
            check_edited(self._asked, plain(args))
        except UserError as error:
            self._say(f"  {error}")
            return
        self._say(_quoted(f"{self._asked.message} {readable(plain(args))} (edited)"))
        self._edited = args

    def _reply(self, typed: str) -> _Reply | None:
        """Return what was answered; None if it is neither a clear yes nor a clear no."""
        asked = self._asked
        if typed in asked.options:
            return _Reply(typed)
        word, _, text = typed.partition(" ")
        if word.lower() in ("", "n", "no", DENY):
            return _Reply(DENY, text.strip())
        if asked.options:
            return None
        if asked.tool and typed.lower() in ("a", ALWAYS):
            return _Reply(ALLOW, is_always=True)
        # "yes" must be all of it: "yes, but not the second" would allow the second, too.
        return _Reply(ALLOW) if typed.lower() in ("y", "yes", ALLOW) else None

    def _resolution(self) -> str:
        """Return how a question ended that wasn't answered here."""
        asked_at, outcome = None, "no longer asked: the run has ended"
        for event in self._run.events():
            data = event.data
            if isinstance(data, ev.ApprovalRequested) and data.id == self._asked.id:
                asked_at = event.ts
            if isinstance(data, ev.ApprovalResolved) and data.id == self._asked.id:
                deadline = self._asked.deadline
                limit_s = None if deadline is None else deadline - (asked_at or event.ts)
                outcome = words.resolution_words(data, limit_s, self._run.record.cause)
        return outcome
