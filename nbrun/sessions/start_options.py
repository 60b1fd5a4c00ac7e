"""What a start asks for: checked, and resolved to an agent, before anything is begun."""

from __future__ import annotations

import asyncio
import math
import os
from numbers import Integral, Real
from operator import index
from typing import TYPE_CHECKING

from nbrun.agents import by_name, find_adapter, lacks_of, registered
from nbrun.agents.builtin.options import NO_SETUP, Setup
from nbrun.agents.context.budget import Limits
from nbrun.core.errors import AgentNotFound, BadOption
from nbrun.core.events import RunCreated
from nbrun.core.text import clean_text
from nbrun.host.process import pickling as parcel
from nbrun.sessions.catalog import number_of

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Mapping

    from nbrun.core.record import RunRecord
    from nbrun.core.values import Plain

MAX_TIMEOUT_S = 366 * 86_400.0
MAX_COUNT = 2**53
"""The largest limit that every reader of the log takes for the same number."""

HOST, KERNEL = "host", "kernel"
"""The event loops that an agent can be on."""

_CHOICES = {
    "approve": ("ask", "auto", "deny"),
    "if_running": ("queue", "reject", "replace"),
    "on": ("local", "process"),
    "loop": (HOST, KERNEL),
}


def check_choices(**chosen: str) -> None:
    """Raise `BadOption` for a word that is not among those its option takes."""
    for option, value in chosen.items():
        if value not in _CHOICES[option]:
            raise BadOption(f"{option} is '{value}'; give one of: {', '.join(_CHOICES[option])}")
    if chosen.get("on") == "process" and os.name == "nt":
        raise BadOption("on is 'process', which Windows cannot do; leave it out")


def strictest(*policies: str) -> str:
    """Return the one of these ways to answer an agent's questions that grants the least."""
    order = ("auto", "ask", "deny")
    return max(policies, key=lambda policy: order.index(policy) if policy in order else len(order))


def check_timeout(timeout_s: float | None) -> None:
    """Raise `BadOption` for a time that is not above zero and at most a year."""
    if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise BadOption(
            f"timeout_s is {timeout_s}; give seconds above 0, such as 90, at most a year"
        )


def check_id(run_id: str | None) -> None:
    """Raise `BadOption` for an id that is none."""
    if run_id is not None and not isinstance(run_id, str):
        raise BadOption(f"id is a text (str), not {type(run_id).__name__}")
    if run_id is not None and not run_id.strip():
        raise BadOption("id is empty; give a text that names this start, or leave it out")


def read_limits(max_turns: object, max_tokens: object, max_cost: object) -> Limits:
    """Return what a run may use up.

    Raises
    ------
    BadOption
        A limit is no number above zero.
    """
    return Limits(
        _count(max_turns, "max_turns"), _count(max_tokens, "max_tokens"), _dollars(max_cost)
    )


def _count(value: object, option: str) -> int | None:
    if value is None:
        return None
    # A bool is an int to Python; to a person, `max_turns=True` is a mistake.
    if isinstance(value, Integral) and not isinstance(value, bool) and 0 < index(value) < MAX_COUNT:
        return index(value)
    raise BadOption(f"{option} is {value!r}; give a whole number, 1 or more")


def _dollars(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf:
        return float(value)
    raise BadOption(f"max_cost is {value!r}; give US dollars above 0, such as 0.50")


def resolve(agent: object, model: str | None, setup: Setup) -> tuple[object, str | None]:
    """Return the agent object, and the model's name where the built-in agent is meant.

    Raises
    ------
    AgentNotFound, BadOption
        There is none, or it could not be entered.
    """
    if agent is None:
        from nbrun.agents.builtin import adapter as builtin  # with the first run of it

        return builtin.choose(model, os.environ, setup)
    if model is not None:
        raise BadOption("give an agent or a model, not both")
    if setup != NO_SETUP:
        given = ", ".join(setup.options())
        raise BadOption(
            f"{given}: for the built-in agent only; leave the agent out, or what it is given"
        )
    if not isinstance(agent, str):
        return agent, None
    found = by_name(agent)
    if found is None:
        names = ", ".join(sorted(registered())) or "none yet"
        raise AgentNotFound(
            f"no agent is registered as '{agent}' ({names}); use @nbrun.agent, or give the object"
        )
    return found, None


def loop_of(loop: str, on: str, *, thread: bool, is_on_host: bool) -> AbstractEventLoop | None:
    """Return the loop that an agent is to be on where that is not the host's own.

    Raises
    ------
    BadOption
        There is none here, or the run is to be elsewhere as well.
    """
    if loop == HOST:
        return None
    if on != "local" or thread:
        other = "on='process'" if on != "local" else "thread=True"
        raise BadOption(f"loop='{loop}' and {other} exclude each other; give one")
    running = asyncio._get_running_loop()
    if running is None or is_on_host:
        raise BadOption(f"loop is '{loop}', and no event loop of a kernel runs here; leave it out")
    return running


def parcel_of(agent: object, on: str) -> bytes:
    """Return the agent as bytes where it is to run in another process, else nothing.

    Raises
    ------
    BadOption
        It cannot go there.
    """
    if on == "local":
        return b""
    adapter = find_adapter(agent)
    lacks = lacks_of(adapter)
    # Some that can be pickled come out as something else: what their adapter says of them counts.
    if lacks is not None and lacks.process:
        raise BadOption(
            f"'{adapter.label(agent)}' cannot go to another process: {lacks.process}, or leave out --on process"
        )
    return parcel.pack(agent)


def describe(
    agent: object,
    *,
    session_id: str,
    prompt: str,
    name: str | None,
    model: str | None,
    cell_id: str | None,
    tags: Mapping[str, str] | None,
    parent_id: str | None = None,
    setup: Setup = NO_SETUP,
    target: str | None = None,
    **options: Plain,
) -> RunCreated:
    """Return the run's first event, with everything in it that tells its inputs from another's.

    Parameters
    ----------
    options : execution options; None stands for the default and is left out.
    target : what the agent is called in the notebook, and the run as well, for want of a name: many agents have none.

    Raises
    ------
    AgentNotFound, BadOption
        The agent could not be entered, or the prompt or the name is none.
    """
    for option, value in (("prompt", prompt), ("name", name)):
        if value is not None and not isinstance(value, str):
            raise BadOption(f"{option} is a text (str), not {type(value).__name__}")
    if prompt is None:
        raise BadOption('prompt is None; give a text, "" for none')
    if name is not None and not name.strip():
        raise BadOption("name is empty; give a text, or leave it out")
    if name is not None and number_of(name.strip()) is not None:
        raise BadOption(f"name is '{name}', which refers to a run by its place; give another name")
    adapter = find_adapter(agent)
    adapter.check(agent)
    label = adapter.label(agent)
    known_as = target if target is not None and target.isidentifier() else label
    options.update(setup.options())
    return RunCreated(
        session_id=session_id,
        name=clean_text(name or known_as),
        agent=clean_text(label),
        prompt=clean_text(prompt),
        parent_id=parent_id,
        cell_id=cell_id,
        model=model,
        tags={clean_text(str(key)): clean_text(str(value)) for key, value in (tags or {}).items()},
        target=target and clean_text(target),
        options={option: value for option, value in options.items() if value is not None},
    )


def inputs_of(record: RunRecord) -> str:
    """Return what tells the inputs of a recorded run from another's."""
    return RunCreated(
        session_id=record.session_id, name=record.name, agent=record.agent, prompt=record.prompt,
        model=record.model, options=record.options,
    ).inputs()  # fmt: skip
