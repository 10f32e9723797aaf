"""What is odd about single tasks is told with its evidence, and of no others."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any

import pytest

from aiohttp_observe.exchange import CURRENT, Exchange, Scope
from aiohttp_observe.tasks import Blocked, LoopState, Tasks, mark_request_task, number_of, take_snapshot

from .scenes import info_of, suspended


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def inside(lock: Any) -> None:
    async with lock:
        await forever()


def served(task: asyncio.Task[Any], *, waiting: float | None = None, name: str = "r1") -> Exchange:
    """Makes ``task`` a request's own, which has been ``waiting`` so many seconds."""
    exchange = Exchange(Scope(), name, "GET", "/", "/", None, None, perf_counter() - 200)
    if waiting is not None:
        exchange.suspended_at = perf_counter() - waiting
    mark_request_task(task, exchange)
    return exchange


def all_warnings() -> list[str]:
    return [warning for info in take_snapshot().tasks for warning in info.warnings]


async def test_ordinary_tasks_have_none() -> None:
    lock = asyncio.Lock()
    async with suspended(forever(), inside(lock), inside(lock), asyncio.sleep(60)) as tasks:
        served(tasks[0], waiting=30.0)
        assert all_warnings() == []


class TestOrphan:
    @asynccontextmanager
    async def child_of(self, exchange: Exchange) -> AsyncIterator[asyncio.Task[Any]]:
        """A task that a request's task started."""
        tracker = Tasks().install(asyncio.get_running_loop())
        children: list[asyncio.Task[Any]] = []

        async def handler() -> None:
            task = asyncio.current_task()
            assert task is not None
            mark_request_task(task, exchange)
            token = CURRENT.set(exchange)
            children.append(asyncio.create_task(forever()))
            CURRENT.reset(token)

        try:
            await asyncio.create_task(handler())
            await asyncio.sleep(0)
            yield children[0]
        finally:
            children[0].cancel()
            await asyncio.wait(children)
            tracker.uninstall()

    def exchange(self) -> Exchange:
        return Exchange(Scope(), "r1", "GET", "/", "/", None, None, perf_counter() - 10)

    async def test_is_told_once_its_request_has_finished(self) -> None:
        exchange = self.exchange()
        async with self.child_of(exchange) as child:
            assert info_of(child).warnings == ()
            exchange.duration = 7.5
            info = info_of(child)
        assert info.orphan
        (warning,) = info.warnings
        assert warning.startswith("its request r1 finished 2.5 s ago")

    async def test_is_none_if_it_was_spawned(self) -> None:
        exchange = self.exchange()
        async with self.child_of(exchange) as child:
            exchange.scope.background.add(child)
            exchange.duration = 7.5
            info = info_of(child)
        assert not info.orphan
        assert info.warnings == ()


class TestClientLeft:
    async def test_is_told_while_its_handler_goes_on(self) -> None:
        async with suspended(forever()) as (task,):
            exchange = served(task)
            exchange.client_left_at = perf_counter() - 4
            (warning,) = info_of(task).warnings
        assert warning.startswith("its client left 4.0 s ago")

    async def test_is_not_told_of_what_has_finished(self) -> None:
        async with suspended(forever()) as (task,):
            exchange = served(task)
            exchange.client_left_at = perf_counter() - 4
            exchange.duration = 1.0
            assert info_of(task).warnings == ()


