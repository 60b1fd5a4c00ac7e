"""Results of runs in a later kernel: shown as they were, safely, and loaded where that is asked for."""

from __future__ import annotations

import base64
import builtins
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter

from nbrun import NotebookSession, Run, RunStatus
from nbrun.agents import Worker
from nbrun.core import mimebundle as bundle
from nbrun.core.artifacts import folder_beside
from nbrun.core.errors import BadOption, NbrunError, NoResult
from nbrun.host import driver
from nbrun.render.results import ResultView
from nbrun.ui.extension import format_value
from tests.fakes import agents
from tests.fakes.agents import BOUND_S
from tests.fakes.clock import FakeClock

MakeSession = Callable[..., NotebookSession]

PNG = b"\x89PNG\r\n\x1a\n picture"


class Shown:
    """Shows itself by what it is given, as IPython finds it."""

    def __init__(self, html: str = "<b>bold</b>", png: bytes | None = None) -> None:
        self._html = html
        self._png = png

    def _repr_html_(self) -> str:
        return self._html

    def _repr_png_(self) -> bytes | None:
        return self._png

    def __repr__(self) -> str:
        return "<shown>"


class Reprs:
    """A value whose HTML form does what a test says."""

    def __init__(self, form: Callable[[], str]) -> None:
        self._repr_html_ = form

    def __repr__(self) -> str:
        return "<odd>"


def returning(value: object) -> Callable[[str], object]:
    """Return a sync agent that returns the value."""
    return lambda prompt: value


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


@pytest.fixture
def make_shown(make_session: MakeSession) -> MakeSession:
    """Makes sessions with IPython's own formatters."""

    def make(**options: object) -> NotebookSession:
        session = make_session(**options)
        shell = SimpleNamespace(display_formatter=DisplayFormatter())
        session.parts.artifact_writer.on_format = functools.partial(format_value, shell)
        return session

    return make


def forms(view: object) -> dict[str, str]:
    """Return what Jupyter gets of a stored output's view."""
    assert isinstance(view, ResultView), view
    return view._repr_mimebundle_()


# --- how an output looks -----------------------------------------------------------------------------


def test_a_data_frame_still_shows_as_a_table_in_the_next_session(
    make_shown: MakeSession, make_session: MakeSession
) -> None:
    """Here it is the object itself; later its table, its text, and its JSON-like form beside."""
    frame = pd.DataFrame({"tea": ["sencha", "assam"], "grams": [3, 4]})
    run = ended(make_shown().start(returning(frame), name="frame"))
    assert run.output is frame
    assert run.result_view() is frame
    later = make_session().get("frame")
    shown = forms(later.result_view())
    assert "<table" in shown["text/html"]
    assert "<td>sencha</td>" in shown["text/html"]
    assert "<style" not in shown["text/html"]
    assert "sencha" in repr(later.result_view())
    assert isinstance(later.output, dict)
    assert later.output["$type"].endswith("DataFrame")
    kinds = [event.type for event in later.events()]
    assert kinds.index("artifact") < kinds.index("run.completed")


def test_a_picture_comes_back_as_it_was(make_shown: MakeSession, make_session: MakeSession) -> None:
    """Its bytes are those that the formatter gave."""
    ended(make_shown().start(returning(Shown(png=PNG)), name="picture"))
    shown = forms(make_session().get("picture").result_view())
    assert base64.b64decode(shown["image/png"]) == PNG


def test_a_page_of_a_run_shows_its_picture_and_its_table(
    make_shown: MakeSession, make_session: MakeSession, tmp_path: Path
) -> None:
    """Exported by a later kernel, with nothing that is fetched; what acts in a table is gone there too."""
    table = "<table><tr><td onclick=steal()>sencha</td></tr></table><script>steal()</script>"
    ended(make_shown().start(returning(Shown(png=PNG)), name="picture"))
    ended(make_shown().start(returning(Shown(table)), name="table"))
    later = make_session()
    picture = later.get("picture").export(tmp_path / "picture.html").read_text(encoding="utf-8")
    assert f'<img src="data:image/png;base64,{base64.b64encode(PNG).decode()}" alt=' in picture
    assert "default-src 'none'; img-src data:; style-src" in picture
    page = later.get("table").export(tmp_path / "table.html").read_text(encoding="utf-8")
    assert "<td>sencha</td>" in page
    assert "steal" not in page


