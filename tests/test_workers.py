"""Workers go on: they are started again, slower and slower, and say how they are."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiojobs
import aiojobs.aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    OBSERVABILITY,
    Failures,
    Metrics,
    Worker,
    request_id,
    setup_observability,
    spawn,
    supervised,
    take_snapshot,
)
from aiohttp_observe.exchange import Scope
from aiohttp_observe.flood import Flood
from tests.service import PATIENCE, Service, serving, until

QUICK = (0.001, 0.001)
Work = Callable[[], Coroutine[Any, Any, object]]


class Runs:
    """A worker that fails the first ``failures`` times, and then waits, or returns."""

    def __init__(self, failures: int = 0, *, returns: bool = False) -> None:
        self.count = 0
        self._failures = failures
        self._returns = returns

    async def work(self) -> str:
        self.count += 1
        if self.count <= self._failures:
            raise LookupError("the queue is gone")
        if not self._returns:
            await asyncio.Event().wait()
        return "done"


@asynccontextmanager
async def working(
    registry: CollectorRegistry, work: Any, **options: Any
) -> AsyncIterator[tuple[web.Application, asyncio.Task[Any]]]:
    """A service that has spawned ``work`` at its start-up."""
    tasks = []

    async def start(app: web.Application) -> None:
        tasks.append(spawn(work, **options))

    app = web.Application()
    app.on_startup.append(start)
    failures = Failures(shutdown_timeout=0.05)
    setup_observability(app, metrics=Metrics(registry=registry), logs=None, failures=failures)
    async with serving(app):
        yield app, tasks[0]


def value(registry: CollectorRegistry, metric: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"asyncio_task_{metric}_total", labels)


def records(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "aiohttp_observe.background"]


def the_worker(app: web.Application) -> Worker:
    (worker,) = app[OBSERVABILITY].workers()
    return worker


async def test_a_worker_that_fails_is_started_again_and_each_time_is_counted_and_told(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    runs = Runs(failures=3)
    async with working(registry, runs.work, name="packer", restart="on-failure", backoff=QUICK) as (app, _):
        await until(lambda: runs.count == 4, "the fourth run")
        worker = the_worker(app)
    assert (worker.name, worker.state, worker.restarts) == ("packer", "running", 3)
    assert worker.last_error == "LookupError"
    assert value(registry, "restarts", name="packer") == 3
    assert value(registry, "outcomes", name="packer", outcome="error") == 3
    assert value(registry, "outcomes", name="packer", outcome="cancelled") == 1
    failed = [record for record in records(caplog) if record.levelno == logging.ERROR]
    assert [record.restarts for record in failed] == [0, 1, 2]
    assert failed[0].getMessage().startswith("background task packer failed, and starts again in 0.00")
    assert failed[0].exc_info[0] is LookupError


async def test_a_worker_that_returns_is_done_unless_it_is_always_started_again(
    registry: CollectorRegistry,
) -> None:
    runs = Runs(failures=1, returns=True)
    async with working(registry, runs.work, name="w", restart="on-failure", backoff=QUICK) as (app, task):
        assert await task == "done"
        assert (the_worker(app).state, runs.count) == ("stopped", 2)
    again = Runs(returns=True)
    async with working(registry, again.work, name="a", restart="always", backoff=QUICK) as (app, _):
        await until(lambda: again.count >= 3, "the third run")
    assert (value(registry, "outcomes", name="a", outcome="ok") or 0) >= 2


@pytest.mark.parametrize("as_function", [True, False])
async def test_a_worker_that_is_never_started_again_has_a_health_too(
    as_function: bool, registry: CollectorRegistry
) -> None:
    runs = Runs(failures=1)
    work = runs.work if as_function else runs.work()
    async with working(registry, work, restart="never") as (app, task):
        await asyncio.wait([task])
        await until(lambda: the_worker(app).state == "failed", "the end")
        assert the_worker(app).name == "Runs.work"
        assert the_worker(app).last_error == "LookupError"
    assert value(registry, "outcomes", name="Runs.work", outcome="error") == 1


async def test_a_worker_waits_before_it_is_started_again_and_says_so(registry: CollectorRegistry) -> None:
    runs = Runs(failures=9)
    async with working(registry, runs.work, restart="always", backoff=(500, 1000)) as (app, task):
        await until(lambda: the_worker(app).state == "backing_off", "the back-off")
        assert (runs.count, the_worker(app).restarts) == (1, 0)
    assert task.cancelled()
    assert the_worker(app).state == "stopped"


async def test_the_wait_doubles_up_to_the_most_and_begins_anew_after_a_long_run() -> None:
    from aiohttp_observe.background.worker import Supervision

    supervision = Supervision(Runs().work, "w", "always", (1.0, 60.0), Scope())
    for expected in (1, 2, 4, 8, 16, 32, 60, 60):
        assert expected / 2 <= supervision._delay(ran=59.0) <= expected
    assert 0.5 <= supervision._delay(ran=60.0) <= 1
    for _ in range(5000):  # 2 to the power of all that is no float any more
        assert supervision._delay(ran=0.0) <= 60


@pytest.mark.parametrize("ending", [LookupError, None])
async def test_a_worker_that_ends_otherwise_when_it_is_cancelled_is_not_started_again(
    ending: type[Exception] | None, registry: CollectorRegistry
) -> None:
    began = []

    async def hold_on() -> None:
        began.append(True)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if ending is not None:
            raise ending

    async with working(registry, hold_on, restart="always", backoff=QUICK) as (app, task):
        await until(lambda: began, "the first run")
    assert task.done()
    assert began == [True]
    assert the_worker(app).state == ("stopped" if ending is None else "failed")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the two can't be told apart")
async def test_a_cancellation_that_nobody_asked_for_is_a_failure(registry: CollectorRegistry) -> None:
    runs = []

    async def await_what_is_cancelled() -> None:
        runs.append(True)
        future = asyncio.get_running_loop().create_future()
        if len(runs) == 1:
            future.cancel()
        await future

    work = await_what_is_cancelled
    async with working(registry, work, restart="on-failure", backoff=QUICK) as (app, _):
        await until(lambda: len(runs) == 2, "the second run")
        assert the_worker(app).last_error == "CancelledError"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no task groups")
async def test_a_worker_whose_task_group_fails_is_started_again_and_can_still_be_stopped(
    registry: CollectorRegistry,
) -> None:
    runs = []

    async def fail() -> None:
        raise LookupError("lost")

    async def work() -> None:
        runs.append(True)
        if len(runs) == 3:
            raise LookupError("without a group")
        if len(runs) == 4:
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
            group.create_task(fail())

    async with working(registry, work, restart="on-failure", backoff=QUICK) as (app, task):
        await until(lambda: len(runs) == 4, "the fourth run")
        assert the_worker(app).restarts == 3
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert the_worker(app).state == "stopped"


async def test_a_crash_loop_does_not_flood_the_log_and_says_what_it_left_out(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    runs = Runs(failures=200)
    async with working(registry, runs.work, name="crasher", restart="on-failure", backoff=(1e-6, 1e-6)):
        await until(lambda: runs.count == 201, "the last run")
    assert value(registry, "outcomes", name="crasher", outcome="error") == 200
    lines = [record for record in records(caplog) if record.levelno == logging.ERROR]
    assert len(lines) == 11
    assert (
        lines[-1].getMessage()
        == "background task crasher failed with LookupError; 190 more like it were only counted"
    )
    assert lines[-1].left_out == 190


async def test_a_flood_of_failing_tasks_is_counted_in_full(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async def flood() -> None:
        for _ in range(1000):
            spawn(Runs(failures=1).work(), name="one of many")
        await asyncio.Event().wait()

    async with working(registry, flood, restart="never"):
        counted = functools.partial(value, registry, "outcomes", name="one of many", outcome="error")
        await until(lambda: counted() == 1000, "the last of them")
    lines = [record for record in records(caplog) if record.levelno == logging.ERROR]
    assert len(lines) + sum(getattr(line, "left_out", 0) for line in lines) == 1001  # the last only tells


async def test_an_ended_worker_is_remembered_until_one_of_its_name_is_spawned(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_observe.background.worker._MOST_ENDED", 3)

    async def spawn_some() -> None:
        for number in (1, 1, 2, 3, 4):
            await asyncio.wait([spawn(Runs(returns=True).work, name=f"w{number}", restart="never")])
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    async with working(registry, spawn_some, name="all", restart="never") as (app, _):

        def names() -> list[str]:
            return [worker.name for worker in app[OBSERVABILITY].workers()]

        await until(lambda: "w4" in names(), "the last")
        await until(lambda: app[OBSERVABILITY].workers()[-1].state == "stopped", "its end")
        assert names() == ["all", "w2", "w3", "w4"]


async def test_a_readiness_handler_tells_which_worker_is_ill(registry: CollectorRegistry) -> None:
    """The documented example."""

    async def ready(request: web.Request) -> web.Response:
        ill = [each.name for each in request.app[OBSERVABILITY].workers() if each.state != "running"]
        return web.json_response({"ill": ill}, status=503 if ill else 200)

    failing = asyncio.Event()

    async def pack() -> None:
        await failing.wait()
        raise LookupError

    async def start(app: web.Application) -> None:
        spawn(pack, name="packer", restart="on-failure")

    app = web.Application()
    app.router.add_get("/ready", ready)
    app.on_startup.append(start)
    setup_observability(app, metrics=Metrics(registry=registry), logs=None)
    async with serving(app) as service:
        assert (await service.get("/ready")).status == 200
        failing.set()
        await until(lambda: the_worker(app).state == "backing_off", "the failure")
        answer = await service.get("/ready")
    assert (answer.status, answer.text) == (503, '{"ill": ["packer"]}')


async def test_a_worker_is_on_the_task_page_under_its_own_name(registry: CollectorRegistry) -> None:
    runs = Runs()
    async with working(registry, runs.work, restart="always"):
        await until(lambda: runs.count, "its begin")
        (row,) = (row for row in take_snapshot().tasks if row.name == "Runs.work")
    assert row.coro == "Runs.work"
    assert row.wait is not None
    assert row.wait.kind == "event"


async def test_a_worker_cancelled_before_it_began_leaves_nothing_behind() -> None:
    task = spawn(Runs().work(), restart="never")
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("restart", ["on-failure", "always"])
async def test_a_coroutine_cannot_be_started_again(restart: Any) -> None:
    with pytest.raises(
        TypeError, match=r"takes a coroutine function, which it can call again, .*leave out the parenth"
    ):
        spawn(Runs().work(), restart=restart)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"restart": "sometimes"},
            ValueError,
            r"spawn\(restart=...\) takes one of 'never', 'on-failure', 'always'",
        ),
        ({"backoff": 5}, TypeError, "takes two numbers of seconds"),
        ({"backoff": (0, 5)}, ValueError, "a number of seconds above 0, got 0"),
        ({"backoff": (5, 1)}, ValueError, "the first number of seconds, then the most"),
        ({"coro": 7}, TypeError, "takes a coroutine function, got 7"),
        ({"name": 7}, TypeError, r"spawn\(name=...\) takes str or None, got 7"),
    ],
)
async def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    asked: dict[str, Any] = {"coro": Runs().work, "restart": "always", **options}
    with pytest.raises(error, match=text):
        spawn(**asked)


async def test_a_function_that_returns_no_coroutine_fails_once_and_says_so(
    registry: CollectorRegistry,
) -> None:
    def plain() -> None: ...

    async with working(registry, plain, restart="always", backoff=QUICK) as (app, task):
        await asyncio.wait([task])
        with pytest.raises(TypeError, match="takes a coroutine function, got one that returned None"):
            await task
        assert (the_worker(app).state, the_worker(app).restarts) == ("failed", 0)


# At the end


async def test_the_line_on_what_did_not_stop_is_bounded(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    may_stop = asyncio.Event()

    async def stubborn() -> None:
        while not may_stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await may_stop.wait()

    async def start() -> None:
        tasks.extend(spawn(stubborn(), name="stubborn") for _ in range(30))
        await asyncio.Event().wait()

    tasks: list[asyncio.Task[None]] = []
    async with working(registry, start, restart="never"):
        await until(lambda: tasks, "the tasks")
        await asyncio.sleep(0)
    running = sum(not task.done() for task in tasks)
    may_stop.set()
    await asyncio.wait(tasks)
    assert running == 30
    (line,) = (record.getMessage() for record in records(caplog) if record.levelno == logging.WARNING)
    assert line.count("waits for Event.wait at") == 20
    assert line.endswith("; and 10 more")
    assert value(registry, "outcomes", name="stubborn", outcome="abandoned") == 30


async def test_a_worker_that_cannot_be_started_is_told_as_failed(registry: CollectorRegistry) -> None:
    app = web.Application()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise LookupError("no tasks today")

    async def handler(request: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()
        loop.set_task_factory(refuse)
        try:
            with pytest.raises(LookupError, match="no tasks today"):
                spawn(return_seven, restart="always", name="ghost")
        finally:
            loop.set_task_factory(before)
        return web.Response()

    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
        (worker,) = app[OBSERVABILITY].workers()
    assert (worker.name, worker.state, worker.last_error) == ("ghost", "failed", "LookupError")


# Tasks that somebody else starts: aiojobs


@asynccontextmanager
async def with_jobs(
    registry: CollectorRegistry, work: Work, **options: Any
) -> AsyncIterator[tuple[Service, list[aiojobs.Job[Any]]]]:
    """A service whose ``GET /`` has aiojobs do ``work``."""
    jobs = []

    async def handler(request: web.Request) -> web.Response:
        jobs.append(await aiojobs.aiohttp.spawn(request, supervised(work(), name="job")))
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry))
    aiojobs.aiohttp.setup(app, **options)
    async with serving(app) as service:
        yield service, jobs


async def return_seven() -> int:
    return 7


async def lose() -> None:
    raise LookupError("lost")


@pytest.mark.parametrize(("work", "outcome"), [(return_seven, "ok"), (lose, "error")])
async def test_the_outcome_of_a_job_is_counted_and_told_once(
    work: Work, outcome: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with with_jobs(registry, work) as (service, jobs):
        await service.get("/", headers={"X-Request-ID": "asked"})
        await until(lambda: jobs[0].closed, "the job's end")
    assert value(registry, "outcomes", name="job", outcome=outcome) == 1
    (record,) = (
        r for r in caplog.records if r.name.startswith("aiohttp_observe.") and "access" not in r.name
    )
    assert (record.name, getattr(record, "request_id", None)) == ("aiohttp_observe.background", "asked")
    assert not any(
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "asyncio_unhandled_total"
    )


async def test_a_job_that_is_waited_for_gives_its_result_and_its_exception(
    registry: CollectorRegistry,
) -> None:
    async with aiojobs.Scheduler() as scheduler:
        job = await scheduler.spawn(supervised(return_seven()))
        assert await job.wait() == 7
        failing = await scheduler.spawn(supervised(lose()))
        with pytest.raises(LookupError):
            await failing.wait()


async def test_a_job_that_had_to_queue_keeps_the_request_it_came_from(registry: CollectorRegistry) -> None:
    """aiojobs starts it in the context of the job before it, which is another request's."""
    goes_on, ids = asyncio.Event(), []

    async def note() -> None:
        await goes_on.wait()
        ids.append(request_id())

    async with with_jobs(registry, note, limit=1) as (service, _):
        for number in range(3):
            await service.get("/", headers={"X-Request-ID": f"request-{number}"})
        goes_on.set()
        await until(lambda: len(ids) == 3, "the last job")
    assert ids == ["request-0", "request-1", "request-2"]


