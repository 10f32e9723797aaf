"""Spans that are light until they are touched.

An SDK span makes a dozen containers and locks at its start, which cost more than all the
rest of it and wait in the batch queue for the garbage collector to walk.  What most spans
tell is at hand as a few texts and numbers.  So these keep no more than that, spell it out
when somebody reads it, and become full SDK spans the moment somebody sets an attribute or
adds an event or link.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import time_ns
from typing import Any, TypeGuard, TypeVar

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, SynchronousMultiSpanProcessor, Tracer
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

from ..exceptiontext import text_of
from ..exchange import RANDOM
from ..forks import reset_after_fork
from .provider import Batches, Linker

__all__ = [
    "NOTHING",
    "TRACE_ID_LIMIT",
    "DroppedSpan",
    "LightSpan",
    "LightTracer",
    "conclude",
    "fail",
    "is_plain",
    "record",
    "started",
]

S = TypeVar("S", bound="LightSpan")

NOTHING = Context()
"""The context of a request that carries no trace."""
TRACE_ID_LIMIT = TraceIdRatioBased.TRACE_ID_LIMIT

_becoming_full = threading.RLock()  # a finalizer may touch a span in the midst of it
_UNSET = Status(StatusCode.UNSET)
_ERROR = Status(StatusCode.ERROR)
_MOST_ATTRIBUTES = 32
_MOST_NOTED = 4
_MOST_EVENT_ATTRIBUTES = 8


def is_plain(tracer: trace.Tracer) -> TypeGuard[Tracer]:
    """Whether ``tracer`` is the SDK's, set up with nothing that a light span doesn't know of."""
    if type(tracer) is not Tracer:
        return False
    limits = tracer._span_limits
    return (
        limits.max_span_attribute_length is None
        and (limits.max_span_attributes or 0) >= _MOST_ATTRIBUTES
        and (limits.max_events or 0) >= _MOST_NOTED
        and (limits.max_event_attributes or 0) >= _MOST_EVENT_ATTRIBUTES
        and tracer._is_enabled()
        and not os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED")
    )


class LightTracer:
    """Does what the SDK's `Tracer.start_span` does: parent, ids, sampler, processors' ``on_start``.

    ``linked`` spans are those that the linker sees to.
    """

    def __init__(self, tracer: Tracer, *, linked: bool) -> None:
        ids = tracer.id_generator
        random = TraceFlags.RANDOM_TRACE_ID if ids.is_trace_id_random() else TraceFlags.DEFAULT
        self.tracer = tracer
        self.processors = _Processors(tracer, _DEAF if linked else (*_DEAF, Linker))
        self.trace_id_of, self.new_span_id = _id_makers(ids)
        self.bound = _bound_of(tracer.sampler)
        self.sampled = TraceFlags(TraceFlags.SAMPLED | random)
        self.dropped = TraceFlags(random)
        self._blind = _looks_at_no_attributes(tracer.sampler)
        RANDOM.seed()  # this process may have been forked since it was imported
        reset_after_fork(self)

    def reset_in_child(self) -> None:
        """In a forked child: the ids to come, and whoever held the lock, are the parent's."""
        RANDOM.seed()
        _becoming_full._at_fork_reinit()  # type: ignore[attr-defined]

    def begin(self, span: S, context: Context, drawn: int | None = None) -> S | DroppedSpan:
        """Begin a span in ``context``; a trace that begins with it has the id ``drawn``, if there is one."""
        parent: SpanContext | None = trace.get_current_span(context).get_span_context()
        if parent is not None and parent.is_valid:
            trace_id, random = parent.trace_id, parent.trace_flags & TraceFlags.RANDOM_TRACE_ID
        else:
            parent, random = None, int(self.dropped)
            trace_id = self.trace_id_of(drawn)
        attributes = None if self._blind else span._attributes
        answer = self.tracer.sampler.should_sample(context, trace_id, span._name, span._kind, attributes, ())
        sampled = answer.decision is Decision.RECORD_AND_SAMPLE
        flags = TraceFlags(random | (TraceFlags.SAMPLED if sampled else 0))
        if answer.decision is Decision.DROP:
            return DroppedSpan(trace_id, self.new_span_id(), flags, answer.trace_state)
        span.trace_id, span.span_id, span._flags, span.sampled = trace_id, self.new_span_id(), flags, sampled
        span._parent, span._state = parent, answer.trace_state
        if attributes is not None:
            most = self.tracer._span_limits.max_span_attributes
            span._made_attributes = BoundedAttributes(most, answer.attributes, immutable=False)
        self.processors.start(span, context)
        return span


