"""The server span itself: the SDK's, without what a span that nobody touches doesn't need.

An SDK span makes a dozen containers and locks at its start, which cost more than all the
rest of it and wait in the batch queue for the garbage collector to walk.  The facts of most
requests are set once and never changed, so this span keeps them in one plain dictionary, and
becomes a full SDK span the moment somebody sets an attribute or adds an event or link.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import time_ns
from typing import Any

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import Tracer
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, StaticSampler, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

__all__ = ["Starter", "fail", "finish", "starter"]

Attributes = Callable[[], dict[str, Any]]
Starter = Callable[[str, Context, Attributes], Span]
"""Starts a server span of a name, in a context, with the attributes that the last makes."""

_UNSET = Status(StatusCode.UNSET)
_ERROR = Status(StatusCode.ERROR)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_DROPPED = TraceFlags(TraceFlags.DEFAULT)
_MOST_ATTRIBUTES = 32


def starter(tracer: trace.Tracer) -> Starter:
    """How to start server spans with ``tracer``: lightly if it is the SDK's, else as it does."""
    if type(tracer) is Tracer and _has_default_limits(tracer):
        return _LightStarter(tracer)
    return _PlainStarter(tracer)


def _has_default_limits(tracer: Tracer) -> bool:
    limits = tracer._span_limits
    return limits.max_span_attribute_length is None and (limits.max_span_attributes or 0) >= _MOST_ATTRIBUTES


class _PlainStarter:
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def __call__(self, name: str, context: Context, attributes: Attributes) -> Span:
        return self._tracer.start_span(
            name,
            context=context,
            kind=SpanKind.SERVER,
            attributes=attributes(),
            record_exception=False,
            set_status_on_exception=False,
        )


class _LightStarter:
    """Does what the SDK's `Tracer.start_span` does: parent, ids, sampler, processors' ``on_start``."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._ids = tracer.id_generator
        self._should_sample = tracer.sampler.should_sample
        self._blind = _looks_at_no_attributes(tracer.sampler)

    def __call__(self, name: str, context: Context, attributes: Attributes) -> Span:
        parent: SpanContext | None = trace.get_current_span(context).get_span_context()
        if parent is None or not parent.is_valid:
            parent = None
            trace_id = self._ids.generate_trace_id()
        else:
            trace_id = parent.trace_id
        facts = None if self._blind else attributes()
        sampled = self._should_sample(context, trace_id, name, SpanKind.SERVER, facts, ())
        flags = _SAMPLED if sampled.decision is Decision.RECORD_AND_SAMPLE else _DROPPED
        ids = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, sampled.trace_state)
        if sampled.decision is Decision.DROP:
            return NonRecordingSpan(ids)
        facts = attributes() if facts is None else dict(sampled.attributes)
        span = ServerSpan(self._tracer, name, ids, parent, facts)
        self._tracer.span_processor.on_start(span, parent_context=context)
        return span


def _looks_at_no_attributes(sampler: Sampler) -> bool:
    """Whether ``sampler`` is one of the SDK's, which decide by trace id and parent alone."""
    if type(sampler) in (StaticSampler, TraceIdRatioBased):
        return True
    return isinstance(sampler, ParentBased) and all(
        _looks_at_no_attributes(part) for part in vars(sampler).values() if isinstance(part, Sampler)
    )


class ServerSpan(SdkSpan):
    """A recording SDK span that is light until it is touched.

    Every change the SDK makes to a span takes the span's lock first.  So the lock is made on
    first use, and the bounded containers with it.
    """

    # What server spans have in common until they are touched.
    _kind = SpanKind.SERVER
    _events: Any = ()
    _links: Any = ()
    _record_exception = False
    _set_status_on_exception = False
    _record_end_metrics = None

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        ids: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, Any],
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._context = ids
        self._parent = parent
        self._attributes: Any = attributes
        self._status = _UNSET
        self._made_lock: threading.Lock | None = None
        self._start_time = time_ns()
        self._end_time: int | None = None

    @property
    def _lock(self) -> Any:  # type: ignore[override]
        lock = self._made_lock
        if lock is None:
            lock = self._made_lock = threading.Lock()
            most = self._limits.max_span_attributes
            self._attributes = BoundedAttributes(most, self._attributes, immutable=False)
            self._events = self._new_events()  # type: ignore[no-untyped-call]
            self._links = self._new_links(())
        return lock

    @property
    def _limits(self) -> Any:
        return self._tracer._span_limits

    @property
    def _resource(self) -> Any:  # type: ignore[override]
        return self._tracer.resource

    @property
    def _span_processor(self) -> Any:  # type: ignore[override]
        return self._tracer.span_processor

    @property
    def _instrumentation_scope(self) -> Any:  # type: ignore[override]
        return self._tracer._instrumentation_scope

    @property
    def _instrumentation_info(self) -> Any:  # type: ignore[override]
        return self._tracer.instrumentation_info

    def finish(self, status: int | None, error_type: str | None, failed: bool) -> None:
        """Set the outcome and end, without becoming a full span for it."""
        if self._end_time is not None:  # the service has ended it
            return
        if self._made_lock is not None:
            set_outcome(self, status, error_type, failed)
            self.end()
            return
        if status is not None:
            self._attributes["http.response.status_code"] = status
        if error_type is not None:
            self._attributes["error.type"] = error_type
        if failed:
            self._status = _ERROR
        self._end_time = time_ns()
        processor = self._tracer.span_processor
        processor._on_ending(self)
        processor.on_end(self)


def fail(span: Span, exc: BaseException) -> None:
    """Mark a span as failed, and record why."""
    name = type(exc).__qualname__
    span.set_attribute("error.type", name)
    span.record_exception(exc)
    span.set_status(Status(StatusCode.ERROR, name))


def finish(span: Span, status: int | None, error_type: str | None, failed: bool) -> None:
    """End a server span with the outcome of its request; ``failed`` if that is the service's error."""
    if type(span) is ServerSpan:
        span.finish(status, error_type, failed)
        return
    if span.is_recording():
        set_outcome(span, status, error_type, failed)
    span.end()


def set_outcome(span: Span, status: int | None, error_type: str | None, failed: bool) -> None:
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if error_type is not None:
        span.set_attribute("error.type", error_type)
    if failed:
        span.set_status(_ERROR)
