"""One model call of a run: its events, its usage, and its end when the run is cancelled."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from msgspec import structs

from nbrun.agents import Cancelled, RunContext, events, guarded, pricing
from nbrun.calls.forms import MAX_REQUEST, BodyReader, Target
from nbrun.calls.governor import GOVERNOR, Turn
from nbrun.calls.journal import Tape, find_answer
from nbrun.core import Latch, NbrunError, clean_text, wait_for_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nbrun.calls.journal import Answer, Asked, Decode
    from nbrun.core.journal import Journal

OK, ERROR, CANCELLED = "ok", "error", "cancelled"
STORED_WITHIN_S = 5.0  # the writer gives up a disk that does not answer before that


class Call:
    """One request of a run to a provider, or to another server: then only its cancel is of interest.

    `cut` closes the connection that the request uses, and no other. Threads: one at a time makes the request;
    `cut` is called by whichever fires the token, and `finish` by whichever closes the response.

    Parameters
    ----------
    answer : what it is answered from, without a request; None: whoever it is for is asked.
    tape : records what it is answered.
    """

    __slots__ = (
        "_before", "_began", "_cut", "_first_ms", "_is_limited", "_is_over", "_lock", "_now", "_reader", "_status",
        "_tape", "_token", "_turn", "answer", "id", "retry_after", "run", "source", "target", "waited_ms",
    )  # fmt: skip

    def __init__(
        self,
        run: RunContext,
        target: Target | None,
        cut: Callable[[], object] | None,
        answer: Answer | None = None,
        tape: Tape | None = None,
    ) -> None:
        self.run = run
        self._token, self._now = run.token, run.clock.monotonic
        self.target = target
        self._lock = threading.Lock()
        self._is_over = False
        self._first_ms: float | None = None
        self._reader: BodyReader | None = None
        self._status = 0
        self._turn: Turn | None = None
        self._is_limited = target is not None and run.budget.has_limits
        self.waited_ms = 0.0
        self.source = "live" if answer is None else "journal"
        self.answer = answer
        self._tape = tape
        self.retry_after: float | None = None
        self._token.raise_if_cancelled()
        is_unanswered = target is not None and answer is None
        if is_unanswered and (journal := run.journal) is not None and journal.speed is not None:
            raise NbrunError(
                f"{journal.source} answers no calls through aiohttp, which this one uses; use another HTTP client"
            )
        with guarded():
            self._began = self._now()
            self.id = (
                "" if target is None else run.begin_call(target.provider, target.model, is_free=answer is not None)
            )
            self._cut = None if cut is None else self._token.add_first(lambda _request: cut())
            self._before = Latch()  # what has led to the call is stored
            if tape is not None:
                run.call_when_stored(self._before.set)

    def wait_turn(self, address: str, headers: Mapping[str, str], content: bytes | None) -> None:
        """Wait for the call's turn among those to the same address with the same key; `headers` tell the key."""
        if (turn := self._line_up(address, headers, content)) is not None:
            with self._waiting():
                GOVERNOR.wait(turn)

    async def wait_turn_async(self, address: str, headers: Mapping[str, str], content: bytes | None) -> None:
        """Do the same without blocking the thread."""
        if (turn := self._line_up(address, headers, content)) is not None:
            with self._waiting():
                await GOVERNOR.wait_async(turn)

    def _line_up(self, address: str, headers: Mapping[str, str], content: bytes | None) -> Turn | None:
        """Take a place in the line; return it if the call must wait."""
        if self.target is None:
            return None
        self._turn = GOVERNOR.enter(self.run, self.id, self.target.provider, address, headers, content)
        return None if self._turn.sent is not None else self._turn

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Measure the wait, which the block is."""
        try:
            yield
        finally:
            now = self._now()
            self.waited_ms, self._began = round((now - self._began) * 1000, 3), now

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Note the head of the response; the names of its headers are in lower case."""
        self._status = status
        if self._turn is not None:
            self.retry_after = GOVERNOR.answer(self._turn, status, headers)
        if self.target is not None and status < 400:
            encoding = headers.get("content-encoding", "")
            self._reader = BodyReader(headers.get("content-type", ""), encoding)
            if self._tape is not None and status < 300:
                self._tape.begin(status, headers, encoding)
                return
        self._tape = None  # what is no answer isn't kept

    def take(self, piece: bytes) -> None:
        """Note a piece of the response's body; raises `Cancelled` if the run was cancelled."""
        ms = (self._now() - self._began) * 1000
        if self._first_ms is None:
            self._first_ms = ms
        reader, tape = self._reader, self._tape
        if reader is not None and reader.feed(piece) and self._is_limited:
            with guarded():
                if used := self._used():
                    self.run.note_call(self.id, used)
        if tape is not None:
            tape.add(ms, piece)
        if self._token.cancelled:
            self._token.raise_if_cancelled()

    def closed(self) -> None:
        """Note that the response was closed, whether all of its body was read or not."""
        if self._is_complete:
            self._wait_stored()
            self._keep()
        self.finish(CANCELLED if self._token.cancelled else ERROR if self._status >= 400 else OK)

    async def closed_async(self) -> None:
        """Do the same without blocking the thread."""
        if self._is_complete:
            await self._wait_stored_async()
        self.closed()

    @property
    def _is_complete(self) -> bool:
        return self._tape is not None and not self._token.cancelled and self._tape.is_over

    def complete(self) -> None:
        """Note the end of the body; raises `Cancelled` if it was cut by a cancel, which may look like an end."""
        if not self._token.cancelled:
            self._wait_stored()
            self._keep()
        self.finish(ERROR if self._status >= 400 else OK)
        self._token.raise_if_cancelled()

    async def complete_async(self) -> None:
        """Do the same without blocking the thread."""
        if not self._token.cancelled:
            await self._wait_stored_async()
        self.complete()

    # An answer that is kept is of no use without what has led to it: a run that is resumed would ask something else.
    # Mostly that was stored long before the answer came.

    def _wait_stored(self) -> None:
        if self._tape is not None and not self._before.is_set():
            with guarded(), self._stopping_wait(self._before.set):
                self.run.call_when_stored(self._before.set, is_urgent=True)
                self._before.wait(STORED_WITHIN_S)

    async def _wait_stored_async(self) -> None:
        if self._tape is not None and not self._before.is_set():

            def register(wake: Callable[[], object]) -> None:
                stack.enter_context(self._stopping_wait(wake))
                self.run.call_when_stored(wake, is_urgent=True)

            with ExitStack() as stack:
                await wait_for_call(register, STORED_WITHIN_S)
            self._before.set()

    @contextmanager
    def _stopping_wait(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have a cancel of the run end a wait."""
        handle = self._token.add_first(lambda _request: wake())
        try:
            yield
        finally:
            handle.remove()

    def _keep(self) -> None:
        """Keep the answer, before its reader knows that it is complete: what the run has had is never paid again."""
        tape, self._tape = self._tape, None
        if tape is not None and not self._token.cancelled:  # a cancel may look like the end
            with guarded():
                tape.keep()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Note what the block raises; raises `Cancelled` in its place if it comes from a cancel of the run."""
        try:
            yield
        except GeneratorExit:  # a body that is left before its end: its close follows
            raise
        except BaseException as error:
            self.broke(error)
            if self._token.cancelled and isinstance(error, Exception):
                try:
                    self._token.raise_if_cancelled()
                except Cancelled as cancelled:
                    raise cancelled from error
            raise

    def broke(self, error: BaseException) -> None:
        """Note what the request has failed with."""
        self._tape = None
        is_cancelled = self._token.cancelled
        is_stop = is_cancelled or not isinstance(error, Exception)
        self.finish(CANCELLED if is_stop else ERROR, "" if is_stop else f"{type(error).__name__}: {error}")

    def finish(self, status: str, error: str = "") -> None:
        """Report the call's end, once."""
        with guarded():
            with self._lock:
                if self._is_over:
                    return
                self._is_over = True
            if self._cut is not None:
                self._cut.remove()
            if self.target is None:
                return
            if self._status >= 400 and not error:
                error = f"HTTP {self._status}"
            ms = (self._now() - self._began) * 1000
            first_ms = None if self._first_ms is None else round(self._first_ms, 3)
            if self._reader is not None:
                self._reader.close()
            error = clean_text(error)[:300]
            used = self._used()
            if self._turn is not None and used is not None:
                GOVERNOR.close(self._turn, used.input_tokens + used.output_tokens)
            finished = events.CallFinished(
                self.id, status, round(ms, 3), first_ms, used, error, self.waited_ms, self.source, self.retry_after
            )
            self.run.end_call(finished)

    def _used(self) -> events.Usage | None:
        """Return what was reported, with its price; None if nothing was."""
        usage = self._reader and self._reader.usage
        if not usage or self.target is None or self._reader is None:
            return None
        cost = pricing.cost_usd(
            self.target.model,
            provider=self.target.provider,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=self._reader.cache_write_tokens,
        )
        return structs.replace(usage, requests=1, cost_usd=cost)


def begin_call(
    run: RunContext,
    target: Target | None,
    cut: Callable[[], object] | None,
    content: bytes | None,
    ask: Callable[[Journal, bytes], Asked],
    decode: Decode,
) -> Call:
    """Begin a call: it is answered from the run's journal, or else by whoever the request is for.

    `content` is the request's body, None if it can't be read ahead; `ask` returns the request as a journal knows it.
    """
    if target is None or (journal := run.journal) is None:
        return Call(run, target, cut)
    is_cassette = journal.speed is not None
    if content is None or len(content) > MAX_REQUEST:
        if not is_cassette:
            return Call(run, target, cut)
        content = b""  # which is in no cassette
    if not (journal.keeps or journal.is_answering or is_cassette):
        return Call(run, target, cut)
    with guarded():
        asked = ask(journal, content)
        answer = find_answer(journal, asked, run)
        tape = Tape(journal, asked, run, decode) if answer is None and journal.keeps else None
    call = Call(run, target, cut, answer, tape)
    if is_cassette:
        call.source = "cassette"
    return call
