"""`nbrun doctor`: what can be checked without a kernel, and how to fix it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun.cli.output import CommandError, say
from nbrun.cli.runs import odd_files_at, opened, stores_at
from nbrun.store import is_set_aside
from nbrun.store.diagnosis import Finding, Sign, kept, served, sqlite_version, tried, versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import SimpleNamespace

PAGES = ("jupyterlab", "notebook", "jupyter-server")
# What a page of JupyterLab and Notebook needs to draw cards, and the package that brings it.
EXTENSIONS = {"@jupyter-widgets/jupyterlab-manager": "jupyterlab_widgets", "anywidget": "anywidget"}


def examine(options: SimpleNamespace) -> int:
    """Print what is found here; return 1 if one finding is a problem."""
    paths = stores_at(options.path)
    findings = [
        *tried("versions", lambda: versions(*PAGES)),
        *tried("SQLite", lambda: [sqlite_version()]),
        *tried("cards", _cards),
        *tried("server", lambda: [served()]),
        *tried("store", lambda: _stores(options.path, paths)),
    ]
    for finding in findings:
        say(str(finding))
    say("In a notebook, %agentrun doctor also checks the kernel and the page.")
    return 1 if any(finding.sign is Sign.PROBLEM for finding in findings) else 0


def _cards() -> Iterator[Finding]:
    """Yield whether JupyterLab and Notebook of this environment can draw cards."""
    from jupyter_core.paths import jupyter_path

    folders = [Path(folder) for folder in jupyter_path("labextensions")]
    missing = [
        package
        for name, package in EXTENSIONS.items()
        if not any((folder / name / "package.json").is_file() for folder in folders)
    ]
    if not missing:
        yield Finding(Sign.OK, "cards", "JupyterLab and Notebook of this environment can draw them")
        return
    fix = f"pip install {' '.join(missing)}, then restart the server"
    if not any(importlib.util.find_spec(name) for name in ("jupyterlab", "notebook")):
        text = "neither JupyterLab nor Notebook is installed in this environment, so this can't be checked"
        yield Finding(Sign.NOTE, "cards", text, f"if cards are missing, in their environment: {fix}")
        return
    text = f"JupyterLab and Notebook of this environment can't draw them: {', '.join(missing)} is missing"
    yield Finding(Sign.PROBLEM, "cards", text, fix)


def _stores(place: Path, paths: Sequence[Path]) -> Iterator[Finding]:
    odd = odd_files_at(place)
    for file, words in odd:
        fix = "delete it if you don't need it" if is_set_aside(file) else "move it away"
        yield Finding(Sign.NOTE, "store", f"{file}: {words}", fix)
    if not paths and not odd:
        yield Finding(Sign.OK, "store", f"no runs found in {place.absolute()}")
    for file in paths:
        try:
            with opened(file, reports=False) as store:
                yield from kept(store)
        except CommandError as error:
            fix = "move the file away to start a new one; it was not changed"
            yield Finding(Sign.PROBLEM, "store", str(error), fix)
