"""The server span: exactly one a request, true to the request's end, in the trace it belongs to."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any
from weakref import ref

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor, create_aiohttp_middleware
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    Admin,
    Exchange,
    Logs,
    Metrics,
    Tracing,
    current_exchange,
    operation,
    setup_observability,
)
from tests.service import PATIENCE, Witness, free_port, serving, until
from tests.spans import Deciding, Handler, Spans, attributes, ids, ok, traced

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
UNSAMPLED = PARENT[:-1] + "0"

OURS = "aiohttp_observe"
THEIRS = "opentelemetry.instrumentation.aiohttp_server"


@pytest.fixture
def spans() -> Spans:
    return Spans()


async def exchange_of(spans: Spans, path: str = "/", handler: Handler = ok, **request: Any) -> Exchange:
    """Serve one request to its end."""
    async with traced(spans, handler) as (service, witness):
        await service.get(path, **request)
        return await witness.next()


def the_one(spans: Spans, exchange: Exchange) -> tuple[str, ReadableSpan]:
    """Who made the only span that there is, which is the exchange's, and that span."""
    (span,) = spans.all
    assert span.kind is SpanKind.SERVER
    assert (exchange.trace_id, exchange.span_id) == (
        f"{ids(span).trace_id:032x}",
        f"{ids(span).span_id:016x}",
    )
    assert span.instrumentation_scope is not None
    return span.instrumentation_scope.name, span


# One server span a request


@web.middleware
async def passing(request: web.Request, handler: Handler) -> web.StreamResponse:
    return await handler(request)


def nested_in(root: web.Application, depth: int, make: Callable[[], web.Application]) -> web.Application:
    """``root`` with applications nested in it, one in the other; the innermost has ``/leaf/{id}``."""
    levels = [make() for _ in range(depth)]
    levels[-1].router.add_get("/leaf/{id}", ok)
    for outer, inner in reversed(list(zip([root, *levels], levels, strict=False))):
        outer.add_subapp("/down", inner)
    return root


def with_middlewares() -> web.Application:
    return web.Application(middlewares=[passing, passing])


async def test_a_generated_request_id_is_that_of_the_trace_that_begins(spans: Spans) -> None:
    exchange = await exchange_of(spans)
    the_one(spans, exchange)
    assert exchange.request_id == exchange.trace_id
    for sent in ({"traceparent": PARENT}, {"X-Request-ID": "f" * 32}):
        exchange = await exchange_of(spans, headers=sent)
        assert exchange.request_id != exchange.trace_id


async def test_a_plain_request_has_one_span(spans: Spans) -> None:
    exchange = await exchange_of(spans)
    assert the_one(spans, exchange)[0] == OURS


async def test_nested_applications_and_middlewares_make_one_span(spans: Spans) -> None:
    app = nested_in(with_middlewares(), 3, with_middlewares)
    async with traced(spans, app=app) as (service, witness):
        await service.get("/down/down/down/leaf/1")
        exchange = await witness.next()
    assert the_one(spans, exchange)[1].name == "GET /down/down/down/leaf/{id}"


@contextmanager
def official_instrumentor(spans: Spans | None) -> Iterator[None]:
    with warnings.catch_warnings():  # aiohttp warns of the subclass that the instrumentor makes
        warnings.simplefilter("ignore", DeprecationWarning)
        AioHttpServerInstrumentor().instrument(tracer_provider=spans and spans.provider)
    try:
        yield
    finally:
        AioHttpServerInstrumentor().uninstrument()


async def test_where_the_official_instrumentor_is_active_its_span_is_used(spans: Spans) -> None:
    with official_instrumentor(spans):
        async with traced(spans, app=web.Application()) as (service, witness):
            await service.get("/")
            exchange = await witness.next()
    assert the_one(spans, exchange)[0] == THEIRS


async def test_the_consoles_own_server_is_not_traced_by_it(spans: Spans) -> None:
    port = free_port()
    with official_instrumentor(spans):
        app = web.Application()
        tracing = Tracing(provider=spans.provider)
        setup_observability(app, tracing=tracing, metrics=None, logs=None, admin=Admin(port=port))
        async with (
            serving(app) as service,
            service.session.get(f"http://127.0.0.1:{port}/_tasks") as response,
        ):
            assert response.status == 200
    assert spans.servers == []


