"""Failures that nobody handles are counted once, and logged once with where they were born."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import sys
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    Failures,
    Metrics,
    bind,
    current_exchange,
    request_id,
    setup_observability,
    spawn,
)
from aiohttp_observe.exchange import CURRENT, Exchange, Scope
from aiohttp_observe.incidents import Incidents
from tests.service import serving

KINDS = ("task_exception", "task_destroyed_pending", "never_awaited", "callback", "other")
Provoke = Callable[[], Awaitable[object]]


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What earlier tests left to the collector is not counted here."""
    gc.collect()
    yield
    gc.collect()


async def lose() -> None:
    raise LookupError("lost")


async def lose_a_task() -> None:
    task = asyncio.create_task(lose(), name="loser")
    await asyncio.wait([task])
    del task
    gc.collect()


async def wait_for_nothing() -> None:
    await asyncio.get_running_loop().create_future()


async def drop_a_waiting_task() -> None:
    task = asyncio.create_task(wait_for_nothing(), name="dropped")
    await asyncio.sleep(0)
    del task
    gc.collect()


async def forget_to_await() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lose()  # type: ignore[unused-coroutine]


def break_down() -> None:
    raise LookupError("broken")


async def break_in_a_callback() -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.call_soon(break_down)
    loop.call_soon(done.set)
    await done.wait()


async def lose_a_future() -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_exception(LookupError("lost"))
    del future
    gc.collect()


PROVOKED: dict[str, Provoke] = {
    "task_exception": lose_a_task,
    "task_destroyed_pending": drop_a_waiting_task,
    "never_awaited": forget_to_await,
    "callback": break_in_a_callback,
    "other": lose_a_future,
}


def application(registry: CollectorRegistry, **options: Any) -> web.Application:
    """``/{kind}`` provokes a failure of that kind and answers with its trace id."""

    async def provoke(request: web.Request) -> web.Response:
        await PROVOKED[request.match_info["kind"]]()
        exchange = current_exchange()
        assert exchange is not None
        return web.Response(text=str(exchange.trace_id))

    app = web.Application()
    app.router.add_get("/{kind}", provoke)
    setup_observability(app, metrics=Metrics(registry=registry), **options)
    return app


def counted(registry: CollectorRegistry) -> dict[str, float]:
    values = {kind: registry.get_sample_value("asyncio_unhandled_total", {"kind": kind}) for kind in KINDS}
    return {kind: value for kind, value in values.items() if value}


