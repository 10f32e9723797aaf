"""Blocks of the event loop in the traces: of the request that caused one, and of those that waited."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter, time_ns
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from ..exchange import Exchange
from ..incidents import Block, SpanPlace
from .serverspan import RequestSpan
from .span import NOTHING

__all__ = ["mark_victims", "trace_block"]

_NAME = "event_loop_blocked"


def mark_victims(victims: Iterable[Exchange], seconds: float, culprit: str | None) -> None:
    """Add an event to the server span of each; call it on the loop, where those spans live."""
    attributes: dict[str, Any] = {"duration_ms": round(seconds * 1000, 1)}
    if culprit is not None:
        attributes["culprit.request_id"] = culprit
    event = Event(_NAME, attributes, time_ns())  # one for all: there may be a thousand
    for exchange in victims:
        span: RequestSpan | None = exchange.span  # type: ignore[assignment]
        if span is not None and exchange.duration is None:
            span.note(event)


def trace_block(tracer: trace.Tracer, block: Block) -> None:
    """Make a span of the block, within that of the request it worked for; from any thread."""
    if block.span is None or not block.span.sampled:
        return
    # It began somewhere in the beat before: not before the request did.
    ended = block.started + block.seconds
    begun = min(max(block.started, block.span.started), ended)
    start_time = time_ns() - int((perf_counter() - begun) * 1e9)
    span = tracer.start_span(
        _NAME, context=_within(block.span), start_time=start_time, attributes=_attributes(block)
    )
    span.end(start_time + int((ended - begun) * 1e9))


def _within(place: SpanPlace) -> Context:
    ids = SpanContext(place.trace_id, place.span_id, False, TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(ids), NOTHING)


def _attributes(block: Block) -> dict[str, Any]:
    cause = block.cause
    return {
        **block.place,
        "cause": cause.kind,
        "cause.confidence": cause.confidence,
        "cause.evidence": cause.evidence,
    }
