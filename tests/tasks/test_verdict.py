"""What stands out, in sentences: worst first, each with its evidence."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import pytest

from aiohttp_observe.exchange import Exchange, Scope
from aiohttp_observe.tasks import (
    Blocked,
    Finding,
    Frame,
    LoopState,
    Tasks,
    exchange_of,
    findings_to_dict,
    mark_request_task,
    number_of,
    register_wait_kind,
    resource_pieces,
    take_snapshot,
)
from aiohttp_observe.tasks.verdict import was_blocked

from .scenes import suspended


async def inside(lock: Any) -> None:
    async with lock:
        await asyncio.get_running_loop().create_future()


async def wait_for_event(event: asyncio.Event) -> None:
    await event.wait()


async def wait_elsewhere(event: asyncio.Event) -> None:
    await event.wait()


async def acquire(semaphore: asyncio.Semaphore) -> None:
    await semaphore.acquire()


def serve(tasks: list[asyncio.Task[Any]], age: float = 0.6) -> None:
    """Make each a request's own task."""
    for number, task in enumerate(tasks):
        began = perf_counter() - age
        mark_request_task(
            task, Exchange(Scope(), f"r{number}", "GET", "/orders", "/orders", None, None, began)
        )


def exchange_of_request(task: asyncio.Task[Any]) -> Exchange:
    exchange = exchange_of(task)
    assert exchange is not None
    return exchange


def findings(**more: Any) -> tuple[Finding, ...]:
    return take_snapshot(**more).findings


@asynccontextmanager
async def requests_at_a_lock(waiting: int, lock: Any) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """The first holds it."""
    async with suspended(*(inside(lock) for _ in range(waiting + 1))) as tasks:
        serve(tasks)
        yield tasks


async def test_where_all_is_well_there_is_nothing_to_say() -> None:
    async with suspended(asyncio.sleep(60), inside(asyncio.Lock()), inside(asyncio.Lock())):
        snapshot = take_snapshot()
    assert snapshot.findings == ()
    assert snapshot.verdict == ()


class TestHeld:
    async def test_ten_waiters_are_worth_a_sentence(self) -> None:
        lock = asyncio.Lock()
        async with requests_at_a_lock(10, lock) as (holder, *_):
            (finding,) = findings()
            (resource,) = take_snapshot().resources
        assert finding.kind == "held"
        assert re.fullmatch(
            r"10 of 11 requests wait for Lock at test_verdict\.py:\d+, "
            rf"held by task {holder.get_name()} \(request r0\), which started \d+(\.\d)? s ago, "
            r"which waits for future",
            finding.sentence,
        )
        assert finding.tasks == (number_of(holder),)
        assert finding.resource == resource.id
        assert finding.frame == resource.frame

    async def test_nine_are_not(self) -> None:
        async with requests_at_a_lock(9, asyncio.Lock()):
            assert findings() == ()

    async def test_tasks_that_are_no_requests_are_counted_by_themselves(self) -> None:
        lock = asyncio.Lock()
        async with suspended(*(inside(lock) for _ in range(11))):
            (finding,) = findings()
        assert finding.sentence.startswith("10 tasks wait for Lock at test_verdict.py:")

    async def test_one_that_waits_for_long_is_enough(self) -> None:
        lock = asyncio.Lock()
        async with suspended(inside(lock), inside(lock)) as tasks:
            serve(tasks)
            assert findings() == ()
            holder = tasks[0]._observe_exchange  # type: ignore[attr-defined]
            holder.suspended_at = perf_counter() - 93
            (finding,) = findings()
        assert re.match(r"1 of 2 requests waits for Lock at \S+, held for 93 s by task ", finding.sentence)
        assert "which started" not in finding.sentence  # it says less

    async def test_of_several_holders_one_is_named(self) -> None:
        async with requests_at_a_lock(12, asyncio.Semaphore(3)) as tasks:
            (finding,) = findings()
        assert finding.sentence.startswith("10 of 13 requests wait for Semaphore at ")
        assert ", held by 3 tasks, among them task " in finding.sentence
        assert set(finding.tasks) == set(map(number_of, tasks[:3]))

    async def test_what_nobody_is_seen_to_hold_is_no_such_finding(self) -> None:
        lock = asyncio.Lock()
        await lock.acquire()
        async with suspended(*(inside(lock) for _ in range(12))):
            assert not [finding for finding in findings() if finding.kind == "held"]

    async def test_a_deadlock_is_not_told_again(self) -> None:
        lock = asyncio.Lock()

        async def twice() -> None:
            async with lock, lock:
                pass

        async with suspended(twice()):
            assert [finding.kind for finding in findings()] == ["deadlock"]

    async def test_but_who_waits_behind_it_is(self) -> None:
        lock = asyncio.Lock()

        async def twice() -> None:
            async with lock, lock:
                pass

        async with suspended(twice(), *(inside(lock) for _ in range(10))):
            assert [finding.kind for finding in findings()] == ["deadlock", "held"]


