"""The access line: one a request, written when its last byte has been sent."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, time
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from ..exchange import FIELDS, MALFORMED, UNMATCHED, Exchange, current_exchange, taken
from .context import IDS
from .lines import named_apart
from .writer import WriterHandler

__all__ = ["AccessLines", "AccessLogger", "access_line"]

logger = logging.getLogger("aiohttp_observe.access")

Answered = Callable[[web.BaseRequest, web.StreamResponse, float], None]


def access_line(created: float, fields: Mapping[str, Any] | None, exchange: Exchange) -> dict[str, Any]:
    """An access line as plain data; ``created`` in seconds since the epoch, ``fields`` as plain data."""
    line: dict[str, Any] = {
        "timestamp": created,
        "level": "INFO",
        "logger": "aiohttp_observe.access",
        "message": _message(exchange),
        **exchange.ids,
    }
    if fields:
        line.update(fields)
    _add_facts(line, exchange)
    return line


def _message(exchange: Exchange) -> str:
    return f"{exchange.method} {exchange.path or exchange.route} {exchange.status or '-'}"


def _add_facts(line: dict[str, Any], exchange: Exchange) -> None:
    line["http.request.method"] = exchange.method
    line["http.route"] = exchange.route
    line["url.path"] = exchange.path
    line["http.response.status_code"] = exchange.status
    line["duration_ms"] = _milliseconds(exchange.duration or 0.0)
    line["busy_ms"] = _milliseconds(exchange.busy)
    line["polls"] = exchange.polls
    line["longest_poll_ms"] = _milliseconds(exchange.longest_poll)
    if exchange.ready:
        line["ready_ms"] = _milliseconds(exchange.ready)
    if exchange.waiting:
        line["waiting_ms"] = {kind: _milliseconds(seconds) for kind, seconds in exchange.waiting.items()}
    if exchange.client_address is not None:
        line["client.address"] = exchange.client_address
    if exchange.user_agent is not None:
        line["user_agent.original"] = exchange.user_agent
    if exchange.websocket is not None:
        line.update(exchange.websocket.attributes)
    if exchange.error_type is not None:
        line["error.type"] = exchange.error_type


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e6) / 1e3  # three digits; round() itself takes four times as long for them


def _extra(exchange: Exchange) -> dict[str, Any]:
    """The same for a record."""
    extra: dict[str, Any] = {**exchange.ids}
    _add_facts(extra, exchange)
    return extra


class AccessLines:
    """Writes the access line of every request of one application.

    ``direct`` gives our handler while a record would go only there, and could be spared.
    It is asked for each first of a few lines, which are rendered together, when that is
    cheapest: see `settle`.
    """

    def __init__(self, direct: Callable[[], WriterHandler | None]) -> None:
        self._direct = direct
        self._handler: WriterHandler | None = None
        self._waiting: deque[tuple[WriterHandler, Mapping[str, Any] | None, Exchange]] = deque()

    def finished(self, exchange: Exchange) -> None:
        waiting = self._waiting
        if not waiting:
            self._handler = self._direct()
        handler = self._handler
        if handler is None:
            logger.info("%s", _message(exchange), extra=_extra(exchange))
        else:
            fields = FIELDS.get()
            # As they are now: the service may change what it has bound.
            waiting.append((handler, fields and named_apart(fields, handler.is_secret, IDS), exchange))

    def settle(self, ended: Sequence[Exchange]) -> None:
        """Have the lines written of the requests that have ended since the last time."""
        enabled, epoch = logger.isEnabledFor(logging.INFO), time() - perf_counter()
        for handler, fields, exchange in taken(self._waiting):
            if enabled:
                created = epoch + exchange.started + (exchange.duration or 0.0)
                handler.put(access_line(created, fields, exchange))

    def raised(self, exchange: Exchange, exc: Exception) -> None:
        """aiohttp answers an escaped timeout with 504 and logs it without its traceback."""
        if isinstance(exc, asyncio.TimeoutError):
            logging.getLogger("aiohttp_observe").error("Request handler timed out", exc_info=exc)


class AccessLogger(AbstractAccessLogger):
    """The access line for ``web.run_app(access_log_class=AccessLogger)``.

    An application with observability has it in place already: there it only reports when a
    response has been sent.  Elsewhere it writes the same line from what aiohttp tells.
    """

    @property
    def enabled(self) -> bool:
        return logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        if current_exchange() is not None:
            return
        path = request.rel_url.raw_path
        facts = {
            "http.request.method": request.method,
            "http.route": _route(request),
            "url.path": path,
            "http.response.status_code": response.status,
            "duration_ms": _milliseconds(time),
            "client.address": request.remote,
            "user_agent.original": request.headers.get("User-Agent"),
        }
        known = {name: value for name, value in facts.items() if value is not None}
        logger.info("%s %s %s", request.method, path, response.status, extra=known)


def _route(request: web.BaseRequest) -> str:
    match: web.UrlMappingMatchInfo | None = getattr(request, "_match_info", None)
    if match is None:
        return MALFORMED
    try:
        resource = match.route.resource
        return UNMATCHED if resource is None else resource.canonical
    except Exception:  # of a resource of the service's own
        return UNMATCHED


def bound_to(answered: Answered) -> type[AccessLogger]:
    """An `AccessLogger` that reports to one application."""
    return type("AccessLogger", (AccessLogger,), {"enabled": True, "log": staticmethod(answered)})
