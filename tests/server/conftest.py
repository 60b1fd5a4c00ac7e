"""One server for all tests of this folder, and kernels of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.cells import loaded
from tests.server.driver import ServedKernel, ServerProcess

TIMEOUT_S = 90


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time, unless they set their own."""
    for item in items:
        is_here = item.path.is_relative_to(Path(__file__).parent)
        if is_here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with nbrun switched on by the file that the wheel installs."""
    with ServerProcess(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture(scope="session")
def kernel(server: ServerProcess) -> Iterator[ServedKernel]:
    """A kernel of it with nbrun and some agents: each test must leave it without a live run."""
    with server.start_kernel() as kernel:
        loaded(kernel)
        yield kernel


@pytest.fixture
def bare_kernel(server: ServerProcess) -> Iterator[ServedKernel]:
    """A kernel of it in which nbrun was not loaded."""
    with server.start_kernel() as kernel:
        yield kernel