class TestCrowd:
    async def test_of_requests_at_one_line(self) -> None:
        event = asyncio.Event()
        async with suspended(*(wait_for_event(event) for _ in range(12))) as tasks:
            serve(tasks)
            (finding,) = findings()
        assert finding.kind == "crowd"
        assert re.fullmatch(
            r"12 of 12 requests wait for Event\.wait at test_verdict\.py:\d+, the oldest for 0(\.\d)? s",
            finding.sentence,
        )
        assert finding.frame is not None
        assert finding.frame.function == "wait_for_event"
        assert finding.tasks == (number_of(tasks[0]),)

    async def test_is_none_of_other_tasks(self) -> None:
        event = asyncio.Event()
        async with suspended(*(wait_for_event(event) for _ in range(20))):
            assert findings() == ()

    async def test_is_none_of_less_than_half_the_requests(self) -> None:
        event, another = asyncio.Event(), asyncio.Event()
        elsewhere = [coro for _ in range(9) for coro in (wait_elsewhere(another), asyncio.Event().wait())]
        async with suspended(*(wait_for_event(event) for _ in range(12)), *elsewhere) as tasks:
            serve(tasks)
            assert findings() == ()

    async def test_is_told_however_many_others_are_idle(self) -> None:
        event = asyncio.Event()
        idle = [asyncio.sleep(60) for _ in range(40)]
        async with suspended(*(wait_for_event(event) for _ in range(12)), *idle) as tasks:
            serve(tasks)
            (finding,) = findings()
        assert finding.sentence.startswith("12 of 52 requests wait for Event.wait at ")

    @pytest.mark.parametrize(("age", "kinds"), [(1.0, []), (12.0, ["crowd"])])
    async def test_of_few_is_told_once_it_is_old(self, age: float, kinds: list[str]) -> None:
        """For what nobody waits for long while all is well."""
        semaphore = asyncio.Semaphore(0)
        others = [wait(asyncio.Event()) for wait in (wait_for_event, wait_elsewhere) for _ in range(9)]
        async with suspended(*(acquire(semaphore) for _ in range(10)), *others) as tasks:
            serve(tasks, age)
            assert [finding.kind for finding in findings()] == kinds

    async def test_is_none_of_those_that_may_well_be_idle(self) -> None:
        queues = [asyncio.Queue[int]() for _ in range(12)]
        idle = [wait for queue in queues for wait in (queue.get(), asyncio.sleep(60))]
        async with suspended(*idle) as tasks:
            serve(tasks)
            assert findings() == ()

    async def test_is_of_who_waits_for_what_is_kept_in_one_queue(self) -> None:
        """As a pool of connections is, that were never given back."""
        pool = asyncio.Queue[int]()
        async with suspended(*(pool.get() for _ in range(12)), asyncio.sleep(60)) as tasks:
            serve(tasks)
            (finding,) = findings()
        assert finding.sentence.startswith("12 of 13 requests wait for Queue.get (Queue, 0 of unlimited) at ")

    async def test_is_none_of_the_young(self) -> None:
        """A busy service has one such line."""
        event = asyncio.Event()
        async with suspended(*(wait_for_event(event) for _ in range(12))) as tasks:
            serve(tasks, age=0.2)
            assert findings() == ()

    async def test_is_none_where_the_holder_has_been_named(self) -> None:
        async with requests_at_a_lock(12, asyncio.Lock()):
            assert [finding.kind for finding in findings()] == ["held"]

    async def test_says_whose_clients_have_left(self) -> None:
        event = asyncio.Event()
        async with suspended(*(wait_for_event(event) for _ in range(12))) as tasks:
            serve(tasks)
            for task in tasks[:11]:
                exchange_of_request(task).client_left_at = perf_counter()
            (finding,) = findings()
            exchange_of_request(tasks[0]).duration = 1.0
            (later,) = findings()
        assert finding.sentence.endswith(" s; 11 of their clients have left")
        assert later.sentence.endswith(" s; 10 of their clients have left")

    async def test_of_one_line_is_one_whatever_led_there(self) -> None:
        async def one_route() -> None:
            await wait_for_event(asyncio.Event())

        async def another_route() -> None:
            await wait_for_event(asyncio.Event())

        handlers = [handler for _ in range(6) for handler in (one_route, another_route)]

        async def handle(handler: Callable[[], Awaitable[None]]) -> None:
            await handler()

        async with suspended(*map(handle, handlers)) as tasks:
            serve(tasks)
            (finding,) = findings()
        assert finding.sentence.startswith("12 of 12 requests wait for Event.wait at test_verdict.py:")


