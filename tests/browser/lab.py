"""A JupyterLab server and one notebook in it, driven as a person would: select, press keys, look."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import nbformat
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Response, ViewportSize, expect

from tests import kernels

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15
OPEN_TIMEOUT_S = 60
CELL_TIMEOUT_S = 30
POLL_S = 0.1
VIEWPORT: ViewportSize = {"width": 1200, "height": 900}

# No pop-ups, no network, no surprises: a save happens when a test saves, a cell is drawn when it exists.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "checkForUpdates": False,
        "doNotDisturbMode": True,
        "fetchNews": "false",
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}

# By the page's own kernel: its status bar may still speak of an earlier one.
_HAS_IDLE_KERNEL = """path => {
  const session = window.jupyterapp?.shell.currentWidget?.context?.sessionContext.session;
  return session?.path === path && session.kernel?.connectionStatus === "connected" && session.kernel.status === "idle";
}"""

_OPEN = "path => window.jupyterapp.commands.execute('docmanager:open', { path }).then(() => null)"
_CLOSE_ALL = """async () => {
  const { commands, shell } = window.jupyterapp;
  if (document.querySelector(".jp-Dialog")) return false;
  for (const { context } of shell.widgets("main")) if (context) context.model.dirty = false;  // else Lab asks
  await commands.execute("application:close-all");
  return ![...shell.widgets("main")].some(({ context }) => context);
}"""

Source = str | Path | Sequence[str]
"""What to open: the sources of code cells, or the path of a notebook (copied into the server's root)."""


class LabServer:
    """A JupyterLab in a process of its own: loopback, a random port and token, none of the user's settings.

    A context manager; leaving it ends the server, and with it the kernels.

    Parameters
    ----------
    keeps_pages
        Whether a page of Lab serves one notebook after the other: loading Lab takes five seconds of CPU.
    """

    def __init__(self, folder: Path, *, keeps_pages: bool = False) -> None:
        self.root = folder / "root"
        self.log = folder / "lab.log"
        self.token = secrets.token_hex(16)
        self.port = 0
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._opened = 0
        self._keeps_pages = keeps_pages
        self._left: list[LabNotebook] = []  # closed ones, whose pages are still there

    @property
    def url(self) -> str:
        """The address of the server, with the slash at its end."""
        return f"http://127.0.0.1:{self.port}/"

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True)
        environment = self._environment()
        for attempt in range(3):  # between finding a free port and taking it, another may take it
            self.port = _free_port()
            try:
                self._start(environment)
            except RuntimeError:
                if attempt == 2:
                    raise
            else:
                break
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    def request(self, method: str, path: str, body: object = None) -> object:
        """Return the server's JSON answer to a request of its REST API, such as `("GET", "api/sessions")`."""
        request = urllib.request.Request(  # noqa: S310 - our own loopback server
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
            text = answer.read()
        return json.loads(text) if text else None

    def open(
        self,
        browser: Browser,
        source: Source,
        *,
        kernel_name: str = "python3",
        page: type[LabNotebook] | None = None,
        scale: float = 1,
    ) -> LabNotebook:
        """Open a notebook in a browser context that no other one is open in; return it once its kernel is idle.

        Parameters
        ----------
        kernel_name
            A kernelspec's name or a version of ipykernel ("6.30"); a notebook file has its own.
        page
            What shows it: Lab, or another front end's page of the same server.
        scale
            Pixels of the screen for each pixel of the page, as on a fine display.
        """
        self._opened += 1
        path = self._write_notebook(source, kernels.named(kernel_name))
        if self._left and page in (None, LabNotebook) and scale == 1:
            notebook = self._left.pop()
            notebook.take(path)
        else:
            context = browser.new_context(viewport=VIEWPORT, device_scale_factor=scale)
            notebook = (page or LabNotebook)(self, context, path, workspace=f"test-{self._opened}")
        try:
            notebook.load()
        except BaseException:
            notebook.take_screenshot()
            notebook.leave()
            notebook.close()
            raise
        return notebook

    def keep_page(self, notebook: LabNotebook) -> bool:
        """Keep the page of a closed notebook for the next one, if it is fit for that; return whether it is kept."""
        if not self._keeps_pages or type(notebook) is not LabNotebook or not notebook.close_document():
            return False
        self._left.append(notebook)
        return True

    def _write_notebook(self, source: Source, kernel_name: str) -> Path:
        folder = self.root / f"n{self._opened}"
        folder.mkdir()
        if isinstance(source, (str, Path)):
            return Path(shutil.copy(source, folder))
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in source],
            metadata={"kernelspec": {"name": kernel_name, "display_name": kernel_name}},
        )
        path = folder / "test.ipynb"
        nbformat.write(notebook, path)
        return path

    def _environment(self) -> dict[str, str]:
        own = {
            "IPYTHONDIR": "ipython",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
        }
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JUPYTER", "JPY_", "NBRUN_", "PYTEST_"))
        }
        for folder in own.values():
            (self._folder / folder).mkdir()
        defaults = self._folder / "config/labconfig/default_setting_overrides.json"
        defaults.parent.mkdir()
        defaults.write_text(json.dumps(SETTINGS), encoding="utf-8")
        environment = kept | {name: str(self._folder / folder) for name, folder in own.items()}
        environment["JUPYTER_TOKEN"] = self.token  # not an argument: those can be read by all
        environment["JUPYTER_PATH"] = str(kernels.jupyter_path())
        return environment

    def _start(self, environment: dict[str, str]) -> None:
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={self.port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.root}",
            "--ServerApp.terminals_enabled=False",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--LabApp.expose_app_in_browser=True",
            "--JupyterNotebookApp.expose_app_in_browser=True",  # Notebook 7, on the same server
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
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
                raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(POLL_S)  # another process's start cannot be awaited

    def _answers(self) -> bool:
        try:
            self.request("GET", "api/status")
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError):
            return False
        return True

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


