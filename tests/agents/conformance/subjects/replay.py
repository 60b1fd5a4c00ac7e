"""A recorded run: it shows what was done and does none of it."""

from __future__ import annotations

from typing import Any

from nbrun import CancelCause, RunEvent
from nbrun.core import events as ev
from nbrun.core.recording import Header, Replay
from tests.agents.conformance.script import Script, call_id, filled
from tests.agents.conformance.subject import PROMPT, Subject
from tests.agents.conformance.subjects.scripted import SHOWN
from tests.agents.conformance.tools import FOR_EVER_S

RUN_ID = "run-recorded"


class _Tape:
    """The events of a run that follows a script."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []
        self._ts = 0.0

    def put(self, data: ev.EventData) -> None:
        """Append an event."""
        self.events.append(RunEvent(len(self.events), self._ts, RUN_ID, 1, data))

    def wait(self) -> None:
        """Have what follows come very much later."""
        self._ts += FOR_EVER_S


class Recording(Subject):
    """A `Replay`."""

    name = "replay"

    def agent(self, script: Script) -> Any:
        """Return what a run of such an agent would have been recorded as."""
        tape, results = _Tape(), list[object]()
        tape.put(ev.RunCreated("s", "poet", "poet", PROMPT))
        tape.put(ev.RunStarted("local"))
        end: ev.EventData = ev.RunCompleted()
        for number, turn in enumerate(script.turns):
            tape.put(ev.Usage(input_tokens=7, output_tokens=4, requests=number + 1))
            words = [filled(word, results, ()) for word in turn.words]
            for word in words:
                tape.put(ev.TextDelta(word))
            if turn.stalls:
                tape.wait()
                end = ev.RunCancelled(CancelCause.USER)
            elif turn.fails:
                end = ev.RunFailed(ev.ErrorInfo("ValueError", turn.fails))
            elif words:
                tape.put(ev.Message("assistant", "".join(words)))
            for place, call in enumerate(turn.calls):
                shown = SHOWN.get(call.name)
                tool_id = call_id(number, place)
                tape.put(ev.ToolStarted(tool_id, call.name, "function", call.args))
                if shown is None:
                    tape.wait()
                status, result = _given(shown or {})
                results.append(result)
                tape.put(ev.ToolFinished(tool_id, status, result))
        tape.put(end)
        return Replay((Header(run_id=RUN_ID, agent="poet", prompt=PROMPT), tape.events))


def _given(shown: dict[str, Any]) -> tuple[str, str]:
    return ("error", shown["error"]) if "error" in shown else ("ok", str(shown.get("result")))


SUBJECTS = (Recording(),)
