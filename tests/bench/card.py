"""What cards cost the page that they are in: `python -m tests.bench.card`, in a real JupyterLab and Chromium.

What is counted does not depend on the machine; times do, and its load is printed with them. A round is a notebook and
a kernel of its own.

A   ten cards, 200 tokens a second each: what is sent, tasks that block the main thread for more than 50 ms, and keys
    from their press until they are painted; the anchor is the same typing before they are there.
B   one run of 100,000 deltas and 2,000 tools: from Ctrl+Enter on its `run.display()` until its card is painted, while
    it lives and when it has ended; the anchor is a cell that displays one line. What the kernel takes of it is told.
C   waves of ten cards that come and go: what the page still holds of each, everything collected. The kernel keeps the
    widgets of the last hundred ended runs for other pages, so there are more waves than that, and the last ones count.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser import chromium
from tests.browser.gauges import Gauges, Wire, busiest_second
from tests.browser.lab import LabNotebook, LabServer

CARDS = 10
KEYS = 60
KEY_EVERY_MS = 120
DELTAS = 100_000
TOOLS = 2_000
WAVES = 14
LAST = 3

LOAD = f"""get_ipython().config.NbRun.max_concurrent = {CARDS}
%load_ext nbrun
import asyncio, nbrun, threading, time
from IPython.display import HTML
WORDS = "A text that **streams** into its card, `on` and on, as long as anybody looks at it. ".split(" ")
go_on = threading.Event()

async def stream(prompt, run):
    began, at = time.monotonic(), 0
    while not go_on.is_set():
        while at < 200 * (time.monotonic() - began):
            at += 1
            run.text(WORDS[at % len(WORDS)] + (" " if at % 60 else "\\n\\n"))
        await asyncio.sleep(0.005)

