"""Outbound calls: a client span, the ids sent along, duration to the last byte, and its phases.

A call ends when its connection has been given back, which is when the last byte was read or
the response was closed.  aiohttp tells only of the headers.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from traceback import walk_tb
from types import FrameType
from typing import Any
from weakref import ref

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_app import (
    Application,  # web.Application is what an active OpenTelemetry instrumentor replaces
)

from .exchange import METHODS, OTHER_METHOD, Meter, Scope, Step, current_exchange, current_scope
from .options import check_flag, check_instance
from .tracing import ClientTracer, OutboundSpan, global_client_tracer

__all__ = ["CLIENT_SESSION", "Client", "client_session", "client_trace_config"]

CLIENT_SESSION: web.AppKey[aiohttp.ClientSession] = web.AppKey("CLIENT_SESSION", aiohttp.ClientSession)
"""The application's shared instrumented session, open from start-up to clean-up."""

_REQUEST_ID_HEADER = "X-Request-ID"
_MOST_CAUSES = 5


@dataclass(frozen=True, kw_only=True)
class Client:
    """How outbound calls are observed.

    ``session``          whether ``app[CLIENT_SESSION]`` is opened at start-up, default ``True``
    ``send_request_id``  whether ``X-Request-ID`` is sent, default ``True``
    """

    session: bool = True
    send_request_id: bool = True

    def __post_init__(self) -> None:
        check_flag("Client(session=...)", self.session)
        check_flag("Client(send_request_id=...)", self.send_request_id)

    def install(self, app: web.Application, scope: Scope) -> None:
        """Make ``client_session(app)`` observe as described, for the application of ``scope``."""
        app[_SETTINGS] = _Settings(self, scope)


@dataclass(frozen=True)
class _Settings:
    options: Client
    scope: Scope | None


_SETTINGS = web.AppKey("aiohttp_observe_client", _Settings)
_DEFAULTS = _Settings(Client(), None)


def client_session(app: web.Application | None = None, **kwargs: Any) -> aiohttp.ClientSession:
    """An instrumented session; ``kwargs`` are those of `aiohttp.ClientSession`.

    With ``app`` its calls are observed as that application's, else as those of the
    application whose request or start-up makes them.  A call outside of any application has
    a span of the global tracer provider, and no metrics.  Close it as any session.

    Raises ``RuntimeError`` for an application without observability of outbound calls.
    """
    configs = [client_trace_config(app), *(kwargs.pop("trace_configs", None) or ())]
    return aiohttp.ClientSession(trace_configs=configs, **kwargs)


def client_trace_config(app: web.Application | None = None) -> aiohttp.TraceConfig:
    """For a session built elsewhere: ``ClientSession(trace_configs=[client_trace_config()])``."""
    config = aiohttp.TraceConfig(trace_config_ctx_factory=partial(_Call, _settings_of(app)))  # type: ignore[arg-type]
    for event in _EVENTS:
        getattr(config, event).append(partial(_notify, event))
    return config


def _settings_of(app: web.Application | None) -> _Settings:
    if app is None:
        return _DEFAULTS
    check_instance("client_session(app)", app, (Application, type(None)))
    settings = app.get(_SETTINGS)
    if settings is None:
        raise RuntimeError(
            "this application's outbound calls aren't observed: call setup_observability(app) first, without "
            "client=None; of a sub-application give the root one, or none"
        )
    return settings


_EVENTS = (
    "on_request_start",
    "on_request_end",
    "on_request_exception",
    "on_request_redirect",
    "on_request_headers_sent",
    "on_connection_queued_start",
    "on_connection_queued_end",
    "on_connection_create_start",
    "on_connection_create_end",
    "on_dns_resolvehost_start",
    "on_dns_resolvehost_end",
)


async def _notify(event: str, session: aiohttp.ClientSession, call: _Call, params: Any) -> None:
    """Pass one of aiohttp's events on; what fails in here is counted and never reaches the caller."""
    try:
        getattr(call, event)(session, params)
    except Exception:
        call.meter.internal_error("client")


