"""The verdict's sentences and their evidence; groups; how long a lock has been held."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
import weakref
from time import perf_counter
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import OBSERVABILITY, Metrics, setup_observability
from aiohttp_observe.tasks import Finding, Snapshot, Tasks, adopt, note_contention, number_of, take_snapshot
from aiohttp_observe.tasks import growth as growth_room
from aiohttp_observe.tasks.groups import Groups
from aiohttp_observe.tasks.growth import grown
from aiohttp_observe.tasks.seen import Look
from tests.service import serving

from .scenes import suspended
from .test_tracker import an_exchange


async def hold(lock: asyncio.Lock) -> None:
    async with lock:
        await asyncio.sleep(60)


async def want(lock: asyncio.Lock) -> None:
    async with lock:
        pass


def finding(kind: str) -> Finding:
    (found,) = [each for each in take_snapshot().findings if each.kind == kind]
    return found


async def test_there_is_none_while_all_is_well() -> None:
    lock = asyncio.Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(9)), asyncio.sleep(60)):
        assert take_snapshot().verdict == ()


async def test_a_crowd_at_a_lock_names_its_holder_and_what_that_waits_for() -> None:
    lock = asyncio.Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(12))) as tasks:
        tasks[0].set_name("refresh-cache")
        found = finding("held")
        line = want.__code__.co_firstlineno + 1
        assert found.sentence.startswith(f"12 tasks wait for Lock at test_findings.py:{line}, held")
        assert found.sentence.endswith(" by task refresh-cache, which waits for sleep")
        assert found.tasks == (number_of(tasks[0]),)
        assert found.frame is not None
        assert found.frame.line == line
        assert found.resource in {resource.id for resource in take_snapshot().resources}


async def test_what_was_seen_before_tells_for_how_long_a_lock_is_held() -> None:
    lock = asyncio.Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(12))):
        take_snapshot()
        await asyncio.sleep(0.15)
        found = re.search(r"held for ([\d.]+) s by task", finding("held").sentence)
        assert found is not None
        assert 0.1 <= float(found[1]) < 5


async def test_the_head_of_the_queue_tells_for_how_long_too() -> None:
    lock = asyncio.Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(12))) as tasks:
        note_contention(tasks[1:3])
        await asyncio.sleep(0.15)
        (resource,) = take_snapshot().resources
        assert resource.held_seconds is not None
        assert resource.held_seconds >= 0.14


async def test_a_lock_that_changes_hands_is_not_held_for_long() -> None:
    lock = asyncio.Lock()

    async def brief() -> None:
        async with lock:
            await asyncio.sleep(0.1)

    async with suspended(*(brief() for _ in range(4))) as tasks:
        take_snapshot()
        note_contention(tasks)
        await asyncio.wait(tasks[:2])
        await asyncio.sleep(0)
        (resource,) = take_snapshot().resources
        assert (resource.held_seconds or 0.0) < 0.09


async def test_a_holder_never_seen_before_says_when_it_started() -> None:
    tracker = Tasks().install(asyncio.get_running_loop())
    lock = asyncio.Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(12))):
        assert ", which started 0" in finding("held").sentence
    tracker.uninstall()


async def test_a_requests_own_task_has_held_since_it_was_suspended() -> None:
    lock = asyncio.Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(12))) as tasks:
        exchange = an_exchange("the-holder")
        exchange.suspended_at = perf_counter() - 93
        adopt(tasks[0], exchange)
        assert "held for 93 s by task" in finding("held").sentence
        assert "(request the-holder)" in finding("held").sentence


async def test_requests_are_counted_as_requests() -> None:
    lock = asyncio.Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(12)), asyncio.sleep(60)) as tasks:
        for number, task in enumerate(tasks[1:]):
            adopt(task, an_exchange(f"r{number}"))
        assert finding("held").sentence.startswith("12 of 13 requests wait for Lock at ")


async def test_a_crowd_of_requests_at_one_line_is_told_without_a_holder() -> None:
    async def work() -> None:
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.5)

    async with suspended(*(work() for _ in range(12))) as tasks:
        for number, task in enumerate(tasks):
            adopt(task, an_exchange(f"r{number}"))
        found = finding("crowd")
        assert found.sentence.startswith("12 of 12 requests wait for run_in_executor at test_findings.py:")
        await asyncio.wait(tasks)


async def test_groups_are_tasks_at_the_same_line() -> None:
    async with suspended(*(hold(asyncio.Lock()) for _ in range(5)), asyncio.Event().wait()) as tasks:
        group = take_snapshot().groups[0]
    assert (group.count, group.coro, group.wait) == (5, "hold", "sleep")
    assert group.frame is not None
    assert group.frame.function == "hold"
    assert group.example in set(map(number_of, tasks))


async def test_a_crowd_that_only_grows_is_likely_a_leak() -> None:
    loop = asyncio.get_running_loop()

    def look(now: float) -> list[growth_room.Growing]:
        groups, looking = Groups(), Look(loop, 1)
        for task in asyncio.all_tasks():
            groups.add(looking.at(task))
        return grown(loop, groups, now)

    async with suspended(*(hold(asyncio.Lock()) for _ in range(40))):
        assert look(0.0) == []
        async with suspended(*(hold(asyncio.Lock()) for _ in range(15))):
            assert look(20.0) == []
            async with suspended(*(hold(asyncio.Lock()) for _ in range(15))):
                (growing,) = look(40.0)
                assert (growing.coro, growing.before, growing.count) == ("hold", 40, 70)
        assert look(60.0) == []


async def test_a_block_is_told_by_line_and_route(registry: CollectorRegistry) -> None:
    app = web.Application()
    seen: list[Snapshot] = []

    async def block(request: web.Request) -> web.Response:
        looker = threading.Timer(0.4, lambda: seen.append(app[OBSERVABILITY].snapshot()))
        looker.start()
        looker.join()
        return web.Response()

    app.router.add_get("/report", block)
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(app) as service:
        await service.get("/report")
    line = block.__code__.co_firstlineno + 3
    pattern = rf"the loop has been blocked for 0\.\d s in test_findings.py:{line} by GET /report"
    assert re.fullmatch(pattern, seen[0].verdict[0])


async def test_nothing_seen_is_kept_alive() -> None:
    class Lock(asyncio.Lock):
        pass

    lock = Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(12))) as tasks:
        take_snapshot()
        note_contention(tasks)
        await asyncio.sleep(0)
        take_snapshot()
        gone: list[weakref.ref[Any]] = [weakref.ref(lock), *map(weakref.ref, tasks)]
    del lock, tasks
    await asyncio.sleep(0)
    gc.collect()
    assert [kept() for kept in gone if kept() is not None] == []


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "<script>", "\ud800"])
async def test_odd_names_break_nothing(hostile: str) -> None:
    lock = asyncio.Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(12))) as tasks:
        tasks[0].set_name(hostile)
        assert hostile in finding("held").sentence
