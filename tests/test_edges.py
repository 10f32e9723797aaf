"""The edges of a request, told alike by all signals: span, metric, access line, observer, flight recorder."""

from __future__ import annotations

import asyncio
import gc
import gzip
import io
import json
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from aiohttp.web_urldispatcher import AbstractResource, ResourceRoute
from aiohttp_sse import sse_response
from opentelemetry.sdk.trace import ReadableSpan
from prometheus_client import CollectorRegistry
from yarl import URL

from aiohttp_observe import (
    OBSERVABILITY,
    Exchange,
    Logs,
    Metrics,
    Tracing,
    request_id,
    setup_observability,
)
from tests.service import PATIENCE, Service, Witness, serving, until
from tests.spans import Handler, Spans, attributes, ok
from tests.tls import make_tls

LEFT = ("499", "client_disconnected")


class Told:
    """All that a service says of its requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.spans = Spans()
        self.log = io.StringIO()
        self.witness = Witness()

    def observe(self, app: web.Application) -> None:
        setup_observability(
            app,
            metrics=Metrics(registry=self.registry),
            logs=Logs(stream=self.log, replace=True),
            tracing=Tracing(provider=self.spans.provider),
            observers=[self.witness],
        )

    def durations(self) -> list[tuple[tuple[str, str, str], int, float]]:
        """Route, status and error of each duration series, how often, and seconds in all."""
        found: dict[tuple[str, str, str], dict[str, float]] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                name, _, part = sample.name.rpartition("_")
                if name == "http_server_request_duration_seconds" and part in ("count", "sum"):
                    labels = sample.labels
                    key = labels["http_route"], labels["http_response_status_code"], labels["error_type"]
                    found.setdefault(key, {})[part] = sample.value
        return [(key, int(each["count"]), each["sum"]) for key, each in found.items() if each["count"]]

    def access_lines(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["logger"] == "aiohttp_observe.access"]

    def span(self) -> ReadableSpan:
        (span,) = self.spans.servers
        return span


@asynccontextmanager
async def observed(app: web.Application, **runner: Any) -> AsyncIterator[tuple[Service, Told]]:
    told = Told()
    told.observe(app)
    async with serving(app, **runner) as service:
        yield service, told


async def agree(app: web.Application, told: Told, expected: tuple[str, str, str]) -> Exchange:
    """That the one request has ended as ``expected`` (route, status, error) says, for everybody."""
    route, status, error = expected
    exchange = await told.witness.next()
    assert (exchange.route, str(exchange.status), exchange.error_type or "") == expected
    assert exchange.duration is not None
    seconds = exchange.duration

    ((labels, number, total),) = told.durations()
    assert (labels, number) == (expected, 1)
    assert total == pytest.approx(seconds)

    await until(told.access_lines, "the access line")
    (line,) = told.access_lines()
    assert line["request_id"] == exchange.request_id
    assert (line["http.route"], str(line["http.response.status_code"])) == (route, status)
    assert line.get("error.type", "") == error
    assert line["duration_ms"] == pytest.approx(seconds * 1000, abs=0.001)

    _span_agrees(told.span(), exchange, expected)
    documents = app[OBSERVABILITY].documents
    whole = documents.request(exchange.request_id)
    assert whole is not None
    assert (whole["route"], str(whole["status"]), whole["error_type"] or "") == expected
    assert (whole["in_flight"], whole["seconds"]) == (False, pytest.approx(seconds, abs=1e-6))
    assert list(app[OBSERVABILITY].recorder.in_flight) == []
    measured = {"http_request_method": exchange.method, "http_route": route}
    assert told.registry.get_sample_value(
        "http_server_active_requests", {"http_request_method": exchange.method}
    ) in (None, 0)
    if exchange.websocket is None:
        sent = told.registry.get_sample_value("http_server_response_body_size_bytes_sum", measured)
        assert sent == exchange.response_size
    received = told.registry.get_sample_value("http_server_request_body_size_bytes_sum", measured)
    assert (received or 0) == exchange.request_size
    return exchange


def _span_agrees(span: ReadableSpan, exchange: Exchange, expected: tuple[str, str, str]) -> None:
    route, status, error = expected
    shown = attributes(span)
    assert shown.get("http.route", "_unmatched") == route
    assert (str(shown["http.response.status_code"]), shown.get("error.type", "")) == (status, error)
    assert (span.status.status_code.name == "ERROR") == (bool(error) and status != "499")
    assert span.end_time is not None
    assert span.start_time is not None
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(exchange.duration or 0, abs=1e-6)


# Answers


async def returns_not_found(request: web.Request) -> web.StreamResponse:
    return web.HTTPNotFound()


async def raises_forbidden(request: web.Request) -> web.StreamResponse:
    raise web.HTTPForbidden


async def redirects(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


async def raises_unavailable(request: web.Request) -> web.StreamResponse:
    raise web.HTTPServiceUnavailable


async def crashes(request: web.Request) -> web.StreamResponse:
    raise ZeroDivisionError


async def times_out(request: web.Request) -> web.StreamResponse:
    raise asyncio.TimeoutError


async def loses_several(request: web.Request) -> web.StreamResponse:
    group: Any = getattr(sys.modules["builtins"], "ExceptionGroup")  # noqa: B009 - it is from Python 3.11
    raise group("both", [ValueError(), KeyError()])


async def returns_nothing(request: web.Request) -> web.StreamResponse:
    return None  # type: ignore[return-value]


async def swallows_a_cancellation(request: web.Request) -> web.StreamResponse:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        await asyncio.sleep(PATIENCE)
    except asyncio.CancelledError:
        if sys.version_info >= (3, 11):
            task.uncancel()
    return web.Response()


async def streams(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(3):
        await response.write(b"x" * 1000)
        await asyncio.sleep(0.01)
    return response


async def sends_events(request: web.Request) -> web.StreamResponse:
    async with sse_response(request) as response:
        await response.send("one")
        await response.send("two")
    return response


async def is_not_modified(request: web.Request) -> web.StreamResponse:
    return web.Response(status=304)


CASES: list[tuple[Any, str, str]] = [
    (ok, "200", ""),
    (returns_not_found, "404", ""),
    (raises_forbidden, "403", ""),
    (redirects, "302", ""),
    (raises_unavailable, "503", "503"),
    (crashes, "500", "ZeroDivisionError"),
    (times_out, "504", "TimeoutError"),
    *([(loses_several, "500", "ExceptionGroup")] if sys.version_info >= (3, 11) else []),
    (swallows_a_cancellation, "200", ""),
    (streams, "200", ""),
    (sends_events, "200", ""),
    (is_not_modified, "304", ""),
]


@pytest.mark.filterwarnings("ignore:returning HTTPException object is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("handler", "status", "error"), CASES, ids=[case[0].__name__ for case in CASES])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_answers(handler: Handler, status: str, error: str, method: str) -> None:
    if method == "HEAD" and handler in (streams, sends_events):
        pytest.skip("these send a body whatever is asked")
    app = web.Application()
    app.router.add_route("*", "/{id}", handler)
    async with observed(app) as (service, told):
        answer = await service.request(method, "/1", allow_redirects=False)
        assert answer.request_id
        exchange = await agree(app, told, ("/{id}", status, error))
    assert answer.request_id == exchange.request_id
    framing = 50 if "Transfer-Encoding" in answer.headers else 0
    assert 0 <= exchange.response_size - (0 if method == "HEAD" else len(answer.text)) <= framing


async def test_a_handler_that_returns_nothing() -> None:
    app = web.Application()
    app.router.add_get("/", returns_nothing)
    async with observed(app) as (service, told):
        assert (await service.get("/")).status == 500
        exchange = await told.witness.next()
        ((labels, number, _),) = told.durations()
    assert (labels[1], number) == ("500", 1)
    assert exchange.error_type == labels[2] != ""


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", "404"), ("POST", "/here", "405")])
async def test_what_no_route_takes(method: str, path: str, status: str) -> None:
    app = web.Application()
    app.router.add_get("/here", ok)
    async with observed(app) as (service, told):
        await service.request(method, path)
        await agree(app, told, ("_unmatched", status, ""))


async def test_an_answer_that_cannot_be_prepared_has_no_status() -> None:
    """Its client is sent nothing at all."""

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        raise LookupError("no key")

    app = web.Application()
    app.router.add_get("/", ok)
    app.on_response_prepare.append(sign)
    async with observed(app) as (service, told):
        assert await service.exchange_bytes(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        exchange = await told.witness.next()
    assert (exchange.status, exchange.error_type) == (None, "LookupError")
    assert [labels for labels, _, _ in told.durations()] == [("/", "", "LookupError")]
    assert "http.response.status_code" not in attributes(told.span())


@pytest.mark.parametrize("then", ["returned", "raised"])
async def test_of_two_answers_the_first_counts(then: str) -> None:
    """What follows is more of its body to a client."""

    async def handler(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse(status=206)
        await stream.prepare(request)
        await stream.write(b"some")
        if then == "raised":
            raise web.HTTPBadRequest
        return web.Response(status=500)

    app = web.Application()
    app.router.add_get("/", handler)
    async with observed(app) as (service, told):
        sent = await service.exchange_bytes(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        assert sent.startswith(b"HTTP/1.0 206")
        await agree(app, told, ("/", "206", ""))


async def test_an_expectation_that_is_refused_is_a_request_like_others() -> None:
    app = web.Application()
    app.router.add_get("/", ok)
    async with observed(app) as (service, told):
        assert (await service.get("/", headers={"Expect": "nonsense"})).status == 417
        exchange = await agree(app, told, ("/", "417", ""))
        assert told.witness.begun == [exchange]


async def test_a_request_that_is_tried_again_is_one() -> None:
    attempts = []

    @web.middleware
    async def tries_again(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except LookupError:
            return await handler(request)

    async def handler(request: web.Request) -> web.StreamResponse:
        attempts.append(request_id())
        if len(attempts) == 1:
            raise LookupError
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    told = Told()
    told.observe(app)
    app.middlewares.insert(0, tries_again)  # outside ours
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
        exchange = await agree(app, told, ("/", "200", ""))
    assert attempts == [exchange.request_id] * 2


# Where a request may end up


class View(web.View):
    async def get(self) -> web.StreamResponse:
        return web.Response()


def nested(depth: int) -> web.Application:
    app = web.Application()
    app.router.add_get("/leaf/{id}", ok)
    for _ in range(depth):
        outer = web.Application()
        outer.add_subapp("/in", app)
        app = outer
    return app


def with_domain() -> web.Application:
    app, there = web.Application(), web.Application()
    there.router.add_get("/there", ok)
    app.add_domain("there.example", there)
    return app


def with_table() -> web.Application:
    routes, app = web.RouteTableDef(), web.Application()
    routes.get("/table/{id}")(ok)
    app.add_routes(routes)
    return app


def with_view() -> web.Application:
    app = web.Application()
    app.router.add_view("/view/{id}", View)
    return app


def with_pattern() -> web.Application:
    app = web.Application()
    app.router.add_get(r"/pattern/{id:\d+}/{rest:.*}", ok)
    return app


def with_files() -> web.Application:
    app = web.Application()
    app.router.add_static("/files", Path(__file__).parent)
    return app


@pytest.mark.parametrize(
    ("make", "path", "route"),
    [
        (lambda: nested(3), "/in/in/in/leaf/1", "/in/in/in/leaf/{id}"),
        (with_domain, "/there", "/there"),
        (with_table, "/table/1", "/table/{id}"),
        (with_view, "/view/1", "/view/{id}"),
        (with_pattern, "/pattern/12/a/b", "/pattern/{id}/{rest}"),
        (with_files, f"/files/{Path(__file__).name}", "/files"),
    ],
)
async def test_routes(make: Callable[[], web.Application], path: str, route: str) -> None:
    app = make()
    async with observed(app) as (service, told):
        answer = await service.get(path, headers={"Host": "there.example"})
        assert answer.status == 200
        exchange = await agree(app, told, (route, "200", ""))
    assert exchange.response_size == len(answer.text.encode())


async def test_a_unix_socket(tmp_path: Path) -> None:
    app, told = web.Application(), Told()
    app.router.add_get("/", ok)
    told.observe(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "sock")).start()
    connector = aiohttp.UnixConnector(str(tmp_path / "sock"))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://x/") as response:
        assert response.status == 200
    exchange = await agree(app, told, ("/", "200", ""))
    assert exchange.client_address is None
    await runner.cleanup()


async def test_tls(tmp_path: Path) -> None:
    tls, app, told = make_tls(tmp_path), web.Application(), Told()
    app.router.add_get("/", ok)
    told.observe(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.serving).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/"
    async with aiohttp.ClientSession() as session, session.get(url, ssl=tls.trusting) as response:
        assert response.status == 200
    await agree(app, told, ("/", "200", ""))
    assert attributes(told.span())["url.scheme"] == "https"
    await runner.cleanup()


class Catalogue(AbstractResource):
    """A resource of the service's own, that knows its paths by other means than a pattern."""

    @property
    def canonical(self) -> str:
        return "/catalogue"

    def url_for(self, **kwargs: str) -> URL:
        return URL("/catalogue")

    def add_prefix(self, prefix: str) -> None:
        raise NotImplementedError

    def get_info(self) -> Any:
        return {"path": "/catalogue"}

    def raw_match(self, path: str) -> bool:
        return False

    async def resolve(self, request: web.Request) -> Any:
        if not request.path.startswith("/catalogue/"):
            return None, set()
        return web.UrlMappingMatchInfo({"all": request.path}, ResourceRoute("GET", ok, self)), {"GET"}

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())


