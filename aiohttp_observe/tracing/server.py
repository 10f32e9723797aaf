"""The server span: one a request, following the stable HTTP semantic conventions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any

from aiohttp import hdrs, web
from multidict import istr
from opentelemetry import baggage, trace
from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.instrumentation.aiohttp_server import getter
from opentelemetry.propagate import extract, get_global_textmap
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanContext
from opentelemetry.trace.propagation import _SPAN_KEY
from opentelemetry.util.http import (
    OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST,
    OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE,
    normalise_request_header_name,
    normalise_response_header_name,
)

from ..daemonthread import in_daemon_thread
from ..exchange import FIELDS, Exchange, Meter, SpanIds, current_exchange
from ..incidents import Block
from .blocks import mark_victims, trace_block
from .facts import Facts, beyond_status
from .instrumentor import is_within_instrumentor
from .outbound import ClientTracer
from .provider import CARRIED, LINK, OwnProvider, get_tracer, global_provider
from .serverspan import Borrowed, RequestSpan, starter
from .span import NOTHING
from .variables import HeaderCapture, excluded_urls

__all__ = ["ServerTracer"]

_FLUSH_SECONDS = 5.0


class ServerTracer:
    """The tracing of one application: its server spans, and the spans started within them."""

    def __init__(
        self,
        provider: trace.TracerProvider | None,
        meter: Meter,
        service_name: str | None,
        *,
        set_global: bool,
        carries: tuple[str, ...],
    ) -> None:
        self._carries = carries
        self._given = provider
        self._service_name = service_name
        self._set_global = set_global
        self._meter = meter
        self._own: OwnProvider | None = None
        self._yields_to_instrumentor = False
        self._excluded = excluded_urls("AIOHTTP_SERVER")
        self._propagated: list[istr] | None = None
        self._request_headers = HeaderCapture(
            OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST, normalise_request_header_name
        )
        self._response_headers = HeaderCapture(
            OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE, normalise_response_header_name
        )
        if self._response_headers.wanted:
            self.prepared = self._capture_response_headers
        self._use(trace.NoOpTracerProvider())

    def open(self, app: web.Application) -> None:
        """Choose the provider; see whether the official instrumentor traces ``app`` already."""
        self._yields_to_instrumentor = is_within_instrumentor(app)
        provider = self._given or global_provider()
        if provider is None:
            provider = self._own = OwnProvider(self._meter, self._service_name)
            if self._set_global:
                trace.set_tracer_provider(provider)
        self._use(provider)

    def _use(self, provider: trace.TracerProvider) -> None:
        fields = set(get_global_textmap().fields)
        # Others read headers too that they don't write: of B3's two forms each reads both.
        self._propagated = [istr(field) for field in sorted(fields)] if fields and fields <= _W3C else None
        self.provider = provider
        self._tracer = get_tracer(provider)
        self._attach = _attacher()
        self._start_server_span = starter(self._tracer, self._facts)
        self.outbound = ClientTracer(self._tracer)

    async def close(self) -> None:
        """Export what is left, within a time limit; a provider that isn't ours is only flushed."""
        provider = self.provider
        if self._own is not None and not self._set_global:
            await asyncio.wait([in_daemon_thread(self._own.shutdown)])
        elif isinstance(provider, TracerProvider):
            flush = partial(provider.force_flush, int(_FLUSH_SECONDS * 1000))
            done, _ = await asyncio.wait([in_daemon_thread(flush)], timeout=_FLUSH_SECONDS)
            if any(each.exception() for each in done):  # of an exporter or processor of the service's
                self._meter.internal_error("tracing")

    # Hooks of a request

    def started(self, exchange: Exchange, request: web.BaseRequest) -> None:
        span: RequestSpan | None = self._instrumentors(request) if self._yields_to_instrumentor else None
        if span is None:
            if self._excluded is not None and self._excluded.url_disabled(request.path):
                return
            context = self._incoming(request)
            span = self._start_server_span(context, exchange, request)
            if span is not None:
                # Never detached: see the middleware's context variables.
                current = {_SPAN_KEY: span if span.borrowed is None else span.borrowed}
                self._attach(Context(current if context is NOTHING else {**context, **current}))
        if span is not None:
            exchange.span = span
            exchange.sampled = span.sampled
        if self._carries:
            self._carry(span)

    def raised(self, exchange: Exchange, exc: Exception) -> None:
        span: RequestSpan | None = exchange.span  # type: ignore[assignment]
        if span is not None:
            span.record_exception(exc)

    def finished(self, exchange: Exchange) -> None:
        span: RequestSpan | None = exchange.span  # type: ignore[assignment]
        if span is not None:
            exchange.span = span.finish(exchange)

    def _instrumentors(self, request: web.BaseRequest) -> Borrowed | None:
        """The span that the official instrumentor has made; ``None`` if it traces nothing.

        Without a provider to make spans, what is current is the client's, or none.
        """
        current = trace.get_current_span()
        span = Borrowed.of(current)
        if span is None or current.is_recording():
            return span
        client = trace.get_current_span(self._incoming(request)).get_span_context()
        return None if client.span_id == span.span_id else span

    def _carry(self, span: RequestSpan | None) -> None:
        """Show the chosen baggage on the log lines and spans of this request."""
        found = {key: baggage.get_baggage(key) for key in self._carries}
        carried = {key: str(value) for key, value in found.items() if value is not None}
        if carried:
            CARRIED.set(carried)
            FIELDS.set({**(FIELDS.get() or {}), **carried})
            if span is not None:
                span.set_attributes(carried)

    def _capture_response_headers(self, exchange: Exchange, response: web.StreamResponse) -> None:
        span: RequestSpan | None = exchange.span  # type: ignore[assignment]
        if span is not None and exchange.sampled:
            span.set_attributes(self._response_headers.of(response.headers))

    # What code within a request asks for

    def current(self) -> SpanIds | None:
        """The ids of the span that is current in the calling context.

        The instrumentor's isn't any more when aiohttp logs the failure of its request.
        """
        ids = _current_context()
        if ids is None and self._yields_to_instrumentor and context_api.get_value(_SPAN_KEY) is None:
            exchange = current_exchange()
            return None if exchange is None else exchange.span
        return ids

    def start(self, name: str, attributes: Mapping[str, Any]) -> Span:
        return self._tracer.start_span(name, attributes=attributes)

    def detach(self, how: str) -> None:
        """In a new task's context: ``link`` or ``none`` its traces to where it came from; ``child`` stays."""
        # Set even if it is to the same: who runs it later does so in a context that has others.
        CARRIED.set(CARRIED.get())
        LINK.set(LINK.get())
        if how == "child":
            return
        LINK.set(_current_context() or LINK.get() if how == "link" else None)
        context_api.attach(trace.set_span_in_context(trace.INVALID_SPAN))

    # What the loop watch tells

    def stalled(self, seconds: float, culprit: str | None, victims: Iterable[Exchange]) -> None:
        """Mark the spans of requests that were kept waiting, by the request ``culprit``; on the loop."""
        mark_victims(victims, seconds, culprit)

    def blocked(self, block: Block) -> None:
        """Make a span of a block, within that of its culprit; in any thread."""
        trace_block(self._tracer, block)

    def _incoming(self, request: web.BaseRequest) -> Context:
        """The context a client sent, on nothing: not on whatever the server was started in."""
        headers, propagated = request.headers, self._propagated
        if propagated is None:
            return _extract(request)
        for field in propagated:
            if field in headers:
                return _extract(request)
        return NOTHING

    def _facts(self, exchange: Exchange, request: web.BaseRequest) -> Facts:
        headers, captures = request.headers, self._request_headers
        return (
            exchange.method,
            request.method,
            request.scheme,
            exchange.path,
            request.rel_url.raw_query_string,
            request.version,
            exchange.route,
            headers.get(hdrs.HOST, ""),
            exchange.client_address,
            exchange.user_agent,
            captures.of(headers) if captures.wanted else None,
            exchange.status,
            beyond_status(exchange),
        )


