"""What doctor found, one line each, with its fix; the findings that need no kernel are made here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from nbrun.core import OTHERS, Action, Fix, StoreError, size_words
from nbrun.store.database_file import is_set_aside
from nbrun.store.location import NO_PLACE, data_folder
from nbrun.store.session_store import ReadOnlyStore, SessionStore
from nbrun.store.signing import KEY_FILE, Signer

LOW_DISK_BYTES = 200 * 1024 * 1024

OWN = "jupyter-nbrun"
NEEDED = (OWN, "ipython", "ipykernel", "ipywidgets", "anywidget", "jupyter-client")
MODELS = "pydantic-ai-slim"
EXTENSION = "nbrun.server"
# Source: https://sqlite.org/wal.html#walresetbug
_WAL_RESET_BUG = ((3, 7, 0), (3, 51, 2))


class Sign(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


MARKS = {Sign.OK: "✔", Sign.NOTE: "•", Sign.PROBLEM: "✘"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: what was found and, if something is wrong, how to fix it."""

    sign: Sign
    subject: str
    text: str
    fix: str = ""

    @property
    def line(self) -> str:
        """The finding without its sign, on one line."""
        fix = f" → {self.fix}" if self.fix else ""
        return " ".join(f"{self.subject}: {self.text}{fix}".split())

    def __str__(self) -> str:
        return f"{MARKS[self.sign]} {self.sign:<7}  {self.line}"


Probe = Callable[[], Iterable[Finding]]


def tried(subject: str, probe: Probe) -> list[Finding]:
    """Return what a probe finds; one that fails is a finding too, and does not keep others from being made."""
    try:
        return list(probe())
    except Exception as error:
        why, fix = (
            f"the check failed: {type(error).__name__}: {error}",
            "run doctor again; if this stays, report this line",
        )
        if "home directory" in str(error):  # Source: pathlib's words, and so those of jupyter_core
            why, fix = "not checked: this user has no home folder", "set HOME in the environment"
        return [Finding(Sign.NOTE, subject, why, fix)]


# --- what is installed -----------------------------------------------------------------------------


def versions(*more: str) -> list[Finding]:
    """Return what is installed, of what nbrun needs and of `more`; nothing is imported for it."""
    found = {name: _version(name) for name in (*NEEDED, MODELS, *more)}
    found[OWN] = found[OWN] or _running(OWN)  # a checkout on the path need not be installed
    here = [f"{_short(name)} {version}" for name, version in found.items() if version]
    python = ".".join(map(str, sys.version_info[:3]))
    findings = [Finding(Sign.OK, "versions", ", ".join([f"Python {python}", *here]))]
    missing = " ".join(name for name in NEEDED if found[name] is None)
    if missing:
        fix = f"pip install {missing}, then restart the kernel"
        findings.append(Finding(Sign.PROBLEM, "versions", f"not installed: {missing}", fix))
    if found[MODELS] is None:
        text = "pydantic-ai is not installed: functions run, but no models other than the scripted one"
        findings.append(Finding(Sign.NOTE, "versions", text, "pip install 'jupyter-nbrun[agents]'"))
    for name in (OWN, "ipykernel"):
        running = _running(name) or found[name]
        if found[name] is not None and running != found[name]:
            text = f"{_short(name)} {found[name]} is installed, but {running} is running"
            findings.append(Finding(Sign.PROBLEM, "versions", text, "restart the kernel"))
    return findings


def sqlite_version() -> Finding:
    """Return the version of SQLite, and whether it has a bug that concerns files that several kernels write to."""
    subject, version = "SQLite", sqlite3.sqlite_version
    if not _WAL_RESET_BUG[0] <= sqlite3.sqlite_version_info <= _WAL_RESET_BUG[1]:
        return Finding(Sign.OK, subject, version)
    text = f"{version} has the WAL-reset bug, which can very rarely damage a file that several kernels write to"
    return Finding(Sign.NOTE, subject, text, "nothing to do, or use a Python that comes with SQLite 3.51.3 or newer")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _running(name: str) -> str | None:
    return getattr(sys.modules.get(_short(name)), "__version__", None)


