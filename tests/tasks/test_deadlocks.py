"""Tasks that can never go on are told, on both loops, and those that can are never said not to."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib import import_module
from typing import Any

import pytest

from aiohttp_observe.tasks import Snapshot, number_of, take_snapshot
from aiohttp_observe.tasks.seen import Look

from .scenes import waits_oddly

modern: Any = asyncio  # what it has from Python 3.11 on
# Before, what aiohttp uses there.
timeout = modern.timeout if sys.version_info >= (3, 11) else import_module("async_timeout").timeout
Scene = Callable[[], Awaitable[Any]]

every_kind = pytest.mark.parametrize(
    "kind", [asyncio.Lock, asyncio.Semaphore, asyncio.BoundedSemaphore, asyncio.Condition]
)
from_3_11 = pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup and timeout() are from 3.11")


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of each implementation, run by the test itself."""
    made = pytest.importorskip("uvloop").new_event_loop() if request.param == "uvloop" else None
    loop = made or asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def cycles(loop: asyncio.AbstractEventLoop, scene: Scene) -> list[list[str]]:
    """The names of the tasks in each deadlock that is seen once ``scene`` stands still, sorted."""
    return loop.run_until_complete(_watched(scene))


async def _watched(scene: Scene) -> list[list[str]]:
    task = asyncio.ensure_future(scene())
    for _ in range(30):
        await asyncio.sleep(0)
    snapshot, live = take_snapshot(), asyncio.all_tasks()
    names = {number_of(each): each.get_name() for each in live}
    others = live - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(task, *others, return_exceptions=True)
    assert_told(snapshot)
    return [sorted(names[number] for number in cycle) for cycle in snapshot.deadlocks]


def assert_told(snapshot: Snapshot) -> None:
    """Each cycle is a finding with its tasks as the evidence."""
    told = [finding.tasks for finding in snapshot.findings if finding.kind == "deadlock"]
    assert told == list(snapshot.deadlocks)


