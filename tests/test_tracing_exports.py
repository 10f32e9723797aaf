"""Where spans go: as the ``OTEL_*`` variables say, to the service's own provider, or nowhere."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import threading
import warnings
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import pytest
from aiohttp import web
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    OBSERVABILITY,
    Exchange,
    Metrics,
    Tracing,
    operation,
    setup_observability,
)
from aiohttp_observe.tracing.provider import Batches
from tests.otlp import ReceivedSpan, Receiver, receiving, receiving_in_thread
from tests.service import Service, Witness, run_python, serving, until
from tests.spans import Spans, ok

SCRIPT = """
import asyncio, json, sys
import aiohttp
from aiohttp import web
from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from aiohttp_observe import OBSERVABILITY, Tracing, setup_observability

how = sys.argv[1] if len(sys.argv) > 1 else ""

def set_provider():
    provider = TracerProvider()
    console = ConsoleSpanExporter(formatter=lambda span: span.name + "\\n")
    provider.add_span_processor(SimpleSpanProcessor(console))
    trace.set_tracer_provider(provider)

async def hello(request):
    headers = {}
    inject(headers)
    with trace.get_tracer("theirs").start_as_current_span("their own"):
        return web.json_response(headers)

async def started(app):
    if how == "at start-up":
        set_provider()
    yield

if how == "before":
    set_provider()
app = web.Application()
app.router.add_get("/hello", hello)
setup_observability(app, metrics=None, logs=None, tracing=Tracing(set_global=how == "set_global"))
app.cleanup_ctx.insert(0, started)

async def main():
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hello"
    headers = dict(pair.split("=", 1) for pair in sys.argv[2:])
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        print("headers", json.dumps(await response.json()))
    print("global", app[OBSERVABILITY].tracer.provider is trace.get_tracer_provider())
    await runner.cleanup()

asyncio.run(main())
"""
"""A service that answers one request; its arguments say who sets the global provider, and headers to send."""


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables of whoever runs the tests."""
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@asynccontextmanager
async def exporting(
    registry: CollectorRegistry | None = None, **tracing: Any
) -> AsyncIterator[tuple[Service, Witness]]:
    """A service traced as the environment says."""
    witness, app = Witness(), web.Application()
    app.router.add_get("/", ok)
    metrics = None if registry is None else Metrics(registry=registry)
    setup_observability(app, tracing=Tracing(**tracing), metrics=metrics, logs=None, observers=[witness])
    async with serving(app) as service:
        yield service, witness


async def one_request(**tracing: Any) -> Exchange:
    async with exporting(**tracing) as (service, witness):
        await service.get("/")
        return await witness.next()


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    """A collector that ``OTEL_EXPORTER_OTLP_ENDPOINT`` leads to."""
    async with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


# To a collector


async def test_an_endpoint_alone_is_enough(collector: Receiver) -> None:
    exchange = await one_request()
    (span,) = collector.spans
    assert (span.name, span.kind, span.status, span.parent_id) == ("GET /", "SERVER", "UNSET", "")
    assert (span.trace_id, span.span_id) == (exchange.trace_id, exchange.span_id)
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["http.route"] == "/"


async def test_the_endpoint_of_traces_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{receiver.endpoint}/v1/traces")
        await one_request()
    assert len(receiver.spans) == 1


async def test_every_span_reaches_the_collector_by_clean_up(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    async with exporting(registry) as (service, witness):
        sent = set()
        for _ in range(300):
            await service.get("/")
            sent.add((await witness.next()).span_id)
    assert {span.span_id for span in collector.spans} == sent
    assert len(collector.spans) == len(sent) == 300
    assert collector.requests >= 5
    assert registry.get_sample_value("aiohttp_observe_dropped_total", {"what": "spans"}) is None


async def test_headers_and_compression_are_as_asked(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=acme")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    await one_request()
    assert len(collector.spans) == 1
    sent = {name.lower(): value for name, value in collector.headers.items()}
    assert (sent["x-tenant"], sent["content-encoding"]) == ("acme", "gzip")


async def test_all_kinds_of_spans_go_there(collector: Receiver) -> None:
    async def handler(request: web.Request) -> web.Response:
        with operation("price"):
            raise LookupError("lamp")

    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app, metrics=None, logs=None)
    async with serving(app) as service:
        await service.get("/")
    spans: dict[str, ReceivedSpan] = {span.name: span for span in collector.spans}
    server, price = spans["GET /"], spans["price"]
    assert (price.kind, price.parent_id) == ("INTERNAL", server.span_id)
    assert (server.status, server.events, price.events) == ("ERROR", ("exception",), ("exception",))


async def test_a_span_may_end_while_another_is_taken(collector: Receiver) -> None:
    """The garbage collector may close a generator anywhere: here in the midst of the queue's own work."""

    def generate() -> Iterator[None]:
        with operation("left alone"):
            yield

    class Collecting(deque[Any]):
        def appendleft(self, span: Any) -> None:
            left_alone.clear()
            super().appendleft(span)

    left_alone: list[Iterator[None]] = []

    async def handler(request: web.Request) -> web.Response:
        (batches,) = [
            each for each in tracer.provider._active_span_processor._span_processors if type(each) is Batches
        ]
        batches._batch_processor._queue = Collecting(maxlen=100)
        left_alone.append(generate())
        next(left_alone[0])
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app, metrics=None, logs=None)
    tracer: Any = app[OBSERVABILITY].tracer
    async with serving(app) as service:
        await service.get("/")
    assert {span.name for span in collector.spans} == {"left alone", "GET /"}


