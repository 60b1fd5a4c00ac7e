"""The host: drives attempts on the event loop that it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun.drive import Drive

if TYPE_CHECKING:
    from nbrun.attempt import Attempt, Sink
    from nbrun.clock import Clock
    from nbrun.loop_thread import LoopThread


class RunHost:
    """Drives attempts: `run.started` first, then what the agent does, then one end event.

    Threads: `begin()` on the loop, where the drives live; `sink` is called from the loop and from the worker
    threads of sync agents.
    """

    def __init__(self, thread: LoopThread, sink: Sink, clock: Clock, name: str = "local") -> None:
        self.name = name
        self._thread = thread
        self._sink = sink
        self._clock = clock
        self._drives: dict[tuple[object, object], Drive] = {}

    @property
    def live(self) -> int:
        """How many attempts have not ended."""
        return len(self._drives)

    def control(self, op: str, body: dict[str, object]) -> dict[str, object]:
        """Do what the session asks for; `run_id` and `attempt` in `body` say of which run."""
        if op == "ping":
            return {"op": op, "live": self.live}
        drive = self._drives.get((body.get("run_id"), body.get("attempt")))
        if drive is None:
            return {"op": op, "outcome": "not_found"}
        return {"op": op, "outcome": drive.control(op, body)}

    def begin(self, attempt: Attempt) -> None:
        """Start an attempt."""
        key = (attempt.run_id, attempt.number)
        drive = self._drives[key] = Drive(attempt, self._thread, self._sink, self._clock, self.name)
        # In the context of the cell that started the run, whatever started the loop's thread.
        task = attempt.context.run(self._thread.spawn, drive.main(), f"nbrun-run-{attempt.run_id}")
        drive.task = task
        task.add_done_callback(lambda _task: self._drives.pop(key, None))
