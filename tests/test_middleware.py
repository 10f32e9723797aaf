"""Every request is seen once, from its first byte to its last, and told as it truly ended."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import CIMultiDictProxy
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    OBSERVABILITY,
    Exchange,
    Metrics,
    Observer,
    current_exchange,
    request_id,
    setup_observability,
    take_snapshot,
)
from tests.service import Service, Witness, serving, until

DURATION = "http_server_request_duration_seconds"
HOSTILE_IDS = {
    "too long": "a" * 129,
    "empty": "",
    "a space": "a b",
    "a quote": 'a"b',
    "markup": "<script>",
    "a control character": "a\x01b",
    "not ASCII": "é",
    "a digit of another script": "\u0661",
    "a comma": "a,b",
}


# Handlers of all kinds


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=str(request_id()))


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(3):
        await response.write(b"0123456789")
    return response


async def websocket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(f"{message.data} {request_id()}")
    return socket


async def file(request: web.Request) -> web.FileResponse:
    return web.FileResponse(Path(__file__))


async def nothing(request: web.Request) -> None:
    return None


async def crash(request: web.Request) -> web.Response:
    raise LookupError("crashed")


async def time_out(request: web.Request) -> web.Response:
    raise asyncio.TimeoutError


async def unavailable(request: web.Request) -> web.Response:
    raise web.HTTPServiceUnavailable


async def move(request: web.Request) -> web.Response:
    raise web.HTTPFound("/hello")


async def refuse(request: web.Request) -> web.Response:
    return web.Response(status=502)


async def empty(request: web.Request) -> web.Response:
    return web.Response(status=204)


class Basket(web.View):
    async def get(self) -> web.Response:
        return web.Response(text=str(request_id()))


HANDLERS: dict[str, Any] = {
    "hello": hello,
    "stream": stream,
    "websocket": websocket,
    "file": file,
    "nothing": nothing,
    "crash": crash,
    "timeout": time_out,
    "unavailable": unavailable,
    "found": move,
    "refuse": refuse,
    "empty": empty,
    "basket": Basket,
}


def routes(app: web.Application) -> web.Application:
    for name, handler in HANDLERS.items():
        app.router.add_get(f"/{name}", handler)
    return app


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
async def service(registry: CollectorRegistry, witness: Witness) -> AsyncIterator[Service]:
    app = routes(web.Application())
    observability = setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        yield service
    assert observability.recorder.in_flight == {}


# Request ids


@pytest.mark.parametrize("claimed", ["a", "Z9._:-", "a" * 128, "00-4bf9-01"])
async def test_a_well_formed_request_id_is_taken_over(claimed: str, service: Service) -> None:
    answer = await service.get("/hello", headers={"X-Request-ID": claimed})
    assert answer.request_id == answer.text == claimed


@pytest.mark.parametrize("claimed", HOSTILE_IDS.values(), ids=HOSTILE_IDS)
async def test_any_other_request_id_is_replaced(claimed: str, service: Service) -> None:
    received = await service.exchange_bytes(
        b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-ID: %b\r\n\r\n" % claimed.encode()
    )
    head, _, body = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.0 400"):  # aiohttp's parser refuses the control character itself
        return
    assert head.startswith(b"HTTP/1.1 200")
    assert b"X-Request-ID: " + body in head
    assert len(body) == 32


async def test_each_request_gets_an_id_of_its_own(service: Service) -> None:
    answers = await asyncio.gather(*(service.get("/hello") for _ in range(20)))
    assert len({answer.request_id for answer in answers}) == 20


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/hello", 200),
        ("/stream", 200),
        ("/file", 200),
        ("/basket", 200),
        ("/found", 302),
        ("/nowhere", 404),
        ("/nothing", 500),
        ("/crash", 500),
        ("/timeout", 504),
        ("/unavailable", 503),
    ],
)
async def test_the_id_is_on_every_response(path: str, status: int, service: Service) -> None:
    answer = await service.get(path, headers={"X-Request-ID": "mine"}, allow_redirects=False)
    assert (answer.status, answer.request_id) == (status, "mine")


async def test_the_id_is_on_a_refused_method(service: Service) -> None:
    answer = await service.request("DELETE", "/hello", headers={"X-Request-ID": "mine"})
    assert (answer.status, answer.request_id) == (405, "mine")


async def test_the_id_is_on_a_websockets_handshake(service: Service) -> None:
    url, headers = service.url("/websocket"), {"X-Request-ID": "mine"}
    async with service.session.ws_connect(url, headers=headers) as socket:
        assert socket._response.headers["X-Request-ID"] == "mine"
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello mine"


# Observers of the user's own


class Slowest:
    def __init__(self) -> None:
        self.route, self.seconds = "", 0.0

    def finished(self, exchange: Exchange) -> None:
        if exchange.duration is not None and exchange.duration > self.seconds:
            self.route, self.seconds = exchange.route, exchange.duration


async def test_an_observer_is_eight_lines(registry: CollectorRegistry, witness: Witness) -> None:
    slowest, app = Slowest(), routes(web.Application())
    setup_observability(app, metrics=Metrics(registry=registry), observers=[slowest, witness])
    async with serving(app) as service:
        await service.get("/hello")
        await witness.next()
    assert slowest.route == "/hello"
    assert slowest.seconds > 0


async def test_an_observer_sees_half_at_the_start_and_all_at_the_end(registry: CollectorRegistry) -> None:
    class Halves(Witness):
        def started(self, exchange: Exchange) -> None:
            assert (exchange.status, exchange.duration, exchange.polls) == (None, None, 0)
            assert current_exchange() is exchange
            super().started(exchange)

        def finished(self, exchange: Exchange) -> None:
            assert current_exchange() is exchange
            super().finished(exchange)

    halves, app = Halves(), routes(web.Application())
    setup_observability(app, metrics=Metrics(registry=registry), observers=[halves])
    async with serving(app) as service:
        await service.get("/hello?q=1", headers={"User-Agent": "test"})
        exchange = await halves.next()
    assert halves.begun == [exchange]
    assert (exchange.method, exchange.route, exchange.path) == ("GET", "/hello", "/hello")
    assert (exchange.status, exchange.error_type) == (200, None)
    assert (exchange.client_address, exchange.user_agent) == ("127.0.0.1", "test")
    assert exchange.response_size == 32
    assert exchange.duration is not None
    assert 0 < exchange.longest_poll <= exchange.busy <= exchange.duration
    assert exchange.trace_id is not None
    assert len(exchange.trace_id) == 32
    assert exchange.span_id is not None
    assert len(exchange.span_id) == 16
    assert repr(exchange) == f"<Exchange {exchange.request_id} GET /hello 200>"


class Broken:
    """Fails in both hooks, in different ways."""

    def started(self, exchange: Exchange) -> None:
        raise LookupError("started")

    def finished(self, exchange: Exchange) -> None:
        raise ArithmeticError("finished")


async def test_a_broken_observer_never_hurts_a_request(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, witness: Witness
) -> None:
    """It is logged once for each kind of exception, and counted every time."""
    app = routes(web.Application())
    setup_observability(app, metrics=Metrics(registry=registry), observers=[Broken(), witness])
    async with serving(app) as service:
        for _ in range(3):
            answer = await service.get("/hello")
            assert (answer.status, answer.request_id) == (200, answer.text)
            await witness.next()
    errors = registry.get_sample_value("aiohttp_observe_internal_errors_total", {"observer": "Broken"})
    assert errors == 6
    told = [record for record in caplog.records if record.name == "aiohttp_observe"]
    assert [record.exc_info[0] for record in told if record.exc_info] == [LookupError, ArithmeticError]
    assert all("observer Broken failed" in record.getMessage() for record in told)


class Foreign(logging.Filter):
    """Takes every record for one of the service's own."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.user is not None  # type: ignore[attr-defined]


