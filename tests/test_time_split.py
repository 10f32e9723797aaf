"""Where the time of a request went: busy, ready, and waiting by kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import OBSERVABILITY, Exchange, Logs, Metrics, setup_observability

from .service import Witness, serving

Work = Callable[[], Awaitable[object]]


async def split_of(work: Work, registry: CollectorRegistry) -> Exchange:
    """The exchange of a request that does ``work``, which waits for at least 0.05 s if at all.

    A machine that stops the process just as it is about to wait leaves it nothing to wait for: such
    a request was busy for nearly as long, and another one is sent.
    """
    witness, app = Witness(), web.Application()

    async def handler(request: web.Request) -> web.Response:
        await work()
        return web.Response()

    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry), logs=None, observers=[witness])
    async with serving(app) as service:
        while True:
            await service.get("/")
            exchange = await witness.next()
            if exchange.busy < 0.045:
                return exchange


async def wait_for_lock() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(0.05, lock.release)
    async with lock:
        pass


async def wait_in_a_group() -> None:
    await asyncio.gather(asyncio.sleep(0.05), asyncio.sleep(0.01))


async def wait_for_a_task() -> None:
    await asyncio.create_task(asyncio.sleep(0.05))


async def wait_in_a_shield() -> None:
    await asyncio.shield(asyncio.sleep(0.05))


async def wait_with_a_limit() -> None:
    await asyncio.wait_for(asyncio.sleep(0.05), 10)


async def wait_for_the_executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.05)


def kinds_of(exchange: Exchange) -> set[str]:
    """What its handler waited for: to send the response takes its time on a busy machine."""
    return exchange.waiting.keys() - {"response"}


@pytest.mark.parametrize(
    ("kind", "work"),
    [
        ("sleep", lambda: asyncio.sleep(0.05)),
        ("lock", wait_for_lock),
        ("gather", wait_in_a_group),
        ("task", wait_for_a_task),
        ("shield", wait_in_a_shield),
        ("wait_for", wait_with_a_limit),
        ("executor", lambda: asyncio.to_thread(time.sleep, 0.05)),
        ("executor", wait_for_the_executor),
    ],
)
async def test_a_wait_is_told_by_its_kind(kind: str, work: Work, registry: CollectorRegistry) -> None:
    exchange = await split_of(work, registry)
    assert kinds_of(exchange) == {kind}
    assert exchange.duration is not None
    assert 0.045 - exchange.busy < exchange.waiting[kind] + exchange.ready < exchange.duration


async def test_waits_of_a_kind_add_up_and_kinds_stay_apart(registry: CollectorRegistry) -> None:
    async def work() -> None:
        await asyncio.sleep(0.06)
        await wait_for_lock()
        await asyncio.sleep(0.06)

    exchange = await split_of(work, registry)
    assert kinds_of(exchange) == {"sleep", "lock"}
    assert exchange.waiting["sleep"] + exchange.ready > 0.07


async def test_work_on_the_loop_is_not_waiting(registry: CollectorRegistry) -> None:
    async def work() -> None:
        time.sleep(0.02)  # noqa: ASYNC251 - to hold the loop is the point

    exchange = await split_of(work, registry)
    assert not kinds_of(exchange)
    assert exchange.busy > 0.019


async def test_a_loop_that_others_hold_up_is_told_apart_from_a_slow_answer(
    registry: CollectorRegistry,
) -> None:
    async def work() -> None:
        asyncio.get_running_loop().call_later(0.01, time.sleep, 0.3)
        await asyncio.sleep(0.06)

    exchange = await split_of(work, registry)
    assert exchange.duration is not None
    assert exchange.ready > 0.1
    assert exchange.waiting["sleep"] <= exchange.duration - exchange.ready


async def test_the_access_line_has_it(
    registry: CollectorRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    app = web.Application()

    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(0.02)
        return web.Response()

    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry), logs=Logs(replace=True))
    async with serving(app) as service:
        await service.get("/")
    assert '"waiting_ms":{"sleep":' in capsys.readouterr().out


async def test_what_cannot_be_told_apart_costs_the_request_nothing(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop watch that broke would be asked in the midst of the user's handler."""

    def broken(now: float) -> float | None:
        raise LookupError("no pulse")

    app = web.Application()

    async def handler(request: web.Request) -> web.Response:
        app[OBSERVABILITY].scope.stalled_since = broken
        await asyncio.sleep(0.01)
        return web.Response()

    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry), logs=None)
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
    counted = registry.get_sample_value("aiohttp_observe_internal_errors_total", {"observer": "recorder"})
    assert counted == 1
    assert "observer recorder failed" in caplog.text
