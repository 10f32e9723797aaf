"""Requests that another task answers, that are tried again, that outlive the server: told once, and alike."""

from __future__ import annotations

import asyncio
import gc
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import WSCloseCode, web
from prometheus_client import CollectorRegistry

from aiohttp_observe import OBSERVABILITY, Exchange, Metrics, Tracing, bind, request_id, setup_observability
from tests.service import Service, run_python, serving, until
from tests.spans import Spans, attributes
from tests.test_edges import LEFT, Told, observed

End = tuple[str, str, str]
"""Route, status and error."""


async def ended(app: web.Application, told: Told, number: int) -> list[Exchange]:
    """The ``number`` requests there were, once all signals have told each of them, and alike."""
    exchanges = [await told.witness.next() for _ in range(number)]
    expected = Counter(map(_end_of, exchanges))
    app[OBSERVABILITY].recorder.flush()
    await until(lambda: len(told.access_lines()) >= number, "the access lines")
    lines: Counter[End] = Counter(
        (line["http.route"], str(line["http.response.status_code"]), line.get("error.type", ""))
        for line in told.access_lines()
    )
    spans: Counter[End] = Counter()
    for span in told.spans.servers:
        shown = attributes(span)
        status = str(shown.get("http.response.status_code"))
        spans[str(shown["http.route"]), status, str(shown.get("error.type", ""))] += 1
    measured: Counter[End] = Counter()
    for (route, status, error), count, _ in told.durations():
        measured[route, status or "None", error] += count
    assert lines == spans == measured == expected
    assert app[OBSERVABILITY].recorder.in_flight == {}
    assert len(told.witness.begun) == number
    return exchanges


async def asking(service: Service, told: Told, method: str = "GET") -> asyncio.StreamWriter:
    """The connection of a request that is being served."""
    _, writer = await service.connect()
    writer.write(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await until(lambda: told.witness.begun, "the request")
    return writer


def _end_of(exchange: Exchange) -> End:
    return exchange.route, str(exchange.status), exchange.error_type or ""


# Answered by another task


async def test_what_another_requests_handler_answers_is_the_answered_ones() -> None:
    waiting: asyncio.Queue[web.Request] = asyncio.Queue()
    answered: asyncio.Future[web.StreamResponse] = asyncio.get_running_loop().create_future()

    async def subscribe(request: web.Request) -> web.StreamResponse:
        waiting.put_nowait(request)
        return await answered

    async def publish(request: web.Request) -> web.StreamResponse:
        subscriber = await waiting.get()
        response = web.StreamResponse()
        await response.prepare(subscriber)
        await response.write(b"news")
        answered.set_result(response)
        return web.Response(status=507)

    app = web.Application()
    app.router.add_get("/subscribe", subscribe)
    app.router.add_get("/publish", publish)
    async with observed(app) as (service, told):
        asked = [service.get(path, headers={"X-Request-ID": path[1:]}) for path in ("/subscribe", "/publish")]
        answers = await asyncio.gather(*asked)
        assert [answer.request_id for answer in answers] == ["subscribe", "publish"]
        assert [answer.status for answer in answers] == [200, 507]
        exchanges = await ended(app, told, 2)
    assert {_end_of(exchange) for exchange in exchanges} == {
        ("/subscribe", "200", ""),
        ("/publish", "507", "507"),
    }


async def test_a_worker_that_answers_is_neither_waited_for_nor_named_after_a_request() -> None:
    """It serves many requests, one after the other, and lives on."""
    waiting: asyncio.Queue[tuple[web.Request, asyncio.Future[web.StreamResponse]]] = asyncio.Queue()
    ids: list[str | None] = []

    async def work() -> None:
        while True:
            request, done = await waiting.get()
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"some")
            ids.append(request_id())
            done.set_result(response)

    async def ask(request: web.Request) -> web.StreamResponse:
        done = asyncio.get_running_loop().create_future()
        waiting.put_nowait((request, done))
        response: web.StreamResponse = await done
        if "fail" in request.query:
            raise ValueError
        return response

    async def worker(app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(work())
        yield
        task.cancel()

    app = web.Application()
    app.router.add_get("/", ask)
    app.cleanup_ctx.append(worker)
    async with observed(app) as (service, told):
        for name in ("first", "second"):
            assert (await service.get("/", headers={"X-Request-ID": name})).request_id == name
        with pytest.raises(aiohttp.ClientError):
            await service.get("/?fail")
        exchanges = await ended(app, told, 3)
    assert sorted(map(_end_of, exchanges)) == [
        ("/", "200", ""),
        ("/", "200", ""),
        ("/", "200", "ValueError"),
    ]
    assert ids == [None, None, None]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="aiohttp asks no task factory there")