async def test_nor_does_one_of_which_not_even_the_log_takes_notice(
    registry: CollectorRegistry, witness: Witness
) -> None:
    handler = logging.StreamHandler(io.StringIO())
    handler.addFilter(Foreign())
    logging.getLogger().addHandler(handler)
    try:
        app = routes(web.Application())
        setup_observability(app, metrics=Metrics(registry=registry), logs=None, observers=[Broken(), witness])
        async with serving(app) as service:
            answer = await service.get("/hello")
            assert (answer.status, answer.request_id) == (200, answer.text)
            await witness.next()
    finally:
        logging.getLogger().removeHandler(handler)
    for observer, count in (("Broken", 2), ("logs", 2)):
        name = "aiohttp_observe_internal_errors_total"
        assert registry.get_sample_value(name, {"observer": observer}) == count


class Asking:
    """Wants the result of something, at every opportunity."""

    def __init__(self, something: asyncio.Future[None]) -> None:
        self._something = something

    def started(self, exchange: Exchange) -> None:
        self._something.result()

    def finished(self, exchange: Exchange) -> None:
        self._something.result()


async def test_an_observer_that_asks_a_cancelled_task_cancels_no_request(
    registry: CollectorRegistry, witness: Witness
) -> None:
    lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    lost.cancel()
    app = web.Application()
    app.router.add_get("/hello", hello)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[Asking(lost), witness])
    async with serving(app) as service:
        assert (await service.get("/hello")).status == 200
        assert (await witness.next()).status == 200
    assert registry.get_sample_value("aiohttp_observe_internal_errors_total", {"observer": "Asking"}) == 2