async def test_a_resource_of_the_services_own() -> None:
    app = web.Application()
    app.router.register_resource(Catalogue())
    async with observed(app) as (service, told):
        assert (await service.get("/catalogue/a/b/c")).status == 200
        await agree(app, told, ("/catalogue", "200", ""))


async def test_a_resource_of_the_services_own_needs_no_canonical_path() -> None:
    class Nameless(Catalogue):
        @property
        def canonical(self) -> str:
            if self.sealed:  # aiohttp asks for it itself when the resource is registered
                raise NotImplementedError
            return "/catalogue"

        sealed = False

    app, resource = web.Application(), Nameless()
    app.router.register_resource(resource)
    async with observed(app) as (service, told):
        resource.sealed = True
        assert (await service.get("/catalogue/a/b/c")).status == 200
        await agree(app, told, ("_unmatched", "200", ""))


async def test_several_sites_of_one_application() -> None:
    app, told = web.Application(), Told()
    app.router.add_get("/", ok)
    told.observe(app)
    runner = web.AppRunner(app)
    await runner.setup()
    for _ in range(2):
        await web.TCPSite(runner, "127.0.0.1", 0).start()
    for _, port in runner.addresses:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await told.witness.next()
        writer.close()
    assert [(labels, number) for labels, number, _ in told.durations()] == [(("/", "200", ""), 2)]
    await runner.cleanup()


