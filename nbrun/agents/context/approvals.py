"""Questions to a person: the agent waits, and the first answer counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.core import events as ev
from nbrun.core.cancellation import call_soon
from nbrun.core.errors import BadOption, NbrunError
from nbrun.core.interrupt_guard import guarded
from nbrun.core.latches import Latch
from nbrun.core.text import clean_text
from nbrun.core.values import Plain, plain, type_name

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from nbrun.core.cancellation import CancelRequest, CancelToken
    from nbrun.core.clock import Clock

    Tell = Callable[[ev.EventData], object]
    Waker = Callable[[], object]
    Lock = AbstractContextManager[object]

ALLOW = "allow"
DENY = "deny"

BY_DEADLINE = "deadline"
BY_CANCEL = "cancel"
BY_AGENT = "agent"  # it does not wait any more
BY_END = "the run's end"
BY_ALWAYS = "always"  # a person has allowed this tool for the rest of the run

MAX_OPTIONS = 20
MAX_OPTION = 80
"""Characters of one option: it is the label of a button."""

ASK = "run.ask"

NOBODY = "nobody"
"""The policy of a run that would ask, where nobody could answer."""

MOMENT_S = 0.1
"""How long a cancelled wait is left to the cancel of its task."""


class Answer(msgspec.Struct, frozen=True):
    """What came of a question; true unless it was denied.

    `decision` is `allow`, `deny` or the option that was chosen; `args` are those that count: the person's,
    where they were changed, else the agent's own; `text` is what the person said to it.
    """

    decision: str
    args: object = None
    text: str = ""
    by: str = ""

    def __bool__(self) -> bool:
        """Return whether it was not denied."""
        return self.decision != DENY


class Asking(Coroutine[Any, Any, Answer]):
    """A question to be awaited: it is asked when it is awaited, and has no truth before.

    An ordinary coroutine is true, so that a forgotten `await` would be a permission. One that is never awaited
    is told of in the run's log.

    Parameters
    ----------
    call : what the agent has called, for the case that it never awaits it.
    """

    def __init__(
        self, questions: Questions, call: str, ask: Callable[[], Coroutine[Any, Any, Answer]]
    ) -> None:
        self._questions = questions
        self._call = call
        self._ask = ask
        self._begun: Coroutine[Any, Any, Answer] | None = None
        self._questions.note_made(call)

    @property
    def _work(self) -> Coroutine[Any, Any, Answer]:
        if self._begun is None:
            self._questions.note_awaited(self._call)
            self._begun = self._ask()
        return self._begun

    def __await__(self) -> Generator[Any, Any, Answer]:
        """Ask, and wait for the answer."""
        return self._work.__await__()

    def send(self, value: Any) -> Any:
        """Go on, as a coroutine does."""
        return self._work.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise within, as in a coroutine."""
        return self._work.throw(*error)

    def close(self) -> None:
        """End it without an answer."""
        self._work.close()

    def __bool__(self) -> bool:
        """Raise: there is no answer yet."""
        self.close()
        raise NbrunError(
            "nobody was asked: write `await run.ask(…)`, in a sync agent run.ask_sync(…)"
        )


class _Question:
    """A question, and who waits for its answer; guarded by the lock of `Questions`."""

    __slots__ = ("answer", "args", "asked", "wakers")

    def __init__(self, asked: ev.ApprovalRequested, args: object) -> None:
        self.asked = asked
        self.args = args
        self.answer: Answer | None = None
        self.wakers: list[Waker] = []


