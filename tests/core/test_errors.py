"""Errors carry what can be done as data; a front end spells it."""

import pickle
from collections.abc import Iterator

import pytest

from nbrun.cli import spell as spell_in_shell
from nbrun.core import errors
from nbrun.core.errors import Action, Fix
from nbrun.ui.magics.options import spell as spell_in_notebook


@pytest.fixture(autouse=True)
def _no_front_end() -> Iterator[None]:
    errors.spell_with(None)
    yield
    errors.spell_with(None)


def test_without_a_front_end_a_fix_is_plain_words() -> None:
    """A script reads what to do, and no command of a notebook that is not there."""
    error = errors.NotResumable("run #3 has completed", run="run #3", fixes=[Fix(Action.RETRY, "#3")])
    assert str(error) == "run #3 has completed. Run it again"
    assert (error.reason, error.run) == ("run #3 has completed", "run #3")


def test_front_ends_spell_the_same_fix_their_own_way() -> None:
    """The notebook names its magic, the shell its command; what only a kernel can do stays a magic."""
    error = errors.RunNotFound("No run 'x' found", fixes=[Fix(Action.LIST, path="my runs.db")])
    lost = errors.BadOption("It may run", fixes=[Fix(Action.LOST, "#3")])
    errors.spell_with(spell_in_shell)
    assert str(error) == "No run 'x' found. List the runs: nbrun list 'my runs.db'"
    assert str(lost).endswith("mark it as lost: %agentrun lost #3")
    errors.spell_with(spell_in_notebook)
    assert str(errors.RunNotFound("No run", fixes=[Fix(Action.LIST)])).endswith(": %agentrun list")


@pytest.mark.parametrize("action", Action)
def test_every_action_has_a_purpose_and_a_command(action: Action) -> None:
    """None is left out of what a person reads."""
    fix = Fix(action, "#3")
    assert str(fix)
    for spell in (spell_in_notebook, spell_in_shell):
        errors.spell_with(spell)
        assert fix.command.startswith(("%agentrun ", "nbrun "))


@pytest.mark.parametrize("kind", [errors.RunNotFinished, errors.PackageMissing, errors.NotResumable])
def test_an_error_keeps_its_data_when_it_is_pickled(kind: type[errors.NbrunError]) -> None:
    """Also those that are errors of Python at the same time."""
    raised = kind("why", run="run #1", fixes=[Fix(Action.RETRY, "#1")])
    again = pickle.loads(pickle.dumps(raised))  # noqa: S301 - our own bytes
    assert (again.reason, again.run, again.fixes) == ("why", "run #1", (Fix(Action.RETRY, "#1"),))
