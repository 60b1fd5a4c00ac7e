"""What loading nbrun imports into a kernel; `python -m tests.bench.kernel` measures what it costs."""

from __future__ import annotations

from tests.kernel.cells import AGENTS, run_ok, value
from tests.kernel.driver import Kernel

HEAVY = ("anywidget", "ipywidgets", "pydantic_ai", "pydantic", "xllamacpp", "rich", "pandas", "openai")

LOAD = """\
import sys
before = set(sys.modules)
%load_ext nbrun
"""


def test_loading_imports_no_widgets_and_no_agent_framework(kernel: Kernel) -> None:
    """They come with the first card and the first model, not with the load; nor with bad input."""
    run_ok(kernel, LOAD)
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
