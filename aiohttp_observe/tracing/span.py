"""The server span itself: the SDK's, without what a span that nobody touches doesn't need.

An SDK span makes a dozen containers and locks at its start, which cost more than all the
rest of it and wait in the batch queue for the garbage collector to walk.  The facts of most
requests are in the exchange already, so this span only remembers where, makes of them what
is exported when it ends, and becomes a full SDK span the moment somebody sets an attribute
or adds an event or link.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import time_ns
from typing import Any, Protocol

from aiohttp import web
from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, SynchronousMultiSpanProcessor, Tracer
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, StaticSampler, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from ..exchange import RANDOM, Exchange
from ..redaction import exception_event
from .facts import Facts, attributes_of, is_our_error, name_of, outcome_of
from .provider import Batches, Linker

__all__ = ["NOTHING", "Borrowed", "RequestSpan", "Starter", "fail", "starter"]

NOTHING = Context()
"""The context of a request that carries no trace."""

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

    def finish(self, exchange: Exchange) -> None:
        """End it with the outcome of its request."""


Starter = Callable[[Context, Exchange, web.BaseRequest], "RequestSpan | None"]
"""Starts the server span of a request, in a context."""


_UNSET = Status(StatusCode.UNSET)
_ERROR = Status(StatusCode.ERROR)
_MOST_ATTRIBUTES = 32
_MOST_NOTED = 4
_MOST_EVENT_ATTRIBUTES = 8
_TRACE_ID_LIMIT = TraceIdRatioBased.TRACE_ID_LIMIT


def starter(tracer: trace.Tracer, facts: FactsOf) -> Starter:
    """How to start server spans with ``tracer``: lightly if it is the SDK's, else as it does."""
    if type(tracer) is Tracer and _is_plain(tracer):
        return _LightStarter(tracer, facts)
    return _PlainStarter(tracer, facts)


def _is_plain(tracer: Tracer) -> bool:
    """Whether there is nothing to heed that a light span doesn't know of."""
    limits = tracer._span_limits
    return (
        limits.max_span_attribute_length is None
        and (limits.max_span_attributes or 0) >= _MOST_ATTRIBUTES
        and (limits.max_events or 0) >= _MOST_NOTED
        and (limits.max_event_attributes or 0) >= _MOST_EVENT_ATTRIBUTES
        and tracer._is_enabled()
        and not os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED")
    )


class _PlainStarter:
    def __init__(self, tracer: trace.Tracer, facts: FactsOf) -> None:
        self._tracer = tracer
        self._facts = facts

    def __call__(self, context: Context, exchange: Exchange, request: web.BaseRequest) -> RequestSpan | None:
        span = self._tracer.start_span(
            name_of(exchange.method, exchange.route),
            context=context,
            kind=SpanKind.SERVER,
            attributes=attributes_of(self._facts(exchange, request)),
            record_exception=False,
            set_status_on_exception=False,
        )
        return _Owned.of(span)


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

    def finish(self, exchange: Exchange) -> None:
        pass


class _Owned(Borrowed):
    """A span of ours that isn't light."""

    def record_exception(self, exception: Exception) -> None:
        _record(self.borrowed, exception)

    def finish(self, exchange: Exchange) -> None:
        if self.borrowed.is_recording():
            _set_outcome(self.borrowed, exchange)
        self.borrowed.end()


class _LightStarter:
    """Does what the SDK's `Tracer.start_span` does: parent, ids, sampler, processors' ``on_start``."""

    def __init__(self, tracer: Tracer, facts: FactsOf) -> None:
        ids = tracer.id_generator
        random = TraceFlags.RANDOM_TRACE_ID if ids.is_trace_id_random() else TraceFlags.DEFAULT
        self.tracer = tracer
        self.facts = facts
        self.processors = _Processors(tracer)
        self._trace_id_for, self._new_span_id = _id_makers(ids)
        self._bound = _bound_of(tracer.sampler)
        self._blind = _looks_at_no_attributes(tracer.sampler)
        self._sampled = TraceFlags(TraceFlags.SAMPLED | random)
        self._dropped = TraceFlags(random)

    def __call__(self, context: Context, exchange: Exchange, request: web.BaseRequest) -> RequestSpan:
        if context is not NOTHING or self._bound is None:
            return self._ask(context, exchange, request)
        trace_id = self._trace_id_for(exchange)
        if trace_id & _TRACE_ID_LIMIT >= self._bound:
            return _DroppedSpan(trace_id, self._new_span_id(), self._dropped)
        span = ServerSpan.begun(self, trace_id, self._new_span_id(), self._sampled, exchange, request)
        self.processors.start(span, context)
        return span

    def _ask(self, context: Context, exchange: Exchange, request: web.BaseRequest) -> RequestSpan:
        """With a parent, or a sampler that looks at more than the trace id."""
        parent: SpanContext | None = trace.get_current_span(context).get_span_context()
        if parent is not None and parent.is_valid:
            trace_id, random = parent.trace_id, parent.trace_flags & TraceFlags.RANDOM_TRACE_ID
        else:
            parent, random = None, int(self._dropped)
            trace_id = self._trace_id_for(exchange)
        name = name_of(exchange.method, exchange.route)
        attributes = None if self._blind else attributes_of(self.facts(exchange, request))
        answer = self.tracer.sampler.should_sample(context, trace_id, name, SpanKind.SERVER, attributes, ())
        sampled = answer.decision is Decision.RECORD_AND_SAMPLE
        flags = TraceFlags(random | (TraceFlags.SAMPLED if sampled else 0))
        if answer.decision is Decision.DROP:
            return _DroppedSpan(trace_id, self._new_span_id(), flags, answer.trace_state)
        span = ServerSpan.begun(self, trace_id, self._new_span_id(), flags, exchange, request)
        span._parent, span._state = parent, answer.trace_state
        if attributes is not None:
            span._made_attributes = dict(answer.attributes)
        self.processors.start(span, context)
        return span


