"""What holds for every address of the server extension, also for those that are to come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import CodeType, FunctionType

import pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

import nbrun.server
from nbrun.server.kernel_client import NoAnswer, call
from nbrun.server.routes import routes


def methods() -> Iterator[tuple[str, object]]:
    """Every method that some handler adds to those of Jupyter's own."""
    for _, handler in routes("/base/"):
        for name in (method.lower() for method in web.RequestHandler.SUPPORTED_METHODS):
            method = getattr(handler, name)
            if method is not getattr(APIHandler, name):
                yield f"{handler.__name__}.{name}", method


def wrappers(method: object) -> list[CodeType]:
    """Return the code of a method's decorators, outermost first, and of itself."""
    found = []
    while method is not None:
        assert isinstance(method, FunctionType)
        found.append(method.__code__)
        method = getattr(method, "__wrapped__", None)
    return found


def bare() -> None:
    """Nothing: what the decorators are put around."""


def test_every_method_is_authenticated_and_authorized() -> None:
    """Who asks is made sure of first, then whether he may; no handler is open by mistake."""
    is_authenticated = wrappers(web.authenticated(bare))[0]
    is_authorized = wrappers(authorized("read", resource="kernels")(bare))[0]
    names = []
    for name, method in methods():
        assert wrappers(method)[:2] == [is_authenticated, is_authorized], name
        names.append(name)
    assert names == ["RunsHandler.get", "CancelHandler.post"]


def test_no_handler_changes_what_jupyter_checks() -> None:
    """The checks of cookies, origins and hosts are Jupyter Server's own, and every address is below its base."""
    checks = ("prepare", "check_xsrf_cookie", "check_origin", "check_host", "get_login_url")
    for pattern, handler in routes("/base/"):
        assert pattern.startswith("/base/nbrun/api/")
        assert issubclass(handler, APIHandler)
        for check in checks:
            assert getattr(handler, check) is getattr(APIHandler, check), (handler, check)


def test_the_extension_names_itself() -> None:
    """Jupyter Server finds the extension by the name that the installed file switches on."""
    assert nbrun.server._jupyter_server_extension_points() == [{"module": "nbrun.server"}]


def test_a_kernel_that_has_not_started_gives_no_answer() -> None:
    """It has no ports yet: it is given up as one that is stuck, with no other error."""
    with pytest.raises(NoAnswer, match="no answer from the kernel"):
        asyncio.run(call(AsyncKernelManager(), "list"))
