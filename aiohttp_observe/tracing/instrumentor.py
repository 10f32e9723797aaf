"""Living with the official instrumentor: its span is used, and there is only one."""

from __future__ import annotations

from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler

__all__ = ["instrumentors_place", "is_instrumented", "without_instrumentor"]

_INSTRUMENTOR = "opentelemetry.instrumentation.aiohttp_server"


def is_instrumented(app: web.Application) -> bool:
    """Whether the official instrumentor's middleware is one of ``app``'s own."""
    return any(getattr(middleware, "__module__", "") == _INSTRUMENTOR for middleware in app.middlewares)


def instrumentors_place(app: web.Application) -> int:
    """Where in ``app``'s middlewares ours belongs: just within the official instrumentor's, if it's there."""
    for index, middleware in enumerate(app.middlewares):
        if getattr(middleware, "__module__", "") == _INSTRUMENTOR:
            return index + 1
    return 0


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