def _id_makers(ids: IdGenerator) -> tuple[Callable[[Exchange], int], Callable[[], int]]:
    """How to make a request's trace id, and span ids: as ``ids`` does, or without it if it draws them."""
    if type(ids) is not RandomIdGenerator:
        return lambda exchange: ids.generate_trace_id(), ids.generate_span_id
    # Zero, which isn't an id, comes up once in 2**64.
    draw = RANDOM.getrandbits
    return lambda exchange: exchange.drawn or draw(128), partial(draw, 64)


def _is(sampler: Sampler, kind: type[Sampler]) -> bool:
    """Whether it decides as ``kind`` does; the SDK has subclasses that only fill in arguments."""
    return isinstance(sampler, kind) and type(sampler).should_sample is kind.should_sample


def _looks_at_no_attributes(sampler: Sampler) -> bool:
    """Whether ``sampler`` is one of the SDK's, which decide by trace id and parent alone."""
    if _is(sampler, StaticSampler) or _is(sampler, TraceIdRatioBased):
        return True
    return _is(sampler, ParentBased) and all(
        _looks_at_no_attributes(part) for part in vars(sampler).values() if isinstance(part, Sampler)
    )


def _bound_of(sampler: Any) -> int | None:
    """Below which low half of its id a trace without parent is sampled, if ``sampler`` asks no more."""
    if _is(sampler, ParentBased):
        return _bound_of(sampler._root)
    if _is(sampler, TraceIdRatioBased):
        return int(sampler.bound)
    if _is(sampler, StaticSampler) and sampler._decision is not Decision.RECORD_ONLY:
        return 0 if sampler._decision is Decision.DROP else _TRACE_ID_LIMIT + 1
    return None


class _Processors:
    """A provider's span processors; those whose hooks do nothing aren't called."""

    def __init__(self, tracer: Tracer) -> None:
        self._all: Any = tracer.span_processor
        self._known: Any = None
        self._told: tuple[Any, ...] = (self._all,)
        self._take: tuple[Callable[[ServerSpan], None], ...] = (self._all.on_end,)

    def start(self, span: ServerSpan, context: Context) -> None:
        if getattr(self._all, "_span_processors", None) is not self._known:
            self._sort()
        for processor in self._told:
            processor.on_start(span, parent_context=context)

    def end(self, span: ServerSpan) -> None:
        for processor in self._told:
            processor._on_ending(span)
        if span.sampled:
            for take in self._take:
                take(span)
        else:
            self._all.on_end(span)

    def _sort(self) -> None:
        """Processors may be added to a provider at any time, and are never taken away."""
        self._known = self._all._span_processors
        if type(self._all) is SynchronousMultiSpanProcessor:
            hearing = [each for each in self._known if type(each) is not Linker]
            self._told = tuple(each for each in hearing if type(each) not in _HEAR_ONLY_OF_ENDS)
            self._take = tuple(map(_taking, hearing))


_HEAR_ONLY_OF_ENDS = (Batches, BatchSpanProcessor, SimpleSpanProcessor)


def _taking(processor: Any) -> Callable[[ServerSpan], None]:
    """What a processor does with a sampled span that has ended.

    The batch processor would ask it for its context first, which it may never need, to see
    whether it is sampled.
    """
    if type(processor) is Batches:
        return processor.take
    if type(processor) is BatchSpanProcessor and hasattr(processor, "_batch_processor"):
        return processor._batch_processor.emit
    return processor.on_end  # type: ignore[no-any-return]


