"""For how long a lock has been held is told from what looks and queues show."""

from __future__ import annotations

import asyncio
import gc
from time import perf_counter
from typing import Any
from weakref import ref

import pytest

from aiohttp_observe.exchange import Exchange, Scope
from aiohttp_observe.tasks import Resource, mark_request_task, note_contention, take_snapshot

from .scenes import suspended


async def inside(lock: Any) -> None:
    async with lock:
        await asyncio.get_running_loop().create_future()


def only_resource() -> Resource:
    (resource,) = take_snapshot().resources
    return resource


def held() -> float | None:
    return only_resource().held_seconds


async def later(seconds: float = 0.01) -> None:
    await asyncio.sleep(seconds)


async def test_the_first_look_does_not_know() -> None:
    lock = asyncio.Lock()
    async with suspended(inside(lock), inside(lock)):
        assert held() is None


async def test_the_next_look_knows_of_the_first() -> None:
    lock = asyncio.Lock()
    async with suspended(inside(lock), inside(lock)):
        began = perf_counter()
        held()
        await later()
        seconds = held()
        assert seconds is not None
        assert 0.009 <= seconds <= perf_counter() - began + 0.001


async def test_it_grows_from_look_to_look() -> None:
    lock = asyncio.Semaphore(1)
    async with suspended(inside(lock), inside(lock)):
        looks = []
        for _ in range(4):
            looks.append(held() or 0.0)
            await later()
    assert looks == sorted(set(looks))


async def test_it_begins_anew_with_the_next_holder() -> None:
    lock = asyncio.Lock()
    async with suspended(inside(lock), inside(lock), inside(lock)) as (first, *_):
        held()
        await later()
        assert held() is not None
        first.cancel()
        await later(0)
        await later(0)
        assert held() is None


async def test_a_lock_that_nobody_waits_for_is_not_told() -> None:
    async with suspended(inside(asyncio.Lock())):
        assert take_snapshot().resources == ()


async def test_a_free_resource_has_no_time() -> None:
    async with suspended(asyncio.Event().wait()):
        held()
        await later()
        assert held() is None


async def test_the_head_of_the_queue_tells_between_looks() -> None:
    lock = asyncio.Lock()
    async with suspended(inside(lock), inside(lock)) as (_, waiter):
        note_contention([waiter])
        await later()
        seconds = held()  # the first look
    assert seconds is not None
    assert seconds >= 0.009


async def test_a_queue_that_moved_on_tells_nothing() -> None:
    lock = asyncio.Lock()
    async with suspended(inside(lock), inside(lock), inside(lock)) as (first, second, _):
        note_contention([second])
        await later()
        first.cancel()
        await later(0)
        await later(0)
        assert held() is None


async def test_a_request_that_never_ran_again_has_held_it_since() -> None:
    lock = asyncio.Lock()
    exchange = Exchange(Scope(), "r1", "GET", "/", "/", None, None, perf_counter())
    async with suspended(inside(lock), inside(lock)) as (holder, _):
        mark_request_task(holder, exchange)
        exchange.suspended_at = perf_counter() - 30
        seconds = held()
    assert seconds is not None
    assert 30 <= seconds < 60


class Unhashable(asyncio.Lock):
    """Cannot be remembered."""

    __hash__ = None  # type: ignore[assignment]


async def test_a_lock_that_cannot_be_remembered_is_shown_all_the_same() -> None:
    lock = Unhashable()
    async with suspended(inside(lock), inside(lock)) as (_, waiter):
        note_contention([waiter])
        held()
        await later()
        resource = only_resource()
    assert (resource.type, resource.held_seconds, len(resource.holders)) == ("Unhashable", None, 1)


@pytest.mark.parametrize("odd", [asyncio.sleep(0), None, 7], ids=["coroutine", "None", "number"])
async def test_noting_never_raises(odd: Any) -> None:
    note_contention([odd])
    if asyncio.iscoroutine(odd):
        odd.close()


async def test_nothing_remembered_keeps_a_lock_alive() -> None:
    lock = asyncio.Lock()
    async with suspended(inside(lock), inside(lock)) as (_, waiter):
        note_contention([waiter])
        held()
    gone = ref(lock)
    del lock, waiter, _
    await later(0)
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (asyncio.Lock, "locked"),
        (lambda: asyncio.Semaphore(1), "0 free"),
        (lambda: asyncio.BoundedSemaphore(1), "0 free of 1"),
    ],
    ids=["Lock", "Semaphore", "BoundedSemaphore"],
)
async def test_the_state_tells_free_permits(make: Any, state: str) -> None:
    lock = make()
    async with suspended(inside(lock), inside(lock)):
        assert only_resource().state == state
