"""What the libraries take for the calls that a request can't do without: the floor under our figures.

In a tight loop, where everything is in the caches: in a live server the same takes about
twice as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import copy_context
from time import perf_counter
from typing import Any

from msgspec.json import Encoder
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags
from prometheus_client import CollectorRegistry, Histogram

from aiohttp_observe.exchange import Exchange, Scope
from aiohttp_observe.logs.access import access_line

from .rounds import interleaved
from .stacks import provider
from .table import Table

__all__ = ["tables"]

_CALLS = 1_000
_SDK_SPAN = "for comparison, all of an SDK span, 8 attributes"
_FACTS: dict[str, Any] = {
    "http.request.method": "GET",
    "http.route": "/json/{id}",
    "url.path": "/json/1",
    "http.response.status_code": 200,
    "url.scheme": "http",
    "server.address": "127.0.0.1",
    "client.address": "127.0.0.1",
    "user_agent.original": "bench",
}


def tables(rounds: int) -> list[Table]:
    """Each part's cost, and the sum that no observer on these libraries can go below."""
    return copy_context().run(_measured, rounds)  # a span is made current in it


def _measured(rounds: int) -> list[Table]:
    parts = dict(_parts())
    parts[_SDK_SPAN] = _sdk_span()
    found, _ = interleaved(parts, rounds, _microseconds)
    whole = found.pop(_SDK_SPAN)
    rows = (*found.items(), ("sum", sum(found.values())), (_SDK_SPAN, whole))
    return [Table("floors of the libraries, µs in a tight loop", ("what", "µs"), rows)]


def _microseconds(call: Callable[[], object]) -> float:
    begun = perf_counter()
    for _ in range(_CALLS):
        call()
    return (perf_counter() - begun) / _CALLS * 1e6


def _parts() -> Iterator[tuple[str, Callable[[], object]]]:
    histogram = Histogram("seconds", "", ["a", "b"], registry=CollectorRegistry()).labels("x", "y")

    def observe() -> None:
        histogram.observe(0.01)
        histogram.observe(0.01)
        histogram.observe(0.01)

    yield "prometheus_client: 3 Histogram.observe", observe
    encode, line = Encoder().encode, access_line(0.0, _exchange())
    yield "msgspec: an access line", lambda: encode(line)
    yield from _tracing()
    yield "asyncio: a done-callback's handle", _done_callback()


def _exchange() -> Exchange:
    exchange = Exchange(Scope(), "0" * 32, "GET", "/json/{id}", "/json/1", "127.0.0.1", "bench", 0.0)
    exchange.status, exchange.polls = 200, 1
    exchange.duration = exchange.busy = exchange.longest_poll = 0.000123
    return exchange


def _tracing() -> Iterator[tuple[str, Callable[[], object]]]:
    traces = provider(1.0)
    (processor,) = traces._active_span_processor._span_processors
    ids = traces.id_generator
    nothing = context.Context()
    flags = TraceFlags(TraceFlags.SAMPLED)

    def new_context() -> SpanContext:
        return SpanContext(ids.generate_trace_id(), ids.generate_span_id(), False, flags)

    span: Any = ReadableSpan("GET /", new_context())
    current = trace.NonRecordingSpan(new_context())
    yield "OpenTelemetry: two ids and a SpanContext", new_context
    yield (
        "OpenTelemetry: make the span current",
        lambda: context.attach(trace.set_span_in_context(current, nothing)),
    )
    yield "OpenTelemetry: hand it to the batch processor", lambda: processor.on_end(span)


def _sdk_span() -> Callable[[], object]:
    tracer, nothing = provider(1.0).get_tracer("bench"), context.Context()
    return lambda: tracer.start_span("GET /", nothing, attributes=_FACTS).end()


def _done_callback() -> Callable[[], object]:
    """The `Handle` that a done-callback is scheduled as, and its run."""
    loop = asyncio.new_event_loop()
    loop.close()
    around = copy_context()

    def nothing() -> None:
        pass

    return lambda: asyncio.Handle(nothing, (), loop, around)._run()
