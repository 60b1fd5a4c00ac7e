"""An authorizer that a test can close, action by action."""

from __future__ import annotations

import os
from pathlib import Path

from jupyter_server.auth.authorizer import Authorizer
from jupyter_server.auth.identity import User
from jupyter_server.base.handlers import JupyterHandler

FILE = "TESTS_DENIED"
"""The variable with the path of a file; what its lines name, such as `execute kernels`, is denied."""


class Doorkeeper(Authorizer):
    """Allows what its file does not name."""

    def is_authorized(self, handler: JupyterHandler, user: User, action: str, resource: str) -> bool:
        """Return whether the file is silent on this action on this resource."""
        denied = Path(os.environ[FILE]).read_text(encoding="utf-8").splitlines()
        return f"{action} {resource}" not in denied
