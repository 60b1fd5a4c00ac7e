"""Agents that a world plays: each does a few things, and takes a cancel well or badly."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING

from nbrun import RunContext
from nbrun.core import events as ev
from nbrun.core.errors import Cancelled

if TYPE_CHECKING:
    from tests.fakes.world import World

current_actor: contextvars.ContextVar[Actor] = contextvars.ContextVar("actor")
"""Whose run is being started."""


class VirtualWork:
    """A worker thread of a sync agent; what is raised into it comes at its next turn, or in C never."""

    name = "work"
    is_driver = True

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def is_alive(self) -> bool:
        """Return whether it runs."""
        return not self._actor.is_out

    async def ended(self) -> None:
        """Return: it is awaited when it has."""
        assert self._actor.is_out

    def stop(self) -> bool:
        """Return False: no event loop was entered in it, so there is nothing to ask."""
        return False

    def interrupt(self) -> bool:
        """Raise into it."""
        if not self._actor.is_in_c:
            self._actor.is_interrupted = True
        return not self._actor.is_in_c


class Actor:
    """An agent that does one thing of its script at each turn, and takes a cancel well or badly."""

    def __init__(self, world: World, name: str, *, is_inner: bool) -> None:
        rng = world.rng
        self.world, self.name, self.is_inner = world, name, is_inner
        self.key: str | None = None
        self.began_at = self.queued_at = float("inf")  # by the steps of the world
        ops = ("text", "tool", "usage", "phase", "wait", "resume", "start", "child", "token", "cancel")
        self.script = rng.choices(ops, (6, 3, 1, 1, 2, 2, 1, 2, 1, 1), k=rng.randrange(4))
        self.end = rng.choice(("return", "return", "raise", "unasked", "exit"))
        self.on_cancel = rng.choice(("obey", "obey", "swallow", "clean", "return", "raise"))
        self.is_sync = rng.random() < 0.25
        self.is_in_c = rng.random() < 0.3
        self.is_interrupted = self.is_in = self.is_out = self.has_failed = False
        self.gate: asyncio.Future[None] | None = None
        self.run: RunContext | None = None
        self.text = ""

    async def perform(self, run: RunContext) -> object:
        """Play the script."""
        self.run, self.is_in = run, True
        self.world.note_entry(self)
        if self.is_sync:
            run.add_work(VirtualWork(self))
        try:
            for op in self.script:
                await self.turn()
                self.act(op)
            await self.turn()
        except asyncio.CancelledError:
            return await self.take_cancel()
        finally:
            self.is_out = True
        return self.finish()

    async def turn(self) -> None:
        """Wait until the world says to go on."""
        if not self.world.is_released:
            self.gate = asyncio.get_running_loop().create_future()
            await self.gate

    async def take_cancel(self) -> object:
        """React to a CancelledError."""
        match self.on_cancel:
            case "swallow":
                while not self.world.is_released:
                    try:
                        await self.turn()
                    except asyncio.CancelledError:
                        continue
            case "clean":
                await self.turn()
                raise asyncio.CancelledError
            case "raise":
                raise ValueError("in the cleanup")
            case "obey":
                raise asyncio.CancelledError
        return "cut short"

    def go(self) -> None:
        """Let it go on, from another thread."""
        if self.gate is not None and not self.gate.done():
            gate = self.gate
            error = Cancelled("raised into it") if self.is_interrupted else None

            def open_gate() -> None:
                if gate.done():
                    return
                if error is None:
                    gate.set_result(None)
                else:
                    gate.set_exception(error)

            self.world.call_soon(open_gate)

    def act(self, op: str) -> None:
        """Do one thing."""
        run = self.run
        assert run is not None
        match op:
            case "text":
                self.say()
            case "tool":
                run.send(ev.ToolStarted(f"t{self.world.rng.random()}", "tool"))
            case "usage":
                run.usage(input_tokens=1)
            case "phase":
                run.phase("thinking")
            case "wait":
                run.send(ev.RunWaiting("tea"))
            case "resume":
                run.send(ev.RunResumed())
            case "token":
                run.token.cancel("had enough")
            case "cancel":
                self.world.cancel(run.run_id)
            case "start" if not self.world.held["session"]:
                self.world.start(is_inner=True)
            case "child" if not self.world.held["session"]:
                self.world.start(is_inner=True, parent=run)

    def say(self) -> None:
        """Say a word, from any thread."""
        assert self.run is not None
        account = self.world.accounts[self.run.run_id]
        if account.end is None:
            self.text += "x"
        self.run.text("x")

    def finish(self) -> object:
        """End as it is to end."""
        self.has_failed = self.end != "return"
        match self.end:
            case "raise":
                raise ValueError("no luck")
            case "unasked":
                raise asyncio.CancelledError
            case "exit":
                raise SystemExit(3)
        return "the result"


async def agent(prompt: str, run: RunContext) -> object:
    """Play the actor of the context in which this run was started."""
    return await current_actor.get().perform(run)
