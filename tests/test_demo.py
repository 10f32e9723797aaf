"""The demo shows what the README promises, as real processes on real ports."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import IO, Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry
from yarl import URL

from aiohttp_observe import (
    Admin,
    Client,
    Failures,
    Logs,
    LoopWatch,
    Metrics,
    Tasks,
    Tracing,
    setup_observability,
)
from aiohttp_observe.redaction import SECRETS
from demo import mischief
from tests.real import require
from tests.service import PATIENCE, ROOT, serving, until

Line = dict[str, Any]
README = (ROOT / "README.rst").read_text()
OURS = ("AIOHTTP_OBSERVE_", "OTEL_")


class Demo:
    """A running process: the log lines it has written so far, and where its services are."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.process = process
        self.lines: list[Line] = []
        self.other_output: list[str] = []
        self._errors = errors
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            if text.startswith("{"):
                self.lines.append(json.loads(text))
            else:
                self.other_output.append(text)

    async def urls(self) -> tuple[str, str]:
        """The shop's and the inventory's, as the demo announces them."""
        line = await self.line(logger="demo")
        return line["shop"], line["inventory"]

    async def line(self, **wanted: Any) -> Line:
        """The first line with these fields, once it is there."""
        await until(lambda: self.having(**wanted) or self.process.poll() is not None, str(wanted))
        found = self.having(**wanted)
        assert found, self.errors()
        return found[0]

    def having(self, **wanted: Any) -> list[Line]:
        return [line for line in self.lines if wanted.items() <= line.items()]

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def end(self, number: signal.Signals) -> int:
        """Send the signal; the exit code, when the process and all that write to its output have ended."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), "a process of the demo has survived it"
        return code


@contextmanager
def running(*command: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> Iterator[Demo]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=cwd,
            env={**inherited, **(environment or {})},
        ) as process,
    ):
        demo = Demo(process, errors)
        try:
            yield demo
        finally:
            if process.poll() is None:
                demo.end(signal.SIGTERM)


def on_free_ports(rate: float, environment: Mapping[str, str] | None = None) -> AbstractContextManager[Demo]:
    """The demo, with ``rate`` requests of customers a second."""
    ports = ("--port", "0", "--inventory-port", "0", "--console-port", "0")
    return running("demo", *ports, "--rate", str(rate), environment=environment)


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """One demo for the tests that leave it as it was, without customers, so that each request is a test's."""
    with on_free_ports(rate=0) as demo:
        yield demo


@pytest.fixture
async def shop(demo: Demo) -> str:
    return (await demo.urls())[0]


@pytest.fixture
async def inventory(demo: Demo) -> str:
    return (await demo.urls())[1]


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def get(client: aiohttp.ClientSession, url: str) -> tuple[int, str, str]:
    """Status, body, and the request id that the response carries."""
    async with client.get(url) as response:
        return response.status, await response.text(), response.headers["X-Request-ID"]


async def tasks_of(
    client: aiohttp.ClientSession, shop: str, count: int, **query: str
) -> list[dict[str, Any]]:
    """The tasks that ``/_tasks`` shows for ``query``, once there are ``count``."""
    tasks: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while len(tasks) < count:
        assert loop.time() < deadline, f"waited in vain for {count} tasks {query}, there were {tasks}"
        async with client.get(f"{shop}/_tasks", params={"format": "json", **query}) as response:
            assert response.status == 200
            tasks = (await response.json())["tasks"]
    return tasks


async def answers(client: aiohttp.ClientSession, url: str, wanted: dict[str, Any]) -> None:
    """Wait until a server that is being started or reloaded answers ``wanted``."""
    answer: Any = None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while answer != wanted:
        assert loop.time() < deadline, f"waited in vain for {wanted}, the answer is {answer}"
        try:
            async with client.get(url) as response:
                answer = await response.json()
        except aiohttp.ClientError as exc:  # also a 500: aiohttp-devtools interrupts requests in progress
            answer = repr(exc)
        await asyncio.sleep(0.1)


@asynccontextmanager
async def waiting_for(client: aiohttp.ClientSession, url: str, request_id: str) -> AsyncIterator[None]:
    """Within the block, a request that isn't answered soon."""
    request = asyncio.ensure_future(client.get(url, headers={"X-Request-ID": request_id}))
    try:
        yield
    finally:
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)


def line_number(function: Callable[..., Any], text: str) -> int:
    """The line of ``function``'s file that holds ``text``."""
    assert isinstance(function, FunctionType)
    lines, first = inspect.getsourcelines(function)
    (offset,) = (offset for offset, line in enumerate(lines) if text in line)
    return first + offset


