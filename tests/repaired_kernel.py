"""Starts a kernel of ipykernel 7.0 to 7.3 that loses no request, which these versions do now and then.

Source: they send replies past the stream that reads the same socket, so a request that arrives just then is not read
until something else wakes the stream; a cell waits for ever (ipykernel's issue 1554, mended in 7.4 as it is here).
"""

from __future__ import annotations

import runpy
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from ipykernel.subshell_manager import SubshellManager


def _send(_manager: object, message: Any) -> None:
    app: Any = IPKernelApp.instance()
    app.kernel.shell_stream.send_multipart(message)


if __name__ == "__main__":
    manager: Any = SubshellManager
    manager._send_on_shell_channel = _send
    runpy.run_module("ipykernel_launcher", run_name="__main__")