# Others in the way


async def test_a_middleware_that_raises_before_the_handler() -> None:
    @web.middleware
    async def raising(request: web.Request, handler: Handler) -> web.StreamResponse:
        raise LookupError

    app = web.Application(middlewares=[raising])
    app.router.add_get("/", ok)
    async with observed(app) as (service, told):
        assert (await service.get("/")).status == 500
        await agree(app, told, ("/", "500", "LookupError"))


async def test_a_middleware_that_makes_an_answer_of_an_error() -> None:
    @web.middleware
    async def answering(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ZeroDivisionError:
            return web.Response(status=422, text="not by zero")

    app = web.Application(middlewares=[answering])
    app.router.add_get("/", crashes)
    async with observed(app) as (service, told):
        assert (await service.get("/")).text == "not by zero"
        await agree(app, told, ("/", "422", ""))


async def test_a_signal_that_raises_while_the_response_is_prepared() -> None:
    async def raising(request: web.Request, response: web.StreamResponse) -> None:
        if request.path == "/" and response.status == 200:
            raise LookupError

    app = web.Application()
    app.router.add_get("/", ok)
    app.on_response_prepare.append(raising)
    async with observed(app) as (service, told):
        assert await service.exchange_bytes(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        exchange = await told.witness.next()
        ((labels, number, _),) = told.durations()
    assert (labels[2], number) == ("LookupError", 1)
    assert exchange.error_type == "LookupError"


# Bodies


async def takes_it_all(request: web.Request) -> web.StreamResponse:
    return web.Response(text=str(len(await request.read())))


async def test_a_compressed_body_counts_as_it_was_sent() -> None:
    app = web.Application()
    app.router.add_post("/", takes_it_all)
    body = gzip.compress(b"x" * 10_000)
    async with observed(app) as (service, told):
        answer = await service.request("POST", "/", data=body, headers={"Content-Encoding": "gzip"})
        assert answer.text == "10000"
        exchange = await agree(app, told, ("/", "200", ""))
    assert exchange.request_size == len(body)


async def test_a_body_that_is_expected_first() -> None:
    app = web.Application()
    app.router.add_post("/", takes_it_all)
    async with observed(app) as (service, told):
        answer = await service.request("POST", "/", data=b"x" * 100, expect100=True)
        assert answer.text == "100"
        exchange = await agree(app, told, ("/", "200", ""))
    assert exchange.request_size == 100


async def test_a_body_of_which_half_is_sent() -> None:
    app = web.Application()
    app.router.add_post("/", takes_it_all)
    async with observed(app) as (service, told):
        _, writer = await service.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + b"x" * 50)
        await until(lambda: told.witness.begun, "the request")
        writer.close()
        exchange = await agree(app, told, ("/", *LEFT))
    assert exchange.request_size == 50


# Clients that leave


@dataclass
class Waiting:
    """A handler that waits until it may go on."""

    may_go_on: asyncio.Event
    entered: asyncio.Event

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.entered.set()
        await self.may_go_on.wait()
        return web.Response()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_client_that_leaves_while_its_handler_works(cancelled: bool) -> None:
    waiting = Waiting(asyncio.Event(), asyncio.Event())
    app = web.Application()
    app.router.add_get("/", waiting.handle)
    async with observed(app, handler_cancellation=cancelled) as (service, told):
        _, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await waiting.entered.wait()
        (flight,) = app[OBSERVABILITY].recorder.in_flight.values()
        writer.close()
        await until(lambda: flight.has_landed() or flight.request.transport is None, "the server to notice")
        waiting.may_go_on.set()
        await agree(app, told, ("/", *LEFT))


async def test_a_client_that_leaves_a_stream() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 1000)
            await asyncio.sleep(0)

    app = web.Application()
    app.router.add_get("/", endless)
    async with observed(app) as (service, told):
        async with service.session.get(service.url("/")) as response:
            await response.content.readexactly(5000)
            response.close()
        exchange = await agree(app, told, ("/", *LEFT))
    assert exchange.response_size >= 5000