async def long(prompt, run):
    for at in range({DELTAS}):
        run.text(WORDS[at % len(WORDS)] + (" " if at % 60 else "\\n\\n"))
        if at % {DELTAS // TOOLS} == 0:
            with run.tool("search", {{"query": f"words of {{at}}"}}) as tool:
                tool.result = "a line of what was found " * 10
            await asyncio.sleep(0)
    run.phase("all said")
    await asyncio.to_thread(go_on.wait)

def show(run):
    began = time.perf_counter()
    run.display()
    took_ms.append(1000 * (time.perf_counter() - began))
took_ms = []
"""
START = f"""go_on.clear()
for at in range({CARDS}): nbrun.start(stream, name=f"stream{{at}}").display()"""
WAVE = START + "\nthreading.Timer(1, go_on.set).start()"

_TIME_OPENING = """selector => {
  window.opened = new Promise((resolve) => {
    document.addEventListener("keydown", ({ timeStamp }) => {
      const painted = new MessageChannel();
      painted.port1.onmessage = () => resolve(performance.now() - timeStamp);
      const observer = new MutationObserver(() => {
        if (!document.querySelector(selector)) return;
        observer.disconnect();
        requestAnimationFrame(() => painted.port2.postMessage(0));
      });
      observer.observe(document.body, { childList: true, subtree: true, characterData: true });
    }, { capture: true, once: true });
  });
}"""


@contextmanager
def opened(cells: Sequence[str]) -> Iterator[LabNotebook]:
    """Open a notebook with these cells behind one that loads nbrun, which has been run."""
    with (
        tempfile.TemporaryDirectory() as folder,
        LabServer(Path(folder) / "lab") as server,
        sync_playwright() as playwright,
    ):
        browser: Browser = playwright.chromium.launch(
            executable_path=chromium.find_or_install(), headless=True, args=list(chromium.ARGS)
        )
        with server.open(browser, [LOAD, *cells]) as notebook:
            notebook.run_and_wait(0)
            yield notebook
        browser.close()


def spread(times: Sequence[float]) -> str:
    """Return the middle, the 95th percentile and the longest of these milliseconds."""
    ordered = sorted(times)
    at_95 = ordered[int(0.95 * (len(ordered) - 1))]
    return f"{statistics.median(ordered):.0f} / {at_95:.0f} / {ordered[-1]:.0f}"


def listed(blocks: Sequence[float]) -> str:
    """Return how many tasks blocked the main thread, and the longest."""
    longest = ", ".join(f"{block:.0f}" for block in blocks[:4])
    return f"{len(blocks)} blocks over 50 ms" + (f" ({longest} ms)" if blocks else "")


def type_keys(notebook: LabNotebook, gauges: Gauges, index: int) -> list[float]:
    """Type into a cell, and return the milliseconds of each key."""
    notebook.select(index)
    notebook.page.keyboard.press("Enter")
    gauges.watch()
    notebook.page.keyboard.type("typing " * (KEYS // 7), delay=KEY_EVERY_MS)
    keys = gauges.keys()
    notebook.page.keyboard.press("Escape")
    return keys


def job_a() -> None:
    """Print what ten streaming cards cost."""
    with opened([START, "", "go_on.set()"]) as notebook:
        gauges, wire = Gauges(notebook.page), Wire(notebook.page)
        alone = type_keys(notebook, gauges, 2)
        notebook.select(1)  # first: this is Lab's own, and not little
        gauges.watch()
        notebook.run_and_wait(1)
        cards = notebook.output(1).locator(".nbrun-place .nbrun-card")
        expect(cards.filter(has_text="streams")).to_have_count(CARDS)
        beginning = gauges.blocks()
        wire.frames.clear()
        first = gauges.metrics()
        keys = type_keys(notebook, gauges, 2)
        last = gauges.metrics()
        streaming, frames = gauges.blocks(), list(wire.frames)
        seconds = last["Timestamp"] - first["Timestamp"]
        busy = (last["TaskDuration"] - first["TaskDuration"]) / seconds
        notebook.select(3)
        gauges.watch()
        wire.frames.clear()
        notebook.run_and_wait(3)
        expect(notebook.output(1).locator(".nbrun-card")).to_have_count(0)
        endings = wire.of_cards()
        print(
            f"A  {len(frames) / seconds:.1f} messages/s, at most {busiest_second(frames)} in any second, "
            f"{sum(frame.size for frame in frames) / seconds / 1000:.0f} kB/s; "
            f"in a second of endings {busiest_second(endings)}\n"
            f"   main thread {busy:.0%} busy; as they begin {listed(beginning)}; as they stream {listed(streaming)}; "
            f"as they end {listed(gauges.blocks())}\n"
            f"   keys p50 / p95 / max {spread(keys)} ms, without cards {spread(alone)} ms"
        )


def time_opening(notebook: LabNotebook, index: int, selector: str) -> float:
    """Run a cell, and return the milliseconds from the key until what the selector finds is painted."""
    notebook.select(index)
    Gauges(notebook.page).watch()
    notebook.page.evaluate(_TIME_OPENING, selector)
    notebook.page.keyboard.press("Control+Enter")
    took: float = notebook.page.evaluate("() => window.opened")
    notebook.wait_cell(index)
    return took


def job_b() -> None:
    """Print how long a long run takes to be shown."""
    cells = [
        "run = nbrun.start(long, name='long')\nwhile run.phase != 'all said': time.sleep(0.1)",
        "HTML('<b class=plain>a line</b>')",
        "nbrun.start(stream, name='first').display()",
        *["show(run)"] * 3,
        "go_on.set(); run.wait(20); took_ms",
        *["show(run)"] * 3,
        "took_ms",
    ]
    with opened(cells) as notebook:
        gauges = Gauges(notebook.page)
        notebook.run_and_wait(1, timeout_s=120)
        anchor = time_opening(notebook, 2, ".plain")
        notebook.run_and_wait(3)  # the first card of a kernel: it brings the code, and imports what it needs
        here = ".jp-Cell:nth-child({}) .nbrun-card__tool"
        live = [time_opening(notebook, at, here.format(at + 1)) for at in (4, 5, 6)]
        blocks = gauges.blocks()  # of the last of them
        nodes = gauges.count_nodes(".jp-Cell:nth-child(7) .nbrun-card")
        notebook.run_and_wait(7)
        here = ".jp-Cell:nth-child({}) .nbrun-static"
        ended = [time_opening(notebook, at, here.format(at + 1)) for at in (8, 9, 10)]
        notebook.run_and_wait(11)
        print(
            f"B  opens in {', '.join(f'{one:.0f}' for one in live)} ms live, "
            f"{', '.join(f'{one:.0f}' for one in ended)} ms ended; a line of HTML in {anchor:.0f} ms\n"
            f"   {nodes:,} nodes, {listed(blocks)}; of it in the kernel {notebook.outputs(11)[-1]} ms"
        )


def job_c() -> None:
    """Print what a page holds of cards that have come and gone."""
    with opened([WAVE]) as notebook:
        gauges = Gauges(notebook.page)
        notebook.select(1)
        held = []
        for _ in range(WAVES):
            notebook.run_and_wait(1)
            card = notebook.output(1).locator(".nbrun-card")
            expect(card).to_have_count(CARDS)
            expect(card).to_have_count(0)
            held.append({**gauges.held(), "shown": gauges.count_nodes("body")})
        first, last = held[-1 - LAST], held[-1]
        grown = {
            name: (last[name] - first[name]) / LAST / CARDS
            for name in ("JSHeapUsedSize", "JSEventListeners", "Nodes", "shown")
        }
        print(
            f"C  after {WAVES * CARDS} cards {last['JSHeapUsedSize'] / 1e6:.1f} MB of heap, of which the first "
            f"{CARDS} {(held[0]['JSHeapUsedSize']) / 1e6:.1f}; each of the last {LAST * CARDS} has left "
            f"{grown['JSHeapUsedSize'] / 1000:.0f} kB, {grown['JSEventListeners']:.1f} listeners, "
            f"{grown['Nodes'] - grown['shown']:.1f} nodes"
        )


def main() -> None:
    """Print the figures of each job, one after another."""
    for job in (job_a, job_b, job_c):
        job()
        print(f"   load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)


if __name__ == "__main__":
    main()
