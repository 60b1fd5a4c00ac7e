"""The events of a run: their envelope, their types, their codec.

An event is one entry of a run's append-only log, numbered 0, 1, 2 … without gaps. Its `data` is one of the
structs below; its `type` is that struct's `TYPE`. Types are open: an event of an unknown type keeps its
data as a dict, and is stored and read back unchanged.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar

import msgspec

from nbrun.core.cancellation import CancelCause, Rung
from nbrun.core.text import exact, visible
from nbrun.core.values import Plain, is_simple, plain, shown, type_name


def visible_repr(struct: msgspec.Struct) -> str:
    """Return the repr of a struct with texts of an agent; Python counts the fillers of Hangul as printable."""
    return visible(msgspec.Struct.__repr__(struct))


class EventData(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The data of an event; the base of every type below."""

    # gc=False, here and in records: they hold plain data and can be in no cycle, and there are so many that the
    # garbage collector would spend more time on them than everything else does.

    TYPE: ClassVar[str] = ""

    __repr__ = visible_repr


class Unknown(EventData, frozen=True):
    """Data of a type that this version does not know, kept as it came."""

    type: str
    body: Plain = None


class Usage(EventData, frozen=True):
    """Tokens and requests so far, by OpenTelemetry's GenAI names; a host sends totals, never differences."""

    TYPE: ClassVar[str] = "usage"
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 0
    cost_usd: float | None = None
    # False: a stream was cut before its provider reported, so this is a lower bound.
    exact: bool = True

    def plus(self, other: Usage) -> Usage:
        """Return both together; the cost is that of the priced ones."""
        costs = [cost for cost in (self.cost_usd, other.cost_usd) if cost is not None]
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.requests + other.requests,
            sum(costs) if costs else None,
            self.exact and other.exact,
        )

    def without(self, before: Usage) -> Usage:
        """Return the usage beyond `before`, which is a part of it."""
        cost = self.cost_usd
        if cost is not None and before.cost_usd is not None:
            cost = max(0.0, cost - before.cost_usd)
        return Usage(
            max(0, self.input_tokens - before.input_tokens),
            max(0, self.output_tokens - before.output_tokens),
            max(0, self.cache_read_tokens - before.cache_read_tokens),
            max(0, self.reasoning_tokens - before.reasoning_tokens),
            max(0, self.requests - before.requests),
            cost,
            self.exact,
        )


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An exception, as text."""

    type: str
    message: str
    traceback: str = ""

    __repr__ = visible_repr

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


# --- run ---------------------------------------------------------------------------------------------


ONCE = "once"
"""Marks, among its options, a run whose id was given: a store has it only once."""
REUSE = "reuse"
"""Marks, among its options, a retry that is answered from the journal of the run that it retries."""


RESUME, RETRY, REPLAY, CONTINUE = "resume", "retry", "replay", "continue"


class Origin(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The run that another one resumes, retries, replays or continues."""

    kind: str  # RESUME, RETRY, REPLAY or CONTINUE
    run_id: str
    number: int | None = None  # None for a run of another store
    name: str = ""
    tools: int = 0  # tool calls of the runs that it resumes

    __repr__ = visible_repr


