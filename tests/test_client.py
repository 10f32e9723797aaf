"""Outbound calls: spans, ids, durations and phases, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    CLIENT_SESSION,
    Client,
    Metrics,
    Tracing,
    client_session,
    client_trace_config,
    request_id,
    setup_observability,
)
from tests.service import Service, serving, until

DURATION = "http_client_request_duration_seconds"
PHASE = "http_client_phase_seconds_count"


class Pair:
    """A front service that calls a back service, both observed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.exporter = InMemorySpanExporter()
        self.back_exporter = InMemorySpanExporter()
        self.heard: list[dict[str, str]] = []
        self.front = web.Application()
        self.back = web.Application()
        self._set_up(self.front, Metrics(registry=registry), self.exporter)
        self._set_up(self.back, Metrics(registry=CollectorRegistry()), self.back_exporter)
        self.target = ""

    def _set_up(self, app: web.Application, metrics: Metrics, exporter: InMemorySpanExporter) -> None:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        setup_observability(app, metrics=metrics, logs=None, tracing=Tracing(provider=provider))

    @property
    def clients(self) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]

    async def the_client_span(self) -> ReadableSpan:
        await until(lambda: self.clients, "a client span")
        (span,) = self.clients
        return span

    def sample(self, name: str, **labels: str) -> float:
        """The sum over the series that have these labels."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@asynccontextmanager
async def serving_pair(registry: CollectorRegistry, call: Any) -> AsyncIterator[tuple[Pair, Service]]:
    """``call(pair, session)`` runs within each request to the front service's ``/``."""
    pair = Pair(registry)

    async def front(request: web.Request) -> web.Response:
        return web.Response(text=str(await call(pair, request.app[CLIENT_SESSION])))

    async def back(request: web.Request) -> web.Response:
        pair.heard.append(dict(request.headers))
        return web.Response(status=int(request.match_info["status"]), text="body")

    async def slow_body(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(3):
            await response.write(b"x" * 10)
            await asyncio.sleep(0.1)
        return response

    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound("/status/200")

    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"x")
        assert request.transport is not None
        request.transport.abort()
        return response

    pair.front.router.add_get("/", front)
    pair.back.router.add_get("/status/{status}", back)
    pair.back.router.add_get("/slow", slow_body)
    pair.back.router.add_get("/hang", hang)
    pair.back.router.add_get("/redirect", redirect)
    pair.back.router.add_get("/cut", cut)
    async with (
        serving(pair.back, handler_cancellation=True) as back_service,
        serving(pair.front) as front_service,
    ):
        pair.target = back_service.url("")
        yield pair, front_service


