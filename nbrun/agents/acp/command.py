"""The agent object for a program that speaks the Agent Client Protocol."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun.agents import AgentNotFound, BadOption

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class AcpAgent:
    """A coding agent, or any other program that speaks the Agent Client Protocol over its standard input and output.

    Raises `BadOption` if the command is empty, or a quote in it isn't closed.

    Parameters
    ----------
    command : the program and its arguments, as one string or a list; run without a shell.
    cwd : its working folder; None: the kernel's.
    env : environment variables in addition to the kernel's.
    name : the name of its runs; None: the program's.
    start_timeout_s : seconds it has for its first answer.
    """

    command: str | Sequence[str]
    cwd: str | Path | None = None
    env: Mapping[str, str] | None = None
    name: str | None = None
    start_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise BadOption("'acp:' needs a program, for example acp:gemini")

    @property
    def argv(self) -> list[str]:
        """The program and its arguments."""
        if not isinstance(self.command, str):
            return [str(word) for word in self.command]
        try:
            return shlex.split(self.command)
        except ValueError as error:
            raise BadOption(f"the command {self.command} cannot be read ({error}); close the quote") from None

    @property
    def folder(self) -> Path:
        """The working folder, absolute."""
        return Path(os.path.expanduser(self.cwd or ".")).absolute()  # `Path.expanduser` raises if there is no home

    @property
    def label(self) -> str:
        """The name of its runs."""
        return self.name or Path(self.argv[0]).name

    def check(self) -> None:
        """Raise `AgentNotFound` if the program is missing, `BadOption` if the folder is."""
        if not self.folder.is_dir():
            raise BadOption(f"the folder {self.folder} for {self.label} doesn't exist")
        # Searched as at its start: in its folder, and on its own PATH.
        program, path = self.argv[0], (self.env or {}).get("PATH")
        place = self.folder / program if os.path.dirname(program) else program
        if shutil.which(place, path=path) is None:
            if os.path.isfile(place):
                raise AgentNotFound(
                    f"{place} may not be executed; make it executable: chmod +x {shlex.quote(str(place))}"
                )
            raise AgentNotFound(f"the program {program} was not found; install it, or give its full path")
