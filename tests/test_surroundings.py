"""Broken surroundings: requests are answered as ever, what is lost is counted, and the end comes in time."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    OBSERVABILITY,
    Admin,
    Exchange,
    Logs,
    LoopWatch,
    Metrics,
    Tracing,
    operation,
    setup_observability,
    take_snapshot,
)
from tests.service import PATIENCE, Service, Witness, run_python, serving, until
from tests.spans import Handler, Spans, ok

REQUESTS = 20


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@asynccontextmanager
async def observed(
    registry: CollectorRegistry, handler: Handler = ok, **pillars: Any
) -> AsyncIterator[tuple[Service, web.Application]]:
    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry), **{"logs": None, **pillars})
    async with serving(app) as service:
        yield service, app


async def served_well(service: Service) -> None:
    """That many requests at once are answered."""
    answers = await asyncio.gather(*(service.get("/") for _ in range(REQUESTS)))
    assert {answer.status for answer in answers} == {200}


def counted(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


# A collector


@contextmanager
def collector_that(how: str) -> Iterator[str]:
    """The endpoint of one that accepts, and then does nothing good."""
    stopping = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def serve() -> None:
            while not stopping.is_set():
                with contextlib.suppress(TimeoutError, socket.timeout, OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(1.0)
                        connection.recv(65536)
                        if how == "resets":
                            linger = struct.pack("ii", 1, 0)
                            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        else:
                            connection.sendall(b"SSH-2.0-not a collector\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stopping.set()
            thread.join()


@pytest.mark.parametrize("how", ["resets", "talks garbage"])
async def test_a_collector_gone_mad(
    how: str, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_observe.tracing.provider._EXPORT_SECONDS", 0.5)
    with collector_that(how) as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        async with observed(registry) as (service, _):
            await served_well(service)
    assert counted(registry, "aiohttp_observe_dropped_total", what="spans") == REQUESTS


# A log sink


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it takes /dev/full")
async def test_a_full_disk(registry: CollectorRegistry) -> None:
    full = Path("/dev/full").open("w")  # noqa: ASYNC230, SIM115 - closed below, with nothing in its buffer
    async with observed(registry, logs=Logs(stream=full, replace=True)) as (service, _):
        await served_well(service)
    full.close()
    assert counted(registry, "aiohttp_observe_dropped_total", what="log_lines") >= REQUESTS


# Observers


class Raising:
    def started(self, exchange: Exchange) -> None:
        raise LookupError

    def finished(self, exchange: Exchange) -> None:
        raise LookupError


async def test_an_observer_that_raises_on_every_call(registry: CollectorRegistry) -> None:
    witness = Witness()
    async with observed(registry, observers=[Raising(), witness]) as (service, _):
        await served_well(service)
        for _ in range(REQUESTS):
            await witness.next()
    failed = counted(registry, "aiohttp_observe_internal_errors_total", observer="Raising")
    assert failed == 2 * REQUESTS


class Hanging:
    def finished(self, exchange: Exchange) -> None:
        time.sleep(0.3)


async def test_an_observer_that_hangs_is_named(registry: CollectorRegistry) -> None:
    async with observed(registry, observers=[Hanging()], loop_watch=LoopWatch(threshold=0.05)) as (
        service,
        app,
    ):
        assert (await service.get("/")).status == 200
        incidents = app[OBSERVABILITY].incidents
        await until(lambda: incidents.to_dict()["blocked"], "the incident")
        block = incidents.to_dict()["blocked"][0]
    assert (Path(block["frame"]["file"]).name, block["frame"]["function"]) == (
        Path(__file__).name,
        "finished",
    )


# The wall clock


async def test_a_clock_that_is_set_back_makes_no_duration_negative(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans, log, hours = Spans(), io.StringIO(), 0
    ours = "aiohttp_observe.tracing"
    for name in ("opentelemetry.sdk.trace", f"{ours}.span", f"{ours}.operation"):
        monkeypatch.setattr(sys.modules[name], "time_ns", lambda: time.time_ns() - hours * 3_600_000_000_000)
    monkeypatch.setattr("aiohttp_observe.logs.access.time", lambda: time.time() - hours * 3600)

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal hours
        with operation("step"):
            hours += 2
            await asyncio.sleep(0.01)
        return web.Response()

    logs, tracing = Logs(stream=log, replace=True), Tracing(provider=spans.provider)
    async with observed(registry, handler, logs=logs, tracing=tracing) as (service, _):
        for _ in range(3):
            await service.get("/")
        ended = await spans.until(6)
    for span in ended:
        assert span.start_time is not None
        assert span.end_time is not None
        assert 0.01 < (span.end_time - span.start_time) / 1e9 < PATIENCE
    took = [json.loads(line)["duration_ms"] for line in log.getvalue().splitlines()]
    assert [10 < each < PATIENCE * 1000 for each in took] == [True] * 3


# What can't be shown


class Unspeakable:
    def __repr__(self) -> str:
        raise LookupError

    __str__ = __repr__


async def test_what_has_no_words_is_logged_and_shown(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async def waits(unspeakable: Unspeakable) -> None:
        await asyncio.Event().wait()

    async def handler(request: web.Request) -> web.StreamResponse:
        task = asyncio.create_task(waits(Unspeakable()), name="quiet")
        logging.getLogger("shop").warning("here is %s", Unspeakable(), extra={"what": Unspeakable()})
        await asyncio.sleep(0)
        shown = [info.name for info in take_snapshot().tasks]
        task.cancel()
        return web.Response(text=" ".join(shown))

    caplog.set_level("CRITICAL", "shop")
    async with observed(registry, handler) as (service, _):
        assert "quiet" in (await service.get("/")).text


# The disk of several processes

SEVERAL = """
import asyncio, os, shutil
from aiohttp import web
from aiohttp_observe import setup_observability
from tests.service import serving

