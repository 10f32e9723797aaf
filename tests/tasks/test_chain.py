"""The frames of a task lead to the innermost place, through whatever is awaited."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager
from types import coroutine
from typing import Any

import pytest

from aiohttp_observe.tasks import drive, take_snapshot

from .scenes import info_of, suspended


class Driven:
    busy = 0.0
    polls = 0
    longest_poll = 0.0
    suspended_at: float | None = None

    def waited(self, coro: object, future: object, callbacks: object, since: float, until: float) -> None:
        pass

    def held(self, seconds: float) -> None:
        pass


async def here() -> None:
    await asyncio.get_running_loop().create_future()


async def through_coroutines() -> None:
    await here()


@coroutine
def a_generator() -> Generator[Any, Any, None]:
    yield from here().__await__()


async def through_a_generator() -> None:
    await a_generator()


async def numbers() -> AsyncIterator[int]:
    yield 1
    await here()
    yield 2


async def through_an_async_generator() -> None:
    async for _ in numbers():
        pass


async def through_nested_async_generators() -> None:
    async for _ in (number async for number in numbers()):
        pass


async def through_anext() -> None:
    generator = numbers()
    await anext(generator)
    await anext(generator, None)


async def through_athrow() -> None:
    @asynccontextmanager
    async def cleaning_up() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await here()

    async with cleaning_up():
        raise LookupError


async def through_drive() -> None:
    async def there(argument: None) -> None:
        await here()

    await drive(there, None, Driven())


class Delegating:
    """As the request context managers of aiohttp: gives away the iterator of a coroutine."""

    def __await__(self) -> Generator[Any, Any, None]:
        return here().__await__()


async def through_a_custom_awaitable() -> None:
    await Delegating()


class Stepping:
    """An iterator of its own in front of a coroutine's."""

    def __init__(self) -> None:
        self.steps = here().__await__()

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.steps)


async def through_a_custom_iterator() -> None:
    await Stepping()


@pytest.mark.parametrize(
    "outermost",
    [
        through_coroutines,
        through_a_generator,
        through_an_async_generator,
        through_nested_async_generators,
        through_anext,
        through_athrow,
        through_drive,
        through_a_custom_awaitable,
        through_a_custom_iterator,
    ],
)
async def test_the_frames_begin_where_the_task_is_suspended(
    outermost: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    async with suspended(outermost()) as (task,):
        frames = info_of(task).frames
    assert frames[0].function == "here"
    assert frames[0].line == here.__code__.co_firstlineno + 1
    assert frames[0].file == __file__
    assert frames[-1].function == outermost.__name__


async def test_wait_for_is_looked_through_on_every_version() -> None:
    async def limited() -> None:
        await asyncio.wait_for(here(), 60)

    async with suspended(limited()) as (task,):
        functions = [frame.function for frame in info_of(task).frames]
    assert functions == ["here", "wait_for", "limited"]


async def test_a_task_has_as_many_frames_as_asked_for() -> None:
    async def deep(levels: int) -> None:
        await (deep(levels - 1) if levels else here())

    async with suspended(deep(5)) as (task,):
        for number, expected in ((1, ["here"]), (3, ["here", "deep", "deep"])):
            frames = info_of(task, take_snapshot(frames=number)).frames
            assert [frame.function for frame in frames] == expected


async def test_a_task_that_has_not_begun_stands_at_its_definition() -> None:
    task = asyncio.create_task(here())
    info = info_of(task)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert info.state == "scheduled"
    assert info.wait is None
    assert [(frame.function, frame.line) for frame in info.frames] == [("here", here.__code__.co_firstlineno)]


async def test_a_task_whose_future_is_done_is_scheduled() -> None:
    future = asyncio.get_running_loop().create_future()

    async def waits() -> None:
        await future

    async with suspended(waits()) as (task,):
        assert info_of(task).state == "waiting"
        future.set_result(None)
        assert info_of(task).state == "scheduled"


async def test_the_running_task_shows_its_own_frames_and_none_of_this_package() -> None:
    async def outer() -> Any:
        return inner()

    def inner() -> Any:
        return take_snapshot()

    task = asyncio.create_task(outer())
    info = info_of(task, await task)
    assert info.state == "running"
    assert info.wait is None
    assert [frame.function for frame in info.frames][:2] == ["inner", "outer"]


async def test_the_running_task_is_seen_from_another_thread_while_it_blocks_the_loop() -> None:
    loop = asyncio.get_running_loop()
    blocking, look = threading.Event(), threading.Event()

    def block() -> None:
        blocking.set()
        assert look.wait(10)

    async def blocks() -> None:
        block()

    snapshots = []

    def watch() -> None:
        assert blocking.wait(10)
        snapshots.append(take_snapshot(loop, frames=50))
        look.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    task = asyncio.create_task(blocks())
    await task
    watcher.join()
    info = info_of(task, snapshots[0])
    functions = [frame.function for frame in info.frames]
    assert info.state == "running"
    assert functions[functions.index("block") :][:2] == ["block", "blocks"]


class Ring:
    """An awaitable that holds a coroutine that awaits it."""

    def __init__(self) -> None:
        self.waits = self.awaited()
        self.waits.send(None)

    async def awaited(self) -> None:
        await self

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        future = asyncio.get_running_loop().create_future()
        future._asyncio_future_blocking = True
        return future


async def test_an_endless_chain_ends() -> None:
    ring = Ring()

    async def waits() -> None:
        await ring

    async with suspended(waits()) as (task,):
        assert info_of(task).state == "waiting"
    ring.waits.close()


def test_without_a_loop_it_says_to_pass_one() -> None:
    with pytest.raises(RuntimeError, match="pass the loop"):
        take_snapshot()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio.all_tasks() leaves them out")
async def test_a_task_written_in_python_is_seen_too() -> None:
    python_task: Any = getattr(asyncio.tasks, "_PyTask")  # noqa: B009 - unknown to the type stubs
    task = python_task(here(), loop=asyncio.get_running_loop())
    await asyncio.sleep(0)
    info = info_of(task)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (info.state, info.frames[0].function) == ("waiting", "here")
