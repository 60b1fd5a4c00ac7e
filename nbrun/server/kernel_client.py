"""Calls nbrun in a running kernel, over the kernel's control channel."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from jupyter_client.asynchronous.client import AsyncKernelClient

from nbrun.core import NbrunError

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager

REQUEST = "nbrun_request"
REPLY = "nbrun_reply"

ANSWER_S = 2.0
"""How long a kernel may take; usually it answers in about 50 ms, whatever its cells do.

A C call that holds the interpreter's lock blocks every thread of a kernel, the control channel's too.
"""


class NoAnswer(NbrunError):
    """The kernel did not answer."""


async def call(kernel: KernelManager, op: str, **content: object) -> dict[str, Any]:
    """Return the answer of nbrun in this kernel to a request.

    `NoAnswer` means that nbrun isn't loaded there, or that the kernel is blocked, starting or dead.
    """
    client = kernel.client()
    if not isinstance(client, AsyncKernelClient):  # any other would block the server
        raise NoAnswer("nbrun can't reach this server's kernels: it needs an async kernel manager")
    # The clients of a manager share an identity, and a kernel answers only the latest of them.
    client.session.session = uuid.uuid4().hex
    try:
        client.start_channels(shell=False, iopub=False, stdin=False, hb=False)
        async with asyncio.timeout(ANSWER_S):
            return await _ask(client, {"op": op, "nonce": client.session.session, **content})
    except TimeoutError as error:
        raise NoAnswer(
            f"no answer from the kernel within {ANSWER_S:g} s. Load nbrun in it, or wait until the code that blocks"
            " it is done; it may still act on this request"
        ) from error
    finally:
        client.stop_channels()


async def _ask(client: AsyncKernelClient, content: dict[str, object]) -> dict[str, Any]:
    request = client.session.msg(REQUEST, content)
    client.control_channel.send(request)
    while True:
        try:
            message = await client.get_control_msg()
            is_ours = message["msg_type"] == REPLY and message["parent_header"]["msg_id"] == request["msg_id"]
            if is_ours:
                return dict(message["content"].items())
        except Exception as error:  # any code in a kernel can send anything, signed with its key
            raise NoAnswer("the kernel's answer isn't one of nbrun's") from error
        await asyncio.sleep(0)  # a kernel may send without end, and what has come is received without a turn for others
