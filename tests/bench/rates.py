"""200 runs against a provider that takes 20 calls a second: `python -m tests.bench.rates`.

The runs use the plain `openai` package, which tries three times. Printed are how many failed, which part of what was
allowed they used, and how long a cancel of all takes while they wait.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import openai

import nbrun
from tests.fakes.provider import Limiter, Provider

RUNS = 200
PER_SECOND = 20
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
INSECURE: Any = {"verify": False}


def make_agents(url: str) -> dict[str, Any]:
    """Return a sync and an async agent that make one call each."""
    options: Any = {"base_url": f"{url}/v1", "api_key": "sk-no"}
    limits = httpx2.Limits(max_connections=RUNS)
    client = openai.OpenAI(**options, http_client=httpx2.Client(limits=limits, **INSECURE))
    later = openai.AsyncOpenAI(**options, http_client=httpx2.AsyncClient(limits=limits, **INSECURE))

    def asks() -> None:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)

    async def asks_async() -> None:
        await later.chat.completions.create(model="gpt-4o", messages=MESSAGES)

    return {"sync": asks, "async": asks_async}


def measure(kind: str, burst: int, retry_after: str | None) -> str:
    """Return what was found, in words."""
    with tempfile.TemporaryDirectory() as folder, Provider() as provider:
        provider.words = 1
        # One is refused below, and may not have ended when the others come.
        session = nbrun.NotebookSession(store=Path(folder) / ".nbrun" / "bench.db", max_concurrent=RUNS + 1)
        agent = make_agents(provider.url)[kind]
        provider.limiter = Limiter(PER_SECOND, burst)
        provider.headers = {} if retry_after is None else {"Retry-After": retry_after}
        began = time.monotonic()
        runs = [session.start(agent) for _ in range(RUNS)]
        for run in runs:
            run.wait()
        took = provider.served[-1] - began
        failed = sum(run.status != "completed" for run in runs)
        used = len(provider.served) / (burst + PER_SECOND * took)
        refused = provider.refused

        provider.limiter, provider.refusals = None, type(provider.refusals)([429])
        provider.headers = {"Retry-After": "60"}
        session.start(agent)
        while provider.refused == refused:
            time.sleep(0.01)
        runs = [session.start(agent) for _ in range(RUNS)]
        while sum(len(run.calls) for run in runs) < RUNS:
            time.sleep(0.05)
        began = time.monotonic()
        session.cancel_all()
        for run in runs:
            run.wait()
        cancelled_s = time.monotonic() - began
        session.close()
    return f"{failed} failed, {used:.0%} used in {took:.1f} s, {refused} refused, all cancelled in {cancelled_s:.2f} s"


def main() -> None:
    """Measure, and print what was found."""
    for kind in ("sync", "async"):
        for burst in (PER_SECOND, 1):
            for retry_after in (None, "1"):
                print(f"{kind:<6} burst {burst:<3} Retry-After {retry_after!s:<5}: {measure(kind, burst, retry_after)}")


if __name__ == "__main__":
    main()
