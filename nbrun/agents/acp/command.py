"""A program that speaks the Agent Client Protocol, as an agent to be run."""

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

    Parameters
    ----------
    command : the program and its arguments, as one text or one by one; no shell reads it.
    cwd : the folder that it works in; None: the kernel's own.
    env : environment variables beside those of the kernel.
    name : what its runs are called; None: the program's name.
    start_timeout_s : seconds in which it has to answer for the first time.

    Raises
    ------
    BadOption
        The command is empty, or cannot be read.
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
            raise BadOption(
                f"the command {self.command} cannot be read ({error}); close the quote"
            ) from None

    @property
    def folder(self) -> Path:
        """The folder that it works in."""
        return Path(self.cwd or ".").expanduser().absolute()

    @property
    def label(self) -> str:
        """What it is called for people."""
        return self.name or Path(self.argv[0]).name

    def check(self) -> None:
        """Raise `AgentNotFound` where there is no such program, `BadOption` where there is no such folder."""
        if not self.folder.is_dir():
            raise BadOption(f"there is no folder {self.folder} for {self.label} to work in")
        # As it is found when it is started: in that folder, and by its own PATH.
        program = self.argv[0]
        path = (self.env or {}).get("PATH")
        if (
            shutil.which(self.folder / program if os.path.dirname(program) else program, path=path)
            is None
        ):
            raise AgentNotFound(
                f"there is no program {program} to run; install it, or give its whole path"
            )
