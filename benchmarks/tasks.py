"""What it costs to know where a task came from, and to list all tasks."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from statistics import median
from time import perf_counter
from typing import Any

from .rounds import child, interleaved, note
from .table import Table
from .ticker import ticking

__all__ = ["tables"]

_CREATED = 40_000
_TRACKERS = ("plain", "ours", "aiomonitor's hook")
_LISTINGS = (
    "ours, all rows",
    "ours, 1,000 rows",
    "aiomonitor with its hook",
    "get_stack() of all",
    "all_tasks()",
)


def tables(rounds: int) -> list[Table]:
    """Creation, then listings of three crowds."""
    return [
        _creation(rounds),
        _listing(1_000, rounds),
        _listing(10_000, max(rounds - 2, 1)),
        _listing(100_000, 1),
    ]


def _creation(rounds: int) -> Table:
    found, failed = interleaved(
        {name: name for name in _TRACKERS}, rounds, lambda name: child("tasks", "creation", name)
    )
    rows = tuple((name, value, value - found["plain"]) for name, value in found.items())
    return Table("a trivial task, create to finish, µs", ("tracking", "µs", "over plain"), rows, note(failed))


def _listing(tasks: int, rounds: int) -> Table:
    names = [
        name for name in _LISTINGS if tasks < 100_000 or not name.startswith(("aiomonitor", "ours, all"))
    ]
    found, failed = interleaved(
        {name: name for name in names}, rounds, lambda name: child("tasks", "listing", name, tasks), median
    )
    monitor = found.get("aiomonitor with its hook")
    rows = tuple(
        (name, total, None if monitor is None else total / monitor[0], stretch)
        for name, (total, stretch) in found.items()
    )
    columns = ("listing", "ms", "x aiomonitor", "longest stretch on the loop, ms")
    return Table(f"{tasks:,} live tasks", columns, rows, note(failed))


# In a process of its own


@contextmanager
def _tracked_by(name: str) -> Iterator[Any]:
    loop = asyncio.get_running_loop()
    if name == "plain":
        yield None
    elif name == "ours":
        from aiohttp_observe import Tasks

        tracker = Tasks().install(loop)
        yield tracker
        tracker.uninstall()
    else:
        import aiomonitor

        with aiomonitor.start_monitor(
            loop, hook_task_factory=True, console_enabled=False, port=0, webui_port=0
        ) as monitor:
            yield monitor


async def _create(name: str) -> float:
    """Microseconds for each of many tasks that end at once."""

    async def trivial() -> None:
        pass

    with _tracked_by(name):
        number = _CREATED if name != "aiomonitor's hook" else _CREATED // 20
        for _ in range(1_000):
            await asyncio.create_task(trivial())
        begun = perf_counter()
        for _ in range(number):
            await asyncio.create_task(trivial())
        return (perf_counter() - begun) / number * 1e6


@asynccontextmanager
async def _crowd(number: int) -> AsyncIterator[None]:
    """Tasks that wait for all sorts of things, some of them through several coroutines."""
    event, lock, queue = asyncio.Event(), asyncio.Lock(), asyncio.Queue[None]()
    await lock.acquire()

    async def deeper(depth: int) -> None:
        if depth:
            await deeper(depth - 1)
        else:
            await event.wait()

    async def gathers() -> None:
        await asyncio.gather(event.wait(), asyncio.sleep(3600))

    async def locks() -> None:
        async with lock:
            pass

    kinds: list[Callable[[], Any]] = [
        lambda: deeper(0),
        lambda: deeper(4),
        lambda: asyncio.wait_for(deeper(1), 3600),
        lambda: asyncio.sleep(3600),
        queue.get,
        locks,
        gathers,
    ]
    made = []
    while len(asyncio.all_tasks()) < number:
        made += [asyncio.create_task(kinds[index % len(kinds)]()) for index in range(len(kinds) * 20)]
        await asyncio.sleep(0)
    yield
    for task in made:
        task.cancel()
    await asyncio.gather(*made, return_exceptions=True)


async def _list(name: str, number: int) -> tuple[float, float]:
    """Milliseconds in all, and the longest that nothing else could run."""
    tracker = "aiomonitor's hook" if name.startswith("aiomonitor") else "ours"
    with _tracked_by(tracker) as monitor:
        async with _crowd(number):
            return await _timed(name, monitor)


async def _timed(name: str, monitor: Any) -> tuple[float, float]:
    async with ticking() as ticker:
        await asyncio.sleep(0.05)
        ticker.worst, begun = 0.0, perf_counter()
        await _LIST[name](monitor)
        total = perf_counter() - begun
    return total * 1e3, ticker.worst * 1e3


async def _ours(limit: int) -> None:
    from aiohttp_observe.tasks import json_pieces, snapshot_without_blocking

    pieces = []
    for piece in json_pieces(await snapshot_without_blocking(limit=limit)):
        pieces.append(piece)
        await asyncio.sleep(0)
    "".join(pieces)


async def _aiomonitor(monitor: Any) -> None:
    monitor.format_running_task_list("", False)


async def _stacks() -> None:
    for task in asyncio.all_tasks():
        task.get_stack()


async def _all() -> None:
    asyncio.all_tasks()


_LIST: dict[str, Callable[[Any], Any]] = {
    "ours, all rows": lambda monitor: _ours(1_000_000),
    "ours, 1,000 rows": lambda monitor: _ours(1_000),
    "aiomonitor with its hook": _aiomonitor,
    "get_stack() of all": lambda monitor: _stacks(),
    "all_tasks()": lambda monitor: _all(),
}


def main(what: str, name: str, *number: str) -> None:
    os.sched_setaffinity(0, {0})
    work: Any = _create(name) if what == "creation" else _list(name, int(number[0]))
    print(json.dumps(asyncio.run(work)), flush=True)
    os._exit(0)  # aiomonitor's threads take their time


if __name__ == "__main__":
    main(*sys.argv[1:])