class TestHogging:
    async def test_is_told_of_the_task_that_blocks(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        state = LoopState(blocked_now=Blocked(3.0, number_of(task), None, None, ()))
        snapshot = take_snapshot(loop_state=state)
        assert info_of(task, snapshot).warnings == ("hasn't yielded for 3.0 s: it blocks the loop",)

    async def test_is_not_told_of_the_others(self) -> None:
        async with suspended(forever()) as (task,):
            state = LoopState(blocked_now=Blocked(3.0, number_of(task), None, None, ()))
            snapshot = take_snapshot(loop_state=state)
        assert [info.warnings for info in snapshot.tasks] == [(), ()]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Task.cancelling is from Python 3.11")
async def test_a_task_that_will_not_be_cancelled_is_told() -> None:
    async def stubborn(release: asyncio.Event) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            await release.wait()

    release = asyncio.Event()
    async with suspended(stubborn(release)) as (task,):
        assert info_of(task).warnings == ()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert info_of(task).warnings == ("asked to cancel and still here",)
        release.set()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Task.cancelling is from Python 3.11")
async def test_a_task_that_swallowed_its_cancellation_is_told() -> None:
    async def stubborn() -> None:
        with suppress(asyncio.CancelledError):
            await forever()
        await forever()

    async with suspended(stubborn()) as (task,):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        (warning,) = info_of(task).warnings
    assert warning.startswith("asked to cancel and still here")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup is from Python 3.11")
async def test_a_task_whose_group_has_failed_is_not_said_to_be_asked_to_cancel() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError

    async def supervise() -> None:
        group: Any = asyncio.TaskGroup()  # type: ignore[attr-defined,unused-ignore]
        with pytest.raises(Exception, match="unhandled errors"):
            async with group:
                group.create_task(fail())
        await forever()

    async with suspended(supervise()) as (task,):
        warnings = info_of(task).warnings
    unsure = "asked to cancel and still here, unless a TaskGroup of its own has failed"
    assert warnings == (() if sys.version_info >= (3, 13) else (unsure,))


class TestSlowerThanItsPeers:
    async def warnings(self, waits: list[float]) -> list[str]:
        async with suspended(*(forever() for _ in waits)) as tasks:
            for task, waiting in zip(tasks, waits, strict=True):
                served(task, waiting=waiting)
            return all_warnings()

    async def test_is_told_with_the_median(self) -> None:
        (warning,) = await self.warnings([2.0] * 10 + [40.0])
        assert warning == "has waited 40.0 s, the median of the 11 at this line is 2.0 s"

    @pytest.mark.parametrize(
        ("waits", "why"),
        [
            ([2.0] * 8 + [40.0], "too few to compare with"),
            ([2.0] * 10 + [19.0], "less than ten times as long"),
            ([0.001] * 10 + [0.9], "less than a second"),
            ([2.0] * 10 + [40.0] * 12, "most of them wait as long"),
        ],
    )
    async def test_is_not_told_where(self, waits: list[float], why: str) -> None:
        assert await self.warnings(waits) == [], why

    async def test_is_not_told_of_tasks_that_are_no_requests(self) -> None:
        async with suspended(*(forever() for _ in range(15))):
            assert all_warnings() == []


class TestLostWakeUp:
    @asynccontextmanager
    async def never_woken(self) -> AsyncIterator[asyncio.Task[Any]]:
        """A task whose future is done, and that isn't told, as a broken library may manage."""
        future = asyncio.get_running_loop().create_future()

        async def waits() -> None:
            await future

        async with suspended(waits()) as (task,):
            [(wake_up, _)] = list(future._callbacks)
            future.remove_done_callback(wake_up)
            future.set_result(None)
            await asyncio.sleep(0)
            try:
                yield task
            finally:
                asyncio.get_running_loop().call_soon(wake_up, future)

    async def test_is_told_after_a_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with self.never_woken() as task:
            assert info_of(task).warnings == ()
            assert info_of(task).warnings == ()
            monkeypatch.setattr("aiohttp_observe.tasks.warnings._LOST_SECONDS", 0.0)
            info = info_of(task)
        assert info.state == "scheduled"
        (warning,) = info.warnings
        assert warning == "what it waited for was done 0.0 s ago, and it hasn't run: a lost wake-up, likely"

    async def test_is_not_told_of_one_that_is_about_to_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aiohttp_observe.tasks.warnings._LOST_SECONDS", 0.001)
        event = asyncio.Event()

        async def waits_again_and_again() -> None:
            while True:
                await event.wait()
                event.clear()

        async with suspended(waits_again_and_again()) as (task,):
            for _ in range(5):
                event.set()
                info = info_of(task)
                assert (info.state, info.warnings) == ("scheduled", ())
                await asyncio.sleep(0.002)

    async def test_is_not_told_by_another_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aiohttp_observe.tasks.warnings._LOST_SECONDS", 0.0)
        loop = asyncio.get_running_loop()
        async with self.never_woken() as task:
            for _ in range(2):
                snapshot = await asyncio.to_thread(take_snapshot, loop)
            assert info_of(task, snapshot).warnings == ()


class TestHeldAcross:
    async def holder(self, lock: asyncio.Lock) -> None:
        async with lock:
            await asyncio.StreamReader().read()

    async def test_a_wait_for_others_is_told(self) -> None:
        lock = asyncio.Lock()
        async with suspended(self.holder(lock), inside(lock), inside(lock)) as (holder, *waiters):
            snapshot = take_snapshot()
        (warning,) = info_of(holder, snapshot).warnings
        assert warning == "holds a Lock that 2 wait for while it waits for StreamReader.read"
        assert [info_of(waiter, snapshot).warnings for waiter in waiters] == [(), ()]

    async def test_is_told_of_one_waiter(self) -> None:
        lock = asyncio.Lock()
        async with suspended(self.holder(lock), inside(lock)) as (holder, _):
            (warning,) = info_of(holder).warnings
        assert warning.startswith("holds a Lock that 1 waits for while ")

    async def test_is_not_told_where_nobody_wants_it(self) -> None:
        async with suspended(self.holder(asyncio.Lock())) as (holder,):
            assert info_of(holder).warnings == ()

    async def test_is_not_told_of_a_wait_within_the_process(self) -> None:
        lock = asyncio.Lock()
        async with suspended(inside(lock), inside(lock)) as (holder, _):
            assert info_of(holder).warnings == ()


async def test_several_are_told_of_one_task() -> None:
    lock = asyncio.Lock()
    async with suspended(TestHeldAcross().holder(lock), inside(lock)) as (holder, _):
        served(holder).client_left_at = perf_counter() - 1
        warnings = info_of(holder).warnings
    assert [warning.split()[0] for warning in warnings] == ["its", "holds"]