class Questions:
    """What one attempt asks of people: the arbiter of its answers.

    Threads: any method, from any thread or event loop. `lock` is that of whoever sends the events, so that
    what is decided and what is logged have one order; it can be entered again. Nothing of the agent's is
    called while it is held.

    Parameters
    ----------
    tell : appends an event to the run's log.
    policy : `ask`, `auto`, `deny`, or `nobody`, which denies because nobody could answer.
    """

    __slots__ = (
        "_allowed", "_clock", "_count", "_is_closed", "_is_told", "_is_waiting", "_is_watching", "_lock",
        "_pending", "_policy", "_tell", "_token", "_unawaited",
    )  # fmt: skip

    def __init__(
        self, token: CancelToken, tell: Tell, lock: Lock, clock: Clock, policy: str = "ask"
    ) -> None:
        self._token = token
        self._tell = tell
        self._lock = lock
        self._clock = clock
        self._policy = policy
        self._pending: dict[str, _Question] = {}
        self._count = 0
        self._is_watching = False
        self._is_told = False
        self._is_closed = False
        self._is_waiting = False
        self._allowed: frozenset[str] = frozenset()  # tools: replaced, as above
        self._unawaited: tuple[str, ...] = ()  # replaced, never changed: most runs ask nothing

    def note_made(self, call: str) -> None:
        """Take note of a question that will be asked when it is awaited."""
        with guarded(), self._lock:
            self._unawaited = (*self._unawaited, call)

    def note_awaited(self, call: str) -> None:
        """Take note that it was."""
        with guarded(), self._lock:
            if call in self._unawaited:  # else its run has ended, and has told of it
                calls = list(self._unawaited)
                calls.remove(call)
                self._unawaited = tuple(calls)

    async def ask(
        self, message: str, args: object, options: object, tool_id: str | None, timeout_s: float | None,
        tool: str = "", is_editable: bool = True,
    ) -> Answer:  # fmt: skip
        """Ask, and return the answer; a wait that is given up withdraws its question."""
        question = self._open(message, args, options, tool_id, timeout_s, tool, is_editable)
        ended_by = BY_AGENT
        try:
            await woken(lambda wake: self._on_answer(question, wake), timeout_s)
            ended_by = BY_DEADLINE
        finally:
            answer = self._close(question, ended_by)
        if answer.by == BY_CANCEL:
            await leave_to_cancel(self._token)
        return answer

    def ask_sync(
        self, message: str, args: object, options: object, tool_id: str | None, timeout_s: float | None,
        tool: str = "", is_editable: bool = True,
    ) -> Answer:  # fmt: skip
        """Ask, and block until the answer is there."""
        _refuse_on_loop()
        question = self._open(message, args, options, tool_id, timeout_s, tool, is_editable)
        flag, ended_by = Latch(), BY_AGENT
        try:
            self._on_answer(question, flag.set)
            flag.wait(timeout_s)
            ended_by = BY_DEADLINE
        finally:
            answer = self._close(question, ended_by)
        if answer.by == BY_CANCEL:
            self._token.raise_if_cancelled()
        return answer

    def answer(self, body: dict[str, object]) -> str:
        """Take a person's answer; return `resolved`, or why it changed nothing. The first one counts.

        Parameters
        ----------
        body : `id`, `decision`, and perhaps `args`, `text`, `by`; `always` allows the tool from here on.
        """
        asked_id, decision = str(body.get("id")), str(body.get("decision"))
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
            if decision not in choices(asked):
                return "bad_decision"
            if edited is not None and not asked.editable:
                return "not_editable"
            args = question.args if edited is None else edited
            is_always = body.get("always") is True and decision == ALLOW and bool(asked.tool)
            self._settle(question, Answer(decision, args, text, by), edited, is_always)
            if is_always:
                self._allow_from_here(asked.tool)
        return "resolved"

    def _allow_from_here(self, tool: str) -> None:
        """Ask for a tool no more in this run; what is being asked for it is answered with that."""
        self._allowed |= {tool}
        for question in list(self._pending.values()):
            if self._is_allowed(question.asked) and not self._is_late(question.asked):
                self._settle(question, Answer(ALLOW, question.args, by=BY_ALWAYS))

    def _is_allowed(self, asked: ev.ApprovalRequested) -> bool:
        return asked.tool in self._allowed and not asked.options

    def _is_late(self, asked: ev.ApprovalRequested) -> bool:
        return asked.deadline is not None and self._clock.now() >= asked.deadline

    def close(self) -> None:
        """Deny what is pending, and all that is asked from now on: the run ends."""
        with self._lock:
            self._is_closed = True
            self._tell_forgotten()
            for question in list(self._pending.values()):
                self._settle(question, Answer(DENY, question.args, by=BY_END))

    def _tell_forgotten(self) -> None:
        """Say once of questions that were never awaited that nobody was asked; a cancel may have come between."""
        calls, self._unawaited = self._unawaited, ()
        if calls and not self._token.cancelled:
            call = calls[0]
            times = f", {len(calls)} times" if len(calls) > 1 else ""
            aside = ", in a sync agent run.ask_sync(…)" if call == ASK else ""
            words = (
                f"{call}() was not awaited{times}: nobody was asked; write `await {call}(…)`{aside}"
            )
            self._tell(ev.Log(words, "warning"))

    def _open(
        self, message: str, args: object, options: object, tool_id: str | None, timeout_s: float | None,
        tool: str = "", is_editable: bool = True,
    ) -> _Question:  # fmt: skip
        self._token.raise_if_cancelled()
        message, words, stored = _text(message, "message"), _options(options), plain(args)
        tool = _text(tool, "tool")
        if timeout_s is not None and not timeout_s > 0:
            raise BadOption(f"timeout_s is {timeout_s}; give seconds above 0")
        with guarded(), self._lock:
            self._count += 1
            deadline = None if timeout_s is None else self._clock.now() + timeout_s
            asked = ev.ApprovalRequested(
                f"ask-{self._count}",
                message,
                tool_id,
                stored,
                words,
                deadline,
                tool,
                bool(is_editable),
            )
            question = _Question(asked, args)
            if self._is_closed:
                question.answer = Answer(DENY, args, by=BY_END)
                return question
            is_first = not self._pending
            self._pending[asked.id] = question
            self._tell(asked)
            if self._token.cancelled:  # since the look at it above: its callback found nothing
                self._settle(question, Answer(DENY, args, by=BY_CANCEL))
            elif (decided := self._decided(question)) is not None:
                self._settle(question, decided)
            elif is_first:
                self._is_waiting = True
                self._tell(ev.RunWaiting("approval"))
            self._watch()
        return question

    def _decided(self, question: _Question) -> Answer | None:
        """Return what the policy answers, or None where a person is to be asked."""
        match self._policy:
            case "auto":
                return Answer(choices(question.asked)[0], question.args, by="--approve auto")
            case "deny":
                return Answer(DENY, question.args, by="--approve deny")
            case "nobody":
                if not self._is_told:
                    self._is_told = True
                    words = (
                        "nobody can answer in a headless notebook: what the agent asks is denied; "
                    )
                    self._tell(ev.Log(words + "use --approve auto to allow it", "warning"))
                return Answer(DENY, question.args, by=NOBODY)
            case _ if self._is_allowed(question.asked):
                return Answer(ALLOW, question.args, by=BY_ALWAYS)
            case _:
                return None

    def _watch(self) -> None:
        """Have a cancel reject what is pending; a run that never asks needs no callback."""
        if not self._is_watching:
            self._is_watching = True
            self._token.add_first(self._reject)

    def _reject(self, _request: CancelRequest) -> None:
        with guarded(), self._lock:
            for question in list(self._pending.values()):
                self._settle(question, Answer(DENY, question.args, by=BY_CANCEL))

    def _on_answer(self, question: _Question, wake: Waker) -> None:
        with guarded(), self._lock:
            if question.answer is None:
                question.wakers.append(wake)
                return
        wake()

    def _close(self, question: _Question, by: str) -> Answer:
        """Return the answer; where none came, a denial by the one that ended the wait."""
        with guarded(), self._lock:
            if question.answer is None:
                # The cancel may have come to this task before it came to `_reject`.
                by = BY_CANCEL if self._token.cancelled else by
                self._settle(question, Answer(DENY, question.args, by=by))
            assert question.answer is not None  # noqa: S101 - it was settled, here or before
            return question.answer

    def _settle(
        self, question: _Question, answer: Answer, edited: Plain = None, is_always: bool = False
    ) -> None:
        """Decide a pending question; the caller holds the lock."""
        question.answer = answer
        asked_id = question.asked.id
        del self._pending[asked_id]
        self._tell(
            ev.ApprovalResolved(
                asked_id, answer.decision, edited, answer.by, answer.text, is_always
            )
        )
        if self._is_waiting and not self._pending and answer.by not in (BY_CANCEL, BY_END):
            self._is_waiting = False
            self._tell(ev.RunResumed())
        for wake in question.wakers:
            wake()


