"""Server spans, operations and the traces of background work."""

from __future__ import annotations

import asyncio
import gzip
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from aiohttp_observe import Metrics, Tracing, operation, setup_observability, spawn
from tests.service import Service, Witness, run_python, serving

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"
Handler = Callable[[web.Request], Any]


class Spans:
    """A provider whose spans can be read."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @property
    def servers(self) -> list[ReadableSpan]:
        return [span for span in self.all if span.kind is SpanKind.SERVER]

    def named(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.all if span.name == name)
        return span


@pytest.fixture
def spans() -> Spans:
    return Spans()


async def ok(request: web.Request) -> web.Response:
    return web.Response()


@asynccontextmanager
async def traced(
    spans: Spans, handler: Handler = ok, app: web.Application | None = None, **runner: Any
) -> AsyncIterator[tuple[Service, Witness]]:
    app = app or web.Application()
    app.router.add_get("/", handler)
    witness = Witness()
    tracing = Tracing(provider=spans.provider)
    setup_observability(app, tracing=tracing, metrics=None, logs=None, observers=[witness])
    async with serving(app, **runner) as service:
        yield service, witness


def ids(span: ReadableSpan) -> Any:
    context = span.get_span_context()
    assert context is not None
    return context


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# One server span a request


async def test_nested_applications_and_middlewares_make_one_span(spans: Spans) -> None:
    @web.middleware
    async def passing(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        return response

    app = inner = web.Application(middlewares=[passing])
    levels = [web.Application(middlewares=[passing]) for _ in range(3)]
    levels[-1].router.add_get("/leaf/{id}", ok)
    for outer, nested in reversed(list(zip([inner, *levels], levels, strict=False))):
        outer.add_subapp("/down", nested)
    async with traced(spans, app=app) as (service, witness):
        await service.get("/down/down/down/leaf/1")
        exchange = await witness.next()
    (span,) = spans.all
    assert span.name == "GET /down/down/down/leaf/{id}"
    assert exchange.trace_id == f"{ids(span).trace_id:032x}"
    assert exchange.span_id == f"{ids(span).span_id:016x}"


@contextmanager
def official_instrumentor(provider: TracerProvider) -> Iterator[None]:
    with warnings.catch_warnings():  # aiohttp warns of the subclass that the instrumentor makes
        warnings.simplefilter("ignore", DeprecationWarning)
        AioHttpServerInstrumentor().instrument(tracer_provider=provider)
    try:
        yield
    finally:
        AioHttpServerInstrumentor().uninstrument()


async def test_where_the_official_instrumentor_is_active_its_span_is_used(spans: Spans) -> None:
    with official_instrumentor(spans.provider):
        app, nested, leaf = (web.Application() for _ in range(3))
        leaf.router.add_get("/leaf", ok)
        nested.add_subapp("/b", leaf)
        app.add_subapp("/a", nested)
        async with traced(spans, app=app) as (service, witness):
            await service.get("/a/b/leaf")
            exchange = await witness.next()
    (span,) = spans.all
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "opentelemetry.instrumentation.aiohttp_server"
    assert exchange.span_id == f"{ids(span).span_id:016x}"


async def test_where_only_nested_applications_are_instrumented_ours_is_the_one(spans: Spans) -> None:
    app = web.Application()
    with official_instrumentor(spans.provider):
        nested = web.Application()
        nested.router.add_get("/leaf", ok)
        app.add_subapp("/a", nested)
        async with traced(spans, app=app) as (service, witness):
            await service.get("/a/leaf")
            await witness.next()
    (span,) = spans.all
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "aiohttp_observe"


# What a span says of a request's end


async def test_a_crash_is_an_error_with_its_exception(spans: Spans) -> None:
    async def crash(request: web.Request) -> web.Response:
        raise LookupError("no such order")

    async with traced(spans, crash) as (service, witness):
        await service.get("/")
        await witness.next()
    (span,) = spans.all
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["http.response.status_code"] == 500
    assert attributes(span)["error.type"] == "LookupError"
    (event,) = span.events
    assert (event.attributes or {})["exception.message"] == "no such order"


async def test_a_span_lasts_until_the_last_byte(spans: Spans) -> None:
    async def slow_stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(3):
            await response.write(b"x")
            await asyncio.sleep(0.1)
        return response

    async with traced(spans, slow_stream) as (service, witness):
        await service.get("/")
        await witness.next()
    (span,) = spans.all
    assert (span.end_time or 0) - (span.start_time or 0) >= 0.29e9
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("handler_cancellation", [False, True])
async def test_a_client_that_leaves_is_no_error_of_the_service(
    handler_cancellation: bool, spans: Spans
) -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        arrived.set()
        await left.wait()
        return web.Response()

    async with traced(spans, slow, handler_cancellation=handler_cancellation) as (service, witness):
        _, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await arrived.wait()
        writer.close()
        await writer.wait_closed()
        if not handler_cancellation:
            await asyncio.sleep(0.1)
            left.set()
        await witness.next()
    (span,) = spans.all
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["http.response.status_code"] == 499
    assert attributes(span)["error.type"] == "client_disconnected"


async def test_a_span_that_the_service_touches_is_a_full_one(spans: Spans) -> None:
    async def handler(request: web.Request) -> web.Response:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attribute("customer", 42)
        span.set_attributes({"tier": "gold"})
        span.add_event("priced", {"cents": 5})
        span.add_link(trace.SpanContext(1, 2, True))
        span.update_name("renamed")
        return web.Response()

    async with traced(spans, handler) as (service, witness):
        await service.get("/")
        await witness.next()
    (span,) = spans.all
    assert span.name == "renamed"
    said = attributes(span)
    assert (said["customer"], said["tier"], said["http.response.status_code"]) == (42, "gold", 200)
    assert said["http.route"] == "/"
    assert [event.name for event in span.events] == ["priced"]
    assert [link.context.trace_id for link in span.links] == [1]


async def test_processors_hear_of_the_start_and_the_end_of_a_span(spans: Spans) -> None:
    heard: list[str] = []

    class Listening(SimpleSpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            heard.append(f"start {span.name}")
            span.set_attribute("tenant", "acme")

        def on_end(self, span: ReadableSpan) -> None:
            heard.append(f"end {span.name}")

    spans.provider.add_span_processor(Listening(InMemorySpanExporter()))
    async with traced(spans) as (service, witness):
        await service.get("/")
        await witness.next()
    assert heard == ["start GET /", "end GET /"]
    assert attributes(spans.all[0])["tenant"] == "acme"


# Context from outside


async def test_a_trace_is_continued(spans: Spans) -> None:
    async with traced(spans) as (service, witness):
        await service.get("/", headers={"traceparent": PARENT, "tracestate": "vendor=1"})
        await witness.next()
    (span,) = spans.all
    assert f"{ids(span).trace_id:032x}" == PARENT.split("-")[1]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert ids(span).trace_state.get("vendor") == "1"


async def test_an_unsampled_trace_stays_unsampled(spans: Spans) -> None:
    async with traced(spans) as (service, witness):
        await service.get("/", headers={"traceparent": UNSAMPLED})
        exchange = await witness.next()
    assert spans.all == ()
    assert not exchange.sampled
    assert exchange.trace_id == PARENT.split("-")[1]


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "garbage"},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": "ff" + PARENT[2:]},
        {"traceparent": PARENT + "-" + "x" * 4000},
        {"traceparent": PARENT.upper()},
        {"tracestate": "=," * 1000},
        {"baggage": "%%%=\xff," * 100},
        {"baggage": "a=" + "b" * 7000},
    ],
)
async def test_a_hostile_context_is_ignored(headers: dict[str, str], spans: Spans) -> None:
    async with traced(spans) as (service, witness):
        assert (await service.get("/", headers=headers)).status == 200
        await witness.next()
    (span,) = spans.servers
    assert span.parent is None


async def test_a_server_started_within_a_span_does_not_make_it_the_parent(spans: Spans) -> None:
    with spans.provider.get_tracer("test").start_as_current_span("start-up"):
        async with traced(spans) as (service, witness):
            await service.get("/")
            await witness.next()
    (span,) = spans.servers
    assert span.parent is None


async def test_excluded_paths_make_no_span(monkeypatch: pytest.MonkeyPatch, spans: Spans) -> None:
    monkeypatch.setenv("OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS", "^/$")
    async with traced(spans) as (service, witness):
        await service.get("/")
        exchange = await witness.next()
    assert spans.all == ()
    assert exchange.trace_id is None


# Operations


async def test_operations_nest_across_awaits_and_tasks(spans: Spans) -> None:
    async def inner() -> None:
        async with operation("inner", size=3) as span:
            span.set_attribute("found", True)

    async def handler(request: web.Request) -> web.Response:
        with operation("outer"):
            await asyncio.gather(inner())
        return web.Response()

    async with traced(spans, handler) as (service, witness):
        await service.get("/")
        await witness.next()
    outer, inside, server = spans.named("outer"), spans.named("inner"), spans.named("GET /")
    assert (outer.parent, inside.parent) == (ids(server), ids(outer))
    assert attributes(inside) == {"async.operation": "inner", "size": 3, "found": True}


async def test_an_operation_that_fails_says_so_and_lets_the_exception_through(spans: Spans) -> None:
    @operation("price")
    async def price() -> None:
        raise KeyError("lamp")

    async def handler(request: web.Request) -> web.Response:
        with pytest.raises(KeyError):
            await price()
        return web.Response()

    async with traced(spans, handler) as (service, witness):
        await service.get("/")
        await witness.next()
    span = spans.named("price")
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "KeyError"
    assert [event.name for event in span.events] == ["exception"]
    assert spans.named("GET /").status.status_code is StatusCode.UNSET


async def test_an_operation_in_a_generator_finalised_late_leaves_no_complaint(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    async def counting() -> AsyncIterator[int]:
        with operation("counting"):
            for number in range(10):
                yield number

    async def handler(request: web.Request) -> web.Response:
        numbers = counting()
        await numbers.__anext__()
        await asyncio.create_task(numbers.aclose())  # type: ignore[attr-defined]
        return web.Response()

    async with traced(spans, handler) as (service, witness):
        await service.get("/")
        await witness.next()
    assert spans.named("counting").end_time is not None
    assert [record.getMessage() for record in caplog.records if "context" in record.getMessage()] == []


async def test_an_operation_works_without_an_application() -> None:
    with operation("alone") as span:
        assert span is not None

    @operation("decorated")
    def add(one: int, other: int) -> int:
        return one + other

    assert add(1, 2) == 3


# Background work


@pytest.mark.parametrize("how", ["link", "child", "none"])
async def test_background_work_has_the_trace_it_was_asked_to(how: Any, spans: Spans) -> None:
    done = asyncio.Event()

    async def work() -> None:
        async with operation("work"):
            await asyncio.sleep(0)
        async with operation("more work"):
            done.set()

    async def handler(request: web.Request) -> web.Response:
        spawn(work(), trace=how)
        return web.Response()

    async with traced(spans, handler) as (service, witness):
        await service.get("/")
        await witness.next()
        await done.wait()
    server, work_, more = spans.named("GET /"), spans.named("work"), spans.named("more work")
    same_trace = ids(work_).trace_id == ids(server).trace_id
    assert same_trace == (how == "child")
    links = [link.context.span_id for link in work_.links]
    assert links == ([ids(server).span_id] if how == "link" else [])
    assert [link.context for link in more.links] == [link.context for link in work_.links]


# Where spans go


@asynccontextmanager
async def otlp_receiver(status: int = 200) -> AsyncIterator[tuple[str, list[Any]]]:
    """A real OTLP/HTTP receiver, on a loop of its own; it gives its endpoint and the spans it took."""
    received: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {item.key: item.value.string_value for item in resource.resource.attributes}
            received.extend((named, span) for scope in resource.scope_spans for span in scope.spans)
        return web.Response(status=status)

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    async with serving(app) as receiver:
        yield receiver.url(""), received


async def test_every_span_reaches_the_collector_by_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with otlp_receiver() as (endpoint, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "from the environment")
        app = web.Application()
        setup_observability(app, metrics=None, logs=None, tracing=Tracing(service_name="shop"))
        app.router.add_get("/", ok)
        async with serving(app) as service:
            for _ in range(700):
                await service.get("/")
    assert len({span.span_id for _, span in received}) == 700
    assert {named["service.name"] for named, _ in received} == {"shop"}
    assert {span.name for _, span in received} == {"GET /"}


async def test_what_a_collector_refuses_is_counted(
    monkeypatch: pytest.MonkeyPatch, registry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with otlp_receiver(status=400) as (endpoint, _):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        app = web.Application()
        setup_observability(app, metrics=Metrics(registry=registry), logs=None)
        app.router.add_get("/", ok)
        async with serving(app) as service:
            await service.get("/")
    assert registry.get_sample_value("aiohttp_observe_dropped_total", {"what": "spans"}) == 1


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("OTEL_TRACES_EXPORTER", "pigeon", "otlp, console or none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
    ],
)
def test_what_cannot_be_exported_to_is_told_at_set_up(
    variable: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=told):
        setup_observability(web.Application(), metrics=None)


def test_the_console_exporter_writes_spans_and_the_global_provider_is_respected() -> None:
    script = """
import asyncio, sys, aiohttp
from aiohttp import web
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from aiohttp_observe import setup_observability, OBSERVABILITY, Tracing

mode = sys.argv[1]
if mode == "global":
    trace.set_tracer_provider(TracerProvider())
app = web.Application()
state = setup_observability(app, metrics=None, logs=None, tracing=Tracing(set_global=mode == "set"))

async def handler(request):
    return web.Response()

app.router.add_get("/seen", handler)

async def main():
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        await (await session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/seen")).read()
    print("same", state.tracer.provider is trace.get_tracer_provider())
    await runner.cleanup()

asyncio.run(main())
"""
    console = run_python(script, "console", OTEL_TRACES_EXPORTER="console")
    assert (console.returncode, console.stderr) == (0, "")
    assert '"name": "GET /seen"' in console.stdout
    assert "same False" in console.stdout
    nothing = run_python(script, "none")
    assert (nothing.stdout, nothing.stderr) == ("same False\n", "")
    assert "same True" in run_python(script, "global").stdout
    assert "same True" in run_python(script, "set").stdout
