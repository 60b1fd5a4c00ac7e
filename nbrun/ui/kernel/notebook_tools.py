"""The toolset `notebook`: what the built-in agent may see of the notebook, and do in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nbrun.agents.builtin.options import needs_approval
from nbrun.agents.context.run_context import current
from nbrun.core.values import shown, type_name

if TYPE_CHECKING:
    from nbrun.agents.context.run_context import RunContext
    from nbrun.ui.kernel.main_thread import Job, MainThread

NAME = "notebook"
"""What `--tools` calls them."""
TOOLS = ("list_variables", "describe_variable", "read_cell", "run_python")

BUDGET = 4_000
"""Characters that a tool returns at most."""
ROWS = 100
HEAD = 5

_IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}


class NotebookTools:
    """Functions for an agent, whose docstrings and types tell a model what they do.

    Without a main thread to run code on, there is none that runs any.

    Threads: an agent calls them on threads of its own. They read the namespace there; what runs code does so on the
    kernel's main thread.
    """

    def __init__(self, shell: Any, main: MainThread | None) -> None:
        self._shell = shell
        self._main = main

    def functions(self) -> tuple[Callable[..., object], ...]:
        """Return the tools."""

        def list_variables() -> str:
            """List the notebook's variables: name, type and size of each."""
            return self._list()

        def describe_variable(name: str) -> str:
            """Describe one variable: its schema, its first rows and a summary, or its value."""
            return self._describe(name)

        def read_cell(number: int) -> str:
            """Return the code and the output of the cell that was run as number [n]."""
            return self._cell(number)

        @needs_approval
        def run_python(code: str) -> str:
            """Run Python in the notebook; return what it prints and the value of its last expression.

            Figures and tables are shown to the user.
            """
            return self._run(code)

        looking = (list_variables, describe_variable, read_cell)
        return looking if self._main is None else (*looking, run_python)

    # --- looking ---------------------------------------------------------------------------------

    def _names(self) -> dict[str, object]:
        hidden = self._shell.user_ns_hidden
        return {
            name: value
            for name, value in self._shell.user_ns.copy().items()
            if not name.startswith("_")
            and name not in hidden
            and not isinstance(value, ModuleType | type)
            and not callable(value)
        }

    def _list(self) -> str:
        names = self._names()
        lines = [f"{name}: {_summary(value)}" for name, value in list(names.items())[:ROWS]]
        if len(names) > ROWS:
            lines.append(f"… {len(names) - ROWS} more")
        return _within("\n".join(lines)) or "no variables yet"

    def _describe(self, name: str) -> str:
        names: Mapping[str, object] = self._shell.user_ns
        if name not in names or name.startswith("_"):
            return f"there is no variable {shown(name, 60)}; list_variables tells which there are"
        value = names[name]
        if _is_table(value):
            return _within(_table(value))
        return _within(f"{_summary(value)}\n{value!r}")

    def _cell(self, number: int) -> str:
        # Source: IPython's list of inputs leaves empty cells out, so that its places are not their numbers.
        code = self._shell.user_ns.get(f"_i{number}")
        if code is None:
            return f"no cell was run as [{number}]"
        parts = [str(code)]
        for output in self._shell.history_manager.outputs.get(number, ()):
            parts.append(_text_of(output.bundle))
        return _within("\n".join(parts))

    # --- doing -----------------------------------------------------------------------------------

    def _run(self, code: str) -> str:
        main, run = self._main, current()
        assert main is not None  # noqa: S101 - else there is no such tool
        job = main.submit(code)
        handle = run.token.add_callback(lambda _: job.cancel())
        if main.is_busy and not job.done.is_set():
            run.log("run_python waits until the cell that is running has ended")
        # Without a limit: while the code runs, this thread stands for it, and is named where it does not stop.
        job.done.wait()
        handle.remove()
        run.token.raise_if_cancelled()
        return self._told(job, run)

    def _told(self, job: Job, run: RunContext) -> str:
        """Keep what the code has shown as artifacts; return what a model is told."""
        parts = [job.printed.rstrip()] if job.printed.strip() else []
        for count, bundle in enumerate(job.outputs, 1):
            text = _text_of(bundle)
            for media_type, ending in _IMAGES.items():
                if media_type in bundle:
                    name = f"figure-{count}.{ending}"
                    run.artifact(name, _bytes(bundle[media_type]), media_type)
                    text = f"{text} (shown to the user as {name})"
                    break
            else:
                if "text/html" in bundle:
                    run.artifact(f"table-{count}.html", str(bundle["text/html"]), "text/html")
            parts.append(text)
        if job.error is not None:
            parts.append(f"{type(job.error).__name__}: {job.error}")
        return _within("\n".join(parts)) or "done; nothing was printed"


def _is_table(value: object) -> bool:
    """Return whether it is a DataFrame, by its class: nothing is imported for that."""
    return type(value).__name__ == "DataFrame" and hasattr(value, "dtypes")


def _table(value: Any) -> str:
    kinds = "\n".join(f"{name}: {kind}" for name, kind in list(value.dtypes.items())[:ROWS])
    return f"{_summary(value)}\n{kinds}\n\n{value.head(HEAD)}\n\n{value.describe()}"


def _summary(value: object) -> str:
    """Return type and size; no `repr`, which may take long."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"{type_name(value)} of shape {shape}"
    if isinstance(value, bool | int | float | complex | None):
        return f"{type_name(value)} {value}"
    if isinstance(value, str):
        return f"str {shown(value, 60)!r}"
    if isinstance(value, Sized):
        return f"{type_name(value)} of length {len(value)}"
    return type_name(value)


def _text_of(bundle: Mapping[str, Any]) -> str:
    text = bundle.get("text/plain") or bundle.get("stream") or ""
    return "".join(text) if isinstance(text, list) else str(text)


def _bytes(data: Any) -> bytes:
    """Return an image's bytes; as a display tells them, they are base64, but those of an SVG."""
    if isinstance(data, bytes):
        return data
    import base64

    text = str(data)
    return text.encode() if text.lstrip().startswith("<") else base64.b64decode(text)


def _within(text: str) -> str:
    left_out = len(text) - BUDGET
    return text if left_out <= 0 else f"{text[:BUDGET]}\n… {left_out:,} characters left out"
