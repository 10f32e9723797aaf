"""Tasks in known situations, for tests to look at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from aiohttp_observe.tasks import Snapshot, TaskInfo, number_of, take_snapshot

__all__ = ["info_of", "suspended", "waits_oddly"]


@asynccontextmanager
async def suspended(*coros: Coroutine[Any, Any, Any]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Tasks of ``coros``, each run until it waits; cancelled at the end."""
    tasks = [asyncio.create_task(coro) for coro in coros]
    try:
        for _ in range(20):  # turns of the loop, enough for helper tasks to get where they wait
            await asyncio.sleep(0)
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def info_of(task: asyncio.Task[Any], snapshot: Snapshot | None = None) -> TaskInfo:
    """What a snapshot says of ``task``."""
    infos = (snapshot or take_snapshot(frames=50)).tasks
    return next(info for info in infos if info.id == number_of(task))


class Odd:
    """Awaitable whose iterator says it has a ``cr_await``, and has not."""

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        future = asyncio.get_running_loop().create_future()
        future._asyncio_future_blocking = True
        return future

    @property
    def cr_await(self) -> Any:
        raise ZeroDivisionError


async def waits_oddly() -> None:
    """A look at what this waits for raises ``ZeroDivisionError``."""
    await Odd()
