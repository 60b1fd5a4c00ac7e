"""Every exception of nbrun.

NbrunError
├─ UserError         a mistake in a line or a call
│  ├─ BadOption      an option, its value, or an empty prompt
│  ├─ AgentNotFound  no such agent, or the object cannot be run
│  ├─ RunNotFound    no run has this reference
│  ├─ IdConflict     this id already names a run with other inputs
│  ├─ NotPending     the run isn't waiting for this answer, or takes no messages
│  ├─ RunRejected    a run of the same cell or name is in progress (`if_running="reject"`), or runs started too many
│  ├─ PackageMissing what was asked for needs a package that is not installed; an ImportError too
│  ├─ NotResumable   the run cannot be resumed or retried here
│  └─ BadRecording   the file is not a valid recording
├─ NoResult          all that `run.result()` and `await run` raise
│  ├─ RunNotFinished the wait ended before the run did
│  ├─ RunFailed
│  ├─ RunCancelled
│  └─ RunLost
├─ StoreError
│  ├─ StoreReadOnly
│  ├─ StoreTooNew
│  ├─ StoreDamaged
│  ├─ StoreUnavailable  locked, its disk is full, or the file is gone
│  └─ ArtifactLost   a file beside the store is gone, or was changed
└─ SessionClosed
Cancelled            a BaseException, raised only inside an agent
Interrupted          a KeyboardInterrupt: ■ or Ctrl-C ended a wait

An error carries its `fixes` as data. Only a front end knows how their commands are spelled; see `spell_with`.
"""

from __future__ import annotations

import sysconfig
import traceback
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from nbrun.core.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class Action(StrEnum):
    """What the user can do next."""

    APPROVE = "approve"
    CANCEL = "cancel"
    DOCTOR = "doctor"
    INSTALL_LOCAL_MODEL = "install"
    LIST = "list"
    LOST = "lost"
    RESUME = "resume"
    RETRY = "retry"
    SHOW = "show"
    TRUST = "trust"


_PURPOSES = {
    Action.APPROVE: "answer it",
    Action.CANCEL: "cancel it",
    Action.DOCTOR: "check the setup",
    Action.INSTALL_LOCAL_MODEL: "install the local model",
    Action.LIST: "list the runs",
    Action.LOST: "if you know that it has ended, mark it as lost",
    Action.RESUME: "resume from the last checkpoint",
    Action.RETRY: "run it again",
    Action.SHOW: "show it",
    Action.TRUST: "if you know that it is yours, trust it",
}


class Fix(msgspec.Struct, frozen=True):
    """One thing to do next, as data: the action, its run, and for another notebook the path of its store.

    Parameters
    ----------
    purpose : what the command does, as the start of a sentence; by default the action's own.
    agent : what stands for the agent that the user has to name.
    """

    action: Action
    ref: str = ""
    path: str = ""
    purpose: str = ""
    agent: str = ""

    @property
    def command(self) -> str:
        """The command for it, as the front end spells it; empty if no front end is loaded."""
        return _spell(self)

    def __str__(self) -> str:
        purpose = self.purpose or _PURPOSES[self.action]
        return f"{purpose}: {self.command}" if self.command else purpose


def _no_command(_fix: Fix) -> str:
    return ""


_spell: Callable[[Fix], str] = _no_command


def spell_with(speller: Callable[[Fix], str] | None) -> None:
    """Set how commands are spelled; called by a front end when it loads, and with None when it is unloaded."""
    global _spell  # one front end per process: a notebook's shell or the command line
    _spell = speller or _no_command


def with_fixes(reason: str, fixes: Iterable[Fix]) -> str:
    """Return a message followed by its fixes, one sentence each."""
    sentences = [reason, *(text[:1].upper() + text[1:] for text in map(str, fixes))]
    return ". ".join(sentence.rstrip(".") for sentence in sentences) if len(sentences) > 1 else reason


