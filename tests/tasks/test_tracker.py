"""Tasks remember their birth, at no cost to anybody else's task factory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from time import perf_counter
from typing import Any

import pytest

from aiohttp_observe.exchange import CURRENT, Exchange, Scope
from aiohttp_observe.tasks import (
    Frame,
    Tasks,
    TaskTracker,
    birth_of,
    exchange_of,
    mark_request_task,
    name_operation,
    number_of,
    take_snapshot,
)

from .scenes import info_of, suspended


def an_exchange(request_id: str = "r1") -> Exchange:
    return Exchange(
        Scope(),
        request_id,
        method="GET",
        route="/orders/{id}",
        path="/orders/1",
        client_address=None,
        user_agent=None,
        started=perf_counter(),
    )


@pytest.fixture
async def tracked() -> AsyncIterator[TaskTracker]:
    """The test's own loop, tracked."""
    tracker = Tasks().install(asyncio.get_running_loop())
    yield tracker
    tracker.uninstall()


@pytest.fixture(autouse=True)
async def untouched() -> AsyncIterator[None]:
    """Whatever a test does, the loop's factory is what it was."""
    yield
    assert asyncio.get_running_loop().get_task_factory() is None


async def collected() -> None:
    """After turns of the loop, whose handles keep what they called, and of the collector."""
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()


@pytest.mark.usefixtures("tracked")
class TestBirth:
    async def test_has_the_place_outside_asyncio(self) -> None:
        def create() -> asyncio.Task[None]:
            return asyncio.create_task(asyncio.sleep(0))

        task = create()
        await task
        birth = birth_of(task)
        assert birth is not None
        line = create.__code__.co_firstlineno + 1
        assert birth.place == Frame(__file__, line, "create")

    @pytest.mark.parametrize("how", ["loop.create_task", "ensure_future", "gather", "wait_for"])
    async def test_has_that_place_however_the_task_is_made(self, how: str) -> None:
        async def made() -> asyncio.Task[Any] | None:
            return asyncio.current_task()

        async def make() -> Any:
            if how == "loop.create_task":
                return await asyncio.get_running_loop().create_task(made())
            if how == "ensure_future":
                return await asyncio.ensure_future(made())
            if how == "gather":
                return (await asyncio.gather(made()))[0]
            return await asyncio.wait_for(made(), 60)

        birth = birth_of(await asyncio.create_task(make()))
        assert birth is not None
        assert birth.place.file == __file__

    async def test_has_the_place_outside_of_packages(self) -> None:
        package: dict[str, Any] = {"create_task": asyncio.create_task}
        source = "def start(coro): return create_task(coro)"
        exec(compile(source, "/lib/site-packages/nursery/tasks.py", "exec"), package)

        def create() -> asyncio.Task[None]:
            task: asyncio.Task[None] = package["start"](asyncio.sleep(0))
            return task

        task = create()
        await task
        birth = birth_of(task)
        assert birth is not None
        assert birth.place == Frame(__file__, create.__code__.co_firstlineno + 1, "create")

    async def test_has_the_place_in_a_package_that_nobody_called(self) -> None:
        package: dict[str, Any] = {"create_task": asyncio.create_task}
        source = "def start(made): made.append(create_task(sleep(0)))"
        exec(compile(source, "/lib/site-packages/nursery/tasks.py", "exec"), package)
        package["sleep"] = asyncio.sleep
        made: list[asyncio.Task[None]] = []
        asyncio.get_running_loop().call_soon(package["start"], made)
        await asyncio.sleep(0)
        birth = birth_of(made[0])
        assert birth is not None
        assert birth.place == Frame("/lib/site-packages/nursery/tasks.py", 1, "start")

    async def test_grows_older(self) -> None:
        async with suspended(asyncio.sleep(60)) as (task,):
            birth = birth_of(task)
            assert birth is not None
            age = info_of(task).age_seconds
            assert age is not None
            assert 0 < age < birth.age

    async def test_knows_its_creator_while_that_lives(self) -> None:
        async def create() -> asyncio.Task[Any]:
            return asyncio.create_task(asyncio.sleep(60))

        creator = asyncio.create_task(create())
        task = await creator
        assert info_of(task).created_by == number_of(creator)
        del creator
        await collected()
        assert info_of(task).created_by is None
        task.cancel()

    async def test_shows_in_a_snapshot(self) -> None:
        async with suspended(asyncio.sleep(60)) as (task,):
            frame = info_of(task).created_at_frame
        assert frame is not None
        assert frame.function in ("suspended", "<listcomp>")