class Pool:
    """Gives out connections, as a library's would: who wants one waits in its queue."""

    def __init__(self) -> None:
        self.free = asyncio.Queue[int]()

    async def acquire(self) -> int:
        return await self.free.get()


register_wait_kind("test_pool", Pool.acquire, state=lambda pool: f"{pool.free.qsize()} of 2 free")


async def one_place(pool: Pool) -> None:
    await pool.acquire()


async def another_place(pool: Pool) -> None:
    await asyncio.wait_for(pool.acquire(), 60)


class TestCrowdAtAResource:
    @pytest.mark.parametrize("places", [(one_place,), (one_place, another_place), (another_place,)])
    async def test_is_counted_wherever_its_requests_stand(self, places: Any) -> None:
        pool = Pool()
        waiting = [place(pool) for _ in range(18 // len(places)) for place in places]
        async with suspended(*waiting, wait_for_event(asyncio.Event())) as tasks:
            serve(tasks, age=14)
            snapshot = take_snapshot()
        (finding,) = snapshot.findings
        assert finding.kind == "crowd"
        assert re.fullmatch(
            r"18 of 19 requests wait for Pool\.acquire \(Pool, 0 of 2 free\) at test_verdict\.py:\d+"
            r"(?: and test_verdict\.py:\d+)?, the oldest for 14 s",
            finding.sentence,
        )
        assert finding.resource == snapshot.resources[0].id
        assert finding.tasks == (number_of(tasks[0]),)

    async def test_is_told_once_it_is_old_however_many_others_there_are(self) -> None:
        pool = Pool()
        many = [wait_for_event(asyncio.Event()) for _ in range(9)]
        more = [wait_elsewhere(asyncio.Event()) for _ in range(9)]
        waiting = [place(pool) for _ in range(5) for place in (one_place, another_place)]
        async with suspended(*waiting, *many, *more) as tasks:
            serve(tasks, age=1)
            assert findings() == ()
            serve(tasks, age=12)
            (finding,) = findings()
        assert finding.sentence.startswith("10 of 28 requests wait for Pool.acquire (Pool, 0 of 2 free)")

    async def test_is_told_of_a_lock_that_nobody_is_seen_to_hold_with_a_timeout_too(self) -> None:
        lock = asyncio.Lock()
        await lock.acquire()

        async def want() -> None:
            await asyncio.wait_for(lock.acquire(), 60)

        async with suspended(*(want() for _ in range(10)), *(asyncio.sleep(60) for _ in range(30))) as tasks:
            serve(tasks)
            (finding,) = findings()
        assert finding.sentence.startswith("10 of 40 requests wait for Lock.acquire at ")

    async def test_leaves_out_no_others_of_the_line(self) -> None:
        async with suspended(
            *(wait_for_event(event) for event in [asyncio.Event()] * 20),
            *(wait_for_event(asyncio.Event()) for _ in range(20)),
        ) as tasks:
            serve(tasks)
            told = [finding.sentence.partition(" at ")[0] for finding in findings()]
        assert told == ["20 of 40 requests wait for Event.wait", "20 of 40 requests wait for Event.wait"]


class Channel:
    """Where a service's own code waits for news."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.condition = asyncio.Condition()
        self.queue = asyncio.Queue[int]()

    async def by_event(self) -> None:
        await self.event.wait()

    async def by_condition(self) -> None:
        async with self.condition:
            await self.condition.wait()

    async def by_queue(self) -> None:
        await self.queue.get()

    async def by_generator(self) -> None:
        async def news() -> AsyncIterator[None]:
            while True:
                await self.event.wait()
                yield

        async for _ in news():
            pass


async def for_a_while(wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await asyncio.wait_for(wait(), 60)


class TestIdle:
    @pytest.mark.parametrize("name", ["by_event", "by_condition", "by_queue", "by_generator"])
    async def test_is_who_polls_for_a_while(self, name: str) -> None:
        channel, event = Channel(), asyncio.Event()
        polls = [for_a_while(getattr(channel, name)) for _ in range(40)]
        async with suspended(*polls) as tasks:
            serve(tasks, age=25)
            assert findings() == ()
        polls = [for_a_while(getattr(channel, name)) for _ in range(40)]
        async with suspended(*polls, *(wait_for_event(event) for _ in range(10))) as tasks:
            serve(tasks)
            (finding,) = findings()
        assert finding.sentence.startswith("10 of 50 requests wait for Event.wait at ")

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout() is from Python 3.11 on")
    async def test_is_who_polls_within_a_timeout(self) -> None:
        timeout: Any = asyncio.timeout  # type: ignore[attr-defined, unused-ignore]

        async def poll(event: asyncio.Event) -> None:
            async with timeout(60):
                await event.wait()

        event = asyncio.Event()
        async with suspended(*(poll(event) for _ in range(40))) as tasks:
            serve(tasks)
            assert findings() == ()

    async def test_is_not_who_waits_as_long_as_it_takes(self) -> None:
        async def forever(event: asyncio.Event) -> None:
            await asyncio.wait_for(event.wait(), None)

        event = asyncio.Event()
        async with suspended(*(forever(event) for _ in range(40))) as tasks:
            serve(tasks)
            assert [finding.kind for finding in findings()] == ["crowd"]

    @pytest.mark.parametrize("name", ["by_event", "by_condition", "by_queue", "by_generator"])
    async def test_is_a_stream_that_has_begun(self, name: str) -> None:
        channel = Channel()
        async with suspended(*(getattr(channel, name)() for _ in range(40))) as tasks:
            serve(tasks)
            told = findings()
            for task in tasks:
                exchange_of_request(task).status = 200
            assert findings() == ()
        assert told

    async def test_is_no_stream_that_waits_for_somebodys_work(self) -> None:
        semaphore = asyncio.Semaphore(0)
        async with suspended(*(acquire(semaphore) for _ in range(12))) as tasks:
            serve(tasks)
            for task in tasks:
                exchange_of_request(task).status = 200
            (finding,) = findings()
        assert finding.sentence.startswith("12 of 12 requests wait for Semaphore.acquire (Semaphore, 0 free)")

    async def test_is_nobody_in_the_queue_of_a_librarys_pool(self) -> None:
        """It has a timeout, and nobody has registered what it is."""
        scope: dict[str, Any] = {}
        source = "import asyncio\nasync def connect(queue): await asyncio.wait_for(queue.get(), 30)\n"
        exec(compile(source, "/venv/lib/python3/site-packages/db/pool.py", "exec"), scope)
        queue = asyncio.Queue[int]()
        async with suspended(*(scope["connect"](queue) for _ in range(12))) as tasks:
            serve(tasks)
            (finding,) = findings()
        assert "12 of 12 requests wait for Queue.get (Queue, 0 of unlimited) at " in finding.sentence


@pytest.fixture
async def executor() -> AsyncIterator[Callable[[int], None]]:
    """The loop's default executor, of three threads: takes a number of calls that last."""
    loop, release = asyncio.get_running_loop(), threading.Event()
    pool = ThreadPoolExecutor(max_workers=3)
    loop.set_default_executor(pool)
    calls: list[asyncio.Future[bool]] = []
    yield lambda number: calls.extend(loop.run_in_executor(None, release.wait, 60) for _ in range(number))
    release.set()
    await asyncio.gather(*calls)


def legacy_export(over: threading.Event) -> None:
    over.wait(10)


class TestFullExecutor:
    async def test_is_told_before_who_waits_for_it(self, executor: Callable[[int], None]) -> None:
        async def call() -> None:
            await asyncio.get_running_loop().run_in_executor(None, int)

        executor(3)
        async with suspended(*(call() for _ in range(12))) as tasks:
            serve(tasks)
            full, crowd = findings()
        assert (
            full.sentence == "the loop's default executor is full: 3 of 3 threads are at work, 12 calls wait"
        )
        assert (full.kind, full.tasks) == ("executor", (number_of(tasks[0]),))
        assert crowd.kind == "crowd"

    @pytest.mark.parametrize("calls", [0, 2, 3])
    async def test_is_none_where_no_call_waits(self, calls: int, executor: Callable[[int], None]) -> None:
        executor(calls)
        assert findings() == ()

    async def test_is_none_where_few_wait_for_a_moment(self, executor: Callable[[int], None]) -> None:
        executor(4)
        assert findings() == ()

    async def test_is_one_where_few_wait_for_long(self, executor: Callable[[int], None]) -> None:
        async def call() -> None:
            await asyncio.get_running_loop().run_in_executor(None, int)

        executor(3)
        async with suspended(call()) as tasks:
            serve(tasks)
            assert findings() == ()
            exchange_of_request(tasks[0]).suspended_at = perf_counter() - 2
            (finding,) = findings()
        assert finding.sentence.endswith(": 3 of 3 threads are at work, 1 call waits")

    async def test_says_what_most_of_its_threads_do(self) -> None:
        over = threading.Event()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        async with suspended(*(asyncio.to_thread(legacy_export, over) for _ in range(5))):
            (finding,) = findings()
            over.set()
        assert re.search(
            r"2 of 2 threads are at work, 3 calls wait; "
            r"2 of the threads in legacy_export \(test_verdict\.py:\d+\)$",
            finding.sentence,
        )

    async def test_of_a_class_like_no_other_is_not_told(self) -> None:
        class Inline(ThreadPoolExecutor):
            def __init__(self) -> None:
                super().__init__(1)
                del self._work_queue, self._threads

            def shutdown(self, *args: Any, **kwargs: Any) -> None:
                pass

        asyncio.get_running_loop().set_default_executor(Inline())
        assert findings() == ()


class TestBlocked:
    def state(self, **more: Any) -> LoopState:
        stack = (Frame("/srv/report.py", 88, "render"),)
        return LoopState(blocked_now=Blocked(7.04, stack=stack, **more))

    async def test_names_place_and_duration(self) -> None:
        (finding,) = findings(loop_state=self.state(task=None, request_id=None, trace_id=None))
        assert finding.sentence == "the loop has been blocked for 7 s in report.py:88"
        assert (finding.kind, finding.tasks) == ("blocked", ())
        assert finding.frame == Frame("/srv/report.py", 88, "render")

    async def test_names_the_task(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        state = self.state(task=number_of(task), request_id=None, trace_id=None)
        (finding,) = findings(loop_state=state)
        assert finding.sentence.endswith(f" by task {task.get_name()}")
        assert finding.tasks == (number_of(task),)

    async def test_names_the_request_that_it_knows_no_more_of(self) -> None:
        state = self.state(task=3, request_id="r9", trace_id=None)
        (finding,) = findings(loop_state=state)
        assert finding.sentence.endswith(" in report.py:88 by request r9")

    async def test_names_the_route(self) -> None:
        async def look() -> tuple[Finding, ...]:
            task = asyncio.current_task()
            assert task is not None
            serve([task])
            return findings(loop_state=self.state(task=number_of(task), request_id="r0", trace_id=None))

        (finding,) = await asyncio.create_task(look())
        assert finding.sentence.endswith(" by GET /orders")

    async def test_comes_first_and_is_told_with_the_rest(self) -> None:
        lock, event = asyncio.Lock(), asyncio.Event()

        async def twice() -> None:
            async with lock, lock:
                pass

        state = self.state(task=None, request_id=None, trace_id=None)
        async with suspended(twice(), *(wait_for_event(event) for _ in range(20))) as (_, *tasks):
            serve(tasks)
            async with requests_at_a_lock(10, asyncio.Lock()):
                snapshot = take_snapshot(loop_state=state)
        assert [finding.kind for finding in snapshot.findings] == ["blocked", "deadlock", "held", "crowd"]
        assert snapshot.verdict == tuple(finding.sentence for finding in snapshot.findings)


@pytest.mark.parametrize(
    ("frame", "by", "told"),
    [
        (Frame("/srv/api.py", 141, "report"), "GET /report", ", in report (api.py:141) by GET /report"),
        (Frame("/srv/api.py", 141, "report"), None, ", in report (api.py:141)"),
        (None, "task refresh", " by task refresh"),
        (None, None, ", nobody saw by what"),
    ],
)
def test_a_block_that_is_over_says_how_long_and_when(frame: Frame | None, by: str | None, told: str) -> None:
    finding = was_blocked(25.2, 40.4, frame, by)
    assert finding == Finding(f"the loop was blocked for 25 s, 40 s ago{told}", "blocked", frame=frame)


async def test_twenty_are_enough() -> None:
    async def twice() -> None:
        lock = asyncio.Lock()
        async with lock, lock:
            pass

    async with suspended(*(twice() for _ in range(25))):
        snapshot = take_snapshot()
    assert len(snapshot.deadlocks) == 25
    assert len(snapshot.findings) == 20


async def test_the_filters_choose_tasks_not_findings() -> None:
    async with requests_at_a_lock(10, asyncio.Lock()):
        assert [finding.kind for finding in findings(coro="nothing")] == ["held"]


async def test_however_few_are_shown_it_is_of_all_resources() -> None:
    async with requests_at_a_lock(10, asyncio.Lock()), requests_at_a_lock(11, asyncio.Lock()):
        snapshot = take_snapshot(limit=1)
    assert [finding.kind for finding in snapshot.findings] == ["held", "held"]
    assert len(snapshot.resources) == 1


class TestDocuments:
    async def test_findings_are_plain_and_lead_to_their_evidence(self) -> None:
        async with requests_at_a_lock(10, asyncio.Lock()) as (holder, *_):
            document = json.loads(json.dumps(findings_to_dict(take_snapshot())))
        (finding,) = document["findings"]
        assert set(finding) == {"sentence", "kind", "tasks", "resource", "frame"}
        assert finding["tasks"] == [number_of(holder)]
        assert set(finding["frame"]) == {"file", "line", "function"}

    async def test_resources_name_who_holds_and_who_waits(self) -> None:
        async with requests_at_a_lock(2, asyncio.Lock()) as tasks:
            document = json.loads("".join(resource_pieces(take_snapshot())))
        (resource,) = document["resources"]
        assert resource["type"] == "Lock"
        assert resource["state"] == "locked"
        assert resource["holders"] == [number_of(tasks[0])]
        assert set(document["tasks"]) == {str(number_of(task)) for task in tasks}
        named = document["tasks"][str(number_of(tasks[0]))]
        assert named["name"] == tasks[0].get_name()
        assert named["frame"]["function"] == "inside"
        assert named["request"] == {"id": "r0", "method": "GET", "route": "/orders"}
        assert document["deadlocks"] == []

    async def test_resources_name_fifty_of_those_that_wait(self) -> None:
        async with requests_at_a_lock(70, asyncio.Lock()):
            document = json.loads("".join(resource_pieces(take_snapshot())))
        assert len(document["resources"][0]["waiters"]) == 70
        assert len(document["tasks"]) == 51

    async def test_resources_come_in_pieces_of_bounded_size(self) -> None:
        async with suspended(*(asyncio.Event().wait() for _ in range(250))) as tasks:
            pieces = list(resource_pieces(take_snapshot()))
        document = json.loads("".join(pieces))
        assert list(document) == ["taken_at", "resources", "deadlocks", "tasks"]
        assert len(document["resources"]) == 250
        assert set(document["tasks"]) == {str(number_of(task)) for task in tasks}
        assert max(piece.count('"waiters"') for piece in pieces) == 100
        assert max(piece.count('"name"') for piece in pieces) == 100


@pytest.mark.parametrize("started", [False, True])
async def test_age_is_told_as_far_as_it_is_known(started: bool) -> None:
    tracker = Tasks().install(asyncio.get_running_loop()) if started else None
    lock = asyncio.Lock()
    try:
        async with suspended(*(inside(lock) for _ in range(11))):
            (finding,) = findings()
    finally:
        if tracker is not None:
            tracker.uninstall()
    assert ("which started" in finding.sentence) is started


@pytest.mark.parametrize(
    "filters", [{"wait": "sleep"}, {"state": "running"}, {"search": "nowhere"}, {"id": 1}]
)
async def test_it_is_of_all_tasks_whichever_are_shown(filters: dict[str, Any]) -> None:
    async with requests_at_a_lock(12, asyncio.Lock()), suspended(asyncio.sleep(60)):
        take_snapshot()  # from the second look on it is known since when
        of_all = take_snapshot()
        shown = take_snapshot(**filters)
    assert [re.sub(r"[\d.]+ s", "", sentence) for sentence in shown.verdict] == [
        re.sub(r"[\d.]+ s", "", sentence) for sentence in of_all.verdict
    ]
    assert of_all.verdict[0].startswith("12 of 13 requests wait for Lock")
    assert shown.work.waiting == of_all.work.waiting == {"sleep": 1, "lock": 12, "future": 1}