class NbrunError(Exception):
    """Anything that nbrun itself raises on purpose.

    Its message may quote a run's name or an agent's error, so control characters in it are made visible.

    Parameters
    ----------
    reason : what happened, in plain words.
    run : the run it is about, as in `run #3 (poet)`.
    fixes : what can be done about it.
    """

    def __init__(self, reason: object = "", *, run: str | None = None, fixes: Iterable[Fix] = ()) -> None:
        super().__init__(reason)
        self.reason = str(reason)
        self.run = run
        self.fixes = tuple(fixes)

    def __str__(self) -> str:
        return printable(with_fixes(self.reason, self.fixes))

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython prints in place of a traceback.

        Source: IPython calls this method of the exception. (Its `UsageError` is compared by identity, so
        a subclass of that would print a full traceback.)
        """
        return [f"{type(self).__name__}: {self}"]


class UserError(NbrunError):
    """A mistake in a line or a call; the message says how to fix it."""


class BadOption(UserError):
    """An option or argument is unknown, out of range, or missing."""


class AgentNotFound(UserError):
    """No agent has this name, or the object cannot be run."""


class RunNotFound(UserError):
    """No run has this reference."""


class IdConflict(UserError):
    """A run with this id exists, with other inputs."""


class NotPending(UserError):
    """The run isn't waiting for this answer, or takes no messages."""


class RunRejected(UserError):
    """A run of the same cell or name is in progress (`if_running="reject"`), or runs have started too many others."""


class PackageMissing(UserError, ImportError):
    """What was asked for needs a package that is not installed; the message says how to install it."""


class NotResumable(UserError):
    """The run cannot be resumed or retried here."""


class BadRecording(UserError):
    """The file is not a valid recording."""


class NoResult(NbrunError):
    """The run has no result to give."""


class RunNotFinished(NoResult, TimeoutError):
    """The wait ended before the run did; the run continues."""


class RunFailed(NoResult):
    """The agent raised, or its host died; `__cause__` is the agent's own exception, if it was raised here."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines of the agent's own code that led here, then the message."""
        trace = None if self.__cause__ is None else self.__cause__.__traceback__
        frames = traceback.extract_tb(trace)
        own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)] or frames[-1:]
        lines = "".join(["Traceback of the agent:\n", *traceback.format_list(own)]) if own else ""
        return [*printable(lines).splitlines(), *super()._render_traceback_()]


class RunCancelled(NoResult):
    """The run was cancelled; what it produced is in `run.output`."""


class RunLost(NoResult):
    """The kernel of this run died before the run ended."""


class StoreError(NbrunError):
    """The session store cannot do what was asked."""


class StoreReadOnly(StoreError):
    """The file cannot be written, or must not be."""


class StoreTooNew(StoreReadOnly):
    """A newer nbrun wrote the file."""


class StoreDamaged(StoreError):
    """The file is not a usable database."""


class StoreUnavailable(StoreError):
    """The file cannot be used now: it is locked, its disk is full, or it is gone; `fault` says which."""

    def __init__(self, fault: object) -> None:
        fix = getattr(fault, "fix", "")
        super().__init__(f"{fault}; {fix}" if fix else str(fault))
        self.fault = fault


class ArtifactLost(StoreError):
    """A file that a run made is gone, or has changed."""


class SessionClosed(NbrunError):
    """The session takes no new runs."""


class Interrupted(KeyboardInterrupt):
    """■ or Ctrl-C ended a wait; the message says what happened to the runs.

    A `KeyboardInterrupt`, so that "Run All" stops. Printed in one line: a traceback into nbrun's waiting loop
    would help nobody.
    """

    def _render_traceback_(self) -> list[str]:
        """Return the line that IPython prints in place of a traceback."""
        return [f"{KeyboardInterrupt.__name__}: {self}"]


# Front ends know an interrupt by its name, which the kernel takes from the class.
Interrupted.__name__ = KeyboardInterrupt.__name__


class Cancelled(BaseException):
    """Raised inside an agent whose run was cancelled.

    A `BaseException`, so that an agent's own `except Exception` doesn't swallow a cancel.
    """
