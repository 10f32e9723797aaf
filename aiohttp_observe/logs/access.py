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
from ..forks import heed_forks
from .lines import named_apart, timestamp
from .writer import WriterHandler

__all__ = ["AccessLines", "AccessLogger", "access_line"]

logger = logging.getLogger("aiohttp_observe.access")

_TOLD_BY_RECORD = ("timestamp", "level", "logger", "message", "task")

Answered = Callable[[web.BaseRequest, web.StreamResponse, float], None]


def access_line(created: float, fields: Mapping[str, Any] | None, exchange: Exchange) -> dict[str, Any]:
    """An access line as plain data; ``created`` in seconds since the epoch, ``fields`` as plain data."""
    path, status, span, task = exchange.path, exchange.status, exchange.span, exchange.task_name
    client, agent = exchange.client_address, exchange.user_agent
    line = {
        "timestamp": timestamp(created),
        "level": "INFO",
        "logger": "aiohttp_observe.access",
        "message": f"{exchange.method} {path or exchange.route} {status or '-'}",
        "request_id": exchange.request_id,
        # A third faster than with a format specifier.
        "trace_id": None if span is None else "%032x" % span.trace_id,  # noqa: UP031
        "span_id": None if span is None else "%016x" % span.span_id,  # noqa: UP031
        "task": task,
        "http.request.method": exchange.method,
        "http.route": exchange.route,
        "url.path": path,
        "http.response.status_code": status,
        "duration_ms": _milliseconds(exchange.duration or 0.0),
        "busy_ms": _milliseconds(exchange.busy),
        "polls": exchange.polls,
        "longest_poll_ms": _milliseconds(exchange.longest_poll),
        "client.address": client,
        "user_agent.original": agent,
    }
    if span is None or task is None or client is None or agent is None:
        line = {name: value for name, value in line.items() if value is not None}
        line.setdefault("http.response.status_code", None)
    _add_rarities(line, exchange)
    for name, value in (fields or {}).items():
        line[f"{name}_" if name in line else name] = value
    return line


def _add_rarities(line: dict[str, Any], exchange: Exchange) -> None:
    if exchange.ready:
        line["ready_ms"] = _milliseconds(exchange.ready)
    if exchange.waiting:
        line["waiting_ms"] = {kind: _milliseconds(seconds) for kind, seconds in exchange.waiting.items()}
    if exchange.websocket is not None:
        line.update(exchange.websocket.attributes)
    if exchange.error_type is not None:
        line["error.type"] = exchange.error_type


def _log(exchange: Exchange) -> None:
    """The same as a record, for handlers of the service's own."""
    line = access_line(0.0, None, exchange)
    facts = {name: value for name, value in line.items() if name not in _TOLD_BY_RECORD}
    logger.info("%s", line["message"], extra=facts)


def _milliseconds(seconds: float) -> float:
    return (seconds * 1e6 + 0.5) // 1 / 1e3  # three digits: round() takes four times as long for them


class AccessLines:
    """Writes the access line of every request of one application.

    ``direct`` gives our handler while a record would go only there, and could be spared.
    It is asked for each first of a few lines, which are rendered together, when that is
    cheapest: see `settle`.
    """

    def __init__(self, direct: Callable[[], WriterHandler | None]) -> None:
        self._direct = direct
        self._handler: WriterHandler | None = None
        self.begin_anew()
        heed_forks(self)

    def begin_anew(self) -> None:
        """In a forked child: the lines that wait are the parent's to write."""
        self._waiting: deque[tuple[WriterHandler, Mapping[str, Any] | None, Exchange]] = deque()

    def finished(self, exchange: Exchange) -> None:
        waiting = self._waiting
        if not waiting:
            self._handler = self._direct()
        handler = self._handler
        if handler is None:
            _log(exchange)
        else:
            fields = FIELDS.get()
            # As they are now: the service may change what it has bound.
            waiting.append((handler, fields and named_apart(fields, handler.is_secret), exchange))

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
