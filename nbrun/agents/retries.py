"""What a provider's client does when it is refused for a while: heard from its log, and told in the run's.

Source: the clients of OpenAI and Anthropic try again by themselves, after the time that a 429 names, and say so at
level INFO, where nobody reads it. Frameworks that use them pass nothing of it on.
"""

from __future__ import annotations

import logging

from nbrun.context import current_run

LOGGERS = ("openai._base_client", "anthropic._base_client")
_BEGIN = "Retrying request"


class Retries(logging.Filter):
    """Tells the run in whose context a client waits; lets through what would have been let through without it.

    Threads: of whichever logs.
    """

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record goes on to the handlers."""
        run = current_run.get()
        if run is not None and str(record.msg).startswith(_BEGIN):
            args = record.args if isinstance(record.args, tuple) else ()
            wait_s = next((arg for arg in args if isinstance(arg, float)), 0.0)
            run.log(f"the model's provider has us wait: asked again in {wait_s:.1f} s", "warning")
        return record.levelno >= self._level


def listen() -> None:
    """Have the clients' retries told from now on; once more changes nothing."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if any(isinstance(known, Retries) for known in logger.filters):
            continue
        logger.addFilter(Retries(logger.getEffectiveLevel()))
        if not logger.isEnabledFor(logging.INFO):
            logger.setLevel(logging.INFO)
