"""`%agentrun doctor`: what works here, what doesn't, and how to fix it; what can be tried is tried."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from html import escape
from importlib import metadata
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from nbrun.calls import CLIENTS
from nbrun.core import Clock, RunStatus, duration
from nbrun.store.diagnosis import (
    MARKS,
    Finding,
    Sign,
    kept,
    served,
    set_aside,
    signing,
    sqlite_version,
    tried,
    versions,
)
from nbrun.ui.cards.esm import page_module
from nbrun.ui.kernel import requests
from nbrun.ui.kernel.waiting import cell_id, is_headless

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nbrun.ui.presenter import Presenter

ANSWER_S = 2.0
"""How long a probe waits for an answer; the cell is blocked meanwhile."""
SLOW_S = 0.5

_OTHER_CLIENTS = ("urllib3", "grpc", "pycurl")
"""Packages that make requests past those that are watched."""

_COLOURS = {Sign.OK: "#2e7d32", Sign.NOTE: "#757575", Sign.PROBLEM: "#c62828"}


def show(extension: Presenter) -> None:
    """Check everything and show what was found; the page, if there is one, adds its own lines later."""
    findings = examine(extension)
    if extension.is_text:
        print("\n".join(map(str, findings)))
        return
    from IPython.display import display

    display(bundle(findings), raw=True)
    if _why_no_page(extension) is None:
        from nbrun.ui.kernel.waiting import kernel_id

        show_probe(kernel_id(extension.kernel), extension.requests.answer)


def examine(extension: Presenter) -> list[Finding]:
    """Return all that can be found out while the cell runs."""
    probes = {
        "versions": versions,
        "SQLite": lambda: [sqlite_version()],
        "front end": lambda: [_front_end(extension)],
        "control channel": lambda: [_control(extension)],
        "page": lambda: _page(extension),
        "subshells": lambda: _subshells(extension.kernel),
        "nest_asyncio": lambda: [_nesting()],
        "model calls": lambda: _calls(extension),
        "server": lambda: [served()],
        "store": lambda: kept(extension.session.store) + set_aside(extension.session.store),
        "signing": lambda: signing(extension.session.store.signer),
        "runs": lambda: _runs(extension),
    }
    return [finding for subject, probe in probes.items() for finding in tried(subject, probe)]


def bundle(findings: Iterable[Finding]) -> dict[str, str]:
    """Return findings as an output: text, and HTML without script, everything in it escaped."""
    findings = list(findings)
    rows = (
        f'<div data-sign="{found.sign}"><span style="color:{_COLOURS[found.sign]}">'
        f'<span aria-hidden="true">{MARKS[found.sign]}</span> <strong>{found.sign}</strong></span> '
        f"{escape(found.line)}</div>"
        for found in findings
    )
    return {
        "text/plain": "\n".join(map(str, findings)),
        "text/html": f'<div class="nbrun-doctor mathjax_ignore tex2jax_ignore">{"".join(rows)}</div>',
    }


# --- the front end and its channels -------------------------------------------------------------------


def _front_end(extension: Presenter) -> Finding:
    shell, subject = extension.shell, "front end"
    if extension.kernel is None:
        return Finding(Sign.OK, subject, "a terminal: a live line instead of cards; Ctrl-C cancels")
    if extension.is_text:
        return Finding(Sign.OK, subject, "a console: a live line instead of cards; Ctrl-C cancels")
    if is_headless(shell):
        text = "headless: cells wait for their runs, and cards are static"
        fix = "nothing to do in a batch job; in an interactive notebook, set NBRUN_BLOCK=0 in the environment"
        return Finding(Sign.NOTE, subject, text, fix)
    name = "a notebook"
    if "__vsc_ipynb_file__" in shell.user_ns:
        name = "VS Code"
    elif "google.colab" in sys.modules:
        name = "Colab"
    path = extension.session.notebook
    text = f"{name}, {path or 'path unknown'}"
    if cell_id(shell) is None:
        fix = "give such runs a --name, so that --if-running can tell them apart"
        return Finding(Sign.NOTE, subject, f"{text}; it doesn't report which cell is running", fix)
    return Finding(Sign.OK, subject, text)


def _control(extension: Presenter) -> Finding:
    subject, kernel = "control channel", extension.kernel
    if kernel is None:
        return Finding(Sign.OK, subject, "not needed without a kernel; Ctrl-C cancels the run that is being waited for")
    if requests.REQUEST not in kernel.control_handlers:
        return Finding(Sign.PROBLEM, subject, "nbrun's handler was removed from the kernel", "%reload_ext nbrun")
    took_s = control_round_trip_s(kernel, extension.session.clock)
    if took_s is None:
        text = f"no answer in {ANSWER_S:g} s: Cancel on a card only works when no cell is running"
        return Finding(Sign.PROBLEM, subject, text, "interrupt (■) a waiting cell, or restart the kernel")
    text = f"answers in {duration(took_s)} while this cell keeps the kernel busy, so Cancel works at any time"
    return Finding(Sign.OK, subject, text)


def control_round_trip_s(kernel: Any, clock: Clock) -> float | None:
    """Return how long the kernel took to answer on its control channel, asked as a card does; None: no answer."""
    import zmq
    from jupyter_client.client import KernelClient

    app = kernel.parent
    with zmq.Context() as context:
        client = KernelClient(context=context)
        client.load_connection_file(str(getattr(app, "abs_connection_file", app.connection_file)))
        with client.connect_control() as socket:
            socket.linger = 0  # else a kernel that does not read would hold up the context's end
            began = clock.monotonic()
            asked = client.session.send(socket, requests.REQUEST, {"op": "ping", "nonce": "doctor"})
            while (left_s := began + ANSWER_S - clock.monotonic()) > 0:
                if not socket.poll(int(left_s * 1000) + 1):
                    continue
                _, reply = client.session.recv(socket)
                if reply and reply["parent_header"].get("msg_id") == asked["header"]["msg_id"]:
                    return clock.monotonic() - began
    return None


def _why_no_page(extension: Presenter) -> str | None:
    if extension.is_text:
        return f"a {'terminal' if extension.kernel is None else 'console'} has no page"
    if is_headless(extension.shell):
        return "headless, so no page would answer"
    if not extension.config.card:
        return "live cards are off (turn them on with %config NbRun.card = True)"
    return None


def _page(extension: Presenter) -> Iterator[Finding]:
    why = _why_no_page(extension)
    if why is not None:
        yield Finding(Sign.NOTE, "page", f"not checked: {why}", "run doctor where you want to see cards")


def _subshells(kernel: Any) -> Iterator[Finding]:
    """Yield whether clicks are handled while a cell runs; Cancel is in any case.

    Source: ipykernel 7 has a `shell_channel_thread`, which manages subshells; since 7.4 it hands messages of a
    widget to the thread that the kernel itself last sent from, which is mostly the main one. Before, it sends replies
    past the stream that reads the same socket, which then may not read a request that has arrived (its issue 1554).
    """
    if kernel is None:
        return
    from ipykernel.comm.comm import BaseComm

    subject, waits = "subshells", "wait until no cell is running; Cancel doesn't"
    thread = getattr(kernel, "shell_channel_thread", None)
    opened = [] if thread is None else thread.manager.list_subshell()
    if thread is None:
        text = f"not supported by this ipykernel: clicks on widgets {waits}"
        yield Finding(Sign.NOTE, subject, text, "nothing to do, or pip install -U ipykernel")
    elif hasattr(BaseComm, "_reply_subshell_for"):
        text = f"{len(opened)} open; with this ipykernel most clicks on widgets still {waits}"
        yield Finding(Sign.OK, subject, text)
    elif opened:
        text = f"{len(opened)} open: clicks on widgets are handled while a cell is running"
        yield Finding(Sign.OK, subject, text)
    else:
        text = f"none open: JupyterLab opens one with its first widget; on other pages clicks {waits}"
        yield Finding(Sign.OK, subject, text)
    if thread is not None and not hasattr(BaseComm, "_reply_subshell_for"):
        text = f"{_version('ipykernel')} may lose the request for a cell: it stays at [*] until something else is run"
        yield Finding(Sign.NOTE, "ipykernel", text, 'pip install -U "ipykernel>=7.4", and restart the kernel')


# --- the kernel's loop, and the agents' ------------------------------------------------------------


def _nesting() -> Finding:
    """Return who made the event loop reentrant: its `run_forever` is then that module's own.

    Source: nest_asyncio 1.6 and nest_asyncio2 1.7 put it on the loop's class and mark `asyncio._nest_patched`.
    """
    try:
        loops = [type(asyncio.get_running_loop())]
    except RuntimeError:  # a terminal's cells run outside of a loop
        loops = []
    owners = {getattr(loop.run_forever, "__module__", "") for loop in loops}
    by = sorted(owners & {"nest_asyncio", "nest_asyncio2"})
    if not by and not hasattr(asyncio, "_nest_patched"):
        return Finding(Sign.OK, "nest_asyncio", "not applied")
    if "nest_asyncio" in by or (not by and "nest_asyncio" in sys.modules):
        text = "nest_asyncio is applied; on ipykernel 7 it loses clicks and other widget messages"
        fix = "restart the kernel, and use nest_asyncio2 instead (pip install nest-asyncio2)"
        return Finding(Sign.PROBLEM, "nest_asyncio", text, fix)
    text = "nest_asyncio2 is applied, which is safe; clicks wait for a nested run to end"
    return Finding(Sign.NOTE, "nest_asyncio", text, "use await instead of asyncio.run() where you can")


def _calls(extension: Presenter) -> Iterator[Finding]:
    """Yield through which packages the model calls of runs are seen, and through which they aren't."""
    subject = "model calls"
    if not extension.session.watch_calls:
        text = "not seen: on cards and for limits there is only what agents report, and a cancel closes no connection"
        yield Finding(Sign.NOTE, subject, text, "%config NbRun.watch_calls = True")
        return
    found = {name: version for name in CLIENTS if (version := _version(name))}
    loaded = [f"{name} {version}" for name, version in found.items() if name in sys.modules]
    later = [f"{name} {version}" for name, version in found.items() if name not in sys.modules]
    parts = [", ".join(loaded), f"once imported, {', '.join(later)}" if later else ""]
    seen = " and, ".join(filter(None, parts)) or f"{', '.join(CLIENTS)}, none of which is installed"
    yield Finding(Sign.OK, subject, f"seen through {seen}; requests of other packages aren't")
    if others := [name for name in _OTHER_CLIENTS if name in sys.modules and name not in CLIENTS]:
        text = f"not seen through {', '.join(others)}: there, cards and limits have what agents report"
        yield Finding(Sign.NOTE, subject, text, "nothing to do if your agent reports its usage, as adapters do")


