"""The servers that services really run on, and the Prometheus that really scrapes them."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from aiohttp_observe import Metrics, operation, setup_observability, spawn, timeit
from tests.real import require
from tests.service import PATIENCE, ROOT, Service, Witness, free_port, serving
from tests.test_failures import PROVOKED

DURATION = "http_server_request_duration_seconds"
SHOP = """
import asyncio, logging, os, socket, sys
from aiohttp import web
from aiohttp_observe import setup_observability

log = logging.getLogger("shop")

async def hello(request):
    log.info("hello from %d", os.getpid())
    return web.Response(text=str(os.getpid()))

async def many(request):
    for number in range(1000):
        log.info("%d", number)
    return web.Response()

async def crash(request):
    raise LookupError("crashed")

async def make_app():
    app = web.Application()
    setup_observability(app)
    app.router.add_get("/hello", hello)
    app.router.add_get("/many", many)
    app.router.add_get("/crash", crash)
    return app

if __name__ == "__main__":
    sock = socket.create_server(("127.0.0.1", 0))
    print(f"Listening at: http://127.0.0.1:{sock.getsockname()[1]} (1)", file=sys.stderr, flush=True)
    web.run_app(make_app(), sock=sock, print=None)
"""


class Program:
    """A program that says on its standard error where it listens; its output is read all along."""

    def __init__(self, arguments: list[str], folder: Path, **environment: str) -> None:
        path = os.pathsep.join([str(folder), str(ROOT)])
        self._process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )
        self.errors: list[str] = []
        self._output: list[str] = []
        self._told: queue.Queue[str] = queue.Queue()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read_output, args=[self._process.stdout]),
            threading.Thread(target=self._read_errors, args=[self._process.stderr]),
        ]
        for reader in self._readers:
            reader.start()

    def _read_output(self, stream: IO[str]) -> None:
        with stream:
            self._output.extend(stream)

    def _read_errors(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.errors.append(line)
                self._told.put(line)

    def address(self) -> str:
        """Where it listens, once it says so."""
        while True:
            line = self._told.get(timeout=PATIENCE)
            if "Listening at: " in line:
                return line.partition("Listening at: ")[2].split()[0]

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, list[dict[str, Any]]]:
        """Its exit status, and the lines it wrote."""
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        for reader in self._readers:
            reader.join()
        return status, [json.loads(line) for line in self._output]


@contextmanager
def running(arguments: list[str], folder: Path, **environment: str) -> Iterator[Program]:
    (folder / "shop.py").write_text(SHOP)
    # Gunicorn reads it from where it's started; older ones, which had no such socket, ignore the setting.
    (folder / "gunicorn.conf.py").write_text("control_socket_disable = True\n")
    program = Program(arguments, folder, **environment)
    try:
        yield program
    finally:
        program.end(signal.SIGKILL)


def get(url: str, **headers: str) -> str:
    with urlopen(Request(url, headers=headers), timeout=PATIENCE) as response:
        text: str = response.read().decode()
        return text


def total(text: str, name: str, /, **labels: str) -> float:
    """The sum of a sample's values over the labels that are not named."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(
        sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
    )


# web.run_app


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_run_app_writes_everything_before_it_ends(how: signal.Signals, tmp_path: Path) -> None:
    with running([sys.executable, "-W", "error", "shop.py"], tmp_path) as program:
        get(f"{program.address()}/many")
        status, lines = program.end(how)
    assert (status, program.errors[1:]) == (0, [])
    # On a busy machine the loop watch may have something to tell too.
    told = [line["message"] for line in lines if line["logger"] != "aiohttp_observe.loopwatch"]
    assert told == [*map(str, range(1000)), "GET /many 200"]


# gunicorn


def gunicorn(worker: str, *options: str) -> list[str]:
    own = ["--bind", "127.0.0.1:0", "--worker-class", worker]
    return [str(require("gunicorn")), *own, *options, "shop:make_app"]


@pytest.mark.parametrize("worker", ["GunicornWebWorker", "GunicornUVLoopWebWorker"])
def test_gunicorns_workers_are_observed(worker: str, tmp_path: Path) -> None:
    if "UVLoop" in worker:
        pytest.importorskip("uvloop")
    with running(gunicorn(f"aiohttp.{worker}"), tmp_path) as program:
        address = program.address()
        get(f"{address}/hello", **{"X-Request-ID": "mine"})
        with pytest.raises(HTTPError, match="500") as failed:
            get(f"{address}/crash", **{"X-Request-ID": "broken"})
        failed.value.close()
        scraped = get(f"{address}/metrics")
        status, lines = program.end()
    assert status == 0
    assert total(scraped, f"{DURATION}_count", http_route="/hello", http_response_status_code="200") == 1
    assert total(scraped, f"{DURATION}_count", http_route="/crash", error_type="LookupError") == 1
    hello, access, error, *_ = (line for line in lines if line["logger"] != "aiohttp_observe.loopwatch")
    assert (hello["request_id"], access["request_id"], error["request_id"]) == ("mine", "mine", "broken")
    assert hello["trace_id"] == access["trace_id"] != error["trace_id"]
    counted = Counter(line["message"] for line in lines if line["logger"] == "aiohttp_observe.access")
    assert counted == {"GET /hello 200": 1, "GET /crash 500": 1, "GET /metrics 200": 1}