class Member(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Which run of a set it is: the set's number, the place of its input, from 0, and the key of that, if any."""

    set: int
    index: int
    key: str | None = None

    __repr__ = visible_repr


class RunCreated(EventData, frozen=True):
    """The run exists; its agent has not been entered. A resumed run starts with the usage of the run before it."""

    TYPE: ClassVar[str] = "run.created"
    session_id: str
    name: str
    agent: str
    prompt: str = ""
    number: int | None = None  # set by the store in the insert
    parent_id: str | None = None
    cell_id: str | None = None
    model: str | None = None
    tags: dict[str, str] = {}
    options: dict[str, Plain] = {}
    target: str | None = None  # the agent's name in the notebook, if it was started by that
    origin: Origin | None = None
    usage: Usage = Usage()
    member: Member | None = None

    def inputs(self) -> str:
        """Return a hash of the run's inputs: agent, prompt, model, options."""
        parts = [self.agent, self.prompt, self.model, sorted(self.options.items())]
        return hashlib.sha256(_encoder.encode(parts)).hexdigest()


class RunStarted(EventData, frozen=True):
    """The agent was entered."""

    TYPE: ClassVar[str] = "run.started"
    host: str = ""


class RunPhase(EventData, frozen=True):
    """The agent reports what it is doing."""

    TYPE: ClassVar[str] = "run.phase"
    phase: str


class RunWaiting(EventData, frozen=True):
    """The run waits for an answer."""

    TYPE: ClassVar[str] = "run.waiting"
    what: str = ""


class RunResumed(EventData, frozen=True):
    """The question was answered; the run continues."""

    TYPE: ClassVar[str] = "run.resumed"


PROCESS_DIED = "ProcessDied"
"""The type of the error of a run whose process was killed, or has exited."""


class RunCompleted(EventData, frozen=True):
    """The agent has completed; without an output of its own, its text is its output."""

    TYPE: ClassVar[str] = "run.completed"
    output: Plain = None
    usage: Usage | None = None
    detached: tuple[str, ...] = ()  # names of what still runs


class RunFailed(EventData, frozen=True):
    """The agent raised, or its host died."""

    TYPE: ClassVar[str] = "run.failed"
    error: ErrorInfo
    output: Plain = None  # what there was so far
    usage: Usage | None = None
    detached: tuple[str, ...] = ()


class RunCancelled(EventData, frozen=True):
    """The run was asked to stop, and has stopped."""

    TYPE: ClassVar[str] = "run.cancelled"
    cause: CancelCause
    reason: str | None = None
    output: Plain = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    detached: tuple[str, ...] = ()


class RunLost(EventData, frozen=True):
    """The kernel of the run died, or its host vanished."""

    TYPE: ClassVar[str] = "run.lost"
    reason: str = ""
    last_event_at: float | None = None


class AttemptLost(EventData, frozen=True):
    """An attempt at the run has failed, or its host died; another one follows, from the last checkpoint if any."""

    TYPE: ClassVar[str] = "attempt.lost"
    number: int
    error: ErrorInfo
    usage: Usage | None = None


# --- cancel ------------------------------------------------------------------------------------------


class CancelRequested(EventData, frozen=True):
    """A user, or a limit, asked the run to stop."""

    TYPE: ClassVar[str] = "cancel.requested"
    cause: CancelCause
    reason: str | None = None
    by: str = ""


class CancelEscalated(EventData, frozen=True):
    """A step of a cancel was taken."""

    TYPE: ClassVar[str] = "cancel.escalated"
    rung: Rung
    note: str = ""


class DetachedFinished(EventData, frozen=True):
    """Work that a run had left behind has ended; the only event that may follow an ending."""

    TYPE: ClassVar[str] = "detached.finished"
    name: str
    refused: int = 0


# --- text --------------------------------------------------------------------------------------------


class TextDelta(EventData, frozen=True):
    """More of the answer."""

    TYPE: ClassVar[str] = "text.delta"
    text: str


class ReasoningDelta(EventData, frozen=True):
    """More of the model's reasoning."""

    TYPE: ClassVar[str] = "reasoning.delta"
    text: str


class Message(EventData, frozen=True):
    """A complete message, so that a replay needs no deltas."""

    TYPE: ClassVar[str] = "message"
    role: str
    text: str


# --- tools -------------------------------------------------------------------------------------------


STEP, STEP_KNOWN = "step", "kept step"
"""Kinds of a tool: a step that is called, and one whose result is known."""


class ToolStarted(EventData, frozen=True):
    """A tool was entered."""

    TYPE: ClassVar[str] = "tool.started"
    id: str
    name: str
    kind: str = "function"
    args: Plain = None


class ToolArgsDelta(EventData, frozen=True):
    """More of a tool's arguments, as the model writes them."""

    TYPE: ClassVar[str] = "tool.args.delta"
    id: str
    text: str


class ToolProgress(EventData, frozen=True):
    """The progress of a tool."""

    TYPE: ClassVar[str] = "tool.progress"
    id: str
    done: float
    total: float | None = None
    label: str = ""


class ToolFinished(EventData, frozen=True):
    """A tool has ended: `ok`, `error`, `denied` or `cancelled`."""

    TYPE: ClassVar[str] = "tool.finished"
    id: str
    status: str = "ok"
    result: Plain = None
    ms: float = 0.0


# --- model calls -------------------------------------------------------------------------------------


_Amount = Annotated[float, msgspec.Meta(ge=0, le=1e15)]


class CallStarted(EventData, frozen=True):
    """A request to a model was begun; `parent` is the id of the tool that makes it, or empty."""

    TYPE: ClassVar[str] = "call.started"
    id: str
    provider: str = ""
    model: str = ""
    parent: str = ""


class CallWaiting(EventData, frozen=True):
    """A request waits for its turn, until about then (epoch seconds, UTC); without a reason, it waits no longer."""

    TYPE: ClassVar[str] = "call.waiting"
    id: str
    reason: str = ""
    until: _Amount = 0.0


class CallFinished(EventData, frozen=True):
    """A request to a model has ended: `ok`, `error` or `cancelled`."""

    TYPE: ClassVar[str] = "call.finished"
    id: str
    status: str = "ok"
    ms: _Amount = 0.0  # without the wait
    first_ms: _Amount | None = None  # until the first bytes of the answer
    usage: Usage | None = None  # None: the provider has not reported it
    error: str = ""
    waited_ms: _Amount = 0.0  # for its turn, before it was sent
    source: str = "live"  # where the answer comes from: its provider; or "journal", "cassette"
    retry_after: _Amount | None = None  # seconds that the provider asks to wait


# --- questions and messages --------------------------------------------------------------------------


class ApprovalRequested(EventData, frozen=True):
    """The run asks its user a question."""

    TYPE: ClassVar[str] = "approval.requested"
    id: str
    message: str
    tool_id: str | None = None
    args: Plain = None
    options: tuple[str, ...] = ()
    deadline: float | None = None
    tool: str = ""  # the tool's name
    editable: bool = True  # whether the user may change the args
    hidden: tuple[str, ...] = ()  # the names of the secrets that are replaced in it
    input: str = ""  # `text`: the answer is a line of text; `secret`: one that is not stored

    @property
    def digest(self) -> str:
        """A short hash of what the user decides about: a page sends it back, so that it allows what it has shown."""
        shown = (self.id, self.message, self.args, self.options, self.tool, self.hidden)
        return hashlib.blake2b(msgspec.msgpack.encode(shown), digest_size=8).hexdigest()


class ApprovalResolved(EventData, frozen=True):
    """The user, or the deadline, has decided: `allow`, `deny` or one of the options."""

    TYPE: ClassVar[str] = "approval.resolved"
    id: str
    decision: str
    args: Plain = None  # only if the user has changed them
    by: str = ""
    text: str = ""
    always: bool = False  # the run may use this tool without asking again


class Steer(EventData, frozen=True):
    """A message into a running agent."""

    TYPE: ClassVar[str] = "steer"
    text: str
    by: str = ""
    id: str = ""  # set by the sender, to recognise its receipt


class SteerReady(EventData, frozen=True):
    """The agent has looked for messages for the first time: it can read them."""

    TYPE: ClassVar[str] = "steer.ready"


class SteerTaken(EventData, frozen=True):
    """The agent has read the `count` oldest messages."""

    TYPE: ClassVar[str] = "steer.taken"
    count: int


# --- work --------------------------------------------------------------------------------------------


class StepStarted(EventData, frozen=True):
    """A step of the agent's work began."""

    TYPE: ClassVar[str] = "step.started"
    name: str


class StepFinished(EventData, frozen=True):
    """A step of the agent's work ended."""

    TYPE: ClassVar[str] = "step.finished"
    name: str


class Progress(EventData, frozen=True):
    """The progress of the run."""

    TYPE: ClassVar[str] = "progress"
    done: float
    total: float | None = None
    label: str = ""


class Log(EventData, frozen=True):
    """A line of the run's log: printed (`stdout`, `stderr`) or logged at a level."""

    TYPE: ClassVar[str] = "log"
    text: str
    level: str = "info"


class Checkpoint(EventData, frozen=True):
    """A state that the run can resume from was saved.

    `state` is there only between agent and session, never in the log: the store keeps a run's last one beside it.
    """

    TYPE: ClassVar[str] = "checkpoint"
    id: str
    size: int = 0
    state: bytes = b""


FILE_ID = "artifact-"
"""The ids of an agent's artifacts begin with this; the others are nbrun's own, for large values."""


class Artifact(EventData, frozen=True):
    """A large value or file was saved beside the log; `id` is unique in its run."""

    TYPE: ClassVar[str] = "artifact"
    id: str
    name: str
    size: int
    head: str = ""
    media_type: str = ""
    sha256: str = ""  # names its file, if there is one


class ChildStarted(EventData, frozen=True):
    """A child run began; it has a log of its own."""

    TYPE: ClassVar[str] = "child.started"
    run_id: str
    name: str = ""
    number: int | None = None


class ChildFinished(EventData, frozen=True):
    """A child run ended."""

    TYPE: ClassVar[str] = "child.finished"
    run_id: str
    status: str = ""
    usage: Usage | None = None


class Custom(EventData, frozen=True):
    """A value of the agent's own, under a name of its choice."""

    TYPE: ClassVar[str] = "custom"
    name: str
    value: Plain = None


class Raw(EventData, frozen=True):
    """An event of a framework that has no other type here."""

    TYPE: ClassVar[str] = "raw"
    source: str
    payload: Plain = None


# --- envelope and codec ------------------------------------------------------------------------------


class RunEvent(msgspec.Struct, frozen=True, gc=False):
    """One entry of a run's log.

    `seq` has no gaps and is set by the session at intake; `ts` is epoch seconds (UTC); `attempt` is 0 for events
    of the session itself, hosts count from 1; `parent` is the id of the tool or child run that it belongs to.
    """

    seq: int
    ts: float
    run_id: str
    attempt: int
    data: EventData
    parent: str | None = None

    @property
    def type(self) -> str:
        """The event's type, such as `text.delta`."""
        # Read several times for each event: mostly one look-up is enough.
        return self.data.TYPE or type_of(self.data)

    def __repr__(self) -> str:
        """Return one short line: its data may be a megabyte."""
        return visible(f"<RunEvent {self.seq} {shown(self.type, 60)}: {shown(repr(self.data), 120)}>")


END_TYPES = frozenset(cls.TYPE for cls in (RunCompleted, RunFailed, RunCancelled, RunLost))
INTERACTION_TYPES = frozenset(
    cls.TYPE for cls in (ApprovalRequested, ApprovalResolved, RunWaiting, RunResumed, Steer, SteerReady, SteerTaken)
)
DELTAS = (TextDelta, ReasoningDelta)
DELTA_TYPES = frozenset(cls.TYPE for cls in DELTAS)


def _subclasses(base: type[EventData]) -> dict[str, type[EventData]]:
    return {cls.TYPE: cls for cls in base.__subclasses__() if cls.TYPE}


TYPES: dict[str, type[EventData]] = _subclasses(EventData)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[str, msgspec.msgpack.Decoder[EventData]] = {
    name: msgspec.msgpack.Decoder(cls) for name, cls in TYPES.items()
}


def type_of(data: EventData) -> str:
    """Return the event type that `data` belongs to."""
    return data.type if isinstance(data, Unknown) else data.TYPE


PLAIN_WEIGHT = 200
_BULKY = ("text", "result", "args", "body", "output", "state")


def weight(data: EventData) -> int:
    """Return about how many bytes an event takes: what waits is bounded by it."""
    if isinstance(data, DELTAS) and isinstance(data.text, str):  # by far the most
        return PLAIN_WEIGHT + len(data.text)
    return PLAIN_WEIGHT + sum(size_of(value) for name in _BULKY if (value := getattr(data, name, None)) is not None)


def size_of(value: object) -> int:
    """Return about how many bytes JSON-like data takes."""
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, dict | list | tuple):
        return 0
    try:
        return len(_encoder.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError):  # an adapter let something through as it was
        return PLAIN_WEIGHT * len(value)


