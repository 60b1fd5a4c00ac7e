"""Questions to the user: the agent waits, and the first answer counts."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nbrun.core import (
    REPR_KEY,
    BadOption,
    CancelRequest,
    CancelToken,
    Clock,
    Latch,
    NbrunError,
    Plain,
    clean_text,
    end_cancelled_wait,
    events as ev,
    guarded,
    is_on_loop,
    need_stack,
    plain,
    type_name,
    wait_for_call,
)

if TYPE_CHECKING:
    import threading


ALLOW = "allow"
DENY = "deny"

BY_DEADLINE = "deadline"
BY_CANCEL = "cancel"
BY_AGENT = "agent"  # the agent stopped waiting
BY_END = "the run's end"
BY_ALWAYS = "always"  # the user has allowed this tool for the rest of the run

MAX_OPTIONS = 20
MAX_OPTION = 80
"""Characters of one option: it is the label of a button."""

ASK = "run.ask"

TEXT, SECRET = "text", "secret"
"""What a question asks for, if it is a line of text; a secret one is not stored."""

NOBODY = "nobody"
"""The policy of a run that would ask, where nobody could answer."""


class Answer(msgspec.Struct, frozen=True):
    """The answer to a question; true unless it was denied.

    `decision` is `allow`, `deny` or the chosen option, `args` are those to use, edited or not, `text` is the user's.
    """

    decision: str
    args: object = None
    text: str = ""
    by: str = ""

    def __bool__(self) -> bool:
        return self.decision != DENY


class Ask(NamedTuple):
    """What is asked: the parameters of `RunContext.ask()`."""

    message: object
    args: object = None
    options: object = ()
    tool_id: str | None = None
    timeout_s: float | None = None
    tool: object = ""
    editable: bool = True
    input: str = ""


class Question(Coroutine[Any, Any, Answer]):
    """A question, asked when it is awaited; if it never is, the run's log says so, and names the method, `call`.

    Before that it has no truth value: an ordinary coroutine is true, so a forgotten `await` would be a permission.
    """

    def __init__(self, approvals: Approvals, call: str, ask: Callable[[], Coroutine[Any, Any, Answer]]) -> None:
        self._approvals = approvals
        self._call = call
        self._ask = ask
        self._begun: Coroutine[Any, Any, Answer] | None = None
        approvals.note_made(call)

    @property
    def _asked(self) -> Coroutine[Any, Any, Answer]:
        if self._begun is None:
            self._approvals.note_awaited(self._call)
            self._begun = self._ask()
        return self._begun

    def __await__(self) -> Generator[Any, Any, Answer]:
        return self._asked.__await__()

    def send(self, value: Any) -> Any:
        """Continue, as a coroutine does."""
        return self._asked.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise inside, as in a coroutine."""
        return self._asked.throw(*error)

    def close(self) -> None:
        """End without an answer."""
        self._asked.close()

    def __bool__(self) -> bool:
        self.close()
        raise NbrunError("the question was not asked yet: write `await run.ask(…)`, or run.ask_sync(…) in a sync agent")


class _Pending:
    """An open question and who waits for its answer; guarded by the lock of `Approvals`."""

    __slots__ = ("answer", "args", "asked", "wakers")

    def __init__(self, asked: ev.ApprovalRequested, args: object) -> None:
        self.asked = asked
        self.args = args
        self.answer: Answer | None = None
        self.wakers: list[Callable[[], object]] = []