async def test_a_slow_reader() -> None:
    async def much(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * 20_000_000)

    app = web.Application()
    app.router.add_get("/", much)
    async with observed(app) as (service, told):
        reader, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0.3)
        received = len(await reader.read())
        writer.close()
        exchange = await agree(app, told, ("/", "200", ""))
    assert received > 20_000_000 == exchange.response_size
    assert exchange.duration is not None
    assert exchange.duration > 0.2
    assert exchange.waiting.get("response", 0) > 0.2


# Websockets


async def echoes(request: web.Request) -> web.StreamResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            await ws.send_str(message.data)
    return ws


@pytest.mark.parametrize("leaving", ["closes", "breaks off"])
async def test_a_websocket(leaving: str) -> None:
    app = web.Application()
    app.router.add_get("/", echoes)
    async with observed(app) as (service, told):
        async with service.session.ws_connect(service.url("/")) as ws:
            await ws.send_str("hello")
            assert await ws.receive_str() == "hello"
            if leaving == "breaks off":
                assert ws._response.connection is not None
                transport: Any = ws._response.connection.transport
                transport.abort()
        exchange = await agree(app, told, ("/", "101", ""))
    facts = {
        "websocket.messages_received": 1,
        "websocket.messages_sent": 1,
        "websocket.close_code": 1000 if leaving == "closes" else 1006,
    }
    assert exchange.websocket is not None
    assert exchange.websocket.attributes == facts
    assert facts.items() <= told.access_lines()[0].items()
    assert facts.items() <= attributes(told.span()).items()


