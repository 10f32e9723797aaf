"""Outbound calls: one span each, the ids sent along, durations to the last byte, and phases."""

from __future__ import annotations

import asyncio
import copy
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientHandlerType, web
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from yarl import URL

from aiohttp_observe import (
    CLIENT_SESSION,
    Client,
    Metrics,
    Tracing,
    client_session,
    client_trace_config,
    operation,
    request_id,
    setup_observability,
)
from tests.calls import DURATION, PHASES, Pair, call_once, fetch, serving_pair
from tests.service import PATIENCE, free_port, serving
from tests.spans import Deciding, Spans, attributes, ids

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

BRIEFLY = 0.4
"""Seconds: for the headers of a response to arrive in on a busy machine, but not for more."""


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def pair(registry: CollectorRegistry, spans: Spans) -> Pair:
    return Pair(registry, spans)


# One trace, one request id


async def test_two_services_share_one_trace_and_request_id(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> str | None:
        await fetch(pair, session)
        return request_id()

    async with serving_pair(pair, call) as service:
        answer = await service.get("/")
    (client,), (server,), (beyond,) = pair.spans.clients, pair.spans.servers, pair.back_spans.servers
    assert client.parent == ids(server)
    assert beyond.parent is not None
    assert beyond.parent.span_id == ids(client).span_id
    assert ids(server).trace_id == ids(client).trace_id == ids(beyond).trace_id
    assert pair.heard[0]["X-Request-ID"] == answer.text == answer.request_id
    assert pair.heard[0]["traceparent"].split("-")[2] == f"{ids(client).span_id:016x}"


async def test_the_span_follows_the_conventions(pair: Pair) -> None:
    await call_once(pair, fetch)
    span = await pair.the_span()
    said = attributes(span)
    assert span.name == "GET"
    assert said["http.request.method"] == "GET"
    assert said["url.full"] == f"{pair.target}/status/200"
    assert (said["server.address"], said["server.port"]) == ("127.0.0.1", int(pair.target.rpartition(":")[2]))
    assert said["http.response.status_code"] == 200
    assert span.status.status_code is StatusCode.UNSET


async def test_a_call_within_an_operation_is_under_it(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with operation("stock"):
            await fetch(pair, session)

    await call_once(pair, call)
    assert (await pair.the_span()).parent == ids(pair.spans.named("stock"))


async def test_a_call_leaves_the_current_span_as_it_was(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        await fetch(pair, session)
        with suppress(aiohttp.ClientError):
            await session.get(f"http://127.0.0.1:{free_port()}/")
        with operation("after"):
            pass

    await call_once(pair, call)
    assert pair.spans.named("after").parent == ids(pair.spans.servers[0])


async def test_what_a_middleware_leaves_behind_does_not_keep_a_call_current(pair: Pair) -> None:
    async def litter(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
        context_api.attach(baggage.set_baggage("tenant", "acme"))
        return await handler(request)

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/status/200", middlewares=[litter]):
            pass
        with operation("after"):
            pass

    await call_once(pair, call)
    assert pair.spans.named("after").parent == ids(pair.spans.servers[0])


async def test_tracestate_and_baggage_go_on(pair: Pair) -> None:
    headers = {"traceparent": PARENT, "tracestate": "vendor=1", "baggage": "tenant=acme"}
    async with serving_pair(pair, fetch) as service:
        await service.get("/", headers=headers)
    assert pair.heard[0]["traceparent"].split("-")[1] == PARENT.split("-")[1]
    assert (pair.heard[0]["tracestate"], pair.heard[0]["baggage"]) == ("vendor=1", "tenant=acme")


async def test_an_unsampled_trace_stays_so_beyond(registry: CollectorRegistry) -> None:
    pair = Pair(registry, Spans(sampler=ALWAYS_OFF))
    await call_once(pair, fetch)
    flags = int(pair.heard[0]["traceparent"].rpartition("-")[2], 16)
    assert not flags & TraceFlags.SAMPLED
    assert (pair.spans.all, pair.back_spans.all) == ((), ())
    assert pair.counted() == 1


async def test_an_id_that_the_service_sends_itself_stays(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        headers = {"x-request-id": "own"}
        async with session.get(f"{pair.target}/status/200", headers=headers) as response:
            assert response.headers["X-Request-ID"] == "own"

    await call_once(pair, call)
    sent = {name.lower(): value for name, value in pair.heard[0].items()}
    assert sent["x-request-id"] == "own"


async def test_the_request_id_can_be_kept_back(registry: CollectorRegistry) -> None:
    pair = Pair(CollectorRegistry(), Spans())
    app = web.Application()

    async def call(request: web.Request) -> web.Response:
        return web.Response(text=await fetch(pair, request.app[CLIENT_SESSION]))

    app.router.add_get("/", call)
    metrics = Metrics(registry=registry)
    setup_observability(app, metrics=metrics, logs=None, client=Client(send_request_id=False))
    async with serving(pair.back) as back, serving(app) as service:
        pair.target = back.url("")
        await service.get("/")
    assert "X-Request-ID" not in pair.heard[0]
    assert "traceparent" in pair.heard[0]


async def test_outside_of_requests_there_is_no_request_id_but_a_trace(pair: Pair) -> None:
    async with serving_pair(pair, fetch):
        await fetch(pair, pair.front[CLIENT_SESSION])
    assert "X-Request-ID" not in pair.heard[0]
    assert (await pair.the_span()).parent is None
    assert pair.counted() == 1


# To the last byte


async def test_a_call_lasts_until_its_last_byte(pair: Pair) -> None:
    open_after_headers = []

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/two-parts") as response:
            assert await response.content.readexactly(5) == b"first"
            await asyncio.sleep(0.05)
            open_after_headers.append((pair.spans.clients, pair.counted()))
            pair.goes_on.set()
            assert await response.read() == b"last"

    await call_once(pair, call)
    span = await pair.the_span()
    assert open_after_headers == [([], 0)]
    assert pair.counted(http_response_status_code="200", error_type="") == 1
    assert pair.sample(f"{DURATION}_sum") >= 0.05
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time >= 0.05e9


async def test_a_response_without_a_body_ends_at_its_headers(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.head(f"{pair.target}/status/200"):
            assert pair.counted(http_request_method="HEAD") == 1

    await call_once(pair, call)
    await pair.the_span()


@pytest.mark.parametrize("status", [404, 503])
async def test_an_error_status_is_an_error_to_the_client(status: int, pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/status/{status}") as response:
            await response.read()

    await call_once(pair, call)
    span = await pair.the_span()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == str(status)
    assert pair.counted(http_response_status_code=str(status), error_type=str(status)) == 1


async def test_an_error_status_that_is_raised_is_still_told(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientResponseError):
            await session.get(f"{pair.target}/status/503", raise_for_status=True)

    await call_once(pair, call)
    said = attributes(await pair.the_span())
    assert (said["http.response.status_code"], said["error.type"]) == (503, "ClientResponseError")
    assert pair.counted() == pair.counted(http_response_status_code="503") == 1


async def test_redirects_are_one_call(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/redirect/3") as response:
            await response.read()

    await call_once(pair, call)
    assert attributes(await pair.the_span())["http.response.status_code"] == 200
    assert pair.counted() == pair.counted(http_response_status_code="200") == 1
    assert pair.phases()["first_byte"] == 4
    assert len({sent["X-Request-ID"] for sent in pair.heard}) == 1
    assert len({sent["traceparent"] for sent in pair.heard}) == 1


async def test_a_websocket_lasts_as_long_as_it(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(f"{pair.target}/socket") as socket:
            await socket.send_str("hello")
            assert (await socket.receive(PATIENCE)).data == "hello"
            assert (pair.spans.clients, pair.counted()) == ([], 0)

    await call_once(pair, call)
    assert attributes(await pair.the_span())["http.response.status_code"] == 101
    assert pair.counted(http_response_status_code="101", error_type="") == 1


# What goes wrong


async def run_out_of_time(session: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(asyncio.TimeoutError):
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=BRIEFLY)) as response:
            await response.read()


async def run_out_of_time_while_reading_pieces(session: aiohttp.ClientSession, url: str) -> None:
    async def read() -> None:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=BRIEFLY)) as response:
            async for _ in response.content:
                pass

    with pytest.raises(asyncio.TimeoutError):
        await read()


async def run_out_of_the_callers_time(session: aiohttp.ClientSession, url: str) -> None:
    async def read() -> None:
        async with session.get(url) as response:
            await response.read()

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(read(), BRIEFLY)


async def wait_too_long_for_a_byte(session: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(asyncio.TimeoutError):
        async with session.get(url, timeout=aiohttp.ClientTimeout(sock_read=BRIEFLY)) as response:
            await response.read()


async def be_cancelled(session: aiohttp.ClientSession, url: str) -> None:
    async def read() -> None:
        async with session.get(url) as response:
            begun.set()
            await response.read()

    begun = asyncio.Event()
    task = asyncio.create_task(read())
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(begun.wait(), BRIEFLY)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("path", ["/never", "/endless"])
@pytest.mark.parametrize(
    ("give_up", "error"),
    [
        (run_out_of_time, "TimeoutError"),
        (run_out_of_time_while_reading_pieces, "TimeoutError"),
        (run_out_of_the_callers_time, "CancelledError"),
        (wait_too_long_for_a_byte, "SocketTimeoutError"),
        (be_cancelled, "CancelledError"),
    ],
)
async def test_timeouts_and_cancellations_are_told_before_and_within_the_body(
    give_up: Callable[[aiohttp.ClientSession, str], Awaitable[None]], error: str, path: str, pair: Pair
) -> None:
    await call_once(pair, lambda pair, session: give_up(session, f"{pair.target}{path}"))
    span = await pair.the_span()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == error
    assert pair.counted() == pair.counted(error_type=error) == 1
    status = "200" if path == "/endless" else ""
    assert pair.counted(http_response_status_code=status) == 1


async def test_a_body_that_breaks_off_is_told(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/cut") as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    await call_once(pair, call)
    span = await pair.the_span()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "ClientPayloadError"
    assert pair.counted() == pair.counted(error_type="ClientPayloadError") == 1


async def leave_it_unread(response: aiohttp.ClientResponse) -> None:
    pass


async def close_it(response: aiohttp.ClientResponse) -> None:
    response.close()


async def read_some_of_it(response: aiohttp.ClientResponse) -> None:
    assert await response.content.readexactly(5) == b"first"


@pytest.mark.parametrize("end", [leave_it_unread, close_it, read_some_of_it])
async def test_a_caller_that_needs_no_more_is_no_error(
    end: Callable[[aiohttp.ClientResponse], Awaitable[None]], pair: Pair
) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/endless") as response:
            await end(response)

    await call_once(pair, call)
    span = await pair.the_span()
    assert (span.status.status_code, attributes(span).get("error.type")) == (StatusCode.UNSET, None)
    assert pair.counted() == pair.counted(http_response_status_code="200", error_type="") == 1


async def test_what_the_callers_code_raises_is_not_blamed_on_the_call(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(ValueError, match="not what we wanted"):
            async with session.get(f"{pair.target}/endless"):
                raise ValueError("not what we wanted")

    await call_once(pair, call)
    assert pair.counted() == pair.counted(error_type="") == 1


async def test_a_second_try_is_not_blamed_for_the_first(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        try:
            raise asyncio.TimeoutError
        except asyncio.TimeoutError:
            async with session.get(f"{pair.target}/endless"):
                pass

    await call_once(pair, call)
    assert pair.counted() == pair.counted(error_type="") == 1


async def test_a_response_that_was_held_meanwhile_is_not_blamed_for_another_calls_timeout(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(asyncio.TimeoutError):
            async with session.get(f"{pair.target}/endless"):
                await session.get(f"{pair.target}/never", timeout=aiohttp.ClientTimeout(total=0.05))

    await call_once(pair, call)
    assert pair.counted(error_type="TimeoutError", http_response_status_code="") == 1
    assert pair.counted(error_type="", http_response_status_code="200") == 1


@pytest.mark.parametrize("error", [asyncio.TimeoutError, asyncio.CancelledError])
async def test_a_caller_that_is_interrupted_elsewhere_breaks_no_call(
    error: type[BaseException], pair: Pair
) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(error):
            async with session.get(f"{pair.target}/endless"):
                raise error

    await call_once(pair, call)
    assert pair.counted() == pair.counted(error_type="") == 1


async def test_a_timeout_around_a_part_of_the_body_is_told(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(asyncio.TimeoutError):
            async with session.get(f"{pair.target}/endless") as response:
                await asyncio.wait_for(response.content.read(), 0.05)

    await call_once(pair, call)
    assert pair.counted() == pair.counted(error_type="TimeoutError", http_response_status_code="200") == 1


async def test_a_provider_that_fails_costs_no_call(registry: CollectorRegistry) -> None:
    class Broken(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            raise ZeroDivisionError

        def get_description(self) -> str:
            return "Broken"

    pair = Pair(registry, Spans(sampler=Broken()))
    async with serving_pair(pair, fetch) as service:
        assert (await service.get("/")).text == "body"
    assert pair.sample("aiohttp_observe_internal_errors_total", observer="client") >= 1


async def test_a_propagator_that_fails_costs_no_span(pair: Pair) -> None:
    class Broken(TextMapPropagator):
        @property
        def fields(self) -> set[str]:
            return set()

        def extract(self, carrier: Any, context: Context | None = None, *args: Any, **kwargs: Any) -> Context:
            return context or Context()

        def inject(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    usual = propagate.get_global_textmap()
    propagate.set_global_textmap(Broken())
    try:
        await call_once(pair, fetch)
    finally:
        propagate.set_global_textmap(usual)
    assert attributes(await pair.the_span())["http.response.status_code"] == 200
    assert pair.sample("aiohttp_observe_internal_errors_total", observer="client") == 1


# Connections


async def test_a_response_that_is_never_read_gives_its_connection_back(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with client_session(pair.front, connector=aiohttp.TCPConnector(limit=1)) as narrow:
            for _ in range(3):
                response = await narrow.get(f"{pair.target}/endless")
                response.close()
            for _ in range(3):
                await narrow.get(f"{pair.target}/status/200")
                gc.collect()
            assert await asyncio.wait_for(fetch(pair, narrow), PATIENCE) == "body"

    await call_once(pair, call)
    assert pair.counted() == len(pair.spans.clients) == 7


async def test_a_call_keeps_no_response_alive(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/status/200") as response:
            await response.read()
        gone = weakref.ref(response)
        del response
        gc.collect()
        assert gone() is None

    await call_once(pair, call)


# Phases


async def test_a_new_connection_has_its_phases_and_a_kept_one_has_not(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        await fetch(pair, session)
        assert pair.phases() == {"connect": 1, "first_byte": 1}
        await fetch(pair, session)

    await call_once(pair, call)
    assert pair.phases() == {"connect": 1, "first_byte": 2}


async def test_looking_up_a_name_is_a_phase_of_its_own(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        url = f"{pair.target}/status/200".replace("127.0.0.1", "localhost")
        async with session.get(url) as response:
            await response.read()

    await call_once(pair, call)
    assert pair.phases() == {"dns": 1, "connect": 1, "first_byte": 1}
    assert pair.sample(f"{PHASES}_count", server_address="localhost") == 3
    assert pair.sample(f"{PHASES}_sum") <= pair.sample(f"{DURATION}_sum")


async def test_waiting_for_a_pooled_connection_is_a_phase_of_its_own(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with client_session(pair.front, connector=aiohttp.TCPConnector(limit=1)) as narrow:
            response = await narrow.get(f"{pair.target}/two-parts")
            second = asyncio.create_task(fetch(pair, narrow))
            await asyncio.sleep(0.05)
            pair.goes_on.set()
            await response.read()
            await second

    await call_once(pair, call)
    assert pair.phases()["queue"] == 1
    assert pair.sample(f"{PHASES}_sum", phase="queue") >= 0.04


async def test_waiting_in_vain_for_a_connection_is_in_that_phase_too(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with client_session(pair.front, connector=aiohttp.TCPConnector(limit=1)) as narrow:
            response = await narrow.get(f"{pair.target}/endless")
            with pytest.raises(asyncio.TimeoutError):
                await narrow.get(f"{pair.target}/status/200", timeout=aiohttp.ClientTimeout(total=0.1))
            response.close()

    await call_once(pair, call)
    assert pair.phases()["queue"] == 1
    assert pair.sample(f"{PHASES}_sum", phase="queue") >= 0.09


# Metrics and traces together


async def test_a_calls_exemplar_is_its_own_span(pair: Pair) -> None:
    await call_once(pair, fetch)
    span = await pair.the_span()
    exposition = generate_latest(pair.registry).decode()  # type: ignore[no-untyped-call]
    (line,) = (
        line
        for line in exposition.splitlines()
        if line.startswith(f"{DURATION}_bucket") and "trace_id" in line
    )
    assert f'trace_id="{ids(span).trace_id:032x}"' in line


async def test_hosts_beyond_the_limit_are_one(registry: CollectorRegistry) -> None:
    ports = [free_port() for _ in range(2)]
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


async def test_methods_that_are_not_standard_are_one(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        for method in ("PURGE", "PROPFIND"):
            async with session.request(method, f"{pair.target}/status/200"):
                pass

    await call_once(pair, call)
    assert pair.counted() == pair.counted(http_request_method="_OTHER") == 2


@pytest.mark.parametrize("secret", ["hush", "it's)!hush", "a;hush&hush#hush/?hush"])
async def test_no_secret_of_a_url_is_in_a_span(secret: str, pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        url = URL(f"{pair.target}/status/200").with_user("user").with_password(secret)
        url = url.with_query({"Signature": secret}).with_fragment("/page?token=hush")
        async with session.get(url, headers={"X-Token": "hush"}):
            pass

    await call_once(pair, call)
    assert "hush" not in (await pair.the_span()).to_json()


async def test_no_secret_of_a_url_within_a_url_is_in_a_span(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        back = "http://user:hush@shop.example/?token=hush&page=2"
        async with session.get(URL(f"{pair.target}/status/200?next={back}", encoded=True)):
            pass

    await call_once(pair, call)
    for span in (await pair.the_span(), *pair.back_spans.servers):
        assert "hush" not in span.to_json()
        assert "page=2" in span.to_json()


async def test_no_secret_of_an_encoded_url_or_json_within_a_url_is_in_a_span(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        for within in (
            "https://me/cb?page=2&token=hush",
            "/cb?token=hush&page=2",
            '{"page": 2, "token": "hush"}',
        ):
            async with session.get(f"{pair.target}/status/200", params={"within": within}):
                pass

    await call_once(pair, call)
    for span in (*pair.spans.clients, *pair.back_spans.servers):
        assert "hush" not in span.to_json()
        assert "page" in span.to_json()


@pytest.mark.parametrize("port", ["99999", "abc"])
async def test_a_port_that_is_none_is_a_call_that_failed(port: str, pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with suppress(ValueError):
            await session.get(URL(f"http://127.0.0.1:{port}/", encoded=True))

    await call_once(pair, call)
    assert pair.counted(error_type="ValueError", server_port="") == 1


async def test_statuses_that_a_server_makes_up_are_one(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        for status in (777, 999):
            async with session.get(f"{pair.target}/status/{status}"):
                pass

    await call_once(pair, call)
    assert pair.counted(http_response_status_code="_other", error_type="_other") == 2


async def test_a_processor_may_copy_and_change_what_has_ended(pair: Pair) -> None:
    copies = []

    class Redacting(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if span.kind is SpanKind.CLIENT:
                copies.append(copy.deepcopy(span))
                span._attributes = {"redacted": True}
                span._resource = Resource({"service.name": "other"})

    spans = Spans()
    spans.provider = TracerProvider()
    spans.provider.add_span_processor(Redacting())
    spans.provider.add_span_processor(SimpleSpanProcessor(spans._exporter))
    pair = Pair(CollectorRegistry(), spans)
    await call_once(pair, fetch)
    span = await pair.the_span()
    assert attributes(span) == {"redacted": True}
    assert span.resource.attributes["service.name"] == "other"
    assert attributes(copies[0])["http.response.status_code"] == 200
    assert ids(copies[0]) == ids(span)


async def test_a_host_that_is_no_unicode_costs_no_attribute(pair: Pair) -> None:
    """The exporter leaves out what it can't encode."""

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with suppress(UnicodeError, aiohttp.ClientError):
            await session.get(URL("http://\udcff.example/?q=\udcff", encoded=True))

    await call_once(pair, call)
    said = attributes(await pair.the_span())
    assert said["server.address"] == "?.example"
    assert said["url.full"] == "http://?.example/?q=?"


async def test_headers_are_captured_as_asked(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST", "x-.*")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_RESPONSE", "content-type")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", "x-token")

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/status/200", headers={"X-Token": "hush", "X-Tag": "a"}):
            pass

    await call_once(pair, call)
    said = attributes(await pair.the_span())
    assert said["http.request.header.x_tag"] == ("a",)
    assert said["http.request.header.x_token"] == ("[REDACTED]",)
    assert said["http.response.header.content_type"] == ("text/plain; charset=utf-8",)


async def test_excluded_urls_make_no_span_but_are_measured(
    monkeypatch: pytest.MonkeyPatch, pair: Pair
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS", "/status/")
    await call_once(pair, fetch)
    assert pair.spans.clients == []
    assert pair.counted(http_response_status_code="200") == 1
    assert pair.heard[0]["X-Request-ID"]
    assert "traceparent" not in pair.heard[0]


def test_what_excludes_urls_is_checked_at_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS", "(")
    with pytest.raises(ValueError, match="OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS"):
        setup_observability(web.Application(), metrics=None, logs=None)


async def test_where_opentelemetry_is_told_to_be_silent_a_call_is_only_measured(pair: Pair) -> None:
    """As an exporter that sends over HTTP does it, whose own calls would be traced without end."""

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with suppress_http_instrumentation():
            await fetch(pair, session)

    await call_once(pair, call)
    assert pair.spans.clients == []
    assert pair.counted(http_response_status_code="200") == 1
    assert "traceparent" not in pair.heard[0]


async def test_a_span_is_the_services_to_add_to_while_it_is_current(pair: Pair) -> None:
    async def add(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
        span = trace.get_current_span()
        span.set_attribute("attempt", 1)
        span.add_event("about to send")
        span.update_name("GET stock")
        return await handler(request)

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/status/503", middlewares=[add]):
            pass

    await call_once(pair, call)
    span = await pair.the_span()
    assert span.name == "GET stock"
    assert [event.name for event in span.events] == ["about to send"]
    assert attributes(span)["attempt"] == 1
    assert attributes(span)["http.response.status_code"] == 503
    assert attributes(span)["error.type"] == "503"
    assert span.status.status_code is StatusCode.ERROR


async def test_the_providers_sampler_decides_by_what_is_known_of_a_call(registry: CollectorRegistry) -> None:
    def by_url(name: str, kind: SpanKind | None, attributes: Any) -> SamplingResult:
        if kind is not SpanKind.CLIENT:
            return SamplingResult(Decision.RECORD_ONLY)
        assert (name, attributes["http.request.method"]) == ("GET", "GET")
        if attributes["url.full"].endswith("/status/404"):
            return SamplingResult(Decision.DROP)
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {**attributes, "why": "asked"})

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        await fetch(pair, session)
        async with session.get(f"{pair.target}/status/404"):
            pass

    pair = Pair(registry, Spans(sampler=Deciding(by_url)))
    await call_once(pair, call)
    span = await pair.the_span()
    assert attributes(span)["why"] == "asked"
    assert attributes(span)["http.response.status_code"] == 200
    sent = [headers["traceparent"].split("-") for headers in pair.heard]
    assert [int(flags, 16) & TraceFlags.SAMPLED for *_, flags in sent] == [TraceFlags.SAMPLED, 0]
    assert len({span_id for _, _, span_id, _ in sent}) == 2


@pytest.mark.parametrize("off", ["tracing", "metrics"])
async def test_each_pillar_works_without_the_other(off: str, registry: CollectorRegistry) -> None:
    pair, app, spans = Pair(CollectorRegistry(), Spans()), web.Application(), Spans()
    options: dict[str, Any] = {
        "tracing": Tracing(provider=spans.provider),
        "metrics": Metrics(registry=registry),
        off: None,
    }
    setup_observability(app, logs=None, **options)
    async with serving(pair.back) as back, serving(app):
        pair.target = back.url("")
        assert await fetch(pair, app[CLIENT_SESSION]) == "body"
    measured = registry.get_sample_value(
        f"{DURATION}_count",
        {
            "http_request_method": "GET",
            "server_address": "127.0.0.1",
            "server_port": pair.target.rpartition(":")[2],
            "http_response_status_code": "200",
            "error_type": "",
        },
    )
    assert (len(spans.clients), measured) == ((0, 1) if off == "tracing" else (1, None))


# Sessions


async def test_a_session_of_ones_own_can_be_observed(pair: Pair) -> None:
    seen: list[object] = []

    async def started(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        seen.append(context.trace_request_ctx)

    theirs = aiohttp.TraceConfig()
    theirs.on_request_start.append(started)

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        own = aiohttp.ClientSession(trace_configs=[client_trace_config(pair.front), theirs])
        url = f"{pair.target}/status/200"
        async with own, own.get(url, trace_request_ctx={"retry": 1}) as response:
            await response.read()

    await call_once(pair, call)
    await pair.the_span()
    assert pair.counted() == 1
    assert seen == [{"retry": 1}]


async def test_the_services_own_trace_configs_are_kept(pair: Pair) -> None:
    seen: list[str] = []

    async def ended(session: aiohttp.ClientSession, context: object, params: Any) -> None:
        seen.append(params.method)

    theirs = aiohttp.TraceConfig()
    theirs.on_request_end.append(ended)

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with client_session(pair.front, trace_configs=[theirs], headers={"X-Own": "1"}) as own:
            await fetch(pair, own)

    await call_once(pair, call)
    assert (seen, pair.heard[0]["X-Own"]) == (["GET"], "1")
    await pair.the_span()


@pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")
async def test_a_trace_config_of_the_services_that_fails_makes_no_second_call(pair: Pair) -> None:
    async def fail(session: aiohttp.ClientSession, context: object, params: object) -> None:
        raise LookupError("theirs")

    theirs = aiohttp.TraceConfig()
    theirs.on_request_end.append(fail)

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with client_session(pair.front, trace_configs=[theirs]) as own:
            with pytest.raises(LookupError, match="theirs"):
                await own.get(f"{pair.target}/endless")

    await call_once(pair, call)
    await pair.the_span()
    assert pair.counted() == 1
    gc.collect()  # aiohttp leaves the connection behind then, and says so: here rather than in a later test


async def test_a_session_without_an_application_is_that_of_whoever_calls(pair: Pair) -> None:
    """One session for two applications: each has its own calls."""
    other = Pair(CollectorRegistry(), Spans())
    async with client_session() as shared:

        async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
            await fetch(pair, shared)

        async with serving_pair(pair, call) as service, serving_pair(other, call) as other_service:
            await service.get("/")
            await other_service.get("/")
    assert (pair.counted(), other.counted()) == (1, 1)
    for each in (pair, other):
        assert (await each.the_span()).parent == ids(each.spans.servers[0])


async def test_a_session_outside_of_applications_just_works(pair: Pair) -> None:
    async with serving(pair.back) as back, client_session() as session:
        pair.target = back.url("")
        assert await fetch(pair, session) == "body"


async def test_a_session_with_an_application_is_that_applications_wherever_it_is_used(pair: Pair) -> None:
    other = Pair(CollectorRegistry(), Spans())
    async with client_session(other.front) as of_other:

        async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
            await fetch(pair, of_other)

        async with serving(other.front):
            await call_once(pair, call)
    assert (pair.counted(), other.counted()) == (0, 1)
    assert (len(pair.spans.clients), len(other.spans.clients)) == (0, 1)


@contextmanager
def official_instrumentor(spans: Spans) -> Iterator[None]:
    AioHttpClientInstrumentor().instrument(tracer_provider=spans.provider)
    try:
        yield
    finally:
        AioHttpClientInstrumentor().uninstrument()


async def test_with_the_official_instrumentor_there_is_one_client_span(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with official_instrumentor(pair.spans):
            instrumented = client_session()
        async with instrumented:
            await fetch(pair, instrumented)

    await call_once(pair, call)
    span = await pair.the_span()
    assert span.parent == ids(pair.spans.servers[0])
    assert pair.counted() == 1
    assert pair.heard[0]["X-Request-ID"]


async def test_the_shared_session_is_open_while_the_application_runs(registry: CollectorRegistry) -> None:
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), logs=None)
    assert CLIENT_SESSION not in app
    async with serving(app):
        session = app[CLIENT_SESSION]
        assert not session.closed
    assert session.closed


async def test_the_shared_session_can_be_left_out(registry: CollectorRegistry) -> None:
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), logs=None, client=Client(session=False))
    async with serving(app):
        assert CLIENT_SESSION not in app
        async with client_session(app) as session:
            assert not session.closed


@pytest.mark.parametrize("make", [client_session, client_trace_config])
@pytest.mark.parametrize("set_up", [False, True])
async def test_an_application_whose_calls_are_not_observed_is_refused(
    make: Callable[[web.Application], object], set_up: bool
) -> None:
    app = web.Application()
    if set_up:
        setup_observability(app, metrics=None, logs=None, client=None)
    with pytest.raises(RuntimeError, match=r"call setup_observability\(app\) first, without client=None"):
        make(app)


@pytest.mark.parametrize("make", [client_session, client_trace_config])
async def test_what_is_no_application_is_refused(make: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"client_session\(app\) takes Application or None, got 5 \(int\)"):
        make(5)