class TestRequest:
    @pytest.mark.usefixtures("tracked")
    async def test_is_inherited_by_the_tasks_it_creates(self) -> None:
        exchange = an_exchange()

        async def handle() -> asyncio.Task[None]:
            CURRENT.set(exchange)
            return asyncio.create_task(asyncio.sleep(60))

        task = await asyncio.create_task(handle())
        info = info_of(task)
        assert exchange_of(task) is exchange
        assert info.request is not None
        assert (info.request.id, info.request.method, info.request.route) == ("r1", "GET", "/orders/{id}")
        task.cancel()

    async def test_is_adopted_by_its_own_task(self) -> None:
        async with suspended(asyncio.sleep(60)) as (task,):
            exchange = an_exchange()
            mark_request_task(task, exchange)
            assert exchange_of(task) is exchange
            assert info_of(task).age_seconds is not None

    @pytest.mark.usefixtures("tracked")
    async def test_leaves_orphans_when_it_finishes(self) -> None:
        exchange = an_exchange()

        async def handle() -> asyncio.Task[None]:
            CURRENT.set(exchange)
            return asyncio.create_task(asyncio.sleep(60))

        task = await asyncio.create_task(handle())
        assert not info_of(task).orphan
        exchange.duration = 0.001
        info = info_of(task)
        assert info.orphan
        assert "its request r1 finished" in info.warnings[0]
        exchange.scope.background.add(task)  # spawned, and so supervised
        assert not info_of(task).orphan
        task.cancel()

    async def test_is_not_made_an_orphan_itself_by_its_last_steps(self) -> None:
        async with suspended(asyncio.sleep(60)) as (task,):
            exchange = an_exchange()
            mark_request_task(task, exchange)
            exchange.duration = 0.001
            assert not info_of(task).orphan


async def test_operations_are_shown_and_nest() -> None:
    async with suspended(asyncio.sleep(60)) as (task,):
        assert name_operation(task, "outer") is None
        assert name_operation(task, "inner") == "outer"
        assert info_of(task).operation == "inner"
        name_operation(task, None)
        assert info_of(task).operation is None


async def test_an_untracked_task_has_no_birth() -> None:
    async with suspended(asyncio.sleep(60)) as (task,):
        info = info_of(task)
        assert birth_of(task) is None
        assert exchange_of(task) is None
        assert (info.age_seconds, info.created_at_frame, info.created_by) == (None, None, None)


