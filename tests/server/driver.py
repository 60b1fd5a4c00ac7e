"""A real Jupyter server in a process of its own, and the kernels that it starts."""

from __future__ import annotations

import http.cookiejar
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from jupyter_client.manager import KernelManager

from tests import kernels
from tests.kernel.driver import Kernel
from tests.server import authorizer

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15
ANSWER_TIMEOUT_S = 15
POLL_S = 0.1

# What an installed JupyterLab would switch on; the tests need none of it.
OTHERS = ("jupyter_lsp", "jupyter_server_terminals", "jupyterlab", "notebook", "notebook_shim")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the HTTP status and the JSON, if it was JSON."""

    status: int
    body: Any


class Visitor:
    """Somebody who sends requests, with cookies of its own: without a token a stranger, until logged in."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url
        self._token = token
        self._cookies = http.cookiejar.CookieJar()
        # No proxy: the server is on this machine.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self._cookies)
        )

    def ask(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request and return the answer; `body` is sent as JSON, bytes as they are."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        if self._token is not None:
            sent["Authorization"] = f"token {self._token}"
        request = urllib.request.Request(  # noqa: S310 - our own loopback server
            self._url + path, method=method, data=data, headers=sent
        )
        try:
            with self._opener.open(request, timeout=ANSWER_TIMEOUT_S) as answer:
                return Answer(answer.status, _json(answer.read()))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, _json(error.read()))

    def log_in(self, token: str) -> None:
        """Become a person with a cookie, as a browser does by its login page."""
        self.ask("GET", "login")
        form = urllib.parse.urlencode({"password": token, "_xsrf": self.xsrf}).encode()
        self.ask("POST", "login", form, {"Content-Type": "application/x-www-form-urlencoded"})

    @property
    def xsrf(self) -> str:
        """The token that a page of the server itself sends back, and no other site can read."""
        return next(c.value or "" for c in self._cookies if c.name == "_xsrf")


class ServerProcess(Visitor):
    """A Jupyter server: loopback, a random port and token, none of the user's settings, nbrun's own switch.

    A context manager; leaving it ends the server, and with it the kernels. It asks with its own token.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        """The server's root, in which the kernels start."""
        self.log = folder / "server.log"
        self.token = secrets.token_hex(16)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._folder = folder
        self._denied = folder / "denied.txt"
        self._process: subprocess.Popen[bytes] | None = None
        super().__init__(self.url, self.token)

    @property
    def pid(self) -> int:
        """The process id."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def visitor(self) -> Visitor:
        """Return somebody who is not logged in."""
        return Visitor(self.url)

    @contextmanager
    def denying(self, *doors: str) -> Iterator[None]:
        """Have the server's authorizer deny something for a while, such as `execute kernels`."""
        self._denied.write_text("\n".join(doors), encoding="utf-8")
        try:
            yield
        finally:
            self._denied.write_text("", encoding="utf-8")

    def start_kernel(self) -> ServedKernel:
        """Start a kernel over the server's API, and return it once it is ready."""
        answer = self.ask("POST", "api/kernels", {"name": "python3"})
        assert answer.status == 201, answer
        return ServedKernel(self, answer.body["id"])

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True)
        self._denied.write_text("", encoding="utf-8")
        command = [
            *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"),
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={self.port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.root}",
            "--ServerApp.authorizer_class=tests.server.authorizer.Doorkeeper",
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the tests is not for the kernels
            )
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                self._stop()
                raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(POLL_S)  # another process's start cannot be awaited
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JUPYTER", "JPY_", "NBRUN_", "PYTEST_"))
        }
        own = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
        folders = {name: str(self._folder / name.lower()) for name in own}
        settings = Path(folders["JUPYTER_CONFIG_DIR"]) / "jupyter_server_config.json"
        settings.parent.mkdir()
        switched_off = {"ServerApp": {"jpserver_extensions": dict.fromkeys(OTHERS, False)}}
        settings.write_text(json.dumps(switched_off), encoding="utf-8")
        return kept | folders | {
            "JUPYTER_CONFIG_PATH": str(kernels.CHECKOUT / "jupyter-config"),
            "JUPYTER_TOKEN": self.token,  # not an argument: those can be read by all
            "PYTHONPATH": str(kernels.CHECKOUT),
            authorizer.FILE: str(self._denied),
        }  # fmt: skip

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "api/status").status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
        self._process = None


class ServedKernel(Kernel):
    """A kernel that the server started, with a second client at its channels.

    A context manager; leaving it ends the kernel.
    """

    def __init__(self, server: ServerProcess, kernel_id: str) -> None:
        super().__init__(server.root)
        self.id = kernel_id
        self.log = server.log
        self.api = f"nbrun/api/kernels/{kernel_id}"
        self._server = server
        connection = server.log.parent / "jupyter_runtime_dir" / f"kernel-{kernel_id}.json"
        self._manager = KernelManager(connection_file=str(connection), owns_kernel=False)

    def __enter__(self) -> Self:
        self._manager.load_connection_file()
        self._connect()
        return self

    def __exit__(self, *_error: object) -> None:
        self._disconnect()
        self._server.ask("DELETE", f"api/kernels/{self.id}")

    @property
    def is_alive(self) -> bool:
        """Whether the server has this kernel."""
        return self._server.ask("GET", f"api/kernels/{self.id}").status == 200

    def interrupt(self) -> None:
        """Interrupt as ■ does."""
        self._server.ask("POST", f"api/kernels/{self.id}/interrupt")

    def restart(self) -> None:
        """Restart over the server's API, as a front end does; the ports and the id stay."""
        self._disconnect()
        assert self._server.ask("POST", f"api/kernels/{self.id}/restart").status == 200
        self._connect()


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
