"""A snapshot names the tasks that a task waits for."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from aiohttp_observe.tasks import number_of

from .scenes import info_of, suspended

Tasks = list["asyncio.Task[Any]"]
Awaiting = Callable[[Tasks], Coroutine[Any, Any, Any]]


async def gather(tasks: Tasks) -> None:
    await asyncio.gather(*tasks)


async def wait(tasks: Tasks) -> None:
    await asyncio.wait(tasks)


async def as_completed(tasks: Tasks) -> None:
    for first in asyncio.as_completed(tasks):
        await first


async def gather_within_a_limit(tasks: Tasks) -> None:
    await asyncio.wait_for(asyncio.gather(*tasks), 60)


async def gather_of_gathers(tasks: Tasks) -> None:
    await asyncio.gather(asyncio.gather(*tasks[:1]), asyncio.gather(asyncio.gather(*tasks[1:])))


async def shielded_gather(tasks: Tasks) -> None:
    await asyncio.shield(asyncio.gather(*tasks))


@pytest.mark.parametrize(
    "awaiting",
    [gather, wait, as_completed, gather_within_a_limit, gather_of_gathers, shielded_gather],
)
async def test_a_task_waits_for_several(awaiting: Awaiting) -> None:
    async with (
        suspended(asyncio.sleep(60), asyncio.sleep(60)) as tasks,
        suspended(awaiting(tasks)) as (task,),
    ):
        wait = info_of(task).wait
        assert wait is not None
        assert sorted(wait.on) == sorted(map(number_of, tasks))


async def shield(task: asyncio.Task[Any]) -> None:
    await asyncio.shield(task)


async def await_it(task: asyncio.Task[Any]) -> None:
    await task


async def wait_for(task: asyncio.Task[Any]) -> None:
    await asyncio.wait_for(task, 60)


@pytest.mark.parametrize("awaiting", [shield, await_it, wait_for])
async def test_a_task_waits_for_another(
    awaiting: Callable[[asyncio.Task[Any]], Coroutine[Any, Any, Any]],
) -> None:
    async with suspended(asyncio.sleep(60)) as (other,), suspended(awaiting(other)) as (task,):
        wait = info_of(task).wait
        assert wait is not None
        assert wait.on == (number_of(other),)


async def test_what_has_ended_is_not_waited_for() -> None:
    async with suspended(asyncio.sleep(0), asyncio.sleep(60)) as tasks, suspended(gather(tasks)) as (task,):
        wait = info_of(task).wait
        assert wait is not None
        assert wait.on == (number_of(tasks[1]),)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup is from Python 3.11")
async def test_a_task_waits_for_its_group() -> None:
    task_group = getattr(asyncio, "TaskGroup")  # noqa: B009 - unknown to the types of Python 3.10
    members: Tasks = []

    async def group() -> None:
        async with task_group() as tasks:
            members.extend(tasks.create_task(asyncio.sleep(60)) for _ in range(2))

    async with suspended(group()) as (task,):
        wait = info_of(task).wait
        assert wait is not None
        assert sorted(wait.on) == sorted(map(number_of, members))
