"""Settings: `%config NbRun`, or `c.NbRun.…` in a Jupyter configuration file."""

from __future__ import annotations

from traitlets import Bool, Float, Int, List, Unicode
from traitlets.config import Configurable

from nbrun.core.redaction import RULE
from nbrun.store.retention import KEEP_BYTES, KEEP_RUNS


class NbRun(Configurable):
    """Every setting of nbrun. Each help says, in parentheses, the unit and the default."""

    model = Unicode(
        "",
        help="Model of %%agentrun cells that name no agent and no model: local, scripted, demo or provider:name "
        "(text; default '': NBRUN_MODEL, a provider's key, OLLAMA_BASE_URL, or the local model, whichever is found "
        "first). Holds from the next run on.",
    ).tag(config=True)
    store = Unicode(
        "",
        help="The session store's file (path; default '': .nbrun/<notebook>.db beside the notebook). "
        "Takes effect at load.",
    ).tag(config=True)
    max_concurrent = Int(
        8,
        min=1,
        help="How many runs are under way at once, more wait in line (runs; default 8). Takes effect at load.",
    ).tag(config=True)
    cancel_grace_s = Float(
        2.0,
        min=0.0,
        help="How long an agent's cleanup code gets after a cancel (seconds; default 2.0). Takes effect at load.",
    ).tag(config=True)
    reentrant_loop = Bool(
        False,
        help="Let agents call asyncio.run() on the event loop that drives them, by nest-asyncio2; the kernel's own "
        "loop stays as it is (True or False; default False). Holds from the next run on.",
    ).tag(config=True)
    keep_runs = Int(
        KEEP_RUNS,
        min=0,
        help="How many runs the store keeps; the oldest ended ones are removed, with their child runs and files "
        f"(runs, 0 for all; default {KEEP_RUNS:,}). Holds from the next run on.",
    ).tag(config=True)
    keep_bytes = Int(
        KEEP_BYTES,
        min=0,
        help="How much room runs may take in the store, files included "
        f"(bytes, 0 for any; default {KEEP_BYTES:,}: 2 GiB). Holds from the next run on.",
    ).tag(config=True)
    secrets = List(
        Unicode(),
        help="More environment variables whose values are replaced (list of names; default []). Holds from the next "
        f"run on. {RULE}",
    ).tag(config=True)
    notify_after = Float(
        0.0,
        min=0.0,
        allow_none=True,
        help="Have the browser tell when a run that took longer than this ends while its tab is hidden; a live card "
        "then has a button that asks the browser's permission (seconds, 0 for never; default 0.0). Holds from the "
        "next card on.",
    ).tag(config=True)
    card = Bool(
        True,
        help="Show live cards; without them output is static, as in a headless kernel (True or False; default True). "
        "Holds from the next run on.",
    ).tag(config=True)
