"""Settings: `%config NbRun`, or `c.NbRun.…` in ipython_config.py."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, Enum, Float, Int, List, TraitError, Unicode
from traitlets.config import Configurable

from nbrun.core import printable
from nbrun.core.redaction import RULE
from nbrun.store import KEEP_BYTES, KEEP_RUNS

NEW_RUNS = "Applies to new runs."
AT_LOAD = "Takes effect the next time nbrun is loaded (set it in ipython_config.py, or run %reload_ext nbrun)."


def settings_of(shell: Any) -> NbRun:
    """Return a shell's settings; of one that isn't valid, the default, and a line that says so.

    Source: `%config` keeps a value that it has refused, and every later load would read it.
    """
    try:
        return NbRun(parent=shell)
    except TraitError:
        section = shell.config.NbRun
        for name, value in [*section.items()]:
            try:
                NbRun(**{name: value})
            except TraitError as error:
                del section[name]
                print(f"nbrun: the setting NbRun.{name} is left out: {printable(str(error))}")
        return NbRun(parent=shell)


class NbRun(Configurable):
    """Every setting of nbrun. Each help ends with the unit and default in parentheses, and when it takes effect."""

    model = Unicode(
        "",
        help="The model for %%agentrun cells that name no agent and no model: local, scripted, demo or provider:name "
        "(text; default '': NBRUN_MODEL, a provider's key, OLLAMA_BASE_URL or the local model, whichever is found "
        f"first). {NEW_RUNS}",
    ).tag(config=True)
    store = Unicode(
        "",
        help=f"The file of the session store (path; default '': .nbrun/<notebook>.db beside the notebook). {AT_LOAD}",
    ).tag(config=True)
    max_concurrent = Int(
        8, min=1, help="How many runs may run at once; more are queued (runs; default 8). Applies at once."
    ).tag(config=True)
    cancel_grace_s = Float(
        2.0, min=0.0, help=f"How long an agent may clean up after a cancel (seconds; default 2.0). {NEW_RUNS}"
    ).tag(config=True)
    reentrant_loop = Bool(
        False,
        help="Let agents call asyncio.run() on the event loop that runs them, with nest-asyncio2; the kernel's own "
        f"loop isn't changed (True or False; default False). {NEW_RUNS}",
    ).tag(config=True)
    watch_calls = Bool(
        True,
        help="See the model calls of runs at the HTTP clients, whatever code makes them: show them on the card, count "
        f"them, hold limits and close them with a cancel (True or False; default True). {NEW_RUNS}",
    ).tag(config=True)
    journal = Enum(
        ["on", "off"],
        "on",
        help="Keep the answers to model calls with their run, so that a run that is resumed, or retried with --reuse, "
        f"doesn't pay for them again (on or off; default 'on'). {NEW_RUNS}",
    ).tag(config=True)
    keep_runs = Int(
        KEEP_RUNS,
        min=0,
        help="How many runs the store keeps; the oldest ended ones are removed, with their child runs and files "
        f"(runs, 0 for all; default {KEEP_RUNS:,}). {NEW_RUNS}",
    ).tag(config=True)
    keep_bytes = Int(
        KEEP_BYTES,
        min=0,
        help="How much space runs may take in the store, including files "
        f"(bytes, 0 for no limit; default {KEEP_BYTES:,}: 2 GB). {NEW_RUNS}",
    ).tag(config=True)
    requests_per_minute = Int(
        None,
        min=1,
        allow_none=True,
        help="How many model calls runs may send to a provider with the same key in any minute; more wait for their "
        "turn (calls, None for no limit; default None). Applies at once.",
    ).tag(config=True)
    tokens_per_minute = Int(
        None,
        min=1,
        allow_none=True,
        help="How many tokens these calls may use in any minute. What a call will use is estimated from its request "
        "and the calls before it (tokens, None for no limit; default None). Applies at once.",
    ).tag(config=True)
    secrets = List(
        Unicode(),
        help=f"More environment variables whose values are replaced (list of names; default []). {NEW_RUNS} {RULE}",
    ).tag(config=True)
    notify_after = Float(
        0.0,
        min=0.0,
        allow_none=True,
        help="Let the browser notify you when a run that took longer than this ends while its tab is hidden; a live "
        "card then has a button that asks for the browser's permission (seconds, 0 for never; default 0.0). "
        "Applies to new cards.",
    ).tag(config=True)
    card = Bool(
        True,
        help="Show live cards; without them output is static, as in a headless kernel (True or False; default True). "
        f"{NEW_RUNS}",
    ).tag(config=True)
