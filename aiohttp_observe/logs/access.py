"""The access line: one a request, written when its last byte has been sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from time import time
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from ..exchange import FIELDS, Exchange, current_exchange
from .lines import named_apart

__all__ = ["AccessLines", "AccessLogger", "access_line"]

logger = logging.getLogger("aiohttp_observe.access")

Malformed = Callable[[web.BaseRequest, web.StreamResponse, float], None]
AccessItem = tuple[float, "Mapping[str, Any] | None", Exchange]
"""When, with which bound fields, and the facts."""


def access_line(item: AccessItem) -> dict[str, Any]:
    """An access line as plain data."""
    created, fields, exchange = item
    line = {
        "timestamp": created,
        "level": "INFO",
        "logger": "aiohttp_observe.access",
        "message": _message(exchange),
        **_ids(exchange),
    }
    if fields:
        line.update(named_apart(fields))
    line.update(_facts(exchange))
    return line


def _message(exchange: Exchange) -> str:
    return f"{exchange.method} {exchange.path or exchange.route} {exchange.status or '-'}"


def _ids(exchange: Exchange) -> dict[str, Any]:
    if exchange.span is None:
        return {"request_id": exchange.request_id}
    return {
        "request_id": exchange.request_id,
        "trace_id": exchange.trace_id,
        "span_id": exchange.span_id,
    }


def _facts(exchange: Exchange) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "http.request.method": exchange.method,
        "http.route": exchange.route,
        "url.path": exchange.path,
        "http.response.status_code": exchange.status,
        "duration_ms": _milliseconds(exchange.duration or 0.0),
        "busy_ms": _milliseconds(exchange.busy),
        "polls": exchange.polls,
        "longest_poll_ms": _milliseconds(exchange.longest_poll),
    }
    for name, value in (
        ("client.address", exchange.client_address),
        ("user_agent.original", exchange.user_agent),
        ("error.type", exchange.error_type),
    ):
        if value is not None:
            facts[name] = value
    return facts


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


class AccessLines:
    """Writes the access line of every request of one application."""

    def __init__(self, direct: Callable[[], Callable[[AccessItem], None] | None]) -> None:
        self._direct = direct

    def finished(self, exchange: Exchange) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        put = self._direct()
        if put is not None:
            put((time(), FIELDS.get(), exchange))
        else:
            logger.info("%s", _message(exchange), extra={**_ids(exchange), **_facts(exchange)})

    def raised(self, exchange: Exchange, exc: Exception) -> None:
        """aiohttp answers an escaped timeout with 504 and logs it without its traceback."""
        if isinstance(exc, asyncio.TimeoutError):
            logging.getLogger("aiohttp_observe").error("Request handler timed out", exc_info=exc)


class AccessLogger(AbstractAccessLogger):
    """The access line for ``web.run_app(access_log_class=AccessLogger)``.

    An application with observability has it in place already: there it stays silent for
    requests that were observed, and reports those that the parser refused.  Elsewhere it
    writes the same line from what aiohttp tells.
    """

    malformed: Malformed | None = None

    @property
    def enabled(self) -> bool:
        return self.malformed is not None or logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        if current_exchange() is not None:
            return
        if self.malformed is not None:
            self.malformed(request, response, time)
        else:
            self._write(request, response, time)

    def _write(self, request: web.BaseRequest, response: web.StreamResponse, seconds: float) -> None:
        facts = {
            "http.request.method": request.method,
            "url.path": request.rel_url.raw_path,
            "http.response.status_code": response.status,
            "duration_ms": _milliseconds(seconds),
            "client.address": request.remote,
            "user_agent.original": request.headers.get("User-Agent"),
        }
        logger.info("%s %s %s", request.method, facts["url.path"], response.status, extra=facts)


def bound_to(malformed: Malformed) -> type[AccessLogger]:
    """An `AccessLogger` that reports to one application."""
    return type("AccessLogger", (AccessLogger,), {"malformed": staticmethod(malformed)})