async def ok(request):
    return web.Response()

async def main():
    app = web.Application()
    app.router.add_get("/{name}", ok)
    app.router.add_post("/{name}", ok)
    setup_observability(app, logs=None)
    async with serving(app) as service:
        statuses = [(await service.get("/a")).status]
        shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        statuses += [(await service.get("/a")).status for _ in range(20)]
        statuses += [(await service.request("POST", "/b")).status for _ in range(20)]
        scrapes = [await service.get("/metrics")]
        os.mkdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        scrapes += [await service.get("/metrics")]
        for scrape in scrapes:
            print(*sorted(set(statuses)), scrape.status, scrape.text, end="")

asyncio.run(main())
"""


def test_the_directory_of_several_processes_metrics_is_gone(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    done = run_python(SEVERAL, PROMETHEUS_MULTIPROC_DIR=str(shared))
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert line.startswith("200 503 503: PROMETHEUS_MULTIPROC_DIR isn't there any more")
    assert len(done.stdout.splitlines()) == 2
    assert "Error handling request" not in done.stderr


# Forks


FORKING = """
import asyncio, atexit, os, threading
from aiohttp import web
from aiohttp_observe import OBSERVABILITY, setup_observability
from aiohttp_observe.exchange import RANDOM
from tests.service import serving

async def ok(request):
    return web.Response()

async def main():
    app = web.Application()
    app.router.add_get("/", ok)
    setup_observability(app)
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
        flushing, child_has_ended = threading.Event(), threading.Event()

        def flush():
            with app[OBSERVABILITY].recorder._flushing:
                flushing.set()
                child_has_ended.wait()

        thread = threading.Thread(target=flush)
        thread.start()
        flushing.wait()
        child = os.fork()
        if not child:
            atexit._run_exitfuncs()  # the loop is the parent's: to go through its end would disturb it
            os.write(2, f"{RANDOM.getrandbits(128)}\\n".encode())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        os.write(2, f"{RANDOM.getrandbits(128)}\\n".encode())
        child_has_ended.set()
        thread.join()
        assert (await service.get("/")).status == 200

asyncio.run(main())
"""


def test_a_process_that_forks_while_it_serves_goes_on() -> None:
    done = run_python(f"import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n{FORKING}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"aiohttp_observe.access"') == 2
    assert len(set(done.stderr.split())) == 2, "parent and child draw the same"


CHILD = """
import asyncio, os
from aiohttp import web
from prometheus_client import REGISTRY
from aiohttp_observe import setup_observability
from tests.service import serving

def tasks():
    return {
        sample.labels["wait"]: sample.value
        for family in REGISTRY.collect() if family.name == "asyncio_tasks"
        for sample in family.samples
    }

async def in_child():
    app = web.Application()
    setup_observability(app, logs=None)
    async with serving(app):
        assert "event" not in tasks(), tasks()

async def main():
    app = web.Application()
    setup_observability(app, logs=None)
    async with serving(app):
        waiting = [asyncio.create_task(asyncio.Event().wait()) for _ in range(50)]
        await asyncio.sleep(0.05)
        assert tasks()["event"] == 50
        child = os.fork()
        if not child:
            asyncio.events._set_running_loop(None)
            asyncio.run(in_child())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        for task in waiting:
            task.cancel()

asyncio.run(main())
"""


def test_a_forked_child_does_not_count_its_parents_tasks() -> None:
    done = run_python(f"import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n{CHILD}")
    assert done.returncode == 0, done.stderr


IDS = """
import asyncio, os, random
from aiohttp import web
from aiohttp_observe import current_exchange, setup_observability
from tests.service import serving

async def ok(request):
    random.seed(7)
    exchange = current_exchange()
    return web.Response(text=f"{exchange.trace_id} {exchange.span_id}")

