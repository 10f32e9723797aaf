"""Client spans: one an outbound call, following the stable HTTP semantic conventions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.propagate import inject
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.http import (
    OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST,
    OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_RESPONSE,
    normalise_request_header_name,
    normalise_response_header_name,
)
from yarl import URL

from ..exchange import OTHER_METHOD, SpanIds
from ..redaction import in_url
from ..texts import valid
from .facts import name_of
from .provider import get_tracer
from .span import DroppedSpan, LightSpan, LightTracer, conclude, fail, is_plain, started
from .variables import HeaderCapture, excluded_urls

__all__ = ["ClientTracer", "OutboundSpan", "global_client_tracer"]

CallFacts = tuple[
    str,  # method
    str,  # method as sent
    str,  # URL
    str,  # host
    "int | None",  # port
    "dict[str, list[str]] | None",  # captured headers
]
"""What is known of a call when it begins."""

Outcome = tuple[
    "int | None",  # status
    "str | None",  # error
    int,  # how often it was sent again
]
"""What came of it."""


class ClientTracer:
    """Makes the client spans of one tracer."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._light = LightTracer(tracer, linked=True) if is_plain(tracer) else None
        self._excluded = excluded_urls("AIOHTTP_CLIENT")
        self._request_headers = HeaderCapture(
            OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST, normalise_request_header_name
        )
        self._response_headers = HeaderCapture(
            OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_RESPONSE, normalise_response_header_name
        )

    def begin(
        self, method: str, sent: str, url: URL, host: str, port: int | None, headers: CIMultiDict[str]
    ) -> OutboundSpan | None:
        """Begin the span of a call, and make it current.

        ``None`` where OpenTelemetry is told to be silent, as in an exporter, and for URLs
        that a standard variable excludes.
        """
        if not is_http_instrumentation_enabled():
            return None
        shown = str(url)
        if self._excluded is not None and self._excluded.url_disabled(shown):
            return None
        captured = self._request_headers.of(headers) if self._request_headers.wanted else None
        around = context_api.get_current()
        span = self._start((method, sent, shown, host, port, captured), around)
        context_api.attach(trace.set_span_in_context(span, around))
        return OutboundSpan(span, around, self._response_headers)

    def _start(self, facts: CallFacts, context: Context) -> Span:
        if self._light is None:
            return started(self._tracer, name_of(facts[0]), context, SpanKind.CLIENT, _attributes_of(facts))
        return self._light.begin(_ClientSpan.made(self._light, facts), context)


@lru_cache(maxsize=1)
def _client_tracer_of(provider: trace.TracerProvider) -> ClientTracer:
    return ClientTracer(get_tracer(provider))


def global_client_tracer() -> ClientTracer:
    """The client tracer of the global provider, for calls outside of any application."""
    return _client_tracer_of(trace.get_tracer_provider())


class OutboundSpan:
    """The span of one call, which is current in the context of its caller until it is left."""

    __slots__ = ("_around", "_headers", "_is_failed", "_span")

    def __init__(self, span: Span, around: Context, headers: HeaderCapture) -> None:
        self._span = span
        self._around = around
        self._headers = headers
        self._is_failed = False

    @property
    def sampled_ids(self) -> SpanIds | None:
        """Where the call stands in its trace, if it is exported."""
        span = self._span
        if isinstance(span, (LightSpan, DroppedSpan)):
            return span if span.sampled else None
        ids: Any = span.get_span_context()
        return ids if ids.trace_flags.sampled else None

    def send_along(self, headers: CIMultiDict[str]) -> None:
        """Add the ids, as the propagators in use write them; raises what those raise."""
        inject(headers)

    def leave(self) -> None:
        """Make the span before current again: what follows isn't within this one.

        Not a token's detach: a task that waits for the response may be dropped in another context.
        """
        if trace.get_current_span() is self._span:
            context_api.attach(self._around)

    def answered(self, headers: CIMultiDictProxy[str]) -> None:
        """Show the response's headers that are asked for."""
        if self._headers.wanted and self._span.is_recording():
            self._span.set_attributes(self._headers.of(headers))

    def fail(self, exc: BaseException) -> None:
        """Mark it as failed, and record why."""
        self._is_failed = True
        fail(self._span, exc)

    def finish(self, seconds: float, status: int | None, error_type: str | None, resends: int) -> None:
        """End it with the outcome of its call."""
        outcome = status, error_type, resends
        failed = error_type is not None and not self._is_failed
        if isinstance(self._span, _ClientSpan):
            self._span.finish(outcome, seconds, failed)
        else:
            conclude(self._span, _attributes_of_outcome(outcome), failed)


class _ClientSpan(LightSpan):
    _kind = SpanKind.CLIENT
    _of: CallFacts
    _outcome: Outcome | None = None

    def _tell_name(self) -> str:
        return name_of(self._of[0])

    def _tell_attributes(self) -> dict[str, Any]:
        return _attributes_of(self._of)

    def _tell_outcome(self) -> dict[str, Any]:
        return {} if self._outcome is None else _attributes_of_outcome(self._outcome)

    def finish(self, outcome: Outcome, seconds: float, failed: bool) -> None:
        self._outcome = outcome
        self._conclude(seconds, failed)


def _attributes_of(facts: CallFacts) -> dict[str, Any]:
    method, sent, url, host, port, headers = facts
    attributes: dict[str, Any] = {
        "http.request.method": method,
        "url.full": in_url(valid(url)),
    }
    if host:
        attributes["server.address"] = valid(host)
    if method == OTHER_METHOD:
        attributes["http.request.method_original"] = valid(sent)
    if port is not None:
        attributes["server.port"] = port
    if headers is not None:
        attributes.update(headers)
    return attributes


def _attributes_of_outcome(outcome: Outcome) -> dict[str, Any]:
    status, error_type, resends = outcome
    attributes: dict[str, Any] = {}
    if status is not None:
        attributes["http.response.status_code"] = status
    if error_type is not None:
        attributes["error.type"] = error_type
    if resends:
        attributes["http.request.resend_count"] = resends
    return attributes
