"""Looks from another thread while tasks come and go at full speed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any
from weakref import ref

import pytest
import uvloop

from aiohttp_observe.tasks import (
    Snapshot,
    Tasks,
    count_tasks,
    json_pieces,
    note_contention,
    resource_pieces,
    snapshot_without_blocking,
    take_snapshot,
    tree_lines,
    tree_of,
)

SECONDS = 3.0
FEWEST = 6
AT_ONCE = 200


class Churn:
    """Tasks at locks, queues and each other that are made, finished and cancelled without a pause."""

    def __init__(self) -> None:
        self.made = 0
        self._lock = asyncio.Lock()
        self._semaphore = asyncio.BoundedSemaphore(3)
        self._queue = asyncio.Queue[int](5)
        self._live: set[asyncio.Task[Any]] = set()

    async def until(self, stop: Callable[[], bool]) -> None:
        while not stop():
            for number in range(AT_ONCE - len(self._live)):
                self._start(number)
            for task in list(self._live)[::7]:
                task.cancel()
            await asyncio.sleep(0)
        for task in self._live:
            task.cancel()
        await asyncio.gather(*self._live, return_exceptions=True)

    def _start(self, number: int) -> None:
        ways = (
            self._at_the_lock,
            self._at_the_semaphore,
            self._read,
            self._write,
            self._with_a_child,
            self._impatient,
        )
        task = asyncio.create_task(ways[number % len(ways)]())
        self.made += 1
        self._live.add(task)
        task.add_done_callback(self._live.discard)

    async def _at_the_lock(self) -> None:
        async with self._lock:
            await asyncio.sleep(0)

    async def _at_the_semaphore(self) -> None:
        async with self._semaphore, self._lock:
            await asyncio.sleep(0)

    async def _read(self) -> None:
        await self._queue.get()

    async def _write(self) -> None:
        await self._queue.put(1)

    async def _with_a_child(self) -> None:
        await asyncio.gather(asyncio.create_task(self._at_the_lock()), self._at_the_semaphore())

    async def _impatient(self) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._at_the_lock(), 0.001)


class Looks(threading.Thread):
    """Takes one after another for a while, on a slow machine for longer, and keeps what was wrong."""

    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.number = 0
        self.wrong: BaseException | None = None
        self._look = look
        self._deadline = perf_counter() + SECONDS

    def run(self) -> None:
        try:
            while perf_counter() < self._deadline or self.number < FEWEST:
                self._look()
                self.number += 1
        except BaseException as exc:  # for the test to raise
            self.wrong = exc


def assert_sound(snapshot: Snapshot) -> None:
    """No task twice, no task examined in part, nothing odd about what they wait for."""
    numbers = [task.id for task in snapshot.tasks]
    assert len(numbers) == len(set(numbers))
    assert not [w for task in snapshot.tasks for w in task.warnings if w.startswith("not fully examined")]
    for resource in snapshot.resources:
        assert len(resource.waiters) == len(set(resource.waiters))


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_looks_never_fail_and_never_show_a_task_twice(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    loop = make()

    def look() -> None:
        snapshot = take_snapshot(loop, limit=100_000)
        assert_sound(snapshot)
        "".join(json_pieces(snapshot))
        list(tree_lines(tree_of(snapshot)))
        "".join(resource_pieces(snapshot))
        count_tasks(loop)

    async def main() -> tuple[int, Looks]:
        tracker = Tasks().install(loop)
        churn, looks = Churn(), Looks(look)
        looks.start()
        await churn.until(lambda: not looks.is_alive())
        tracker.uninstall()
        return churn.made, looks

    try:
        made, looks = loop.run_until_complete(main())
    finally:
        loop.close()
    if looks.wrong is not None:
        raise looks.wrong
    assert looks.number >= FEWEST
    assert made > 1000


async def test_looks_of_the_loop_itself_neither() -> None:
    done = False

    async def looks() -> int:
        nonlocal done
        deadline, number = perf_counter() + SECONDS / 3, 0
        try:
            while perf_counter() < deadline:
                assert_sound(await snapshot_without_blocking(limit=100_000))
                number += 1
        finally:
            done = True
        return number

    looking = asyncio.create_task(looks())
    await Churn().until(lambda: done)
    assert await looking > 5


async def test_nothing_keeps_a_finished_task_alive() -> None:
    tracker = Tasks().install(asyncio.get_running_loop())
    lock = asyncio.Lock()

    async def inside() -> None:
        async with lock:
            await asyncio.get_running_loop().create_future()

    tasks = [asyncio.create_task(inside()) for _ in range(60)]
    for _ in range(3):
        await asyncio.sleep(0)
    snapshots = [take_snapshot(), await snapshot_without_blocking()]
    await asyncio.to_thread(take_snapshot, asyncio.get_running_loop())
    note_contention(tasks)
    gone = [ref(task) for task in tasks]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    tasks.clear()
    del task
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    tracker.uninstall()
    assert len(snapshots[0].tasks) == 61  # what was seen stays, and refers to no task
    assert [each() for each in gone if each() is not None] == []
