"""What a provider's client does when it is refused for a while: heard from its log, and told in the run's.

Source: the clients of OpenAI and Anthropic try again by themselves, after the time that a 429 names, and say so at
level INFO, where nobody reads it. Frameworks that use them pass nothing of it on.
"""

from __future__ import annotations

import logging
import threading

from nbrun.agents import current_run

LOGGERS = ("openai._base_client", "anthropic._base_client")
_BEGIN = "Retrying request"


class Retries(logging.Filter):
    """Tells the run in whose context a client waits; lets through what would have been let through without it.

    Threads: of whichever logs.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger
        self._own_level = self._made = logger.level  # its own, and the one that we have given it

    @property
    def wanted(self) -> int:
        """The level that it would have without us: looked at each time, for the user may ask for more at any."""
        logger = self._logger
        if logger.level != self._made:
            return logger.level
        above = logger.parent.getEffectiveLevel() if logger.parent else logging.NOTSET
        return self._own_level or above

    def open(self) -> None:
        """Have the client say what we listen for, and no less than it would say by itself."""
        if self._logger.level != self._made:
            self._own_level = self._logger.level
        self._made = min(self.wanted, logging.INFO)
        self._logger.setLevel(self._made)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record goes on to the handlers."""
        run = current_run.get()
        if run is not None and str(record.msg).startswith(_BEGIN):
            args = record.args if isinstance(record.args, tuple) else ()
            wait_s = next((arg for arg in args if isinstance(arg, float)), 0.0)
            run.log(f"the model's provider has us wait: asked again in {wait_s:.1f} s", "warning")
        return record.levelno >= self.wanted


_listening = threading.RLock()


def listen() -> None:
    """Have the clients' retries told from now on; once more takes up what the user has asked of them since."""
    with _listening:
        for name in LOGGERS:
            logger = logging.getLogger(name)
            retries = next((known for known in logger.filters if isinstance(known, Retries)), None)
            if retries is None:
                retries = Retries(logger)
                logger.addFilter(retries)
            retries.open()
