"""A run as a file: what is written is read again as it was, and nothing else is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from nbrun.core import events as ev, recording
from nbrun.core.errors import BadRecording
from nbrun.core.record import fold
from nbrun.core.values import Plain

ODD: Plain = {"text": "ü \u2028 \x00", "numbers": [1, -(2**63), 2**63 - 1, 0.1, -0.0], "none": None}
BYTES: Any = {"raw": b"\x00\xff", "n": 1}  # MessagePack of another version may hold some
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc$", max_size=3), inner, max_size=4),
    max_leaves=20,
)


def log(*told: ev.EventData) -> list[ev.RunEvent]:
    """Return the events of a whole run with these between its start and its end."""
    created = ev.RunCreated("s", "poet", "poet", "tea", 3, tags={"k": "v"}, options={"on": "local"})
    data = [created, ev.RunStarted("local"), *told, ev.RunCompleted("done")]
    return [ev.RunEvent(seq, 1e9 + seq / 8, "run-seq-0", min(seq, 1), item) for seq, item in enumerate(data)]


def written(events: list[ev.RunEvent]) -> list[bytes]:
    """Return these events as the lines of a recording."""
    return list(recording.dump(fold(events), events))


def test_what_is_written_is_read_again_as_it_was() -> None:
    """Every event comes back equal, those of unknown types too, and the header tells the run."""
    events = log(
        ev.TextDelta("te"),
        ev.TextDelta("a\n"),
        ev.ToolStarted("t1", "search", args=ODD),
        ev.ToolFinished("t1", "ok", [math.inf, -math.inf], 1.5),
        ev.Unknown("acme.thing", BYTES),
        ev.Unknown("acme.none"),
        ev.Checkpoint("cp-1", 12),
    )
    lines = written(events)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert all(json.loads(line) for line in lines)
    header, found = recording.load(lines)
    assert found == events
    assert header == recording.header(fold(events))
    assert (header.name, header.number, header.tags) == ("poet", 3, {"k": "v"})


@given(PLAIN)
def test_any_value_of_an_agent_comes_back(value: Plain) -> None:
    """What can be stored can be recorded, to the bit."""
    assert recording.load(written(log(ev.Custom("x", value))))[1] == log(ev.Custom("x", value))


def test_a_number_that_is_none_comes_back() -> None:
    """NaN, for which JSON has no word, is no null afterwards."""
    data = recording.load(written(log(ev.Custom("x", math.nan))))[1][2].data
    assert isinstance(data, ev.Custom)
    assert isinstance(data.value, float)
    assert math.isnan(data.value)


FIRST, CREATED = written(log())[:2]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "first line"),
        ([b"\x00\xff"], "first line"),
        ([b'{"nbrun": "notebook", "version": 1, "run": {}}'], "first line"),
        ([b'{"nbrun": "run", "version": 2, "run": {"run_id": "r"}}'], "update nbrun"),
        ([b'{"nbrun": "run", "version": 1, "run": {"name": "x"}}'], "run_id"),
        ([b"[" * 100_000], "first line"),
        ([FIRST], "creation"),
        ([FIRST, CREATED, b"{}"], "line 3"),
        ([FIRST, CREATED, CREATED], "event 0 came"),
        ([FIRST, CREATED.replace(b'"seq":0', b'"seq":1')], "event 1 came"),
        ([FIRST, CREATED.replace(b'"ts":1e9', b'"ts":-1').replace(b'"ts":1000000000.0', b'"ts":-1')], "range"),
        ([FIRST, CREATED, b'{"seq":1,"ts":1,"attempt":1,"parent":null,"type":"custom","data":{"name":"x","value":'
          + b"9" * 30 + b"}}"], "too large"),
        ([FIRST, CREATED, b'{"seq":1,"ts":1,"attempt":1,"parent":null,"type":"x","data":' + b"[" * 100
          + b"]" * 100 + b"}"], "deep"),
        ([FIRST, CREATED, b'{"seq":1,"ts":1,"attempt":1,"parent":null,"type":"text.delta","data":{"text":7}}'],
         "line 3"),
        ([FIRST, CREATED, b'{"seq":1,"ts":1,"attempt":1,"parent":null,"type":"x","data":{"$bytes":"?"}}'], "bytes"),
        ([*written(log()), b'{"seq":3,"ts":1,"attempt":1,"parent":null,"type":"log","data":{"text":"x"}}'], "after"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_refused_in_one_line(lines: list[bytes], words: str) -> None:
    """A wrong, broken or hostile file gives one line that says what is wrong with it."""
    with pytest.raises(BadRecording, match=words) as caught:
        recording.load(lines)
    assert "\n" not in str(caught.value)


def test_an_event_that_does_not_fit_its_type_is_kept() -> None:
    """What another version has written of a known type is kept as it came."""
    line = b'{"seq":1,"ts":1,"attempt":1,"parent":null,"type":"usage","data":{"input_tokens":"many"}}'
    events = recording.load([FIRST, CREATED, line])[1]
    assert events[1].data == ev.Unknown("usage", {"input_tokens": "many"})


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """The message names the file."""
    with pytest.raises(BadRecording, match=r"gone\.jsonl cannot be read"):
        recording.read(tmp_path / "gone.jsonl")
    (tmp_path / "run.jsonl").write_bytes(b"".join(written(log())))
    assert recording.read(tmp_path / "run.jsonl")[1] == log()
