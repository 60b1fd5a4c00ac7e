"""The options of a run: defined here once, checked when they are given, and passed on as one object."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

import msgspec

from nbrun.core.errors import BadOption
from nbrun.core.values import Plain, plain, type_name

MAX_TIMEOUT_S = 366 * 86_400.0
MAX_RETRIES = 100
MAX_COUNT = 2**53
"""The largest limit that every reader of the log, JavaScript too, reads as the same number."""

Settings = Mapping[str, object] | Callable[[Any], Mapping[str, object]]
"""Settings of a model: pydantic-ai's, or a function that returns them for each step, from its `RunContext`."""

LABELS = ("name", "id", "tags", "if_running")
"""The options that make sense for any run, even a replay; the others control how an agent is run."""
NOT_RECORDED = (*LABELS, "model")
"""The options that a record keeps in fields of their own, not in `record.options`."""
LIMITS = ("max_turns", "max_tokens", "max_cost")
SETUP = ("tools", "system", "output_type", "mcp", "settings")
"""What configures the built-in agent, besides its model."""
POLICIES = ("approve", "on", "retries", "loop", *SETUP)
"""What a run may do, and where: given for each run, and never taken from a record."""


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a run.

    Options
    -------
    name : what the run is called; None: the agent's name.
    id : makes the start idempotent: the same id and inputs return the existing run.
    model : the built-in agent's model; None with no agent: the configured one.
    timeout_s : seconds after which the run is cancelled (cause `deadline`), counted from its start.
    max_turns : model calls after which the run is cancelled (cause `budget`), before the next is made.
    max_tokens : tokens, in and out together, above which it is cancelled.
    max_cost : US dollars above which it is cancelled, where the model's price is known.
    approve : who answers the run's questions: `ask` a person, `auto` allows, `deny` refuses.
    if_running : what to do while a run of the same cell, or with the same given name, is in progress.
    on : `process` runs the agent in a process of its own, which can be killed with everything it started; its
        output comes back as JSON-like data.
    retries : with `process`, how often the run is tried again when its agent fails or its process dies: from its last
        checkpoint, or else from its beginning; the answers that a dead process had are not asked for again.
    thread : drive an async agent on a thread of its own, because it blocks.
    loop : `kernel` drives an async agent on the event loop of this cell, for clients that cells await as well: it
        makes progress only while the kernel is idle or awaits, so a blocking wait for it is refused.
    tags : labels, by key.
    tools : functions for the built-in agent; one under `nbrun.needs_approval` asks a person first.
    system : its instructions.
    output_type : the class of its output; None: text.
    mcp : MCP servers whose tools it may use, by command or by URL.
    settings : its model's settings, such as `{"temperature": 0}`, named as in pydantic-ai; or a function that
        returns them for each step, from pydantic-ai's `RunContext`.
    cassette : a file that answers the run's model calls, offline; `%agentrun export --form cassette` writes it.
    speed : of a cassette, how much faster it answers than it was recorded: 1, 10 …, or `max`; None: as it was.
    keep_object : also keep the output itself, pickled, for `run.load_object()` in a later kernel.

    Raises
    ------
    BadOption
        A value is invalid, or two options exclude each other.
    """

    name: str | None = None
    id: str | None = None
    model: str | None = None
    timeout_s: float | None = None
    max_turns: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    approve: Literal["ask", "auto", "deny"] = "ask"
    if_running: Literal["queue", "reject", "replace"] = "queue"
    on: Literal["local", "process"] = "local"
    retries: int = 0
    thread: bool = False
    loop: Literal["host", "kernel"] = "host"
    tags: Mapping[str, str] | None = None
    tools: Sequence[Callable[..., object]] | None = None
    system: str | None = None
    output_type: type | None = None
    mcp: Sequence[str] | str | None = None
    settings: Settings | None = None
    cassette: str | None = None
    speed: float | str | None = None
    keep_object: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.cassette, os.PathLike):
            msgspec.structs.force_setattr(self, "cassette", os.fspath(self.cassette))
        for option in ("name", "id", "system", "cassette"):
            _check_text(option, getattr(self, option))
        for option, words in choices().items():
            if getattr(self, option) not in words:
                raise BadOption(f"{option}={getattr(self, option)!r} is invalid; use {_or(words)}")
        if self.on == "process" and os.name == "nt":
            raise BadOption("on='process' isn't available on Windows; leave it out")
        if self.loop != "host" and (self.thread or self.on != "local"):
            other = "thread=True" if self.on == "local" else f"on='{self.on}'"
            raise BadOption(f"loop='{self.loop}' can't be combined with {other}; use one of them")
        if self.speed is not None and self.cassette is None:
            raise BadOption("speed is only for a run with a cassette, or a replay")
        _check_timeout(self.timeout_s)
        _check_setup(self)
        if self.retries != 0:
            _check_retries(self.retries)
            if self.on != "process":
                raise BadOption("retries needs on='process'; for many runs, use nbrun.map(…, retries=…)")
        force = msgspec.structs.force_setattr
        force(self, "max_turns", _count("max_turns", self.max_turns))
        force(self, "max_tokens", _count("max_tokens", self.max_tokens))
        force(self, "max_cost", _dollars(self.max_cost))

    @property
    def has_limits(self) -> bool:
        """Whether turns, tokens or cost are limited."""
        return any(getattr(self, option) is not None for option in LIMITS)

    def only(self, names: Sequence[str]) -> RunOptions:
        """Return these options, with the defaults in place of all others."""
        return RunOptions(**{name: getattr(self, name) for name in names})

    def recorded(self) -> dict[str, Plain]:
        """Return what a run's record keeps: the options that aren't the default, functions and types by name."""
        given = self.given().items()
        return {name: _stored(value) for name, value in given if name not in NOT_RECORDED}

    def portable(self) -> dict[str, Any]:
        """Return what is sent to another process; the built-in agent's own options are sent with the agent."""
        return {name: value for name, value in self.recorded().items() if name not in SETUP}

    def given(self) -> dict[str, Any]:
        """Return the options that aren't the default; None stands for it everywhere."""
        return {
            name: value for name, default in defaults().items() if (value := getattr(self, name)) not in (None, default)
        }