async def test_an_observer_that_always_fails_differently_does_not_flood_the_log(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, witness: Witness
) -> None:
    class Inventive:
        def finished(self, exchange: Exchange) -> None:
            raise type("Surprise", (Exception,), {})

    app = routes(web.Application())
    setup_observability(app, metrics=Metrics(registry=registry), observers=[Inventive(), witness])
    async with serving(app) as service:
        for _ in range(150):
            await service.get("/hello")
            await witness.next()
    assert len([record for record in caplog.records if record.name == "aiohttp_observe"]) == 100


@pytest.mark.parametrize(
    "observer", [Slowest(), Witness(), Broken()], ids=lambda observer: type(observer).__name__
)
def test_objects_with_the_hooks_are_observers(observer: object) -> None:
    """As the type says; the one with ``finished`` alone is fine for setting up, not for the type."""
    assert isinstance(observer, Observer) == hasattr(observer, "started")


# Routes


async def test_a_class_based_view_is_observed(service: Service, witness: Witness) -> None:
    answer = await service.get("/basket")
    exchange = await witness.next()
    assert (exchange.route, exchange.status, exchange.request_id) == ("/basket", 200, answer.text)
    assert exchange.polls == 1


async def test_routes_of_nested_applications_carry_their_prefixes(
    registry: CollectorRegistry, witness: Witness
) -> None:
    """And each request is observed once, however deep."""
    inner, middle, root = routes(web.Application()), web.Application(), web.Application()
    inner.router.add_get("/items/{id}", hello)
    middle.add_subapp("/inner", inner)
    root.add_subapp("/middle", middle)
    setup_observability(root, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(root) as service:
        answer = await service.get("/middle/inner/items/7")
        exchange = await witness.next()
        assert (exchange.route, exchange.path) == ("/middle/inner/items/{id}", "/middle/inner/items/7")
        assert answer.request_id == answer.text
        assert (await service.get("/middle/inner/nowhere")).status == 404
        assert (await witness.next()).route == "_unmatched"
    assert len(witness.begun) == 2


async def test_applications_of_a_domain_are_observed(registry: CollectorRegistry, witness: Witness) -> None:
    root, domain = web.Application(), routes(web.Application())
    root.add_domain("shop.example", domain)
    setup_observability(root, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(root) as service:
        answer = await service.get("/hello", headers={"Host": "shop.example"})
        assert answer.request_id == answer.text
        assert (await witness.next()).route == "/hello"
        assert (await service.get("/hello", headers={"Host": "elsewhere.example"})).status == 404
        assert (await witness.next()).route == "_unmatched"


async def test_a_static_folder_is_one_route(
    registry: CollectorRegistry, witness: Witness, tmp_path: Path
) -> None:
    (tmp_path / "page.txt").write_text("page")
    app = web.Application()
    app.router.add_static("/static", tmp_path)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        assert (await service.get("/static/page.txt")).text == "page"
        exchange = await witness.next()
    assert (exchange.route, exchange.path, exchange.response_size) == ("/static", "/static/page.txt", 4)


async def test_a_method_that_is_not_standard_becomes_other(service: Service, witness: Witness) -> None:
    await service.request("PROPFIND", "/hello")
    exchange = await witness.next()
    assert (exchange.method, exchange.route, exchange.status) == ("_OTHER", "_unmatched", 405)


# The truth about the end


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/hello", 200, None),
        ("/found", 302, None),
        ("/nowhere", 404, None),
        ("/nothing", 500, "500"),
        ("/crash", 500, "LookupError"),
        ("/timeout", 504, "TimeoutError"),
        ("/unavailable", 503, "503"),
        ("/refuse", 502, "502"),
    ],
)
async def test_status_and_error_are_the_final_ones(
    path: str, status: int, error: str | None, service: Service, witness: Witness
) -> None:
    answer = await service.get(path, allow_redirects=False)
    exchange = await witness.next()
    assert exchange.status == answer.status == status
    assert exchange.error_type == error


