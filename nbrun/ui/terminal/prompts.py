"""A question of a run's at the keyboard of a terminal, until it is answered, here or elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nbrun.agents.context.approvals import ALLOW, DENY
from nbrun.core import events as ev
from nbrun.core.durations import duration
from nbrun.core.errors import UserError
from nbrun.core.values import plain, readable
from nbrun.render.words import resolution_words, visible
from nbrun.sessions.control import check_edited
from nbrun.ui.kernel.edited_args import read_args
from nbrun.ui.terminal.keyboard import discard_typed_ahead, next_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from nbrun.sessions.run import Run
    from nbrun.sessions.session import NotebookSession

EDIT, ALWAYS = "edit", "always"


class _Reply(NamedTuple):
    """What was typed, as a clear answer."""

    decision: str
    text: str = ""
    is_always: bool = False


def ask(run: Run, asked: ev.ApprovalRequested, session: NotebookSession, console: Console) -> None:
    """Ask until the question is answered or asked no more; a mistake is one line, and it is asked again."""
    from rich.text import Text

    def say(words: str) -> None:
        console.print(Text(visible(words)))

    if ahead := discard_typed_ahead():
        say(f"  (typed before the question, and discarded: {ahead})")
    say(f"? {asked.message}{'' if asked.args is None else f' {readable(asked.args)}'}")
    if asked.deadline is not None:
        left_s = max(0.0, asked.deadline - session.clock.now())
        say(f"  denied automatically in {duration(left_s)} if you don't answer")
    ways = _ways(asked)
    edited: object = None
    while True:
        typed = _typed(run, asked, f"  [{'/'.join(ways)}] ", console)
        if typed is not None and EDIT in ways and typed.lower() in ("e", EDIT):
            typed = _typed(run, asked, "  arguments as JSON, an empty line keeps them: ", console)
            if typed is not None:
                edited = _edited(typed, asked, edited, say)
                continue
        if typed is None:
            say(f"\n  {_resolution(run, asked)}")
            return
        reply = _reply(typed, asked)
        if reply is not None:
            break
        say(f"  answer with one of: {'/'.join(ways)}; an empty line is a no, n and a text say why")
    args = None if reply.decision == DENY else edited
    try:
        session.answer(
            run, asked.id, reply.decision, args=args, text=reply.text, always=reply.is_always, by="terminal"
        )  # fmt: skip
    except UserError as error:  # its time was over in this moment
        say(f"  {error}")


def _ways(asked: ev.ApprovalRequested) -> tuple[str, ...]:
    """Return the words that answer a question; the last one, in capitals, is what an empty line means."""
    if asked.options:
        return (*asked.options, "N")
    always = (ALWAYS,) if asked.tool else ()
    edit = (EDIT,) if asked.editable and asked.args is not None else ()
    return ("y", *always, *edit, "N")


def _typed(run: Run, asked: ev.ApprovalRequested, prompt: str, console: Console) -> str | None:
    """Return the line that is typed, an empty one for Ctrl-D; None when the question is asked no more."""
    try:
        return next_line(
            visible(prompt), lambda: any(asked.id == other.id for other in run.pending)
        )
    except EOFError:
        console.print()
        return ""
    except KeyboardInterrupt:
        console.print()
        raise


def _edited(
    typed: str, asked: ev.ApprovalRequested, before: object, say: Callable[[str], None]
) -> object:
    """Return the arguments that count from here on, and say what they are; those of before, where none are typed."""
    if not typed:
        return before
    try:
        args = read_args(typed)
        check_edited(asked, plain(args))
    except UserError as error:
        say(f"  {error}")
        return before
    say(f"? {asked.message} {readable(plain(args))} (edited)")
    return args


def _reply(typed: str, asked: ev.ApprovalRequested) -> _Reply | None:
    """Return what was answered; None for what is neither a clear yes nor a clear no."""
    if typed in asked.options:
        return _Reply(typed)
    word, _, text = typed.partition(" ")
    if word.lower() in ("", "n", "no", DENY):
        return _Reply(DENY, text.strip())
    if asked.options:
        return None
    if asked.tool and typed.lower() in ("a", ALWAYS):
        return _Reply(ALLOW, is_always=True)
    # A yes that goes on is none: "yes, but not the second" allows the second, too.
    return _Reply(ALLOW) if typed.lower() in ("y", "yes", ALLOW) else None


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