async def test_aiohttps_line_for_a_crash_carries_the_ids_of_its_span(spans: Spans) -> None:
    """It has left its context by then."""

    async def crash(request: web.Request) -> web.StreamResponse:
        raise LookupError

    lines, witness = io.StringIO(), Witness()
    with official_instrumentor(spans):
        app = web.Application()
        app.router.add_get("/", crash)
        setup_observability(
            app,
            tracing=Tracing(provider=spans.provider),
            metrics=None,
            logs=Logs(stream=lines, replace=True),
            observers=[witness],
        )
        async with serving(app) as service:
            await service.get("/")
            exchange = await witness.next()
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    (line,) = [line for line in told if line["message"].startswith("Error handling request")]
    assert {"trace_id": exchange.trace_id, "span_id": exchange.span_id}.items() <= line.items()
    the_one(spans, exchange)


async def test_its_span_is_one_however_deep_the_applications(spans: Spans) -> None:
    with official_instrumentor(spans):
        app = nested_in(with_middlewares(), 3, with_middlewares)
        async with traced(spans, app=app) as (service, witness):
            await service.get("/down/down/down/leaf/1")
            exchange = await witness.next()
    assert the_one(spans, exchange)[0] == THEIRS


async def test_where_only_nested_applications_are_instrumented_ours_is_the_one(spans: Spans) -> None:
    app = web.Application()
    with official_instrumentor(spans):
        nested_in(app, 2, with_middlewares)
        async with traced(spans, app=app) as (service, witness):
            await service.get("/down/down/leaf/1")
            exchange = await witness.next()
    assert the_one(spans, exchange)[0] == OURS


async def test_an_application_made_before_the_instrumentor_has_ours(spans: Spans) -> None:
    app = web.Application()
    with official_instrumentor(spans):
        async with traced(spans, app=app) as (service, witness):
            await service.get("/")
            exchange = await witness.next()
    assert the_one(spans, exchange)[0] == OURS


async def test_the_official_middleware_added_by_hand_makes_no_second_span(spans: Spans) -> None:
    """Added after our set-up it stands within our middleware, whose span is the one then."""
    app, witness = web.Application(), Witness()
    app.router.add_get("/", ok)
    tracing = Tracing(provider=spans.provider)
    setup_observability(app, tracing=tracing, metrics=None, logs=None, observers=[witness])
    with official_instrumentor(spans):  # which sets up what its middleware needs
        app.middlewares.append(create_aiohttp_middleware(tracer_provider=spans.provider))
    async with serving(app) as service:
        await service.get("/")
        exchange = await witness.next()
    assert the_one(spans, exchange)[0] == OURS


@pytest.mark.parametrize("headers", [{}, {"traceparent": PARENT}], ids=["no trace", "a trace"])
async def test_where_the_instrumentor_has_no_provider_ours_is_the_one(
    headers: dict[str, str], spans: Spans
) -> None:
    """It makes none then: what is current is the client's span, or none."""
    with official_instrumentor(None):
        async with traced(spans, app=web.Application()) as (service, witness):
            await service.get("/", headers=headers)
            exchange = await witness.next()
    name, span = the_one(spans, exchange)
    assert name == OURS
    assert (span.parent is None) == (not headers)


async def test_where_the_instrumentor_samples_nothing_its_ids_are_used() -> None:
    spans = Spans(sampler=ParentBased(ALWAYS_OFF))
    with official_instrumentor(spans):
        async with traced(spans, app=web.Application()) as (service, witness):
            await service.get("/", headers={"traceparent": UNSAMPLED})
            exchange = await witness.next()
    assert spans.all == ()
    assert exchange.trace_id == TRACE_ID
    assert exchange.span_id != PARENT_ID


