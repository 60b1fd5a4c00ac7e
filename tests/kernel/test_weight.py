"""What loading nbrun costs a kernel: CPU time and imports, measured inside fresh kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernel.cells import AGENTS, run_ok, value
from tests.kernel.driver import Kernel

LIMIT_MS = 80.0
ROUNDS = 5
HEAVY = (
    "anywidget",
    "ipywidgets",
    "pydantic_ai",
    "pydantic",
    "xllamacpp",
    "rich",
    "pandas",
    "openai",
)

MEASURE = """\
import sys, time
before = set(sys.modules)
began = time.process_time()
get_ipython().run_line_magic("load_ext", "nbrun")
took_ms = (time.process_time() - began) * 1000
new = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
"""


@pytest.fixture
def start_installed(start_kernel: Callable[..., Kernel]) -> Callable[[], Kernel]:
    """Start kernels that keep compiled modules, as an installed package has them; one has already loaded nbrun."""

    def start() -> Kernel:
        # The variable may be set where tests run. An empty one counts as not set.
        return start_kernel(env={"PYTHONDONTWRITEBYTECODE": ""})

    run_ok(start(), MEASURE)
    return start


def test_loading_costs_little_cpu(start_installed: Callable[[], Kernel]) -> None:
    """The least of several fresh kernels stays within the limit, after IPython itself has come up.

    The least, for whatever else is at work on the machine makes the same code cost half as much again.
    """
    costs = []
    for _ in range(ROUNDS):
        kernel = start_installed()
        run_ok(kernel, MEASURE)
        costs.append(float(value(kernel, "took_ms")))
        kernel.shutdown()
    print(f"%load_ext nbrun: {', '.join(f'{cost:.0f}' for cost in sorted(costs))} ms of CPU")
    assert min(costs) <= LIMIT_MS


def test_loading_imports_no_widgets_and_no_agent_framework(kernel: Kernel) -> None:
    """They come with the first card and the first model, not with the load; nor with bad input."""
    run_ok(kernel, MEASURE)
    loaded = f"[name for name in {HEAVY} if name in sys.modules and name not in before]"
    assert value(kernel, loaded) == "[]"
    run_ok(kernel, AGENTS)
    assert kernel.run("%%agentrun nobody\nhi").error is not None
    run_ok(kernel, "%agentrun help")
    run_ok(kernel, "%agentrun list")
    assert value(kernel, loaded) == "[]"
    # Headless there is no card; with a card there is, and still no framework.
    run_ok(kernel, "%%agentrun say\nhi", headless=True)
    assert value(kernel, loaded) == "[]"
    run_ok(kernel, "%%agentrun soon -b\nhi")
    assert value(kernel, loaded) == "['anywidget', 'ipywidgets']"
