"""Kernels with other versions of ipykernel, each in a virtual environment that is made once and kept.

Such an environment holds its ipykernel and sees everything else in the environment that runs the tests.
`python -m tests.kernels 6.30 7.3` makes them ahead of time; without arguments, all that the tests ask for.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

CHECKOUT = Path(__file__).resolve().parents[1]
INSTALL_TIMEOUT_S = 600

# What a fresh installation resolves to, and so what the tests themselves run on.
NEWEST = ".".join(importlib.metadata.version("ipykernel").split(".")[:2])
# Between these the way of a click changed; what is newest may be one of them.
VERSIONS = tuple(dict.fromkeys(("6.30", "7.3", "7.4", NEWEST)))
LOSING = ("7.0", "7.1", "7.2", "7.3")
"""Those that lose a request now and then: see `tests.repaired_kernel`."""


def kernelspec(version: str) -> str:
    """Return the name of a kernelspec whose kernel runs ipykernel `version` (such as "6.30") and this checkout.

    The first call for a version may take a minute. The environment running the tests serves for its own version.
    """
    name = f"nbrun-{version}"
    python = sys.executable if _is_own(version) else str(_environment(version))
    _write_spec(name, python, "tests.repaired_kernel" if version in LOSING else "ipykernel_launcher")
    return name


def named(name: str) -> str:
    """Return the kernelspec for what a test asks for: a name as it is, or a version of ipykernel."""
    return kernelspec(name) if name[:1].isdigit() else name


def jupyter_path() -> Path:
    """Return the folder for JUPYTER_PATH in which `kernelspec` writes; each checkout has its own."""
    return _cache() / f"share-{_digest(str(CHECKOUT))}"


def _is_own(version: str) -> bool:
    own = importlib.metadata.version("ipykernel")
    return own == version or own.startswith(f"{version}.")


def _cache() -> Path:
    return Path(platformdirs.user_cache_dir("nbrun-tests"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _environment(version: str) -> Path:
    """Return the interpreter of the environment for `version`, made on the first call."""
    series = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = _digest("\n".join([sys.prefix, series, *_site_packages()]))
    folder = _cache() / f"python{series}-ipykernel{version}-{digest}"
    if not folder.exists():
        _make_environment(folder, version)
    return _interpreter(folder)


def _site_packages() -> list[str]:
    """Return where the environment that runs the tests keeps its packages."""
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _make_environment(folder: Path, version: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed when whole: a process that is stopped half-way leaves nothing that looks ready,
    # and of two that start together one wins. Only scripts in bin/ mind the renaming, and none is used.
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        _install(aside, f"ipykernel=={version}.*")
        try:
            aside.rename(folder)
        except OSError:  # the other process was quicker, and its environment is as good
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _install(folder: Path, requirement: str) -> None:
    """Make an environment with this package, and the rest from the environment that runs the tests."""
    venv.create(folder, symlinks=os.name != "nt")
    python = str(_interpreter(folder))
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.check_output(ask, text=True, timeout=INSTALL_TIMEOUT_S).strip())
    own.joinpath("tests.pth").write_text("\n".join(_site_packages()), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-warn-script-location", requirement]
    subprocess.run(install, check=True, timeout=INSTALL_TIMEOUT_S, stdin=subprocess.DEVNULL)


def _write_spec(name: str, python: str, module: str) -> None:
    folder = jupyter_path() / "kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "argv": [python, "-Xfrozen_modules=off", "-m", module, "-f", "{connection_file}"],
        "display_name": name,
        "language": "python",
        "metadata": {"debugger": True, "supported_features": ["kernel subshells"]},
        "env": {"PYTHONPATH": str(CHECKOUT)},
    }
    # Replaced in one step: a server may be listing the specs at this moment.
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
        json.dump(spec, file, indent=1)
    Path(file.name).replace(folder / "kernel.json")


if __name__ == "__main__":
    wanted = sys.argv[1:] or VERSIONS
    with ThreadPoolExecutor() as pool:
        for each, name in zip(wanted, pool.map(kernelspec, wanted), strict=True):
            print(f"ipykernel {each}: {name}", flush=True)
