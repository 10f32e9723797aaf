"""The server span itself: one of ours, light if it can be, or one that somebody else has begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aiohttp import web
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, Tracer
from opentelemetry.trace import Span, SpanContext, SpanKind

from ..exchange import Exchange, SpanIds
from .facts import Facts, attributes_of, is_our_error, name_of, outcome_of
from .span import (
    NOTHING,
    TRACE_ID_LIMIT,
    DroppedSpan,
    LightSpan,
    LightTracer,
    conclude,
    is_plain,
    record,
    started,
)

__all__ = ["Borrowed", "RequestSpan", "Starter", "starter"]

FactsOf = Callable[[Exchange, web.BaseRequest], Facts]
"""Takes down what a request's span will tell."""


class RequestSpan(Protocol):
    """The server span of one exchange, as the tracing room keeps it."""

    trace_id: int
    span_id: int

    @property
    def sampled(self) -> bool: ...

    @property
    def borrowed(self) -> Span | None:
        """What is current in the request's context, if that isn't this one."""

    def set_attributes(self, attributes: Mapping[str, Any]) -> None: ...

    def record_exception(self, exception: Exception) -> None: ...

    def note(self, event: Event) -> None:
        """Add an event that may be shared by many spans; on the loop."""

    def finish(self, exchange: Exchange) -> SpanIds:
        """End it with the outcome of its request; returns what may be kept of it."""


class _Ids:
    """What is kept of a span that has ended, and in which the service may have put much."""

    __slots__ = ("span_id", "trace_id")

    def __init__(self, trace_id: int, span_id: int) -> None:
        self.trace_id = trace_id
        self.span_id = span_id


Starter = Callable[[Context, Exchange, web.BaseRequest], "RequestSpan | None"]
"""Starts the server span of a request, in a context."""


def starter(tracer: trace.Tracer, facts: FactsOf) -> Starter:
    """How to start server spans with ``tracer``: lightly if it is the SDK's, else as it does."""
    return _LightStarter(tracer, facts) if is_plain(tracer) else _PlainStarter(tracer, facts)


class _PlainStarter:
    def __init__(self, tracer: trace.Tracer, facts: FactsOf) -> None:
        self._tracer = tracer
        self._facts = facts

    def __call__(self, context: Context, exchange: Exchange, request: web.BaseRequest) -> RequestSpan | None:
        name, attributes = (
            name_of(exchange.method, exchange.route),
            attributes_of(self._facts(exchange, request)),
        )
        return _Owned.of(started(self._tracer, name, context, SpanKind.SERVER, attributes))


class Borrowed:
    """A span that somebody else starts and ends."""

    def __init__(self, span: Span, ids: SpanContext) -> None:
        self.borrowed = span
        self.trace_id = ids.trace_id
        self.span_id = ids.span_id
        self.sampled = ids.trace_flags.sampled

    @classmethod
    def of(cls, span: Span) -> Borrowed | None:
        """``None`` for a span without ids, as a provider that traces nothing makes them."""
        ids = span.get_span_context()
        return cls(span, ids) if ids.is_valid else None

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self.borrowed.set_attributes(attributes)

    def record_exception(self, exception: Exception) -> None:
        pass

    def note(self, event: Event) -> None:
        if self.borrowed.is_recording():
            self.borrowed.add_event(event.name, event.attributes, event.timestamp)

    def finish(self, exchange: Exchange) -> SpanIds:
        return _Ids(self.trace_id, self.span_id)


class _Owned(Borrowed):
    """A span of ours that isn't light."""

    def record_exception(self, exception: Exception) -> None:
        record(self.borrowed, exception)

    def finish(self, exchange: Exchange) -> SpanIds:
        conclude(self.borrowed, outcome_of(exchange), is_our_error(exchange))
        return super().finish(exchange)


class _LightStarter(LightTracer):
    def __init__(self, tracer: Tracer, facts: FactsOf) -> None:
        super().__init__(tracer, linked=False)
        self.facts = facts

    def __call__(self, context: Context, exchange: Exchange, request: web.BaseRequest) -> RequestSpan:
        if context is not NOTHING or self.bound is None:
            return self.begin(ServerSpan.made(self, (exchange, request)), context, exchange.drawn)
        trace_id = self.trace_id_of(exchange.drawn)
        if trace_id & TRACE_ID_LIMIT >= self.bound:
            return DroppedSpan(trace_id, self.new_span_id(), self.dropped)
        span = ServerSpan.made(self, (exchange, request))
        span.trace_id, span.span_id, span._flags, span.sampled = (
            trace_id,
            self.new_span_id(),
            self.sampled,
            True,
        )
        self.processors.start(span, context)
        return span


class ServerSpan(LightSpan):
    """Tells of an exchange and its request, and after the end what was taken down of them."""

    _kind = SpanKind.SERVER
    _home: _LightStarter
    _of: tuple[Exchange, web.BaseRequest] | None
    _facts: Facts

    borrowed = None

    def _tell_name(self) -> str:
        of = self._of
        if of is not None:
            exchange, _ = of
            return name_of(exchange.method, exchange.route)
        return name_of(self._facts[0], self._facts[6])

    def _tell_attributes(self) -> dict[str, Any]:
        of = self._of
        return attributes_of(self._facts if of is None else self._home.facts(*of))

    def _tell_outcome(self) -> dict[str, Any]:
        status, more = self._facts[-2:]
        return (more or {}) if status is None else {**(more or {}), "http.response.status_code": status}

    def finish(self, exchange: Exchange) -> SpanIds:
        """Set the outcome and end, without becoming a full span for it."""
        of = self._of
        if of is not None:
            self._facts = self._home.facts(*of)  # first: another thread may read of either
            self._of = None  # lets go of the request, and breaks the cycle with the exchange
        self._conclude(exchange.duration or 0.0, is_our_error(exchange))
        return self if self._made_lock is None else _Ids(self.trace_id, self.span_id)
