"""What a task waits for has one name, whatever the Python version."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import Any

import pytest
import uvloop

from aiohttp_observe.tasks import TaskInfo, number_of, register_wait_kind, take_snapshot, waits_for

from .scenes import info_of, suspended

timeout: Any
if sys.version_info >= (3, 11):
    timeout = asyncio.timeout
else:  # what aiohttp uses there
    timeout = import_module("async_timeout").timeout

Scene = Callable[[], Coroutine[Any, Any, Any]]
SCENES: list[Any] = []


def scene(kind: str, detail: str) -> Callable[[Scene], Scene]:
    """Have a coroutine function tested for showing up as ``kind`` and ``detail``."""

    def add(function: Scene) -> Scene:
        SCENES.append(pytest.param(function, kind, detail, id=function.__name__))
        return function

    return add


async def taken(lock: asyncio.Lock) -> asyncio.Lock:
    """The lock, acquired."""
    await lock.acquire()
    return lock


@scene("sleep", "sleep")
async def sleeping() -> None:
    await asyncio.sleep(60)


@scene("gather", "gather")
async def gathering() -> None:
    await asyncio.gather(asyncio.sleep(60), asyncio.sleep(61))


@scene("wait", "wait")
async def waiting_for_a_set() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()


@scene("wait", "as_completed")
async def taking_what_comes_first() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    try:
        for first in asyncio.as_completed([task]):
            await first
    finally:
        task.cancel()


@scene("wait_for", "wait_for → Event.wait")
async def waiting_with_a_limit() -> None:
    await asyncio.wait_for(asyncio.Event().wait(), 60)


@scene("wait_for", "wait_for → Event.wait")
async def waiting_with_a_limit_for_own_code() -> None:
    async def own() -> None:
        await asyncio.Event().wait()

    await asyncio.wait_for(own(), 60)


@scene("wait_for", "wait_for → wait_for → sleep")
async def waiting_with_two_limits() -> None:
    await asyncio.wait_for(asyncio.wait_for(asyncio.sleep(60), 61), 62)


@scene("wait_for", "wait_for → future")
async def waiting_with_a_limit_for_a_future() -> None:
    await asyncio.wait_for(asyncio.get_running_loop().create_future(), 60)


@scene("wait_for", "wait_for → gather")
async def waiting_with_a_limit_for_several() -> None:
    await asyncio.wait_for(asyncio.gather(asyncio.sleep(60)), 60)


@scene("wait_for", "wait_for → task")
async def waiting_with_a_limit_for_a_task() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.wait_for(task, 60)


@scene("timeout", "timeout → Event.wait")
async def waiting_within_a_timeout_of_a_manager() -> None:
    @asynccontextmanager
    async def limited() -> AsyncIterator[None]:
        async with timeout(60):
            yield

    async with limited():
        await asyncio.Event().wait()


@scene("event", "Event.wait")
async def waiting_without_a_limit() -> None:
    await asyncio.Event().wait()


@scene("timeout", "timeout → Event.wait")
async def waiting_within_a_timeout() -> None:
    async with timeout(60):
        await asyncio.Event().wait()


@scene("shield", "shield")
async def shielding() -> None:
    inner = asyncio.ensure_future(asyncio.sleep(60))
    try:
        await asyncio.shield(inner)
    finally:
        inner.cancel()


@scene("task", "task")
async def awaiting_a_task() -> None:
    await asyncio.ensure_future(asyncio.sleep(60))


@scene("lock", "Lock.acquire")
async def locking() -> None:
    await (await taken(asyncio.Lock())).acquire()


@scene("lock", "Lock.acquire")
async def locking_by_with() -> None:
    async with await taken(asyncio.Lock()):
        pass


@scene("semaphore", "Semaphore.acquire")
async def passing_a_semaphore() -> None:
    async with asyncio.BoundedSemaphore(1) as _, AsyncExitStack() as stack:
        semaphore = asyncio.Semaphore(0)
        await stack.enter_async_context(semaphore)


@scene("condition", "Condition.wait")
async def waiting_for_a_notification() -> None:
    async with (condition := asyncio.Condition()):
        await condition.wait()


@scene("condition", "Condition.wait_for")
async def waiting_for_a_predicate() -> None:
    async with (condition := asyncio.Condition()):
        await condition.wait_for(lambda: False)


@scene("queue_get", "Queue.get")
async def consuming() -> None:
    await asyncio.LifoQueue[int]().get()


@scene("queue_put", "Queue.put")
async def producing() -> None:
    queue = asyncio.Queue[int](1)
    queue.put_nowait(1)
    await queue.put(2)


@scene("event", "Queue.join")
async def waiting_for_consumers() -> None:
    queue = asyncio.Queue[int]()
    queue.put_nowait(1)
    await queue.join()


@scene("executor", "run_in_executor")
async def running_in_a_pool() -> None:
    release = threading.Event()
    try:
        await asyncio.get_running_loop().run_in_executor(None, release.wait, 60)
    finally:
        release.set()


@scene("executor", "to_thread")
async def running_in_a_thread() -> None:
    release = threading.Event()
    try:
        await asyncio.to_thread(release.wait, 60)
    finally:
        release.set()


@scene("dns", "loop.getaddrinfo")
async def resolving() -> None:
    release = threading.Event()
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(None, release.wait, 0) for _ in range(2)))
    crowd = [loop.run_in_executor(None, release.wait, 60) for _ in range(40)]
    try:
        await loop.getaddrinfo("localhost", 80)  # the pool has no thread left for it
    finally:
        release.set()
        await asyncio.gather(*crowd)


@scene("stream", "loop.sock_accept")
async def accepting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        await asyncio.get_running_loop().sock_accept(listening)


@scene("subprocess", "Process.wait")
async def waiting_for_a_program() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=-1)
    try:
        await process.wait()
    finally:
        process.kill()
        await process.wait()


@scene("async_generator", "async_generator → sleep")
async def iterating() -> None:
    async def numbers() -> AsyncIterator[int]:
        await asyncio.sleep(60)
        yield 1

    async for _ in numbers():
        pass


@scene("sleep", "sleep")
async def entering_a_context_manager_written_as_a_generator() -> None:
    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        await asyncio.sleep(60)
        yield

    async with slow():
        pass


@scene("future", "future")
async def awaiting_a_future() -> None:
    await asyncio.get_running_loop().create_future()


if sys.version_info >= (3, 11):

    @scene("barrier", "Barrier.wait")
    async def waiting_for_others() -> None:
        await asyncio.Barrier(2).wait()

    @scene("stream", "loop.sock_recvfrom")
    async def receiving_datagrams() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving:
            receiving.bind(("127.0.0.1", 0))
            receiving.setblocking(False)
            await asyncio.get_running_loop().sock_recvfrom(receiving, 1)

    @scene("task_group", "TaskGroup")
    async def waiting_for_the_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))


@pytest.mark.parametrize(("function", "kind", "detail"), SCENES)
async def test_a_wait_is_known_by_kind_and_detail(function: Scene, kind: str, detail: str) -> None:
    async with suspended(function()) as (task,):
        info = await settled(task, kind)
        assert info.wait is not None
        assert (info.state, info.wait.kind, info.wait.detail) == ("waiting", kind, detail)


async def settled(task: asyncio.Task[Any], kind: str) -> TaskInfo:
    """What ``task`` does once it waits for ``kind``, which may take a thread or program to start."""
    for _ in range(500):
        info = info_of(task)
        if info.wait is not None and info.wait.kind == kind:
            break
        await asyncio.sleep(0.01)
    return info


def test_uvloops_own_waits_are_known_too() -> None:
    async def main() -> set[tuple[str, str]]:
        release = threading.Event()
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            async with suspended(
                asyncio.wait_for(loop.sock_accept(listening), 60), asyncio.to_thread(release.wait, 60)
            ) as tasks:
                waits = [info_of(task).wait for task in tasks]
                release.set()
        return {(wait.kind, wait.detail) for wait in waits if wait is not None}

    loop = uvloop.new_event_loop()
    try:
        waits = loop.run_until_complete(main())
    finally:
        loop.close()
    assert waits == {("wait_for", "wait_for → loop.sock_accept"), ("executor", "to_thread")}


async def borrow_from_a_pool() -> None:
    await asyncio.Queue[int]().get()


class Pool:
    """A pool whose public method hides the one that waits."""

    size: int

    async def _acquire(self) -> None:
        await asyncio.Queue[int]().get()

    async def acquire(self) -> None:
        await self._acquire()


class TestRegistering:
    async def test_a_function_gives_its_waits_a_kind(self) -> None:
        register_wait_kind("db_pool", borrow_from_a_pool)
        async with suspended(borrow_from_a_pool()) as (task,):
            wait = info_of(task).wait
        assert wait is not None
        assert (wait.kind, wait.detail) == ("db_pool", "borrow_from_a_pool → Queue.get")

    async def test_a_function_may_be_named_before_it_is_imported(self) -> None:
        register_wait_kind("db_pool", f"{__name__}:Pool._acquire")
        async with suspended(Pool().acquire()) as (task,):
            wait = info_of(task).wait
        assert wait is not None
        assert (wait.kind, wait.detail) == ("db_pool", "Pool.acquire → Queue.get")

    async def test_it_may_come_after_the_first_wait_there(self) -> None:
        async def lend() -> None:
            await asyncio.Queue[int]().get()

        async with suspended(lend()) as (task,):
            assert waits_for(task) == ("queue_get", "Queue.get")
            register_wait_kind("library", lend)
            found = waits_for(task)
        assert found is not None
        assert found[0] == "library"

    async def test_tasks_that_wait_in_a_method_meet_at_its_object(self) -> None:
        register_wait_kind("db_pool", f"{__name__}:Pool._acquire")
        pool = Pool()
        async with suspended(pool.acquire(), pool.acquire()) as tasks:
            (resource,) = take_snapshot().resources
        assert resource.type == "Pool"
        assert sorted(resource.waiters) == sorted(map(number_of, tasks))

    async def test_an_object_says_how_much_of_it_is_taken(self) -> None:
        register_wait_kind("db_pool", f"{__name__}:Pool._acquire", state=lambda pool: f"{pool.size} of 3")
        taken, broken = Pool(), Pool()
        taken.size = 2
        async with suspended(taken.acquire(), broken.acquire()):
            states = {resource.id: resource.state for resource in take_snapshot().resources}
        assert states == {number_of(taken): "2 of 3", number_of(broken): ""}

    @pytest.mark.parametrize("kind", ["DB pool", "", "db-pool", "1st"])
    def test_a_kind_that_makes_no_label_is_refused(self, kind: str) -> None:
        with pytest.raises(ValueError, match="lower-case words"):
            register_wait_kind(kind, borrow_from_a_pool)

    @pytest.mark.parametrize("name", ["Pool.acquire", ":acquire", "asyncpg.pool:"])
    def test_a_name_without_module_and_function_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="module:qualname"):
            register_wait_kind("db_pool", name)

    def test_what_never_waits_is_refused(self) -> None:
        with pytest.raises(TypeError, match="coroutine functions"):
            register_wait_kind("db_pool", len)
        with pytest.raises(TypeError, match="at least one"):
            register_wait_kind("db_pool")