async def main(app):
    async with serving(app) as service:
        answers = [await service.get("/") for _ in range(2)]
        told = [answer.request_id for answer in answers]
        for _ in range(3):
            told.append((await service.get("/", headers={"X-Request-ID": "of-a-proxy"})).text)
    os.write(1, ("\\n".join(told) + "\\n").encode())

app = web.Application()
app.router.add_get("/", ok)
setup_observability(app, logs=None)
child = os.fork()
asyncio.run(main(app))
if child:
    os.waitpid(child, 0)
"""


def test_no_two_requests_have_the_same_id_though_workers_are_forked_and_random_is_seeded() -> None:
    done = run_python(IDS)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 2 * (2 + 3 * 2)


WITHOUT = """
import asyncio, os, sys, time
from aiohttp import web

def refuse(*arguments):
    raise OSError(22, "Invalid argument")

del os.register_at_fork, os.fork, time.pthread_getcpuclockid
sys.modules["resource"] = None
os.fchmod = refuse

from aiohttp_observe import Admin, LoopWatch, setup_observability
from tests.service import serving

async def block(request):
    time.sleep(0.2)
    return web.Response()

async def main(app):
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
        await asyncio.sleep(0.1)
        for path in ("/metrics", "/_tasks", "/_tasks/incidents", "/_tasks/requests", "/_tasks/tree"):
            answer = await service.get(path)
            assert answer.status == 200, path
            print(answer.text)

app = web.Application()
app.router.add_get("/", block)
setup_observability(app, admin=Admin(unix_socket=sys.argv[1]), loop_watch=LoopWatch(threshold=0.05))
asyncio.run(main(app))
"""


def test_what_only_some_systems_have_is_done_without(tmp_path: Path) -> None:
    """As on Windows, which has no forks, and on macOS, which has no mode of a socket that is open."""
    path = tmp_path / "console.sock"
    done = run_python(WITHOUT, str(path))
    assert done.returncode == 0, done.stderr
    assert f"task console at {path}" in done.stdout
    assert '"function":"block"' in done.stdout.replace(" ", "")
    assert "asyncio_loop_utilization_ratio " in done.stdout


# The clock


async def test_durations_are_those_of_a_clock_that_never_steps_back(registry: CollectorRegistry) -> None:
    """The wall clock may: only timestamps are taken from it."""
    witness = Witness()
    async with observed(registry, observers=[witness]) as (service, _):
        await service.get("/")
        exchange = await witness.next()
    assert exchange.duration is not None
    assert 0 < exchange.duration < PATIENCE
    assert abs(time.perf_counter() - exchange.started) < PATIENCE


# The end, without any


ENDING = """
import asyncio, sys
import aiohttp
from aiohttp import web
from aiohttp_observe import setup_observability

async def ok(request):
    return web.Response()

async def main():
    app = web.Application()
    app.router.add_get("/", ok)
    setup_observability(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        for _ in range(50):
            async with session.get(url) as response:
                await response.read()

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
sys.exit(3)
"""


def test_an_end_without_a_clean_up_writes_what_was_logged() -> None:
    done = run_python(f"import warnings; warnings.simplefilter('ignore')\n{ENDING}")
    assert done.returncode == 3, done.stderr
    assert done.stdout.count('"aiohttp_observe.access"') == 50
    assert os.linesep * 2 not in done.stdout


# A default executor full of calls that are stuck


async def test_the_end_waits_for_no_stuck_call_of_the_service(registry: CollectorRegistry) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    stuck, released = threading.Event(), threading.Event()
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))

    async def handler(request: web.Request) -> web.Response:
        asyncio.get_running_loop().run_in_executor(None, work)
        return web.Response()

    def work() -> None:
        stuck.wait(3 * PATIENCE)
        released.set()

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    try:
        pillars = {"admin": Admin(port=0), "tracing": Tracing(provider=provider)}
        async with observed(registry, handler, **pillars) as (service, _):
            await service.get("/")
        assert not released.is_set()
    finally:
        stuck.set()
    assert [span.name for span in exporter.get_finished_spans()] == ["GET /"]


# A process that may have no more threads


async def test_a_service_that_can_start_no_thread_is_served_and_ends(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def handler(request: web.Request) -> web.Response:
        time.sleep(0.15)  # noqa: ASYNC251 - a block
        return web.Response()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    async with observed(registry, handler, admin=Admin(port=0), tracing=Tracing()) as (service, _):
        assert (await service.get("/")).status == 200
        assert (await service.get("/_tasks")).status == 200
        assert (await service.get("/_tasks/profile?seconds=9")).status == 409
    assert "event loop blocks show as lag only: can't start new thread" in caplog.text
    lag = registry.get_sample_value("asyncio_loop_lag_seconds_sum")
    assert lag is not None
    assert lag > 0.1
