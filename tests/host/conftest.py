"""Fixtures for the tests of hosts."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

LIBRARY = '''
import asyncio, threading

class Client:
    """Its connection is read by tasks and a thread of its own, made at the first use, for good."""

    async def ask(self, question):
        if not hasattr(self, "questions"):
            self.questions, self.ended = asyncio.Queue(), threading.Event()
            self.task = asyncio.create_task(self.read())
            self.thread = threading.Thread(target=self.ended.wait, daemon=True)
            self.thread.start()
        answer = asyncio.get_running_loop().create_future()
        self.questions.put_nowait((question, answer))
        return await answer

    async def read(self):
        while True:
            (question, answer), = await asyncio.gather(asyncio.wait_for(self.questions.get(), 3600))
            answer.set_result(question.upper())
'''


@pytest.fixture
def library(tmp_path: Path) -> ModuleType:
    """A library, installed where libraries are."""
    path = tmp_path / "site-packages" / "library.py"
    path.parent.mkdir()
    path.write_text(LIBRARY)
    module = ModuleType("library")
    exec(compile(LIBRARY, str(path), "exec"), module.__dict__)  # noqa: S102 - our own
    return module