@pytest.mark.parametrize("value", [None, "text", 3, 2.5, True, [1], {"a": Shown()}, (1, 2), {1}])
def test_a_plain_output_costs_nothing(
    make_session: MakeSession, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No formatter is called, no thread started and nothing kept for JSON-like values; they show as themselves."""
    session = make_session()
    asked: list[object] = []

    def on_format(value: object) -> dict[str, object]:
        asked.append(value)
        return {}

    session.parts.artifact_writer.on_format = on_format

    async def agent(prompt: str) -> object:
        return value

    run = ended(session.start(agent, name="plain"))
    assert asked == []
    assert run.artifacts == []
    later = make_session().get("plain")
    assert later.result_view() == later.output


def test_what_shows_as_text_only_is_not_kept_twice(make_shown: MakeSession) -> None:
    """The log has the repr already."""
    run = ended(make_shown().start(returning(object())))
    assert run.artifacts == []


def test_a_form_that_raises_or_prints_is_told_in_its_run(make_shown: MakeSession) -> None:
    """The run stays completed, its card names the error, and its prints are its own."""

    def form() -> str:
        print("about to fail")
        raise ValueError("no table today")

    run = ended(make_shown().start(returning(Reprs(form))))
    assert run.status is RunStatus.COMPLETED
    assert "ValueError: no table today" in run.record.notices[0]
    assert "about to fail" in run.record.log


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt])
def test_a_form_that_wants_to_end_everything_ends_nothing(make_shown: MakeSession, raised: type[BaseException]) -> None:
    """Its run is completed, and its card names what was raised."""

    def form() -> str:
        raise raised("enough")

    run = ended(make_shown().start(returning(Reprs(form))))
    assert run.status is RunStatus.COMPLETED
    assert f"{raised.__name__}: enough" in run.record.notices[0]


@pytest.fixture
def hanging() -> Iterator[tuple[Reprs, threading.Event]]:
    """A value whose form hangs, and what says that it does."""
    asked, gate = threading.Event(), threading.Event()

    def form() -> str:
        asked.set()
        gate.wait()
        return "<b>late</b>"

    yield Reprs(form), asked
    gate.set()


def test_a_form_that_hangs_holds_up_nobody_and_its_own_run_for_a_time(
    make_shown: MakeSession, hanging: tuple[Reprs, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run ends meanwhile; the run itself ends completed after the limit, with a word on its card."""
    value, asked = hanging
    monkeypatch.setattr(driver, "FORMAT_LIMIT_S", 0.5)
    session = make_shown()
    run = session.start(returning(value))
    assert asked.wait(BOUND_S)
    assert not run.done()
    ended(session.start(agents.instant))
    assert ended(run).status is RunStatus.COMPLETED
    assert run.output is value
    assert "more than 0.5 s" in run.record.notices[0]


def test_showing_an_output_is_not_the_run_s_time_and_an_import_is_left_alone(
    make_shown: MakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure whose package imports for long is kept as shown, and its run took as long as its agent."""
    (tmp_path / "slow_figures.py").write_text("import builtins\nbuiltins.slow_figures_gate()\nhtml = '<b>drawn</b>'\n")
    monkeypatch.syspath_prepend(tmp_path)
    asked, looked = threading.Event(), threading.Semaphore(0)
    gate = threading.Event()

    def importing() -> None:
        asked.set()
        assert gate.wait(BOUND_S)

    def form() -> str:
        return str(importlib.import_module("slow_figures").html)

    is_importing = Worker.is_importing

    def look(worker: Worker[object]) -> bool:
        looked.release()
        return is_importing(worker)

    monkeypatch.setattr(builtins, "slow_figures_gate", importing, raising=False)
    monkeypatch.setattr(Worker, "is_importing", look)
    monkeypatch.setattr(driver, "FORMAT_LIMIT_S", 0.05)
    clock = FakeClock()
    run = make_shown(clock=clock).start(returning(Reprs(form)), timeout_s=3.0)
    assert asked.wait(BOUND_S)
    clock.move(5.0)
    for _ in range(2):  # the time is up, and again
        assert looked.acquire(timeout=BOUND_S)
    gate.set()
    assert ended(run).status is RunStatus.COMPLETED
    assert run.status_words() == "Completed in 0 ms"
    assert (run.record.notices, [made.name for made in run.artifacts]) == ((), ["output"])


def test_a_cancel_does_not_wait_for_a_form_that_hangs(
    make_shown: MakeSession, hanging: tuple[Reprs, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends cancelled at once, and what it had returned is kept."""
    value, asked = hanging
    monkeypatch.setattr(driver, "FORMAT_LIMIT_S", 300.0)
    run = make_shown().start(returning(value))
    assert asked.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.output) == (RunStatus.CANCELLED, value)


def test_too_large_a_form_leaves_its_text_and_a_note(
    make_shown: MakeSession, make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view says what is missing and how large it was."""
    monkeypatch.setattr(bundle, "LIMIT", 10_000)
    ended(make_shown().start(returning(Shown("x" * 2_000_000)), name="large"))
    view = make_session().get("large").result_view()
    assert set(forms(view)) == {"text/plain"}
    assert "text/html of 2 MB: too large" in repr(view)
    assert "<shown>" in repr(view)


def test_a_key_in_a_form_is_not_kept(
    make_shown: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk of it has the key's name in its place."""
    monkeypatch.setenv("TEA_API_KEY", "leaves-and-water")
    run = ended(make_shown().start(returning(Shown("<b>leaves-and-water</b>"))))
    kept = run.artifacts[0].read()
    assert b"leaves-and-water" not in kept
    assert b"[TEA_API_KEY]" in kept


# --- a stranger's store ------------------------------------------------------------------------------

HOSTILE = {
    "script": "<script>steal()</script>",
    "handler": "<b onclick=steal()>x</b>",
    "broken image": "<img src=x onerror=steal()>",
    "remote image": "<img src=https://spy.example/p.png>",
    "svg": "<svg onload=steal()><script>steal()</script></svg>",
    "svg as data": "<img src='data:image/svg+xml;base64,PHN2Zy8+'>",
    "frame": "<iframe srcdoc='<script>steal()</script>'></iframe>",
    "link that runs": "<a href='javascript:steal()'>x</a>",
    "link with data": "<a href='data:text/html,<script>steal()</script>'>x</a>",
    "style": "<style>*{background:url(https://spy.example)}</style>",
    "inline style": "<b style='background:url(https://spy.example)'>x</b>",
    "form": "<form action=https://spy.example><input name=password></form>",
    "base": "<base href=https://spy.example>",
    "command": "<button data-commandlinker-command='notebook:run-all-cells'>x</button>",
    "id": "<b id='jp-main' class='jp-Button' name='x'>x</b>",
    "mutation": "<math><mtext><table><mglyph><style><img src=x onerror=steal()>",
}
BAD = ("<script", "steal", "spy.example", "<svg", "svg+xml", "<iframe", "javascript:", "data:", "<style",
       "style=", "<form", "<input", "<base", "commandlinker", "<button", "id=", "jp-")  # fmt: skip


@pytest.mark.parametrize("html", HOSTILE.values(), ids=HOSTILE.keys())
def test_stored_html_does_nothing(html: str) -> None:
    """Whatever was stored, what is shown has no script, style, form, id or remote image."""
    clean = bundle.safe_html(f"<table border=1><tr><td colspan=2>kept</td></tr></table>{html}")
    assert [word for word in BAD if word in clean] == []
    assert "kept" in clean
    assert 'colspan="2"' in clean


def test_what_is_harmless_in_html_stays() -> None:
    """Links to http(s) and images within the text."""
    clean = bundle.safe_html("<a href='https://tea.example'>tea</a><img src='data:image/png;base64,iVBO'>")
    assert 'href="https://tea.example"' in clean
    assert 'src="data:image/png;base64,iVBO"' in clean


@pytest.mark.parametrize(
    "blob",
    [b"", b"no json", b"[]", b'{"data": 3}', b'{"data": {"text/html": 3, "image/png": "\\"><script>"}}',
     b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_bundle_is_still_something_to_show(blob: bytes) -> None:
    """Never an error, and never what is not an image under the name of one."""
    shown = bundle.unpacked(blob)
    assert set(shown) == {"text/plain"}


def test_a_view_whose_file_is_gone_says_so(
    make_shown: MakeSession, make_session: MakeSession, store_path: Path
) -> None:
    """The output's text stands beside the reason."""
    run = ended(make_shown().start(returning(Shown()), name="gone"))
    for path in folder_beside(store_path).rglob(run.artifacts[0].sha256):
        path.unlink()
    text = repr(make_session().get("gone").result_view())
    assert "<shown>" in text
    assert "the artifact 'output' is no longer in" in text


# --- the object itself -------------------------------------------------------------------------------


class Tattling:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._folder,)


def test_a_kept_object_is_loaded_only_where_its_store_is_said_to_be_trusted(make_session: MakeSession) -> None:
    """`trusted=True` gives the object; without it, one line names the risk."""
    frame = pd.DataFrame({"tea": [1]})
    ended(make_session().start(returning(frame), name="kept", keep_object=True))
    later: Run = make_session().get("kept")
    with pytest.raises(BadOption, match="runs any code") as raised:
        later.load_object()
    assert len(raised.value._render_traceback_()) == 1
    with pytest.raises(BadOption):
        later.load_object(trusted="yes")  # type: ignore[arg-type]  # only True is a word for it
    assert frame.equals(later.load_object(trusted=True))
    assert later.artifacts[-1].media_type == "application/x-python-pickle"


def test_looking_at_a_run_unpickles_nothing(make_session: MakeSession, tmp_path: Path) -> None:
    """Neither its record, its output, its view nor its list of files."""
    trace = tmp_path / "trace"
    ended(make_session().start(returning(Tattling(trace)), name="tattling", keep_object=True))
    later = make_session().get("tattling")
    for look in (later.events, later.result_view, lambda: (later.output, later.record)):
        look()
    assert [made.id for made in later.artifacts] == ["object"]
    assert not trace.exists()
    later.load_object(trusted=True)
    assert trace.exists()


def test_what_cannot_be_pickled_is_a_word_on_the_card(make_session: MakeSession) -> None:
    """The run stays completed, and there is no object to load."""
    run = ended(make_session().start(returning(threading.Lock()), keep_object=True))
    assert run.status is RunStatus.COMPLETED
    assert "the output object was not kept (TypeError" in run.record.notices[0]
    with pytest.raises(NoResult, match="--keep-object"):
        run.load_object(trusted=True)


def test_an_object_of_a_process_of_its_own_is_kept_there(make_session: MakeSession) -> None:
    """What comes back as data can be loaded as the object that it was."""
    session = make_session()
    run = ended(session.start(returning({1, 2}), on="process", keep_object=True))
    assert run.output == [1, 2]
    assert run.load_object(trusted=True) == {1, 2}


def test_an_object_whose_class_is_not_here_is_one_line(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the run and what is missing."""
    run = ended(make_session().start(returning({1}), name="lost", keep_object=True))
    monkeypatch.setattr("pickle.loads", _missing)
    with pytest.raises(NbrunError, match=r"of run #1 \(lost\) cannot be loaded here: ModuleNotFound"):
        run.load_object(trusted=True)


def _missing(blob: bytes) -> object:
    raise ModuleNotFoundError("No module named 'tea'")


def test_bytes_are_bytes_after_a_restart(make_session: MakeSession) -> None:
    """Few and many, alone and within."""
    value = {"few": b"\x00\xff", "many": b"steam" * 400_000}
    first = make_session()
    run = ended(first.start(returning(value)))
    first.close()
    assert make_session().get(run.id).output == value


def test_an_object_with_a_secret_is_not_kept(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pickle nothing can be replaced; the card says why there is none. Bytes are redacted as text is."""
    secret = "sk-proj-0123456789abcdef"
    session = make_session()
    session.redact(secret, "MY_KEY")
    run = ended(session.start(returning({"key": secret}), keep_object=True))
    assert run.record.notices == ("the output object was not kept: it holds a secret",)
    run = ended(session.start(returning([secret.encode()])))
    session.close()
    assert make_session().get(run.id).output == [b"[MY_KEY]"]
