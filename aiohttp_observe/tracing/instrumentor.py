"""Living with the official instrumentor: its span is used, and there is only one."""

from __future__ import annotations

from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler

__all__ = ["instrumentors_place", "is_instrumented", "is_within_instrumentor", "without_instrumentor"]

_INSTRUMENTOR = "opentelemetry.instrumentation.aiohttp_server"
_OURS = "aiohttp_observe.middleware.recorder"


def is_instrumented(app: web.Application) -> bool:
    """Whether the official instrumentor's middleware is one of ``app``'s own."""
    return _INSTRUMENTOR in _modules(app)


def instrumentors_place(app: web.Application) -> int:
    """Where in ``app``'s middlewares ours belongs: just within the official instrumentor's, if it's there."""
    modules = _modules(app)
    return modules.index(_INSTRUMENTOR) + 1 if _INSTRUMENTOR in modules else 0


def is_within_instrumentor(app: web.Application) -> bool:
    """Whether ours is within the official instrumentor's middleware, whose span is current then.

    It isn't where a service adds that middleware by hand after our set-up.
    """
    modules = _modules(app)
    return _INSTRUMENTOR in modules and modules.index(_INSTRUMENTOR) < modules.index(_OURS)


def _modules(app: web.Application) -> list[str]:
    return [getattr(middleware, "__module__", "") for middleware in app.middlewares]


def without_instrumentor(handler: Handler) -> Handler:
    """A request's handler without the official instrumentor's middleware, wherever it stands.

    The instrumentor puts it into every application, sub-applications included, so a nested
    request would have a server span for each level.
    """
    if not isinstance(handler, partial) or "handler" not in handler.keywords:
        return handler
    inner = without_instrumentor(handler.keywords["handler"])
    if getattr(handler.func, "__module__", "") == _INSTRUMENTOR:
        return inner
    if inner is handler.keywords["handler"]:
        return handler
    return partial(handler.func, *handler.args, **{**handler.keywords, "handler": inner})