def _short(name: str) -> str:
    return {OWN: "nbrun", MODELS: "pydantic-ai"}.get(name, name)


# --- the server's extension ------------------------------------------------------------------------


def served() -> Finding:
    """Return whether nbrun's extension of Jupyter Server is enabled in this environment; only settings are read."""
    subject, version = "server", _version("jupyter-server")
    if version is None:
        text = "Jupyter Server is not installed in this environment, so its extensions can't be checked"
        fix = "to cancel runs without an open page, pip install 'jupyter-nbrun[server]' in the server's environment"
        return Finding(Sign.NOTE, subject, text, fix)
    switch = _switch()
    if switch is not None and switch[0]:
        text = f"{EXTENSION} is enabled in {switch[1]}: runs can be cancelled without an open page"
        return Finding(Sign.OK, subject, text)
    off = "not enabled" if switch is None else f"disabled in {switch[1]}"
    text = f"{EXTENSION} is {off}: runs can only be cancelled in the notebook"
    fix = f"jupyter server extension enable {EXTENSION}, then restart the server"
    return Finding(Sign.NOTE, subject, text, fix)


def _switch() -> tuple[bool, Path] | None:
    """Return whether the server's settings enable the extension, and the file that says so."""
    # Source: Jupyter Server reads `jupyter_server_config.json` of each folder, then the files of the folder of that
    # name with `.d`; the first folder that says something wins. What a `.py` file sets is not seen.
    from jupyter_core.paths import jupyter_config_path

    for folder in map(Path, jupyter_config_path()):
        files = sorted((folder / "jupyter_server_config.d").glob("*.json"), reverse=True)
        for file in (folder / "jupyter_server_config.json", *files):
            try:
                found = json.loads(file.read_text("utf-8"))["ServerApp"]["jpserver_extensions"]
                return bool(found[EXTENSION]), file
            except (OSError, ValueError, LookupError, TypeError):  # no such file, or silent on it
                continue
    return None


# --- where runs are kept ---------------------------------------------------------------------------


def kept(store: SessionStore) -> list[Finding]:
    """Return where runs are kept, whether they outlive the kernel, and what prevents it."""
    if isinstance(store, ReadOnlyStore):
        is_writable = os.access(store.path, os.W_OK) and os.access(store.path.parent, os.W_OK)
        fix = "move the file away to start a new one; it was not changed"
        fix = fix if is_writable else "make the file and its folder writable; it was not changed"
        return [Finding(Sign.PROBLEM, "store", f"read-only: {store.problem}", fix)]
    findings = [*_fault(store), *(_befell(what) for what in store.incidents)]
    if store.path is None:
        findings += [] if store.fault is not None else [_not_kept(store)]
        return [*findings, *_kept_elsewhere(store)]
    is_written = store.fault is None
    findings += [_file(store, store.path, is_written=is_written), *_exposed(store.path), *_disk(store.path)]
    findings += _kept_elsewhere(store)
    if store.lost:
        text = f"{store.lost} runs were in progress when their kernel died; they are shown as lost"
        findings.append(Finding(Sign.NOTE, "store", text, "nothing to do: what they had recorded is kept"))
    return findings


def signing(signer: Signer) -> list[Finding]:
    """Return whether runs are signed so that a later kernel knows them as this user's."""
    folder, _ = data_folder(), signer.key
    if signer.problem is None and folder is not None:
        return [Finding(Sign.OK, "signing", f"runs are signed with {folder / KEY_FILE}")]
    text = f"runs are signed for this kernel only ({signer.problem}); a later one asks for the agent to resume or retry"
    fix = "set HOME in the environment" if folder is None else "delete that file, or make its folder writable for you"
    return [Finding(Sign.NOTE, "signing", text, fix)]


def _fault(store: SessionStore) -> Iterable[Finding]:
    if store.fault is not None:
        behind = store.behind
        waiting = f"{behind} {'run is' if behind == 1 else 'runs are'} in memory, waiting to be saved"
        text = f"can't be written: {store.fault}; {waiting}"
        yield Finding(Sign.PROBLEM, "store", text, store.fault.fix)


