"""How a request ended is told truly, on all the ways on which it can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry

from aiohttp_observe import OBSERVABILITY, Logs, Metrics, setup_observability
from tests.service import Service, Witness, serving, until

LINES = ("with our access lines", "with aiohttp's")


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture(params=(Logs(), Logs(access=False)), ids=LINES)
def logs(request: pytest.FixtureRequest) -> Logs:
    """The end of a request is heard in two ways: from the access logger, and from its task."""
    logs: Logs = request.param
    return logs


@asynccontextmanager
async def observed(
    handler: Handler, registry: CollectorRegistry, witness: Witness, logs: Logs, **kwargs: Any
) -> AsyncIterator[Service]:
    app = web.Application()
    app.router.add_route("*", "/", handler)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness], logs=logs)
    async with serving(app, **kwargs) as service:
        yield service
    assert app[OBSERVABILITY].recorder.in_flight == {}


async def test_a_client_that_has_all_of_a_stream_may_leave_before_the_handler_ends(
    registry: CollectorRegistry, witness: Witness, logs: Logs
) -> None:
    has_left = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"hi")
        await response.write_eof()
        await has_left.wait()
        await until(lambda: request.transport is None, "aiohttp to notice")
        return response

    async with observed(stream, registry, witness, logs) as service:
        reader, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        has_left.set()
        exchange = await witness.next()
    assert (exchange.status, exchange.error_type) == (200, None)


@pytest.mark.parametrize("handler_cancellation", [False, True])
async def test_a_websocket_that_its_client_leaves_is_no_error(
    registry: CollectorRegistry, witness: Witness, logs: Logs, handler_cancellation: bool
) -> None:
    async def socket(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        while True:
            await socket.send_str("tick")
            await asyncio.sleep(0.005)

    async with observed(
        socket, registry, witness, logs, handler_cancellation=handler_cancellation
    ) as service:
        client = await service.session.ws_connect(service.url("/"))
        await client.receive()
        transport = client.get_extra_info("socket")
        assert transport is not None
        response = client._response
        assert response.connection is not None
        response.connection.transport.abort()  # type: ignore[union-attr]
        exchange = await witness.next()
    assert (exchange.status, exchange.error_type) == (101, None)


async def test_what_was_sent_before_a_crash_is_counted(
    registry: CollectorRegistry, witness: Witness, logs: Logs
) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 200_000
        await response.prepare(request)
        await response.write(b"x" * 100_000)
        raise LookupError

    async with observed(stream, registry, witness, logs) as service:
        with pytest.raises(aiohttp.ClientPayloadError):
            await service.get("/")
        exchange = await witness.next()
    assert (exchange.error_type, exchange.response_size) == ("LookupError", 100_000)


async def test_each_of_the_requests_of_a_pipeline_has_its_own_duration(
    registry: CollectorRegistry, witness: Witness
) -> None:
    """Each ends when it was answered, not when the whole pipeline was."""

    async def work(request: web.Request) -> web.Response:
        await asyncio.sleep(0.1)
        return web.Response()

    async with observed(work, registry, witness, Logs()) as service:
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        await service.exchange_bytes(request * 3 + last)
        exchanges = [await witness.next() for _ in range(4)]
    ends = [exchange.started + (exchange.duration or 0.0) for exchange in exchanges]
    begins = [exchange.started for exchange in exchanges]
    assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))


async def test_a_view_that_refuses_when_it_is_made_has_ended(
    registry: CollectorRegistry, witness: Witness, logs: Logs
) -> None:
    class Private(web.View):
        def __init__(self, request: web.Request) -> None:
            raise web.HTTPForbidden

    async with observed(Private, registry, witness, logs) as service:
        assert (await service.get("/")).status == 403
        exchange = await witness.next()
        gauge = registry.get_sample_value("http_server_active_requests", {"http_request_method": "GET"})
    assert (exchange.status, exchange.error_type, gauge) == (403, None, 0)


async def test_a_middleware_outside_may_have_requests_handled_in_another_task(
    registry: CollectorRegistry, witness: Witness
) -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    @web.middleware
    async def apart(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await asyncio.create_task(handler(request))  # type: ignore[arg-type]

    app = web.Application()
    app.router.add_get("/", hello)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    app.middlewares.insert(0, apart)
    async with serving(app) as service:
        answers = [await service.get("/") for _ in range(2)]
        exchanges = [await witness.next() for _ in range(2)]
    assert [answer.request_id for answer in answers] == [exchange.request_id for exchange in exchanges]
    assert [exchange.route for exchange in exchanges] == ["/", "/"]
    assert app[OBSERVABILITY].recorder.in_flight == {}


async def test_a_body_that_cannot_be_sent_ends_its_request(
    registry: CollectorRegistry, witness: Witness, tmp_path: Path
) -> None:
    """aiohttp tells the access logger nothing of it."""

    async def broken(request: web.Request) -> web.Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            raise LookupError

        return web.Response(body=parts())

    async with observed(broken, registry, witness, Logs()) as service:
        await service.get("/", headers={"Expect": "nonsense"})  # the access logger is known to be in place
        await witness.next()
        with pytest.raises(aiohttp.ClientPayloadError):
            await service.get("/")
        exchange = await witness.next()
    assert exchange.error_type == "LookupError"