def said_by_promtool(metrics: str) -> tuple[int, str, str]:
    command = [str(require("promtool")), "check", "metrics"]
    done = subprocess.run(command, input=metrics, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


# What it shows


async def test_the_page_links_only_to_what_there_is(client: aiohttp.ClientSession, shop: str) -> None:
    status, page, _ = await get(client, f"{shop}/")
    assert status == 200
    links = set(re.findall(r'href="(.*?)"', page))
    assert {"/_tasks", "/metrics", "/orders/42", "/block", "/stuck", "/slow", "/leak", "/crash"} <= links
    for link in sorted(links - {"/stuck", "/slow"}):
        async with client.get(URL(shop).join(URL(link))) as response:
            assert response.status == (404 if link == "/nowhere" else 200), link


@pytest.mark.parametrize("service", ["shop", "inventory"])
async def test_the_metrics_of_each_service_pass_promtool(
    client: aiohttp.ClientSession, demo: Demo, service: str
) -> None:
    shop, inventory = await demo.urls()
    await get(client, f"{shop}/orders/7")
    await get(client, f"{shop}/nowhere")
    _, text, _ = await get(client, f"{shop if service == 'shop' else inventory}/metrics")
    assert said_by_promtool(text) == (0, "", "")


async def test_each_service_counts_its_own_requests(
    client: aiohttp.ClientSession, shop: str, inventory: str
) -> None:
    await get(client, f"{shop}/orders/8")
    _, of_shop, _ = await get(client, f"{shop}/metrics")
    _, of_inventory, _ = await get(client, f"{inventory}/metrics")
    assert 'http_route="/orders/{id}"' in of_shop
    assert 'http_route="/stock/{item}"' not in of_shop
    assert 'http_route="/stock/{item}"' in of_inventory
    assert 'http_route="/orders/{id}"' not in of_inventory


async def test_the_access_lines_of_both_services_tell_one_story(
    client: aiohttp.ClientSession, demo: Demo, shop: str
) -> None:
    _, _, request_id = await get(client, f"{shop}/orders/9")
    of_shop = await demo.line(**{"request_id": request_id, "http.route": "/orders/{id}"})
    of_inventory = await demo.line(**{"request_id": request_id, "http.route": "/stock/{item}"})
    own = await demo.line(request_id=request_id, logger="shop")
    assert re.fullmatch("[0-9a-f]{32}", of_shop["trace_id"])
    assert of_shop["trace_id"] == of_inventory["trace_id"] == own["trace_id"]
    assert of_shop["span_id"] != of_inventory["span_id"]
    assert of_shop["order"] == own["order"] == 9


async def test_one_request_is_one_trace_through_both_services(client: aiohttp.ClientSession) -> None:
    spans: list[Any] = []

    async def receive(request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.read())
        for resource in message.resource_spans:
            spans.extend(span for scope in resource.scope_spans for span in scope.spans)
        return web.Response()

    collector = web.Application()
    collector.router.add_post("/v1/traces", receive)
    async with serving(collector) as service:
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": service.url("/"), "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with on_free_ports(rate=0, environment=otel) as demo:
            await get(client, f"{(await demo.urls())[0]}/orders/10")
            await until(lambda: len(spans) >= 3, "three spans")
            assert await asyncio.to_thread(demo.end, signal.SIGTERM) == 0
    first, call, second = sorted(spans, key=lambda span: int(span.start_time_unix_nano))
    kinds = [span.SpanKind.Name(span.kind) for span in (first, call, second)]
    assert kinds == ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT", "SPAN_KIND_SERVER"]
    assert first.trace_id == call.trace_id == second.trace_id
    assert (first.parent_span_id, call.parent_span_id, second.parent_span_id) == (
        b"",
        first.span_id,
        call.span_id,
    )


async def test_the_worker_packs_what_was_ordered(
    client: aiohttp.ClientSession, demo: Demo, shop: str
) -> None:
    async with client.post(f"{shop}/orders/11") as response:
        assert response.status == 202
    packed = await demo.line(message="order packed", order=11)
    assert packed["task"] == "packer"
    (packer,) = await tasks_of(client, shop, 1, coro="pack_orders")
    assert (packer["name"], packer["wait"]["kind"]) == ("packer", "queue_get")


# The switches


async def test_crash_is_logged_counted_and_attributed(
    client: aiohttp.ClientSession, demo: Demo, shop: str
) -> None:
    _, _, request_id = await get(client, f"{shop}/crash")
    failure = await demo.line(request_id=request_id, logger="aiohttp_observe.failures")
    access = await demo.line(request_id=request_id, logger="aiohttp_observe.access")
    assert (failure["level"], failure["kind"], failure["coro"]) == ("ERROR", "task_exception", "send_receipt")
    assert failure["message"].startswith("Task exception was never retrieved: ")
    assert failure["trace_id"] == access["trace_id"]
    assert failure["exception"]["type"] == "ConnectionError"
    assert "in send_receipt" in failure["exception"]["stacktrace"]
    created = line_number(mischief.crash, "create_task")
    assert f"mischief.py:{created} in crash" in failure["created_at"]
    _, metrics, _ = await get(client, f"{shop}/metrics")
    assert re.search(r'^asyncio_unhandled_total\{kind="task_exception"\} [1-9]', metrics, re.MULTILINE)


async def test_stuck_shows_who_waits_where_and_for_what(client: aiohttp.ClientSession, shop: str) -> None:
    url = f"{shop}/stuck"
    async with waiting_for(client, url, "stuck-1"), waiting_for(client, url, "stuck-2"):
        tasks = await tasks_of(client, shop, 2, wait="lock", coro="RequestHandler*")
    (holder,) = await tasks_of(client, shop, 1, coro="rebuild")
    assert (holder["name"], holder["wait"]["kind"]) == ("rebuild-catalogue", "sleep")
    line = line_number(mischief.stuck, "async with catalogue")
    assert {task["request"]["id"] for task in tasks} == {"stuck-1", "stuck-2"}
    for task in tasks:
        assert task["state"] == "waiting"
        assert task["request"]["route"] == "/stuck"
        assert ("stuck", line) in [(frame["function"], frame["line"]) for frame in task["frames"]]


async def test_deadlock_is_named_in_the_verdict(client: aiohttp.ClientSession, shop: str) -> None:
    _, _, request_id = await get(client, f"{shop}/deadlock")
    tasks = await tasks_of(client, shop, 2, coro="update", wait="lock", request_id=request_id)
    _, text, _ = await get(client, f"{shop}/_tasks")
    assert sorted(task["id"] for task in tasks) in map(sorted, json.loads(text)["deadlocks"])
    (named, *_) = [line for line in json.loads(text)["verdict"] if line.startswith("deadlock: ")]
    assert set(named.removeprefix("deadlock: ").split(" → ")) == {"count-stock", "set-prices"}


async def test_slow_shows_both_services_at_work_for_one_request(
    client: aiohttp.ClientSession, shop: str
) -> None:
    async with waiting_for(client, f"{shop}/slow", "slow-1"):
        tasks = await tasks_of(client, shop, 2, request_id="slow-1")
    slow, recount = sorted(tasks, key=lambda task: str(task["wait"]["kind"]))
    assert (slow["wait"]["kind"], recount["wait"]["kind"]) == ("http_client", "sleep")
    assert (slow["operation"], slow["request"]["route"]) == ("wait for recount", "/slow")
    assert (recount["operation"], recount["request"]["route"]) == ("recount", "/stock/{item}/recount")
    assert slow["trace_id"] == recount["trace_id"]


async def test_leak_shows_the_tasks_that_outlive_their_request(
    client: aiohttp.ClientSession, demo: Demo, shop: str
) -> None:
    _, _, request_id = await get(client, f"{shop}/leak")
    await demo.line(request_id=request_id, logger="aiohttp_observe.access")
    tasks = await tasks_of(client, shop, 3, coro="poll_carrier", request_id=request_id)
    assert [(task["orphan"], task["wait"]["kind"]) for task in tasks] == [(True, "sleep")] * 3


async def test_block_names_the_line_that_blocks(client: aiohttp.ClientSession, demo: Demo, shop: str) -> None:
    _, _, request_id = await get(client, f"{shop}/block")
    line = await demo.line(request_id=request_id, logger="aiohttp_observe.loopwatch")
    assert "render_invoice" in line["message"]
    assert f"mischief.py:{line_number(mischief.render_invoice, 'time.sleep')}" in line["message"]
    assert len(demo.having(request_id=request_id, logger="aiohttp_observe.loopwatch")) == 1
    _, metrics, _ = await get(client, f"{shop}/metrics")
    assert re.search(r"^asyncio_loop_blocked_total [1-9]", metrics, re.MULTILINE)


# Its start and its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_cleanly_whatever_is_going_on(
    client: aiohttp.ClientSession, number: signal.Signals
) -> None:
    with on_free_ports(rate=20) as demo:
        shop, _ = await demo.urls()
        await demo.line(message="order packed")  # by a customer
        await get(client, f"{shop}/leak")
        await get(client, f"{shop}/crash")
        stuck, slow = (waiting_for(client, f"{shop}/{name}", name) for name in ("stuck", "slow"))
        async with stuck, slow:
            await tasks_of(client, shop, 1, request_id="stuck", wait="lock")
            await tasks_of(client, shop, 1, request_id="slow", wait="http_client")
            assert await asyncio.to_thread(demo.end, number) == 0
        assert demo.errors() == ""
    assert demo.other_output == []