async def test_a_request_whose_own_task_is_not_known_is_told_all_the_same() -> None:
    """A task factory wraps aiohttp's coroutine, and a middleware outside ours answers."""

    async def wrapped(coro: Any) -> Any:
        return await coro

    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(wrapped(coro), loop=loop, **options))

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response()

    @web.middleware
    async def refuse(request: web.Request, handler: Any) -> web.StreamResponse:
        return web.Response(status=429)

    app, told = web.Application(), Told()
    app.router.add_get("/", answer)
    told.observe(app)
    app.middlewares.insert(0, refuse)
    async with serving(app) as service:
        assert (await service.get("/")).status == 429
        (exchange,) = await ended(app, told, 1)
    assert _end_of(exchange) == ("/", "429", "")


async def test_what_is_prepared_after_the_end_changes_nothing() -> None:
    late: list[asyncio.Task[None]] = []

    async def prepare(request: web.Request) -> None:
        await asyncio.sleep(0.02)
        await web.StreamResponse(status=507).prepare(request)

    async def handler(request: web.Request) -> web.StreamResponse:
        late.append(asyncio.create_task(prepare(request)))
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    async with observed(app) as (service, told):
        await service.get("/")
        await asyncio.wait(late)
        (exchange,) = await ended(app, told, 1)
    assert exchange.status == 200


async def test_a_response_that_was_sent_before_is_no_answer() -> None:
    app = web.Application()
    shared = web.Response(text="once")

    async def handler(request: web.Request) -> web.StreamResponse:
        return shared

    app.router.add_get("/", handler)
    async with observed(app) as (service, told):
        await service.get("/")
        reader, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        writer.close()
        await writer.wait_closed()
        first, second = await ended(app, told, 2)
    assert (first.status, first.response_size) == (200, 4)
    assert (second.status, second.response_size) == (None, 0)


# Handled more than once


@web.middleware
async def try_again(request: web.Request, handler: Callable[..., Awaitable[Any]]) -> web.StreamResponse:
    for _ in range(2):
        response: web.StreamResponse = await handler(request.clone())
    return response


@web.middleware
async def in_a_task_each(request: web.Request, handler: Callable[..., Awaitable[Any]]) -> web.StreamResponse:
    for _ in range(2):
        response: web.StreamResponse = await asyncio.ensure_future(handler(request))
    return response


@pytest.mark.parametrize("outside", [try_again, in_a_task_each])
async def test_a_request_that_is_tried_again_is_one(outside: Any) -> None:
    calls = []

    async def handler(request: web.Request) -> web.StreamResponse:
        calls.append(request_id())
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    told = Told()
    told.observe(app)
    app.middlewares.insert(0, outside)
    async with serving(app) as service:
        answer = await service.get("/")
        await ended(app, told, 1)
    assert calls == [answer.request_id] * 2


async def test_a_request_that_is_handed_on_within_is_the_one_that_came() -> None:
    app = web.Application()

    async def first(request: web.Request) -> web.StreamResponse:
        return await app._handle(request.clone(rel_url="/second"))

    async def second(request: web.Request) -> web.StreamResponse:
        return web.Response(text=str(request_id()))

    app.router.add_get("/first", first)
    app.router.add_get("/second", second)
    async with observed(app) as (service, told):
        answer = await service.get("/first")
        (exchange,) = await ended(app, told, 1)
    assert answer.text == answer.request_id == exchange.request_id
    assert exchange.route == "/first"