async def test_what_the_instrumentor_leaves_out_has_no_span(
    monkeypatch: pytest.MonkeyPatch, spans: Spans
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS", "^/$")
    with official_instrumentor(spans):
        async with traced(spans, app=web.Application()) as (service, witness):
            await service.get("/")
            exchange = await witness.next()
    assert spans.all == ()
    assert exchange.trace_id is None


# What a span says of a request's end


async def crash(request: web.Request) -> web.StreamResponse:
    raise LookupError("no such order")


async def run_out_of_time(request: web.Request) -> web.StreamResponse:
    raise asyncio.TimeoutError


async def forget_to_answer(request: web.Request) -> Any:
    return None


async def refuse(request: web.Request) -> web.StreamResponse:
    raise web.HTTPForbidden


async def unavailable(request: web.Request) -> web.StreamResponse:
    return web.Response(status=503)


@pytest.mark.parametrize(
    ("handler", "status", "error", "outcome", "events"),
    [
        (crash, 500, "LookupError", StatusCode.ERROR, ["exception"]),
        (run_out_of_time, 504, "TimeoutError", StatusCode.ERROR, ["exception"]),
        (forget_to_answer, 500, "500", StatusCode.ERROR, []),
        (unavailable, 503, "503", StatusCode.ERROR, []),
        (refuse, 403, None, StatusCode.UNSET, []),
        (ok, 200, None, StatusCode.UNSET, []),
    ],
)
async def test_the_end_of_a_request_is_told_truly(
    handler: Handler, status: int, error: str | None, outcome: StatusCode, events: list[str], spans: Spans
) -> None:
    exchange = await exchange_of(spans, handler=handler)
    _, span = the_one(spans, exchange)
    said = attributes(span)
    assert (said["http.response.status_code"], said.get("error.type")) == (status, error)
    assert span.status.status_code is outcome
    assert [event.name for event in span.events] == events


async def test_a_crash_is_recorded_with_its_traceback(spans: Spans) -> None:
    exchange = await exchange_of(spans, handler=crash)
    (event,) = the_one(spans, exchange)[1].events
    told = dict(event.attributes or {})
    assert (told["exception.type"], told["exception.message"]) == ("LookupError", "no such order")
    assert "in crash" in str(told["exception.stacktrace"])


async def test_a_streams_span_lasts_until_its_last_byte(spans: Spans) -> None:
    go_on = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await go_on.wait()
        await response.write(b"last")
        return response

    async with traced(spans, stream) as (service, witness):
        async with service.session.get(service.url("/")) as response:
            assert await response.content.readexactly(5) == b"first"
            assert spans.all == ()
            go_on.set()
            assert await response.read() == b"last"
        exchange = await witness.next()
    assert the_one(spans, exchange)[1].status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("handler_cancellation", [False, True])
async def test_a_client_that_leaves_is_no_error_of_the_service(
    handler_cancellation: bool, spans: Spans
) -> None:
    arrived = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await until(lambda: request.transport is None, "the client to leave")
        return web.Response()

    async with traced(spans, slow, handler_cancellation=handler_cancellation) as (service, witness):
        _, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await arrived.wait()
        writer.close()
        await writer.wait_closed()
        exchange = await witness.next()
    _, span = the_one(spans, exchange)
    said = attributes(span)
    assert (said["http.response.status_code"], said["error.type"]) == (499, "client_disconnected")
    assert span.status.status_code is StatusCode.UNSET


async def test_a_websockets_span_lasts_as_long_as_it(spans: Spans) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async with traced(spans, echo) as (service, witness):
        async with service.session.ws_connect(service.url("/")) as socket:
            await socket.send_str("hello")
            assert (await socket.receive(PATIENCE)).data == "hello"
            assert spans.all == ()
        exchange = await witness.next()
    _, span = the_one(spans, exchange)
    assert attributes(span)["http.response.status_code"] == 101
    assert (attributes(span).get("error.type"), span.status.status_code) == (None, StatusCode.UNSET)


# The span is one of OpenTelemetry's, whatever is done with it


async def test_whatever_a_service_does_to_the_span_is_kept(spans: Spans) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attribute("customer", 42)
        span.set_attributes({"tier": "gold"})
        span.add_event("priced", {"cents": 5})
        span.add_link(trace.SpanContext(1, 2, True))
        span.update_name("renamed")
        span.record_exception(ValueError("tried again"))
        span.set_status(StatusCode.ERROR, "by hand")
        return web.Response()

    exchange = await exchange_of(spans, handler=handler)
    _, span = the_one(spans, exchange)
    said = attributes(span)
    assert span.name == "renamed"
    assert (said["customer"], said["tier"], said["http.response.status_code"]) == (42, "gold", 200)
    assert said["http.route"] == "/"
    assert [event.name for event in span.events] == ["priced", "exception"]
    assert [link.context.trace_id for link in span.links] == [1]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "by hand")