async def test_a_websocket_ends_well_when_its_client_leaves(service: Service, witness: Witness) -> None:
    async with service.session.ws_connect(service.url("/websocket")) as socket:
        await socket.send_str("hello")
        await socket.receive()
    exchange = await witness.next()
    assert (exchange.route, exchange.status, exchange.error_type) == ("/websocket", 101, None)


async def test_a_stream_is_measured_to_its_last_byte(service: Service, witness: Witness) -> None:
    """And its size is that of the body with the framing of its three chunks, without the head."""
    assert len((await service.get("/stream")).text) == 30
    exchange = await witness.next()
    framing = 3 * len("a\r\n\r\n") + len("0\r\n\r\n")
    assert (exchange.status, exchange.response_size) == (200, 30 + framing)


@pytest.mark.parametrize("path", ["/hello", "/file", "/found", "/empty"])
async def test_the_size_is_that_of_the_body(path: str, service: Service, witness: Witness) -> None:
    answer = await service.get(path, allow_redirects=False)
    assert (await witness.next()).response_size == len(answer.text.encode())


async def test_a_response_to_head_has_no_body(service: Service, witness: Witness) -> None:
    answer = await service.request("HEAD", "/file")
    assert int(answer.headers["Content-Length"]) > 0
    assert (await witness.next()).response_size == 0


async def test_what_was_received_of_a_body_is_counted(registry: CollectorRegistry, witness: Witness) -> None:
    async def read(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    app = web.Application()
    app.router.add_post("/", read)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        assert (await service.request("POST", "/", data=b"x" * 1000)).text == "1000"
        assert (await witness.next()).request_size == 1000


@asynccontextmanager
async def leaving(
    registry: CollectorRegistry, witness: Witness, handler: Handler, **kwargs: Any
) -> AsyncIterator[Service]:
    """A service at ``/`` that a client has asked and left while ``handler`` works."""
    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app, **kwargs) as service:
        _, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: witness.begun, "the request to begin")
        writer.transport.abort()
        yield service