class TestFactory:
    """The loop's task factory belongs to whoever set it."""

    async def test_is_chained_and_restored(self) -> None:
        loop = asyncio.get_running_loop()
        made = []

        def previous(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
            made.append(kwargs)
            return asyncio.Task(coro, loop=loop, **kwargs)

        loop.set_task_factory(previous)
        tracker = Tasks().install(loop)
        task = loop.create_task(asyncio.sleep(0))
        await task
        tracker.uninstall()
        assert loop.get_task_factory() is previous
        assert len(made) == 1
        assert birth_of(task) is not None
        loop.set_task_factory(None)

    async def test_takes_whatever_arguments_a_loop_passes(self, tracked: TaskTracker) -> None:
        loop = asyncio.get_running_loop()
        factory: Any = loop.get_task_factory()
        task = factory(loop, asyncio.sleep(0), name="nightly")
        await task
        assert task.get_name() == "nightly"

    async def test_leaves_the_names_of_tasks_alone(self, tracked: TaskTracker) -> None:
        unnamed = asyncio.create_task(asyncio.sleep(0))
        named = asyncio.create_task(asyncio.sleep(0), name="nightly")
        await asyncio.gather(unnamed, named)
        assert unnamed.get_name().startswith("Task-")
        assert named.get_name() == "nightly"

    async def test_is_shared_by_two_applications_on_one_loop(self) -> None:
        loop = asyncio.get_running_loop()
        first = Tasks().install(loop)
        factory = loop.get_task_factory()
        second = Tasks().install(loop)
        assert loop.get_task_factory() is factory
        first.uninstall()
        assert loop.get_task_factory() is factory
        second.uninstall()
        assert loop.get_task_factory() is None

    async def test_stays_as_somebody_else_set_it_and_ours_stops(self) -> None:
        loop = asyncio.get_running_loop()
        tracker = Tasks().install(loop)
        ours: Any = loop.get_task_factory()

        def theirs(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
            return ours(loop, coro, **kwargs)

        loop.set_task_factory(theirs)
        tracker.uninstall()
        assert loop.get_task_factory() is theirs
        task = loop.create_task(asyncio.sleep(0))
        await task
        assert birth_of(task) is None
        loop.set_task_factory(None)

    async def test_is_let_go_once_by_each_who_shares_it(self) -> None:
        loop = asyncio.get_running_loop()
        first, second = Tasks().install(loop), Tasks().install(loop)
        factory = loop.get_task_factory()
        first.uninstall()
        first.uninstall()
        assert loop.get_task_factory() is factory
        second.uninstall()
        third = Tasks().install(loop)
        second.uninstall()
        task = asyncio.create_task(asyncio.sleep(0))
        await task
        assert birth_of(task) is not None
        third.uninstall()

    async def test_may_make_tasks_that_take_no_attributes(self) -> None:
        class Slotted:
            """Awaitable, and nothing more."""

            __slots__ = ("coro",)

            def __init__(self, coro: Coroutine[Any, Any, Any]) -> None:
                self.coro = coro

            def __await__(self) -> Iterator[Any]:
                return self.coro.__await__()

            def set_name(self, name: object) -> None:
                """Mandatory from Python 3.13 on."""

        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro, **kwargs: Slotted(coro))  # type: ignore[arg-type]
        tracker = Tasks().install(loop)
        try:
            await loop.create_task(asyncio.sleep(0))
        finally:
            tracker.uninstall()
            loop.set_task_factory(None)


class TestMemory:
    """Nothing outlives its task."""

    @pytest.mark.usefixtures("tracked")
    async def test_a_finished_task_its_frames_and_its_request_are_let_go(self) -> None:
        class Held:
            """A local of the task's."""

        async def handle() -> None:
            held = Held()
            references.append(weakref.ref(held))
            CURRENT.set(exchange)
            await asyncio.wait_for(asyncio.sleep(60), 60)

        references: list[weakref.ref[Any]] = []
        exchange = an_exchange()
        task = asyncio.create_task(handle())
        await asyncio.sleep(0)
        snapshots = [take_snapshot(frames=50)]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        references.append(weakref.ref(task))
        del task
        await collected()
        assert [reference() for reference in references] == [None, None]
        assert len(snapshots[0].tasks) >= 2

    async def test_a_look_at_a_long_lived_task_keeps_nothing_of_what_it_did_before(self) -> None:
        class Held:
            """A local that the task lets go while it goes on."""

        async def works() -> None:
            held = Held()
            references.append(weakref.ref(held))
            await gate
            del held
            await asyncio.sleep(60)

        references: list[weakref.ref[Any]] = []
        gate = asyncio.get_running_loop().create_future()
        async with suspended(works()):
            take_snapshot()
            gate.set_result(None)
            await collected()
            assert references[0]() is None

    async def test_the_frames_of_a_running_task_need_no_collector_to_go(self) -> None:
        class Held:
            """A local of the task's."""

        async def looks() -> None:
            held = Held()
            references.append(weakref.ref(held))
            take_snapshot()

        references: list[weakref.ref[Any]] = []
        gc.disable()
        try:
            await asyncio.create_task(looks())
            await asyncio.sleep(0)
            assert references[0]() is None
        finally:
            gc.enable()

    async def test_a_closed_loop_is_let_go(self) -> None:
        loop = asyncio.new_event_loop()
        Tasks().install(loop)
        loop.close()
        reference = weakref.ref(loop)
        del loop
        gc.collect()
        assert reference() is None