async def test_a_websocket_tells_its_messages_and_is_left_as_it_was() -> None:
    app, sockets = web.Application(), []

    async def talks(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        sockets.append(weakref.ref(ws))
        await ws.send_json({"hello": "you"})
        assert await ws.receive_json() == ["hello"]
        assert await ws.receive_bytes() == b"bytes"
        await ws.ping()
        for opcode in (WSMsgType.PING, WSMsgType.PONG, WSMsgType.TEXT):
            await ws.send_frame(b"", opcode)
        for _ in range(3):
            await ws.send_bytes(b"bytes")
        with pytest.raises(TypeError):
            await ws.send_str(b"no text")  # type: ignore[arg-type]
        await ws.close()
        return ws

    app.router.add_get("/", talks)
    gc.disable()
    try:
        async with observed(app) as (service, told):
            async with service.session.ws_connect(service.url("/")) as ws:
                await ws.send_json(["hello"])
                await ws.send_bytes(b"bytes")
                assert len([message async for message in ws]) == 5
            exchange = await agree(app, told, ("/", "101", ""))
            assert exchange.websocket is not None
            assert (exchange.websocket.received, exchange.websocket.sent) == (2, 5)
        assert [ref() for ref in sockets] == [None]
    finally:
        gc.enable()


async def test_a_websocket_whose_handler_returns_something_else_was_one() -> None:
    async def talks(request: web.Request) -> web.StreamResponse:
        await echoes(request)
        return web.Response(text="unseen")

    app = web.Application()
    app.router.add_get("/", talks)
    async with observed(app) as (service, told):
        async with service.session.ws_connect(service.url("/")) as ws:
            await ws.send_str("hello")
            assert await ws.receive_str() == "hello"
        exchange = await agree(app, told, ("/", "101", ""))
    assert exchange.websocket is not None
    assert exchange.websocket.close_code == 1000


# Shutting down


async def test_requests_in_flight_at_shutdown_end_as_they_do() -> None:
    waiting = Waiting(asyncio.Event(), asyncio.Event())
    app, told = web.Application(), Told()
    app.router.add_get("/", waiting.handle)
    told.observe(app)
    runner = web.AppRunner(app, shutdown_timeout=PATIENCE)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await waiting.entered.wait()
    ending: Awaitable[None] = asyncio.ensure_future(runner.cleanup())
    await asyncio.sleep(0.05)
    waiting.may_go_on.set()
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    await ending
    writer.close()
    exchange = await told.witness.next()
    assert (exchange.status, exchange.error_type) == (200, None)
    assert [line["http.response.status_code"] for line in told.access_lines()] == [200]
    assert attributes(told.span())["http.response.status_code"] == 200