_STREAMED = (*DELTAS, ToolArgsDelta)
_NOT_FOR_AGENTS = END_TYPES | INTERACTION_TYPES | {RunCreated.TYPE, AttemptLost.TYPE, CancelRequested.TYPE}
"""Events that only the host or the session may send."""


def checked(data: EventData, parent: str | None = None) -> EventData:
    """Return what an agent sends as it is stored: later on, nobody runs its code by looking at it, or can change it.

    An event that cannot be stored becomes a warning. It runs the code of what is in the event, so call it where the
    agent's own code may run. Raises for what an agent may not send, in the agent, which then fails with its own
    mistake.
    """
    if parent is not None and type(parent) is not str:
        raise TypeError(f"parent must be an id (str), not {type_name(parent)}")
    if isinstance(data, _STREAMED):
        text = data.text if type(data.text) is str else exact(data.text)
        if isinstance(data, DELTAS):
            return data if text is data.text else type(data)(text)
        if type(data.id) is str:  # text is not encoded here: half of a surrogate pair may wait for the other one
            return data if text is data.text else type(data)(data.id, text)
    kind = type_of(data)
    if kind in _NOT_FOR_AGENTS:
        raise ValueError(f"an agent cannot send {kind}; it can return, raise or ask")
    try:
        # Not by the encoder, which runs code of what it is given, too, and hides what that raises.
        fields = {name: getattr(data, name) for name in data.__struct_fields__}
        made = {name: plain(part) for name, part in fields.items() if type(part) is not bytes and not _is_simple(part)}
        try:
            blob = encode_data(msgspec.structs.replace(data, **made) if made else data)
        except (ValueError, OverflowError):  # half of a surrogate pair, or more than 64 bits
            made = {name: plain(part) for name, part in fields.items() if type(part) is not bytes}
            blob = encode_data(msgspec.structs.replace(data, **made))
        stored = decode_data(kind, blob)
        if type(stored) is type(data):
            return stored
        why = f"a part of it has a wrong type: {shown(plain(fields), 200)}"
    except Exception as error:  # of the code of a part of it
        why = type(error).__name__
    return Log(f"an event of type {type(data).__name__} was left out ({why})", "warning")