def test_the_metrics_of_several_workers_are_added_up(tmp_path: Path) -> None:
    """With prometheus_client's multiprocess mode; whichever worker answers the scrape."""
    shared = tmp_path / "metrics"
    shared.mkdir()
    arguments = gunicorn("aiohttp.GunicornWebWorker", "--workers", "2")
    with running(arguments, tmp_path, PROMETHEUS_MULTIPROC_DIR=str(shared)) as program:
        address = program.address()
        workers, deadline = Counter[str](), time.monotonic() + PATIENCE
        while len(workers) < 2:  # until each has answered a request
            assert time.monotonic() < deadline, "one worker answers everything"
            workers[get(f"{address}/hello")] += 1
        scraped = [scraped_once(f"{address}/metrics", workers.total()) for _ in range(2)]
        status, _ = program.end()
    assert status == 0
    for text in scraped:
        assert total(text, f"{DURATION}_count", http_route="/hello") == workers.total()
        assert total(text, "http_server_active_requests") <= 2


def scraped_once(url: str, requests: int) -> str:
    """The page, once the last request has been counted: it is after its response was sent."""
    deadline = time.monotonic() + PATIENCE
    while True:
        text = get(url)
        if total(text, f"{DURATION}_count", http_route="/hello") >= requests or time.monotonic() > deadline:
            return text


# uvloop


def on_uvloop(scenario: Callable[[], Any]) -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(scenario(), 60))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


@timeit
async def look_up() -> None:
    with operation("looking"):
        await asyncio.sleep(0.001)


async def work(request: web.Request) -> web.Response:
    await look_up()
    return web.Response(text=str(await spawn(asyncio.sleep(0, 7), name="seven")))


async def provoke(request: web.Request) -> web.Response:
    await PROVOKED[request.match_info["kind"]]()
    return web.Response()


@asynccontextmanager
async def observed(registry: CollectorRegistry) -> AsyncIterator[tuple[Service, Witness]]:
    app, witness = web.Application(), Witness()
    app.router.add_get("/work", work)
    app.router.add_get("/provoke/{kind}", provoke)
    setup_observability(app, metrics=Metrics(registry=registry), observers=[witness])
    async with serving(app) as service:
        yield service, witness


def test_everything_works_on_uvloop(registry: CollectorRegistry) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler(), loop.get_task_factory()
        async with observed(registry) as (service, witness):
            answer = await service.get("/work", headers={"X-Request-ID": "mine"})
            exchange = await witness.next()
            assert (answer.status, answer.request_id, answer.text) == (200, "mine", "7")
            assert exchange.polls > 1
            assert exchange.duration is not None
            assert 0 < exchange.busy < exchange.duration
            scraped = (await service.get("/metrics")).text
        assert (loop.get_exception_handler(), loop.get_task_factory()) == before
        assert total(scraped, "async_operation_duration_seconds_count") == 2
        assert total(scraped, "asyncio_task_outcomes_total", name="seven", outcome="ok") == 1

    on_uvloop(scenario)


@pytest.mark.parametrize("kind", PROVOKED)
def test_failures_are_told_on_uvloop(
    kind: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with observed(registry) as (service, _):
            await service.get(f"/provoke/{kind}", headers={"X-Request-ID": "mine"})

    on_uvloop(scenario)
    (record,) = [record for record in caplog.records if record.name == "aiohttp_observe.failures"]
    assert (record.__dict__["kind"], record.__dict__["request_id"]) == (kind, "mine")
    assert registry.get_sample_value("asyncio_unhandled_total", {"kind": kind}) == 1


# Prometheus


async def scrape(registry: CollectorRegistry) -> str:
    """What the page says after some requests."""
    async with observed(registry) as (service, witness):
        for path in ("/work", "/nowhere"):
            await service.get(path)
            await witness.next()
        return (await service.get("/metrics")).text


def test_promtool_finds_nothing_wrong(registry: CollectorRegistry) -> None:
    promtool, scraped = require("promtool"), asyncio.run(scrape(registry))
    check = [str(promtool), "check", "metrics"]
    done = subprocess.run(check, input=scraped, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@contextmanager
def prometheus(target: int, folder: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes a port of this machine all the time."""
    program, port = require("prometheus"), free_port()
    (folder / "prometheus.yml").write_text(
        f"""
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
  - job_name: shop
    static_configs: [{{targets: ["127.0.0.1:{target}"]}}]
"""
    )
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield f"http://127.0.0.1:{port}/api/v1"
        finally:
            process.kill()
            process.wait()


async def ask(url: str, **query: str) -> list[dict[str, Any]]:
    """Prometheus's answer, once there is one."""
    deadline = time.monotonic() + PATIENCE
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            try:
                async with session.get(f"{url}?{urlencode(query)}") as response:
                    data = (await response.json())["data"]
            except (aiohttp.ClientError, KeyError):  # it is just starting
                data = []
            found: list[dict[str, Any]] = data["result"] if isinstance(data, dict) else data
            if found:
                return found
            await asyncio.sleep(0.1)
    pytest.fail(f"Prometheus doesn't know {query}")


async def test_prometheus_scrapes_it_and_leads_from_a_metric_to_a_trace(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    async with observed(registry) as (service, witness):
        await service.get("/work")
        trace_id = (await witness.next()).trace_id
        with prometheus(service.port, tmp_path) as api:
            (count,) = await ask(f"{api}/query", query=f'{DURATION}_count{{http_route="/work"}}')
            now = time.time()
            (exemplar,) = await ask(
                f"{api}/query_exemplars",
                query=f'{DURATION}_bucket{{http_route="/work"}}',
                start=str(now - 3600),
                end=str(now + 3600),
            )
    assert count["value"][1] == "1"
    assert count["metric"]["http_response_status_code"] == "200"
    assert [found["labels"] for found in exemplar["exemplars"]] == [{"trace_id": trace_id}]