async def test_a_server_made_within_a_request_has_requests_of_its_own() -> None:
    inner, outer = web.Application(), web.Application()
    told = Told()
    told.observe(inner)

    async def start(request: web.Request) -> web.StreamResponse:
        async with serving(inner) as service:
            assert b" 400 " in await service.exchange_bytes(b"\x00\r\n\r\n")
        return web.Response()

    outer.router.add_get("/start", start)
    async with observed(outer) as (service, told_by_outer):
        assert (await service.get("/start")).status == 200
        assert (await told_by_outer.witness.next()).status == 200
        assert [labels for labels, _, _ in told_by_outer.durations()] == [("/start", "200", "")]
        assert len(told_by_outer.spans.servers) == 1
    assert [labels for labels, _, _ in told.durations()] == [("_malformed", "400", "")]


# Ends that nobody announces


async def test_what_cannot_be_sent_ended_when_its_handler_did() -> None:
    """A header with a line break: aiohttp logs it, and tells no access logger."""

    async def handler(request: web.Request) -> web.StreamResponse:
        bind(order=42)
        return web.Response(headers={"X-Name": "a\r\nb"} if "bad" in request.query else {})

    app = web.Application()
    app.router.add_get("/", handler)
    async with observed(app) as (service, told):
        await service.get("/")  # from here on the access logger is relied on
        assert await service.exchange_bytes(b"GET /?bad HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        asked = asyncio.get_running_loop().time()
        _, exchange = await ended(app, told, 2)
        waited = asyncio.get_running_loop().time() - asked
        line = told.access_lines()[1]
    assert (exchange.status, exchange.error_type) == (None, "ValueError")
    assert exchange.duration is not None
    assert exchange.duration < max(waited, 0.05)
    assert exchange.waiting == {}
    if hasattr(asyncio.Task, "get_context"):
        assert line["order"] == 42


@pytest.mark.parametrize("streams", [False, True])
async def test_nothing_counts_as_sent_to_a_client_that_had_left(streams: bool) -> None:
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await left.wait()
        await until(lambda: request.transport is None, "the server to notice")
        if not streams:
            return web.Response(body=bytes(1_000_000))
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(bytes(1_000_000))
        return response

    app = web.Application()
    app.router.add_get("/", handler)
    async with observed(app) as (service, told):
        writer = await asking(service, told)
        writer.close()
        left.set()
        (exchange,) = await ended(app, told, 1)
    assert _end_of(exchange)[1:] == LEFT
    assert exchange.response_size == 0


@pytest.mark.parametrize("swallows", [False, True])
async def test_a_handler_that_outlives_the_server_is_told_at_clean_up(swallows: bool) -> None:
    """Its client has left, so aiohttp neither waits for it nor cancels it; or it makes nothing of that."""
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                if not swallows:
                    raise
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    async with observed(app, shutdown_timeout=0.05) as (service, told):
        writer = await asking(service, told)
        if not swallows:
            writer.close()
            (flight,) = app[OBSERVABILITY].recorder.in_flight.values()
            await until(lambda: flight.request.transport is None, "the server to notice")
    writer.close()
    go_on.set()
    (exchange,) = await ended(app, told, 1)
    assert _end_of(exchange)[1:] == (("None", "CancelledError") if swallows else LEFT)
    await asyncio.sleep(0.05)
    assert told.witness._ended.empty()
    assert len(told.spans.servers) == 1


async def test_a_client_that_leaves_the_second_run_has_left_too() -> None:
    """An application that has run and been cleaned up may run again: it isn't stopping any more."""
    app = web.Application()
    observability = setup_observability(app, metrics=Metrics(registry=CollectorRegistry()), client=None)
    for _ in range(2):
        runner = web.AppRunner(app)
        await runner.setup()
        assert not observability.recorder.stopping
        await runner.cleanup()
        assert observability.recorder.stopping


# Errors, and what isn't one


def test_an_answer_has_nothing_to_do_with_what_is_handled_where_the_loop_was_started() -> None:
    script = """
        import asyncio
        from aiohttp import web
        from aiohttp_observe import setup_observability
        from tests.service import Witness, serving

        async def main():
            app, witness = web.Application(), Witness()
            setup_observability(app, observers=[witness])

            async def busy(request):
                return web.Response(status=503)

            app.router.add_get("/", busy)
            async with serving(app) as service:
                await service.get("/")
                print((await witness.next()).error_type)

        try:
            import a_faster_loop
        except ImportError:
            asyncio.run(main())
    """
    assert "503" in run_python(textwrap.dedent(script)).stdout.splitlines()


async def test_a_router_that_fails_is_no_malformed_request() -> None:
    class Broken(web.UrlDispatcher):
        async def resolve(self, request: web.Request) -> Any:
            raise LookupError("no routes today")

    app = web.Application()
    app._router = Broken()
    async with observed(app) as (service, told):
        answer = await service.get("/orders/1", headers={"X-Request-ID": "mine"})
        exchange = await told.witness.next()
        await until(told.access_lines, "the access line")
    assert answer.status == 500
    assert (exchange.request_id, exchange.path, exchange.method) == ("mine", "/orders/1", "GET")
    assert _end_of(exchange) == ("_unmatched", "500", "LookupError")
    assert told.durations()[0][0] == ("_unmatched", "500", "LookupError")
    assert len(told.spans.servers) == 1


# Websockets


@asynccontextmanager
async def echoing(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[Any]:
    app = web.Application()
    app.router.add_get("/", handler)
    async with observed(app) as (service, told):
        yield app, service, told


async def answer_once(socket: web.WebSocketResponse, **options: Any) -> web.StreamResponse:
    """Send back what the client sends, and close; ``options`` are for ``socket.receive``."""
    await socket.send_str((await socket.receive(**options)).data)
    await socket.close()
    return socket


async def is_answered_once(service: Service) -> None:
    async with service.session.ws_connect(service.url("/")) as client:
        await client.send_str("hi")
        assert (await client.receive()).data == "hi"
        await client.receive()


async def test_a_close_frame_without_a_code_has_the_code_for_that() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            pass
        return socket

    async with echoing(handler) as (app, service, told):
        async with service.session.ws_connect(service.url("/")) as client:
            await client._writer.send_frame(b"", aiohttp.WSMsgType.CLOSE)
            await client.receive()
        (exchange,) = await ended(app, told, 1)
    assert exchange.websocket is not None
    assert exchange.websocket.close_code == 1005


async def test_a_websocket_that_another_task_closes_has_its_code() -> None:
    sockets: list[web.WebSocketResponse] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sockets.append(socket)
        async for _ in socket:
            pass
        return socket

    async with echoing(handler) as (app, service, told):
        async with service.session.ws_connect(service.url("/")) as client:
            await until(lambda: sockets, "the handler")
            closing = asyncio.ensure_future(sockets[0].close(code=WSCloseCode.GOING_AWAY))
            await client.receive()
            await closing
            assert client.close_code == 1001
        (exchange,) = await ended(app, told, 1)
    assert exchange.websocket is not None
    assert exchange.websocket.close_code == 1001


async def test_an_answer_that_is_raised_within_a_websocket_is_an_error() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await web.WebSocketResponse().prepare(request)
        raise web.HTTPForbidden

    async with echoing(handler) as (app, service, told):
        async with service.session.ws_connect(service.url("/")) as client:
            await client.receive()
        (exchange,) = await ended(app, told, 1)
    assert _end_of(exchange) == ("/", "101", "HTTPForbidden")


async def test_a_websocket_class_of_the_services_own_is_called_as_it_wants() -> None:
    class Limited(web.WebSocketResponse):
        async def receive(self, *, limit: int | None = None) -> Any:  # type: ignore[override]
            return await super().receive()

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = Limited()
        await socket.prepare(request)
        return await answer_once(socket, limit=3)

    async with echoing(handler) as (app, service, told):
        await is_answered_once(service)
        (exchange,) = await ended(app, told, 1)
        sizes = told.registry.get_sample_value(
            "http_server_response_body_size_bytes_count", {"http_request_method": "GET", "http_route": "/"}
        )
    assert exchange.websocket is not None
    assert (exchange.websocket.received, exchange.websocket.sent) == (1, 1)
    assert sizes == 0  # it has no body


# Bounds


async def test_thousands_that_wait_for_one_future_take_no_copies_of_the_list_of_them() -> None:
    number = 1000
    shared: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal waiting
        waiting += 1
        await shared
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=CollectorRegistry()), logs=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with serving(app) as service, aiohttp.ClientSession(connector=connector) as session:
        requests = [asyncio.ensure_future(session.get(service.url("/"))) for _ in range(number)]
        await until(lambda: waiting == number, "all of them")
        copies = [
            each
            for each in gc.get_objects()
            if type(each) is list
            and len(each) > 100
            and each
            and getattr(each[0], "__len__", int)() == 2
            and type(each[0]) is tuple
            and "wakeup" in repr(each[0][0]).lower()
        ]
        assert len(copies) < 10
        shared.set_result(None)
        for response in await asyncio.gather(*requests):
            response.release()


async def test_statuses_that_no_standard_knows_are_one_series() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=int(request.match_info["status"]))

    app = web.Application()
    app.router.add_get("/{status}", handler)
    async with observed(app) as (service, told):
        for status in (200, 599, 600, 999):
            await service.get(f"/{status}")
        exchanges = [await told.witness.next() for _ in range(4)]
        counts: Counter[str] = Counter()
        for (_, status_label, _), count, _ in told.durations():
            counts[status_label] += count
    assert [exchange.status for exchange in exchanges] == [200, 599, 600, 999]
    assert counts == {"200": 1, "599": 1, "_other": 2}


