"""Settings: `%config NbRun`, or `c.NbRun.…` in a Jupyter configuration file."""

from __future__ import annotations

from traitlets import Bool, Float, Int, List, Unicode
from traitlets.config import Configurable

from nbrun.redaction import RULE
from nbrun.store.retention import KEEP_BYTES, KEEP_RUNS


class NbRun(Configurable):
    """Every setting of nbrun, its unit, and what its default means."""

    model = Unicode(
        "",
        help="Model of %%agentrun cells that name no agent and no model. Empty: NBRUN_MODEL, a provider's key, "
        "OLLAMA_BASE_URL, or the local model, whichever is found first.",
    ).tag(config=True)
    store = Unicode(
        "",
        help="Path of the session store's file. Empty: .nbrun/<notebook>.db beside the notebook. "
        "Takes effect when the extension is loaded.",
    ).tag(config=True)
    max_concurrent = Int(
        8,
        min=1,
        help="How many runs are under way at once; more wait in line. Takes effect at load.",
    ).tag(config=True)
    cancel_grace_s = Float(
        2.0,
        min=0.0,
        help="Seconds that an agent's cleanup code gets after a cancel. Takes effect at load.",
    ).tag(config=True)
    reentrant_loop = Bool(
        False,
        help="Let agents call asyncio.run() on the event loop that drives them, by nest-asyncio2; the kernel's own "
        "loop stays as it is. Holds from the next run on.",
    ).tag(config=True)
    keep_runs = Int(
        KEEP_RUNS,
        min=0,
        help="How many runs the store keeps; the oldest ended ones are removed, with their child runs and files. "
        "0: all. Takes effect at load.",
    ).tag(config=True)
    keep_bytes = Int(
        KEEP_BYTES,
        min=0,
        help="Bytes that they may take, files included. 0: any. Takes effect at load.",
    ).tag(config=True)
    secrets = List(
        Unicode(),
        help="Names of more environment variables whose values are replaced, from the next run on. "
        + RULE,
    ).tag(config=True)
    card = Bool(
        True, help="Show live cards. False: static output only, as in a headless kernel."
    ).tag(config=True)
