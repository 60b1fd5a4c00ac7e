"""What nbrun costs a real kernel, and how soon it is heard there: `python -m tests.bench.kernel`.

Machines are noisy: read the ratios, and the CPU figures before the wall ones.

load        CPU of `%load_ext nbrun` in fresh kernels that keep compiled modules; anchor: the import of ipywidgets.
Tab         CPU of one answer beside 200 ended and 100 live runs and 1,000 names; anchor: a line without a magic.
cancel      from the request on the control channel to its reply, and to the stored end, while the main thread is busy.
interrupt   of a cell that waits for its run, to the cell's end.
shutdown    from the request to its answer, with a run that stops, one that cleans up and one that does not stop.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.kernel.cells import loaded, run_ok, value, wait_for_status, wait_for_text
from tests.kernel.driver import Kernel
from tests.kernel.test_cancel import BUSY, ask, cancel_request
from tests.kernel.test_death import shut_down

ROUNDS = 5

LOAD = """\
import time
def cost_ms(line):
    began = time.process_time()
    get_ipython().run_cell(line)
    return (time.process_time() - began) * 1000
costs = [cost_ms("%load_ext nbrun"), cost_ms("import ipywidgets")]
"""

TAB = """\
import statistics
from IPython.core.completer import provisionalcompleter
get_ipython().Completer.use_jedi = False
globals().update({f"agent_{number}": say for number in range(1000)})
for _ in range(200):
    nbrun.start(say, "hi", name="short").wait(10)
live = [nbrun.start(endless, "hi", name=f"long {number}") for number in range(100)]
def once_ms(line):
    began = time.process_time()
    with provisionalcompleter():
        assert list(get_ipython().Completer.completions(line, len(line)))
    return (time.process_time() - began) * 1000
def tab_ms(line):
    return statistics.median(once_ms(line) for _ in range(5))
"""
LINES = ("agent_7", "%agentrun ", "%agentrun show ", "%agentrun cancel ", "%%agentrun agent_7")


@contextlib.contextmanager
def started(**env: str) -> Iterator[Kernel]:
    """A fresh kernel in a folder of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # An empty variable counts as not set: compiled modules are kept, as an installed package has them.
        env = {"PYTHONDONTWRITEBYTECODE": "", **env}
        with Kernel(Path(folder), env=env) as kernel:
            yield kernel


def shown(name: str, *figures: str) -> None:
    """Print the figures of one line."""
    print(f"{name:<32} {'   '.join(figures)}", flush=True)


def measure_load() -> None:
    """Load it in fresh kernels; the first one compiles."""
    costs = []
    for _ in range(ROUNDS + 1):
        with started() as kernel:
            run_ok(kernel, LOAD)
            costs.append([float(value(kernel, f"costs[{at}]")) for at in range(2)])
    own, anchor = (statistics.median(each) for each in zip(*costs[1:], strict=True))
    shown("load", f"{own:6.0f} ms CPU", f"anchor {anchor:6.0f} ms", f"ratio {own / anchor:.2f}")


def measure_tab() -> None:
    """Ask for completions in a full session."""
    with started() as kernel:
        loaded(kernel)
        kernel.run(TAB, timeout_s=60)
        costs = {line: float(value(kernel, f"tab_ms({line!r})")) for line in LINES}
        anchor = costs[LINES[0]]
        for line, cost in costs.items():
            shown(f"Tab {line}", f"{cost:6.1f} ms CPU", f"ratio {cost / anchor:.2f}")


def measure_cancel() -> None:
    """Cancel over the control channel while a cell blocks."""
    with started() as kernel:
        loaded(kernel)
        for situation, code in BUSY.items():
            run_ok(kernel, f"%%agentrun endless -n {situation}\nhi")
            wait_for_text(kernel, situation)
            request = cancel_request(kernel, situation)
            blocked = kernel.start(code)
            kernel.wait_until(lambda blocked=blocked: "in" in blocked.stdout)  # type: ignore[misc]
            began = time.monotonic()
            ask(kernel, request)
            heard_s = time.monotonic() - began
            wait_for_status(kernel, situation, "cancelled")
            stored_s = time.monotonic() - began
            kernel.interrupt()
            blocked.wait()
            shown(f"cancel in {situation}", f"heard {heard_s * 1000:5.0f} ms", f"stored {stored_s * 1000:5.0f} ms")


def measure_interrupt() -> None:
    """Interrupt a cell that waits for its run."""
    with started() as kernel:
        loaded(kernel)
        cell = kernel.start("%%agentrun endless --block -n waited\nhi")
        wait_for_text(kernel, "waited")
        began = time.monotonic()
        kernel.interrupt()
        cell.wait()
        shown("interrupt of a waiting cell", f"{(time.monotonic() - began) * 1000:5.0f} ms")


def measure_shutdown() -> None:
    """Shut kernels down with a live run."""
    for agent in ("endless", "tidy", "stubborn"):
        with started() as kernel:
            loaded(kernel)
            run_ok(kernel, f"%%agentrun {agent} -n live\nhi")
            wait_for_text(kernel, "live")
            began = time.monotonic()
            shut_down(kernel)
            shown(f"shutdown with {agent}", f"{(time.monotonic() - began) * 1000:5.0f} ms")


def main() -> None:
    """Measure one after another."""
    measure_load()
    measure_tab()
    measure_cancel()
    measure_interrupt()
    measure_shutdown()


if __name__ == "__main__":
    main()
