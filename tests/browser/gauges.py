"""What a notebook costs its page: messages on the wire, a blocked main thread, keys until they are painted, memory."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from playwright.sync_api import CDPSession, Page

CARD_KINDS = frozenset({"update", "update_display_data"})
"""What a card sends after its display: its state, and the output that takes its place."""

BINARY = 2

_WATCH = """() => {
  const gauges = (window.gauges ??= { blocks: [], keys: [], isWatching: false });
  gauges.blocks.length = gauges.keys.length = 0;
  if (gauges.isWatching) return;
  gauges.isWatching = true;
  const note = (list) => list.getEntries().forEach(({ duration }) => gauges.blocks.push(duration));
  new PerformanceObserver(note).observe({ type: "longtask" });
  const painted = new MessageChannel();  // a task behind the frame: by then it has been painted
  let pressed = [];
  painted.port1.onmessage = () => {
    for (const at of pressed) gauges.keys.push(performance.now() - at);
    pressed = [];
  };
  document.addEventListener("keydown", ({ timeStamp }) => {
    if (!pressed.length) requestAnimationFrame(() => painted.port2.postMessage(0));
    pressed.push(timeStamp);
  }, true);
}"""

_COUNT = """selector => {
  const walk = document.createTreeWalker(document.querySelector(selector), NodeFilter.SHOW_ALL);
  let count = 0;
  while (walk.nextNode()) count += 1;
  return count;
}"""


@dataclass(frozen=True, slots=True)
class Frame:
    """A message that the page received."""

    sent_at: float  # seconds, by the kernel's clock: what waits on its way comes in a heap
    kind: str
    size: int  # bytes
    model_id: str


class Wire:
    """The messages that a page receives from its kernels, from now on; `frames` are in order."""

    def __init__(self, page: Page) -> None:
        self.frames: list[Frame] = []
        self._cdp: CDPSession = page.context.new_cdp_session(page)
        self._cdp.on("Network.webSocketFrameReceived", self._note)
        self._cdp.send("Network.enable")

    def _note(self, event: dict[str, Any]) -> None:
        frame = event["response"]
        if frame["opcode"] != BINARY:  # the server's events, by a socket of their own
            return
        raw = base64.b64decode(frame["payloadData"])
        message = _unpacked(raw)
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "comm_msg":
            kind = str(content["data"].get("method", "custom"))
        sent_at = datetime.fromisoformat(message["header"]["date"]).timestamp()
        self.frames.append(Frame(sent_at, kind, len(raw), content.get("comm_id", "")))

    def of_cards(self) -> list[Frame]:
        """Return what keeps cards current."""
        return [frame for frame in self.frames if frame.kind in CARD_KINDS]

    def kinds(self) -> dict[str, int]:
        """Return how many messages of each kind there were."""
        return dict(Counter(frame.kind for frame in self.frames))


def busiest_second(frames: list[Frame]) -> int:
    """Return how many of the messages were sent within any one second."""
    times = [frame.sent_at for frame in frames]
    return max((sum(start <= at < start + 1 for at in times) for start in times), default=0)


def _unpacked(raw: bytes) -> dict[str, Any]:
    """Return header and content of a message.

    Source: `v1.kernel.websocket.jupyter.org`: how many offsets, the offsets, and between these the channel, header,
    parent, metadata and content.
    """
    count = int.from_bytes(raw[:8], "little")
    at = [int.from_bytes(raw[8 * n : 8 * n + 8], "little") for n in range(1, count + 1)]
    return {"header": json.loads(raw[at[1] : at[2]]), "content": json.loads(raw[at[4] : at[5]])}


class Gauges:
    """The main thread and the memory of a page."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._cdp = page.context.new_cdp_session(page)
        self._cdp.send("Performance.enable")

    def watch(self) -> None:
        """Note the main thread's blocks and the keys from now on."""
        self._page.evaluate(_WATCH)

    def blocks(self) -> list[float]:
        """Return the milliseconds of each task of the main thread that took more than 50 (`longtask`)."""
        return sorted(self._page.evaluate("() => gauges.blocks"), reverse=True)

    def keys(self) -> list[float]:
        """Return the milliseconds from each key to the frame that was painted after it."""
        return sorted(self._page.evaluate("() => gauges.keys"))

    def metrics(self) -> dict[str, float]:
        """Return the browser's own figures, such as `Nodes`, `JSEventListeners` and `TaskDuration` (seconds)."""
        found = self._cdp.send("Performance.getMetrics")["metrics"]
        return {one["name"]: one["value"] for one in found}

    def held(self) -> dict[str, float]:
        """Return the same once all that nothing holds was collected: `JSHeapUsedSize`, `Nodes`, `JSEventListeners`."""
        for _ in range(2):  # what the first one lets go of may have held something
            self._cdp.send("HeapProfiler.collectGarbage")
        return self.metrics()

    def count_nodes(self, selector: str) -> int:
        """Return how many nodes are below what the selector finds first, texts and comments included."""
        count: int = self._page.evaluate(_COUNT, selector)
        return count