def choices(asked: ev.ApprovalRequested) -> tuple[str, ...]:
    """Return the decisions that a question takes; the last one is always to deny."""
    return (*(asked.options or (ALLOW,)), DENY)


async def woken(on_event: Callable[[Waker], object], timeout_s: float | None = None) -> None:
    """Return when the waker given to `on_event` was called, from any thread, or the time is over."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    on_event(lambda: call_soon(loop, wake))
    await asyncio.wait((future,), timeout=timeout_s)


async def leave_to_cancel(token: CancelToken) -> None:
    """End a wait in a cancelled run: by the cancel of its task, which is on its way.

    Raised here at once, that cancel would hit the agent a second time, in the middle of its cleanup. A task on
    a loop of the agent's own is cancelled by nobody, so it ends here.

    Raises
    ------
    Cancelled, asyncio.CancelledError
        Always.
    """
    await asyncio.sleep(MOMENT_S)
    token.raise_if_cancelled()


def _refuse_on_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise NbrunError("run.ask_sync() would hold up this event loop; use: await run.ask(…)")


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise BadOption(f"{what} is a text (str), not {type_name(value)}")
    return clean_text(value)


def _options(options: object) -> tuple[str, ...]:
    """Return the words to choose from; a text alone would be taken for its letters."""
    if isinstance(options, str) or not isinstance(options, list | tuple):
        raise BadOption("options is a list of texts, such as ('red', 'green')")
    words = tuple(_text(word, "an option") for word in options)
    if len(set(words)) < len(words) or DENY in words or "" in words:
        raise BadOption(
            f"options must differ and be none of '', '{DENY}': to deny is always possible"
        )
    if len(words) > MAX_OPTIONS or any(len(word) > MAX_OPTION for word in words):
        raise BadOption(f"give at most {MAX_OPTIONS} options of at most {MAX_OPTION} characters")
    return words
