"""Keeps apart by run what other packages have once per process: pyplot's figures, rich's prints, clients' requests.

pyplot keeps its open figures in one place, and a cell's end shows and closes all of them; rich shows what it prints in
a cell. Nothing is imported for this: a package is changed when somebody else has imported it, and changed back with
the last session.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import io
import sys
from collections import OrderedDict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nbrun.agents import RunContext, current_run
from nbrun.calls import CLIENTS, instrument
from nbrun.core import module_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_lock = module_lock()
_figures: WeakKeyDictionary[RunContext, _Figures] = WeakKeyDictionary()
_undo: list[Callable[[], object]] = []


class _Figures:
    """The open figures of one run, by number, the current one last; and how many others it has had."""

    def __init__(self) -> None:
        self.open: OrderedDict[int, Any] = OrderedDict()
        self.count = 0


def _own(run: RunContext) -> _Figures:
    with _lock:
        return _figures.setdefault(run, _Figures())


class _OpenFigures:
    """Stands for the attribute in which pyplot keeps its open figures: each run finds its own there."""

    def __init__(self, former: OrderedDict[int, Any]) -> None:
        self.former = former

    def __get__(self, _instance: object, _owner: type) -> OrderedDict[int, Any]:
        run = current_run.get()
        return self.former if run is None else _own(run).open


def keep_figures(run: RunContext) -> None:
    """Keep a run's open figures as artifacts, and close them."""
    figures = _figures.get(run)
    while figures is not None and figures.open:
        _, manager = figures.open.popitem(last=False)
        figures.count += 1
        name = f"figure-{figures.count}.png"
        buffer = io.BytesIO()
        try:
            manager.canvas.figure.savefig(buffer, format="png", bbox_inches="tight")
        except Exception as error:  # what is drawn only now may be wrong
            run.log(f"{name} is not kept: {type(error).__name__}: {str(error).strip()}", "warning")
        else:
            run.artifact(name, buffer.getvalue(), "image/png")


def has_figures(run: RunContext) -> bool:
    """Return whether a run has open figures."""
    figures = _figures.get(run) if _figures else None
    return figures is not None and bool(figures.open)


def _show(*_: object, **__: object) -> None:
    """Do what `plt.show()` does, for a run: its figures are shown as artifacts."""
    if (run := current_run.get()) is not None:
        keep_figures(run)


def _change_pyplot(pyplot: Any) -> None:
    """Have pyplot find each run's own figures, and draw them without a window or a cell."""
    from matplotlib.backends import backend_agg

    # Source: `Gcf` holds the open figures of all of pyplot; its class methods are the only ones that touch them.
    registry, backend = pyplot._pylab_helpers.Gcf, pyplot._get_backend_mod
    former = registry.figs
    aside = SimpleNamespace(**{**vars(backend_agg), "show": _show, "draw_if_interactive": lambda: None})
    registry.figs = _OpenFigures(former)
    switch = pyplot.switch_backend
    pyplot.switch_backend = lambda newbackend: switch(newbackend) if current_run.get() is None else None

    def find_backend() -> Any:
        if current_run.get() is None:
            return backend()
        # The notebook's is set up all the same, as outside the run: it is what shows a figure as a picture.
        outside = current_run.set(None)
        try:
            backend()
        except ImportError:  # a window where there can be none
            pass
        finally:
            current_run.reset(outside)
        return aside

    pyplot._get_backend_mod = find_backend

    def restore() -> None:
        registry.figs, pyplot._get_backend_mod, pyplot.switch_backend = former, backend, switch

    _undo.append(restore)


def _change_matplotlib(matplotlib: Any) -> None:
    """Leave the notebook's backend alone where an agent chooses one: it draws without a window anyway."""
    use = matplotlib.use
    matplotlib.use = lambda *args, **options: use(*args, **options) if current_run.get() is None else None
    _undo.append(lambda: setattr(matplotlib, "use", use))


def _change_rich(jupyter: Any) -> None:
    """Have rich print into a run's log, where it would show something in a cell."""
    display = jupyter.display

    def display_or_log(segments: Any, text: str) -> None:
        if current_run.get() is None:
            display(segments, text)
        else:
            sys.stdout.write("".join(segment.text for segment in segments if not segment.control))

    jupyter.display = display_or_log
    _undo.append(lambda: setattr(jupyter, "display", display))


def _change_client(package: Any) -> None:
    """Have a package for HTTP report the model calls of runs."""
    _undo.append(instrument(package))


_CHANGES: dict[str, Callable[[Any], None]] = {
    "matplotlib": _change_matplotlib,
    "matplotlib.pyplot": _change_pyplot,
    "rich.jupyter": _change_rich,
    **dict.fromkeys(CLIENTS, _change_client),
}


class _Finder(importlib.abc.MetaPathFinder):
    """Has a package changed as soon as it has been imported, and imports nothing itself."""

    def find_spec(self, name: str, path: Sequence[str] | None, _target: object = None) -> Any:
        """Return the spec of a module that is to be changed, by its loader; None for every other module."""
        change = _CHANGES.get(name)
        spec = None if change is None else importlib.machinery.PathFinder.find_spec(name, path)
        if change is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            with _lock:
                if self in sys.meta_path:
                    change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader
        return spec


def separate() -> None:
    """Keep the runs apart from now on, until `unite()`."""
    finder = _Finder()
    with _lock:
        sys.meta_path.insert(0, finder)
        _undo.append(lambda: sys.meta_path.remove(finder))
        for name, change in _CHANGES.items():
            if (module := sys.modules.get(name)) is not None:
                change(module)


def unite() -> None:
    """Undo it: there is one of each again, the notebook's own."""
    with _lock:
        while _undo:
            _undo.pop()()
        _figures.clear()
