"""Who holds what others wait for is seen without any instrumentation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from aiohttp_observe.tasks import Resource, number_of, take_snapshot

from .scenes import info_of, suspended

Lock = asyncio.Lock


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def by_with(lock: Any) -> None:
    async with lock:
        await forever()


async def by_exit_stack(lock: Any) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(lock)
        await forever()


async def by_context_manager(lock: Any) -> None:
    @asynccontextmanager
    async def held() -> AsyncIterator[None]:
        async with lock:
            yield

    async with held():
        await forever()


async def by_async_generator(lock: Any) -> None:
    async def rows() -> AsyncIterator[int]:
        async with lock:
            yield 1

    async for _ in rows():
        await forever()


def only_resource() -> Resource:
    (resource,) = take_snapshot().resources
    return resource


@pytest.mark.parametrize("hold", [by_with, by_exit_stack, by_context_manager, by_async_generator])
@pytest.mark.parametrize("kind", [asyncio.Lock, asyncio.Semaphore, asyncio.BoundedSemaphore])
async def test_holders_and_waiters_are_told_apart(hold: Any, kind: Any) -> None:
    lock = kind()
    async with suspended(hold(lock)) as (holder,), suspended(by_with(lock), lock.acquire()) as waiters:
        resource = only_resource()
        wait = info_of(waiters[0]).wait
    assert wait is not None
    assert wait.resource == resource.id
    assert resource.type == kind.__name__
    assert resource.holders == (number_of(holder),)
    assert sorted(resource.waiters) == sorted(map(number_of, waiters))
    assert resource.detail.startswith(f"locked, at {__file__}:")


@pytest.mark.parametrize("enter", [by_with, by_exit_stack, by_context_manager, by_async_generator])
async def test_those_still_entering_do_not_hold(enter: Any) -> None:
    lock = Lock()
    async with suspended(by_with(lock)) as (holder,), suspended(enter(lock), enter(lock)) as waiters:
        resource = only_resource()
    assert resource.holders == (number_of(holder),)
    assert sorted(resource.waiters) == sorted(map(number_of, waiters))


async def test_a_condition_waited_for_does_not_hold_its_lock() -> None:
    condition = asyncio.Condition()

    async def notified() -> None:
        async with condition:
            await condition.wait()

    async with suspended(notified(), by_with(condition), by_with(condition)) as (waits, holds, wants):
        resources = {resource.type: resource for resource in take_snapshot().resources}
    assert resources["Condition"].waiters == (number_of(waits),)
    assert resources["Lock"].holders == (number_of(holds),)
    assert resources["Lock"].waiters == (number_of(wants),)


async def test_a_queue_has_waiters() -> None:
    queue = asyncio.Queue[int](3)
    async with suspended(queue.get(), queue.get()) as tasks:
        resource = only_resource()
    assert (resource.type, resource.detail) == ("Queue", "0 of 3")
    assert sorted(resource.waiters) == sorted(map(number_of, tasks))


async def test_a_broken_subclass_is_shown_as_far_as_it_can_be() -> None:
    class Broken(asyncio.Queue[int]):
        """Its size cannot be told."""

        def qsize(self) -> int:
            raise NotImplementedError

    async with suspended(Broken().get()):
        resource = only_resource()
    assert resource.type == "Broken"


async def test_one_that_has_any_attribute_has_a_number_all_the_same() -> None:
    class Obliging(asyncio.Queue[int]):
        def __getattr__(self, name: str) -> Any:
            return lambda: name

    queue = Obliging()
    async with suspended(queue.get()):
        resource = only_resource()
        assert type(resource.id) is int
        assert only_resource().id == resource.id


class TestDeadlock:
    async def test_of_two_locks(self) -> None:
        first, second = Lock(), Lock()
        both_hold = asyncio.Event()

        async def hold(one: Lock, other: Lock) -> None:
            async with one:
                await both_hold.wait()
                async with other:
                    pass

        async with suspended(hold(first, second), hold(second, first), first.acquire()) as (a, b, _):
            assert take_snapshot().deadlocks == ()
            both_hold.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            snapshot = take_snapshot()
        (cycle,) = snapshot.deadlocks
        assert sorted(cycle) == sorted(map(number_of, (a, b)))
        names = [
            task.get_name() for number in (*cycle, cycle[0]) for task in (a, b) if number_of(task) == number
        ]
        assert snapshot.verdict == (f"deadlock: {' → '.join(names)}",)

    async def test_of_a_lock_taken_twice(self) -> None:
        lock = Lock()

        async def twice() -> None:
            async with lock, lock:
                pass

        async with suspended(twice()) as (task,):
            assert take_snapshot().deadlocks == ((number_of(task),),)

    async def test_of_a_task_awaited_by_the_one_that_holds_what_it_wants(self) -> None:
        lock = Lock()

        async def outer() -> None:
            async with lock:
                await asyncio.gather(asyncio.sleep(0), by_with(lock))

        async with suspended(outer()) as (task,):
            (cycle,) = take_snapshot().deadlocks
        assert len(cycle) == 2
        assert number_of(task) in cycle

    async def test_is_none_where_a_holder_goes_on_by_itself(self) -> None:
        lock = Lock()
        async with suspended(by_with(lock), *(by_with(lock) for _ in range(20))) as (holder, *_):
            snapshot = take_snapshot()
        assert snapshot.deadlocks == ()
        assert len(snapshot.verdict) == 1
        assert snapshot.verdict[0].startswith("20 tasks wait for Lock at test_resources.py:")
        assert f", held by task {holder.get_name()}" in snapshot.verdict[0]
        assert snapshot.verdict[0].endswith(", which waits for future")

    async def test_is_none_where_a_timeout_ends_it(self) -> None:
        lock = Lock()

        async def impatient() -> None:
            async with lock:
                await asyncio.wait_for(lock.acquire(), 60)

        async with suspended(impatient()):
            assert take_snapshot().deadlocks == ()

    async def test_is_none_where_another_permit_may_come_free(self) -> None:
        semaphore = asyncio.Semaphore(2)
        stuck = Lock()

        async def crossing(one: Any, other: Any) -> None:
            async with one:
                await asyncio.sleep(0)
                async with other:
                    pass

        async with (
            suspended(by_with(semaphore)),
            suspended(crossing(semaphore, stuck), crossing(stuck, semaphore)),
        ):
            assert take_snapshot().deadlocks == ()

    async def test_is_none_where_the_first_of_several_is_enough(self) -> None:
        lock = Lock()

        async def first_of() -> None:
            async with lock:
                tasks = {asyncio.ensure_future(by_with(lock)), asyncio.ensure_future(forever())}
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in tasks:
                        task.cancel()

        async with suspended(first_of()):
            assert take_snapshot().deadlocks == ()