class _DroppedSpan(NonRecordingSpan):
    """The span of a request that sampling leaves out: two numbers, unless somebody asks for more."""

    sampled = False
    borrowed = None

    def __init__(
        self, trace_id: int, span_id: int, flags: TraceFlags, state: TraceState | None = None
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self._flags = flags
        self._state = state

    @property
    def _context(self) -> SpanContext:  # type: ignore[override]
        return SpanContext(self.trace_id, self.span_id, False, self._flags, self._state)

    def note(self, event: Event) -> None:
        pass

    def finish(self, exchange: Exchange) -> None:
        pass


class ServerSpan(SdkSpan):
    """A recording SDK span that is light until it is touched.

    Every change the SDK makes to a span takes the span's lock first.  So the lock is made on
    first use, and the bounded containers with it.
    """

    trace_id: int
    span_id: int
    sampled: bool
    _home: _LightStarter
    _flags: TraceFlags
    _of: tuple[Exchange, web.BaseRequest] | None
    _facts: Facts
    _start_time: int

    borrowed = None

    # What server spans have in common until they are touched.
    _kind = SpanKind.SERVER
    _status = _UNSET
    _parent: SpanContext | None = None
    _state: TraceState | None = None
    _events: Any = ()
    _links: Any = ()
    _end_time: int | None = None
    _record_exception = False
    _set_status_on_exception = False
    _record_end_metrics = None
    _made_context: SpanContext | None = None
    _made_name: str | None = None
    _made_attributes: Any = None
    _made_lock: threading.Lock | None = None

    @classmethod
    def begun(
        cls,
        home: _LightStarter,
        trace_id: int,
        span_id: int,
        flags: TraceFlags,
        exchange: Exchange,
        request: web.BaseRequest,
    ) -> ServerSpan:
        """One that starts now."""
        span: ServerSpan = object.__new__(cls)  # the SDK's own only sees to it that spans aren't made by hand
        span._home = home
        span.trace_id = trace_id
        span.span_id = span_id
        span._flags = flags
        span.sampled = bool(flags & TraceFlags.SAMPLED)
        span._of = exchange, request
        span._start_time = time_ns()
        return span

    @property
    def _context(self) -> SpanContext:  # type: ignore[override]
        made = self._made_context
        if made is None:
            made = self._made_context = SpanContext(
                self.trace_id, self.span_id, False, self._flags, self._state
            )
        return made

    @property
    def _name(self) -> str:
        made = self._made_name
        if made is None:
            facts = self._known_facts()
            made = self._made_name = name_of(facts[0], facts[6])
        return made

    @_name.setter
    def _name(self, name: str) -> None:
        self._made_name = name

    @property
    def _attributes(self) -> Any:  # type: ignore[override]
        made = self._made_attributes
        if made is None:
            made = self._made_attributes = attributes_of(self._known_facts())
        return made

    def _known_facts(self) -> Facts:
        return self._facts if self._of is None else self._home.facts(*self._of)

    @property
    def _lock(self) -> Any:  # type: ignore[override]
        lock = self._made_lock
        if lock is None:
            lock = self._made_lock = threading.Lock()
            most = self._limits.max_span_attributes
            self._made_attributes = BoundedAttributes(most, self._attributes, immutable=False)
            noted, self._events = self._events, self._new_events()  # type: ignore[no-untyped-call]
            self._events.extend(noted)
            self._links = self._new_links(())
        return lock

    @property
    def _limits(self) -> Any:
        return self._home.tracer._span_limits

    @property
    def _resource(self) -> Any:  # type: ignore[override]
        return self._home.tracer.resource

    @property
    def _span_processor(self) -> Any:  # type: ignore[override]
        return self._home.tracer.span_processor

    @property
    def _instrumentation_scope(self) -> Any:  # type: ignore[override]
        return self._home.tracer._instrumentation_scope

    @property
    def _instrumentation_info(self) -> Any:  # type: ignore[override]
        return self._home.tracer.instrumentation_info

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """As the SDK does it, without what is secret in URLs."""
        event = {**exception_event(exception), "exception.escaped": str(escaped), **(attributes or {})}
        self.add_event("exception", event, timestamp)

    def note(self, event: Event) -> None:
        """Add an event, without becoming a full span for the first few."""
        if self._end_time is not None:
            pass
        elif self._made_lock is None and len(self._events) < _MOST_NOTED:
            self._events = (*self._events, event)
        else:
            self.add_event(event.name, event.attributes, event.timestamp)

    def finish(self, exchange: Exchange) -> None:
        """Set the outcome and end, without becoming a full span for it."""
        end_time = self._start_time + int((exchange.duration or 0.0) * 1e9)
        if self._of is not None:
            of, self._of = self._of, None  # lets go of the request, and breaks the cycle with the exchange
            self._facts = self._home.facts(*of)
        if self._end_time is not None:  # the service has ended it
            pass
        elif self._made_lock is not None:
            _set_outcome(self, exchange)
            self.end(end_time)
        else:
            if self._made_attributes is not None:
                self._made_attributes.update(outcome_of(exchange))
            if is_our_error(exchange):
                self._status = _ERROR
            self._end_time = end_time
            self._home.processors.end(self)


def fail(span: Span, exc: BaseException) -> None:
    """Mark a span as failed, and record why."""
    name = type(exc).__qualname__
    span.set_attribute("error.type", name)
    _record(span, exc)
    span.set_status(Status(StatusCode.ERROR, name))


def _record(span: Span, exc: BaseException) -> None:
    """The event of the SDK's ``record_exception``, without what is secret in URLs."""
    if span.is_recording():
        span.add_event("exception", exception_event(exc))


def _set_outcome(span: Span, exchange: Exchange) -> None:
    span.set_attributes(outcome_of(exchange))
    if is_our_error(exchange):
        span.set_status(_ERROR)
