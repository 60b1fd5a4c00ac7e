"""What shows runs, with commands spelled as in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nbrun.core.errors import spell_with
from nbrun.ui.magics.options import spell

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def notebook_commands() -> Iterator[None]:
    """A front end that spells commands, as the extension is."""
    spell_with(spell)
    yield
    spell_with(None)
