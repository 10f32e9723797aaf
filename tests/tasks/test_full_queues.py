"""A full queue whose only reader waits for its writer, and what only looks like it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from aiohttp_observe.tasks import take_snapshot

from .scenes import waits_oddly

Queue = asyncio.Queue[int]


@asynccontextmanager
async def started(*coros: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Tasks of these, as far as they get by themselves."""
    tasks = [asyncio.ensure_future(coro) for coro in coros]
    for _ in range(10):
        await asyncio.sleep(0)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def write(queue: Queue) -> None:
    for number in range(3):
        await queue.put(number)


async def read_after(writer: asyncio.Task[None], queue: Queue) -> None:
    await writer
    await queue.get()


async def read_late(queue: Queue) -> None:
    await asyncio.sleep(60)
    await queue.get()


async def both(queue: Queue) -> None:
    """Starts a writer, and a reader that waits for it."""
    writer = asyncio.create_task(write(queue), name="writer")
    reader = asyncio.create_task(read_after(writer, queue), name="reader")
    try:
        await asyncio.wait([writer, reader])
    finally:
        writer.cancel()
        reader.cancel()


def deadlocks() -> list[str]:
    return [finding.sentence for finding in take_snapshot().findings if finding.kind == "deadlock"]


async def test_is_a_deadlock() -> None:
    async with started(both(Queue(1))):
        (sentence,) = deadlocks()
    assert sentence in ("deadlock: writer → reader → writer", "deadlock: reader → writer → reader")


async def test_is_told_by_every_look() -> None:
    async with started(both(Queue(1))):
        assert [len(deadlocks()) for _ in range(3)] == [1, 1, 1]


async def test_is_one_where_both_share_a_closure() -> None:
    queue = Queue(1)

    async def writer() -> None:
        await queue.put(1)
        await queue.put(2)

    async def reader() -> None:
        await writing
        await queue.get()

    writing = asyncio.create_task(writer(), name="writer")
    async with started(reader()):
        assert len(deadlocks()) == 1
    assert writing.cancelled()


async def test_is_none_while_another_reader_is_only_late() -> None:
    queue = Queue(1)
    late = read_late(queue)
    pair = both(queue)
    del queue
    async with started(pair, late):
        assert deadlocks() == []


async def test_is_none_where_somebody_unseen_refers_to_the_queue() -> None:
    queue = Queue(1)
    kept = [queue]
    async with started(both(queue)):
        del queue
        assert deadlocks() == []
    assert kept[0].full()


async def test_is_none_while_there_is_a_task_that_cannot_be_followed() -> None:
    async with started(both(Queue(1)), waits_oddly()):
        assert deadlocks() == []


async def test_is_none_where_the_readers_wait_is_limited() -> None:
    async def impatient(queue: Queue) -> None:
        writer = asyncio.create_task(write(queue))
        try:
            await asyncio.wait_for(asyncio.shield(writer), 60)
            await queue.get()
        finally:
            writer.cancel()

    async with started(impatient(Queue(1))):
        assert deadlocks() == []


async def test_is_none_where_a_function_of_the_closure_may_read_yet() -> None:
    queue = Queue(1)

    async def writer() -> None:
        await queue.put(1)
        await queue.put(2)

    async def reader() -> None:
        await writing
        await queue.get()

    async def drain() -> None:
        await queue.get()

    writing = asyncio.create_task(writer())
    async with started(reader()):
        assert deadlocks() == []
        await drain()
    assert writing.done()


async def test_is_none_where_the_queue_has_room() -> None:
    async with started(both(Queue(100))):
        assert deadlocks() == []