async def test_a_span_that_the_service_ended_is_not_ended_again(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        trace.get_current_span().end()
        return web.Response()

    exchange = await exchange_of(spans, handler=handler)
    assert "http.response.status_code" not in attributes(the_one(spans, exchange)[1])
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_span_can_be_read_whole(spans: Spans) -> None:
    """As the console exporter and other processors do, which look at everything there is."""
    await exchange_of(spans)
    told = json.loads(spans.all[0].to_json())
    assert (told["name"], told["kind"], told["parent_id"]) == ("GET /", "SpanKind.SERVER", None)
    assert told["resource"]["attributes"]["telemetry.sdk.name"] == "opentelemetry"
    assert (told["events"], told["links"]) == ([], [])


@pytest.mark.parametrize("limited", [False, True])
async def test_processors_hear_of_the_start_and_the_end_of_a_span(limited: bool) -> None:
    heard: list[str] = []

    class Listening(SpanProcessor):
        def on_start(self, span: Any, parent_context: Context | None = None) -> None:
            assert baggage.get_baggage("tenant", parent_context) == "acme"
            heard.append(f"start {span.name}")
            span.set_attribute("tenant", "acme")

        def on_end(self, span: ReadableSpan) -> None:
            heard.append(f"end {span.name} {attributes(span)['http.response.status_code']}")

    spans = Spans(span_limits=SpanLimits(max_span_attribute_length=4)) if limited else Spans()
    spans.provider.add_span_processor(Listening())
    await exchange_of(spans, headers={"baggage": "tenant=acme"})
    assert heard == ["start GET /", "end GET / 200"]
    assert attributes(spans.all[0])["tenant"] == "acme"


async def test_the_providers_sampler_decides_by_what_is_known_at_the_start() -> None:
    def by_route(name: str, kind: SpanKind | None, attributes: Any) -> SamplingResult:
        wanted = kind is SpanKind.SERVER and attributes["url.query"] == "debug=1"
        if not wanted:
            return SamplingResult(Decision.DROP)
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {**attributes, "why": "debug"})

    spans = Spans(sampler=Deciding(by_route))
    async with traced(spans) as (service, witness):
        await service.get("/?debug=0")
        dropped = await witness.next()
        await service.get("/?debug=1")
        exchange = await witness.next()
    assert attributes(the_one(spans, exchange)[1])["why"] == "debug"
    assert (dropped.sampled, exchange.sampled) == (False, True)
    assert dropped.trace_id is not None  # the logs can still be told apart


async def test_the_providers_ids_resource_and_limits_hold() -> None:
    class Counting(IdGenerator):
        def generate_trace_id(self) -> int:
            return 0xABC

        def generate_span_id(self) -> int:
            return 0xDEF

    limits = SpanLimits(max_span_attribute_length=4)
    spans = Spans(id_generator=Counting(), resource=Resource({"service.name": "shop"}), span_limits=limits)
    exchange = await exchange_of(spans, "/?a_long_query=1")
    _, span = the_one(spans, exchange)
    assert exchange.trace_id == f"{0xABC:032x}"
    assert exchange.span_id == f"{0xDEF:016x}"
    assert span.resource.attributes["service.name"] == "shop"
    assert attributes(span)["url.query"] == "a_lo"


async def test_more_attributes_than_the_limit_are_dropped_and_counted() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        trace.get_current_span().set_attributes({f"detail.{number}": number for number in range(100)})
        return web.Response()

    spans = Spans(span_limits=SpanLimits(max_span_attributes=40))
    await exchange_of(spans, handler=handler)
    (span,) = spans.all
    assert len(attributes(span)) == 40
    assert span.dropped_attributes > 60


