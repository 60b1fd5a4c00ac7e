"""Shows the retries of a provider's client in the run's log; it reads them from the client's own log.

Source: the clients of OpenAI and Anthropic retry by themselves, after the time that a 429 response names, and log it
at level INFO, which is hidden by default. Frameworks that use them don't report it.
"""

from __future__ import annotations

import logging

from nbrun.agents import current_run
from nbrun.core import module_lock

LOGGERS = ("openai._base_client", "anthropic._base_client")
_BEGIN = "Retrying request"


class Retries(logging.Filter):
    """Warns the run in whose context a client waits; the log stays as without it. Threads: any that logs."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger
        self._own_level = self._set_level = logger.level  # the user's, and the one set here

    @property
    def wanted(self) -> int:
        """The level that it would have without this filter; the user may change it at any time."""
        logger = self._logger
        if logger.level != self._set_level:
            return logger.level
        above = logger.parent.getEffectiveLevel() if logger.parent else logging.NOTSET
        return self._own_level or above

    def open(self) -> None:
        """Make the client log its retries, and no less than it would log by itself."""
        if self._logger.level != self._set_level:
            self._own_level = self._logger.level
        self._set_level = min(self.wanted, logging.INFO)
        self._logger.setLevel(self._set_level)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record goes to the handlers."""
        run = current_run.get()
        if run is not None and str(record.msg).startswith(_BEGIN):
            args = record.args if isinstance(record.args, tuple) else ()
            wait_s = next((arg for arg in args if isinstance(arg, float)), 0.0)
            run.log(f"the model's provider asked to wait: retrying in {wait_s:.1f} s", "warning")
        return record.levelno >= self.wanted


_listening = module_lock()


def listen() -> None:
    """Show the clients' retries from now on; call it again after the user has changed log levels."""
    with _listening:
        for name in LOGGERS:
            logger = logging.getLogger(name)
            retries = next((known for known in logger.filters if isinstance(known, Retries)), None)
            if retries is None:
                retries = Retries(logger)
                logger.addFilter(retries)
            retries.open()
