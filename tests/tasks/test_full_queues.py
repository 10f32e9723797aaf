"""A full queue whose only reader waits for its writer, and what only looks like it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiohttp_observe.tasks import take_snapshot

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


class Pipe:
    """A queue that its tasks have only through this, and its two sides."""

    def __init__(self) -> None:
        self.queue = Queue(1)

    async def write(self) -> None:
        await self.queue.put(1)
        await self.queue.put(2)

    async def read_after(self, writer: asyncio.Task[None]) -> None:
        await writer
        await self.take()

    async def take(self) -> None:
        await self.queue.get()

    async def take_late(self) -> None:
        await asyncio.sleep(60)
        await self.take()


Pair = tuple[Coroutine[Any, Any, None], Callable[[asyncio.Task[None]], Coroutine[Any, Any, None]]]


def sides_of_a_closure() -> Pair:
    queue = Queue(1)

    async def writer() -> None:
        await queue.put(1)
        await queue.put(2)

    async def reader(writing: asyncio.Task[None]) -> None:
        await writing
        await queue.get()

    return writer(), reader


def sides_of_a_dictionary() -> Pair:
    queues = {"all": Queue(1)}

    async def writer() -> None:
        await queues["all"].put(1)
        await queues["all"].put(2)

    async def reader(writing: asyncio.Task[None]) -> None:
        await writing
        await queues["all"].get()

    return writer(), reader


def sides_of_an_object() -> Pair:
    pipe = Pipe()
    return pipe.write(), pipe.read_after


def start_both(sides: Callable[[], Pair]) -> list[asyncio.Task[None]]:
    """They have gone from every frame but their own when this returns."""
    write_all, read = sides()
    writer = asyncio.create_task(write_all)
    return [writer, asyncio.create_task(read(writer))]


@pytest.mark.parametrize("sides", [sides_of_a_closure, sides_of_a_dictionary, sides_of_an_object])
async def test_is_one_however_both_have_it(sides: Callable[[], Pair]) -> None:
    tasks = start_both(sides)
    async with started(*map(asyncio.wait_for, tasks, [None] * 2)):
        assert [len(deadlocks()) for _ in range(2)] == [1, 1]


async def test_is_none_where_somebody_has_the_object_it_belongs_to() -> None:
    pipe = Pipe()
    writer = asyncio.create_task(pipe.write())
    async with started(pipe.read_after(writer)):
        assert deadlocks() == []
        await pipe.take()
        await pipe.take()
        await writer


async def test_is_none_while_another_task_has_the_object_it_belongs_to() -> None:
    pipe = Pipe()
    writer = asyncio.create_task(pipe.write())
    sides = pipe.read_after(writer), pipe.take_late()
    del pipe
    async with started(*sides):
        assert deadlocks() == []


async def test_is_none_while_another_task_may_pass_it_to_a_reader() -> None:
    async def take(queue: Queue) -> None:
        await queue.get()

    async def start_late(queue: Queue) -> None:
        await asyncio.sleep(60)
        await take(queue)

    queue = Queue(1)
    sides = both(queue), start_late(queue)
    del queue
    async with started(*sides):
        assert deadlocks() == []


async def test_is_none_where_a_function_elsewhere_shares_the_closure() -> None:
    kept: list[Any] = []

    def sides() -> Pair:
        queue = Queue(1)

        async def writer() -> None:
            await queue.put(1)
            await queue.put(2)

        async def reader(writing: asyncio.Task[None]) -> None:
            await writing
            await queue.get()

        kept.append(lambda: queue.get_nowait())
        return writer(), reader

    writer, reader = start_both(sides)
    async with started(asyncio.wait_for(reader, None)):
        assert deadlocks() == []
        kept[0]()
        await writer


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
