"""The admin pages: who may look, and what they see.

==============  ==================================================================
``access``      the rule, and logging in
``console``     where the documents come from
``routes``      ``/_tasks`` and below
``query``       their parameters
``stream``      the live page's feed
``profiling``   profiles, for as long as somebody waits for them
``cancelling``  cancelling tasks
``problem``     how refusals are told
``server``      a thread and loop of its own, which answer while the application's is blocked
``static``      the page
==============  ==================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.web_app import (
    Application,  # not by the name that the official instrumentor puts its own class at
)

from ..options import check_flag, check_instance, check_path, environment
from .access import Gate, check_token
from .console import Console
from .routes import Routes
from .server import OwnServer, TakenError

__all__ = ["Admin", "AdminPages", "Gate", "TakenError"]

logger = logging.getLogger("aiohttp_observe.admin")


@dataclass(frozen=True, kw_only=True)
class Admin:
    """Where the task console is, and who may look.

    ``path``          default ``/_tasks``
    ``token``         what to present as ``Authorization: Bearer`` or at the login page, in
                      printable ASCII; default ``AIOHTTP_OBSERVE_ADMIN_TOKEN``.  Without one only
                      direct peers on the loopback interface may look: see `Gate`.
    ``port``          serve it, and the metrics, on this port too, from a thread of its own that
                      answers while the application's loop is blocked; default
                      ``AIOHTTP_OBSERVE_ADMIN_PORT``, else none.  0 takes a free one, which is logged.
    ``host``          the address that goes with the port, default ``127.0.0.1``
    ``unix_socket``   the same at this path; only the service's own user can connect.  ``{pid}``
                      in it is the process id, so that workers don't collide.
    ``allow_cancel``  whether tasks can be cancelled from the console, default ``False``; it takes
                      a token as well, and without one is off, which is logged at start-up
    """

    path: str = "/_tasks"
    token: str | None = field(default=None, repr=False)
    port: int | None = None
    host: str = "127.0.0.1"
    unix_socket: str | None = None
    allow_cancel: bool = False

    def __post_init__(self) -> None:
        check_path("Admin(path=...)", self.path)
        check_instance("Admin(token=...)", self.token, (str, type(None)))
        if self.token is not None:
            check_token("Admin(token=...)", self.token)
        _check_port("Admin(port=...)", self.port)
        check_instance("Admin(host=...)", self.host, str)
        check_instance("Admin(unix_socket=...)", self.unix_socket, (str, type(None)))
        check_flag("Admin(allow_cancel=...)", self.allow_cancel)

    def install(self, app: web.Application, console: Console) -> AdminPages:
        """Add the routes to ``app``."""
        pages = AdminPages(self, console)
        pages.add_to(app, pages.gate)
        if self.allow_cancel and not pages.gate.has_login:
            app.on_startup.append(_tell_that_cancelling_is_off)
        return pages


class AdminPages:
    """The console of one application.  ``gate`` is the rule, for others who serve something as private."""

    def __init__(self, options: Admin, console: Console) -> None:
        self.gate = Gate(options.token or _token_from_environment())
        self._options = options
        self._console = console
        self._port = _port_from_environment() if options.port is None else options.port

    def add_to(self, app: web.Application, gate: Gate) -> None:
        Routes(self._options.path, gate, self._console, allow_cancel=self._options.allow_cancel).add_to(app)

    def own_servers(self, add_more: Callable[[web.Application, Gate], None]) -> list[OwnServer]:
        """The servers that the options ask for; ``add_more`` adds what they serve besides."""
        options, path, servers = self._options, self._options.path, []
        if self._port is not None:
            servers.append(
                OwnServer(lambda: self._app(self.gate, add_more), (options.host, self._port), path)
            )
        if options.unix_socket is not None:
            gate = self.gate.for_private_socket()
            servers.append(OwnServer(lambda: self._app(gate, add_more), options.unix_socket, path))
        return servers

    def _app(self, gate: Gate, add_more: Callable[[web.Application, Gate], None]) -> web.Application:
        app = Application()
        self.add_to(app, gate)
        add_more(app, gate)
        return app


async def _tell_that_cancelling_is_off(app: web.Application) -> None:
    """At start-up, when logging is set up.  No error: the same code may run without a token elsewhere."""
    logger.warning(
        "Admin(allow_cancel=True) has no effect without a token, cancelling is off: "
        "set AIOHTTP_OBSERVE_ADMIN_TOKEN, or give Admin a token"  # "token=..." would be redacted
    )


def _check_port(option: str, port: object) -> None:
    check_instance(option, port, (int, type(None)))
    if isinstance(port, bool) or (isinstance(port, int) and not 0 <= port < 65536):
        raise ValueError(f"{option} takes a port number from 0 to 65535, got {port!r}")


def _token_from_environment() -> str | None:
    token = environment("ADMIN_TOKEN")
    if token is not None:
        check_token("AIOHTTP_OBSERVE_ADMIN_TOKEN", token)
    return token


def _port_from_environment() -> int | None:
    text = environment("ADMIN_PORT")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise ValueError(f"AIOHTTP_OBSERVE_ADMIN_PORT takes a port number, got {text!r}")
    return int(text)
