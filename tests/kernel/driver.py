"""A real kernel in a process of its own, driven over its channels as a front end drives it."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from tests import kernels

Message = dict[str, Any]

START_TIMEOUT_S = 60
CELL_TIMEOUT_S = 20
CONTROL_TIMEOUT_S = 10


class Execution:
    """One started cell, and what has come of it so far."""

    def __init__(self, kernel: Kernel, msg_id: str) -> None:
        self.msg_id = msg_id
        self.messages: list[Message] = []
        """Everything on IOPub that answers this cell, also after its end."""
        self.reply: Message | None = None
        """The content of the `execute_reply`, once it is there."""
        self._kernel = kernel

    def wait(self, timeout_s: float = CELL_TIMEOUT_S) -> Self:
        """Return when the cell has ended: replied, and all its own output is here."""
        self._kernel.wait_until(lambda: self.is_done, timeout_s)
        return self

    @property
    def is_done(self) -> bool:
        """Whether the reply and the closing "idle" have been read."""
        states = (m["content"]["execution_state"] for m in self.messages if m["msg_type"] == "status")
        return self.reply is not None and "idle" in states

    @property
    def outputs(self) -> list[Message]:
        """The contents of displays, updates, results and errors, in order, each with its `output_type`."""
        types = {"display_data", "update_display_data", "execute_result", "error"}
        return [{"output_type": m["msg_type"], **m["content"]} for m in self.messages if m["msg_type"] in types]

    @property
    def result(self) -> str | None:
        """The `text/plain` of the cell's value."""
        for output in self.outputs:
            if output["output_type"] == "execute_result":
                return str(output["data"]["text/plain"])
        return None

    @property
    def stdout(self) -> str:
        """What was printed."""
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        """What was printed to the error stream."""
        return self._stream("stderr")

    @property
    def error(self) -> Message | None:
        """The error (`ename`, `evalue`, `traceback`) with which the cell ended."""
        if self.reply is None or self.reply["status"] == "ok":
            return None
        return self.reply

    def _stream(self, name: str) -> str:
        streams = (m["content"] for m in self.messages if m["msg_type"] == "stream")
        return "".join(s["text"] for s in streams if s["name"] == name)