async def test_a_client_that_leaves_cancels_its_handler(
    registry: CollectorRegistry, witness: Witness
) -> None:
    cancelled = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return web.Response()

    async with leaving(registry, witness, wait, handler_cancellation=True):
        exchange = await witness.next()
    assert cancelled.is_set()
    assert (exchange.status, exchange.error_type) == (499, "client_disconnected")


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "over before it was"])
async def test_work_for_a_client_that_has_left_is_told(
    noticed: bool, registry: CollectorRegistry, witness: Witness
) -> None:
    """By default aiohttp lets the handler work on to its end, and the request "succeeds"."""

    async def work(request: web.Request) -> web.Response:
        if noticed:
            await until(lambda: witness.begun[0].client_left_at is not None, "somebody to notice")
        await until(lambda: request.transport is None, "the client to have left")
        return web.Response(text="for nobody")

    async with leaving(registry, witness, work):
        exchange = await witness.next()
        total = registry.get_sample_value("http_server_abandoned_seconds_total", {"http_route": "/"})
    assert (exchange.status, exchange.error_type) == (499, "client_disconnected")
    assert exchange.duration is not None
    assert 0 < exchange.abandoned < exchange.duration
    assert total == pytest.approx(exchange.abandoned)


async def test_work_for_a_client_that_has_left_is_counted_while_it_goes_on(
    registry: CollectorRegistry, witness: Witness
) -> None:
    """The handler may never end."""
    go_on = asyncio.Event()

    async def work(request: web.Request) -> web.Response:
        await go_on.wait()
        return web.Response(text="for nobody")

    def counted() -> float:
        labels = {"http_route": "/"}
        return registry.get_sample_value("http_server_abandoned_seconds_total", labels) or 0.0

    async with leaving(registry, witness, work):
        await until(lambda: counted() > 0.6, "seconds to be counted")
        go_on.set()
        exchange = await witness.next()
        assert counted() == pytest.approx(exchange.abandoned)


async def test_a_response_whose_headers_are_fixed_is_sent_as_it_is(
    registry: CollectorRegistry, witness: Witness
) -> None:
    class Fixed(web.Response):
        @property
        def headers(self) -> Any:
            return CIMultiDictProxy(super().headers)

    async def answer(request: web.Request) -> web.Response:
        return Fixed(text="hi")

    app = web.Application()
    app.router.add_get("/", answer)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        answered = await service.get("/")
        await witness.next()
    assert (answered.status, answered.text) == (200, "hi")
    errors = {"observer": "recorder"}
    assert registry.get_sample_value("aiohttp_observe_internal_errors_total", errors) == 1


async def test_a_client_that_leaves_in_the_middle_of_a_stream(
    registry: CollectorRegistry, witness: Witness
) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 1024)
            await asyncio.sleep(0)

    async with leaving(registry, witness, endless):
        exchange = await witness.next()
    assert (exchange.status, exchange.error_type) == (499, "client_disconnected")


async def test_a_handler_that_cancels_itself_is_no_departure(
    registry: CollectorRegistry, witness: Witness
) -> None:
    async def cancel(request: web.Request) -> web.Response:
        raise asyncio.CancelledError

    app = web.Application()
    app.router.add_get("/", cancel)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await service.get("/")
        exchange = await witness.next()
    assert (exchange.status, exchange.error_type) == (None, "CancelledError")


