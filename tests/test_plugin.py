"""One line sets everything up, says clearly what is wrong, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import sys
import threading
import warnings
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from aiohttp.web_app import _cached_build_middleware
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    CLIENT_SESSION,
    OBSERVABILITY,
    Admin,
    Exchange,
    Logs,
    Metrics,
    Observability,
    bind,
    request_id,
    setup_observability,
    spawn,
    take_snapshot,
)
from tests.service import Witness, run_python, serving, until

DURATION = "http_server_request_duration_seconds_count"


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request_id()}")


def application() -> web.Application:
    app = web.Application()
    app.router.add_get("/hello", hello)
    return app


# One line


def test_one_line_works_with_its_defaults() -> None:
    """In a process of its own: by default metrics go to the process's registry, lines to its output."""
    done = run_python(
        """
import asyncio, aiohttp, logging
from aiohttp import web
from aiohttp_observe import setup_observability

async def hello(request):
    logging.getLogger("shop").info("hello")
    return web.Response(text="hello")

app = web.Application()
setup_observability(app)
app.router.add_get("/hello", hello)

async def main():
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        async with session.get("/hello", headers={"X-Request-ID": "first"}) as response:
            assert await response.text() == "hello"
        async with session.get("/metrics") as response:
            scraped = await response.text()
    await runner.cleanup()
    assert 'http_route="/hello"' in scraped

asyncio.run(main())
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["message"] for line in lines] == ["hello", "GET /hello 200", "GET /metrics 200"]
    assert lines[0]["request_id"] == lines[1]["request_id"] == "first"
    assert lines[0]["trace_id"] == lines[1]["trace_id"]


async def test_the_running_state_is_found_in_the_application(registry: CollectorRegistry) -> None:
    app = application()
    observability = setup_observability(app, metrics=Metrics(registry=registry))
    assert isinstance(observability, Observability)
    assert app[OBSERVABILITY] is observability


async def test_the_application_has_a_client_session_while_it_runs(registry: CollectorRegistry) -> None:
    app = application()
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(app):
        session = app[CLIENT_SESSION]
        assert not session.closed
    assert session.closed


async def test_a_snapshot_needs_a_running_application(registry: CollectorRegistry) -> None:
    app = application()
    observability = setup_observability(app, metrics=Metrics(registry=registry))
    with pytest.raises(RuntimeError, match="after its start-up"):
        observability.snapshot()
    async with serving(app):
        observability.snapshot()
    with pytest.raises(RuntimeError, match="after its start-up"):
        observability.snapshot()


# What is wired wrongly is told at set-up


def test_a_second_call_is_refused(registry: CollectorRegistry) -> None:
    app = application()
    setup_observability(app, metrics=Metrics(registry=registry))
    with pytest.raises(RuntimeError, match="before: call it once"):
        setup_observability(app, metrics=Metrics(registry=registry))


async def test_an_application_that_was_started_is_refused() -> None:
    app = application()
    async with serving(app):
        with pytest.raises(RuntimeError, match=r"has been started: call setup_observability\(\) before"):
            setup_observability(app)


def test_a_sub_application_is_refused_once_its_root_has_it() -> None:
    root, nested = application(), application()
    root.add_subapp("/nested", nested)
    with pytest.raises(RuntimeError, match="on the root application only"):
        setup_observability(nested)


def test_a_root_over_a_sub_application_that_was_set_up_is_refused(registry: CollectorRegistry) -> None:
    root, nested = application(), application()
    setup_observability(nested, metrics=Metrics(registry=registry))
    root.add_subapp("/nested", nested)
    with pytest.raises(RuntimeError, match="on the root application only"):
        setup_observability(root)


def test_a_page_below_another_is_refused() -> None:
    """Whose token would guard it?"""
    with pytest.raises(RuntimeError, match="the path /_tasks/metrics is below Admin's"):
        setup_observability(application(), metrics=Metrics(path="/_tasks/metrics"))


async def test_a_sub_application_that_was_set_up_is_refused_at_start_up(registry: CollectorRegistry) -> None:
    """The root was set up first and got the sub-application, at any depth, later."""
    root, middle, nested = application(), application(), application()
    setup_observability(root, metrics=Metrics(registry=registry))
    setup_observability(nested, metrics=Metrics(registry=registry))
    middle.add_subapp("/nested", nested)
    root.add_subapp("/middle", middle)
    with pytest.raises(RuntimeError, match="on the root application only"):
        async with serving(root):
            pass


@pytest.mark.parametrize("app", [None, "app", web.RouteTableDef()], ids=lambda app: type(app).__name__)
def test_anything_but_an_application_is_refused(app: Any) -> None:
    with pytest.raises(TypeError, match=r"setup_observability\(app\) takes Application, got"):
        setup_observability(app)


class WithoutHooks:
    pass


class Asynchronous:
    async def finished(self, exchange: Exchange) -> None:
        pass


@pytest.mark.parametrize("observers", [7, Witness(), None], ids=["a number", "an observer", "None"])
def test_observers_come_in_a_list(observers: Any) -> None:
    with pytest.raises(TypeError, match=r"setup_observability\(observers=\.\.\.\) takes a list of observers"):
        setup_observability(application(), observers=observers)


@pytest.mark.parametrize(
    "observer",
    [WithoutHooks(), Witness, Asynchronous()],
    ids=["without hooks", "a class", "coroutine functions"],
)
def test_an_observer_that_could_not_hear_is_refused(observer: object) -> None:
    app = application()
    with pytest.raises(TypeError, match=r"setup_observability\(observers=\.\.\.\) takes"):
        setup_observability(app, observers=[observer])
    assert OBSERVABILITY not in app


async def test_an_application_whose_set_up_failed_can_be_set_up_again(registry: CollectorRegistry) -> None:
    """Nothing of the failed attempt is left: not a route, not a middleware, not a second span."""
    app, witness = application(), Witness()
    metrics: Any = "yes"
    with pytest.raises(TypeError, match="metrics"):
        setup_observability(app, metrics=metrics)
    with pytest.raises(ValueError, match=r"require_token=True\) needs the token of admin=Admin"):
        setup_observability(app, metrics=Metrics(registry=registry, require_token=True), admin=None)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        assert (await service.get("/hello")).status == 200
        await witness.next()
    assert len(witness.begun) == 1


# None turns a pillar off, and the rest goes on


@pytest.mark.parametrize(
    "pillar", ["metrics", "logs", "tracing", "failures", "tasks", "loop_watch", "client", "admin"]
)
async def test_the_rest_works_without(pillar: str, registry: CollectorRegistry) -> None:
    app, witness = application(), Witness()
    options: dict[str, Any] = {"metrics": Metrics(registry=registry), pillar: None}
    setup_observability(app, observers=[witness], **options)
    async with serving(app) as service:
        answer = await service.get("/hello", headers={"X-Request-ID": "mine"})
        exchange = await witness.next()
        metrics = (await service.get("/metrics")).status
        tasks = (await service.get("/_tasks")).status
    assert (answer.text, exchange.status) == ("hello mine", 200)
    assert (exchange.span is None) == (pillar == "tracing")
    assert metrics == (404 if pillar == "metrics" else 200)
    assert tasks == (404 if pillar == "admin" else 200)
    assert (CLIENT_SESSION in app) == (pillar != "client")


async def test_everything_off_still_serves() -> None:
    app = application()
    setup_observability(
        app,
        metrics=None,
        logs=None,
        tracing=None,
        failures=None,
        tasks=None,
        loop_watch=None,
        client=None,
        admin=None,
    )
    async with serving(app) as service:
        answer = await service.get("/hello")
        assert answer.text == f"hello {answer.request_id}"


# Two applications in one process


async def test_two_applications_do_not_meet() -> None:
    registries = CollectorRegistry(), CollectorRegistry()
    witnesses = Witness(), Witness()
    apps = application(), application()
    for app, registry, witness in zip(apps, registries, witnesses, strict=True):
        setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(apps[0]) as first, serving(apps[1]) as second:
        await asyncio.gather(*(first.get("/hello") for _ in range(3)), second.get("/hello"))
        for _ in range(3):
            await witnesses[0].next()
        await witnesses[1].next()
    assert [served(registry) for registry in registries] == [3, 1]
    assert [len(witness.begun) for witness in witnesses] == [3, 1]


async def test_applications_may_share_a_registry(registry: CollectorRegistry) -> None:
    witness, apps = Witness(), [application() for _ in range(2)]
    for app in apps:
        setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(apps[0]) as first, serving(apps[1]) as second:
        for service in (first, second):
            await service.get("/hello")
            await witness.next()
    assert served(registry) == 2


async def test_descriptions_may_be_shared(registry: CollectorRegistry) -> None:
    """What a shared description describes is made per application; one ends, the other goes on."""
    metrics, logs, witness = Metrics(registry=registry), Logs(), Witness()
    first, second = application(), application()
    setup_observability(first, metrics=metrics, logs=logs)
    setup_observability(second, metrics=metrics, logs=logs, observers=[witness])
    async with serving(second) as remaining:
        async with serving(first) as service:
            await service.get("/metrics")
        assert (await remaining.get("/metrics")).status == 200
        assert (await witness.next()).route == "/metrics"


def served(registry: CollectorRegistry) -> float | None:
    labels = {
        "http_request_method": "GET",
        "http_route": "/hello",
        "http_response_status_code": "200",
        "error_type": "",
    }
    return registry.get_sample_value(DURATION, labels)


# Afterwards everything is as it was


def surroundings() -> dict[str, object]:
    """All that the package touches while an application runs."""
    loop = asyncio.get_running_loop()
    return {
        "exception handler": loop.get_exception_handler(),
        "task factory": loop.get_task_factory(),
        "root handlers": logging.root.handlers[:],
        "root level": logging.root.level,
        "record factory": logging.getLogRecordFactory(),
        "loggers": loggers(),
        "warnings filters": warnings.filters[:],
        "showwarning": warnings.showwarning,
        "never awaited": warnings._warn_unawaited_coroutine,  # type: ignore[attr-defined]
        "hooks": [sys.excepthook, sys.unraisablehook, threading.excepthook, sys.gettrace(), sys.getprofile()],
        "async generators": sys.get_asyncgen_hooks(),
        "coroutine origins": sys.get_coroutine_origin_tracking_depth(),
        "garbage collector": [gc.callbacks[:], gc.get_threshold(), gc.get_freeze_count()],
    }


def loggers() -> dict[str, object]:
    names = ("aiohttp.access", "aiohttp.server", "aiohttp.web", "asyncio")
    found = {name: logging.getLogger(name) for name in names}
    return {
        name: (logger.handlers[:], logger.level, logger.disabled, logger.propagate, logger.filters[:])
        for name, logger in found.items()
    }


def threads() -> set[str]:
    """The running threads that are ours."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("aiohttp-observe")}


def make_task(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
    return asyncio.Task(coro, loop=loop, **kwargs)


def ignore_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    "customised", [False, True], ids=["an untouched process", "a process with its own hooks"]
)
async def test_everything_is_restored(customised: bool, registry: CollectorRegistry) -> None:
    loop = asyncio.get_running_loop()
    if customised:
        loop.set_task_factory(make_task)
        loop.set_exception_handler(ignore_failure)
    app, witness = application(), Witness()
    logs = Logs(stream=io.StringIO(), replace=True, level="DEBUG")
    setup_observability(app, metrics=Metrics(registry=registry), logs=logs, observers=[witness])
    before = surroundings()
    async with serving(app) as service:
        during = surroundings()
        await service.get("/hello")
        await service.get("/metrics")
        await witness.next()
    assert surroundings() == before
    await until(lambda: not threads(), "our threads to end")
    touched = {"exception handler", "root handlers", "root level", "record factory", "never awaited"}
    assert touched <= {name for name in before if during[name] != before[name]}


async def test_what_the_service_set_on_top_stays(registry: CollectorRegistry) -> None:
    """Hooks set after ours are not thrown away by putting back what was before ours."""
    loop, app = asyncio.get_running_loop(), application()
    handler, kept = logging.NullHandler(), logging.root.handlers[:]
    setup_observability(
        app, metrics=Metrics(registry=registry), logs=Logs(stream=io.StringIO(), replace=True)
    )
    async with serving(app):
        loop.set_exception_handler(ignore_failure)
        logging.root.addHandler(handler)
    try:
        assert loop.get_exception_handler() is ignore_failure
        assert logging.root.handlers == [*kept, handler]
    finally:
        logging.root.removeHandler(handler)


@pytest.mark.parametrize("ends", ["first one first", "last one first"])
async def test_two_applications_on_one_loop_restore_together(ends: str) -> None:
    """In whatever order they end, as long as one runs it is covered, and then all is as before."""
    before = surroundings()
    runners = []
    for _ in range(2):
        app = application()
        setup_observability(app, metrics=Metrics(registry=CollectorRegistry()))
        runners.append(web.AppRunner(app))
    for runner in runners:
        await runner.setup()
    for runner in runners if ends == "first one first" else reversed(runners):
        assert asyncio.get_running_loop().get_exception_handler() is not None
        assert logging.getLogRecordFactory() is not before["record factory"]
        await runner.cleanup()
    assert surroundings() == before
    await until(lambda: not threads(), "our threads to end")


async def test_a_start_up_that_fails_midway_restores_too(registry: CollectorRegistry) -> None:
    """The service's own resource fails to open, after ours have been opened."""

    async def broken(app: web.Application) -> AsyncIterator[None]:
        await connect()
        yield

    async def connect() -> None:
        raise ConnectionError("no database")

    app = application()
    logs = Logs(stream=io.StringIO(), replace=True)
    setup_observability(app, metrics=Metrics(registry=registry), logs=logs)
    app.cleanup_ctx.append(broken)
    before = surroundings()
    with pytest.raises(ConnectionError, match="no database"):
        async with serving(app):
            pass
    assert surroundings() == before
    await until(lambda: not threads(), "our threads to end")


async def test_a_nested_set_up_found_at_start_up_leaves_nothing(registry: CollectorRegistry) -> None:
    root, nested = application(), application()
    setup_observability(root, metrics=Metrics(registry=registry))
    setup_observability(nested, metrics=Metrics(registry=registry))
    root.add_subapp("/nested", nested)
    before = surroundings()
    with pytest.raises(RuntimeError):
        async with serving(root):
            pass
    assert surroundings() == before
    await until(lambda: not threads(), "our threads to end")


async def test_the_services_own_resources_are_still_observed(registry: CollectorRegistry) -> None:
    """Ours open first and close last, so that what the service starts and stops is within."""
    stream = io.StringIO()

    async def database(app: web.Application) -> AsyncIterator[None]:
        logging.getLogger("database").info("opened")
        yield
        logging.getLogger("database").info("closed")

    async def last(app: web.Application) -> None:
        logging.getLogger("database").info("forgotten")

    app = web.Application()
    app.cleanup_ctx.append(database)
    setup_observability(
        app, metrics=Metrics(registry=registry), logs=Logs(stream=stream, replace=True, access=False)
    )
    app.on_cleanup.append(last)
    async with serving(app):
        pass
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [line["message"] for line in lines if line["logger"] == "database"]
    assert told == ["opened", "closed", "forgotten"]


@pytest.mark.parametrize("error", [ConnectionError, asyncio.CancelledError], ids=["fails", "is cancelled"])
@pytest.mark.parametrize("where", ["first", "before ours", "after ours", "cleanup_ctx"])
async def test_a_clean_up_that_ends_early_restores_all_the_same(
    where: str, error: type[BaseException], registry: CollectorRegistry
) -> None:
    """What is registered after one that raises is not called any more, and ours is the last."""

    async def broken(app: web.Application) -> None:
        raise error

    async def broken_context(app: web.Application) -> AsyncIterator[None]:
        yield
        raise error

    app = application()
    if where == "before ours":
        app.on_cleanup.append(broken)
    logs = Logs(stream=io.StringIO(), replace=True)
    before = surroundings()
    setup_observability(app, metrics=Metrics(registry=registry), logs=logs, admin=Admin(port=0))
    if where == "after ours":
        app.on_cleanup.append(broken)
    if where == "cleanup_ctx":
        app.cleanup_ctx.append(broken_context)
    if where == "first":
        app.on_cleanup.insert(0, broken)
    with pytest.raises(error):
        async with serving(app):
            session = app[CLIENT_SESSION]
    assert session.closed
    assert surroundings() == before
    assert not threads()


async def test_a_clean_up_that_is_interrupted_restores_all_the_same(registry: CollectorRegistry) -> None:
    """As by a second Ctrl-C, while what the service's own clean-up has spawned won't stop."""
    may_stop, stopping = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        while not may_stop.is_set():
            with suppress(asyncio.CancelledError):
                await may_stop.wait()

    async def spawning(app: web.Application) -> None:
        spawn(stubborn())
        await asyncio.sleep(0)
        stopping.set()

    app = application()
    app.on_cleanup.append(spawning)
    before = surroundings()
    setup_observability(
        app, metrics=Metrics(registry=registry), logs=Logs(stream=io.StringIO(), replace=True)
    )
    runner = web.AppRunner(app)
    await runner.setup()
    cleaning = asyncio.create_task(runner.cleanup())
    await stopping.wait()
    await asyncio.sleep(0)
    cleaning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cleaning
    may_stop.set()
    assert surroundings() == before
    assert not threads()


async def test_the_service_may_still_take_away_what_cleans_up(registry: CollectorRegistry) -> None:
    called: list[str] = []

    async def unwanted(app: web.Application) -> None:
        called.append("unwanted")

    async def change_of_mind(app: web.Application) -> None:
        app.on_cleanup.remove(unwanted)

    app = application()
    setup_observability(app, metrics=Metrics(registry=registry))
    app.on_cleanup.append(unwanted)
    app.on_startup.append(change_of_mind)
    async with serving(app):
        pass
    assert not called


async def test_background_tasks_end_before_the_services_own_resources(registry: CollectorRegistry) -> None:
    order = []

    async def worker() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("worker")

    async def database(app: web.Application) -> AsyncIterator[None]:
        yield
        order.append("database")

    async def start(request: web.Request) -> web.Response:
        spawn(worker())
        return web.Response()

    app = web.Application()
    app.cleanup_ctx.append(database)
    app.router.add_get("/", start)
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(app) as service:
        await service.get("/")
    assert order == ["worker", "database"]


async def test_nothing_keeps_a_finished_application_alive() -> None:
    app = application()
    setup_observability(app)  # with the process's own registry, which stays
    async with serving(app) as service:
        await service.get("/hello")
        await service.get("/metrics")
    gone = weakref.ref(app)
    del app, service
    _cached_build_middleware.cache_clear()  # aiohttp keeps the latest handlers, for every application
    gc.collect()
    assert gone() is None


# Outside an application


async def test_the_tools_work_without_an_application() -> None:
    """A library may use them and not know who runs it."""
    bind(ignored=True)
    assert request_id() is None
    assert await spawn(asyncio.sleep(0, "done"), name="outside") == "done"
    assert take_snapshot() is not None
