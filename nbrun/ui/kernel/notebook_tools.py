"""The toolset `notebook`: how the built-in agent reads the notebook and runs code in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nbrun.agents import RunContext, current, needs_approval, shown, type_name

if TYPE_CHECKING:
    from nbrun.ui.kernel.main_thread import Job, MainThread

NAME = "notebook"
"""What `--tools` calls the toolset."""
TOOLS = ("list_variables", "describe_variable", "read_cell", "run_python")

BUDGET = 4_000
"""How many characters a tool returns at most."""
ROWS = 100
HEAD = 5

_IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}


class NotebookTools:
    """Functions for an agent; a model reads their docstrings and types. Without a main thread, none of them runs code.

    Threads: an agent calls them on its own threads, where they read the namespace; code runs on the main thread.
    """

    def __init__(self, shell: Any, main: MainThread | None) -> None:
        self._shell = shell
        self._main = main

    def functions(self) -> tuple[Callable[..., object], ...]:
        """Return the tools."""
        reading = (self.list_variables, self.describe_variable, self.read_cell)
        return reading if self._main is None else (*reading, self.run_python)

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

    def list_variables(self) -> str:
        """List the notebook's variables: name, type and size of each."""
        names = self._names()
        lines = [f"{name}: {_summary(value)}" for name, value in list(names.items())[:ROWS]]
        if len(names) > ROWS:
            lines.append(f"… {len(names) - ROWS} more")
        return _within("\n".join(lines)) or "no variables yet"

    def describe_variable(self, name: str) -> str:
        """Describe one variable: its schema, its first rows and a summary, or its value."""
        names: Mapping[str, object] = self._shell.user_ns
        if name not in names or name.startswith("_"):
            return f"variable {shown(name, 60)} not found; list_variables lists them all"
        value = names[name]
        if _is_table(value):
            return _within(_table(value))
        return _within(f"{_summary(value)}\n{value!r}")

    def read_cell(self, number: int) -> str:
        """Return the code and the output of the cell that was run as number [n]."""
        # Source: IPython's list of inputs leaves empty cells out, so its indexes aren't their numbers.
        code = self._shell.user_ns.get(f"_i{number}")
        if code is None:
            return f"cell [{number}] not found"
        parts = [str(code)]
        for output in self._shell.history_manager.outputs.get(number, ()):
            parts.append(_text_of(output.bundle))
        return _within("\n".join(parts))

    @needs_approval
    def run_python(self, code: str) -> str:
        """Run Python in the notebook; return what it prints and the value of its last expression.

        Figures and tables are shown to the user.
        """
        main, run = self._main, current()
        assert main is not None  # noqa: S101 - else there is no such tool
        job = main.submit(code)
        handle = run.token.add_callback(lambda _: main.cancel(job))
        if main.is_busy and not job.done.is_set():
            run.log("run_python is waiting for the running cell to finish")
        # Without a limit: this thread stands for the code, and is named if the code doesn't stop.
        job.done.wait()
        handle.remove()
        run.token.raise_if_cancelled()
        return self._report(job, run)

    def _report(self, job: Job, run: RunContext) -> str:
        """Save figures and tables as artifacts; return what the model reads."""
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
        return _within("\n".join(parts)) or "done; no output"


def _is_table(value: object) -> bool:
    """Return whether it is a DataFrame, by the name of its class: pandas isn't imported for this."""
    return type(value).__name__ == "DataFrame" and hasattr(value, "dtypes")


def _table(value: Any) -> str:
    kinds = "\n".join(f"{name}: {kind}" for name, kind in list(value.dtypes.items())[:ROWS])
    return f"{_summary(value)}\n{kinds}\n\n{value.head(HEAD)}\n\n{value.describe()}"


def _summary(value: object) -> str:
    """Return type and size; no `repr`, which may be slow."""
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
    """Return an image's bytes, from base64; an SVG is text."""
    if isinstance(data, bytes):
        return data
    import base64

    text = str(data)
    return text.encode() if text.lstrip().startswith("<") else base64.b64decode(text)


def _within(text: str) -> str:
    left_out = len(text) - BUDGET
    return text if left_out <= 0 else f"{text[:BUDGET]}\n… {left_out:,} characters left out"