def start(name: str, coro: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(coro, name=name)


async def inside(lock: Any) -> None:
    async with lock:
        await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def holding(lock: Any) -> AsyncIterator[None]:
    async with lock:
        yield


async def rows_under(lock: Any) -> AsyncIterator[int]:
    async with lock:
        yield 1


async def nested_rows(lock: Any) -> AsyncIterator[int]:
    async with holding(lock):
        async for row in rows_under(asyncio.Lock()):
            yield row


@asynccontextmanager
async def limited(seconds: float | None) -> AsyncIterator[None]:
    async with timeout(seconds):
        yield


async def no_limit(coro: Awaitable[Any]) -> None:
    async with timeout(None):
        await coro


async def limit_by_a_manager(coro: Awaitable[Any]) -> None:
    async with limited(60):
        await coro


async def limit_by_an_exit_stack(coro: Awaitable[Any]) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(timeout(60))
        await coro


class Scope:
    """Cancels the task it was entered in, as those of anyio do."""

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(60, self._end)

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()


async def limit_by_a_scope(coro: Awaitable[Any]) -> None:
    with Scope():
        await coro


async def crossing(one: Any, other: Any) -> None:
    async with one:
        await asyncio.sleep(0)
        async with other:
            pass


class TestTwoLocks:
    @pytest.mark.parametrize(
        "kind", [asyncio.Lock, asyncio.Semaphore, asyncio.BoundedSemaphore, asyncio.Condition]
    )
    def test_in_opposite_order(self, loop: asyncio.AbstractEventLoop, kind: Any) -> None:
        async def scene() -> None:
            first, second = kind(), kind()
            await asyncio.wait([start("a", crossing(first, second)), start("b", crossing(second, first))])

        assert cycles(loop, scene) == [["a", "b"]]

    def test_in_a_ring_of_three_with_others_behind(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            locks = [asyncio.Lock() for _ in range(3)]
            ring = [start(f"r{n}", crossing(locks[n], locks[(n + 1) % 3])) for n in range(3)]
            await asyncio.sleep(0)
            await asyncio.wait([*ring, *(start("behind", inside(locks[0])) for _ in range(5))])

        assert cycles(loop, scene) == [["r0", "r1", "r2"]]

    def test_two_pairs_are_two_deadlocks(self, loop: asyncio.AbstractEventLoop) -> None:
        async def pair(name: str) -> None:
            first, second = asyncio.Lock(), asyncio.Lock()
            await asyncio.wait(
                [start(f"{name}1", crossing(first, second)), start(f"{name}2", crossing(second, first))]
            )

        async def scene() -> None:
            await asyncio.wait([start("m", pair("a")), start("n", pair("b"))])

        assert sorted(cycles(loop, scene)) == [["a1", "a2"], ["b1", "b2"]]


class TestOneTaskAlone:
    @pytest.mark.parametrize(
        "kind", [asyncio.Lock, asyncio.Semaphore, asyncio.BoundedSemaphore, asyncio.Condition]
    )
    def test_takes_what_it_holds(self, loop: asyncio.AbstractEventLoop, kind: Any) -> None:
        async def scene() -> None:
            lock = kind()
            async with lock, lock:
                pass

        assert len(cycles(loop, scene)) == 1

    def test_takes_it_by_calling_acquire(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            lock = asyncio.Lock()
            async with lock:
                await lock.acquire()

        assert len(cycles(loop, scene)) == 1

    @pytest.mark.parametrize("rows", [rows_under, nested_rows])
    def test_takes_what_an_async_generator_holds_for_it(
        self, loop: asyncio.AbstractEventLoop, rows: Callable[[Any], AsyncIterator[int]]
    ) -> None:
        async def scene() -> None:
            lock = asyncio.Lock()
            async for _ in rows(lock):
                await lock.acquire()

        assert len(cycles(loop, scene)) == 1

    def test_takes_what_a_context_manager_holds_for_it(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            lock = asyncio.Lock()
            async with holding(lock), holding(lock):
                pass

        assert len(cycles(loop, scene)) == 1

    def test_takes_it_within_an_async_generator(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            lock = asyncio.Lock()
            async with lock:
                async for _ in nested_rows(lock):
                    pass

        assert len(cycles(loop, scene)) == 1


class TestTasksAwaitingEachOther:
    @pytest.mark.parametrize(
        "link",
        [
            lambda task: task,
            lambda task: asyncio.gather(task, asyncio.sleep(0)),
            asyncio.shield,
            lambda task: asyncio.wait({task}),
        ],
        ids=["directly", "gather", "shield", "wait"],
    )
    def test_in_a_ring_of_three(self, loop: asyncio.AbstractEventLoop, link: Any) -> None:
        async def scene() -> None:
            tasks: list[asyncio.Task[None]] = []

            async def one(number: int) -> None:
                # asyncio can't cancel a ring of tasks without one that asks to be left out of it.
                await (link if number else asyncio.shield)(tasks[(number + 1) % 3])

            tasks += [start(f"t{number}", one(number)) for number in range(3)]
            await asyncio.get_running_loop().create_future()

        assert cycles(loop, scene) == [["t0", "t1", "t2"]]

    @from_3_11
    def test_by_a_task_group_whose_child_wants_the_lock(self, loop: asyncio.AbstractEventLoop) -> None:
        async def parent(lock: asyncio.Lock) -> None:
            async with lock, modern.TaskGroup() as group:
                group.create_task(inside(lock), name="child")

        async def scene() -> None:
            await asyncio.wait([start("parent", parent(asyncio.Lock()))])

        assert cycles(loop, scene) == [["child", "parent"]]

    @pytest.mark.parametrize(
        "wait",
        [asyncio.gather, asyncio.shield, lambda task: asyncio.wait({task})],
        ids=["gather", "shield", "wait"],
    )
    def test_under_a_lock_that_the_child_wants(self, loop: asyncio.AbstractEventLoop, wait: Any) -> None:
        async def parent(lock: asyncio.Lock) -> None:
            async with lock:
                await wait(start("child", inside(lock)))

        async def scene() -> None:
            await asyncio.wait([start("parent", parent(asyncio.Lock()))])

        assert cycles(loop, scene) == [["child", "parent"]]

    @pytest.mark.parametrize("wait", [lambda coro: asyncio.wait_for(coro, None), no_limit])
    def test_under_a_limit_that_is_none(self, loop: asyncio.AbstractEventLoop, wait: Any) -> None:
        async def stuck(lock: asyncio.Lock) -> None:
            async with lock:
                await wait(inside(lock))

        async def scene() -> None:
            await asyncio.wait([start("stuck", stuck(asyncio.Lock()))])

        assert cycles(loop, scene) == [["stuck"]]

    def test_with_a_wait_for_all_of_which_one_goes_on(self, loop: asyncio.AbstractEventLoop) -> None:
        async def parent(lock: asyncio.Lock) -> None:
            async with lock:
                await asyncio.wait([start("child", inside(lock)), start("sleeper", asyncio.sleep(60))])

        async def scene() -> None:
            await asyncio.wait([start("parent", parent(asyncio.Lock()))])

        assert cycles(loop, scene) == [["child", "parent"]]

    def test_enters_what_it_holds_by_an_exit_stack(self, loop: asyncio.AbstractEventLoop) -> None:
        async def stuck(lock: asyncio.Lock) -> None:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(lock)
                await stack.enter_async_context(lock)

        async def scene() -> None:
            await asyncio.wait([start("stuck", stuck(asyncio.Lock()))])

        assert cycles(loop, scene) == [["stuck"]]

    def test_of_who_was_notified_and_who_notified_it(self, loop: asyncio.AbstractEventLoop) -> None:
        async def notified(condition: asyncio.Condition) -> None:
            async with condition:
                await condition.wait()

        async def notifies(condition: asyncio.Condition, other: asyncio.Task[None]) -> None:
            async with condition:
                condition.notify_all()
                await asyncio.shield(other)  # which can't be cancelled before it has the lock

        async def scene() -> None:
            condition = asyncio.Condition()
            waiter = start("notified", notified(condition))
            await asyncio.sleep(0)
            await asyncio.wait([waiter, start("notifies", notifies(condition, waiter))])

        assert cycles(loop, scene) == [["notified", "notifies"]]

    def test_while_timers_of_others_run(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            other = start("other", asyncio.sleep(60))
            timer = loop.call_later(60, other.cancel)
            lock = asyncio.Lock()
            await asyncio.wait([start("stuck", crossing(lock, lock)), start("late", asyncio.sleep(60))])
            timer.cancel()

        assert cycles(loop, scene) == [["stuck"]]


class TestIsNone:
    """Where anything may still end the wait."""

    @pytest.mark.parametrize("limit", [limit_by_a_manager, limit_by_an_exit_stack, limit_by_a_scope])
    def test_with_a_timeout_entered_by_another(self, loop: asyncio.AbstractEventLoop, limit: Any) -> None:
        async def scene() -> None:
            lock = asyncio.Lock()
            await asyncio.wait([start("stuck", limit(crossing(lock, lock)))])

        assert cycles(loop, scene) == []

    @pytest.mark.parametrize(
        "end",
        [
            lambda task, lock: (task.cancel,),
            lambda task, lock: (task.cancel, "too late"),
            lambda task, lock: (lambda: task.cancel(),),
            lambda task, lock: (partial(task.cancel),),
            lambda task, lock: (asyncio.Task.cancel, task),
            lambda task, lock: (lock.release,),
        ],
    )
    def test_with_a_timer_that_ends_it(self, loop: asyncio.AbstractEventLoop, end: Any) -> None:
        async def scene() -> None:
            lock = asyncio.Lock()
            task = start("stuck", crossing(lock, lock))
            timer = loop.call_later(60, *end(task, lock))
            try:
                await asyncio.wait([task])
            finally:
                timer.cancel()

        assert cycles(loop, scene) == []

    def test_with_a_timer_that_ends_who_awaits_it(self, loop: asyncio.AbstractEventLoop) -> None:
        async def outer(lock: asyncio.Lock) -> None:
            await asyncio.gather(start("inner", crossing(lock, lock)))

        async def scene() -> None:
            task = start("outer", outer(asyncio.Lock()))
            timer = loop.call_later(60, task.cancel)
            try:
                await asyncio.wait([task])
            finally:
                timer.cancel()

        assert cycles(loop, scene) == []

    def test_with_wait_for(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            lock = asyncio.Lock()
            async with lock:
                await asyncio.wait_for(inside(lock), 60)

        assert cycles(loop, scene) == []

    def test_with_a_timeout_around_a_task_that_awaits_it(self, loop: asyncio.AbstractEventLoop) -> None:
        async def outer(lock: asyncio.Lock) -> None:
            await asyncio.gather(start("inner", crossing(lock, lock)))

        async def scene() -> None:
            await asyncio.wait_for(start("outer", outer(asyncio.Lock())), 60)

        assert cycles(loop, scene) == []

    @from_3_11
    def test_with_a_timeout_around_one_of_two(self, loop: asyncio.AbstractEventLoop) -> None:
        async def impatient(one: asyncio.Lock, other: asyncio.Lock) -> None:
            async with modern.timeout(60):
                await crossing(one, other)

        async def scene() -> None:
            first, second = asyncio.Lock(), asyncio.Lock()
            await asyncio.wait([start("a", crossing(first, second)), start("b", impatient(second, first))])

        assert cycles(loop, scene) == []

    def test_with_a_wait_that_has_a_timeout(self, loop: asyncio.AbstractEventLoop) -> None:
        async def parent(lock: asyncio.Lock) -> None:
            async with lock:
                await asyncio.wait({start("child", inside(lock))}, timeout=60)

        async def scene() -> None:
            await asyncio.wait([start("parent", parent(asyncio.Lock()))])

        assert cycles(loop, scene) == []

    def test_with_as_completed_that_has_a_timeout(self, loop: asyncio.AbstractEventLoop) -> None:
        async def parent(lock: asyncio.Lock) -> None:
            async with lock:
                for done in asyncio.as_completed([start("child", inside(lock))], timeout=60):
                    await done

        async def scene() -> None:
            await asyncio.wait([start("parent", parent(asyncio.Lock()))])

        assert cycles(loop, scene) == []

    def test_with_an_event_that_anyone_may_set(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            lock, event = asyncio.Lock(), asyncio.Event()

            async def waits() -> None:
                async with lock:
                    await event.wait()

            async def sets() -> None:
                async with lock:
                    event.set()

            await asyncio.wait([start("waits", waits()), start("sets", sets())])

        assert cycles(loop, scene) == []

    def test_with_a_holder_that_sleeps(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            lock = asyncio.Lock()

            async def sleeps() -> None:
                async with lock:
                    await asyncio.sleep(60)

            await asyncio.wait([start("sleeps", sleeps()), *(start("wants", inside(lock)) for _ in range(5))])

        assert cycles(loop, scene) == []

    @pytest.mark.parametrize("take", [inside, holding], ids=["with", "context manager"])
    def test_with_waiters_that_enter_by_a_context_manager(
        self, loop: asyncio.AbstractEventLoop, take: Any
    ) -> None:
        async def scene() -> None:
            lock, other = asyncio.Lock(), asyncio.Lock()

            async def within() -> None:
                async with holding(other):
                    await inside(take(lock) if take is holding else lock)

            await asyncio.wait([start("holder", inside(lock)), start("b", within()), start("c", within())])

        assert cycles(loop, scene) == []

    def test_with_a_semaphore_of_which_one_holder_is_free(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            semaphore, lock = asyncio.BoundedSemaphore(2), asyncio.Lock()
            await asyncio.wait(
                [
                    start("free", inside(semaphore)),
                    start("a", crossing(semaphore, lock)),
                    start("b", crossing(lock, semaphore)),
                ]
            )

        assert cycles(loop, scene) == []

    def test_with_a_semaphore_of_which_one_permit_was_taken_by_a_call(
        self, loop: asyncio.AbstractEventLoop
    ) -> None:
        async def slow(semaphore: asyncio.Semaphore) -> None:
            await semaphore.acquire()
            try:
                await asyncio.sleep(60)
            finally:
                semaphore.release()

        async def scene() -> None:
            semaphore, lock = asyncio.Semaphore(2), asyncio.Lock()
            one = start("slow", slow(semaphore))
            await asyncio.sleep(0)
            ring = [start("one", crossing(semaphore, lock)), start("other", crossing(lock, semaphore))]
            del semaphore
            await asyncio.wait([one, *ring])

        assert cycles(loop, scene) == []

    def test_with_a_semaphore_while_there_is_a_task_that_cannot_be_followed(
        self, loop: asyncio.AbstractEventLoop
    ) -> None:
        async def scene(*others: Any) -> None:
            semaphore, lock = asyncio.Semaphore(1), asyncio.Lock()
            ring = (crossing(semaphore, lock), crossing(lock, semaphore))
            await asyncio.wait([start("one of them", coro) for coro in (*ring, *others)])

        assert len(cycles(loop, scene)) == 1
        assert cycles(loop, lambda: scene(waits_oddly())) == []

    def test_with_the_first_of_several(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            lock = asyncio.Lock()
            async with lock:
                tasks = {start("wants", inside(lock)), start("sleeps", asyncio.sleep(60))}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

        assert cycles(loop, scene) == []

    def test_with_a_lock_just_released(self, loop: asyncio.AbstractEventLoop) -> None:
        async def scene() -> None:
            first, second = asyncio.Lock(), asyncio.Lock()

            async def forever(one: asyncio.Lock, other: asyncio.Lock) -> None:
                while True:
                    async with one, other:
                        await asyncio.sleep(0)

            await asyncio.wait([start(str(n), forever(first, second)) for n in range(5)])

        assert cycles(loop, scene) == []


async def test_a_permit_that_a_running_task_has_taken_leaves_hope() -> None:
    """Two tasks cross a semaphore of two places and a lock; the third place is the looker's own."""
    semaphore, lock = asyncio.Semaphore(2), asyncio.Lock()

    async def cross(first: Any, second: Any) -> None:
        async with first:
            await asyncio.sleep(0)
            async with second:
                pass

    async with semaphore:
        tasks = [
            asyncio.create_task(cross(semaphore, lock)),
            asyncio.create_task(cross(lock, semaphore)),
        ]
        for _ in range(5):
            await asyncio.sleep(0)
        assert take_snapshot().deadlocks == ()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)


@pytest.mark.parametrize("each_its_own", [False, True], ids=["one task", "an event each"])
async def test_of_very_many_tasks_they_are_looked_for_in_slices(each_its_own: bool) -> None:
    loop = asyncio.get_running_loop()
    one = asyncio.create_task(asyncio.Event().wait())
    wait = [asyncio.Event().wait() if each_its_own else asyncio.wait([one]) for _ in range(6000)]
    tasks = [asyncio.create_task(each) for each in wait]
    await asyncio.sleep(0)
    look = Look(loop, depth=1)
    for task in tasks:
        look.at(task)
    pauses = sum(1 for _ in look.index.deadlocks())
    for task in (one, *tasks):
        task.cancel()
    await asyncio.wait([one, *tasks])
    assert pauses >= 6