def _tracer_of(session: aiohttp.ClientSession, scope: Scope | None) -> ClientTracer | None:
    """The tracer of a call; outside of any application, the global provider's.

    ``None`` where tracing is off, and for a session that the official instrumentor has
    instrumented itself: one client span a call.
    """
    for config in session.trace_configs:
        if hasattr(config, "_is_instrumented_by_opentelemetry"):
            return None
    if scope is None:
        return global_client_tracer()
    tracer: ClientTracer | None = None if scope.tracer is None else scope.tracer.outbound
    return tracer


class _Call:
    """One outbound request, redirects included; aiohttp makes one for each as its trace context."""

    def __init__(self, settings: _Settings, trace_request_ctx: Any = None) -> None:
        self._options = settings.options
        self.trace_request_ctx = trace_request_ctx
        self._scope = current_scope() if settings.scope is None else settings.scope
        self.meter = Meter() if self._scope is None else self._scope.meter
        self._span: OutboundSpan | None = None
        self._host = self._phase_host = ""
        self._port: int | None = None
        self._done = False
        self._since: dict[str, float] = {}
        self._times_sent = 0
        self._status: int | None = None
        self._error: str | None = None
        self._step: Step | None = None

    # aiohttp's events, named as it names them

    def on_request_start(
        self, session: aiohttp.ClientSession, params: aiohttp.TraceRequestStartParams
    ) -> None:
        self._started = perf_counter()
        self._method = METHODS.get(params.method, OTHER_METHOD)
        self._host = self._phase_host = params.url.raw_host or ""  # a name in its ASCII form
        with suppress(ValueError):  # a port that is none: aiohttp will say so itself
            self._port = params.url.port
        exchange = current_exchange()
        if exchange is not None:
            self._step = exchange.begin_step("client", f"{self._method} {self._host}", self._started)
            if self._options.send_request_id:
                params.headers.setdefault(_REQUEST_ID_HEADER, exchange.request_id)
        tracer = _tracer_of(session, self._scope)
        if tracer is not None:
            self._span = span = tracer.begin(
                self._method, params.method, params.url, self._host, self._port, params.headers
            )
            if span is not None:
                span.send_along(params.headers)

    def on_request_end(self, session: aiohttp.ClientSession, params: aiohttp.TraceRequestEndParams) -> None:
        self._end_phase("first_byte")
        response = params.response
        self._status = response.status
        if response.status >= 400:  # an error to the client, by the semantic conventions
            self._error = str(response.status)
        try:
            if self._span is not None:
                self._span.leave()
                self._span.answered(response.headers)
        finally:
            connection = response.connection
            if connection is None:
                self._finish(None)
            else:
                # Weakly: a response that is dropped unread must still give its connection back at once.
                connection.add_callback(partial(self._finish, ref(response)))

    def on_request_exception(
        self, session: aiohttp.ClientSession, params: aiohttp.TraceRequestExceptionParams
    ) -> None:
        for phase in tuple(self._since)[-1:]:  # the innermost that it was in
            self._end_phase(phase)
        self._error = type(params.exception).__qualname__
        if isinstance(params.exception, aiohttp.ClientResponseError) and not _is_unreadable(params.exception):
            self._status = params.exception.status or self._status  # of raise_for_status, say
        try:
            if self._span is not None:
                self._span.leave()
                self._span.fail(params.exception)
        finally:
            self._finish(None)

    def on_request_redirect(
        self, session: aiohttp.ClientSession, params: aiohttp.TraceRequestRedirectParams
    ) -> None:
        self._end_phase("first_byte")
        self._status = params.response.status
        location = params.response.headers.get("Location") or params.response.headers.get("URI")
        with suppress(ValueError):  # aiohttp will say so itself
            self._phase_host = type(params.url)(location or "").raw_host or self._phase_host

    # What a phase before it has left open belongs to an attempt that failed: nobody tells when.

    def on_request_headers_sent(self, session: aiohttp.ClientSession, params: Any) -> None:
        self._times_sent += 1
        self._since = {"first_byte": perf_counter()}

    def on_connection_queued_start(self, session: aiohttp.ClientSession, params: Any) -> None:
        self._since = {"queue": perf_counter()}

    def on_connection_queued_end(self, session: aiohttp.ClientSession, params: Any) -> None:
        self._end_phase("queue")

    def on_connection_create_start(self, session: aiohttp.ClientSession, params: Any) -> None:
        self._since = {"connect": perf_counter()}

    def on_connection_create_end(self, session: aiohttp.ClientSession, params: Any) -> None:
        self._end_phase("connect")

    def on_dns_resolvehost_start(self, session: aiohttp.ClientSession, params: Any) -> None:
        self._since["dns"] = perf_counter()

    def on_dns_resolvehost_end(self, session: aiohttp.ClientSession, params: Any) -> None:
        seconds = self._end_phase("dns")
        if "connect" in self._since:  # which begins with it, and is told without
            self._since["connect"] += seconds

    def _end_phase(self, phase: str) -> float:
        since = self._since.pop(phase, None)
        if since is None:
            return 0.0
        seconds = perf_counter() - since
        self.meter.client_phase(self._phase_host, phase, seconds, redirected=self._phase_host != self._host)
        return seconds

    def _finish(self, response: ref[aiohttp.ClientResponse] | None) -> None:
        if self._done:
            return
        self._done = True
        seconds = perf_counter() - self._started
        broken = None if response is None else _broken_by(response())
        if broken is not None:
            self._note_broken_body(broken)
        if self._step is not None:
            self._step.end(seconds, self._error)
        span = self._span
        ids = None if span is None else span.sampled_ids
        outcome = self._method, self._host, self._port, self._status, self._error
        self.meter.client_request(outcome, seconds, ids)
        if span is not None:
            try:
                span.finish(seconds, self._status, self._error, max(self._times_sent - 1, 0))
            except Exception:  # a span processor of the service's
                self.meter.internal_error("client")

    def _note_broken_body(self, broken: BaseException) -> None:
        self._error = type(broken).__qualname__
        if self._span is not None:
            self._span.fail(broken)


