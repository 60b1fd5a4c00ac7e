"""The figures of the architecture, for anybody: `python -m tests.architecture.report`.

They say where to look, and tests hold the most important ones. Nothing here imports nbrun, except for the walk of a
prompt, which is profiled in a process of its own.
"""

from __future__ import annotations

import ast
import gc
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nbrun"

COMMAND = re.compile(r"%agentrun\b|\bnbrun (?:list|show|export|import|gc|doctor|demo|local)\b")
SPELLS_COMMANDS = ("ui", "cli")
OPTIONS = (
    "timeout_s",
    "max_turns",
    "max_tokens",
    "max_cost",
    "approve",
    "if_running",
    "keep_object",
    "output_type",
    "mcp",
    "settings",
)
LISTS_OPTIONS = 6  # a function or class that names so many of them lists the options


@lru_cache(maxsize=1)
def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of each module of nbrun, by its path below `nbrun/`."""
    # CPython counts the depth of what it parses for all threads together, and formatting a traceback parses, too: while
    # a garbage collection gives another thread its turn, that thread would spoil the count (a SystemError).
    gc.disable()
    try:
        return {
            str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted(PACKAGE.rglob("*.py"))
        }
    finally:
        gc.enable()


def entries() -> list[str]:
    """Return what lies in `nbrun/` itself."""
    return sorted(
        path.name
        for path in PACKAGE.iterdir()
        if path.name not in ("__pycache__", "py.typed") and not path.name.startswith(".")
    )


def code_lines(path: Path) -> int:
    """Return how many lines of a file hold code or a docstring, imports aside."""
    text = path.read_text(encoding="utf-8")
    lines = sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())
    imports = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom))
    return lines - sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in imports)


def own_imports() -> Iterator[tuple[str, str]]:
    """Yield each import of nbrun by nbrun: the module that imports, and what it imports from."""
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nbrun"):
                yield name, node.module or ""


def imports_per_1000_lines() -> float:
    """Return how many imports of its own nbrun has for each 1,000 lines of its files."""
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in PACKAGE.rglob("*.py"))
    return 1000 * sum(1 for _ in own_imports()) / lines


def room_graph() -> dict[str, set[str]]:
    """Return which entry of `nbrun/` imports which."""
    graph: dict[str, set[str]] = defaultdict(set)
    for name, target in own_imports():
        room = Path(name).parts[0].removesuffix(".py")
        other = [*target.split("."), "__init__"][1]
        if room not in (other, "__init__"):
            graph[room].add(other)
        if room == "__init__":
            graph[room].add(other)
    return graph


def floors() -> int:
    """Return how many floors the entries of `nbrun/` make: the longest chain of imports."""
    graph = room_graph()

    def height(room: str, above: tuple[str, ...] = ()) -> int:
        below = graph.get(room, set()) - {room}
        if room in above:
            raise ValueError(f"a circle: {' -> '.join((*above, room))}")
        return 1 + max((height(other, (*above, room)) for other in below), default=0)

    return max(height(room) for room in list(graph))


def contract_layers() -> list[str]:
    """Return the layers of the import contract, the highest first."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (layers,) = re.findall(r"^layers = \[(.*?)\]", contract, re.S | re.M)
    return re.findall(r'"([^"]+)"', layers)


def _defined_privates(tree: ast.Module) -> set[str]:
    """Return the private names that a module defines, as attributes or at its top."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(part.id for part in targets if isinstance(part, ast.Name))
            if any(isinstance(part, ast.Name) and part.id == "__slots__" for part in targets):
                names.update(
                    part.value
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
    return names


def foreign_privates() -> list[str]:
    """Return where a private member is read that its own module does not define, as `file:line name`."""
    found = []
    for name, tree in modules().items():
        own = _defined_privates(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not re.match(r"_[^_]", node.attr):
                continue
            is_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not is_self and node.attr not in own:
                found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    return found


def _names_in(node: ast.AST) -> set[str]:
    names = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            names.add(part.id)
        elif isinstance(part, ast.arg | ast.keyword):
            names.add(part.arg or "")
        elif isinstance(part, ast.Attribute):
            names.add(part.attr)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            names.add(part.value.lstrip("-").replace("-", "_"))
    return names


def option_lists() -> list[str]:
    """Return the functions, classes and tables that list the options of a run, as `file:line name`."""
    found = []
    for name, tree in modules().items():
        for top in tree.body:
            parts: list[ast.stmt] = [top]
            if isinstance(top, ast.ClassDef):
                methods = [part for part in top.body if isinstance(part, ast.FunctionDef)]
                parts = [*methods, ast.Module([p for p in top.body if p not in methods], [])]  # type: ignore[list-item]
            for part in parts:
                if isinstance(part, ast.Import | ast.ImportFrom):
                    continue
                if len(_names_in(part) & set(OPTIONS)) >= LISTS_OPTIONS:
                    label = getattr(part, "name", getattr(top, "name", ast.unparse(top)[:20]))
                    found.append(f"{name}:{getattr(part, 'lineno', top.lineno)} {label}")
    return found


def spelled_commands() -> list[str]:
    """Return where a command is spelled outside the rooms that know how, as `file:line text`, docstrings aside."""
    found = []
    for name, tree in modules().items():
        if Path(name).parts[0] in SPELLS_COMMANDS:
            continue
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or id(node) in docstrings:
                continue
            if isinstance(node.value, str) and COMMAND.search(node.value):
                found.append(f"{name}:{node.lineno} {node.value[:80]}")
    return found


WALK = """
import json, sys, threading, pathlib
import nbrun
root = str(pathlib.Path(nbrun.__file__).parent)
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "nbrun")
calls, files, done, started = [], [], threading.Event(), threading.Event()
async def agent(prompt):
    done.set()
    return prompt
