"""The access line: one a request, written when its last byte has been sent."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from time import perf_counter, time
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from msgspec import Struct, field

from ..exchange import FIELDS, MALFORMED, UNMATCHED, Ended, Exchange, taken
from ..forks import reset_after_fork
from ..records import log
from ..texts import timestamp
from .lines import named_apart, plain
from .writer import WriterHandler

__all__ = ["AccessLine", "AccessLines", "AccessLogger", "access_line"]

logger = logging.getLogger("aiohttp_observe.access")

_LARGE = 1.5 * 2.0**52
_TOLD_BY_RECORD = ("timestamp", "level", "logger", "message", "task")

Answered = Callable[[web.BaseRequest, web.StreamResponse, float], None]


class AccessLine(Struct, omit_defaults=True):
    """An access line as plain data: what is ``None`` isn't written, but for the status."""

    timestamp: str
    level: str
    logger: str
    message: str
    request_id: str
    method: str = field(name="http.request.method")
    route: str = field(name="http.route")
    path: str = field(name="url.path")
    status: int | None = field(name="http.response.status_code")
    duration_ms: float
    busy_ms: float
    polls: int
    longest_poll_ms: float
    trace_id: str | None = None
    span_id: str | None = None
    task: str | None = None
    client: str | None = field(name="client.address", default=None)
    agent: str | None = field(name="user_agent.original", default=None)
    response_size: int | None = field(name="http.response.body.size", default=None)
    ready_ms: float | None = None
    waiting_ms: dict[str, float] | None = None
    messages_received: int | None = field(name="websocket.messages_received", default=None)
    messages_sent: int | None = field(name="websocket.messages_sent", default=None)
    close_code: int | None = field(name="websocket.close_code", default=None)
    error_type: str | None = field(name="error.type", default=None)


def access_line(epoch: float, exchange: Exchange) -> AccessLine:
    """The line of an exchange; ``epoch`` is the time when `time.perf_counter` was zero, in seconds."""
    duration = exchange.duration or 0.0
    path, status, span, request_id = exchange.path, exchange.status, exchange.span, exchange.request_id
    trace_id = span_id = None
    if span is not None:  # formatting so is a third faster than with a specifier
        trace_id = request_id if span.trace_id == exchange.drawn else "%032x" % span.trace_id  # noqa: UP031
        span_id = "%016x" % span.span_id  # noqa: UP031
    busy_ms, polls = _milliseconds(exchange.busy), exchange.polls
    # By position: by name it takes five times as long.
    line = AccessLine(
        timestamp(epoch + exchange.started + duration),
        "INFO",
        "aiohttp_observe.access",
        f"{exchange.method} {path or exchange.route} {status or '-'}",
        request_id,
        exchange.method,
        exchange.route,
        path,
        status,
        _milliseconds(duration),
        busy_ms,
        polls,
        busy_ms if polls == 1 else _milliseconds(exchange.longest_poll),
        trace_id,
        span_id,
        exchange.task_name,
        exchange.client_address,
        exchange.user_agent,
        exchange.response_size if exchange.websocket is None else None,
    )
    if exchange.ready:
        line.ready_ms = _milliseconds(exchange.ready)
    if exchange.waiting:
        line.waiting_ms = {kind: _milliseconds(seconds) for kind, seconds in exchange.waiting.items()}
    if exchange.websocket is not None:
        line.messages_received = exchange.websocket.received
        line.messages_sent = exchange.websocket.sent
        line.close_code = exchange.websocket.close_code
    if exchange.error_type is not None:
        line.error_type = exchange.error_type
    return line


def _with_fields(line: AccessLine, fields: Mapping[str, Any]) -> dict[str, Any]:
    """And what is bound, as plain data; a name that the line uses gets an underscore at its end."""
    told: dict[str, Any] = plain(line)
    for name, value in fields.items():
        told[f"{name}_" if name in told else name] = value
    return told


def _log(exchange: Exchange) -> None:
    """Log an access line as a record, for handlers of the service's own."""
    line = access_line(0.0, exchange)
    facts = {name: value for name, value in plain(line).items() if name not in _TOLD_BY_RECORD}
    log(logger, logging.INFO, "%s", line.message, fields=facts)


def _milliseconds(seconds: float) -> float:
    # To whole microseconds: a sum as large has no bits for a fraction.  round() takes six times as long.
    return (seconds * 1e6 + _LARGE - _LARGE) / 1e3


class AccessLines:
    """Writes the access line of every request of one application.

    ``direct`` gives our handler while a record would go only there, and could be spared.
    It is asked for each first of a few lines, which are rendered together, when that is
    cheapest: see `flush`.
    """

    def __init__(self, direct: Callable[[], WriterHandler | None]) -> None:
        self._direct = direct
        self._handler: WriterHandler | None = None
        self.reset_in_child()
        reset_after_fork(self)

    def reset_in_child(self) -> None:
        """In a forked child: the lines that wait are the parent's to write."""
        self._waiting: deque[tuple[WriterHandler, Exchange, Mapping[str, Any] | None]] = deque()

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
            waiting.append((handler, exchange, fields and named_apart(fields, handler.is_secret)))

    def flush(self, ended: Ended) -> None:
        """Have the lines written of the requests that have ended since the last time."""
        if not logger.isEnabledFor(logging.INFO):
            self._waiting.clear()
        epoch, failure = time() - perf_counter(), None
        lines: defaultdict[WriterHandler, list[AccessLine | dict[str, Any]]] = defaultdict(list)
        for handler, exchange, fields in taken(self._waiting):
            try:
                line = access_line(epoch, exchange)
                lines[handler].append(_with_fields(line, fields) if fields else line)
            except Exception as exc:  # it costs no other line
                handler.writer.dropped(1)
                failure = exc
        for handler, together in lines.items():
            handler.writer.put(together)
        if failure is not None:
            raise failure

    def raised(self, exchange: Exchange, exc: Exception) -> None:
        """aiohttp answers an escaped timeout with 504 and logs it without its traceback."""
        if isinstance(exc, asyncio.TimeoutError):
            logging.getLogger("aiohttp_observe").error("Request handler timed out", exc_info=exc)


class AccessLogger(AbstractAccessLogger):
    """The access line for ``web.run_app(access_log_class=AccessLogger)``.

    Where `Logs` write the access line this isn't asked: they put one of their own in its place.
    Elsewhere it writes a shorter line: the method as it was sent, route, path, status, duration,
    client and user agent.
    """

    @property
    def enabled(self) -> bool:
        return logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
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
        log(logger, logging.INFO, "%s %s %s", request.method, path, response.status, fields=known)


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
