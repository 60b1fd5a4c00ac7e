"""nbrun: agent runs in a notebook that can be watched, cancelled and found again."""

# General layout, from what knows nothing to what knows everything:
#
#   encoding                               values → data; text in which nothing hides, moves the rest or is obeyed.
#   errors, cancellation, events, record   what a run is. No I/O, no clock, no Jupyter.
#     facts                                what the record says, as members of a handle.
#     fold                                 from events to the record.
#     conversation                         what was said in earlier runs, read from their logs.
#     checkpoint                           a state that a run can be gone on from: as bytes, and back.
#     redaction, wording, flag             secrets out of text, states in words, a one-shot event.
#     gate, loop_flag                      whether an agent's own code is on a thread, to be cancelled there | a
#                                          one-shot event of a loop.
#     artifacts, bundle                    files beside the store, named by their hash | what an output looks like.
#   notebook                               which notebook this kernel is of.
#   clock                                  the time and the ids: nothing else reads either.
#   query, keyring, markdown_text          which runs are asked for | the secrets of a session | what an agent says,
#                                          as HTML that neither acts nor hides nor fetches.
#     verbatim                             a text in Markdown that is shown as it was written.
#   budget                                 what a run may use up, and has.
#   questions, inbox                       what a run asks of people | what people say to it. The arbiter of both.
#   keeper, result_view                    what is kept of a run beside its log | an output of an earlier kernel.
#   backstage, tool_scope, unfinished      what a host keeps ready for a run's context | what an agent has of a tool |
#                                          prints that wait for their line's end.
#   context, aftermath                     what an agent sees of its run | what is behind that when the run is over.
#   reentrant, failure                     a loop for agents that start a loop within a loop | what they raise, as text.
#   recording                              a run as a file of lines, to be shown or played again elsewhere.
#   snapshot                               a run as static output: HTML without script, Markdown, text.
#   export                                 runs as files for other eyes and other tools.
#   agents/, store/                        how agents are driven | where events are kept. Neither knows the other.
#   finding                                what doctor has found, and what it can find out without a kernel.
#   attempt, loop_thread                   what travels to a host and back | the event loop that it has for itself.
#   ladder, children, ending               stopping an agent | the runs below a run, which end before it | what is
#                                          kept of an output, and which event is the end.
#   drive, pulse, host                     one attempt, with exactly one end | who blocks the loop | all of a host's.
#   capture                                an agent's prints into its run's log.
#   executors/                             where hosts live: this kernel, or a process a run. (A cluster is to come.)
#   live_run, intake, line, hooks          a run while it lives | the one door of a session | who waits for a turn | who
#                                          is told.
#   awaiting                               for what a run does next: its creation, its events, its end.
#   run, run_list, catalog                 the handle that users hold | a table of them | finding one.
#   request, dispatch, canceller, people   what a start asks for | who goes when | who is asked to stop | what people
#                                          say to a run.
#   sequel                                 what follows a run: its resumption, its retry, its replay.
#   starter                                from what a start asks for to a run that is under way.
#   session                                the owner of a notebook's runs: starts, finds and closes them.
#   config, default                        settings | nbrun.start() and the like, on the session of this shell.
#   ui/                                    magics, cards, panel, control channel. Only this knows IPython and widgets.
#   server/                                in the Jupyter server: asks a kernel by its control channel.
#   cli/                                   another process: reads the store and never imports the kernel side.
# A module imports from the lines above its own. Importing nbrun loads no IPython, no anywidget and no agent framework.

from __future__ import annotations

from typing import Any

from nbrun import errors
from nbrun.agents import agent
from nbrun.agents.scripted import ScriptedAgent
from nbrun.agents.setup import needs_approval
from nbrun.cancellation import CancelCause, CancelReceipt, CancelToken
from nbrun.clock import SequentialIds
from nbrun.context import RunContext, current
from nbrun.default import get, panel, redact, runs, session, start
from nbrun.events import RunEvent
from nbrun.hooks import Observer
from nbrun.questions import Answer
from nbrun.record import RunRecord, RunStatus
from nbrun.run import Run
from nbrun.run_list import RunList
from nbrun.session import NotebookSession

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "CancelCause",
    "CancelReceipt",
    "CancelToken",
    "NotebookSession",
    "Observer",
    "Run",
    "RunContext",
    "RunEvent",
    "RunList",
    "RunRecord",
    "RunStatus",
    "ScriptedAgent",
    "SequentialIds",
    "agent",
    "current",
    "errors",
    "get",
    "needs_approval",
    "panel",
    "redact",
    "runs",
    "session",
    "start",
]


def load_ipython_extension(shell: Any) -> None:
    """Switch nbrun on in this shell: `%load_ext nbrun`."""
    from nbrun import ui

    ui.load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Switch nbrun off: cancels what is live, writes everything, takes its magics away."""
    from nbrun import ui

    ui.unload(shell)
