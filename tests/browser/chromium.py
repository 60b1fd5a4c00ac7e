"""Finds a Chromium to test in; where there is none, installs one or says what would."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Draws as the whole browser does, for a sixth of its CPU time; it has no notifications.
SHELL = "chromium-headless-shell"
INSTALL_TIMEOUT_S = 600
MEND = "install Chromium (Debian: apt-get install chromium) or point NBRUN_CHROMIUM at one"

ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

_ASK_PLAYWRIGHT = """
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
"""


class NoChromium(RuntimeError):
    """There is no Chromium here, and none could be installed; the message is one line with the mend."""


def find() -> Path | None:
    """Return the Chromium to use, or None: `NBRUN_CHROMIUM`, then PATH, then Playwright's own.

    Raises
    ------
    NoChromium
        `NBRUN_CHROMIUM` is set and names no file: better said than passed over.
    """
    if wanted := os.environ.get("NBRUN_CHROMIUM"):
        if not Path(wanted).is_file():
            raise NoChromium(f"NBRUN_CHROMIUM is {wanted!r}, which is no file: {MEND}")
        return Path(wanted)
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    return _playwrights_own()


def find_or_install() -> Path:
    """Return the Chromium to use; install one first where there is none.

    Raises
    ------
    NoChromium
        Neither the system's packages nor Playwright gave one.
    """
    if found := find():
        return found
    if can_apt_install():
        apt_install("chromium")
    else:
        _playwright_install()
    if found := find():
        return found
    raise NoChromium(f"no Chromium found, and installing one failed: {MEND}")


def find_quick() -> Path:
    """Return the headless shell of Chromium where it is there, else a whole Chromium; `NBRUN_CHROMIUM` is either."""
    shell = None if os.environ.get("NBRUN_CHROMIUM") else shutil.which(SHELL)
    return Path(shell) if shell else find_or_install()


def find_quick_or_install() -> Path:
    """Return the same; on Debian, the shell is installed beside a Chromium of its packages."""
    whole = find_or_install()
    if str(whole) == "/usr/bin/chromium" and not shutil.which(SHELL) and can_apt_install():
        apt_install(SHELL)
    return find_quick()


def can_apt_install() -> bool:
    """Return whether this is root on a Debian-like system."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return is_root and shutil.which("apt-get") is not None


def apt_install(*packages: str) -> bool:
    """Install Debian packages and return whether that worked; its output is shown."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    return all(
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode == 0
        for command in (["apt-get", "update"], install)
    )


def _playwright_install() -> None:
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, check=False, timeout=INSTALL_TIMEOUT_S)


def _playwrights_own() -> Path | None:
    # In a process of its own: asking starts an event loop, and a test may have one already.
    answer = subprocess.run([sys.executable, "-c", _ASK_PLAYWRIGHT], capture_output=True, text=True, check=False)
    path = Path(answer.stdout.strip() or "nowhere")
    return path if path.is_file() else None