def _id_makers(ids: IdGenerator) -> tuple[Callable[[int | None], int], Callable[[], int]]:
    """How to make trace ids, of what was drawn already, and span ids: as ``ids`` does."""
    if type(ids) is not RandomIdGenerator:
        return lambda drawn: ids.generate_trace_id(), ids.generate_span_id
    # Zero, which isn't an id, comes up once in 2**64.
    draw = RANDOM.getrandbits
    return lambda drawn: drawn or draw(128), partial(draw, 64)


def _is(sampler: Sampler, kind: type[Sampler]) -> bool:
    """Whether a sampler decides as ``kind`` does; the SDK has subclasses that only fill in arguments."""
    return isinstance(sampler, kind) and type(sampler).should_sample is kind.should_sample


def _looks_at_no_attributes(sampler: Sampler) -> bool:
    """Whether ``sampler`` is one of the SDK's, which decide by trace id and parent alone."""
    if _is(sampler, StaticSampler) or _is(sampler, TraceIdRatioBased):
        return True
    return _is(sampler, ParentBased) and all(
        _looks_at_no_attributes(part) for part in vars(sampler).values() if isinstance(part, Sampler)
    )


def _bound_of(sampler: Any) -> int | None:
    """Below which number the low half of a root's trace id has to be for it to be sampled.

    ``None`` if ``sampler`` asks for more.
    """
    if _is(sampler, ParentBased):
        return _bound_of(sampler._root)
    if _is(sampler, TraceIdRatioBased):
        return int(sampler.bound)
    if _is(sampler, StaticSampler) and sampler._decision is not Decision.RECORD_ONLY:
        return 0 if sampler._decision is Decision.DROP else TRACE_ID_LIMIT + 1
    return None


class _Processors:
    """A provider's span processors; those whose hooks do nothing aren't called."""

    def __init__(self, tracer: Tracer, deaf: tuple[type, ...]) -> None:
        self._all: Any = tracer.span_processor
        self._deaf = deaf
        self._known: Any = None
        self._told: tuple[Any, ...] = (self._all,)
        self._take: tuple[Callable[[LightSpan], None], ...] = (self._all.on_end,)

    def start(self, span: LightSpan, context: Context) -> None:
        if getattr(self._all, "_span_processors", None) is not self._known:
            self._sort()
        for processor in self._told:
            processor.on_start(span, parent_context=context)

    def end(self, span: LightSpan) -> None:
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
            self._told = tuple(each for each in self._known if type(each) not in self._deaf)
            self._take = tuple(_taking(each) for each in self._known if type(each) is not Linker)


_DEAF = (Batches, BatchSpanProcessor, SimpleSpanProcessor)
"""Processors that do nothing when a span starts."""


def _taking(processor: Any) -> Callable[[LightSpan], None]:
    """What a processor does with a sampled span that has ended.

    The batch processor would ask it for its context first, which it may never need, to see
    whether it is sampled.
    """
    if type(processor) is Batches:
        return processor.take
    if type(processor) is BatchSpanProcessor and hasattr(processor, "_batch_processor"):
        return processor._batch_processor.emit
    return processor.on_end  # type: ignore[no-any-return]


class DroppedSpan(NonRecordingSpan):
    """A span that sampling leaves out: two numbers, unless somebody asks for more."""

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

    def finish(self, of: object) -> DroppedSpan:
        return self