@pytest.mark.parametrize("disabled", ["provider", "environment"])
async def test_a_provider_that_traces_nothing_gives_no_ids(
    disabled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = trace.NoOpTracerProvider() if disabled == "provider" else None
    if given is None:
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    app, witness = web.Application(), Witness()
    app.router.add_get("/", ok)
    setup_observability(app, tracing=Tracing(provider=given), metrics=None, logs=None, observers=[witness])
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
        exchange = await witness.next()
    assert (exchange.trace_id, exchange.span_id, exchange.sampled) == (None, None, False)


async def test_a_provider_that_fails_costs_no_request(registry: CollectorRegistry) -> None:
    class Broken(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            raise ZeroDivisionError

        def get_description(self) -> str:
            return "Broken"

    app = web.Application()
    app.router.add_get("/", ok)
    tracing = Tracing(provider=Spans(sampler=Broken()).provider)
    setup_observability(app, tracing=tracing, metrics=Metrics(registry=registry), logs=None)
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
    assert registry.get_sample_value("aiohttp_observe_internal_errors_total", {"observer": "tracing"}) == 1


async def test_an_unsampled_request_is_not_sampled_within_either() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        with operation("within"):
            return web.Response()

    spans = Spans(sampler=ALWAYS_OFF)
    exchange = await exchange_of(spans, handler=handler)
    assert spans.all == ()
    assert exchange.trace_id is not None


# Context from outside


async def test_a_trace_is_continued(spans: Spans) -> None:
    headers = {"traceparent": PARENT, "tracestate": "vendor=1,other=2"}
    exchange = await exchange_of(spans, headers=headers)
    _, span = the_one(spans, exchange)
    assert exchange.trace_id == TRACE_ID
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.parent.is_remote
    assert ids(span).trace_state.to_header() == "vendor=1,other=2"


async def test_a_propagator_may_read_other_headers_than_it_writes() -> None:
    """As both of B3's do, whose two forms each reads."""

    class InItsOwnHeader(TraceContextTextMapPropagator):
        @property
        def fields(self) -> Any:
            return ["b3"]  # some have a list

    usual = propagate.get_global_textmap()
    propagate.set_global_textmap(InItsOwnHeader())
    try:
        exchange = await exchange_of(Spans(), headers={"traceparent": PARENT})
    finally:
        propagate.set_global_textmap(usual)
    assert exchange.trace_id == TRACE_ID


async def test_an_unsampled_trace_stays_unsampled(spans: Spans) -> None:
    exchange = await exchange_of(spans, headers={"traceparent": UNSAMPLED})
    assert spans.all == ()
    assert (exchange.trace_id, exchange.sampled) == (TRACE_ID, False)


async def test_baggage_is_there_for_the_service(spans: Spans) -> None:
    seen: list[object] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(baggage.get_baggage("tenant"))
        return web.Response()

    await exchange_of(spans, handler=handler, headers={"baggage": "tenant=acme"})
    assert seen == ["acme"]


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "garbage")],
        [("traceparent", "")],
        [("traceparent", f"00-{'0' * 32}-{'0' * 16}-01")],
        [("traceparent", f"ff{PARENT[2:]}")],
        [("traceparent", f"{PARENT}-{'x' * 4000}")],
        [("traceparent", PARENT.upper())],
        [("traceparent", f"00-{'g' * 32}-{PARENT_ID}-01")],
        [("traceparent", PARENT.replace("-", "\u2010"))],
        [("tracestate", "=," * 1000)],
        [("tracestate", "vendor=1")],
        [("baggage", "%%%=\xff," * 100)],
        [("baggage", "a=" + "b" * 7000)],
        [("baggage", ",".join(f"k{number}=v" for number in range(300)))],
        [("baggage", "=;=;,;==%00%0d%0aX-Injected: 1")],
    ],
)
async def test_a_hostile_context_is_ignored(headers: list[tuple[str, str]], spans: Spans) -> None:
    async with traced(spans) as (service, witness):
        assert (await service.get("/", headers=headers)).status == 200
        exchange = await witness.next()
    assert the_one(spans, exchange)[1].parent is None


