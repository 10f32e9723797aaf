"""Failures on the edges: at start-up and shutdown, among other handlers, in threads and finalizers."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import gc
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import Failures, Metrics, setup_observability
from aiohttp_observe.exchange import Scope
from aiohttp_observe.incidents import Incidents
from tests.service import run_python, serving, until
from tests.test_failures import (
    PROVOKED,
    break_down,
    break_in_a_callback,
    counted,
    forget_to_await,
    lose,
    lose_a_task,
    told,
)

Context = dict[str, Any]
Handler = Callable[[asyncio.AbstractEventLoop, Context], Any]


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What earlier tests left to the collector is not counted here."""
    gc.collect()
    yield
    gc.collect()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's own hooks, without pytest's before them."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)


def application(registry: CollectorRegistry, **options: Any) -> web.Application:
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), logs=None, **options)
    return app


# When


@pytest.mark.parametrize("kind", sorted(PROVOKED))
@pytest.mark.parametrize("when", ["start-up", "shutdown", "clean-up"])
async def test_at_the_edges_of_its_life_a_service_hears_of_failures(
    kind: str, when: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async def provoke(app: web.Application) -> None:
        await PROVOKED[kind]()

    async def at_clean_up(app: web.Application) -> AsyncIterator[None]:
        yield
        await provoke(app)

    app = application(registry)
    if when == "start-up":
        app.on_startup.append(provoke)
    elif when == "shutdown":
        app.on_shutdown.append(provoke)
    else:
        app.cleanup_ctx.append(at_clean_up)
    async with serving(app):
        pass
    assert counted(registry) == {kind: 1}
    assert len(told(caplog)) == 1
    assert not hasattr(told(caplog)[0], "request_id")


# Other handlers on the loop


class Library:
    """Sets a handler of its own on the loop, which may pass on to the one that was there."""

    def __init__(self, *, passes_on: bool) -> None:
        self.called = 0
        self._loop = asyncio.get_running_loop()
        self._before = self._loop.get_exception_handler()
        self._passes_on = passes_on
        self._loop.set_exception_handler(self.handle)

    def handle(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self.called += 1
        if self._passes_on and self._before is not None:
            self._before(loop, context)


async def in_front_of(handler: Handler) -> None:
    await until(lambda: asyncio.get_running_loop().get_exception_handler() != handler, "ours in front")


@pytest.mark.parametrize("passes_on", [True, False])
async def test_a_handler_that_a_library_sets_later_hides_nothing_and_is_called_once(
    passes_on: bool, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    before = Library(passes_on=False)
    async with serving(application(registry)):
        libraries = []
        for _ in range(2):
            libraries.append(Library(passes_on=passes_on))
            await in_front_of(libraries[-1].handle)
        await lose_a_task()
    assert counted(registry) == {"task_exception": 1}
    assert len(told(caplog)) == 1
    expected = [1, 1, 1] if passes_on else [0, 0, 1]
    assert [library.called for library in (before, *libraries)] == expected
    assert asyncio.get_running_loop().get_exception_handler() == libraries[-1].handle
    await lose_a_task()  # what is left of ours in the chain only passes it on
    assert libraries[-1].called == 2
    assert counted(registry) == {"task_exception": 1}


async def test_a_handler_that_is_taken_back_is_not_called_any_more(registry: CollectorRegistry) -> None:
    loop = asyncio.get_running_loop()
    async with serving(application(registry)):
        ours = loop.get_exception_handler()
        library = Library(passes_on=True)
        await in_front_of(library.handle)
        loop.set_exception_handler(None)
        await until(lambda: loop.get_exception_handler() is not None, "ours in front")
        assert loop.get_exception_handler() == ours
        await lose_a_task()
    assert library.called == 0
    assert counted(registry) == {"task_exception": 1}
    assert loop.get_exception_handler() is None


async def test_handlers_that_come_and_go_do_not_pile_up() -> None:
    from aiohttp_observe.failures.loop import LoopHandler

    loop = asyncio.get_running_loop()
    watch = Failures().install(loop, Scope(), Incidents())
    for _ in range(100):
        Library(passes_on=True)
        watch.tick()
    assert len(LoopHandler.of(loop)._beneath) <= 10
    await break_in_a_callback()
    watch.close()
    assert LoopHandler.of(loop)._listeners == []


async def test_a_handler_that_reports_a_failure_of_its_own_is_heard(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    def report(loop: asyncio.AbstractEventLoop, context: Context) -> None:
        if context["message"] != "of its own":
            loop.call_exception_handler({"message": "of its own"})

    asyncio.get_running_loop().set_exception_handler(report)
    async with serving(application(registry)):
        asyncio.get_running_loop().call_exception_handler({"message": "the first"})
    assert counted(registry) == {"other": 2}
    assert [record.getMessage() for record in told(caplog)] == ["the first", "of its own"]


# Outside of the loop


class Broken:
    def __del__(self) -> None:
        raise LookupError("in __del__")


async def drop() -> None:
    Broken()
    gc.collect()


async def break_a_thread() -> None:
    thread = threading.Thread(target=break_down, name="breaker")
    thread.start()
    thread.join()


async def forget_an_executors_failure() -> None:
    future = asyncio.get_running_loop().run_in_executor(None, break_down)
    await asyncio.wait([future])
    del future
    gc.collect()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("provoke", "message"),
    [
        (drop, " Broken.__del__"),
        (break_a_thread, "Exception in thread breaker"),
        (forget_an_executors_failure, "Future exception was never retrieved"),
    ],
)
async def test_what_is_raised_outside_of_the_loop_is_told_and_counted(
    provoke: Callable[[], Any],
    message: str,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving(application(registry)):
        await provoke()
    assert counted(registry) == {"other": 1}
    (record,) = told(caplog)
    assert record.getMessage().endswith(message)
    assert isinstance(record.exc_info[1], LookupError)
    assert capsys.readouterr().err == ""
    assert sys.unraisablehook is sys.__unraisablehook__
    assert threading.excepthook is threading.__excepthook__


@pytest.mark.usefixtures("quiet")
async def test_an_exception_in_a_finalizer_has_the_ids_of_the_request_it_fell_in(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> web.Response:
        await drop()
        return web.Response()

    app = application(registry)
    app.router.add_get("/", handler)
    async with serving(app) as service:
        await service.get("/", headers={"X-Request-ID": "unlucky"})
    assert [record.request_id for record in told(caplog)] == ["unlucky"]


@pytest.mark.parametrize(("module", "name"), [(sys, "unraisablehook"), (threading, "excepthook")])
async def test_the_services_own_hooks_are_still_called(
    module: Any, name: str, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(module, name, own := called.append)
    async with serving(application(registry)):
        await (drop() if module is sys else break_a_thread())
    assert len(called) == 1
    called.clear()
    assert counted(registry) == {"other": 1}
    assert getattr(module, name) == own


@pytest.mark.usefixtures("quiet")
async def test_a_hook_set_later_stays_and_ours_only_passes_on_after_the_end(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for _ in range(2):
        async with serving(application(registry)):
            ours = threading.excepthook

            def later(args: Any, ours: Any = ours) -> None:
                called.append(args.exc_type)
                ours(args)

            monkeypatch.setattr(threading, "excepthook", later)
            await break_a_thread()
        assert threading.excepthook is later
    assert counted(registry) == {"other": 2}
    assert called == [LookupError] * 3


@pytest.mark.usefixtures("quiet")
async def test_a_thread_that_exits_is_no_failure(registry: CollectorRegistry) -> None:
    async with serving(application(registry)):
        thread = threading.Thread(target=sys.exit)
        thread.start()
        thread.join()
    assert counted(registry) == {}


@pytest.mark.parametrize("origins", [False, True])
@pytest.mark.usefixtures("quiet")
async def test_a_coroutine_never_awaited_is_told_once_where_filters_make_it_an_error(
    origins: bool,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unraisable: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(str(args.exc_value)))
    async with serving(application(registry, failures=Failures(origins=origins))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lose()  # type: ignore[unused-coroutine]
    assert counted(registry) == {"never_awaited": 1}
    assert len(told(caplog)) == 1
    assert [text.partition("\n")[0] for text in unraisable] == ["coroutine 'lose' was never awaited"]


async def test_a_coroutine_never_awaited_has_the_ids_of_its_request_though_our_logs_are_off(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> web.Response:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lose()  # type: ignore[unused-coroutine]
        return web.Response()

    app = application(registry)
    app.router.add_get("/", handler)
    async with serving(app) as service:
        await service.get("/", headers={"X-Request-ID": "unlucky"})
    assert [record.request_id for record in told(caplog)] == ["unlucky"]


@pytest.mark.usefixtures("quiet")
async def test_what_is_raised_outside_of_the_loop_can_be_left_out(registry: CollectorRegistry) -> None:
    hooks = sys.unraisablehook, threading.excepthook
    async with serving(application(registry, failures=Failures(outside_loop=False))):
        assert (sys.unraisablehook, threading.excepthook) == hooks


# Several at once


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no task groups")
async def test_all_that_a_task_group_lost_is_named_where_it_was_raised(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async def lose_several(number: int) -> None:
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
            for _ in range(number):
                group.create_task(lose())
            group.create_task(lose_more())

    async def lose_more() -> None:
        raise builtins.ExceptionGroup("more", [TimeoutError()])  # type: ignore[attr-defined,unused-ignore]

    async with serving(application(registry)):
        for number in (2, 100):
            task = asyncio.create_task(lose_several(number))
            await asyncio.wait([task])
            del task
            gc.collect()
    assert counted(registry) == {"task_exception": 2}
    few, many = sorted(told(caplog), key=lambda record: int(record.leaves_left_out))
    place = f"LookupError at {__file__.replace('_edges', '')}:{lose.__code__.co_firstlineno + 1} in lose"
    assert few.leaves[:2] == [place, place]
    assert few.leaves[2:] == ["TimeoutError"]
    assert (len(many.leaves), many.leaves_left_out) == (20, 81)
    assert few.exc_info[0].__name__ == "ExceptionGroup"


async def test_what_a_flood_left_out_is_told_though_nothing_follows(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_observe.flood._SECONDS", 0.1)
    async with serving(application(registry)):
        loop = asyncio.get_running_loop()
        for _ in range(10_000):
            loop.call_soon(break_down)
        await until(lambda: sum(counted(registry).values()) == 10_000, "the last failure")
        await until(lambda: told(caplog) and hasattr(told(caplog)[-1], "left_out"), "the summary")
        left_out = sum(getattr(record, "left_out", 0) for record in told(caplog))
        full = sum(record.exc_info is not None for record in told(caplog))
    assert left_out + full == 10_000
    summary = told(caplog)[-1]
    assert "callback LookupError in " in summary.getMessage()
    assert summary.getMessage().endswith(f"{summary.left_out} more like it were only counted")


# Where a coroutine was made


def make() -> Any:
    return lose()


async def test_the_line_that_made_a_coroutine_is_known_on_request(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """It is dropped elsewhere, and the filters stay as they were."""
    filters = list(warnings.filters)
    async with serving(application(registry, failures=Failures(origins=True))):
        coro = make()
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            del coro
    (record,) = told(caplog)
    assert record.created_at == f"{__file__}:{make.__code__.co_firstlineno + 1} in make"
    assert record.getMessage() == f"coroutine lose was never awaited, created at {record.created_at}"
    assert sys.get_coroutine_origin_tracking_depth() == 0
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("depth", [0, 3])
async def test_origin_tracking_of_the_service_stays_as_it_is(depth: int, registry: CollectorRegistry) -> None:
    sys.set_coroutine_origin_tracking_depth(depth)
    try:
        async with serving(application(registry, failures=Failures(origins=True))):
            assert sys.get_coroutine_origin_tracking_depth() == (depth or 1)
            await forget_to_await()
        assert sys.get_coroutine_origin_tracking_depth() == depth
    finally:
        sys.set_coroutine_origin_tracking_depth(0)


async def test_of_two_applications_the_first_to_go_leaves_the_other_its_origins() -> None:
    one, two = (application(CollectorRegistry(), failures=Failures(origins=True)) for _ in range(2))
    first, second = web.AppRunner(one), web.AppRunner(two)
    await first.setup()
    await second.setup()
    await first.cleanup()
    assert sys.get_coroutine_origin_tracking_depth() == 1
    await second.cleanup()
    assert sys.get_coroutine_origin_tracking_depth() == 0


def test_in_a_process_of_its_own_every_line_is_written_before_it_ends() -> None:
    """With the interpreter's own hooks, and through the JSON lines."""
    done = run_python(
        """
import asyncio, gc, sys, threading
from aiohttp import web
from aiohttp_observe import setup_observability

class Broken:
    def __del__(self):
        raise LookupError("in __del__")

def fail():
    raise ArithmeticError("in a thread")

async def start(app):
    Broken()
    for _ in range(1000):
        asyncio.get_running_loop().call_soon(fail)

async def main():
    app = web.Application()
    setup_observability(app)
    app.on_startup.append(start)
    runner = web.AppRunner(app)
    await runner.setup()
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    await runner.cleanup()

asyncio.run(main())
assert sys.unraisablehook is sys.__unraisablehook__
assert threading.excepthook is threading.__excepthook__
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count('"in __del__"') == 1
    assert "990 more like it were only counted" in done.stdout
    assert done.stdout.count("Exception in thread Thread-") >= 1


EAGER = """
import asyncio, gc
from aiohttp import ClientSession, web
from aiohttp_observe import setup_observability

async def fail():
    raise LookupError("lost")

async def handler(request):
    asyncio.ensure_future(fail())
    return web.Response()

async def main():
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with ClientSession() as session:
        for _ in range(3):
            async with session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/") as response:
                assert response.status == 200
    gc.collect()
    await runner.cleanup()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks before Python 3.12")
def test_a_task_that_failed_as_it_was_started_is_told() -> None:
    """Its coroutine can't be asked for on Python 3.12: https://github.com/python/cpython/issues/122332."""
    done = run_python(EAGER)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("LookupError: lost") == 3