class LightSpan(SdkSpan):
    """A recording SDK span that is light until it is touched.

    Every change the SDK makes to a span takes the span's lock first.  So the lock is made on
    first use, and the bounded containers with it.
    """

    trace_id: int
    span_id: int
    sampled: bool
    _home: LightTracer
    _of: Any
    _flags: TraceFlags
    _start_time: int

    # What spans have in common until they are touched.
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
    _outcome_is_due = False
    _made_resource: Any = None
    _made_lock: threading.Lock | None = None

    @classmethod
    def made(cls: type[S], home: LightTracer, of: object) -> S:
        """One that starts now, and tells of ``of``; its ids are for who calls this."""
        span: S = object.__new__(cls)  # the SDK's own only sees to it that spans aren't made by hand
        span._home = home
        span._of = of
        span._start_time = time_ns()
        return span

    def _tell_name(self) -> str:
        raise NotImplementedError

    def _tell_attributes(self) -> dict[str, Any]:
        """The attributes that are known by now."""
        raise NotImplementedError

    def _tell_outcome(self) -> dict[str, Any]:
        """The attributes that are known only at the end."""
        raise NotImplementedError

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
            made = self._made_name = self._tell_name()
        return made

    @_name.setter
    def _name(self, name: str) -> None:
        self._made_name = name

    @property
    def _attributes(self) -> Any:
        is_due = self._outcome_is_due  # first: once it is cleared, what is stored has the outcome
        made = self._made_attributes
        if made is None or is_due:
            with _becoming_full:
                made = self._told_attributes()
        return made

    @_attributes.setter
    def _attributes(self, attributes: Any) -> None:  # as processors do that redact
        self._made_attributes = attributes

    def _told_attributes(self) -> Any:
        """What ends a span doesn't wait for threads that touch it: whoever reads next adds the outcome."""
        is_due = self._outcome_is_due
        made = self._tell_attributes() if self._made_attributes is None else self._made_attributes
        if is_due:
            outcome = self._tell_outcome()
            if isinstance(made, BoundedAttributes):
                made.update(outcome)
            else:
                made = {**made, **outcome}  # somebody may be reading it
        self._made_attributes = made
        if is_due:
            self._outcome_is_due = False
        return made

    @property
    def _lock(self) -> Any:  # type: ignore[override]
        if self._made_lock is None:
            with _becoming_full:
                if self._made_lock is None:
                    self._become_full()
        return self._made_lock

    def _become_full(self) -> None:
        most = self._limits.max_span_attributes
        self._made_attributes = BoundedAttributes(most, self._attributes, immutable=False)
        events = self._new_events()  # type: ignore[no-untyped-call]
        events.extend(self._events)
        self._events = events
        self._links = self._new_links(())
        self._made_lock = threading.Lock()  # last: who finds it finds the others

    @property
    def _limits(self) -> Any:
        return self._home.tracer._span_limits

    @property
    def _resource(self) -> Any:
        return self._home.tracer.resource if self._made_resource is None else self._made_resource

    @_resource.setter
    def _resource(self, resource: Any) -> None:  # as processors do that enrich
        self._made_resource = resource

    @property
    def _span_processor(self) -> Any:  # type: ignore[override]
        return self._home.tracer.span_processor

    @property
    def _instrumentation_scope(self) -> Any:  # type: ignore[override]
        return self._home.tracer._instrumentation_scope

    @property
    def _instrumentation_info(self) -> Any:  # type: ignore[override]
        return self._home.tracer.instrumentation_info

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadableSpan:
        """What an exporter reads of it: its home is the live tracer."""
        return copy.deepcopy(self._readable_span(), memo)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Record as the SDK does, without what is secret in URLs."""
        event = {**_exception_event(exception), "exception.escaped": str(escaped), **(attributes or {})}
        self.add_event("exception", event, timestamp)

    def note(self, event: Event) -> None:
        """Add an event, without becoming a full span for the first few."""
        with _becoming_full:
            if self._end_time is not None:
                return
            if self._made_lock is None and len(self._events) < _MOST_NOTED:
                self._events = (*self._events, event)
                return
        self.add_event(event.name, event.attributes, event.timestamp)

    def _conclude(self, seconds: float, failed: bool) -> None:
        """End with the outcome, which is known by now, without becoming a full span for it."""
        end_time = self._start_time + int(seconds * 1e9)
        if self._end_time is not None:  # the service has ended it
            pass
        elif self._made_lock is not None:
            conclude(self, self._tell_outcome(), failed, end_time)
        else:
            if failed:
                self._status = _ERROR
            self._outcome_is_due = True
            self._end_time = end_time
            self._home.processors.end(self)


def started(
    tracer: trace.Tracer, name: str, context: Context, kind: SpanKind, attributes: Mapping[str, Any]
) -> Span:
    """A span that isn't light, as ``tracer`` makes them."""
    return tracer.start_span(
        name,
        context=context,
        kind=kind,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    )


def fail(span: Span, exc: BaseException) -> None:
    """Mark a span as failed, and record why."""
    name = type(exc).__qualname__
    span.set_attribute("error.type", name)
    record(span, exc)
    span.set_status(Status(StatusCode.ERROR, name))


def record(span: Span, exc: BaseException) -> None:
    """The event of the SDK's ``record_exception``, without what is secret in URLs."""
    if span.is_recording():
        span.add_event("exception", _exception_event(exc))


def _exception_event(exc: BaseException) -> dict[str, str]:
    """The attributes of an ``exception`` event; valid Unicode, or the exporter would leave them out."""
    text = text_of(exc, exc.__traceback__)
    return {
        "exception.type": text.type,
        "exception.message": _sendable(text.message),
        "exception.stacktrace": _sendable(text.stack),
        "exception.escaped": "False",
    }


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def conclude(span: Span, outcome: Mapping[str, Any], failed: bool, end_time: int | None = None) -> None:
    """End a span that isn't light with its outcome."""
    if span.is_recording():
        span.set_attributes(outcome)
        if failed:
            span.set_status(_ERROR)
    span.end(end_time)