class Approvals:
    """The questions of one attempt; decides which answer counts.

    Threads: any method, from any thread or event loop. `lock` is the event sender's, so decisions and the log have
    the same order; it must be reentrant. No code of the agent is called while it is held.

    `send` appends an event to the run's log. The policy `nobody` denies because nobody could answer; the others are
    `ask`, `auto` and `deny`.
    """

    __slots__ = (
        "_allowed", "_clock", "_has_warned", "_is_closed", "_is_waiting", "_is_watching", "_lock",
        "_pending", "_policy", "_send", "_token", "_unawaited",
    )  # fmt: skip

    def __init__(
        self,
        token: CancelToken,
        send: Callable[[ev.EventData], object],
        lock: threading.RLock,
        clock: Clock,
        policy: str = "ask",
    ) -> None:
        self._token = token
        self._send = send
        self._lock = lock
        self._clock = clock
        self._policy = policy
        self._pending: dict[str, _Pending] = {}
        self._is_watching = self._has_warned = self._is_closed = self._is_waiting = False
        # Replaced, never changed: most runs ask nothing.
        self._allowed: frozenset[str] = frozenset()  # tools
        self._unawaited: tuple[str, ...] = ()

    def note_made(self, call: str) -> None:
        """Note a question that will be asked when it is awaited."""
        with guarded(), self._lock:
            self._unawaited = (*self._unawaited, call)

    def note_awaited(self, call: str) -> None:
        """Note that it was awaited."""
        with guarded(), self._lock:
            if call in self._unawaited:  # else its run has ended and reported it
                calls = list(self._unawaited)
                calls.remove(call)
                self._unawaited = tuple(calls)

    async def ask(self, ask: Ask) -> Answer:
        """Ask, and return the answer; if the wait is cancelled, the question is withdrawn."""
        question = self._open(ask)
        ended_by = BY_AGENT
        try:
            await wait_for_call(lambda wake: self._on_answer(question, wake), ask.timeout_s)
            ended_by = BY_DEADLINE
        finally:
            answer = self._close(question, ended_by)
        if answer.by == BY_CANCEL:
            await end_cancelled_wait(self._token)
        return answer

    def ask_sync(self, ask: Ask) -> Answer:
        """Ask, and block until the answer is there."""
        _refuse_on_loop()
        question = self._open(ask)
        latch, ended_by = Latch(), BY_AGENT
        try:
            self._on_answer(question, latch.set)
            latch.wait(ask.timeout_s)
            ended_by = BY_DEADLINE
        finally:
            answer = self._close(question, ended_by)
        if answer.by == BY_CANCEL:
            self._token.raise_if_cancelled()
        return answer

    def answer(self, body: dict[str, object]) -> str:
        """Take the user's answer; return `resolved`, or why it changed nothing. The first one counts.

        It has `id`, `decision` or `choice` (its number among `choices()`), optionally `args`, `text`, `by`; `always`
        allows the tool for the rest of the run.
        `seen` are the arguments as the user saw them: a secret that was hidden there keeps its value in edited ones.
        """
        asked_id, decision, choice = str(body.get("id")), str(body.get("decision")), body.get("choice")
        seen: Plain = body.get("seen")  # type: ignore[assignment]  # the same
        text, by = str(body.get("text") or ""), str(body.get("by") or "")
        edited: Plain = body.get("args")  # type: ignore[assignment]  # the session has made it plain
        with self._lock:
            question = self._pending.get(asked_id)
            if question is None:
                return "not_pending"
            asked = question.asked
            if self._is_late(asked):
                self._settle(question, Answer(DENY, question.args, by=BY_DEADLINE))
                return "too_late"
            possible = choices(asked)
            if isinstance(choice, int) and 0 <= choice < len(possible):
                decision = possible[choice]
            if decision not in possible:
                return "bad_decision"
            if edited is not None and not asked.editable:
                return "not_editable"
            args = question.args if edited is None else _revealed(edited, seen, asked.args)
            is_always = body.get("always") is True and decision == ALLOW and bool(asked.tool)
            self._settle(question, Answer(decision, args, text, by), edited, is_always)
            if is_always:
                self._allow_always(asked.tool)
        return "resolved"

    def _allow_always(self, tool: str) -> None:
        """Allow a tool for the rest of the run, and with it the pending questions about it."""
        self._allowed |= {tool}
        for question in list(self._pending.values()):
            if self._is_allowed(question.asked) and not self._is_late(question.asked):
                self._settle(question, Answer(ALLOW, question.args, by=BY_ALWAYS))

    def _is_allowed(self, asked: ev.ApprovalRequested) -> bool:
        return asked.tool in self._allowed and not asked.options

    def _is_late(self, asked: ev.ApprovalRequested) -> bool:
        return asked.deadline is not None and self._clock.now() >= asked.deadline

    def close(self) -> None:
        """Deny what is pending and whatever is asked from now on: the run ends."""
        with self._lock:
            self._is_closed = True
            self._report_unawaited()
            for question in list(self._pending.values()):
                self._settle(question, Answer(DENY, question.args, by=BY_END))

    def _report_unawaited(self) -> None:
        """Warn of questions that were never awaited, unless a cancel prevented it."""
        calls, self._unawaited = self._unawaited, ()
        if calls and not self._token.cancelled:
            call = calls[0]
            times = f", {len(calls)} times" if len(calls) > 1 else ""
            hint = ", or run.ask_sync(…) in a sync agent" if call == ASK else ""
            words = f"{call}() was not awaited{times}, so nobody was asked; write `await {call}(…)`"
            self._send(ev.Log(words + hint, "warning"))

    def _open(self, ask: Ask) -> _Pending:
        self._token.raise_if_cancelled()
        message, tool = _text(ask.message, "message"), _text(ask.tool, "tool")
        tool_id = None if ask.tool_id is None else _text(ask.tool_id, "tool_id")
        options, args, timeout_s = _options(ask.options), _frozen(ask.args), ask.timeout_s
        stored = plain(args)
        if timeout_s is not None and not timeout_s > 0:
            raise BadOption(f"timeout_s must be greater than 0, not {timeout_s}")
        need_stack()
        with guarded(), self._lock:
            asked_id = f"ask-{os.urandom(4).hex()}"  # not to be guessed by a model, which names its own calls
            deadline = None if timeout_s is None else self._clock.now() + timeout_s
            asked = ev.ApprovalRequested(
                asked_id, message, tool_id, stored, options, deadline, tool, bool(ask.editable), input=ask.input
            )
            question = _Pending(asked, args)
            if self._is_closed:
                question.answer = Answer(DENY, args, by=BY_END)
                return question
            is_first = not self._pending
            self._pending[asked_id] = question
            self._send(asked)
            if self._token.cancelled:  # since the check above: the token's callback found nothing
                self._settle(question, Answer(DENY, args, by=BY_CANCEL))
            elif (decided := self._decided(question)) is not None:
                self._settle(question, decided)
            elif is_first:
                self._is_waiting = True
                self._send(ev.RunWaiting("approval"))
            if not self._is_watching:  # a run that never asks needs no callback
                self._is_watching = True
                self._token.add_first(self._reject)
        return question

    def _decided(self, question: _Pending) -> Answer | None:
        """Return the policy's answer, or None if the user has to answer."""
        match self._policy:
            case "auto":
                return Answer(choices(question.asked)[0], question.args, by="--approve auto")
            case "deny":
                return Answer(DENY, question.args, by="--approve deny")
            case "nobody":
                if not self._has_warned:
                    self._has_warned = True
                    words = "nobody can answer in a headless notebook, so questions are denied; "
                    self._send(ev.Log(words + "use --approve auto to allow them", "warning"))
                return Answer(DENY, question.args, by=NOBODY)
            case _ if self._is_allowed(question.asked):
                return Answer(ALLOW, question.args, by=BY_ALWAYS)
            case _:
                return None

    def _reject(self, _request: CancelRequest) -> None:
        with guarded(), self._lock:
            for question in list(self._pending.values()):
                self._settle(question, Answer(DENY, question.args, by=BY_CANCEL))

    def _on_answer(self, question: _Pending, wake: Callable[[], object]) -> None:
        with guarded(), self._lock:
            if question.answer is None:
                question.wakers.append(wake)
                return
        wake()

    def _close(self, question: _Pending, by: str) -> Answer:
        """Return the answer, or a denial by what ended the wait."""
        with guarded(), self._lock:
            if question.answer is None:
                # The cancel may have reached this task before `_reject`.
                by = BY_CANCEL if self._token.cancelled else by
                self._settle(question, Answer(DENY, question.args, by=by))
            assert question.answer is not None  # noqa: S101 - it was settled, here or before
            return question.answer

    def _settle(self, question: _Pending, answer: Answer, edited: Plain = None, is_always: bool = False) -> None:
        """Decide a pending question; the caller holds the lock."""
        question.answer = answer
        asked_id = question.asked.id
        del self._pending[asked_id]
        text = "" if question.asked.input == SECRET else answer.text
        self._send(ev.ApprovalResolved(asked_id, answer.decision, edited, answer.by, text, is_always))
        if self._is_waiting and not self._pending and answer.by not in (BY_CANCEL, BY_END):
            self._is_waiting = False
            self._send(ev.RunResumed())
        for wake in question.wakers:
            wake()


