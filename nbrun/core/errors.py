"""Every exception of nbrun.

NbrunError
├─ UserError         a mistake in a line or a call
│  ├─ BadOption      an option, its value, or an empty prompt
│  ├─ AgentNotFound  no such agent, or the object cannot be run
│  ├─ RunNotFound    no run has this reference
│  ├─ IdConflict     this id already names a run with other inputs
│  ├─ NotPending     the run does not ask that, or takes no messages
│  ├─ RunRejected    a run of the same cell or name is live (`--if-running reject`)
│  ├─ PackageMissing what was asked for needs a package that is not installed; an ImportError too
│  ├─ NotResumable   the run cannot be gone on with, or not here
│  └─ BadRecording   a file that is to be a recorded run is none
├─ NoResult          all that `run.result()` and `await run` raise
│  ├─ RunNotFinished the wait was over before the run was
│  ├─ RunFailed
│  ├─ RunCancelled
│  └─ RunLost
├─ StoreError
│  ├─ StoreReadOnly
│  ├─ StoreTooNew
│  ├─ StoreDamaged
│  ├─ StoreInTrouble the file cannot be used now
│  └─ ArtifactLost   a file beside the store is gone, or was changed
└─ SessionClosed
Cancelled            a BaseException, raised only inside an agent
Interrupted          a KeyboardInterrupt: ■ or Ctrl-C has ended a wait of nbrun
"""

from __future__ import annotations

from nbrun.core.text import printable


class NbrunError(Exception):
    """Anything that nbrun itself raises on purpose.

    Its message may name a run, or tell what an agent has raised: it is shown as text that no terminal obeys.
    """

    def __str__(self) -> str:
        return printable(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython prints in place of a traceback.

        Source: IPython calls this method of the exception. (Its `UsageError` is compared by identity, so
        a subclass of that would print a full traceback.)
        """
        return [f"{type(self).__name__}: {self}"]


class UserError(NbrunError):
    """A mistake in a line or a call; the message names the mend."""


class BadOption(UserError):
    """An option or argument is unknown, out of range, or missing."""


class AgentNotFound(UserError):
    """No agent has this name, or the object cannot be run."""


class RunNotFound(UserError):
    """No run has this reference."""


class IdConflict(UserError):
    """A run with this id exists, and its inputs are not these."""


class NotPending(UserError):
    """The run does not wait for this answer, or takes no messages (any more)."""


class RunRejected(UserError):
    """A run of the same cell or name is live, and `if_running="reject"` was asked for."""


class PackageMissing(UserError, ImportError):
    """What was asked for needs a package that is not installed; the message says how to install it."""


class NotResumable(UserError):
    """The run cannot be gone on with, or started again, or not here; the message says what can be done."""


class BadRecording(UserError):
    """A file that is to be a recorded run is none, or tells what cannot have happened."""


class NoResult(NbrunError):
    """The run has no result to give."""


class RunNotFinished(NoResult, TimeoutError):
    """The wait was over before the run was; the run goes on."""


class RunFailed(NoResult):
    """The agent raised, or its host died."""


class RunCancelled(NoResult):
    """The run was cancelled; what it produced is in `run.output`."""


class RunLost(NoResult):
    """The kernel of this run died while the run was live."""


class StoreError(NbrunError):
    """The session store cannot do what was asked."""


class StoreReadOnly(StoreError):
    """The file cannot be written, or must not be."""


class StoreTooNew(StoreReadOnly):
    """A newer nbrun wrote the file."""


class StoreDamaged(StoreError):
    """The file is not a usable database."""


class StoreInTrouble(StoreError):
    """The file cannot be used now: it is locked, its disk is full, or it is gone; `trouble` tells which."""

    def __init__(self, trouble: object) -> None:
        mend = getattr(trouble, "mend", "")
        super().__init__(f"{trouble}; {mend}" if mend else str(trouble))
        self.trouble = trouble


class ArtifactLost(StoreError):
    """A file that a run has made is gone, or is not what was kept."""


class SessionClosed(NbrunError):
    """The session takes no new runs."""


class Interrupted(KeyboardInterrupt):
    """■ or Ctrl-C has ended a wait of nbrun; the message says what became of the runs.

    A `KeyboardInterrupt`, so that "Run All" stops, and told in one line: where nbrun was waiting inside
    itself helps nobody.
    """

    def _render_traceback_(self) -> list[str]:
        """Return the line that IPython prints in place of a traceback."""
        return [f"{KeyboardInterrupt.__name__}: {self}"]


# Front ends know an interrupt by its name, which the kernel takes from the class.
Interrupted.__name__ = KeyboardInterrupt.__name__


class Cancelled(BaseException):
    """Raised inside an agent whose run was cancelled.

    A `BaseException`, so that an agent's own `except Exception` does not eat a cancel.
    """
