"""A run in a terminal: one line that lives while it is waited for, and its questions; Ctrl-C cancels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun.core.durations import duration
from nbrun.core.text import printable
from nbrun.core.values import shown
from nbrun.render.static_card import plain_text
from nbrun.render.words import progress_words, usage_words
from nbrun.ui.kernel.waiting import TICK_S, cancelled_by_interrupt
from nbrun.ui.terminal.prompts import ask

if TYPE_CHECKING:
    from nbrun.sessions.run import Run
    from nbrun.sessions.session import NotebookSession


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
            f"{shown(record.name, 60)} #{record.number}",
            seconds,
            progress_words(record.progress),
            usage_words(record.usage),
        ]
        head = printable(" · ".join(part for part in parts if part))
        tail = _end(printable(shown(record.text[-400:], 400)), console.width - cell_len(head) - 3)
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
                        ask(run, question, session, console)
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