def _version(package: str) -> str:
    """Return the version of a package, without importing it; empty if it isn't installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _runs(extension: Presenter) -> Iterator[Finding]:
    session, subject = extension.session, "runs"
    live = session.live_runs
    waiting = sum(run.status is RunStatus.QUEUED for run in live)
    text = f"{len(live)} in progress, {waiting} of them queued; at most {session.max_concurrent} run at once"
    if waiting:
        fix = "they start when others end; allow more with %config NbRun.max_concurrent = 16"
        yield Finding(Sign.NOTE, subject, text, fix)
    else:
        yield Finding(Sign.OK, subject, text)
    for run in live:
        if run.problem is not None:
            yield Finding(Sign.PROBLEM, subject, f"#{run.number} {run.name} is not saved: {run.problem}",
                          "Fix this; the run is saved as soon as the problem is gone.")  # fmt: skip
    yield from _loops(session.ping_hosts(ANSWER_S))


def _loops(answers: list[float | None]) -> Iterator[Finding]:
    """Yield whether the event loops of the agents answer; there is more than one if an agent blocked one."""
    subject = "agents' loop"
    quick = [took_s for took_s in answers if took_s is not None and took_s < SLOW_S]
    if quick:
        yield Finding(Sign.OK, subject, f"answers in {duration(max(quick))}")
    if blocked := len(answers) - len(quick):
        text = f"{blocked} of {len(answers)} blocked: an agent blocks the event loop that it shares with others"
        fix = "find it with %agentrun list, cancel it, and start it again with --thread"
        yield Finding(Sign.PROBLEM, subject, text, fix)


_WAITS = Finding(Sign.NOTE, "page", "reports here once it is displayed", "open this notebook in a browser")


_LIMIT = 4
"""How many lines a page may report; it tries two channels."""

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class PageProbe(anywidget.AnyWidget):
    """What the page draws: two requests to the kernel, and their answers."""

    _esm = page_module("doctor.js")
    kernel_id = traitlets.Unicode().tag(sync=True)


def show_probe(kernel_id: str, answer: Answer) -> None:
    """Display the probe; once the page has its answers, they replace the widget as a static output."""
    from IPython.display import DisplayHandle, display

    widget, handle = PageProbe(kernel_id=kernel_id), DisplayHandle()

    def on_message(_widget: object, content: object, _buffers: object) -> None:
        if not isinstance(content, dict):
            return
        if content.get("op") != "found":
            widget.send(answer(content))
            return
        handle.update(bundle(_findings(content.get("findings"))), raw=True)
        widget.close()

    widget.on_msg(on_message)
    view = {"version_major": 2, "version_minor": 1, "model_id": widget.model_id}
    data = {"application/vnd.jupyter.widget-view+json": view, **bundle([_WAITS])}
    display(data, raw=True, display_id=handle.display_id)


def _findings(reported: object) -> list[Finding]:
    """Return what the page reports; it comes from outside, so nothing is taken for granted."""
    rows = reported[:_LIMIT] if isinstance(reported, list) else []
    signs = set(Sign)
    return [
        Finding(
            Sign(row["sign"]) if row.get("sign") in signs else Sign.NOTE,
            *(str(row.get(part, ""))[:300] for part in ("subject", "text", "fix")),
        )
        for row in rows
        if isinstance(row, dict)
    ]
