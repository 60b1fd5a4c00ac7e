"""The lease: whether the process that wrote a session still lives."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

from nbrun.store import liveness
from nbrun.store.liveness import ProcessIdentity, this_process
from tests.fakes.agents import BOUND_S


def identity_of(pid: int) -> ProcessIdentity:
    """Return the identity of another process on this machine."""
    started_at = liveness._started_at(pid)
    assert started_at is not None
    return dataclasses.replace(this_process(), pid=pid, started_at=started_at)


def test_this_process_is_alive() -> None:
    """Who asks, lives."""
    assert this_process().pid == os.getpid()
    assert this_process().is_alive() is True


def test_a_process_is_alive_until_it_ends() -> None:
    """The process itself decides; one that has ended, and is only waited for, is dead."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = identity_of(process.pid)
    assert identity.is_alive() is True
    process.kill()
    assert process.stdin is not None
    process.stdin.close()
    process.wait(BOUND_S)
    assert identity.is_alive() is False


def test_a_reused_process_number_is_another_process() -> None:
    """The same number with another start time is not the one that wrote."""
    other = dataclasses.replace(this_process(), started_at=this_process().started_at - 60_000_000)
    assert other.is_alive() is False


def test_a_process_before_the_last_boot_is_dead() -> None:
    """No process outlives its machine."""
    assert dataclasses.replace(this_process(), boot_id="another").is_alive() is False


def test_a_process_elsewhere_is_neither_dead_nor_alive() -> None:
    """On another host or in another container nothing can be seen, and nothing is claimed."""
    assert dataclasses.replace(this_process(), host="elsewhere").is_alive() is None
    assert dataclasses.replace(this_process(), pid_namespace="pid:[1]").is_alive() is None