class LabNotebook:
    """One notebook, open in Lab in a browser context of its own. Cells are counted from 0.

    A context manager; leaving it closes the page and ends the kernel.
    """

    def __init__(self, server: LabServer, context: BrowserContext, path: Path, *, workspace: str) -> None:
        self.server = server
        self.path = path
        self.console: list[str] = []
        """What the page said in its console, errors of the page included."""
        self._context = context
        self._workspace = workspace
        self._is_loaded = False
        self.page = self._new_page()

    def _new_page(self) -> Page:
        page = self._context.new_page()
        page.on("console", lambda message: self.console.append(message.text))
        page.on("pageerror", lambda error: self.console.append(f"page error: {error}"))
        # Only "leave this page?" comes as a dialog of the browser's; Lab draws its own.
        page.on("dialog", lambda dialog: dialog.accept())
        return page

    def take(self, path: Path) -> None:
        """Be another notebook from now on, in the same page; this one has been closed."""
        self.path = path
        self.console.clear()
        self.page.set_viewport_size(VIEWPORT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def panel(self) -> Locator:
        """The notebook's tab content."""
        return self.page.locator(".jp-NotebookPanel:visible")

    @property
    def _server_path(self) -> str:
        return self.path.relative_to(self.server.root).as_posix()

    @property
    def kernel_id(self) -> str:
        """The server's id of the kernel."""
        sessions = self.server.request("GET", "api/sessions")
        if not isinstance(sessions, list):
            raise TypeError(f"the server's sessions are no list: {sessions!r}")
        return str(next(s["kernel"]["id"] for s in sessions if s["path"] == self._server_path))

    @contextmanager
    def second_page(self, path: Path | None = None) -> Iterator[LabNotebook]:
        """Open the notebook's file in a second page, on the same kernel; save before, for it shows what is saved.

        The kernel of another file, at `path`, ends with the page.
        """
        workspace = f"{self._workspace}-beside"
        other = LabNotebook(self.server, self._context, path or self.path, workspace=workspace)
        try:
            other.load()
            yield other
        finally:
            other.page.close()
            if path is not None:
                other.end_kernel()

    def leave(self) -> None:
        """Close the page; the kernel goes on."""
        self.page.close()

    def come_back(self) -> None:
        """Open the notebook again, as it was saved."""
        self.page, self._is_loaded = self._new_page(), False
        self.load()

    @property
    def address(self) -> str:
        """The page's path below the server's."""
        return f"lab/workspaces/{self._workspace}/tree/{self._server_path}"

    def load(self) -> None:
        """Load the page, if it is not there, and wait until the notebook is drawn and its kernel idle."""
        if self._is_loaded:
            self.page.evaluate(_OPEN, self._server_path)
            self.page.wait_for_url(f"**/{self.address}")  # what a reload shows again
        else:
            self.page.goto(f"{self.server.url}{self.address}?token={self.server.token}", timeout=OPEN_TIMEOUT_S * 1000)
            self._is_loaded = True
        self.wait_until_idle(timeout_s=OPEN_TIMEOUT_S)

    def reload(self, *, wait_until_idle: bool = True) -> None:
        """Load the page anew, unsaved outputs lost; a kernel with a blocked shell will not become idle."""
        self.page.reload(timeout=OPEN_TIMEOUT_S * 1000)
        expect(self.panel.locator(".jp-Cell").first).to_be_visible(timeout=OPEN_TIMEOUT_S * 1000)
        if wait_until_idle:
            self.wait_until_idle(timeout_s=OPEN_TIMEOUT_S)

    def wait_until_idle(self, *, timeout_s: float = CELL_TIMEOUT_S) -> None:
        """Wait until the page is connected to the notebook's kernel, and that is idle."""
        expect(self.panel.locator(".jp-Cell").first).to_be_visible(timeout=timeout_s * 1000)
        self.page.wait_for_function(_HAS_IDLE_KERNEL, arg=self._server_path, timeout=timeout_s * 1000)

    def cell(self, index: int) -> Locator:
        """Return the cell."""
        return self.panel.locator(".jp-Notebook .jp-Cell").nth(index)

    def prompt(self, index: int) -> Locator:
        """Return the cell's prompt: "[ ]:", "[*]:" or "[3]:"."""
        return self.cell(index).locator(".jp-InputPrompt")

    def select(self, index: int) -> None:
        """Select the cell, in command mode."""
        self.prompt(index).click()
        expect(self.cell(index)).to_have_class(re.compile(r"\bjp-mod-active\b"))

    def run_cell(self, index: int) -> None:
        """Start the cell as Ctrl+Enter does; return once Lab has taken it up, not when it has ended."""
        self.select(index)
        # The prompt is where Lab says that it took the key, and "[*]:" may be gone before one looks.
        self.prompt(index).evaluate(
            """node => {
                delete node.dataset.changed;
                const observer = new MutationObserver(() => { node.dataset.changed = "yes"; });
                observer.observe(node, {childList: true, characterData: true, subtree: true});
            }"""
        )
        self.page.keyboard.press("Control+Enter")
        expect(self.prompt(index)).to_have_attribute("data-changed", "yes")

    def wait_cell(self, index: int, *, timeout_s: float = CELL_TIMEOUT_S) -> int:
        """Wait until a started cell has ended, and return the number in its prompt."""
        ended = re.compile(r"\[(\d+)\]:")
        expect(self.prompt(index)).to_have_text(ended, timeout=timeout_s * 1000)
        match = ended.search(self.prompt(index).inner_text())
        if match is None:
            raise RuntimeError(f"cell {index} was started again while it was waited for")
        return int(match[1])

    def run_and_wait(self, index: int, *, timeout_s: float = CELL_TIMEOUT_S) -> int:
        """Run the cell to its end, and return the number in its prompt."""
        self.run_cell(index)
        return self.wait_cell(index, timeout_s=timeout_s)

    def output(self, index: int) -> Locator:
        """Return the cell's output area; cards are found in it."""
        return self.cell(index).locator(".jp-Cell-outputArea")

    def outputs(self, index: int) -> list[str]:
        """Return the text of each of the cell's outputs, as it stands now."""
        found = self.output(index).locator(".jp-OutputArea-output").all_inner_texts()
        return [text.strip() for text in found]

    def add_cell(self, text: str) -> int:
        """Add a code cell at the end, and return its index."""
        count = self.panel.locator(".jp-Notebook .jp-Cell").count()
        self.select(count - 1)
        self.page.keyboard.press("b")
        expect(self.cell(count)).to_have_class(re.compile(r"\bjp-mod-active\b"))
        self.page.keyboard.press("Enter")
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Escape")
        return count

    def save(self) -> nbformat.NotebookNode:
        """Save as Ctrl+S does, and return what the file then holds."""

        def is_saved(response: Response) -> bool:
            return response.request.method == "PUT" and "/api/contents/" in response.url

        with self.page.expect_response(is_saved, timeout=CELL_TIMEOUT_S * 1000) as answer:
            self.execute("docmanager:save")
        if not answer.value.ok:
            raise RuntimeError(f"saving failed: {answer.value.status} {answer.value.text()}")
        saved: nbformat.NotebookNode = nbformat.read(self.path, as_version=4)
        return saved

    def save_as(self, name: str) -> None:
        """Save under another name in the same folder, as Ctrl+Shift+S does; the page goes on with that file.

        Source: JupyterLab 4 starts another kernel for it; the first one stays that of the first file.
        """
        path = self.path.with_name(name)
        start = "() => { window.savedAs = window.jupyterapp.commands.execute('docmanager:save-as'); }"
        self.page.evaluate(start)
        dialog = self.page.locator(".jp-Dialog")
        dialog.locator("input").fill(path.relative_to(self.server.root).as_posix())
        dialog.locator(".jp-mod-accept").click()
        self.page.evaluate("() => window.savedAs.then(() => null)")
        self.path = path
        self.wait_until_idle(timeout_s=OPEN_TIMEOUT_S)

    def rename(self, name: str) -> None:
        """Give the notebook another name in the same folder, as Lab's menu does; its kernel goes on."""
        self.page.evaluate("() => { window.renamed = window.jupyterapp.commands.execute('docmanager:rename'); }")
        dialog = self.page.locator(".jp-Dialog")
        dialog.locator("input").fill(name)
        dialog.locator(".jp-mod-accept").click()
        self.page.evaluate("() => window.renamed.then(() => null)")
        self.path = self.path.with_name(name)

    def interrupt(self) -> None:
        """Interrupt the kernel, as the ■ button does."""
        self.execute("notebook:interrupt-kernel")

    def restart(self) -> None:
        """Restart the kernel, say yes to Lab's question, and wait until it is idle again."""
        start = "() => { window.restarted = window.jupyterapp.commands.execute(%r); }"
        self.page.evaluate(start % "notebook:restart-kernel")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.evaluate("() => window.restarted.then(() => null)")
        self.wait_until_idle(timeout_s=OPEN_TIMEOUT_S)

    def execute(self, command: str) -> None:
        """Execute one of Lab's commands, such as "notebook:interrupt-kernel", and wait for its end."""
        self.page.evaluate("id => window.jupyterapp.commands.execute(id).then(() => null)", command)

    def take_screenshot(self) -> None:
        """Keep a picture of the page, for a failure before a test has its hands on it."""
        folder = Path(__file__).parent / "screenshots"
        folder.mkdir(exist_ok=True)
        self.page.screenshot(path=folder / f"{self._workspace}-{self.server.port}.png")

    def close(self) -> None:
        """Close the page, unless the server keeps it for the next notebook, and end the kernel; the file stays."""
        if not self.server.keep_page(self):
            self._context.close()
        self.end_kernel()

    def close_document(self) -> bool:
        """Close what is open in the page, and return whether that was all that there was in its way."""
        return not self.page.is_closed() and bool(self.page.evaluate(_CLOSE_ALL))

    def end_kernel(self) -> None:
        """End the kernel, if there is one."""
        sessions = self.server.request("GET", "api/sessions")
        for session in sessions if isinstance(sessions, list) else []:
            if session["path"] == self._server_path:
                self.server.request("DELETE", f"api/sessions/{session['id']}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