def test_headers_to_capture_that_are_no_expressions_are_refused_at_once(monkeypatch: Any) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "x-a,[")
    with pytest.raises(ValueError, match=r"CAPTURE_HEADERS_SERVER_REQUEST .* regular expressions"):
        setup_observability(web.Application(), metrics=Metrics(registry=CollectorRegistry()))


async def test_captured_headers_are_text_that_can_be_encoded(monkeypatch: Any) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "x-tenant")
    app, spans = web.Application(), Spans()
    setup_observability(
        app, metrics=Metrics(registry=CollectorRegistry()), tracing=Tracing(provider=spans.provider)
    )
    async with serving(app) as service:
        await service.exchange_bytes(
            b"GET / HTTP/1.1\r\nHost: x\r\nX-Tenant: \xff\xfe\r\nConnection: close\r\n\r\n"
        )
        await until(lambda: spans.servers, "the span")
    assert attributes(spans.servers[0])["http.request.header.x_tenant"] == ["??"]


# Handled in a task of a middleware's


@web.middleware
async def in_a_task(request: web.Request, handler: Callable[..., Awaitable[Any]]) -> web.StreamResponse:
    response: web.StreamResponse = await asyncio.ensure_future(handler(request))
    return response


async def test_what_is_still_being_sent_has_not_ended_with_the_task_it_was_handled_in() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(0.4)
        yield b"last"

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.Response(body=chunks())
        await response.prepare(request)
        return response

    app, told = web.Application(), Told()
    app.router.add_get("/", handler)
    told.observe(app)
    app.middlewares.insert(0, in_a_task)
    async with serving(app) as service:
        assert (await service.get("/")).text == "firstlast"
        (exchange,) = await ended(app, told, 1)
    assert exchange.status == 200
    assert exchange.duration is not None
    assert exchange.duration >= 0.4


