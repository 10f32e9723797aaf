"""What is odd about single tasks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

from aiohttp_observe.tasks import adopt, is_forgotten, number_of, take_snapshot
from aiohttp_observe.tasks.model import Blocked, Frame, LoopState

from .scenes import info_of, suspended
from .test_tracker import an_exchange


async def wait_for(event: asyncio.Event) -> None:
    await event.wait()


async def test_a_task_that_is_as_it_should_be_has_none() -> None:
    async with suspended(wait_for(asyncio.Event())) as (task,):
        assert info_of(task).warnings == ()


async def test_one_that_waits_much_longer_than_its_peers() -> None:
    event = asyncio.Event()
    async with suspended(*(wait_for(event) for _ in range(15))) as tasks:
        for number, task in enumerate(tasks):
            exchange = an_exchange(f"r{number}")
            exchange.suspended_at = perf_counter() - (90 if number == 7 else 2)
            adopt(task, exchange)
        (warning,) = info_of(tasks[7]).warnings
        assert warning == "has waited 90.0 s, the median of the 15 at this line is 2.0 s"
        assert info_of(tasks[8]).warnings == ()


async def test_one_whose_client_has_left() -> None:
    async with suspended(wait_for(asyncio.Event())) as (task,):
        exchange = an_exchange()
        exchange.client_left_at = perf_counter() - 3
        adopt(task, exchange)
        assert info_of(task).warnings == ("its client left 3.0 s ago",)


async def test_one_that_blocks_the_loop() -> None:
    task = asyncio.current_task()
    assert task is not None
    blocked = Blocked(7.0, number_of(task), None, None, (Frame("/srv/report.py", 1, "report"),))
    snapshot = take_snapshot(loop_state=LoopState(blocked_now=blocked))
    assert info_of(task, snapshot).warnings == ("hasn't yielded for 7.0 s: it blocks the loop",)
    assert snapshot.verdict == (
        f"the loop has been blocked for 7 s in report.py:1 by task {task.get_name()}",
    )


async def test_one_that_holds_a_lock_across_a_slow_call() -> None:
    lock, answered = asyncio.Lock(), threading.Event()

    async def ask() -> None:
        async with lock:
            await asyncio.to_thread(answered.wait)

    async def want() -> None:
        async with lock:
            pass

    async with suspended(ask(), want(), want()) as (holder, *_):
        (warning,) = info_of(holder).warnings
        answered.set()
    assert warning == "holds a Lock that 2 wait for while it waits for to_thread"


async def test_one_that_ignores_being_cancelled() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)

    async with suspended(stubborn()) as (task,):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        told = info_of(task).warnings
        assert told == (("asked to cancel and still here",) if hasattr(task, "cancelling") else ())


class Lost:
    """Awaited once, its future is completed without anybody being told: as a broken library might."""

    def __init__(self) -> None:
        self.future = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        await self.future

    def complete(self) -> Callable[[asyncio.Future[Any]], Any]:
        """Returns what would have told."""
        wakeup = self.future._callbacks[0][0]
        self.future.remove_done_callback(wakeup)
        self.future.set_result(None)
        return wakeup


async def test_one_whose_wakeup_was_lost() -> None:
    lost = Lost()
    async with suspended(lost.wait()) as (task,):
        wakeup = lost.complete()
        before = info_of(task)
        await asyncio.sleep(1.1)
        after = info_of(task)
        asyncio.get_running_loop().call_soon(wakeup, lost.future)
        await task
    assert (before.state, before.warnings) == ("scheduled", ())
    (warning,) = after.warnings
    assert warning.endswith("and it hasn't run: a lost wake-up, likely")


async def test_one_that_only_spins_has_lost_nothing() -> None:
    async def spin() -> None:
        for _ in range(10**9):
            await asyncio.sleep(0)

    async with suspended(spin()) as (task,):
        take_snapshot()
        await asyncio.sleep(1.1)
        assert info_of(task).warnings == ()


async def test_a_future_that_nobody_else_refers_to_is_forgotten() -> None:
    kept = asyncio.get_running_loop().create_future()

    async def wait_for_nobody() -> None:
        await asyncio.get_running_loop().create_future()

    async def wait_for_somebody() -> None:
        await kept

    async with suspended(wait_for_nobody(), wait_for_somebody(), asyncio.sleep(60)) as tasks:
        assert [is_forgotten(task) for task in tasks] == [True, False, False]
