"""What the loop watch tells of a loop that is held, and of one that isn't."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import LoopWatch, Metrics, setup_observability
from aiohttp_observe.exchange import Meter
from aiohttp_observe.loopwatch import LoopMonitor
from tests.service import serving, until

pytestmark = pytest.mark.usefixtures("short_collections")

THREAD = "aiohttp-observe-loop-watch"
LOOPS = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


class Heard(Meter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.blocks: list[float] = []
        self.errors: list[str] = []

    def loop_lag(self, seconds: float) -> None:
        self.lags.append(seconds)

    def loop_blocked(self, seconds: float) -> None:
        self.blocks.append(seconds)

    def internal_error(self, observer: str) -> None:
        self.errors.append(observer)


def run(new_loop: Any, main: Coroutine[Any, Any, None]) -> None:
    loop = new_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


def install(meter: Heard, threshold: float = 0.1) -> LoopMonitor:
    return LoopWatch(threshold=threshold).install(asyncio.get_running_loop(), meter)


def sleep_on_the_loop(seconds: float) -> None:
    time.sleep(seconds)  # the line that blocks


def burn(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(1000))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "aiohttp_observe.loopwatch"]


@LOOPS
@pytest.mark.parametrize("block", [sleep_on_the_loop, burn])
def test_a_block_is_told_once_with_its_line(
    new_loop: Any, block: Any, caplog: pytest.LogCaptureFixture
) -> None:
    meter = Heard()

    async def main() -> None:
        monitor = install(meter)
        await asyncio.sleep(0.05)
        await asyncio.create_task(blocking(), name="culprit")
        await until(lambda: meter.blocks, "the block to be told")
        monitor.close()

    async def blocking() -> None:
        block(0.5)

    run(new_loop, main())
    assert len(meter.blocks) == 1
    assert meter.blocks[0] > 0.4
    (told,) = warnings_of(caplog)
    fields = told.__dict__
    assert told.getMessage().startswith("event loop blocked for ")
    assert fields["code.function.name"] == block.__name__
    assert fields["code.file.path"] == __file__
    first = block.__code__.co_firstlineno
    assert first < fields["code.line.number"] <= first + 3
    assert fields["task"] == "culprit"
    assert fields["blocked_ms"] == pytest.approx(meter.blocks[0] * 1000, abs=0.1)
    assert meter.errors == []


@LOOPS
def test_an_idle_loop_is_never_told(new_loop: Any, caplog: pytest.LogCaptureFixture) -> None:
    meter = Heard()

    async def main() -> None:
        monitor = install(meter, threshold=2.0)
        await asyncio.sleep(0.6)
        await until(lambda: len(meter.lags) > 1, "the timer")
        monitor.close()

    run(new_loop, main())
    assert meter.blocks == []
    assert warnings_of(caplog) == []


def test_a_blocked_loop_can_be_looked_at_from_outside() -> None:
    looks: list[Any] = []

    async def main() -> None:
        monitor = install(Heard())
        await asyncio.sleep(0.05)

        def look() -> None:
            while (state := monitor.state()).blocked_now is None:
                time.sleep(0.01)
            looks.append(state.blocked_now)

        outside = threading.Thread(target=look)
        outside.start()
        sleep_on_the_loop(1.0)
        outside.join()
        await asyncio.sleep(0.1)
        looks.append(monitor.state().blocked_now)
        monitor.close()

    asyncio.run(main())
    during, after = looks
    assert during.seconds >= 0.1
    assert during.stack[0].function == "sleep_on_the_loop"
    assert after is None


async def test_a_request_that_blocks_is_named(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async def report(request: web.Request) -> web.Response:
        sleep_on_the_loop(0.4)
        return web.Response()

    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry))
    app.router.add_get("/report/{year}", report)
    async with serving(app) as service:
        response = await service.get("/report/1999", headers={"X-Request-ID": "culprit"})
        assert response.status == 200
        await until(lambda: registry.get_sample_value("asyncio_loop_blocked_total") == 1, "the count")
        await until(lambda: warnings_of(caplog), "the log line")
    told = warnings_of(caplog)[0].__dict__
    assert told["request_id"] == "culprit"
    assert len(told["trace_id"]) == 32
    assert "GET /report/{year}" in warnings_of(caplog)[0].getMessage()
    assert (registry.get_sample_value("asyncio_loop_blocked_seconds_total") or 0) > 0.3
    assert (registry.get_sample_value("asyncio_loop_lag_seconds_count") or 0) > 0


async def test_the_utilization_is_a_share(registry: CollectorRegistry) -> None:
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(app):
        deadline = time.perf_counter() + 10
        while (ratio := registry.get_sample_value("asyncio_loop_utilization_ratio")) is None:
            assert time.perf_counter() < deadline
            burn(0.02)
            await asyncio.sleep(0.001)
        assert 0.1 < ratio <= 1
    assert registry.get_sample_value("asyncio_loop_utilization_ratio") is None


async def test_two_applications_on_a_loop_share_one_watch() -> None:
    first, second = Heard(), Heard()
    monitors = [install(first), install(second)]
    assert [thread.name for thread in threading.enumerate()].count(THREAD) == 1
    await until(lambda: first.lags and second.lags, "the timer")
    monitors[0].close()
    seen = len(second.lags)
    await until(lambda: len(second.lags) > seen, "the timer")
    monitors[1].close()
    assert THREAD not in [thread.name for thread in threading.enumerate()]


async def test_closing_stops_the_timer() -> None:
    meter = Heard()
    monitor = install(meter)
    await until(lambda: meter.lags, "the timer")
    monitor.close()
    seen = len(meter.lags)
    await asyncio.sleep(0.2)
    assert len(meter.lags) == seen


@pytest.mark.parametrize("threshold", [0, -1, float("inf"), float("nan")])
def test_a_threshold_that_cannot_be_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"LoopWatch\(threshold=...\) takes a number of seconds above 0"):
        LoopWatch(threshold=threshold)


@pytest.mark.parametrize("threshold", ["0.1", None, True])
def test_a_threshold_of_a_wrong_type_is_refused(threshold: Any) -> None:
    with pytest.raises(TypeError, match="threshold"):
        LoopWatch(threshold=threshold)
