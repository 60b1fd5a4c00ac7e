"""The one thread that decodes the local model's answers."""

# One answer at a time, in order. Measured on one core: two answers of 80 tokens side by side in the runtime's slots
# took 2.0 s, one after the other 1.6 s. With a queue of our own, a waiting request can be cancelled at once.
#
# The runtime calls its server in process, but also opens a loopback port. nbrun does not use it, and nobody else can:
# its key is random and kept nowhere.

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import secrets
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pydantic_ai.exceptions import ModelAPIError, UserError
from pydantic_ai.usage import RequestUsage

from nbrun.agents import call_soon, local_model
from nbrun.core import module_lock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pydantic_ai.messages import FinishReason

MODEL_NAME: Final = "smollm2-135m"
CONTEXT_TOKENS: Final = 4096
"""Prompt and answer together; the runtime refuses a longer prompt."""

# A cancel takes effect between batches of the prompt: 64 tokens are 0.3 s on one core (the runtime's default, 2048,
# is 12 s), and reading a prompt takes 6 % longer.
_BATCH_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk adds to an answer; the text may be empty."""

    text: str
    usage: RequestUsage | None
    finish_reason: FinishReason | None


class Decoding:
    """One answer, by the user's `model_file` or the demo model, from the decode thread to the loop that asked for it.

    Threads: made and read (`pieces`) on the loop; the decode thread calls `take` and `put`, any thread `stop`.
    `is_stopped` becomes True once and is read without a lock: a decode thread that sees it late decodes one more
    token, which `pieces` drops.
    """

    def __init__(self, body: dict[str, object], model_file: Path | None = None) -> None:
        self.body = body
        self.model_file = model_file
        self.is_stopped = False
        self._loop = asyncio.get_running_loop()
        self._arrivals: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()  # None: the end

    def stop(self) -> None:
        """Stop decoding, and end `pieces`."""
        self.is_stopped = True
        self.put(None)

    def take(self, chunk: dict[str, Any]) -> bool:
        """Pass a chunk on to the loop; return whether to stop decoding.

        The runtime calls it without a time limit. If it raised, the runtime would only print that and continue.
        """
        if self.is_stopped:
            return True
        try:
            self.put(_piece_of(chunk, self.model_file))
        except Exception as error:
            self.put(error)
            return True
        return self.is_stopped

    def put(self, arrival: Piece | Exception | None) -> None:
        """Add to `pieces`, or end it, with an error if decoding failed."""
        if not call_soon(self._loop, partial(self._arrivals.put_nowait, arrival)):
            self.is_stopped = True  # the loop is closed: no one is waiting for the text

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield what was decoded, in order, until the end or `stop`; raise the error if there was one."""
        while isinstance(arrival := await self._arrivals.get(), Piece):
            if self.is_stopped:
                return
            yield arrival
        if arrival is not None:
            raise arrival


_decoder: _Decoder | None = None
_decoder_lock = module_lock()


def submit(decoding: Decoding) -> None:
    """Queue an answer; the first one starts the thread, which then loads the model."""
    global _decoder
    with _decoder_lock:
        if _decoder is None or not _decoder.is_alive:
            _decoder = _Decoder()
            atexit.register(close)
        _decoder.submit(decoding)  # under the lock, so never behind the None of close()


def close(timeout_s: float = 5.0) -> None:
    """Stop all requests and unload the model; the next request loads it again.

    Decoding ends between two tokens, so a busy machine needs some 0.5 s; after `timeout_s` the thread, a daemon, is
    left behind. Called at interpreter exit, too.
    """
    global _decoder
    with _decoder_lock:
        decoder, _decoder = _decoder, None
    if decoder is not None and decoder.is_alive:  # else in a forked child, at its exit
        atexit.unregister(close)
        decoder.close(timeout_s)