def told(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """The records of our failures, typed loosely for their extra fields."""
    return [record for record in caplog.records if record.name == "aiohttp_observe.failures"]


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_is_counted_and_logged_once(
    kind: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(application(registry)) as service:
        assert (await service.get(f"/{kind}")).status == 200
    assert counted(registry) == {kind: 1}
    (record,) = told(caplog)
    assert record.levelno == logging.ERROR
    assert record.kind == kind


@pytest.mark.parametrize("kind", KINDS)
async def test_asyncio_does_not_log_it_too(
    kind: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(application(registry)) as service:
        await service.get(f"/{kind}")
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize("kind", ["task_exception", "task_destroyed_pending", "callback", "never_awaited"])
async def test_it_carries_the_ids_of_the_request_it_was_born_in(
    kind: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(application(registry)) as service:
        trace_id = (await service.get(f"/{kind}", headers={"X-Request-ID": "its-birth"})).text
    (record,) = told(caplog)
    assert (record.request_id, record.trace_id) == ("its-birth", trace_id)


@pytest.mark.parametrize("kind", ["task_exception", "callback", "other"])
async def test_it_carries_the_traceback(
    kind: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(application(registry)) as service:
        await service.get(f"/{kind}")
    (record,) = told(caplog)
    assert isinstance(record.exc_info[1], LookupError)


@pytest.mark.parametrize(
    ("kind", "name", "coro", "creator"),
    [
        ("task_exception", "loser", "lose", lose_a_task),
        ("task_destroyed_pending", "dropped", "wait_for_nothing", drop_a_waiting_task),
    ],
)
async def test_it_names_the_task_and_where_it_was_created(
    kind: str,
    name: str,
    coro: str,
    creator: Callable[[], Coroutine[Any, Any, None]],
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(application(registry)) as service:
        await service.get(f"/{kind}")
    (record,) = told(caplog)
    place = f"{__file__}:{creator.__code__.co_firstlineno + 1} in {creator.__name__}"
    assert (record.task, record.coro, record.created_at) == (name, coro, place)
    assert record.getMessage().endswith(f": {name}, created at {place}")


async def test_a_coroutine_that_was_never_awaited_is_named_with_its_place(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(application(registry)) as service:
        await service.get("/never_awaited")
    (record,) = told(caplog)
    assert record.coro == "lose"
    assert record.defined_at == f"{__file__}:{lose.__code__.co_firstlineno}"
    line = forget_to_await.__code__.co_firstlineno + 3
    assert record.dropped_at == f"{__file__}:{line} in forget_to_await"
    assert record.getMessage() == f"coroutine lose was never awaited, dropped at {record.dropped_at}"


async def test_where_a_coroutine_was_made_is_known_with_origin_tracking(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    depth = sys.get_coroutine_origin_tracking_depth()
    sys.set_coroutine_origin_tracking_depth(1)
    try:
        async with serving(application(registry)) as service:
            await service.get("/never_awaited")
    finally:
        sys.set_coroutine_origin_tracking_depth(depth)
    (record,) = told(caplog)
    line = forget_to_await.__code__.co_firstlineno + 3
    assert record.created_at == f"{__file__}:{line} in forget_to_await"
    assert record.getMessage().endswith(f", created at {record.created_at}")


@pytest.mark.parametrize("action", ["ignore", "error"])
async def test_coroutines_never_awaited_are_told_whatever_the_filters_say(
    action: Any, registry: CollectorRegistry
) -> None:
    """Also the second one of the same line, which the interpreter's registry would swallow."""

    async def forget_twice(request: web.Request) -> web.Response:
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            for _ in range(2):
                unraisable_aside(lose)
        return web.Response()

    app = web.Application()
    app.router.add_get("/", forget_twice)
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
    assert counted(registry) == {"never_awaited": 2}


def unraisable_aside(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Make a coroutine and drop it; a filter that says ``error`` is told through this hook."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        function()  # type: ignore[unused-coroutine]
    finally:
        sys.unraisablehook = hook


async def test_the_warning_itself_stays_as_it_was(registry: CollectorRegistry) -> None:
    app = application(registry)
    async with serving(app):
        with pytest.warns(RuntimeWarning, match=r"coroutine 'lose' was never awaited") as caught:
            lose()  # type: ignore[unused-coroutine]
    (warning,) = caught
    assert warning.filename == __file__  # filters go by it


async def test_coroutines_never_awaited_can_be_left_out(registry: CollectorRegistry) -> None:
    async with serving(application(registry, failures=Failures(never_awaited=False))) as service:
        await service.get("/never_awaited")
    assert counted(registry) == {}


# Handlers of the service's own


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"never_awaited"}))
async def test_the_services_own_handler_is_still_called(kind: str, registry: CollectorRegistry) -> None:
    called = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: called.append(context))
    async with serving(application(registry)) as service:
        await service.get(f"/{kind}")
    assert counted(registry) == {kind: 1}
    assert len(called) == 1


async def test_a_handler_of_the_service_that_fails_does_no_harm(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raise ArithmeticError("the service's own handler")

    asyncio.get_running_loop().set_exception_handler(fail)
    async with serving(application(registry)) as service:
        assert (await service.get("/task_exception")).status == 200
    assert counted(registry) == {"task_exception": 1}
    assert "Unhandled error in exception handler" in caplog.text


async def test_a_message_is_logged_as_it_is(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Libraries call the handler too, with texts that must not be taken for format strings."""
    async with serving(application(registry)):
        asyncio.get_running_loop().call_exception_handler({"message": "disk 100% full: %s"})
    assert [record.getMessage() for record in told(caplog)] == ["disk 100% full: %s"]


@pytest.mark.parametrize(
    "context", [{}, {"message": None}, {"exception": ValueError("x")}, {"task": "no task"}]
)
async def test_odd_contexts_are_told_too(
    context: dict[str, Any], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(application(registry)):
        asyncio.get_running_loop().call_exception_handler(context)
    assert sum(counted(registry).values()) == 1
    assert len(told(caplog)) == 1


# Several applications


@pytest.mark.parametrize("kind", KINDS)
async def test_two_applications_on_one_loop_count_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """And it counts where it belongs: for the application whose request it was."""
    registries = [CollectorRegistry() for _ in range(2)]
    first, second = [application(registry) for registry in registries]
    async with serving(first), serving(second) as service:
        await service.get(f"/{kind}")
    assert len(told(caplog)) == 1
    if kind == "other":  # a bare future belongs to nobody in particular
        assert [sum(counted(registry).values()) for registry in registries] in ([1, 0], [0, 1])
    else:
        assert [counted(registry) for registry in registries] == [{}, {kind: 1}]


async def test_the_one_that_remains_goes_on_counting(caplog: pytest.LogCaptureFixture) -> None:
    """The first to start is the first to end: its handler stays in the chain, and silent."""
    ended, remaining = CollectorRegistry(), CollectorRegistry()
    runner = web.AppRunner(application(ended))
    await runner.setup()
    async with serving(application(remaining)) as service:
        await runner.cleanup()
        await service.get("/task_exception")
        await service.get("/other")
    assert counted(ended) == {}
    assert counted(remaining) == {"task_exception": 1, "other": 1}
    assert len(told(caplog)) == 2


async def test_after_clean_up_nothing_is_told(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(application(registry)):
        pass
    for provoke in PROVOKED.values():
        await provoke()
    assert counted(registry) == {}
    assert told(caplog) == []


# Supervised background tasks


def outcomes(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    (family,) = [family for family in registry.collect() if family.name == "asyncio_task_outcomes"]
    totals = [sample for sample in family.samples if sample.name == "asyncio_task_outcomes_total"]
    return {(sample.labels["name"], sample.labels["outcome"]): sample.value for sample in totals}


def background_records(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "aiohttp_observe.background"]


@asynccontextmanager
async def spawning(
    registry: CollectorRegistry, work: Callable[[], Coroutine[Any, Any, object]], **options: Any
) -> AsyncIterator[asyncio.Task[object]]:
    """A service one of whose requests, ``spawner``, has spawned ``work`` as a task of that name."""
    spawned = []

    async def handler(request: web.Request) -> web.Response:
        bind(customer="c1")
        spawned.append(spawn(work(), name="work"))
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry), **options)
    async with serving(app) as service:
        await service.get("/", headers={"X-Request-ID": "spawner"})
        yield spawned.pop()


async def return_seven() -> int:
    return 7


async def cancel_oneself() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("work", "outcome", "level"),
    [(return_seven, "ok", "INFO"), (lose, "error", "ERROR"), (cancel_oneself, "cancelled", "INFO")],
)
async def test_the_outcome_of_a_spawned_task_is_counted_and_logged(
    work: Any, outcome: str, level: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with spawning(registry, work) as task:
        await asyncio.wait([task])
    assert outcomes(registry) == {("work", outcome): 1}
    (record,) = background_records(caplog)
    assert (record.levelname, record.task, record.request_id) == (level, "work", "spawner")
    assert record.customer == "c1"
    assert (record.exc_info is not None) == (outcome == "error")


async def test_a_spawned_task_gives_its_result(registry: CollectorRegistry) -> None:
    async with spawning(registry, return_seven) as task:
        assert await task == 7
        assert task.get_name() == "work"


async def test_a_spawned_tasks_exception_is_told_once(registry: CollectorRegistry) -> None:
    """It was logged with its outcome, so it isn't unhandled as well."""
    async with spawning(registry, lose) as task:
        await asyncio.wait([task])
        del task
        gc.collect()
    assert counted(registry) == {}


async def test_a_spawned_task_is_referenced_until_it_ends(registry: CollectorRegistry) -> None:
    """asyncio itself only keeps weak references: unsupervised, such a task just vanishes."""
    async with spawning(registry, wait_for_nothing) as task:
        watched = weakref.ref(task)
        del task
        gc.collect()
        assert watched() is not None
    gc.collect()
    assert watched() is None


async def test_a_spawned_task_outlives_its_request(registry: CollectorRegistry) -> None:
    goes_on = asyncio.Event()

    async def work() -> str | None:
        await goes_on.wait()
        return request_id()

    async with spawning(registry, work) as task:
        assert not task.done()
        goes_on.set()
        assert await task == "spawner"


async def test_spawned_tasks_are_cancelled_and_awaited_at_clean_up(registry: CollectorRegistry) -> None:
    steps = []

    async def tidy_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("cancelled")
            await asyncio.sleep(0)
            steps.append("tidied up")

    async with spawning(registry, tidy_up) as task:
        pass
    assert task.cancelled()
    assert steps == ["cancelled", "tidied up"]
    assert outcomes(registry) == {("work", "cancelled"): 1}


async def test_clean_up_goes_on_without_a_task_that_will_not_stop(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    may_stop = asyncio.Event()

    async def stubborn() -> None:
        while not may_stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await may_stop.wait()

    async with spawning(registry, stubborn, failures=Failures(shutdown_timeout=0.01)) as task:
        await asyncio.sleep(0)
    done = task.done()
    may_stop.set()
    await task
    assert not done
    (record,) = background_records(caplog)
    place = f"{__file__}:{stubborn.__code__.co_firstlineno + 3} in stubborn"
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "1 background task did not stop within 0.01 s of being cancelled: "
        f"work (waits for Event.wait at {place})"
    )
    assert outcomes(registry) == {("work", "abandoned"): 1}


async def test_tasks_that_await_each_other_end_with_the_rest(registry: CollectorRegistry) -> None:
    """Cancelling one of them has asyncio follow the ring without end."""
    tasks: dict[str, asyncio.Task[None]] = {}

    async def wait_for(other: str) -> None:
        await asyncio.sleep(0)
        await tasks[other]

    async def handler(request: web.Request) -> web.Response:
        tasks.update({name: spawn(wait_for(other), name=name) for name, other in ("ab", "ba")})
        tasks["c"] = spawn(asyncio.sleep(3600), name="c")
        await asyncio.sleep(0)
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(app) as service:
        await service.get("/")
    assert [tasks[name].cancelled() for name in "abc"] == [True, True, True]
    assert outcomes(registry) == {(name, "cancelled"): 1 for name in "abc"}


async def test_what_a_task_spawns_while_it_is_cancelled_ends_too(registry: CollectorRegistry) -> None:
    successors = []

    async def hand_over() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            successors.append(spawn(wait_for_nothing(), name="successor"))

    async with spawning(registry, hand_over) as task:
        pass
    assert task.cancelled()
    assert successors[0].cancelled()


async def test_a_cancelled_task_passes_its_cancellation_on(registry: CollectorRegistry) -> None:
    async with spawning(registry, wait_for_nothing) as task:
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_the_name_defaults_to_the_coroutines() -> None:
    task = spawn(return_seven())
    assert task.get_name() == "return_seven"
    await task


@pytest.mark.parametrize("work", [return_seven, None, 7])
async def test_only_coroutines_are_spawned(work: Any) -> None:
    with pytest.raises(TypeError, match=r"spawn\(\) takes a coroutine, got .*: call the coroutine function"):
        spawn(work)


async def test_an_unknown_way_to_trace_is_refused() -> None:
    trace: Any = "sideways"
    with pytest.raises(ValueError, match=r"spawn\(trace=...\) takes one of 'link', 'child', 'none'"):
        spawn(return_seven(), trace=trace)


def test_spawning_needs_a_loop() -> None:
    with pytest.raises(RuntimeError, match=r"no running event loop .*use loop.call_soon_threadsafe"):
        spawn(return_seven())


# What is kept of them


def line_of(code: Any, offset: int) -> int:
    """The line ``offset`` lines below the one that defines a function."""
    return int(code.__code__.co_firstlineno) + offset


@pytest.mark.parametrize(
    ("kind", "exception", "coro", "place"),
    [
        ("task_exception", "LookupError", "lose", ("lose", line_of(lose, 1))),
        ("task_destroyed_pending", None, "wait_for_nothing", None),
        ("never_awaited", None, "lose", ("forget_to_await", line_of(forget_to_await, 3))),
        ("callback", "LookupError", None, ("break_down", line_of(break_down, 1))),
        ("other", "LookupError", None, None),
    ],
)
async def test_a_failure_is_an_incident_with_its_place_and_no_message(
    kind: str, exception: str | None, coro: str | None, place: tuple[str, int] | None
) -> None:
    incidents = Incidents()
    failures = Failures().install(asyncio.get_running_loop(), Scope(), incidents)
    try:
        await PROVOKED[kind]()
    finally:
        failures.close()
    document = incidents.to_dict()
    (row,) = document["unhandled"]
    assert (row["kind"], row["exception"], row["coro"], row["count"]) == (kind, exception, coro, 1)
    found = row["frame"] and (row["frame"]["function"], row["frame"]["line"])
    assert found == place
    assert not {"lost", "broken"} & {str(value) for value in row["example"].values()}


async def test_of_two_applications_each_keeps_the_incidents_of_its_own_requests() -> None:
    loop = asyncio.get_running_loop()
    scopes, kept = [Scope(), Scope()], [Incidents(), Incidents()]
    scopes[1].meter = scopes[0].meter  # as of those that share a registry
    watches = [
        Failures().install(loop, scope, incidents) for scope, incidents in zip(scopes, kept, strict=True)
    ]
    try:
        for scope in scopes:
            exchange = Exchange(scope, "the request", "GET", "/", "/", None, None, 0.0)
            context = contextvars.copy_context()
            context.run(CURRENT.set, exchange)
            loop.call_soon(break_down, context=context)
        await break_in_a_callback()  # of no request
    finally:
        for watch in watches:
            watch.close()
    counts = [
        [(row["example"]["request_id"], row["count"]) for row in incidents.to_dict()["unhandled"]]
        for incidents in kept
    ]
    assert counts == [[(None, 2)], [("the request", 1)]]


async def test_a_flood_of_one_failure_is_counted_in_full_and_logged_now_and_then(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_observe.flood._SECONDS", 0.5)
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), logs=None)

    async def flood(number: int) -> None:
        tasks = [asyncio.create_task(lose()) for _ in range(number)]
        await asyncio.wait(tasks)
        del tasks
        gc.collect()

    async with serving(app):
        await flood(500)
        await asyncio.sleep(0.5)
        await flood(1)
    counted = registry.get_sample_value("asyncio_unhandled_total", {"kind": "task_exception"})
    assert counted == 501
    lines = told(caplog)
    full = [line for line in lines if line.exc_info]
    telling = [line for line in lines if hasattr(line, "left_out")]
    assert len(full) + sum(line.left_out for line in telling) == 501
    assert len(lines) <= 50
    assert all(f"{line.left_out} more like it were only counted" in line.getMessage() for line in telling)


async def test_failures_of_different_kinds_do_not_hide_each_other(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), logs=None)

    async def fail_otherwise() -> None:
        raise ArithmeticError

    async with serving(app):
        for _ in range(12):  # each takes a collection: all must be within the ten seconds
            await lose_a_task()
        task = asyncio.create_task(fail_otherwise())
        await asyncio.wait([task])
        del task
        gc.collect()
    types = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert types.count(LookupError) == 10
    assert types.count(ArithmeticError) == 1