async def test_two_services_share_one_trace_and_request_id(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> str | None:
        async with session.get(f"{pair.target}/status/200") as response:
            await response.read()
        return request_id()

    async with serving_pair(registry, call) as (pair, service):
        answer = await service.get("/")
        await until(lambda: len(pair.exporter.get_finished_spans()) == 2, "two spans")
        await until(pair.back_exporter.get_finished_spans, "the other's span")
    (client,) = pair.clients
    (server,) = (span for span in pair.exporter.get_finished_spans() if span.kind is SpanKind.SERVER)
    (beyond,) = pair.back_exporter.get_finished_spans()
    assert client.parent == server.get_span_context()
    assert beyond.parent is not None
    assert client.context is not None
    assert beyond.parent.span_id == client.context.span_id
    assert {span.context and span.context.trace_id for span in (client, beyond)} == {client.context.trace_id}
    assert pair.heard[0]["X-Request-ID"] == answer.text == answer.request_id
    assert dict(client.attributes or {})["http.response.status_code"] == 200
    assert dict(client.attributes or {})["server.address"] == "127.0.0.1"


async def test_an_id_that_the_service_sends_itself_stays(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/status/200", headers={"X-Request-ID": "own"}) as response:
            await response.read()

    async with serving_pair(registry, call) as (pair, service):
        await service.get("/")
    assert pair.heard[0]["X-Request-ID"] == "own"


async def test_a_call_lasts_until_its_last_byte(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/slow") as response:
            async for _ in response.content.iter_any():
                pass

    async with serving_pair(registry, call) as (pair, service):
        await service.get("/")
        span = await pair.the_client_span()
    assert (span.end_time or 0) - (span.start_time or 0) >= 0.19e9
    assert pair.sample(f"{DURATION}_sum") >= 0.19
    assert pair.sample(f"{DURATION}_count", http_response_status_code="200") == 1


@pytest.mark.parametrize("status", [404, 503])
async def test_an_error_status_is_an_error_to_the_client(status: int, registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/status/{status}") as response:
            await response.read()

    async with serving_pair(registry, call) as (pair, service):
        await service.get("/")
        span = await pair.the_client_span()
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == str(status)
    assert (
        pair.sample(f"{DURATION}_count", http_response_status_code=str(status), error_type=str(status)) == 1
    )


async def test_redirects_are_one_call(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/redirect") as response:
            await response.read()

    async with serving_pair(registry, call) as (pair, service):
        await service.get("/")
        span = await pair.the_client_span()
    assert dict(span.attributes or {})["http.response.status_code"] == 200
    assert pair.sample(f"{DURATION}_count") == 1
    assert pair.sample(PHASE, phase="first_byte") == 2


async def test_a_refused_connection_is_told(registry: CollectorRegistry) -> None:
    port = unused_port()

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://127.0.0.1:{port}/")

    async with serving_pair(registry, call) as (pair, service):
        await service.get("/")
        span = await pair.the_client_span()
    assert span.status.status_code is StatusCode.ERROR
    assert pair.sample(f"{DURATION}_count", error_type="ClientConnectorError", server_port=str(port)) == 1


async def test_a_timeout_and_a_cancellation_are_told(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await session.get(f"{pair.target}/hang", timeout=aiohttp.ClientTimeout(total=0.1))
        waiting = asyncio.ensure_future(session.get(f"{pair.target}/hang"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    async with serving_pair(registry, call) as (pair, service):
        await service.get("/")
        await until(lambda: len(pair.clients) == 2, "two client spans")
    assert pair.sample(f"{DURATION}_count", error_type="TimeoutError") == 1
    assert pair.sample(f"{DURATION}_count", error_type="CancelledError") == 1


async def test_a_body_that_breaks_off_is_told(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/cut") as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    async with serving_pair(registry, call) as (pair, service):
        await service.get("/")
        await pair.the_client_span()
    assert pair.sample(f"{DURATION}_count", error_type="ClientPayloadError") == 1


async def test_waiting_for_a_pooled_connection_is_a_phase_of_its_own(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async def get(narrow: aiohttp.ClientSession) -> None:
            async with narrow.get(f"{pair.target}/slow") as response:
                await response.read()

        async with client_session(connector=aiohttp.TCPConnector(limit=1)) as narrow:
            await asyncio.gather(get(narrow), get(narrow))

    async with serving_pair(registry, call) as (pair, service):
        await service.get("/")
        await until(lambda: len(pair.clients) == 2, "two client spans")
    assert pair.sample(PHASE, phase="queue") == 1
    assert pair.sample("http_client_phase_seconds_sum", phase="queue") > 0.1
    assert pair.sample(PHASE, phase="connect") >= 1


async def test_looking_up_a_name_is_a_phase_of_its_own(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/status/200".replace("127.0.0.1", "localhost")) as response:
            await response.read()

    async with serving_pair(registry, call) as (pair, service):
        await service.get("/")
        await pair.the_client_span()
    assert pair.sample(PHASE, phase="dns", server_address="localhost") == 1


async def test_a_response_dropped_unread_gives_its_connection_back(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with client_session(connector=aiohttp.TCPConnector(limit=1)) as narrow:
            for _ in range(3):
                response = await narrow.get(f"{pair.target}/slow")
                response.close()
            response = await asyncio.wait_for(narrow.get(f"{pair.target}/status/200"), 10)
            response.release()

    async with serving_pair(registry, call) as (pair, service):
        assert (await service.get("/")).status == 200
        await until(lambda: len(pair.clients) == 4, "four client spans")
    assert pair.sample(f"{DURATION}_count") == 4


async def test_a_session_of_ones_own_can_be_observed(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        own = aiohttp.ClientSession(trace_configs=[client_trace_config(pair.front)])
        async with own, own.get(f"{pair.target}/status/200") as response:
            await response.read()

    async with serving_pair(registry, call) as (pair, service):
        await service.get("/")
        await pair.the_client_span()
    assert pair.sample(f"{DURATION}_count") == 1


async def test_with_the_official_instrumentor_there_is_one_client_span(registry: CollectorRegistry) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with (
            client_session() as instrumented,
            instrumented.get(f"{pair.target}/status/200") as response,
        ):
            await response.read()

    async with serving_pair(registry, call) as (pair, service):
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(pair.exporter))
        AioHttpClientInstrumentor().instrument(tracer_provider=provider)
        try:
            await service.get("/")
            await until(lambda: pair.clients, "the client span")
        finally:
            AioHttpClientInstrumentor().uninstrument()
        assert len(pair.clients) == 1
    assert pair.sample(f"{DURATION}_count") == 1


async def test_hosts_beyond_the_limit_are_one(registry: CollectorRegistry) -> None:
    ports = [unused_port() for _ in range(2)]
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry, max_hosts=2), logs=None)

    async def scan(request: web.Request) -> web.Response:
        for host in range(1, 20):
            for port in ports:
                with pytest.raises(aiohttp.ClientConnectorError):
                    await request.app[CLIENT_SESSION].get(f"http://127.0.0.{host}:{port}/")
        return web.Response()

    app.router.add_get("/", scan)
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
    hosts = {
        (sample.labels["server_address"], sample.labels["server_port"])
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"{DURATION}_count"
    }
    assert {host for host, _ in hosts} == {"127.0.0.1", "127.0.0.2", "_other"}
    assert ("_other", "") in hosts


async def test_the_shared_session_is_closed_at_clean_up(registry: CollectorRegistry) -> None:
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), logs=None)
    async with serving(app):
        session = app[CLIENT_SESSION]
        assert not session.closed
    assert session.closed


async def test_the_shared_session_can_be_left_out(registry: CollectorRegistry) -> None:
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), logs=None, client=Client(session=False))
    async with serving(app):
        assert CLIENT_SESSION not in app


def test_a_session_for_an_application_without_observability_is_refused() -> None:
    with pytest.raises(RuntimeError, match="setup_observability"):
        client_trace_config(web.Application())