async def test_what_a_span_says_of_an_exception_is_bounded_and_can_be_sent(collector: Receiver) -> None:
    async def handler(request: web.Request) -> web.Response:
        with operation("lookup \udcff" + "x" * 1000):
            raise LookupError(request.headers["X-Name"] + "x" * 1_000_000)

    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app, metrics=None, logs=None)
    async with serving(app) as service:
        await service.exchange_bytes(
            b"GET / HTTP/1.1\r\nHost: a\r\nX-Name: \xff\r\nConnection: close\r\n\r\n"
        )
    lookup, server = collector.spans
    assert lookup.name.startswith("lookup ?xxx")
    assert len(lookup.name) < 300
    for span in lookup, server:
        (told,) = span.event_attributes
        assert told["exception.message"].startswith("\\udcffxxx")
        assert "characters cut]" in told["exception.message"]
        assert len(told["exception.message"]) + len(told["exception.stacktrace"]) < 100_000


@pytest.mark.parametrize("status", [429, 500])
async def test_what_a_collector_has_no_time_for_is_counted(
    status: int, collector: Receiver, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_observe.tracing.provider._EXPORT_SECONDS", 0.2)
    collector.status = status
    async with exporting(registry) as (service, _):
        await service.get("/")
    assert registry.get_sample_value("aiohttp_observe_dropped_total", {"what": "spans"}) == 1


async def test_what_a_collector_refuses_is_counted(
    collector: Receiver, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = 400
    async with exporting(registry) as (service, _):
        for _ in range(3):
            assert (await service.get("/")).status == 200
    assert collector.requests >= 1
    assert registry.get_sample_value("aiohttp_observe_dropped_total", {"what": "spans"}) == 3
    assert any("Failed to export" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("down", ["refused", "unavailable"])
async def test_a_collector_that_is_down_holds_up_no_clean_up(
    down: str, collector: Receiver, monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry
) -> None:
    """The exporter would retry for ten seconds a batch, in a thread that the process waits for."""
    monkeypatch.setattr("aiohttp_observe.tracing.provider._EXPORT_SECONDS", 0.2)
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    collector.status = 503
    if down == "refused":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    async with exporting(registry) as (service, _):
        for _ in range(5):
            await service.get("/")
    assert registry.get_sample_value("aiohttp_observe_dropped_total", {"what": "spans"}) == 5
    exporters = [thread for thread in threading.enumerate() if "SpanProcessor" in thread.name]
    for thread in exporters:
        thread.join(20)
        assert not thread.is_alive()


async def test_what_a_collector_that_hangs_has_not_answered_is_counted_by_clean_up(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry
) -> None:
    """Once: neither is it left out, nor counted again when the exporter has waited long enough."""
    monkeypatch.setattr("aiohttp_observe.tracing.provider._EXPORT_SECONDS", 0.2)
    monkeypatch.setattr("aiohttp_observe.tracing.provider._ABORT_SECONDS", 0.2)
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    collector.answers.clear()
    async with exporting(registry) as (service, _):
        exporters = [thread for thread in threading.enumerate() if "SpanProcessor" in thread.name]
        await asyncio.gather(*(service.get("/") for _ in range(7)))
        await until(lambda: collector.requests, "the first batch")
    assert registry.get_sample_value("aiohttp_observe_dropped_total", {"what": "spans"}) == 7
    collector.status = 500
    collector.answers.set()
    await until(lambda: not any(thread.is_alive() for thread in exporters), "the exporter's end")
    assert registry.get_sample_value("aiohttp_observe_dropped_total", {"what": "spans"}) == 7


async def test_what_finds_the_queue_full_is_counted(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry
) -> None:
    """Sent is received or counted as dropped, whatever a collector that doesn't answer does to the queue."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    collector.answers.clear()
    async with exporting(registry) as (service, _):
        await asyncio.gather(*(service.get("/") for _ in range(4)))
        await until(lambda: collector.requests, "the first batch")  # now the exporter hangs
        await asyncio.gather(*(service.get("/") for _ in range(20)))
        dropped = registry.get_sample_value("aiohttp_observe_dropped_total", {"what": "spans"})
        collector.answers.set()
    assert dropped == 16
    assert len(collector.spans) == 8


@pytest.mark.parametrize("mode", ["", "set_global"])
def test_a_collector_that_hangs_does_not_keep_the_process(mode: str) -> None:
    with receiving_in_thread() as receiver:
        receiver.answers.clear()
        begun = perf_counter()
        done = run_python(SCRIPT, *filter(None, [mode]), OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
        seconds = perf_counter() - begun
        receiver.answers.set()
    assert done.returncode == 0
    assert seconds < 25  # the SDK alone: 30 and more


def test_a_process_of_its_own_exports_before_it_ends() -> None:
    with receiving_in_thread() as receiver:
        done = run_python(SCRIPT, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert [span.name for span in receiver.spans] == ["GET /hello"]


# What is sampled, and what it is called


@pytest.mark.parametrize(
    ("sampler", "argument", "sampled"),
    [
        ("always_on", "", True),
        ("always_off", "", False),
        ("traceidratio", "1.0", True),
        ("traceidratio", "0", False),
        ("parentbased_traceidratio", "0", False),
    ],
)
async def test_the_sampler_is_that_of_the_environment(
    sampler: str, argument: str, sampled: bool, collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    exchange = await one_request()
    assert exchange.sampled == sampled
    assert len(collector.spans) == sampled
    assert exchange.trace_id is not None


async def test_a_ratio_is_kept(collector: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """By trace id, as every service of a trace decides alike."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    async with exporting() as (service, _):
        for number in range(10):
            trace_id = f"{'8' if number % 2 else '7'}" * 32
            await service.get("/", headers={"traceparent": f"00-{trace_id}-{'1' * 16}-00"})
    assert {span.trace_id for span in collector.spans} == {"7" * 32}
    assert len(collector.spans) == 5


async def test_the_resource_is_that_of_the_environment(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other")
    await one_request()
    resource = collector.spans[0].resource
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("shop", "test")


async def test_an_explicit_service_name_wins(collector: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from the environment")
    await one_request(service_name="explicit")
    assert collector.spans[0].resource["service.name"] == "explicit"


async def test_two_applications_are_two_services(collector: Receiver) -> None:
    async with exporting(service_name="shop") as (shop, _), exporting(service_name="stock") as (stock, _):
        await shop.get("/")
        await stock.get("/")
    assert sorted(span.resource["service.name"] for span in collector.spans) == ["shop", "stock"]


@pytest.mark.parametrize(
    ("propagators", "arriving", "leaving"),
    [
        ("", f"traceparent=00-{'a' * 32}-{'b' * 16}-01", {"traceparent"}),
        ("tracecontext,baggage", "baggage=tenant=acme", {"traceparent", "baggage"}),
        ("baggage", "baggage=tenant=acme", {"baggage"}),
        ("none", f"traceparent=00-{'a' * 32}-{'b' * 16}-01", set()),
    ],
)
def test_the_propagators_are_those_of_the_environment(
    propagators: str, arriving: str, leaving: set[str]
) -> None:
    environment = {"OTEL_PROPAGATORS": propagators} if propagators else {}
    with receiving_in_thread() as receiver:
        done = run_python(SCRIPT, "", arriving, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    sent = json.loads(done.stdout.splitlines()[0].removeprefix("headers "))
    assert sent.keys() == leaving
    (span,) = receiver.spans
    continued = arriving.startswith("traceparent") and propagators != "none"
    assert (span.trace_id == "a" * 32) == continued


# Elsewhere, and nowhere


def test_the_console_has_the_spans() -> None:
    done = run_python(SCRIPT, OTEL_TRACES_EXPORTER="console")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"name": "GET /hello"' in done.stdout
    assert "global False" in done.stdout


def test_there_can_be_several_exporters() -> None:
    with receiving_in_thread() as receiver:
        done = run_python(
            SCRIPT, OTEL_TRACES_EXPORTER="console, otlp", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"name": "GET /hello"' in done.stdout
    assert len(receiver.spans) == 1


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The addresses that anything in this process connects to."""
    seen: list[Any] = []
    looking = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if looking and event == "socket.connect":
            seen.append(arguments[1])

    sys.addaudithook(hook)
    yield seen
    looking = False


@pytest.mark.parametrize("exporter", [None, "none", ""])
async def test_by_default_nothing_leaves_the_process(
    exporter: str | None, connections: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if exporter is not None:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    async with exporting() as (service, witness):
        await service.get("/")
        assert (await witness.next()).trace_id is not None
        port = service.port
    assert connections == [("127.0.0.1", port)]
    assert not [thread for thread in threading.enumerate() if "SpanProcessor" in thread.name]


async def test_none_wins_over_an_endpoint(collector: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    await one_request()
    assert collector.requests == 0


async def test_a_disabled_sdk_traces_nothing(collector: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert (await one_request()).trace_id is None
    assert collector.requests == 0


# Providers of the service's own


@pytest.mark.parametrize("when", ["before", "at start-up"])
def test_the_global_provider_is_used_if_the_service_has_set_one(when: str) -> None:
    with receiving_in_thread() as receiver:
        done = run_python(SCRIPT, when, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert "global True" in said
    assert {"their own", "GET /hello"} <= set(said)
    assert receiver.requests == 0


def test_a_provider_built_here_stays_out_of_the_global_place() -> None:
    done = run_python(SCRIPT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "global False" in done.stdout


def test_on_wish_it_becomes_the_global_one() -> None:
    with receiving_in_thread() as receiver:
        done = run_python(SCRIPT, "set_global", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert "global True" in done.stdout
    spans = {span.name: span for span in receiver.spans}
    assert spans["their own"].parent_id == spans["GET /hello"].span_id


async def test_a_given_provider_is_used_and_left_running(collector: Receiver) -> None:
    spans = Spans()
    for _ in range(2):
        await one_request(provider=spans.provider)
    assert len(spans.all) == 2
    assert collector.requests == 0
    with spans.provider.get_tracer("still").start_as_current_span("running"):
        pass
    assert len(spans.all) == 3


async def test_a_provider_of_ones_own_may_export_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What we couldn't build is no mistake where we need not."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    spans = Spans()
    await one_request(provider=spans.provider)
    assert len(spans.all) == 1


def test_the_global_provider_too_may_export_as_it_likes() -> None:
    done = run_python(SCRIPT, "before", OTEL_TRACES_EXPORTER="otlp", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert (done.returncode, done.stderr) == (0, "")
    assert "GET /hello" in done.stdout.splitlines()


# Mistakes


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "pigeon"}, "takes otlp, console or none, got 'pigeon'"),
        ({"OTEL_TRACES_EXPORTER": "otlp,"}, "takes otlp, console or none, got ''"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc isn't built in: use http/protobuf",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            "http/json isn't built in: use http/protobuf",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT takes a URL such as 'http://localhost:4318', got 'localhost:4318'",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_MAX_QUEUE_SIZE": "0"},
            "OTEL_BSP_MAX_QUEUE_SIZE takes a whole number above 0, got '0'",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "5s"},
            "OTEL_BSP_SCHEDULE_DELAY takes a whole number above 0, got '5s'",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_MAX_QUEUE_SIZE": "100"},
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE takes at most OTEL_BSP_MAX_QUEUE_SIZE, which is 100, got 512",
        ),
    ],
)
def test_what_cannot_be_honoured_is_told_at_set_up(
    environment: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app = web.Application()
    with pytest.raises(ValueError, match="OTEL_") as raised:
        setup_observability(app, metrics=None)
    assert told in str(raised.value)
    assert OBSERVABILITY not in app


def test_a_missing_exporter_is_told_with_what_to_install() -> None:
    done = run_python(
        """
import sys
sys.modules["opentelemetry.exporter"] = None
from aiohttp import web
from aiohttp_observe import setup_observability
setup_observability(web.Application())
""",
        OTEL_TRACES_EXPORTER="otlp",
    )
    assert done.returncode == 1
    assert "pip install 'aiohttp-observe[otlp]'" in done.stderr.splitlines()[-1]


# What stays as it was


async def test_warnings_filters_and_the_global_provider_stay_as_they_were(collector: Receiver) -> None:
    filters, provider = list(warnings.filters), trace.get_tracer_provider()
    await one_request()
    assert list(warnings.filters) == filters
    assert trace.get_tracer_provider() is provider
    assert not [thread for thread in threading.enumerate() if "SpanProcessor" in thread.name]


async def test_the_exporters_own_requests_are_not_spans(
    collector: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await one_request()
    assert [span.name for span in collector.spans] == ["GET /"]
    assert caplog.records == []