async def test_a_job_that_never_began_leaves_nothing_behind(registry: CollectorRegistry) -> None:
    scheduler = aiojobs.Scheduler(limit=1)
    await scheduler.spawn(supervised(asyncio.Event().wait()))
    queued = await scheduler.spawn(supervised(return_seven()))
    await queued.close()
    await asyncio.wait_for(scheduler.close(), PATIENCE)


async def test_a_job_is_no_orphan(registry: CollectorRegistry) -> None:
    async with with_jobs(registry, asyncio.Event().wait, wait_timeout=0.01) as (service, _):
        await service.get("/")
        (row,) = (row for row in take_snapshot().tasks if row.coro == "Event.wait")
        assert row.request is not None
        assert not row.orphan


@pytest.mark.parametrize("work", [return_seven, None])
async def test_only_coroutines_are_supervised(work: Any) -> None:
    with pytest.raises(TypeError, match=r"supervised\(\) takes a coroutine, got .*: call the"):
        await supervised(work)


async def test_an_unknown_way_to_trace_is_refused() -> None:
    trace: Any = "sideways"
    with pytest.raises(ValueError, match=r"supervised\(trace=...\) takes one of"):
        await supervised(return_seven(), trace=trace)


# Floods


def test_beyond_so_many_kinds_a_flood_is_of_one_kind() -> None:
    flood = Flood()
    told = sum(flood.admit(number) is not None for number in range(2000))
    assert told == 510
    assert list(flood.subsided(at_once=True)) == [(("others",), 1490)]
    assert list(flood.subsided(at_once=True)) == []


def test_threads_may_ask_for_what_a_flood_left_out_at_once() -> None:
    flood = Flood()
    for kind in ("first", "second"):
        for _ in range(12):
            flood.admit(kind)
    one, other = flood.subsided(at_once=True), flood.subsided(at_once=True)
    told = [next(one), *other, *one]
    assert sorted(told) == [("first", 2), ("second", 2)]
