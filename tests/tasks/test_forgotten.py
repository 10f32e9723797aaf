"""A future that nobody but its waiter knows is a wait without an end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from aiohttp_observe import Metrics, setup_observability
from aiohttp_observe.tasks import exchange_of, is_forgotten

from .scenes import suspended


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of each implementation, run by the test itself."""
    made = pytest.importorskip("uvloop").new_event_loop() if request.param == "uvloop" else None
    loop = made or asyncio.new_event_loop()
    yield loop
    loop.close()


def verdict(loop: asyncio.AbstractEventLoop, make: Any) -> bool | None:
    async def main() -> bool | None:
        async with suspended(make()) as (task,):
            return is_forgotten(task)

    return loop.run_until_complete(main())


async def awaits_its_own() -> None:
    await asyncio.get_running_loop().create_future()


async def keeps_its_own() -> None:
    future = asyncio.get_running_loop().create_future()
    await future


async def deeper() -> None:
    await awaits_its_own()


async def by_generator() -> None:
    async def rows() -> Any:
        await awaits_its_own()
        yield 1

    async for _ in rows():
        pass


class TestForgotten:
    @pytest.mark.parametrize("make", [awaits_its_own, keeps_its_own, deeper, by_generator])
    def test_is_a_future_that_only_the_waiter_has(self, loop: asyncio.AbstractEventLoop, make: Any) -> None:
        assert verdict(loop, make) is True


class TestRemembered:
    def test_by_the_loops_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        assert verdict(loop, lambda: asyncio.sleep(60)) is False

    def test_by_another_that_may_complete_it(self, loop: asyncio.AbstractEventLoop) -> None:
        future = loop.create_future()

        async def waits() -> None:
            await future

        assert verdict(loop, waits) is False

    def test_by_a_callback(self, loop: asyncio.AbstractEventLoop) -> None:
        async def waits() -> None:
            future = loop.create_future()
            handle = loop.call_later(60, future.set_result, None)
            try:
                await future
            finally:
                handle.cancel()

        assert verdict(loop, waits) is False

    def test_by_an_event(self, loop: asyncio.AbstractEventLoop) -> None:
        assert verdict(loop, lambda: asyncio.Event().wait()) is False

    def test_by_a_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        release = threading.Event()

        async def main() -> bool | None:
            async with suspended(asyncio.to_thread(release.wait, 60)) as (task,):
                told = is_forgotten(task)
                release.set()
                return told

        assert loop.run_until_complete(main()) is False

    def test_by_a_task_that_completes_it(self, loop: asyncio.AbstractEventLoop) -> None:
        async def waits() -> None:
            await asyncio.create_task(asyncio.sleep(60))

        assert verdict(loop, waits) is False


async def test_a_task_that_does_not_wait_has_nothing_to_forget() -> None:
    task = asyncio.current_task()
    assert task is not None
    assert is_forgotten(task) is None
    ready = asyncio.create_task(awaits_its_own())
    assert is_forgotten(ready) is None
    ready.cancel()
    await asyncio.wait({ready})


async def test_a_handler_that_the_middleware_drives_is_told_as_well() -> None:
    began = asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        began.set()
        await awaits_its_own()
        return web.Response()

    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=CollectorRegistry()))
    app.router.add_get("/hold", hold)
    async with TestClient(TestServer(app)) as client:
        calling = asyncio.create_task(client.get("/hold"))
        await began.wait()
        (served,) = (task for task in asyncio.all_tasks() if is_served(task))
        assert is_forgotten(served) is True
        calling.cancel()
        served.cancel()
        await asyncio.wait({calling, served})


def is_served(task: asyncio.Task[Any]) -> bool:
    exchange = exchange_of(task)
    return exchange is not None and exchange.route == "/hold"
