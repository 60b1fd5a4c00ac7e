"""A run in a terminal: one line that lives while it is waited for; Ctrl-C cancels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun.encoding import shown
from nbrun.ui.snapshot import plain_text
from nbrun.ui.waiting import cancelled_by_interrupt, wait_for
from nbrun.wording import duration, status_words, tokens_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.run import Run


def show_until_end(run: Run, grace_s: float, now: Callable[[], float]) -> None:
    """Show the run's line until it has ended, then what it gave.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C came, and the run was cancelled.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    began = run.created_at or now()

    def line() -> Text:
        record = run.record
        seconds = duration(max(0.0, (record.ended_at or now()) - began))
        parts = [
            status_words(record),
            f"{record.name} #{record.number}",
            seconds,
            tokens_words(record),
        ]
        tail = shown(record.text[-200:], 200)
        return Text(
            " · ".join(part for part in [*parts, tail] if part), overflow="ellipsis", no_wrap=True
        )

    live = Live(get_renderable=line, console=console, refresh_per_second=10, transient=True)
    try:
        with cancelled_by_interrupt(run, grace_s):
            live.start()  # within: Ctrl-C may come while it draws for the first time
            wait_for(run)
    finally:
        live.stop()
        console.print(Text(plain_text(run.record, run.problem)))