@pytest.mark.parametrize(("prepared", "status"), [(False, None), (True, 200)], ids=["waiting", "streaming"])
async def test_what_the_server_cuts_short_is_not_blamed_on_the_client(
    prepared: bool, status: int | None, registry: CollectorRegistry, witness: Witness
) -> None:
    """At its shutdown, when requests didn't end in time."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if prepared:
            await response.prepare(request)
        await asyncio.Event().wait()
        return response

    app = web.Application()
    app.router.add_get("/", endless)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app, shutdown_timeout=0.01) as service:
        _, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: witness.begun, "the request to begin")
    exchange = await witness.next()
    writer.close()
    assert (exchange.status, exchange.error_type) == (status, "CancelledError")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="nobody can tell before Python 3.11")
async def test_nor_is_what_it_cuts_short_if_the_handler_makes_nothing_of_that(
    registry: CollectorRegistry, witness: Witness
) -> None:
    async def stubborn(request: web.Request) -> web.StreamResponse:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/", stubborn)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app, shutdown_timeout=0.01) as service:
        _, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: witness.begun, "the request to begin")
    exchange = await witness.next()
    writer.close()
    assert exchange.status != 499
    assert exchange.error_type == "CancelledError"


async def test_a_slow_reader_is_waited_for(registry: CollectorRegistry, witness: Witness) -> None:
    """A response goes out after the middlewares have returned; the duration includes that."""
    returned = asyncio.Event()

    async def big(request: web.Request) -> web.Response:
        returned.set()
        return web.Response(body=b"x" * 30_000_000)

    app = web.Application()
    app.router.add_get("/", big)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        loop = asyncio.get_running_loop()
        reader, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await returned.wait()
        begun = loop.time()
        await asyncio.sleep(0.2)
        waited = loop.time() - begun
        assert await reader.readuntil(b"\r\n\r\n")
        assert len(await reader.read()) == 30_000_000
        writer.close()
        exchange = await witness.next()
    assert exchange.duration is not None
    assert exchange.duration > waited
    assert exchange.busy < exchange.duration
    assert exchange.response_size == 30_000_000


async def test_busy_time_and_polls_are_those_of_the_handler(
    registry: CollectorRegistry, witness: Witness
) -> None:
    """Two awaits are three polls; seconds spent waiting aren't busy, a computation is."""

    async def compute(request: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        begun = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < begun + 0.02:
            pass
        await asyncio.sleep(0.05)
        return web.Response()

    app = web.Application()
    app.router.add_get("/", compute)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        await service.get("/")
        exchange = await witness.next()
    assert exchange.duration is not None
    assert exchange.polls == 3
    assert 0.02 <= exchange.longest_poll <= exchange.busy <= exchange.duration - 0.1 + 0.005


# Requests the parser refused


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
    ],
)
async def test_a_malformed_request_is_counted(
    sent: bytes, service: Service, witness: Witness, registry: CollectorRegistry
) -> None:
    assert (await service.exchange_bytes(sent)).startswith(b"HTTP/1.0 400")
    exchange = await witness.next()
    assert (exchange.route, exchange.status, exchange.path) == ("_malformed", 400, "")
    labels = {
        "http_request_method": "_OTHER",
        "http_route": "_malformed",
        "http_response_status_code": "400",
        "error_type": "",
    }
    assert registry.get_sample_value(f"{DURATION}_count", labels) == 1


async def test_an_expectation_that_is_refused_is_counted(service: Service, witness: Witness) -> None:
    """aiohttp answers before any middleware."""
    sent = b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: nonsense\r\n\r\n"
    answer = await service.exchange_bytes(sent)
    assert answer.startswith(b"HTTP/1.1 417")
    exchange = await witness.next()
    assert (exchange.method, exchange.route, exchange.status) == ("GET", "/hello", 417)
    assert f"X-Request-ID: {exchange.request_id}".encode() in answer


