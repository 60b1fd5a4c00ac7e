"""The figures of the architecture stay as good as they are; `python -m tests.architecture.report` prints them all."""

from __future__ import annotations

from tests.architecture import report


def test_the_house_is_seen_at_a_glance() -> None:
    """Few entries in `nbrun/`, few floors, and a contract of a few lines."""
    assert len(report.entries()) <= 11
    assert report.floors() <= 7
    assert len(report.contract_layers()) <= 8


def test_options_are_listed_in_two_places() -> None:
    """The options of a run stand in the struct that carries them and in the table of their flags, and nowhere else."""
    assert [row.partition(":")[0] for row in report.option_lists()] == ["core/options.py", "ui/magics/options.py"]


def test_commands_are_spelled_in_ui_and_cli_only() -> None:
    """What is below carries data; a front end says how a command is spelled."""
    assert report.spelled_commands() == []


def test_few_private_members_are_read_from_outside() -> None:
    """Those that are left belong to other packages, or have a reason beside them."""
    assert len(report.foreign_privates()) <= 15


def test_modules_import_few_others() -> None:
    """Modules are cut along seams: each needs few others."""
    assert report.imports_per_1000_lines() <= 18