def choices(asked: ev.ApprovalRequested) -> tuple[str, ...]:
    """Return the possible decisions; the last one is always `deny`."""
    return (*(asked.options or (ALLOW,)), DENY)


def _frozen(args: object) -> object:
    """Return arguments that nobody else can change while the user decides; what is shown as its `repr` as it is."""
    if type(args) is dict:
        return {name: _frozen(part) for name, part in args.items()}
    if type(args) is list or type(args) is tuple:
        return type(args)(map(_frozen, args))
    stored = plain(args)
    if isinstance(stored, dict) and REPR_KEY in stored:
        return args
    try:
        return copy.deepcopy(args)
    except Exception:  # its own code may raise anything
        return args


def _revealed(edited: Plain, seen: Plain, original: Plain) -> Plain:
    """Return edited arguments with the hidden secrets back in their places, and only there.

    A placeholder that stands elsewhere stays as it is: a model may have written it, in the hope of the value.
    """
    match edited, seen, original:
        case dict(), dict(), dict():
            names = dict(zip(seen, original, strict=False))  # they may hold a secret as well
            return {
                names.get(name, name): _revealed(part, seen[name], original[names[name]]) if name in names else part
                for name, part in edited.items()
            }
        case list(), list(), list() if len(edited) == len(seen):
            return [_revealed(*parts) for parts in zip(edited, seen, original, strict=False)]
        case list(), list(), list():  # some were added or removed
            return [original[seen.index(part)] if part in seen else part for part in edited]
        case str(), str(), str() if seen != original:
            parts = _PLACEHOLDER.split(seen)  # every second one is a placeholder
            found = re.fullmatch("(.*?)".join(map(re.escape, parts[::2])), original, re.DOTALL)
            values = dict(zip(parts[1::2], found.groups(), strict=True)) if found else {}
            return "".join(values.get(part, part) for part in _PLACEHOLDER.split(edited))
        case _:
            return edited


_PLACEHOLDER = re.compile(r"(\[[^\[\]]+\])")


def _refuse_on_loop() -> None:
    if is_on_loop():
        raise NbrunError("run.ask_sync() would block this event loop; use `await run.ask(…)`")


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise BadOption(f"{what} must be a str, not {type_name(value)}")
    return clean_text(value)


def _options(options: object) -> tuple[str, ...]:
    """Return the options, checked; a single str would be taken for its letters."""
    if isinstance(options, str) or not isinstance(options, list | tuple):
        raise BadOption("options must be a list or tuple of str, such as ('red', 'green')")
    words = tuple(_text(word, "an option") for word in options)
    if len(set(words)) < len(words) or DENY in words or "" in words:
        raise BadOption(f"options must be unique, not empty and not '{DENY}', which is always possible")
    if len(words) > MAX_OPTIONS or any(len(word) > MAX_OPTION for word in words):
        raise BadOption(f"there may be at most {MAX_OPTIONS} options of at most {MAX_OPTION} characters")
    return words
