"""The runs of one notebook: starts, finds, cancels and closes them."""

# What other rooms use, so that they can import it in one statement.
from nbrun.sessions.control import check_edited
from nbrun.sessions.default import SHELL_ATTRIBUTE
from nbrun.sessions.live_run import LiveRun
from nbrun.sessions.observers import Observer
from nbrun.sessions.run import Run, queue_words
from nbrun.sessions.run_list import RunList
from nbrun.sessions.run_set import RunSet
from nbrun.sessions.session import LIST_LIMIT, NotebookSession

__all__ = [
    "LIST_LIMIT", "SHELL_ATTRIBUTE", "LiveRun", "NotebookSession", "Observer", "Run", "RunList", "RunSet",
    "check_edited", "queue_words",
]  # fmt: skip