@cache
def defaults() -> Mapping[str, Any]:
    """Return all options, with their defaults."""
    return dict(zip(RunOptions.__struct_fields__, RunOptions.__struct_defaults__, strict=True))


@cache
def _types() -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(RunOptions)}


@cache
def choices() -> dict[str, tuple[str, ...]]:
    """Return the options that take one of a few words, each with its words, the default first."""
    return {name: get_args(kind) for name, kind in _types().items() if get_origin(kind) is Literal}


def trusted(stored: Mapping[str, Plain]) -> dict[str, Any]:
    """Return the options of a stored run that a run which comes from it may take over, with plausible types.

    No policy is among them, except one that denies everything.
    """
    found: dict[str, Any] = {"approve": "deny"} if stored.get("approve") == "deny" else {}
    for name in stored.keys() & defaults().keys() - {*POLICIES, *NOT_RECORDED}:
        kind = str if name in choices() else _types()[name]
        try:
            found[name] = msgspec.convert(stored[name], kind)
        except msgspec.ValidationError:
            continue
    return found


def signature(options: type[RunOptions], function: Callable[..., object]) -> inspect.Signature:
    """Return the signature of a function that takes the fields of `options` as its `**options`."""
    whole = inspect.signature(function)
    hints: dict[str, Any] = {}
    for base in options.__mro__[::-1]:
        hints |= inspect.get_annotations(base)
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=hints[name])
        for name, value in zip(options.__struct_fields__, options.__struct_defaults__, strict=True)
    ]
    kept = [one for one in whole.parameters.values() if one.kind is not one.VAR_KEYWORD]
    return whole.replace(parameters=[*kept, *keywords])


# --- checks ------------------------------------------------------------------------------------------


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _check_text(option: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise BadOption(f"{option} must be a str, not {type(value).__name__}")
    if not value.strip() and option != "system":
        raise BadOption(f"{option} is empty; give it some text, or leave it out")


def _check_retries(retries: object) -> None:
    if type(retries) is not int or not 0 < retries <= MAX_RETRIES:
        raise BadOption(f"retries={retries!r} is invalid; give a whole number, at most {MAX_RETRIES}")


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and not (_is_number(timeout_s) and 0 < timeout_s <= MAX_TIMEOUT_S):
        raise BadOption(f"timeout_s={timeout_s!r} is invalid; give seconds above 0, for example 90, and at most a year")


def _is_number(value: object) -> bool:
    # A bool is an int to Python; to a person, `max_turns=True` is a mistake.
    return isinstance(value, Real) and not isinstance(value, bool)


def _count(option: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, Integral) and _is_number(value) and 0 < int(value) < MAX_COUNT:
        return int(value)
    raise BadOption(f"{option}={value!r} is invalid; give a whole number, 1 or more")


def _dollars(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, Real) and _is_number(value) and 0 < float(value) < math.inf:
        return float(value)
    raise BadOption(f"max_cost={value!r} is invalid; give US dollars above 0, for example 0.50")


def _check_setup(options: RunOptions) -> None:
    """Check the built-in agent's own options; keep several as a tuple, none as None."""
    force = msgspec.structs.force_setattr
    tools, mcp, settings = options.tools, options.mcp, options.settings
    for tool in tools or ():
        if not callable(tool):
            raise BadOption(f"a tool must be a function, not {type(tool).__name__}")
    force(options, "tools", tuple(tools or ()) or None)
    if options.output_type is not None and not isinstance(options.output_type, type):
        raise BadOption(
            "output_type must be a class, such as a dataclass or a pydantic model, "
            f"not {type(options.output_type).__name__}"
        )
    servers = (mcp,) if isinstance(mcp, str) else tuple(mcp or ())
    for server in servers:
        if not isinstance(server, str) or not server.strip():
            raise BadOption("mcp must be a command or a URL (str), or several of them")
    force(options, "mcp", servers or None)
    if not (settings is None or isinstance(settings, Mapping) or callable(settings)):
        raise BadOption(f"settings must be a dict such as {{'temperature': 0}}, not {type(settings).__name__}")


def _stored(value: Any) -> Plain:
    """Return a value as a record keeps it."""
    if isinstance(value, Mapping):
        return plain(dict(value))
    if isinstance(value, tuple):
        return [_stored(part) for part in value]
    if callable(value):
        return str(getattr(value, "__name__", type_name(value)))
    kept: Plain = value
    return kept
