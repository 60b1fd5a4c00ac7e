"""The README and the guide: snippets run as printed, tables are the code's own, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from nbrun import cli
from nbrun.server.routes import routes
from nbrun.ui.magics.options import CELL, LINE
from tests import __main__ as checks
from tests.guide import LANGUAGES, PAGES, README, ROOT, Snippet, snippets, with_tables
from tests.notebooks.headless import execute

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
SNIPPETS = [snippet for page in PAGES for snippet in snippets(page)]
SHELL_LINES = [
    pytest.param(line, id=f"{snippet.page}:{snippet.line}")
    for snippet in SNIPPETS
    if snippet.language == "sh"
    for line in snippet.text.splitlines()
]
FAILS = {"writing-an-agent.md": ["reader", "shop"]}
"""Runs that fail because the page wants to show that."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# --- cells -------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_every_cell_runs_as_printed(tmp_path: Path) -> None:
    """In one kernel that does not wait for runs, page by page; no run fails that is not meant to."""
    cells = [cell for page in PAGES for cell in page_cells(page)]
    source = tmp_path / "pages.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source)
    (folder := tmp_path / "work").mkdir()
    executed = execute(source, folder, waits=False)
    failed = {
        cell.metadata["page"]: cell.outputs[0].text.split()
        for cell in executed.cells
        if "page" in cell.metadata and cell.outputs
    }
    assert failed == FAILS


def page_cells(page: Path) -> list[nbformat.NotebookNode]:
    """Return a page's cells, for a kernel that has other pages' names no more; the last prints the failed runs."""
    if page.name == "recipes.md":  # they run on frameworks of their own: test_recipes.py
        return []
    sources = ["%reset -f"]
    for snippet in snippets(page):
        if snippet.language in ("python", "ipython"):
            sources += [*wait_for(snippet), snippet.text]
    cells = [nbformat.v4.new_code_cell(text) for text in sources]
    if len(cells) > 1:
        end = "import nbrun\nfor run in reversed(nbrun.session().runs()):\n"
        end += "    run.wait()\n    if run.status == 'failed':\n        print(run.name)\n"
        cells.append(nbformat.v4.new_code_cell(f"{end}nbrun.session().remove_ended();"))
        cells[-1].metadata["page"] = page.name
    return cells


def wait_for(snippet: Snippet) -> list[str]:
    """Return the cell that waits as a reader would who watches the newest run's card."""
    if snippet.until is None:
        return []
    kind, _, value = snippet.until.partition(" ")
    conditions = {
        "status": f"nbrun.get('last').status == {value!r}",
        "asked": f"any({value!r} in asked.message for asked in nbrun.get('last').pending)",
    }
    return [f"import asyncio, nbrun\nwhile not {conditions[kind]}:\n    await asyncio.sleep(0.01)"]


def test_every_fence_says_what_it_is() -> None:
    """As a cell of Python, a cell that begins with a magic, lines of a shell, or a part of a TOML file."""
    assert {snippet.language for snippet in SNIPPETS} <= LANGUAGES
    for snippet in SNIPPETS:
        assert (snippet.language == "ipython") == snippet.text.startswith("%%")


def test_magics_in_the_text_are_understood() -> None:
    """Each subcommand and each option that a page shows within a sentence or a table exists."""
    text = "\n".join(TEXTS.values())
    lines = re.findall(r"`%agentrun ([a-z][^`]*)`", text)
    assert {line.split()[0] for line in lines} <= {command.verb for command in LINE.commands}
    cells = re.findall(r"`%%agentrun ([^`]*)`", text)
    plain = [re.sub(r'"[^"]*"', "", cell) for cell in cells]  # a program has options of its own
    used = {flag for cell in plain for flag in re.findall(r"(?<!\S)--?[a-z][\w-]*", cell)}
    assert used
    assert used <= {*CELL.flags()}


# --- shell -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", SHELL_LINES)
def test_shell_lines_are_understood(line: str) -> None:
    """Each command exists, and takes the arguments that it is given."""
    for command in line.split(" && "):
        check_command(shlex.split(command, comments=True))


def check_command(words: list[str]) -> None:
    """Fail unless a command is one that a reader has, with arguments that it takes."""
    match words:
        case ["nbrun", *arguments]:
            command, rest = cli.find_command(arguments)
            command.read(rest)
        case ["pip", "install", *_, target]:
            assert target.startswith(".")
            assert Requirement(f"x{target[1:]}").extras <= {*PROJECT["optional-dependencies"]}
        case ["python", "-m", "tests", *arguments]:
            checks.make_parser().parse_args(arguments)
        case ["curl", *_, url]:
            path = url.removeprefix("$SERVER")
            own = [re.fullmatch(pattern, path) for pattern, _handler in routes("/")]
            assert path == "/api/sessions" or any(own)
        case ["jupyter", program, *_]:
            (found,) = entry_points(group="console_scripts", name=f"jupyter-{program}")
            assert callable(found.load())
        case _:
            pytest.fail(f"nobody has checked whether this command exists: {words}")


# --- the rest ----------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    """Details have pages of their own."""
    assert len(TEXTS[README].splitlines()) <= 150


def test_readme_names_the_package_and_its_extras() -> None:
    """Every extra that can be installed is in the table, and no other."""
    assert f"`{PROJECT['name']}`" in TEXTS[README]
    (table,) = re.findall(r"^\| extra .*\n\|.*\n((?:\|.*\n)+)", TEXTS[README], re.M)
    named = [extra for row in table.splitlines() for extra in re.findall(r"`([\w-]+)`", row.split("|")[1])]
    assert sorted(named) == sorted(PROJECT["optional-dependencies"])


def test_readme_names_every_room() -> None:
    """The map of the code has the folders of the package, and no other."""
    rooms = {path.parent.name for path in ROOT.glob("nbrun/*/__init__.py")}
    (layout,) = re.findall(r"^(\*\*core\*\* .*?)\n\n", TEXTS[README], re.M | re.S)
    assert set(re.findall(r"\*\*(\w+)\*\*", layout)) == rooms


@each_page
def test_tables_are_those_of_the_code(page: Path) -> None:
    """If not: `python -m tests.guide` writes them anew."""
    assert TEXTS[page] == with_tables(TEXTS[page])


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    """Each link within the project is to a file, and to a heading of it where it names one."""
    prose = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.M | re.S)
    links = re.findall(r"\]\(((?!https?:)[^)]+)\)", prose)
    for link in links:
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert heading in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def test_every_page_of_the_guide_is_in_the_readme() -> None:
    """Whoever opens the project finds it from there."""
    for page in PAGES[1:]:
        assert f"(notebooks/guide/{page.name})" in TEXTS[README]
