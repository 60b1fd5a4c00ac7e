"""Runs with one hostile text in every field, folded from events as the intake hands them on."""

from __future__ import annotations

from nbrun.core import events as ev
from nbrun.core.cancellation import CancelCause
from nbrun.core.record import RunRecord, fold
from nbrun.core.text import clean_text
from nbrun.core.values import Plain

AT = 1_800_000_000.0


def runs_with(payload: str, number: int = 1) -> list[RunRecord]:
    """Return a run that asks, one that has failed, one that was cancelled and one that has completed."""
    text = clean_text(payload)
    return [
        _folded(_begun(text, number) + _asking(text)),
        _folded([*_begun(text, number), ev.RunFailed(ev.ErrorInfo(text, text, text), text)]),
        _folded([*_begun(text, number), *_cancelled(text)]),
        _folded([*_begun(text, number), ev.RunCompleted({"value": text})]),
    ]


def _begun(text: str, number: int) -> list[ev.EventData]:
    args: Plain = {text[:200]: [text, {"nested": text}]}
    return [
        ev.RunCreated(
            session_id="session", name=text, agent=text, prompt=text, number=number, model=text,
            tags={text: text}, options={"system": text}, target=text,
            origin=ev.Origin(ev.RETRY, text, None, text),
        ),
        ev.RunStarted(text),
        ev.RunPhase(text),
        ev.TextDelta(f"before\n\n{text}\n\nafter"),
        ev.ReasoningDelta(text),
        ev.Message("assistant", text),
        ev.ToolStarted(text, text, text, args),
        ev.ToolProgress(text, 1, 2, text),
        ev.ToolFinished(text, "error", text, 5.0),
        ev.ToolStarted("second", text, "function", text),
        ev.ToolFinished("second", "ok", {"result": text}, 5.0),
        ev.CallStarted("first", text, text, text),
        ev.CallStarted(text, text, text, text),
        ev.CallFinished(text, text, 5.0, 2.0, ev.Usage(1, 2, 3, 4), text, 900.0, "journal", 5.0),
        ev.CallFinished("first", "error", 5.0, 2.0, None, text),
        ev.ToolStarted("third", text, "function", text),
        ev.CallStarted("last", text, text, text),
        ev.Steer(text, text),
        ev.Progress(1, 2, text),
        ev.Log(text, "warning"),
        ev.Log(text, "stdout"),
        ev.Log(text, text),
        ev.Artifact("a", text, 5, text, text),
        ev.ChildStarted("child", text, 2),
        ev.ChildFinished("child", text),
        ev.Custom(text, text),
        ev.Raw(text, text),
    ]  # fmt: skip


def _asking(text: str) -> list[ev.EventData]:
    asked = ev.ApprovalRequested("ask", text, "third", {text: text}, (text, "other"), AT + 90)
    return [asked, ev.RunWaiting(text)]


def _cancelled(text: str) -> list[ev.EventData]:
    return [
        ev.CancelRequested(CancelCause.USER, text, text),
        ev.RunCancelled(CancelCause.USER, text, text, ev.ErrorInfo(text, text, text), detached=(text,)),
        ev.DetachedFinished(text, 3),
    ]


def _folded(data: list[ev.EventData]) -> RunRecord:
    return fold(ev.RunEvent(seq, AT + seq, "run-1", 1 if seq else 0, one) for seq, one in enumerate(data))