async def test_a_malformed_request_after_a_good_one_is_not_taken_for_it(
    service: Service, witness: Witness
) -> None:
    """On the same connection: the first one's ids must not be left behind."""
    reader, writer = await service.connect()
    writer.write(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    first = await witness.next()
    writer.write(b"GARBAGE\r\n\r\n")
    await asyncio.wait_for(reader.read(), 10)
    writer.close()
    second = await witness.next()
    assert (second.route, second.status) == ("_malformed", 400)
    assert second.request_id != first.request_id


# Nothing leaks from one request into the next


async def test_requests_on_one_connection_do_not_leak(service: Service, witness: Witness) -> None:
    """Ten in a pipeline: ids and durations are each one's own."""
    head = b"GET /hello HTTP/1.1\r\nHost: x\r\n"
    pipeline = b"".join(head + b"X-Request-ID: id-%d\r\n\r\n" % number for number in range(9))
    received = await service.exchange_bytes(pipeline + head + b"Connection: close\r\n\r\n")
    exchanges = [await witness.next() for _ in range(10)]
    assert [exchange.request_id for exchange in exchanges[:9]] == [f"id-{number}" for number in range(9)]
    assert len(exchanges[9].request_id) == 32
    assert received.count(b"HTTP/1.1 200") == 10
    for exchange in exchanges:
        assert received.count(b"X-Request-ID: %b\r\n" % exchange.request_id.encode()) == 1


async def test_code_outside_of_requests_is_in_none(service: Service) -> None:
    await service.get("/hello")
    assert current_exchange() is None
    assert request_id() is None


async def test_concurrent_requests_do_not_meet(registry: CollectorRegistry) -> None:
    everybody = asyncio.Event()
    waiting = 0

    async def meet(request: web.Request) -> web.Response:
        nonlocal waiting
        waiting += 1
        if waiting == 50:
            everybody.set()
        await everybody.wait()
        return web.Response(text=str(request_id()))

    app = web.Application()
    app.router.add_get("/", meet)
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(app) as service:
        answers = await asyncio.gather(
            *(service.get("/", headers={"X-Request-ID": f"id-{number}"}) for number in range(50))
        )
    assert [answer.text for answer in answers] == [f"id-{number}" for number in range(50)]


# Other middlewares


@web.middleware
async def fail_before(request: web.Request, handler: Handler) -> web.StreamResponse:
    raise LookupError("before the handler")


@web.middleware
async def fail_after(request: web.Request, handler: Handler) -> web.StreamResponse:
    await handler(request)
    raise LookupError("after the handler")


@web.middleware
async def replace(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException:
        return web.Response(status=418)


@pytest.mark.parametrize(
    ("middleware", "path", "status", "error"),
    [
        (fail_before, "/hello", 500, "LookupError"),
        (fail_after, "/hello", 500, "LookupError"),
        (replace, "/unavailable", 418, None),
    ],
)
@pytest.mark.parametrize("order", ["added before", "added after"])
async def test_what_other_middlewares_do_is_seen(
    middleware: Any,
    path: str,
    status: int,
    error: str | None,
    order: str,
    registry: CollectorRegistry,
    witness: Witness,
) -> None:
    """Ours is the outermost, whenever it was added."""
    app = routes(web.Application(middlewares=[middleware] if order == "added before" else []))
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    if order == "added after":
        app.middlewares.append(middleware)
    async with serving(app) as service:
        answer = await service.get(path)
        exchange = await witness.next()
    assert (exchange.status, exchange.error_type) == (status, error)
    assert (answer.status, answer.request_id) == (status, exchange.request_id)


async def test_aiohttps_own_line_for_a_crash_carries_the_ids(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await service.get("/crash", headers={"X-Request-ID": "mine"})
    (record,) = [record for record in caplog.records if record.name == "aiohttp.server"]
    assert "Error handling request" in record.getMessage()
    assert record.__dict__["request_id"] == "mine"


async def test_a_timeout_is_logged_with_its_traceback(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp answers 504 and logs it without one."""
    await service.get("/timeout", headers={"X-Request-ID": "mine"})
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.__dict__["request_id"] == "mine"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], asyncio.TimeoutError)


async def test_a_request_that_is_being_served_is_in_flight(
    registry: CollectorRegistry, witness: Witness
) -> None:
    finish = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await finish.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/", wait)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    in_flight = app[OBSERVABILITY].recorder.in_flight
    async with serving(app) as service:
        asking = asyncio.create_task(service.get("/"))
        await until(lambda: witness.begun, "the request to begin")
        assert list(in_flight.values()) == witness.begun
        finish.set()
        await asking
        await witness.next()
        assert in_flight == {}


async def test_the_task_that_serves_a_request_is_known_as_its(
    registry: CollectorRegistry, witness: Witness
) -> None:
    finish = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await finish.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/wait", wait)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        asking = asyncio.create_task(service.get("/wait", headers={"X-Request-ID": "mine"}))
        await until(lambda: witness.begun, "the request to begin")
        (found,) = [(task.request, task.trace_id) for task in take_snapshot().tasks if task.request]
        finish.set()
        await asking
    served, trace_id = found
    assert (served.id, served.route, trace_id) == ("mine", "/wait", witness.begun[0].trace_id)
