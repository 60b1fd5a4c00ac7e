"""Where the pictures go that browser tests take: an ignored folder."""

from __future__ import annotations

import os
from pathlib import Path

SCREENSHOTS = Path(os.environ.get("NBRUN_SCREENSHOTS", Path(__file__).parent / "screenshots"))


def picture(name: str) -> Path:
    """Return where the picture of that name goes; its folder is there afterwards."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    (SCREENSHOTS / ".gitignore").write_text("*\n", encoding="utf-8")
    return SCREENSHOTS / f"{name}.png"