async def test_a_slow_signal_before_ours_ends_no_request() -> None:
    async def slow(request: web.Request, response: web.StreamResponse) -> None:
        await asyncio.sleep(0.4)

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response()

    app, told = web.Application(), Told()
    app.router.add_get("/", handler)
    app.on_response_prepare.append(slow)
    told.observe(app)
    app.middlewares.insert(0, in_a_task)
    async with serving(app) as service:
        await service.get("/")
        (exchange,) = await ended(app, told, 1)
    assert exchange.status == 200


@web.middleware
async def shielded(request: web.Request, handler: Callable[..., Awaitable[Any]]) -> web.StreamResponse:
    response: web.StreamResponse = await asyncio.shield(asyncio.ensure_future(handler(request)))
    return response


@web.middleware
async def tried_after_all(request: web.Request, handler: Callable[..., Awaitable[Any]]) -> web.StreamResponse:
    for _ in range(2):
        try:
            response: web.StreamResponse = await handler(request)
        except asyncio.CancelledError:
            continue
        return response
    return web.Response()


@pytest.mark.parametrize("outside", [shielded, tried_after_all])
async def test_what_a_middleware_does_after_clean_up_is_not_told_again(outside: Any) -> None:
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.Response()

    app, told = web.Application(), Told()
    app.router.add_get("/", handler)
    told.observe(app)
    app.middlewares.insert(0, outside)
    async with serving(app, shutdown_timeout=0.05) as service:
        writer = await asking(service, told)
    writer.close()
    go_on.set()
    (exchange,) = await ended(app, told, 1)
    assert _end_of(exchange) == ("/", "None", "CancelledError")
    await asyncio.sleep(0.05)
    assert told.witness._ended.empty()
    assert len(told.witness.begun) == len(told.spans.servers) == 1


