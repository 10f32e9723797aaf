"""aiohttp's own waits are known by name, without this room importing aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer

from aiohttp_observe.tasks import TaskInfo, Wait, drive, mark_request_task, number_of, take_snapshot

from .scenes import info_of, suspended
from .test_chain import Driven
from .test_tracker import an_exchange


class Shop:
    """A server whose handler waits until it is told to answer."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.answer = asyncio.Event()
        self.task: asyncio.Task[Any] | None = None

    async def hold(self, request: web.Request) -> web.StreamResponse:
        self.task = asyncio.current_task()
        self.entered.set()
        await self.answer.wait()
        return web.Response()

    async def begin(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 2
        await response.prepare(request)
        await response.write(b"a")
        self.entered.set()
        await self.answer.wait()
        await response.write(b"b")
        return response

    async def listen(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        self.task = asyncio.current_task()
        self.entered.set()
        async for _ in websocket:
            pass
        return websocket


@web.middleware
async def driven(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """As the real one does: adopts the task and drives the handler."""
    task = asyncio.current_task()
    assert task is not None
    mark_request_task(task, an_exchange("r9"))
    return await drive(handler, request, Driven())


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
async def server(shop: Shop) -> AsyncIterator[TestServer]:
    app = web.Application(middlewares=[driven])
    app.router.add_get("/hold", shop.hold)
    app.router.add_get("/begin", shop.begin)
    app.router.add_get("/listen", shop.listen)
    server = TestServer(app)
    await server.start_server()
    yield server
    shop.answer.set()
    await server.close()


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


def waits_as(kind: str) -> list[TaskInfo]:
    return [info for info in take_snapshot(frames=50).tasks if info.wait and info.wait.kind == kind]


async def test_a_request_shows_its_handler_and_its_exchange(
    shop: Shop,
    server: TestServer,
    session: ClientSession,
) -> None:
    async with suspended(fetch(session, server.make_url("/hold"))):
        await shop.entered.wait()
        assert shop.task is not None
        info = info_of(shop.task)
    assert info.wait is not None
    assert (info.wait.kind, info.wait.detail) == ("event", "Event.wait")
    assert [frame.function for frame in info.frames][:4] == ["wait", "hold", "drive", "driven"]
    assert info.request is not None
    assert info.request.id == "r9"
    assert info.age_seconds is not None


async def fetch(session: ClientSession, url: Any) -> None:
    async with session.get(url) as response:
        await response.read()


async def test_a_client_waits_for_the_answer(
    shop: Shop,
    server: TestServer,
    session: ClientSession,
) -> None:
    async with suspended(fetch(session, server.make_url("/hold"))) as (task,):
        await shop.entered.wait()
        wait = info_of(task).wait
    assert wait is not None
    assert (wait.kind, wait.detail) == ("http_client", "ClientSession.request → ClientResponse.start")


@pytest.mark.parametrize(
    ("path", "detail"),
    [("/hold", "ClientSession.request → ClientResponse.start"), ("/begin", "ClientResponse.read")],
)
async def test_the_verdict_says_which_call_a_lock_is_held_across(
    path: str, detail: str, shop: Shop, server: TestServer, session: ClientSession
) -> None:
    lock = asyncio.Lock()

    async def refresh() -> None:
        async with lock:
            await fetch(session, server.make_url(path))

    async def read() -> None:
        async with lock:
            pass

    async with suspended(refresh()) as (task,):
        await shop.entered.wait()
        await wait_with(task, detail)
        async with suspended(*[read() for _ in range(12)]):
            (sentence,) = take_snapshot().verdict
            (warning,) = info_of(task).warnings
    assert sentence.endswith(", which waits for GET 127.0.0.1")
    assert warning == "holds a Lock that 12 wait for while it waits for GET 127.0.0.1"


async def wait_with(task: asyncio.Task[Any], detail: str) -> Wait:
    """The wait of ``task`` once it is for ``detail``."""
    for _ in range(500):
        wait = info_of(task).wait
        if wait is not None and wait.detail == detail:
            return wait
        await asyncio.sleep(0.01)
    raise AssertionError(f"it waits for {wait}")


async def test_a_client_waits_for_the_body(
    shop: Shop,
    server: TestServer,
    session: ClientSession,
) -> None:
    async with suspended(fetch(session, server.make_url("/begin"))) as (task,):
        await shop.entered.wait()
        wait = await wait_with(task, "ClientResponse.read")
    assert wait.kind == "http_client"


async def test_a_client_waits_for_a_pooled_connection(shop: Shop, server: TestServer) -> None:
    url = server.make_url("/hold")
    async with ClientSession(connector=TCPConnector(limit=1)) as session, suspended(fetch(session, url)):
        await shop.entered.wait()
        async with suspended(fetch(session, url)) as (task,):
            wait = info_of(task).wait
            (connector,) = [each for each in take_snapshot().resources if each.type == "TCPConnector"]
    assert wait is not None
    assert wait.kind == "http_client"
    assert wait.detail == "ClientSession.request → waiting for a pooled connection to 127.0.0.1"
    assert connector.waiters == (number_of(task),)
    assert connector.state == "1 of 1"


class Unanswering(AbstractResolver):
    """Name servers that don't answer."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        await asyncio.get_running_loop().create_future()
        return []

    async def close(self) -> None:
        pass


async def test_a_client_waits_for_an_address() -> None:
    session = ClientSession(connector=TCPConnector(resolver=Unanswering()))
    async with session, suspended(fetch(session, "http://inventory.invalid/")) as (task,):
        wait = info_of(task).wait
        (resolving,) = waits_as("dns")
    assert wait is not None
    assert wait.detail == "ClientSession.request → TCPConnector.resolve_host"
    assert resolving.wait is not None
    assert resolving.wait.detail == "TCPConnector.resolve_host_with_throttle"


async def test_a_connection_waits_for_its_next_request(
    shop: Shop,
    server: TestServer,
    session: ClientSession,
) -> None:
    shop.answer.set()
    await fetch(session, server.make_url("/hold"))
    (connection,) = (task for task in asyncio.all_tasks() if "RequestHandler.start" in str(task))
    wait = await wait_with(connection, "next request")
    assert wait.kind == "http_server_idle"


async def test_a_connection_waits_for_the_request_it_serves(
    shop: Shop,
    server: TestServer,
    session: ClientSession,
) -> None:
    async with suspended(fetch(session, server.make_url("/hold"))):
        await shop.entered.wait()
        assert shop.task is not None
        (info,) = (info for info in waits_as("task") if info.coro == "RequestHandler.start")
        assert info.wait is not None
        assert info.wait.on == (number_of(shop.task),)


@pytest.mark.parametrize("side", ["server", "client"])
async def test_a_websocket_waits_for_a_message(
    shop: Shop, server: TestServer, session: ClientSession, side: str
) -> None:
    async with session.ws_connect(server.make_url("/listen")) as websocket:
        await shop.entered.wait()
        async with suspended(websocket.receive()) as (receiving,):
            task = shop.task if side == "server" else receiving
            assert task is not None
            info = info_of(task)
    assert info.wait is not None
    assert info.wait.kind == "websocket"
    assert info.wait.detail.endswith("WebSocketResponse.receive")