class _Decoder:
    """The thread that owns the model and decodes one answer after the other.

    Threads: `submit` and `close` from any thread, ordered by `_decoder_lock`: nothing is submitted after `close`.
    `_is_closing` is written by `close` only.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Decoding | None] = queue.SimpleQueue()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="nbrun-local-model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; in a forked child it does not."""
        return self._thread.is_alive()

    def submit(self, decoding: Decoding) -> None:
        self._waiting.put(decoding)

    def close(self, timeout_s: float) -> None:
        # A daemon thread that returns from C++ while the interpreter shuts down crashes the process: so exit waits
        # here, for one token.
        self._is_closing = True
        self._waiting.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        # A local, so that it ends with this thread, and never in a forked child, which lacks the threads that its
        # destructor waits for.
        server: Any = None
        loaded: Path | None = None
        while (decoding := self._waiting.get()) is not None:
            if decoding.is_stopped:  # cancelled while it waited
                continue
            file = decoding.model_file
            failure: Exception | None = None
            try:
                if not self._is_closing:
                    if server is None or loaded != file:
                        server = None  # first: there may not be memory for two
                        server, loaded = _load(file), file
                    server.handle_chat_completions(decoding.body, partial(self._pass_on, decoding))
                if self._is_closing:
                    failure = _failure("it was closed", file)
            except UserError as error:
                failure = error
            except Exception as error:  # raised in the run that asked; the thread serves the next
                failure = _failure(str(error), file)
                failure.__cause__ = error
            decoding.put(failure)

    def _pass_on(self, decoding: Decoding, chunk: dict[str, Any]) -> bool:
        return self._is_closing or decoding.take(chunk)


def _load(model_file: Path | None) -> Any:
    """Load a model; the demo model takes 250 MB."""
    # The runtime holds the GIL meanwhile: for 0.25 to 0.4 s nothing else runs in this process, for seconds on a busy
    # machine. Its warm-up and its memory check would double that.
    check = local_model.file_problem
    if (problem := check(model_file) if model_file else local_model.demo_problem()) is not None:
        raise UserError(problem)
    import xllamacpp

    threads = max(1, (os.cpu_count() or 1) // 2)  # all cores would make its busy threads compete
    params = xllamacpp.CommonParams()
    params.model.path = str(model_file or local_model.demo_file())
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup = params.fit_params = False
    params.cache_ram_mib = 0  # else it keeps up to 8 GiB of old prompts
    params.verbosity = -1  # no output on stderr
    params.hostnames = ["127.0.0.1"]  # an empty list crashes the process
    params.api_keys = [secrets.token_urlsafe(32)]
    params.ui = params.endpoint_slots = False
    params.n_threads_http = 1
    return xllamacpp.Server(params)


def _piece_of(chunk: dict[str, Any], model_file: Path | None) -> Piece:
    if (error := chunk.get("error")) is not None:
        if (tokens := error.get("n_prompt_tokens")) is None:
            raise _failure(error["message"], model_file)
        raise _failure(
            f"it reads at most {CONTEXT_TOKENS} tokens, but the conversation has {tokens}. Shorten it.", model_file
        )
    usage: RequestUsage | None = None
    if (timings := chunk.get("timings")) is not None:
        usage = RequestUsage(
            input_tokens=timings["cache_n"] + timings["prompt_n"],
            cache_read_tokens=timings["cache_n"],
            output_tokens=timings["predicted_n"],
        )
    choice = next(iter(chunk.get("choices", [])), None)
    if choice is None:
        return Piece("", usage, None)
    reason: FinishReason | None = None
    if choice["finish_reason"] is not None:
        reason = "length" if choice["finish_reason"] == "length" else "stop"
    return Piece(choice["delta"].get("content") or "", usage, reason)


def _failure(reason: str, model_file: Path | None) -> ModelAPIError:
    if model_file is None:
        return ModelAPIError(MODEL_NAME, f"The local demo model gave no answer: {reason}")
    return ModelAPIError(model_file.stem, f"The model {model_file.name} gave no answer: {reason}")