# Sizes and errors


async def test_a_byte_that_is_no_text_in_a_header_costs_neither_error_nor_size() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-Echo": request.headers["X-Thing"]})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"some")
        raise ValueError

    app = web.Application()
    app.router.add_get("/", handler)
    async with observed(app) as (service, told):
        await service.exchange_bytes(
            b"GET / HTTP/1.1\r\nHost: x\r\nX-Thing: a\xff\r\nConnection: close\r\n\r\n"
        )
        (exchange,) = await ended(app, told, 1)
    assert _end_of(exchange) == ("/", "200", "ValueError")
    assert exchange.response_size == len("4\r\nsome\r\n")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_stream_for_a_client_that_has_left_is_told_as_that(method: str) -> None:
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await left.wait()
        await until(lambda: request.transport is None, "the server to notice")
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    app = web.Application()
    app.router.add_get("/", handler)
    async with observed(app) as (service, told):
        writer = await asking(service, told, method)
        writer.close()
        left.set()
        (exchange,) = await ended(app, told, 1)
    assert _end_of(exchange)[1:] == LEFT


# More websockets


@pytest.mark.parametrize("first", [4001, None])
async def test_who_closes_a_websocket_first_gives_the_code(first: int | None) -> None:
    """Two tasks of the service do; one gives no code."""

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        calls = (socket.close() if first is None else socket.close(code=first), socket.close(code=4002))
        closing = [asyncio.ensure_future(call) for call in calls]
        await socket.receive()
        await asyncio.wait(closing)
        return socket

    async with echoing(handler) as (app, service, told):
        async with service.session.ws_connect(service.url("/")) as client:
            await client.receive()
            seen = client.close_code
        (exchange,) = await ended(app, told, 1)
    assert exchange.websocket is not None
    assert exchange.websocket.close_code == seen == (first or 1000)


async def test_one_whose_class_is_closed_by_position_is_told_with_its_code() -> None:
    class Curt(web.WebSocketResponse):
        async def close(self, code: int = 1000, *rest: Any, **options: Any) -> bool:
            return await super().close(code=code, **options)

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = Curt()
        await socket.prepare(request)
        await socket.close(4001)
        return socket

    async with echoing(handler) as (app, service, told):
        async with service.session.ws_connect(service.url("/")) as client:
            await client.receive()
            assert client.close_code == 4001
        (exchange,) = await ended(app, told, 1)
    assert exchange.websocket is not None
    assert exchange.websocket.close_code == 4001
    assert _end_of(exchange) == ("/", "101", "")


async def test_a_websocket_that_lets_nobody_exchange_its_methods_is_served_uncounted() -> None:
    class Sealed(web.WebSocketResponse):
        @property
        def receive(self) -> Any:
            return super().receive

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = Sealed()
        await socket.prepare(request)
        return await answer_once(socket)

    async with echoing(handler) as (app, service, told):
        await is_answered_once(service)
        (exchange,) = await ended(app, told, 1)
    assert _end_of(exchange) == ("/", "101", "")


async def test_what_a_websocket_works_on_for_nobody_is_measured() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        (flight,) = request.app[OBSERVABILITY].recorder.in_flight.values()
        await until(lambda: flight.client_left_at is not None, "somebody to notice")
        await asyncio.sleep(0.02)
        return socket

    async with echoing(handler) as (app, service, told):
        client = await service.session.ws_connect(service.url("/"))
        assert client._response.connection is not None
        client._response.connection.transport.abort()
        (exchange,) = await ended(app, told, 1)
        measured = told.registry.get_sample_value("http_server_abandoned_seconds_total", {"http_route": "/"})
    assert exchange.abandoned >= 0.02
    assert measured == pytest.approx(exchange.abandoned)