def _is_unreadable(exc: aiohttp.ClientResponseError) -> bool:
    """Whether ``exc`` tells of bytes that are no response, under a status that aiohttp makes up."""
    return isinstance(exc.__cause__, HttpProcessingError)


def _broken_by(response: aiohttp.ClientResponse | None) -> BaseException | None:
    """What kept a response's body from being read to its end.

    A caller that stops reading, since it needs no more or fails by itself, breaks nothing:
    aiohttp then marks the body with a plain `aiohttp.ClientConnectionError`.  A timeout or a
    cancellation makes it look the same, but is being handled while the response is closed,
    and has come out of reading that body.
    """
    broken = None if response is None else response.content.exception()
    if response is None or type(broken) is not aiohttp.ClientConnectionError:
        return broken
    handled = sys.exc_info()[1]
    return handled if _comes_from(response.content, handled) else None


def _comes_from(content: aiohttp.StreamReader, exc: BaseException | None) -> bool:
    """Whether a timeout or a cancellation hit a task that was reading ``content``."""
    for _ in range(_MOST_CAUSES):
        if not isinstance(exc, (asyncio.TimeoutError, asyncio.CancelledError)):
            return False
        frames = (frame for frame, _ in walk_tb(exc.__traceback__))
        if any(_is_method_of(content, frame) for frame in frames):
            return True
        exc = exc.__cause__ or exc.__context__  # `asyncio.timeout` makes one of the other
    return False


def _is_method_of(content: aiohttp.StreamReader, frame: FrameType) -> bool:
    in_streams = frame.f_globals.get("__name__") == aiohttp.streams.__name__
    return in_streams and frame.f_locals.get("self") is content