class Kernel:
    """A kernel and its client. Waits are bounded and raise `TimeoutError`; used from one thread.

    A context manager; leaving it ends the kernel. `kernel_name` may be a version of ipykernel ("6.30").
    """

    def __init__(self, folder: Path, *, kernel_name: str = "python3", env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        """The kernel's working folder."""
        self.env = _environment(folder) | dict(env or {})
        """The kernel's environment; what is changed here holds from the next start."""
        self.log = folder / "kernel.log"
        """What the process itself wrote, outside of any cell."""
        self.comms: list[Message] = []
        """Every `comm_open`, `comm_msg` and `comm_close` of the kernel, in order, whole messages."""
        specs = KernelSpecManager(kernel_dirs=[str(kernels.jupyter_path() / "kernels")])
        connection = folder / f"kernel-{uuid.uuid4()}.json"  # as a server names it
        self._manager = KernelManager(
            kernel_name=kernels.named(kernel_name), kernel_spec_manager=specs, connection_file=str(connection)
        )
        self._client: BlockingKernelClient | None = None
        self._executions: dict[str, Execution] = {}
        self._cells = itertools.count(1)

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._manager.start_kernel(cwd=str(self.folder), env=self.env, stdout=log, stderr=log)
        self._connect()
        return self

    def __exit__(self, *_error: object) -> None:
        self._disconnect()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()

    @property
    def client(self) -> BlockingKernelClient:
        """The client, for what this class does not do."""
        if self._client is None:
            raise RuntimeError("the kernel is not running")
        return self._client

    @property
    def pid(self) -> int:
        """The process id."""
        pid = getattr(self._manager.provisioner, "pid", None)
        if not isinstance(pid, int):
            raise TypeError("the kernel is not running")
        return pid

    @property
    def is_alive(self) -> bool:
        """Whether the process is there."""
        return bool(self._manager.is_alive())

    def start(self, code: str, *, headless: bool = False, cell_id: str | None = None) -> Execution:
        """Start a cell and return at once.

        Parameters
        ----------
        headless
            Ask as nbclient does: no cell id, no standard input. Else as Lab does.
        cell_id
            The cell's id; by default each start is a cell of its own.
        """
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": not headless,
            "stop_on_error": False,
        }
        cell_id = cell_id or f"cell-{next(self._cells)}"
        metadata: Message = {} if headless else {"cellId": cell_id}
        return self._executions[self.send("execute_request", content, metadata=metadata)]

    def run(
        self, code: str, *, headless: bool = False, cell_id: str | None = None, timeout_s: float = CELL_TIMEOUT_S
    ) -> Execution:
        """Run a cell to its end; an error in it is in `.error` and not raised."""
        return self.start(code, headless=headless, cell_id=cell_id).wait(timeout_s)

    def send(self, msg_type: str, content: Message, *, metadata: Message | None = None) -> str:
        """Send any message on the shell channel, such as a click (`comm_msg`), and return its id."""
        message = self.client.session.msg(msg_type, content, metadata=metadata)
        msg_id = str(message["header"]["msg_id"])
        self._executions[msg_id] = Execution(self, msg_id)
        self.client.shell_channel.send(message)
        return msg_id

    def control(self, msg_type: str, content: Message, *, timeout_s: float = CONTROL_TIMEOUT_S) -> Message:
        """Send a request on the control channel and return the content of its reply."""
        message = self.client.session.msg(msg_type, content)
        self.client.control_channel.send(message)
        give_up_at = time.monotonic() + timeout_s
        while (left_s := give_up_at - time.monotonic()) > 0:
            try:
                reply = self.client.get_control_msg(timeout=left_s)
            except queue.Empty:
                break
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return dict(reply["content"])
        raise TimeoutError(f"no reply to {msg_type} on the control channel within {timeout_s} s")

    def wait_until(self, is_met: Callable[[], bool], timeout_s: float = CELL_TIMEOUT_S) -> None:
        """Read what the kernel sends until a condition on it is met; it is tested after each message."""
        give_up_at = time.monotonic() + timeout_s
        while not is_met():
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"not met within {timeout_s} s; log: {self._log_tail()}")
            if not self.is_alive:
                raise RuntimeError(f"the kernel is dead; its log: {self._log_tail()}")
            self._read()

    def interrupt(self) -> None:
        """Interrupt as ■ does."""
        self._manager.interrupt_kernel()

    def kill(self) -> None:
        """End the process by SIGKILL: nothing in it runs any more. `restart` starts a new one."""
        self._manager.signal_kernel(signal.SIGKILL)
        give_up_at = time.monotonic() + CONTROL_TIMEOUT_S
        while self.is_alive:
            if time.monotonic() > give_up_at:
                raise TimeoutError("the kernel survived SIGKILL")
            time.sleep(0.01)  # the manager offers nothing to wait on

    def shutdown(self) -> None:
        """End the kernel as a front end does, so that its `do_shutdown` runs."""
        self._disconnect()
        self._manager.shutdown_kernel(now=False)

    def restart(self) -> None:
        """Start a new process: asks a live one to end first, replaces a dead one."""
        was_alive = self.is_alive
        self._disconnect()
        with self.log.open("ab") as log:
            self._manager.restart_kernel(now=not was_alive, cwd=str(self.folder), env=self.env, stdout=log, stderr=log)
        self._connect()

    def _connect(self) -> None:
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        try:
            self._client.wait_for_ready(timeout=START_TIMEOUT_S)
        except RuntimeError as error:
            raise RuntimeError(f"{error}; log: {self._log_tail()}") from error

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.stop_channels()
            self._client = None

    def _read(self) -> None:
        """Take in one message of IOPub or, if there is none for a moment, the replies that are there."""
        try:
            message = self.client.get_iopub_msg(timeout=0.05)
        except queue.Empty:
            self._read_replies()
            return
        if message["msg_type"].startswith("comm_"):
            self.comms.append(message)
        if execution := self._executions.get(message["parent_header"].get("msg_id", "")):
            execution.messages.append(message)
        if message["msg_type"] == "status":
            self._read_replies()

    def _read_replies(self) -> None:
        while True:
            try:
                reply = self.client.get_shell_msg(timeout=0)
            except queue.Empty:
                return
            if execution := self._executions.get(reply["parent_header"].get("msg_id", "")):
                execution.reply = reply["content"]

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] or "empty"


def _environment(folder: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JUPYTER", "JPY_", "NBRUN_", "PYTEST_"))
    }
    own = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    return kept | {name: str(folder / f".{name.lower()}") for name in own}