async def test_a_port_in_use_is_said_plainly(shop: str) -> None:
    with running(
        "demo", "--port", str(URL(shop).port), "--inventory-port", "0", "--console-port", "0"
    ) as second:
        assert await asyncio.to_thread(second.process.wait, PATIENCE) == 1
        assert re.fullmatch(r".*address already in use.*--help\n", second.errors())


def test_on_a_terminal_it_greets_and_logs_text() -> None:
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "demo",
        "--port",
        "0",
        "--inventory-port",
        "0",
        "--console-port",
        "0",
        "--rate",
        "20",
    ]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT) as process:
        os.close(theirs)
        shown = ""
        while not re.search("INFO +shop: order looked up ", shown):
            shown += os.read(ours, 10_000).decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert shown.index("/_tasks") < shown.index("Ctrl-C") < shown.index("order looked up")
    assert '{"timestamp"' not in shown


async def test_it_runs_under_aiohttp_devtools_and_reloads(
    client: aiohttp.ClientSession, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    copy = shutil.copytree(ROOT / "demo", tmp_path / "demo", ignore=shutil.ignore_patterns("__pycache__"))
    port, other = unused_tcp_port_factory(), unused_tcp_port_factory()
    command = ("aiohttp_devtools", "runserver", "demo", "-p", str(port), "--aux-port", str(other))
    with running(*command, cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)}) as adev:
        url = f"http://127.0.0.1:{port}/orders/12"
        await answers(client, url, {"order": 12, "item": "chair", "in_stock": 12})
        await adev.line(logger="aiohttp_observe.access", order=12)
        shop = copy / "shop.py"
        shop.write_text(shop.read_text().replace('("chair", ', '("lamp", '))
        await answers(client, url, {"order": 12, "item": "lamp", "in_stock": 40})


