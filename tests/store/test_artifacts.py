"""Files that runs make: kept whole beside the store, listed with their run, and never trusted blindly."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run, RunContext
from nbrun.core import artifacts as artifacts_module
from nbrun.core.artifacts import STRAY_AGE_S, ArtifactFiles, folder_beside
from nbrun.core.errors import ArtifactLost
from nbrun.core.record import FILES
from nbrun.render import static_card as snapshot
from nbrun.store import payloads as large
from nbrun.ui.cards import view
from tests.fakes import agents
from tests.fakes.agents import BOUND_S

MakeSession = Callable[..., NotebookSession]


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


async def reporter(prompt: str, run: RunContext) -> bool:
    """Keep a text."""
    return run.artifact("report.md", f"# {prompt}")


async def hoarder(prompt: str, run: RunContext) -> None:
    """Keep a dozen files, and one with a name that leads elsewhere."""
    for number in range(12):
        run.artifact(f"{number}.txt", "x" * 1_500)
    run.artifact("../../\x1b[31mout.txt", "escaped")


def file_of(run: Run, store_path: Path) -> Path:
    """Return the file of a run's only artifact."""
    (made,) = run.artifacts
    return folder_beside(store_path) / made.sha256[:2] / made.sha256


def test_a_card_tells_which_files_there_are(
    make_session: MakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of them, with their sizes, and where the others are had; large values of nbrun's own do not count."""
    monkeypatch.setattr(large, "LIMIT", 1_000)
    run = ended(make_session().start(hoarder))
    assert (run.record.file_count, len(run.record.files)) == (13, FILES)
    (note,) = view.view(run.record, 0.0)["notes"]
    assert note.startswith("13 files: …, 8.txt (1.5 kB), 9.txt (1.5 kB)")
    assert note.endswith('out.txt (7 B) · nbrun.get("run-seq-0").artifacts')
    assert "  13 files: …, 8.txt (1.5 kB)" in snapshot.bundle(run.record)["text/plain"]
    none = ended(make_session().start(agents.chatty(2_000)))
    assert none.record.file_count == 0


def test_an_artifact_is_saved_where_one_wants_it(make_session: MakeSession, tmp_path: Path) -> None:
    """Under a name, or under its own into a folder and nowhere else; what is there is not overwritten."""
    run = ended(make_session().start(hoarder))
    first, *_, last = run.artifacts
    folder = tmp_path / "saved"
    folder.mkdir()
    assert first.save(folder / "mine.txt").read_bytes() == b"x" * 1_500
    assert first.save(str(folder)) == folder / "0.txt"
    assert last.save(folder) == folder / "out.txt"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["notebook", "saved"]
    with pytest.raises(FileExistsError):
        first.save(folder)
    assert (folder / "0.txt").read_bytes() == b"x" * 1_500


def test_an_artifact_is_saved_into_a_folder_that_is_not_there_yet(
    make_session: MakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that ends in a slash, or has no suffix where the artifact has one, is a folder; any other is a file."""

    async def maker(prompt: str, run: RunContext) -> None:
        run.artifact("plot.png", b"png")
        run.artifact("README", b"text")

    plot, readme = ended(make_session().start(maker)).artifacts
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert plot.save("plots") == Path("plots/plot.png")
    assert plot.save("deep/er/") == Path("deep/er/plot.png")
    assert plot.save("other/mine.png") == Path("other/mine.png")
    assert readme.save("notes") == Path("notes")
    assert readme.save("texts/") == Path("texts/README")
    with pytest.raises(FileExistsError):
        plot.save("notes")  # a file
    files = sorted(str(each.relative_to(Path.cwd())) for each in Path.cwd().rglob("*") if each.is_file())
    assert files == ["deep/er/plot.png", "notes", "other/mine.png", "plots/plot.png", "texts/README"]


def test_an_artifact_is_listed_and_read_also_by_the_next_session(
    make_session: MakeSession, store_path: Path, tmp_path: Path
) -> None:
    """Text, bytes and a copied file come back as they were, in order, with their sizes, types and hashes."""
    original = tmp_path / "plot.png"
    original.write_bytes(b"\x89PNG" * 1000)

    async def maker(prompt: str, run: RunContext) -> list[bool]:
        return [
            run.artifact("report.md", "# Täa"),
            run.artifact("data", b"\x00\x01"),
            run.artifact("plot.png", original),
            run.artifact("odd", "{}", media_type="application/x-odd"),
        ]

    run = ended(make_session().start(maker, name="maker"))
    assert run.output == [True, True, True, True]
    original.unlink()  # it was copied
    for found in (run, make_session().get("maker")):
        assert [(a.id, a.name, a.media_type, a.read()) for a in found.artifacts] == [
            ("artifact-1", "report.md", "text/markdown", "# Täa".encode()),
            ("artifact-2", "data", "application/octet-stream", b"\x00\x01"),
            ("artifact-3", "plot.png", "image/png", b"\x89PNG" * 1000),
            ("artifact-4", "odd", "application/x-odd", b"{}"),
        ]
        assert [a.size for a in found.artifacts] == [6, 2, 4000, 2]
        sha256 = hashlib.sha256(b"\x00\x01").hexdigest()
        assert found.artifacts[1].sha256 == sha256
    told = [event.data for event in run.events() if event.type == "artifact"]
    assert [getattr(data, "head", None) for data in told] == ["# Täa", "", "", "{}"]


def test_a_sync_agent_and_one_in_a_process_keep_files_too(make_session: MakeSession) -> None:
    """Where the agent's code runs makes no difference."""
    session = make_session()

    def sync(prompt: str, run: RunContext) -> bool:
        return run.artifact("sync.txt", prompt)

    here = ended(session.start(sync, "here"))
    assert [a.read() for a in here.artifacts] == [b"here"]
    if os.name != "nt":
        there = ended(session.start(sync, "there", on="process"))
        assert there.output is True, there.record
        assert [a.read() for a in there.artifacts] == [b"there"]


def test_files_are_private_and_shared_by_content(session: NotebookSession, store_path: Path) -> None:
    """Folders are 0700, files 0600 and named by their hash; the same content twice is one file."""
    first, second = ended(session.start(reporter, "a")), ended(session.start(reporter, "a"))
    path = file_of(first, store_path)
    assert path == file_of(second, store_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, path.parent, path.parent.parent)]
    if os.name != "nt":
        assert modes == [0o600, 0o700, 0o700]
    assert [p for p in path.parent.parent.rglob("*") if p.is_file()] == [path]


def test_text_holds_no_secret(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of the environment that a text holds is replaced, in the file and in the event's head."""
    monkeypatch.setenv("TEA_API_KEY", "leaves-and-water")
    run = ended(make_session().start(reporter, "leaves-and-water"))
    assert run.artifacts[0].read() == b"# [TEA_API_KEY]"
    assert "leaves-and-water" not in repr(run.events())


@pytest.mark.parametrize("harm", ["gone", "changed", "longer", "link", "folder link"])
def test_what_is_not_what_was_kept_is_refused(
    session: NotebookSession, store_path: Path, tmp_path: Path, harm: str
) -> None:
    """A file that is missing, was changed, or leads elsewhere is one line of error, never another's content."""
    run = ended(session.start(reporter, "tea"))
    path = file_of(run, store_path)
    content = path.read_bytes()
    match harm:
        case "gone":
            path.unlink()
        case "changed":
            path.write_bytes(b"X" * len(content))
        case "longer":
            path.write_bytes(content + b"!")
        case "link":  # to the very same content: it is not followed all the same
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        case _:
            path.parent.rename(tmp_path / "folder")
            path.parent.symlink_to(tmp_path / "folder", target_is_directory=True)
    with pytest.raises(ArtifactLost) as raised:
        run.artifacts[0].read()
    (line,) = raised.value._render_traceback_()
    assert "the artifact 'report.md'" in line


def test_a_hash_that_is_none_leads_nowhere(tmp_path: Path) -> None:
    """A row that a stranger wrote names no path outside the folder."""
    (tmp_path / "secret").write_bytes(b"s")
    files = ArtifactFiles(tmp_path / "x.files")
    for sha256 in ("../secret", str(tmp_path / "secret"), "", "A" * 64):
        with pytest.raises(ArtifactLost):
            files.read(sha256, 1, "x")


def test_a_folder_that_is_a_link_is_not_written_through(
    session: NotebookSession, store_path: Path, tmp_path: Path
) -> None:
    """The agent goes on, its card says why, and nothing is written elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    store_path.parent.mkdir(mode=0o700)
    folder_beside(store_path).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    run = ended(session.start(reporter))
    assert run.output is False
    assert "symbolic link" in run.record.notices[0]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert run.artifacts == []


def test_what_cannot_be_kept_is_said_and_fails_nothing(session: NotebookSession, tmp_path: Path) -> None:
    """A path to no file is a notice on the card; a value of another kind is the agent's own mistake."""

    async def wishful(prompt: str, run: RunContext) -> bool:
        return run.artifact("x", tmp_path / "missing")

    async def wrong(prompt: str, run: RunContext) -> None:
        run.artifact("x", 3)  # type: ignore[arg-type]  # that is the point

    (tmp_path / "there").write_text("1,2")

    async def textual(prompt: str, run: RunContext) -> bool:
        return run.artifact("x", str(tmp_path / "there"))

    run = ended(session.start(textual))  # it may be meant so
    assert run.output is True
    assert "pass pathlib.Path(…) to copy that file" in run.record.notices[0]
    run = ended(session.start(wishful))
    assert run.output is False
    assert "is not a regular file" in run.record.notices[0]
    failed = ended(session.start(wrong))
    assert failed.error is not None
    assert failed.error.type == "TypeError"


def test_a_store_in_memory_keeps_files_there_up_to_a_bound(
    make_session: MakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits is read back; what does not is said on the card."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file" / "data"))
    monkeypatch.setattr(artifacts_module, "MEMORY_BYTES", 10)
    session = make_session(store=tmp_path / "file" / "x.db")  # below a file: cannot be made
    small, large = ended(session.start(reporter, "tea")), ended(session.start(reporter, "t" * 10))
    assert not session.store.is_durable
    assert [a.read() for a in small.artifacts] == [b"# tea"]
    assert large.output is False
    assert "memory" in large.record.notices[-1]


def test_a_crash_between_file_and_row_leaves_a_stray_that_is_removed_when_it_is_old(tmp_path: Path) -> None:
    """What no run names goes, half-written files with it; what is young, or named, stays."""
    files = ArtifactFiles(tmp_path / "x.files")
    named, stray, young = (files.keep(data)[0] for data in (b"named", b"stray", b"young"))
    assert files.folder is not None
    half = files.folder / "tmpabc.part"
    half.write_bytes(b"ha")
    (files.folder / "notes.txt").write_text("not ours")
    now = half.stat().st_mtime
    for path in files.folder.rglob("*"):
        if path.is_file() and path.name != young:
            os.utime(path, (now, now - 2 * STRAY_AGE_S))
    assert files.remove_strays({named}, now) == 2
    left = sorted(path.name for path in files.folder.rglob("*") if path.is_file())
    assert left == sorted([named, young, "notes.txt"])
    with pytest.raises(ArtifactLost):
        files.read(stray, 5, "stray")


@pytest.mark.parametrize(
    "values", ["size = 'big'", "size = -1", "made_at = 'now'", "made_at = 9e300", "sha256 = X'00'"]
)
def test_a_damaged_row_of_an_artifact_is_left_out(tmp_path: Path, values: str) -> None:
    """The other ones are listed."""

    async def two(prompt: str, run: RunContext) -> None:
        run.artifact("one.txt", "1")
        run.artifact("two.txt", "2")

    path = tmp_path / "a.db"
    with NotebookSession(store=path) as session:
        session.start(two).result(BOUND_S)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(f"UPDATE artifacts SET {values} WHERE name = 'one.txt'")  # noqa: S608 - ours
    with NotebookSession(store=path) as session:
        assert [each.name for each in session.runs()[0].artifacts] == ["two.txt"]
