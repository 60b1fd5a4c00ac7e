"""The retries of a provider's client: reported in the run's log, and nowhere else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from nbrun import NotebookSession
from nbrun.agents import provider_retries as retries
from tests.fakes.agents import BOUND_S

SAYS = "Retrying request in %f seconds (retry %i of %s)"


@pytest.fixture
def client() -> Iterator[logging.Logger]:
    """The logger of a client, as it is before anybody listens."""
    logger = logging.getLogger(retries.LOGGERS[0])
    kept = logger.filters[:], logger.level
    logger.filters.clear()
    logger.setLevel(logging.NOTSET)
    yield logger
    logger.filters[:], logger.level = kept


def test_a_run_is_warned_and_the_users_log_stays_as_it_was(session: NotebookSession, client: logging.Logger) -> None:
    """The user's handlers get what they got before: at WARNING nothing of it, at INFO all."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    client.addHandler(handler)

    async def waits(prompt: str) -> None:
        retries.listen()
        retries.listen()
        client.info(SAYS, 0.5, 1, 2)
        client.info("another word")
        client.warning("a warning")

    try:
        run = session.start(waits)
        assert run.wait(BOUND_S)
        assert run.record.notices == ("the model's provider asked to wait: retrying in 0.5 s",)
        assert heard == ["a warning"]
        client.info(SAYS, 0.5, 1, 2)  # of no run
        assert heard == ["a warning"]
    finally:
        client.removeHandler(handler)


def test_what_the_user_asks_for_later_is_heard(client: logging.Logger) -> None:
    """Of the client or of what is above it; many that listen at once are one."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    above = logging.getLogger("openai")
    kept = above.level
    client.addHandler(handler)
    threads = [threading.Thread(target=retries.listen) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(client.filters) == 1
        client.info("not asked for")
        above.setLevel(logging.INFO)
        client.info("asked of what is above")
        above.setLevel(logging.DEBUG)
        retries.listen()  # with the next run
        client.debug("in detail")
        client.setLevel(logging.ERROR)
        retries.listen()
        client.warning("too little")
        client.setLevel(logging.DEBUG)
        client.debug("asked of itself")
    finally:
        above.setLevel(kept)
        client.removeHandler(handler)
    assert heard == ["asked of what is above", "in detail", "asked of itself"]