def _befell(what: str) -> Finding:
    return Finding(Sign.NOTE, "store", what, "keep the file that was set aside: it may contain runs")


def set_aside(store: SessionStore) -> list[Finding]:
    """Return the damaged files that earlier kernels set aside, next to this store's."""
    if store.wanted is None:
        return []
    folder, stem = store.wanted.parent, store.wanted.stem
    found = sorted(folder.glob("*.db")) if os.path.isdir(folder) else []
    fix = "recover them with .recover of the sqlite3 tool, or delete the file if you don't need it"
    return [
        Finding(Sign.NOTE, "store", f"{file} was damaged and set aside; it may contain runs", fix)
        for file in found
        if file.name.startswith(f"{stem}.") and is_set_aside(file)
        and not any(file.name in what for what in store.incidents)
    ]  # fmt: skip


def _not_kept(store: SessionStore) -> Finding:
    if not store.is_durable or store.wanted is None:
        fix = "change to another folder" if store.wanted is None else "make its folder writable"
        fix += ", or set %config NbRun.store = 'PATH'; then %reload_ext nbrun"
        text = f"in memory only, lost when the kernel ends: {store.problem or NO_PLACE}"
        return Finding(Sign.PROBLEM, "store", text, fix)
    folder = store.wanted.parent
    while not os.path.exists(folder):
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        where = "in your data folder" if store.has_second_place else "in memory only"
        text = f"{folder} isn't writable: runs will be kept {where}"
        return Finding(Sign.NOTE, "store", text, "choose another file with %config NbRun.store = 'PATH'")
    return Finding(Sign.OK, "store", f"no runs yet; the first one creates {store.wanted}")


def _file(store: SessionStore, path: Path, *, is_written: bool = True) -> Finding:
    try:
        journal, problem = store.journal_mode(), store.problem
    except StoreError as error:
        fix = "run doctor again once a run has been saved; it then shows what was done"
        return Finding(Sign.PROBLEM, "store", f"{path} can't be read: {error}", fix)
    size = size_words(sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*") if part.is_file()))
    durable = "durable, " if is_written else ""  # else what waits is in memory only
    text = f"{path}, {durable}{size}, journal mode {journal.upper()}"
    if problem is not None:
        fix = "fix this and %reload_ext nbrun, or set %config NbRun.store"
        return Finding(Sign.NOTE, "store", f"{text}; {problem}", fix)
    if journal != "wal":
        fix = "nothing to do if it is fast enough; a local disk is faster than a network disk"
        return Finding(Sign.NOTE, "store", f"{text}: this file system doesn't support WAL", fix)
    return Finding(Sign.OK, "store", text)


def _exposed(path: Path) -> Iterable[Finding]:
    """Yield that others may read or write the file, which could not be helped when it was opened."""
    with contextlib.suppress(OSError):
        if os.name != "nt" and path.stat().st_mode & OTHERS:
            text = f"other users may read {path}, and nbrun can't change that (a file system without modes?)"
            yield Finding(Sign.NOTE, "store", text, "keep it on another disk with %config NbRun.store = 'PATH'")


def _kept_elsewhere(store: SessionStore) -> Iterable[Finding]:
    """Yield the places where runs were kept while the first one could not be written."""
    for path in store.elsewhere:
        purpose = "copy them with its export and import commands, or list them"
        fix = str(Fix(Action.LIST, path=str(path), purpose=purpose))
        yield Finding(Sign.NOTE, "store", f"there are also runs in {path}", fix)


def _disk(path: Path) -> list[Finding]:
    free = shutil.disk_usage(path.parent).free
    if free >= LOW_DISK_BYTES:
        return [Finding(Sign.OK, "disk", f"{size_words(free)} free")]
    fix = "free some space; until then runs may stay in memory only, and be lost with the kernel"
    return [Finding(Sign.PROBLEM, "disk", f"only {size_words(free)} free at {path.parent}", fix)]