async def test_two_parents_are_one_too_many(spans: Spans) -> None:
    """Which of them is taken is OpenTelemetry's to say; the request is served and has one span."""
    other = PARENT.replace(TRACE_ID, "1" * 32)
    exchange = await exchange_of(spans, headers=[("traceparent", PARENT), ("traceparent", other)])
    assert the_one(spans, exchange)[1].name == "GET /"


@pytest.mark.parametrize("tracestate", ["=," * 1000, "vendor=1," * 200, "UPPER=1", "\xff=\xfe"])
async def test_a_hostile_tracestate_does_not_cost_a_good_parent(tracestate: str, spans: Spans) -> None:
    exchange = await exchange_of(spans, headers={"traceparent": PARENT, "tracestate": tracestate})
    the_one(spans, exchange)
    assert exchange.trace_id == TRACE_ID


async def test_a_server_started_within_a_span_does_not_make_it_the_parent(spans: Spans) -> None:
    with spans.provider.get_tracer("test").start_as_current_span("start-up"):
        await exchange_of(spans)
    (span,) = spans.servers
    assert span.parent is None


async def test_requests_on_one_connection_have_traces_of_their_own(spans: Spans) -> None:
    one_connection = aiohttp.TCPConnector(limit=1)
    async with (
        traced(spans) as (service, witness),
        aiohttp.ClientSession(connector=one_connection) as session,
    ):
        for _ in range(3):
            async with session.get(service.url("/")) as response:
                await response.read()
            await witness.next()
    assert len({ids(span).trace_id for span in spans.all}) == 3
    assert [span.parent for span in spans.all] == [None, None, None]


async def test_concurrent_requests_do_not_meet(spans: Spans) -> None:
    together = asyncio.Event()
    arrived: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        exchange = current_exchange()
        assert exchange is not None
        arrived.append(str(exchange.trace_id))
        if len(arrived) == 5:
            together.set()
        await together.wait()
        return web.Response(text=f"{trace.get_current_span().get_span_context().trace_id:032x}")

    async with traced(spans, handler) as (service, witness):
        answers = await asyncio.gather(*(service.get("/") for _ in range(5)))
        for _ in range(5):
            await witness.next()
    assert sorted(answer.text for answer in answers) == sorted(arrived)
    assert {f"{ids(span).trace_id:032x}" for span in spans.all} == set(arrived)


# Settings of the official instrumentation


@pytest.mark.parametrize(
    "variable", ["OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS"]
)
async def test_excluded_paths_make_no_span(
    variable: str, monkeypatch: pytest.MonkeyPatch, spans: Spans
) -> None:
    monkeypatch.setenv(variable, "^/health,^/$")
    exchange = await exchange_of(spans)
    assert spans.all == ()
    assert exchange.trace_id is None


async def test_headers_are_captured_as_asked_also_of_failures(
    monkeypatch: pytest.MonkeyPatch, spans: Spans
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "x-tag,authorization")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE", "x-request-id")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", "authorization")
    headers = [("X-Tag", "a"), ("X-Tag", "b"), ("Authorization", "Bearer hush")]
    exchange = await exchange_of(spans, handler=crash, headers=headers)
    said = attributes(the_one(spans, exchange)[1])
    assert said["http.request.header.x_tag"] == ("a", "b")
    assert said["http.request.header.authorization"] == ("[REDACTED]",)
    assert said["http.response.header.x_request_id"] == (exchange.request_id,)


async def test_without_asking_no_header_is_in_a_span(spans: Spans) -> None:
    await exchange_of(spans, headers={"Authorization": "Bearer hush", "Cookie": "session=hush"})
    assert "hush" not in spans.all[0].to_json()


async def test_warnings_filters_stay_as_they_were(spans: Spans) -> None:
    """Making a tracer adds one, each time."""
    before = list(warnings.filters)
    await exchange_of(spans)
    assert list(warnings.filters) == before