_BAGGAGE = "baggage"
_W3C = {"traceparent", "tracestate", _BAGGAGE}
_LONGEST_BAGGAGE = 8192
_LONGEST_MEMBER = 4096
_MOST_MEMBERS = 180
"""The limits of OpenTelemetry's own propagator."""
_is_token = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII).fullmatch
_is_value = re.compile(r"[!#-+\--:<-\[\]-~]*").fullmatch
_BLANK = " \t"


class _AsciiGetter(Getter[Any]):
    """Reads headers, but for values that no propagator sends: one would cost us the others' too."""

    def get(self, carrier: Any, key: str) -> list[str] | None:
        values = [value for value in getter.get(carrier, key) or () if value.isascii()]
        if key == _BAGGAGE:
            values = list(filter(None, map(_well_formed, values)))
        return values or None

    def keys(self, carrier: Any) -> list[str]:
        return getter.keys(carrier)


_getter = _AsciiGetter()


def _well_formed(header: str) -> str:
    """What a propagator reads of ``header``; of the rest it would log a line each, which anybody may send."""
    if len(header) > _LONGEST_BAGGAGE:
        return ""
    members = (_member(each) for each in header.split(",") if len(each) <= _LONGEST_MEMBER)
    return ",".join(islice(filter(None, members), _MOST_MEMBERS))


def _member(text: str) -> str:
    """One by the grammar of https://www.w3.org/TR/baggage/, without its blanks; else nothing."""
    parts = [[each.strip(_BLANK) for each in part.partition("=")] for part in text.split(";")]
    is_some = "=" in parts[0] and all(_is_token(key) and _is_value(value) for key, _, value in parts)
    return ";".join(map("".join, parts)) if is_some else ""


def _extract(request: web.BaseRequest) -> Context:
    try:
        return extract(request, context=NOTHING, getter=_getter)
    except Exception:  # a propagator that trips over a hostile header must not cost us the span
        return NOTHING


def _attacher() -> Callable[[Context], object]:
    """How to make a context current: the usual way, without the two functions around it if they are known."""
    runtime = context_api._RUNTIME_CONTEXT
    return runtime._current_context.set if type(runtime) is ContextVarsRuntimeContext else context_api.attach


def _current_context() -> SpanContext | None:
    span: Span | None = context_api.get_current().get(_SPAN_KEY)  # type: ignore[assignment]
    if span is None:
        return None
    ids = span.get_span_context()
    return ids if ids.is_valid else None
