"""Cancelling works for tasks that await each other, too, whatever lies between."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiohttp_observe.tasks import cancel

Task = asyncio.Task[Any]


async def bare(task: Task) -> None:
    await task


async def in_gather(task: Task) -> None:
    await asyncio.gather(task)


async def in_wait_for(task: Task) -> None:
    await asyncio.wait_for(task, None)


async def in_shield(task: Task) -> None:
    await asyncio.shield(task)


@pytest.mark.parametrize("wait", [bare, in_gather, in_wait_for, in_shield])
async def test_a_ring_of_tasks_can_be_cancelled(wait: Callable[[Task], Awaitable[None]]) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))
    tasks: list[Task] = []

    async def first() -> None:
        await asyncio.sleep(0)
        await wait(tasks[1])

    async def second() -> None:
        await asyncio.sleep(0)
        await tasks[0]

    tasks += [asyncio.create_task(first()), asyncio.create_task(second())]
    for _ in range(5):
        await asyncio.sleep(0)
    cancel(tasks[0])
    assert sum(getattr(task, "cancelling", int)() for task in tasks) <= 1  # nobody else takes the wish back
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    assert [type(end) for end in ended] == [asyncio.CancelledError] * 2
    gc.collect()
    await asyncio.sleep(0)
    assert not told


async def test_others_are_cancelled_as_ever() -> None:
    task = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    cancel(task)
    await asyncio.wait([task])
    assert task.cancelled()