shell.user_ns["agent"] = agent
def look(frame, event, argument):
    code, is_main = frame.f_code, threading.current_thread() is threading.main_thread()
    if event == "return" and code.co_qualname == "NotebookSession.start":
        started.set()
    if event != "call" or done.is_set() or (is_main and started.is_set()):
        return
    if code.co_filename.startswith(root) and frame.f_back is not None:
        thread = threading.current_thread().name
        files.append((thread, code.co_filename[len(root) + 1:]))
        if frame.f_back.f_code.co_filename.startswith(root) and frame.f_back.f_code.co_filename != code.co_filename:
            calls.append(thread)
import io, contextlib
for warm in (True, False):
    calls.clear(); files.clear(); done.clear(); started.clear()
    threading.setprofile(look); sys.setprofile(look)
    with contextlib.redirect_stdout(io.StringIO()):
        shell.run_cell_magic("agentrun", "agent --noblock", "hello")
        done.wait(10)
        sys.setprofile(None); threading.setprofile(None)
        shell.run_line_magic("agentrun", "wait")
def figures(is_counted):
    return [sorted({name for thread, name in files if is_counted(thread)}), sum(map(is_counted, calls))]
json.dump([figures(lambda thread: True), figures(lambda thread: thread != "nbrun-writer")], sys.stdout)
"""


def walk() -> tuple[tuple[list[str], int], tuple[list[str], int]]:
    """Return the modules that a prompt passes before the agent's first line, and the number of calls between modules.

    Then the same without the writer's thread, which saves the run. What shows the run meanwhile isn't counted.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        answer = subprocess.run(
            [sys.executable, "-c", WALK], capture_output=True, text=True, cwd=folder,
            env={**__import__("os").environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": folder}, check=True,
        )  # fmt: skip
    whole, without_writer = json.loads(answer.stdout.splitlines()[-1])
    return tuple(whole), tuple(without_writer)


def main() -> None:
    """Print every figure, and what it is made of."""
    lines = sum(code_lines(path) for path in PACKAGE.rglob("*.py"))
    (passed, calls), (rest, rest_calls) = walk()
    privates, lists, spelled = foreign_privates(), option_lists(), spelled_commands()
    print(f"entries in nbrun/                     {len(entries())}: {', '.join(entries())}")
    print(f"floors                                {floors()}")
    print(f"layers of the import contract         {len(contract_layers())}")
    print(f"imports of its own per 1,000 lines    {imports_per_1000_lines():.1f}")
    print(f"modules, calls before the agent       {len(passed)}, {calls}")
    print(f"  without the writer's thread         {len(rest)}, {rest_calls}")
    print(f"private members read from outside     {len(privates)}")
    print(f"places that list the options          {len(lists)}")
    print(f"commands spelled below ui and cli     {len(spelled)}")
    print(f"lines of code and docstrings          {lines}")
    print(f"lines of the README                   {(ROOT / 'README.md').read_text('utf-8').count(chr(10))}")
    for title, rows in (("passed", passed), ("privates", privates), ("options", lists), ("commands", spelled)):
        print(f"\n{title}:", *rows, sep="\n  ")
    by_room = Counter(Path(row).parts[0] for row in (r.partition(":")[0] for r in privates))
    print("\nprivates by room:", dict(by_room))


if __name__ == "__main__":
    main()
