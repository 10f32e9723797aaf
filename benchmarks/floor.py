"""The least that anybody can do who wants to tell of a request what ours tells, and samples nothing.

Written straight down, by hand, with the same libraries: no options, no errors, no streams or
websockets, no client that leaves, nobody to hear of it, nothing to look at while it lasts.
What ours costs above it is the price of all these; what this costs is not ours to save.
"""

from __future__ import annotations

import logging
import os
import sys
from random import getrandbits
from time import perf_counter
from time import time as now
from types import coroutine
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from msgspec.json import Encoder
from multidict import istr
from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation import _SPAN_KEY
from prometheus_client import Histogram

from aiohttp_observe.logs.access import AccessLine
from aiohttp_observe.metrics.tally import observing_all
from aiohttp_observe.texts import timestamp

__all__ = ["floor"]

_BATCH = 32
_HEADER = istr("X-Request-ID")
_CARRIED = (istr("traceparent"), istr("tracestate"), istr("baggage"))
_FLAGS = TraceFlags(TraceFlags.RANDOM_TRACE_ID)
_observed: list[tuple[float, float, int]] = []
_lines: list[AccessLine] = []
_encode_lines = Encoder().encode_lines


class _Told:
    """What is told of one request."""

    started: float
    trace_id: str
    request_id: str
    span_id: str
    route: str
    busy = 0.0
    polls = 0


@coroutine
def _drive(coro: Any, told: _Told) -> Any:
    value = None
    while True:
        begun = perf_counter()
        try:
            awaited = coro.send(value)
        except StopIteration as stop:
            return stop.value
        finally:
            told.busy += perf_counter() - begun
            told.polls += 1
        value = yield awaited


@web.middleware
async def _observe(request: web.Request, handler: Any) -> web.StreamResponse:
    trace_id, span_id, headers = getrandbits(128), getrandbits(64), request.headers
    if any(field in headers for field in _CARRIED):
        raise NotImplementedError
    told = _Told()
    told.started = perf_counter()
    told.trace_id = told.request_id = "%032x" % trace_id  # noqa: UP031
    told.span_id = "%016x" % span_id  # noqa: UP031
    told.route = request.match_info.route.resource.canonical  # type: ignore[union-attr]
    span = NonRecordingSpan(SpanContext(trace_id, span_id, False, _FLAGS))
    context_api.attach(Context({_SPAN_KEY: span}))
    request["told"] = told
    response: web.StreamResponse = await _drive(handler(request), told)
    return response


async def _prepare(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[_HEADER] = request["told"].request_id


class _Ended(AbstractAccessLogger):
    def log(self, request: Any, response: Any, time: float) -> None:
        told, status, path = request["told"], response.status, request.rel_url.raw_path
        seconds = perf_counter() - told.started
        _observed.append((seconds, told.busy, response.content_length))
        busy_ms = int(told.busy * 1e6) / 1e3
        _lines.append(
            AccessLine(
                timestamp(now()),
                "INFO",
                "access",
                f"{request.method} {path} {status}",
                told.request_id,
                request.method,
                told.route,
                path,
                status,
                int(seconds * 1e6) / 1e3,
                busy_ms,
                told.polls,
                busy_ms,
                told.trace_id,
                told.span_id,
                None,
                request.remote,
                request.headers.get("User-Agent"),
            )
        )
        if len(_lines) >= _BATCH:
            _flush()


def _flush() -> None:
    for observe, values in zip(_observe_all, zip(*_observed, strict=True), strict=True):
        observe(values)
    os.write(sys.stdout.fileno(), _encode_lines(_lines))
    _observed.clear()
    _lines.clear()


_observe_all = [
    observing_all(Histogram(name, "", ["method", "route", "status"]).labels("GET", "/", "200"))
    for name in ("floor_duration_seconds", "floor_busy_seconds", "floor_size_bytes")
]


def floor(app: web.Application) -> None:
    """Observe ``app`` so."""
    logging.getLogger("aiohttp.access").setLevel(logging.INFO)
    app._handler_args = {"access_log_class": _Ended}
    app.middlewares.append(_observe)
    app.on_response_prepare.append(_prepare)