_SCALARS = frozenset({int, float, bool, type(None)})


def _is_simple(part: object) -> bool:
    kind = type(part)
    if kind in _SCALARS or (kind is str and len(part) < PLAIN_WEIGHT):  # type: ignore[arg-type]  # most of them
        return True
    return is_simple(msgspec.structs.astuple(part) if kind is Usage else part)  # type: ignore[arg-type]


def encode_data(data: EventData) -> bytes:
    """Return the data of an event as MessagePack."""
    return _encoder.encode(data.body if isinstance(data, Unknown) else data)


def encode_exactly(data: EventData) -> bytes:
    """Return the same; raises `TypeError` for what would not be read back as it is, such as a part of a wrong type."""
    blob = encode_data(data)
    if type(decode_data(type_of(data), blob)) is not type(data):
        raise TypeError(f"a part of it has a wrong type: {shown(repr(data), 200)}")
    return blob


def decode_data(event_type: str, blob: bytes) -> EventData:
    """Return the data of a stored event.

    Data of an unknown type, or that does not fit its type (another version wrote it), becomes `Unknown`, with
    everything that was stored.
    """
    decoder = _decoders.get(event_type)
    if decoder is not None:
        try:
            return decoder.decode(blob)
        except (RecursionError, TypeError, ValueError):  # also DecodeError, and text that isn't UTF-8
            pass  # falls through to the type that takes anything
    try:
        return Unknown(event_type, msgspec.msgpack.decode(blob))
    except (msgspec.DecodeError, RecursionError, TypeError, ValueError):
        return Unknown(event_type, {"$damaged": len(blob) if isinstance(blob, bytes) else 0})
