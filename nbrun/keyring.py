"""The secrets of a session: those of its environment, and those that were named."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from nbrun.encoding import clean_text
from nbrun.errors import BadOption
from nbrun.redaction import MIN_LENGTH, Redactor, secrets_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

LOOK_S = 1.0
"""How long a burst of starts shares one look at the environment: that costs as much as half a start."""


class Keyring:
    """Knows what is to be replaced, and makes the redactor that does it.

    Threads: any method, from any thread; `redactor` is replaced, never changed.

    Parameters
    ----------
    environ : the variables; they may change.
    use : is given each new redactor.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        monotonic: Callable[[], float],
        use: Callable[[Redactor], object],
    ) -> None:
        self._environ = environ
        self._monotonic = monotonic
        self._use = use
        self._lock = threading.RLock()
        self._names: frozenset[str] = frozenset()
        self._registered: dict[str, str] = {}  # value → name
        self._found = secrets_in(environ)
        # How many variables there were when the environment was last looked at, and when that was.
        self._looked = (len(environ), monotonic())
        self.redactor = Redactor(self._found)

    def look(self) -> None:
        """Take up keys that came into the environment since the last look."""
        now, size = self._monotonic(), len(self._environ)
        are_known = all(self._environ.get(name) == value for name, value in self._found.items())
        if are_known and size == self._looked[0] and now - self._looked[1] < LOOK_S:
            return
        self._looked = (size, now)
        self._find()

    def watch(self, names: Collection[str]) -> None:
        """Count the values of these variables as secrets, whatever their names look like."""
        self._names = frozenset(names)
        self._find()

    def take(self, environ: Mapping[str, str]) -> None:
        """Count the keys of an environment that an agent is given, too."""
        found = {
            clean_text(value): name for name, value in secrets_in(environ, self._names).items()
        }
        with self._lock:
            if not found.items() <= self._registered.items():
                self._registered = {**self._registered, **found}
                self._renew()

    def add(self, value: str, name: str) -> None:
        """Count this value as a secret.

        Raises
        ------
        BadOption
            It is too short: to replace it would tear holes into ordinary words.
        """
        if not isinstance(value, str) or len(value.strip()) < MIN_LENGTH:
            raise BadOption(
                f"a secret is a text of {MIN_LENGTH} characters or more; this value is not replaced"
            )
        with self._lock:
            self._registered = {**self._registered, clean_text(value): name}
            self._renew()

    def _find(self) -> None:
        with self._lock:
            found = secrets_in(self._environ, self._names)
            if found != self._found:
                self._found = found
                self._renew()

    def _renew(self) -> None:
        self.redactor = Redactor(self._found, self._registered)
        self._use(self.redactor)