# The README says what is true


async def test_its_ten_lines_are_the_demos_own_file_and_work() -> None:
    from demo import hello  # here: it makes its application when imported

    before_line_35 = "".join(README.splitlines(keepends=True)[:34])
    assert textwrap.indent(inspect.getsource(hello), "    ") in before_line_35
    async with serving(hello.app) as service:
        answer = await service.get("/hello/you")
        assert json.loads(answer.text) == {"hello": "you"}
        assert answer.request_id
        assert 'http_route="/hello/{name}"' in (await service.get("/metrics")).text
        assert (await service.get("/_tasks")).status == 200


async def test_its_observer_hears_of_slow_requests(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(1.05)
        return web.Response()

    (block,) = re.findall(r"^    import logging\n.*?^(?=\S)", README, re.MULTILINE | re.DOTALL)
    app = web.Application()
    app.router.add_get("/slow", slow)
    wiring = {"app": app, "setup_observability": partial(setup_observability, metrics=None)}
    exec(textwrap.dedent(block), wiring)
    async with serving(app) as service:
        await service.get("/slow")
        await until(lambda: "/slow took 1." in caplog.text, "the observer's line")


def test_its_options_are_all_there_are_with_their_defaults() -> None:
    kinds = (Metrics, Logs, Tracing, Failures, Tasks, LoopWatch, Client, Admin)
    known = {kind.__name__: kind for kind in kinds}
    rows = re.findall(r"^``((\w+)\((?:(\w+)=.+)?\))`` ", README, re.MULTILINE)
    for written, kind, _ in rows:
        assert eval(written, {**known, "SECRETS": SECRETS}) == known[kind](), written
    assert [(kind, name) for _, kind, name in rows if name] == [
        (kind.__name__, option.name) for kind in kinds for option in dataclasses.fields(kind)
    ]
    assert {kind for _, kind, _ in rows} == set(known)


def test_it_renders_on_a_package_index() -> None:
    """With its change log, as setup.cfg puts them together, and without what an index refuses."""
    docutils = pytest.importorskip("docutils.core")
    text = f"{README}\n{(ROOT / 'CHANGES.rst').read_text()}"
    strict = {"report_level": 1, "halt_level": 2, "raw_enabled": False, "file_insertion_enabled": False}
    assert docutils.publish_string(text, writer="html5", settings_overrides=strict)
