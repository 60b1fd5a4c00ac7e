"""A run in a terminal: one line that lives while it is waited for, and its questions; Ctrl-C cancels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun import events as ev
from nbrun.encoding import readable, shown
from nbrun.errors import UserError
from nbrun.questions import ALLOW, DENY
from nbrun.snapshot import plain_text
from nbrun.ui.keyboard import next_line, typed_ahead
from nbrun.ui.waiting import TICK_S, cancelled_by_interrupt
from nbrun.wording import (
    duration,
    progress_words,
    resolution_words,
    tokens_words,
    visible,
)

if TYPE_CHECKING:
    from rich.console import Console

    from nbrun.run import Run
    from nbrun.session import NotebookSession


def show_until_end(run: Run, session: NotebookSession) -> None:
    """Show the run's line until it has ended, then what it gave.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C came, and the run was cancelled.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console, now = Console(), session.clock.now
    began = run.created_at or now()

    def line() -> Text:
        record = run.record
        seconds = duration(max(0.0, (record.ended_at or now()) - began))
        parts = [
            run.status_words(),
            f"{record.name} #{record.number}",
            seconds,
            progress_words(record.progress),
            tokens_words(record),
        ]
        head = " · ".join(part for part in parts if part)
        tail = _end(shown(record.text[-400:], 400), console.width - cell_len(head) - 3)
        return Text(f"{head} · {tail}" if tail else head, overflow="ellipsis", no_wrap=True)

    live = Live(get_renderable=line, console=console, refresh_per_second=10, transient=True)
    try:
        with cancelled_by_interrupt(run, session.cancel_grace_s):
            live.start()  # within: Ctrl-C may come while it draws for the first time
            asked: set[str] = set()  # what was answered may be pending for a moment more
            while not run.wait(TICK_S):
                for question in run.pending:
                    if question.id not in asked:
                        asked.add(question.id)
                        live.stop()  # the line would be drawn over what is typed
                        _ask(run, question, session, console)
                        live.start()
    finally:
        live.stop()
        console.print(Text(plain_text(run.record, run.problem)))


def _end(text: str, width: int) -> str:
    """Return the end of a text, as much as fits into so many columns: what came last is what one waits for."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    while text and cell_len(text) >= width:
        text = text[1:]
    return f"…{text}" if text else ""


def _ask(run: Run, asked: ev.ApprovalRequested, session: NotebookSession, console: Console) -> None:
    """Ask a question of the run's at the keyboard, until it is answered, here or elsewhere, or asked no more."""
    from rich.text import Text

    if ahead := typed_ahead():
        console.print(Text(visible(f"  (typed before it was asked, and dropped: {ahead})")))
    args = "" if asked.args is None else f" {readable(asked.args)}"
    console.print(Text(visible(f"? {asked.message}{args}")))
    words = visible("/".join((*(asked.options or ("y",)), "N")))
    while True:
        console.print(Text(f"  [{words}] "), end="")
        try:
            typed = next_line(lambda: any(asked.id == other.id for other in run.pending))
        except EOFError:
            typed = ""
            console.print()
        except KeyboardInterrupt:
            console.print()
            raise
        if typed is None:
            console.print(Text(f"\n  {_resolution(run, asked)}"))
            return
        decision = _decision(typed, asked.options)
        if decision is not None:
            break
        console.print(Text(f"  answer with one of: {words}; an empty line is a no"))
    try:
        session.answer(run, asked.id, decision, by="terminal")
    except UserError as error:  # its time was over in this moment
        console.print(Text(f"  {error}"))


def _decision(typed: str, options: tuple[str, ...]) -> str | None:
    """Return the decision that was typed; None for what is neither a clear yes nor a clear no."""
    if typed in options:
        return typed
    if typed.lower() in ("", "n", "no", DENY):
        return DENY
    return ALLOW if not options and typed.lower() in ("y", "yes", ALLOW) else None


def _resolution(run: Run, asked: ev.ApprovalRequested) -> str:
    """Return what came of a question that was not answered here."""
    asked_at, words = None, "no longer asked: the run has ended"
    for event in run.events():
        if isinstance(event.data, ev.ApprovalRequested) and event.data.id == asked.id:
            asked_at = event.ts
        if isinstance(event.data, ev.ApprovalResolved) and event.data.id == asked.id:
            limit_s = None if asked.deadline is None else asked.deadline - (asked_at or event.ts)
            words = resolution_words(event.data, limit_s, run.record.cause)
    return words
