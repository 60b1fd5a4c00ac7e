"""What the agents of the suite are made to do, by name: another process finds them by it."""

from __future__ import annotations

from tests.agents.conformance import tools
from tests.agents.conformance.script import HEARD, RESULTS, Call, Turn, script
from tests.agents.conformance.subject import HELLO

ADD = Call(tools.add, {"a": 2, "b": 3})
DELETE = Call(tools.delete, {"path": "a"}, asks=True)
ANSWER = Turn(("it is ", RESULTS))
NO_LUCK = "the model is gone"

SCENARIOS = {
    "hello": HELLO,
    "stalls": script(Turn(("half ", "a "), stalls=True)),
    "adds": script(Turn(("let us see ",), (ADD,)), ANSWER),
    "breaks": script(Turn(calls=(Call(tools.breaks),)), ANSWER),
    "waits": script(Turn(calls=(Call(tools.waits),)), ANSWER),
    "spins": script(Turn(calls=(Call(tools.spins),)), ANSWER),
    "fails": script(Turn(("half ",), fails=NO_LUCK)),
    "asks": script(Turn(calls=(DELETE,)), ANSWER),
    "asks half way": script(Turn(calls=(ADD,)), Turn(calls=(DELETE,)), ANSWER),
    "asks and hears": script(Turn(calls=(DELETE,)), Turn(("you said: ", HEARD))),
    "listens": script(Turn(calls=(Call(tools.listens),)), Turn(("you said: ", HEARD))),
    "stops half way": script(Turn(calls=(ADD,)), Turn(calls=(Call(tools.waits_at_first),)), ANSWER),
}
