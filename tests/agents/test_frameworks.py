"""What the adapters of agent frameworks share: the events of tools, and earlier calls as text for a model."""

from nbrun.agents import INTERRUPTED, Tools, args_of, events as ev, json_object, part_of, result_of
from nbrun.core.checkpoint import Call
from nbrun.core.clock import SystemClock


def test_a_tool_starts_once_and_ends_with_its_duration() -> None:
    """A second start gives no event; the end of an unknown tool has no duration."""
    tools = Tools(SystemClock())
    assert tools.start("a", "add", {"x": 2}) == [ev.ToolStarted("a", "add", "function", {"x": 2})]
    assert tools.start("a", "add", {"x": 2}) == []
    ended = tools.finish("a", "ok", 5)
    assert (ended.id, ended.status, ended.result, tools.began) == ("a", "ok", 5, {})
    assert tools.finish("b", "error", None) == ev.ToolFinished("b", "error", None, 0.0)


def test_earlier_calls_become_text_for_a_model() -> None:
    """Arguments as an object, results as text; a call that was cut off is reported as interrupted."""
    assert args_of(Call("a", "add", [1, 2])) == {"value": [1, 2]}
    assert args_of(Call("a", "add", {"x": 1})) == {"x": 1}
    assert result_of(Call("a", "add", result={"sum": 3})) == '{"sum": 3}'
    assert result_of(Call("a", "add", result="three")) == "three"
    assert result_of(Call("a", "add", status="interrupted")) == INTERRUPTED


def test_only_a_json_object_is_read_as_one() -> None:
    """Other JSON and text give None; a field is read from a dict or an object."""
    assert (json_object('{"x": 1}'), json_object("[1]"), json_object("tea")) == ({"x": 1}, None, None)
    assert (part_of({"x": 1}, "x"), part_of(3 + 4j, "imag"), part_of(None, "x")) == (1, 4.0, None)
