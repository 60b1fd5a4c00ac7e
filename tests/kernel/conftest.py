"""Real kernels, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel.cells import loaded, renewed
from tests.kernel.driver import Kernel

TIMEOUT_S = 90


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time, unless they set their own."""
    for item in items:
        is_here = item.path.is_relative_to(Path(__file__).parent)
        if is_here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture
def start_kernel(tmp_path: Path) -> Iterator[Callable[..., Kernel]]:
    """Start kernels: `start_kernel(kernel_name="python3", env=None)`; all share one working folder."""
    with ExitStack() as stack:

        def start(kernel_name: str = "python3", env: Mapping[str, str] | None = None) -> Kernel:
            return stack.enter_context(Kernel(tmp_path, kernel_name=kernel_name, env=env))

        yield start


@pytest.fixture
def kernel(request: pytest.FixtureRequest, start_kernel: Callable[..., Kernel]) -> Kernel:
    """A kernel on the tests' ipykernel; on others by `parametrize("kernel", ["6.30"], indirect=True)`."""
    return start_kernel(getattr(request, "param", "python3"))


@pytest.fixture
def loaded_kernel(kernel: Kernel) -> Kernel:
    """The same with nbrun loaded, and with agents of `tests.kernel.cells` defined."""
    return loaded(kernel)


@pytest.fixture(scope="module")
def shared_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One loaded kernel for all tests of a module: each must leave it without a live run."""
    with Kernel(tmp_path_factory.mktemp("shared")) as kernel:
        yield loaded(kernel)


@pytest.fixture
def renewed_kernel(shared_kernel: Kernel) -> Kernel:
    """The module's kernel with everything of the earlier tests gone: as `loaded_kernel`, without a start."""
    return renewed(shared_kernel)
