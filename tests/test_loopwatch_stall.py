"""Since when the loop hasn't turned, as code on the loop may ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from time import perf_counter

import pytest

from aiohttp_observe import LoopWatch
from aiohttp_observe.exchange import Meter
from aiohttp_observe.loopwatch import LoopMonitor


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of each implementation, run by the test itself."""
    made = pytest.importorskip("uvloop").new_event_loop() if request.param == "uvloop" else None
    loop = made or asyncio.new_event_loop()
    yield loop
    loop.close()


def hold_the_loop() -> None:
    time.sleep(0.06)


class Beats(Meter):
    """Sees each beat while it is still on, with the lag."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[tuple[float, float, float | None]] = asyncio.Queue()
        self.monitor: LoopMonitor | None = None

    def loop_lag(self, seconds: float) -> None:
        if self.monitor is not None:
            now = perf_counter()
            self.seen.put_nowait((now, seconds, self.monitor.stalled_since(now)))


def test_a_loop_that_is_held_has_stalled_since_its_beat_was_due(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> tuple[float, float | None, float]:
        monitor = LoopWatch().install(loop, Meter())
        await asyncio.sleep(0.06)
        began = perf_counter()
        hold_the_loop()
        now = perf_counter()
        since = monitor.stalled_since(now)
        monitor.close()
        return began, since, now

    began, since, now = loop.run_until_complete(main())
    assert since is not None
    assert began - 0.05 < since < now, "a beat is due 25 ms after the last one"


def test_the_first_moment_after_a_stall_counts_as_its_end(loop: asyncio.AbstractEventLoop) -> None:
    """What was kept waiting runs then, before or after the beat."""

    async def main() -> None:
        beats = Beats()
        beats.monitor = monitor = LoopWatch().install(loop, beats)
        await beats.seen.get()
        hold_the_loop()
        now, lag, since = await beats.seen.get()
        while lag < 0.02:
            now, lag, since = await beats.seen.get()
        assert since == pytest.approx(now - lag, abs=0.005)
        assert monitor.stalled_since(now + 0.0049 - 0.001) == since
        assert monitor.stalled_since(now + 0.0051) is None
        monitor.close()

    loop.run_until_complete(main())


def test_a_loop_that_turns_has_not_stalled(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        beats = Beats()
        beats.monitor = monitor = LoopWatch().install(loop, beats)
        now, lag, since = await beats.seen.get()
        while lag > 0.002:  # a machine with more to do
            now, lag, since = await beats.seen.get()
        assert since is None or since < now - 0.001
        assert monitor.stalled_since(now + 0.01) is None
        monitor.close()

    loop.run_until_complete(main())


def test_a_watch_that_has_ended_knows_of_no_stall(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        monitor = LoopWatch().install(loop, Meter())
        hold_the_loop()
        monitor.close()
        assert monitor.stalled_since(perf_counter()) is None
        assert monitor.stalled_since(perf_counter() + 1) is None
        assert await asyncio.to_thread(monitor.blocked_now) is None

    loop.run_until_complete(main())
