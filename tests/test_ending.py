"""How a request ended is told truly, on all the ways on which it can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry

from aiohttp_observe import OBSERVABILITY, Exchange, Logs, Metrics, request_id, setup_observability
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
    assert exchange.websocket is not None
    assert exchange.websocket.close_code == 1006


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


@pytest.mark.parametrize("then", ["answers", "raises", "answers for it"])
async def test_a_timeout_outside_ends_a_request_once_and_as_it_was_answered(
    registry: CollectorRegistry, witness: Witness, then: str
) -> None:
    """Up to Python 3.11 ``asyncio.wait_for`` has what it waits for done by another task."""
    status, error = {
        "answers": (200, None),
        "raises": (504, "TimeoutError"),
        "answers for it": (503, "CancelledError"),
    }[then]

    async def works(request: web.Request) -> web.Response:
        if then != "answers":
            await asyncio.Event().wait()
        return web.Response()

    @web.middleware
    async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await asyncio.wait_for(handler(request), 5 if then == "answers" else 0.05)
        except asyncio.TimeoutError:
            if then == "raises":
                raise
        await asyncio.sleep(0.3)  # longer than it takes to notice a task that has ended
        return web.Response(status=503)

    app = web.Application()
    app.router.add_get("/", works)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    app.middlewares.insert(0, limit)
    async with serving(app) as service:
        answers = [await service.get("/") for _ in range(2)]
        exchanges = [await witness.next() for _ in range(2)]
    assert witness.begun == exchanges
    assert [answer.request_id for answer in answers] == [exchange.request_id for exchange in exchanges]
    assert [(exchange.status, exchange.error_type) for exchange in exchanges] == [(status, error)] * 2


async def test_what_a_middleware_outside_raises_is_named(
    registry: CollectorRegistry, witness: Witness
) -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response()

    @web.middleware
    async def fails(request: web.Request, handler: Handler) -> web.StreamResponse:
        await handler(request)
        raise LookupError

    app = web.Application()
    app.router.add_get("/", hello)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    app.middlewares.insert(0, fails)
    async with serving(app) as service:
        await service.get("/")
        exchange = await witness.next()
    assert (exchange.status, exchange.error_type) == (500, "LookupError")


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


class Whereabouts(Witness):
    """Keeps as well in whose context it hears of the ends."""

    def __init__(self) -> None:
        super().__init__()
        self.heard_in: list[str | None] = []

    def finished(self, exchange: Exchange) -> None:
        self.heard_in.append(request_id())
        super().finished(exchange)


async def crashes_in_a_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"some")
    raise LookupError


async def has_a_body_that_fails(request: web.Request) -> web.Response:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        raise LookupError

    return web.Response(body=parts())


async def cannot_be_prepared(request: web.Request) -> web.Response:
    return web.Response(headers={"X-Sign": "yes"})


@pytest.mark.parametrize("handler", [crashes_in_a_stream, has_a_body_that_fails, cannot_be_prepared])
async def test_an_end_that_aiohttp_does_not_log_is_told_at_once_and_in_the_requests_context(
    handler: Handler, registry: CollectorRegistry
) -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response()

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        if "X-Sign" in response.headers:
            raise LookupError

    app, witness = web.Application(), Whereabouts()
    app.router.add_get("/", hello)
    app.router.add_get("/fails", handler)
    if handler is cannot_be_prepared:
        app.on_response_prepare.append(sign)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        await service.get("/")  # the access logger is known to be in place
        await witness.next()
        await service.exchange_bytes(b"GET /fails HTTP/1.1\r\nHost: x\r\n\r\n")
        exchange = await witness.next()
    assert (exchange.error_type, witness.heard_in[1]) == ("LookupError", exchange.request_id)
    assert exchange.status == (None if handler is cannot_be_prepared else 200)


async def test_an_end_that_a_look_finds_first_is_told_in_the_requests_context(
    registry: CollectorRegistry,
) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        def look(task: asyncio.Task[Any]) -> None:
            app[OBSERVABILITY].recorder.tick()

        response = web.StreamResponse()
        await response.prepare(request)
        asyncio.current_task().add_done_callback(look, context=Context())  # type: ignore[union-attr]
        return response

    app, witness = web.Application(), Whereabouts()
    app.router.add_get("/", stream)
    setup_observability(app, metrics=Metrics(registry=registry), logs=None, observers=[witness])
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
        exchange = await witness.next()
    assert witness.heard_in == [exchange.request_id]


async def test_a_handler_may_clean_its_application_up(registry: CollectorRegistry) -> None:
    async def clean_up(request: web.Request) -> web.Response:
        await request.app.shutdown()
        await request.app.cleanup()
        return web.Response()

    app, witness = web.Application(), Whereabouts()
    app.router.add_get("/", clean_up)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
        exchange = await witness.next()
    assert witness.heard_in == [exchange.request_id]


@pytest.mark.parametrize("handler_cancellation", [False, True])
@pytest.mark.parametrize("kind", ["body", "file"])
async def test_a_client_that_leaves_while_it_is_sent_to(
    registry: CollectorRegistry,
    witness: Witness,
    logs: Logs,
    tmp_path: Path,
    kind: str,
    handler_cancellation: bool,
) -> None:
    file, size = tmp_path / "file", 20_000_000
    file.write_bytes(b"x" * size)

    async def much(request: web.Request) -> web.StreamResponse:
        if request.query:
            return web.Response()
        return web.FileResponse(file) if kind == "file" else web.Response(body=b"x" * size)

    async with observed(much, registry, witness, logs, handler_cancellation=handler_cancellation) as service:
        await service.get("/?none")  # the access logger, if it is ours, is known to be in place
        await witness.next()
        reader, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(1000)
        writer.transport.abort()
        exchange = await witness.next()
    assert (exchange.status, exchange.error_type) == (499, "client_disconnected")


async def test_an_expectation_that_is_refused_has_an_end(
    registry: CollectorRegistry, witness: Witness, logs: Logs
) -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response()

    async with observed(hello, registry, witness, logs) as service:
        await service.get("/", headers={"Expect": "nonsense"})
        exchange = await witness.next()
    assert witness.begun == [exchange]
    assert (exchange.route, exchange.status) == ("/", 417)


async def test_what_still_waits_at_clean_up_has_waited_for_that(
    registry: CollectorRegistry, witness: Witness, logs: Logs
) -> None:
    """Not for its client to take a response: there was none."""
    lock = asyncio.Lock()
    await lock.acquire()

    async def wait(request: web.Request) -> web.Response:
        async with lock:
            return web.Response()

    async with observed(wait, registry, witness, logs, shutdown_timeout=0.1) as service:
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.close()
        await asyncio.sleep(0.1)
    exchange = await witness.next()
    assert (exchange.status, list(exchange.waiting)) == (499, ["lock"])
