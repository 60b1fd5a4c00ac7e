"""What a run is: pure data and rules. No I/O, no Jupyter."""

# What other rooms use, so that they can import it in one statement.
# fmt: off
# ruff: isort: off
# ruff: noqa: RUF022
from nbrun.core.artifacts import Artifact, ArtifactFiles, ArtifactWriter, folder_beside
from nbrun.core.cancellation import (
    CallbackHandle, CancelCause, CancelOutcome, CancelReceipt, CancelRequest, CancelToken, Latch, LoopLatch, Rung,
    call_soon, end_cancelled_wait, is_on_loop, module_lock, wait_for_call,
)
from nbrun.core.checkpoint import Restored, State, Turn, turns_of
from nbrun.core.clock import Clock, IdGenerator, SequentialIds, SystemClock, TimeOrderedIds
from nbrun.core.errors import (
    Action, AgentNotFound, ArtifactLost, BadOption, BadRecording, Cancelled, Fix, IdConflict,
    Interrupted, NbrunError, NoResult, NotPending, NotResumable, PackageMissing, RunCancelled,
    RunFailed, RunLost, RunNotFinished, RunNotFound, RunRejected, SessionClosed, StoreDamaged,
    StoreError, StoreReadOnly, StoreTooNew, StoreUnavailable, UserError, spell_with, with_fixes,
)
from nbrun.core.events import ApprovalRequested, RunEvent
from nbrun.core.interrupt_guard import InterruptGuard, Stepped, Steps, current_guard, guarded, need_stack
from nbrun.core.journal import Entry, Journal, JournalFiles, Journals
from nbrun.core.line_buffer import LineBuffer, Printed
from nbrun.core.options import RunOptions, trusted
from nbrun.core.ownership import OTHERS, is_private, open_regular, secure
from nbrun.core.quantities import counted, duration, duration_s, moment, money, size_words
from nbrun.core.record import (
    CallGroup, ChildSummary, LIVE, ModelCall, RunRecord, RunStatus, Steered, TERMINAL, ToolCall, separator, fold,
    UNLOAD, is_admitted, model_calls, next_status,
)
from nbrun.core.recording import Exported, RecordedError, Replay
from nbrun.core.redaction import Redactor, RunSecrets, SecretRegistry, StreamRedactor
from nbrun.core.text import clean_text, exact, printable, visible
from nbrun.core.values import (
    Plain, REPR_KEY, has_placeholder, is_simple, is_whole, plain, readable, revived, shown, sized, type_name,
)
# ruff: isort: on

__all__ = [
    "Action", "AgentNotFound", "ApprovalRequested", "Artifact", "ArtifactFiles", "ArtifactLost", "ArtifactWriter",
    "BadOption", "BadRecording", "CallGroup", "CallbackHandle", "CancelCause", "CancelOutcome", "CancelReceipt",
    "CancelRequest", "CancelToken", "Cancelled", "ChildSummary", "Clock", "Entry", "Exported", "Fix", "IdConflict",
    "IdGenerator", "InterruptGuard", "Interrupted", "Journal", "JournalFiles",
    "Journals", "LIVE", "Latch", "LineBuffer", "LoopLatch", "ModelCall",
    "NbrunError", "NoResult", "NotPending", "NotResumable", "PackageMissing", "Plain", "Printed", "REPR_KEY",
    "RecordedError", "Redactor", "Replay", "Restored", "RunCancelled", "RunEvent", "RunFailed", "RunLost",
    "RunNotFinished", "RunNotFound", "RunOptions", "RunRecord", "RunRejected", "RunSecrets", "RunStatus", "Rung",
    "SecretRegistry", "SequentialIds", "SessionClosed", "State", "Steered", "Stepped", "Steps", "StoreDamaged",
    "StoreError", "StoreReadOnly", "StoreTooNew", "StoreUnavailable", "StreamRedactor", "SystemClock", "TERMINAL",
    "TimeOrderedIds",
    "ToolCall", "Turn", "UNLOAD", "UserError", "separator", "call_soon", "clean_text", "counted", "current_guard",
    "duration", "duration_s", "end_cancelled_wait", "exact", "fold", "folder_beside", "guarded", "has_placeholder",
    "is_admitted", "is_on_loop", "is_simple", "is_whole", "model_calls", "module_lock", "moment", "money", "OTHERS",
    "is_private", "open_regular", "secure", "need_stack", "next_status", "plain", "printable", "readable", "revived",
    "shown", "size_words", "sized", "spell_with", "trusted", "turns_of", "type_name", "visible", "wait_for_call",
    "with_fixes",
]
# fmt: on