async def test_a_span_is_current_while_the_server_logs_a_crash(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    current: list[int] = []

    class Looking(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            current.append(trace.get_current_span().get_span_context().span_id)
            return True

    looking = Looking()
    logging.getLogger("aiohttp.server").addFilter(looking)
    try:
        await exchange_of(spans, handler=crash)
    finally:
        logging.getLogger("aiohttp.server").removeFilter(looking)
    assert current == [ids(spans.all[0]).span_id]


@pytest.mark.parametrize("hostile", ["k=\udcff", "k=v;\udcff"])
async def test_a_hostile_baggage_costs_no_trace(spans: Spans, hostile: str) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with traced(spans) as (service, witness):
        headers = {"Host": "x", "Connection": "close", "traceparent": parent, "baggage": hostile}
        lines = ["GET / HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        await service.exchange_bytes("\r\n".join(lines).encode(errors="surrogateescape"))
        exchange = await witness.next()
    assert exchange.trace_id == "0af7651916cd43dd8448eb211c80319c"


async def test_what_is_no_unicode_in_a_header_is_exported_as_question_marks(spans: Spans) -> None:
    async with traced(spans) as (service, witness):
        await service.exchange_bytes(
            b"GET / HTTP/1.1\r\nHost: x\xff\r\nConnection: close\r\nUser-Agent: a\xffb\r\n\r\n"
        )
        exchange = await witness.next()
    _, span = the_one(spans, exchange)
    assert span.attributes is not None
    assert span.attributes["user_agent.original"] == "a?b"
    "".join(map(str, span.attributes.values())).encode()


class DropsHealthChecks(ParentBased):
    """As many services have one."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        attributes = kwargs.get("attributes") or args[4]
        if attributes["url.path"] == "/":
            return SamplingResult(Decision.DROP)
        return super().should_sample(*args, **kwargs)


async def test_a_sampler_that_looks_at_attributes_is_given_them() -> None:
    spans = Spans(sampler=DropsHealthChecks(ALWAYS_ON))
    exchange = await exchange_of(spans)
    assert (exchange.sampled, spans.all) == (False, ())


# Threads of the service, and what is kept


async def test_a_thread_that_touches_the_span_as_its_request_ends_costs_it_nothing(spans: Spans) -> None:
    raised: list[Exception] = []
    threads: list[threading.Thread] = []

    async def handler(request: web.Request) -> web.Response:
        span = trace.get_current_span()

        def touch(after: int = len(threads) % 60) -> None:
            for _ in range(after):
                perf_counter()
            try:
                span.set_attribute("progress", 1)
            except Exception as exc:
                raised.append(exc)

        threads.append(threading.Thread(target=touch))
        threads[-1].start()
        return web.Response()

    with switching_every(1e-6):
        async with traced(spans, handler) as (service, witness):
            for _ in range(1500):
                await service.get("/")
                await witness.next()
            for thread in threads:
                thread.join()
    assert not raised
    assert [attributes(span).get("http.response.status_code") for span in spans.servers] == [200] * 1500


@contextmanager
def switching_every(seconds: float) -> Iterator[None]:
    """Have threads take turns that often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    yield
    sys.setswitchinterval(before)


async def test_the_memory_of_requests_keeps_no_span() -> None:
    made: list[ref[trace.Span]] = []

    async def handler(request: web.Request) -> web.Response:
        span = trace.get_current_span()
        span.set_attribute("body", "x" * 200_000)
        made.append(ref(span))
        return web.Response()

    app, witness = web.Application(), Witness()
    app.router.add_get("/", handler)
    setup_observability(
        app,
        metrics=Metrics(registry=CollectorRegistry()),
        logs=None,
        tracing=Tracing(provider=TracerProvider()),
        observers=[witness],
    )
    async with serving(app) as service:
        answer = await service.get("/")
        exchange = await witness.next()
        await until(lambda: gc.collect() >= 0 and made[0]() is None, "the span to go")
        document = json.loads((await service.get(f"/_tasks/requests/{answer.request_id}")).text)
    assert (document["trace_id"], document["span_id"]) == (exchange.trace_id, exchange.span_id)
