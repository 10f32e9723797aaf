"""A snapshot is complete, can be narrowed down, and can be taken from anywhere at any time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import uvloop

from aiohttp_observe.tasks import (
    Blocked,
    Frame,
    LoopState,
    Snapshot,
    TaskInfo,
    Tasks,
    count_tasks,
    find_tasks,
    json_pieces,
    mark_request_task,
    number_of,
    snapshot_without_blocking,
    take_snapshot,
    to_dict,
)

from .scenes import info_of, suspended, waits_oddly
from .test_tracker import an_exchange


async def worker() -> None:
    await asyncio.Event().wait()


async def reader() -> None:
    await asyncio.sleep(60)


async def test_tells_of_the_process_and_the_moment() -> None:
    snapshot = take_snapshot()
    taken_at = datetime.fromisoformat(snapshot.taken_at.replace("Z", "+00:00"))
    assert snapshot.taken_at.endswith("Z")
    assert abs(datetime.now(timezone.utc) - taken_at) < timedelta(minutes=1)
    assert snapshot.process.loop == "asyncio"
    assert snapshot.process.uptime_seconds > 0
    assert snapshot.loop == LoopState()


async def test_passes_on_what_the_loop_watch_knows() -> None:
    blocked = Blocked(7.0, 1, "r1", None, (Frame("/srv/report.py", 88, "render"),))
    snapshot = take_snapshot(loop_state=LoopState(0.5, 0.9, blocked))
    assert snapshot.loop.blocked_now is blocked
    assert snapshot.verdict == ("the loop has been blocked for 7 s in report.py:88 by request r1",)


class TestFilters:
    async def chosen(self, **filters: Any) -> list[str]:
        """The coroutines of the tasks that pass."""
        async with suspended(worker(), reader(), reader()) as tasks:
            mark_request_task(tasks[1], an_exchange("r7"))
            return [info.coro for info in take_snapshot(**filters).tasks]

    async def test_by_state(self) -> None:
        assert await self.chosen(state="running") == ["TestFilters.test_by_state"]
        assert set(await self.chosen(state="waiting")) == {"worker", "reader"}

    async def test_by_wait_kind(self) -> None:
        assert await self.chosen(wait="event") == ["worker"]

    async def test_by_part_of_the_coroutines_name(self) -> None:
        assert await self.chosen(coro="ead") == ["reader", "reader"]

    async def test_by_a_pattern_for_all_of_it(self) -> None:
        assert await self.chosen(coro="*ea?er") == ["reader", "reader"]
        assert await self.chosen(coro="ea*") == []

    async def test_by_what_a_coroutine_is_not_called(self) -> None:
        assert "reader" in await self.chosen(coro="!worker")
        assert "worker" not in await self.chosen(coro="!worker")
        assert "reader" not in await self.chosen(coro="!*ea?er")

    @pytest.mark.parametrize("words", ["READER", "reader test_snapshot.py:", "reader sleep"])
    async def test_by_words_that_are_shown_of_it(self, words: str) -> None:
        assert await self.chosen(search=words) == ["reader", "reader"]
        assert await self.chosen(search=f"{words} nowhere") == []

    async def test_by_request(self) -> None:
        assert await self.chosen(request_id="r7") == ["reader"]

    async def test_by_age_where_it_is_known(self) -> None:
        assert await self.chosen(min_age=0) == ["reader"]
        assert await self.chosen(min_age=60) == []

    async def test_by_id(self) -> None:
        async with suspended(worker(), reader()) as tasks:
            (info,) = take_snapshot(id=number_of(tasks[1])).tasks
        assert info.coro == "reader"

    @pytest.mark.parametrize(
        ("filters", "error"),
        [
            ({"state": "asleep"}, "'asleep'"),
            ({"sort": "size"}, "'size'"),
            ({"limit": 0}, "limit"),
            ({"frames": -1}, "frames"),
        ],
    )
    async def test_that_cannot_be_are_refused(self, filters: dict[str, Any], error: str) -> None:
        with pytest.raises(ValueError, match=error):
            take_snapshot(**filters)

    @pytest.mark.parametrize("filters", [{"coro": 1}, {"id": "1"}])
    async def test_of_another_type_are_refused(self, filters: dict[str, Any]) -> None:
        with pytest.raises(TypeError, match=next(iter(filters))):
            take_snapshot(**filters)


class TestOrder:
    @pytest.mark.parametrize("sort", ["coro", "wait"])
    async def test_is_by_name(self, sort: str) -> None:
        async with suspended(reader(), worker(), reader()):
            infos = take_snapshot(sort=sort, state="waiting").tasks
        values = [info.coro if sort == "coro" else (info.wait.kind if info.wait else "") for info in infos]
        assert values == sorted(values)
        assert len(set(values)) == 2

    async def test_is_by_state_the_running_task_first(self) -> None:
        async with suspended(reader(), worker()):
            states = [info.state for info in take_snapshot(sort="state").tasks]
        assert states == ["running", "waiting", "waiting"]

    async def test_has_the_oldest_first(self) -> None:
        tracker = Tasks().install(asyncio.get_running_loop())
        async with suspended(*(reader() for _ in range(5))) as tasks:
            infos = take_snapshot().tasks
        tracker.uninstall()
        assert [info.id for info in infos[:5]] == [number_of(task) for task in tasks]
        assert infos[5].age_seconds is None


class TestLimit:
    async def test_says_what_it_left_out_and_counts_it(self) -> None:
        async with suspended(*(reader() for _ in range(7)), worker()):
            snapshot = take_snapshot(limit=3)
        assert len(snapshot.tasks) == 3
        assert snapshot.truncated == 6
        assert snapshot.summary.total == 9
        assert snapshot.summary.by_state == {"running": 1, "waiting": 8}
        assert snapshot.summary.waiting == {"sleep": 7, "event": 1}
        most = snapshot.summary.by_coro[0]
        assert (most.coro, most.count) == ("reader", 7)

    async def test_keeps_the_oldest_of_very_many(self) -> None:
        tracker = Tasks().install(asyncio.get_running_loop())
        async with suspended(*(reader() for _ in range(500))) as tasks:
            snapshot = take_snapshot(limit=2)
        tracker.uninstall()
        assert [info.id for info in snapshot.tasks] == [number_of(task) for task in tasks[:2]]
        assert snapshot.truncated == 499


async def test_ids_stay_the_same() -> None:
    async with suspended(reader(), reader()) as tasks:
        first, second = take_snapshot(), take_snapshot()
        assert {info.id for info in first.tasks} == {info.id for info in second.tasks}
        loop = asyncio.get_running_loop()
        assert find_tasks([number_of(tasks[1]), 0], loop) == [tasks[1]]


async def test_tasks_that_wait_alike_share_what_is_said_of_it() -> None:
    """Each object more is one for the garbage collector to walk, which holds the loop meanwhile."""
    door, other = asyncio.Event(), asyncio.Event()
    async with suspended(door.wait(), door.wait(), other.wait(), reader(), reader()) as tasks:
        snapshot = take_snapshot()
        first, second, elsewhere, *readers = (info_of(task, snapshot).wait for task in tasks)
    assert first is second
    assert first != elsewhere
    assert readers[0] is readers[1]


async def test_tasks_are_counted_for_metrics() -> None:
    async with suspended(reader(), reader(), worker()):
        counts = set(count_tasks(asyncio.get_running_loop()))
    assert counts == {("running", "", 1), ("waiting", "sleep", 2), ("waiting", "event", 1)}


class TestJson:
    """What `/_tasks` answers is the dataclasses, field for field."""

    async def snapshot(self) -> Snapshot:
        tracker = Tasks().install(asyncio.get_running_loop())
        lock = asyncio.Lock()

        async def hold() -> None:
            async with lock:
                await asyncio.gather(worker(), reader())

        async def want() -> None:
            async with lock:
                pass

        async with suspended(hold(), want()) as tasks:
            exchange = an_exchange('r"1\u2028é')
            exchange.duration = 1.0
            mark_request_task(tasks[0], exchange)
            tasks[1].set_name('"quoted" \ud800 \u2028')
            snapshot = take_snapshot()
        tracker.uninstall()
        return snapshot

    async def test_text_and_dictionaries_say_the_same(self) -> None:
        snapshot = await self.snapshot()
        plain = json.loads("".join(json_pieces(snapshot)))
        assert json.loads(json.dumps(to_dict(snapshot))) == plain
        assert plain["tasks"] == json.loads(json.dumps([asdict(task) for task in snapshot.tasks]))
        assert any(task["wait"] and task["wait"]["on"] for task in plain["tasks"])
        assert any(task["request"] for task in plain["tasks"])

    async def test_has_the_keys_that_are_promised_and_no_others(self) -> None:
        document = json.loads("".join(json_pieces(await self.snapshot())))
        promised = "taken_at process loop summary tasks resources deadlocks verdict truncated"
        assert list(document) == promised.split()
        assert list(document["resources"][0]) == ["id", "type", "detail", "holders", "waiters"]
        assert list(document["loop"]) == ["lag_seconds", "utilization", "blocked_now"]

    async def test_every_field_of_a_task_is_there(self) -> None:
        document = json.loads("".join(json_pieces(await self.snapshot())))
        assert list(document["tasks"][0]) == [field.name for field in fields(TaskInfo)]

    async def test_has_what_is_added_whatever_that_says(self) -> None:
        snapshot = await self.snapshot()
        added = {"process": {"tasks": []}, "point": '"tasks":[]'}
        document = json.loads("".join(json_pieces(snapshot, added)))
        assert document["process"] == {"tasks": []}
        assert document["point"] == '"tasks":[]'
        assert [task["id"] for task in document["tasks"]] == [task.id for task in snapshot.tasks]

    async def test_comes_in_pieces_of_bounded_size(self) -> None:
        async with suspended(*(asyncio.Event().wait() for _ in range(250))):
            pieces = list(json_pieces(take_snapshot()))
        document = json.loads("".join(pieces))
        assert len(document["tasks"]) == 251
        assert len(document["resources"]) == 250
        assert max(piece.count('"age_seconds"') for piece in pieces) == 100
        assert max(piece.count('"waiters"') for piece in pieces) == 100


async def test_locals_never_appear() -> None:
    async def login(password: str) -> None:
        greeting = f"hello {password}"
        await asyncio.sleep(60)
        del greeting

    async with suspended(login("hunter2")):
        assert "hunter2" not in "".join(json_pieces(take_snapshot(frames=50)))


class TestWithoutBlocking:
    async def test_says_the_same(self) -> None:
        async with suspended(*(reader() for _ in range(250)), worker()):
            sliced = await snapshot_without_blocking(limit=10)
            at_once = take_snapshot(limit=10)
        assert sliced.summary.waiting == at_once.summary.waiting
        assert sliced.truncated == at_once.truncated == 242
        assert {info.id for info in sliced.tasks} == {info.id for info in at_once.tasks}

    async def test_gives_the_loop_its_turns(self) -> None:
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with suspended(*(reader() for _ in range(1000)), count_turns()):
            turns = 0
            await snapshot_without_blocking()
        assert turns >= 10  # 1000 tasks looked at and 1000 worded, 200 at a time

    async def test_leaves_out_what_ends_meanwhile(self) -> None:
        async with suspended(*(reader() for _ in range(300))) as tasks:
            taking = asyncio.ensure_future(snapshot_without_blocking())
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            snapshot = await taking
        assert len(snapshot.tasks) < 200


class TestFromAnotherThread:
    """The loop may run, be blocked, or be about to stop."""

    def in_a_loop(self, make: Callable[[], asyncio.AbstractEventLoop], look: Callable[[Any], None]) -> None:
        """Run a loop that makes and ends tasks all the time, and ``look`` at it from here."""
        loop = make()
        started, stop = threading.Event(), threading.Event()

        async def short() -> None:
            await asyncio.wait_for(asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.0001)), 10)

        async def churn() -> None:
            lock = asyncio.Lock()

            async def locked() -> None:
                async with lock:
                    await asyncio.sleep(0)

            while not stop.is_set():
                started.set()
                await asyncio.gather(*(short() for _ in range(20)), *(locked() for _ in range(20)))

        thread = threading.Thread(target=lambda: loop.run_until_complete(churn()))
        thread.start()
        assert started.wait(10)
        try:
            look(loop)
        finally:
            stop.set()
            thread.join()
            loop.close()

    @pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop])
    def test_works_while_tasks_come_and_go(self, make: Callable[[], asyncio.AbstractEventLoop]) -> None:
        def look(loop: asyncio.AbstractEventLoop) -> None:
            seen = 0
            warnings = set()
            for _ in range(200):
                snapshot = take_snapshot(loop)
                seen += len(snapshot.tasks)
                warnings |= {warning for info in snapshot.tasks for warning in info.warnings}
                count_tasks(loop)
                json.loads("".join(json_pieces(snapshot)))
            assert seen > 200
            assert not {warning for warning in warnings if "not fully examined" in warning}

        self.in_a_loop(make, look)

    def test_uvloop_is_named(self) -> None:
        self.in_a_loop(uvloop.new_event_loop, lambda loop: self.assert_loop(loop, "uvloop"))

    def assert_loop(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        assert take_snapshot(loop).process.loop == name


async def test_an_odd_task_does_not_spoil_the_picture() -> None:
    async with suspended(waits_oddly(), reader()) as (odd, other):
        snapshot = take_snapshot()
        assert info_of(odd, snapshot).warnings == ("not fully examined: ZeroDivisionError",)
        assert info_of(other, snapshot).wait is not None
