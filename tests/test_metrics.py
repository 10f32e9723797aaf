"""What Prometheus scrapes: the names, labels and limits of the contract, and never at the loop's cost."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from aiohttp_observe import (
    OBSERVABILITY,
    Admin,
    Exchange,
    Metrics,
    client_session,
    operation,
    setup_observability,
    spawn,
    timeit,
)
from tests.service import Answer, Service, Witness, run_python, serving, until

DURATION = "http_server_request_duration_seconds"
OPERATION = "async_operation_duration_seconds"
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
CONTRACT = {
    "http_server_request_duration_seconds": (
        "histogram",
        {"http_request_method", "http_route", "http_response_status_code", "error_type"},
    ),
    "http_server_active_requests": ("gauge", {"http_request_method"}),
    "http_server_request_busy_seconds": ("histogram", {"http_request_method", "http_route"}),
    "http_server_abandoned_seconds": ("counter", {"http_route"}),
    "http_server_request_body_size_bytes": ("histogram", {"http_request_method", "http_route"}),
    "http_server_response_body_size_bytes": ("histogram", {"http_request_method", "http_route"}),
    "http_client_request_duration_seconds": (
        "histogram",
        {"http_request_method", "server_address", "server_port", "http_response_status_code", "error_type"},
    ),
    "http_client_phase_seconds": ("histogram", {"server_address", "phase"}),
    "asyncio_tasks": ("gauge", {"state", "wait"}),
    "asyncio_task_outcomes": ("counter", {"name", "outcome"}),
    "asyncio_task_restarts": ("counter", {"name"}),
    "asyncio_unhandled": ("counter", {"kind"}),
    "asyncio_loop_lag_seconds": ("histogram", set()),
    "asyncio_loop_blocked_seconds": ("counter", set()),
    "asyncio_loop_blocked": ("counter", set()),
    "asyncio_loop_utilization_ratio": ("gauge", set()),
    "async_operation_duration_seconds": ("histogram", {"operation", "outcome"}),
    "aiohttp_observe_internal_errors": ("counter", {"observer"}),
}
"""Names as the parsers give them: counters without ``_total``."""


@pytest.fixture
def witness() -> Witness:
    return Witness()


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


def application(registry: CollectorRegistry, *observers: object, **limits: Any) -> web.Application:
    app = web.Application()
    app.router.add_get("/hello", hello)
    setup_observability(app, metrics=Metrics(registry=registry, **limits), observers=observers)
    return app


def families(answer: Answer) -> dict[str, Metric]:
    assert answer.status == 200
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def series(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """The values of one sample name, by their sorted label values' order of name."""
    samples = [sample for family in registry.collect() for sample in family.samples if sample.name == name]
    return {tuple(sample.labels[key] for key in sorted(sample.labels)): sample.value for sample in samples}


def label_values(registry: CollectorRegistry, name: str, label: str) -> set[str]:
    samples = [sample for family in registry.collect() for sample in family.samples if sample.name == name]
    return {sample.labels[label] for sample in samples}


# The contract's table


class Broken:
    def finished(self, exchange: Exchange) -> None:
        raise LookupError


async def fail_once() -> None:
    """As a worker, which is started again."""
    runs = []

    async def work() -> None:
        runs.append(True)
        if len(runs) == 1:
            raise LookupError

    await spawn(work, restart="on-failure", backoff=(0.001, 0.001))


async def do_everything(request: web.Request) -> web.Response:
    """Something for each line of the table."""

    async def lose() -> None:
        raise LookupError

    async with client_session() as session, session.get(request.url.with_path("/hello")) as response:
        await response.read()
    with operation("looking"):
        await spawn(asyncio.sleep(0), name="sleeper")
    await fail_once()
    asyncio.get_running_loop().call_exception_handler({"message": "a failure"})
    time.sleep(0.25)  # noqa: ASYNC251 - what the loop watch is there for
    return web.Response()


async def waste(request: web.Request) -> web.Response:
    await asyncio.sleep(0.5)
    return web.Response()


async def test_every_line_of_the_contract_is_there(registry: CollectorRegistry, witness: Witness) -> None:
    app = application(registry, Broken(), witness)
    app.router.add_post("/everything", do_everything)
    app.router.add_get("/waste", waste)
    async with serving(app) as service:
        await service.request("POST", "/everything", data=b"a body")
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(service.get("/waste"), 0.05)
        while (await witness.next()).route != "/waste":
            pass
        scraped = await service.get("/metrics")
        await until(lambda: series(registry, "asyncio_loop_blocked_total")[()], "the block to be told")
        scraped = await service.get("/metrics")
    found = {
        name: (family.type, set().union(*(sample.labels for sample in family.samples)) - {"le"})
        for name, family in families(scraped).items()
    }
    assert {name: found.get(name) for name in CONTRACT} == CONTRACT


async def test_nothing_is_there_that_the_contract_does_not_know(registry: CollectorRegistry) -> None:
    async with serving(application(registry)) as service:
        names = set(families(await service.get("/metrics")))
    creation_times = {name for name in names if name.endswith("_created")}
    assert names - creation_times == {*CONTRACT, "aiohttp_observe_dropped"}


async def test_a_request_is_measured(registry: CollectorRegistry, witness: Witness) -> None:
    async with serving(application(registry, witness)) as service:
        await service.get("/hello")
        exchange = await witness.next()
    labels = {"http_request_method": "GET", "http_route": "/hello"}
    ended = {**labels, "http_response_status_code": "200", "error_type": ""}
    value = registry.get_sample_value
    assert value(f"{DURATION}_count", ended) == 1
    assert value(f"{DURATION}_sum", ended) == pytest.approx(exchange.duration)
    assert value("http_server_request_busy_seconds_sum", labels) == pytest.approx(exchange.busy)
    assert value("http_server_response_body_size_bytes_sum", labels) == 5
    assert value("http_server_request_body_size_bytes_sum", labels) is None, "there was none"


async def test_active_requests_come_and_go(registry: CollectorRegistry, witness: Witness) -> None:
    finish = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await finish.wait()
        return web.Response()

    def active() -> float | None:
        return registry.get_sample_value("http_server_active_requests", {"http_request_method": "POST"})

    app = application(registry, witness)
    app.router.add_post("/wait", wait)
    async with serving(app) as service:
        asking = [asyncio.create_task(service.request("POST", "/wait")) for _ in range(3)]
        await until(lambda: len(witness.begun) == 3, "three requests to begin")
        assert active() == 3
        finish.set()
        await asyncio.gather(*asking)
        for _ in range(3):
            await witness.next()
        assert active() == 0


async def test_all_the_servers_metrics_are_zero_again_however_requests_end(
    registry: CollectorRegistry, witness: Witness
) -> None:
    async def crash(request: web.Request) -> web.Response:
        raise LookupError

    app = application(registry, witness)
    app.router.add_get("/crash", crash)
    async with serving(app) as service:
        for path in ("/hello", "/crash", "/nowhere"):
            await service.get(path)
            await witness.next()
        await service.exchange_bytes(b"GARBAGE\r\n\r\n")
        await witness.next()
    assert set(series(registry, "http_server_active_requests").values()) == {0}


# Cardinality


async def test_hostile_paths_make_one_series(registry: CollectorRegistry, witness: Witness) -> None:
    async with serving(application(registry, witness)) as service:
        for number in range(50):
            await service.get(f"/{number}?{number}=x")
            await witness.next()
    assert list(series(registry, f"{DURATION}_count").values()) == [50]
    assert label_values(registry, f"{DURATION}_count", "http_route") == {"_unmatched"}


async def test_hostile_methods_make_one_series(registry: CollectorRegistry, witness: Witness) -> None:
    async with serving(application(registry, witness)) as service:
        for number in range(50):
            await service.request(f"METHOD{number}", "/hello")
            await witness.next()
        for method in ("PROPFIND", "LINK", "get"):
            await service.exchange_bytes(
                f"{method} /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            )
            await witness.next()
    assert label_values(registry, f"{DURATION}_count", "http_request_method") == {"_OTHER"}
    assert label_values(registry, "http_server_active_requests", "http_request_method") == {"_OTHER"}


async def test_hostile_hosts_and_headers_make_no_series(
    registry: CollectorRegistry, witness: Witness
) -> None:
    async with serving(application(registry, witness)) as service:
        for number in range(50):
            headers = {
                "Host": f"host-{number}.example",
                "User-Agent": str(number),
                "X-Forwarded-For": "1.1.1.1",
            }
            await service.get("/hello", headers=headers)
            await witness.next()
    assert list(series(registry, f"{DURATION}_count").values()) == [50]


async def test_routes_beyond_the_limit_become_other(registry: CollectorRegistry, witness: Witness) -> None:
    app = application(registry, witness, max_routes=3)
    for number in range(10):
        app.router.add_get(f"/route/{number}", hello)
    async with serving(app) as service:
        for _ in range(2):
            for number in range(10):
                await service.get(f"/route/{number}")
                await witness.next()
    expected = {"/route/0", "/route/1", "/route/2", "_other"}
    assert label_values(registry, f"{DURATION}_count", "http_route") == expected
    assert label_values(registry, "http_server_request_busy_seconds_count", "http_route") == expected
    assert sum(series(registry, f"{DURATION}_count").values()) == 20


async def test_exception_types_beyond_the_limit_become_other(
    registry: CollectorRegistry, witness: Witness
) -> None:
    async def crash(request: web.Request) -> web.Response:
        raise type(f"Error{request.match_info['number']}", (Exception,), {})

    app = application(registry, witness, max_names=2)
    app.router.add_get("/crash/{number}", crash)
    async with serving(app) as service:
        for number in range(6):
            await service.get(f"/crash/{number}")
            await witness.next()
    assert label_values(registry, f"{DURATION}_count", "error_type") == {"Error0", "Error1", "_other"}
    assert sum(series(registry, f"{DURATION}_count").values()) == 6


async def test_our_own_values_take_no_room_and_need_none(
    registry: CollectorRegistry, witness: Witness
) -> None:
    async def crash(request: web.Request) -> web.Response:
        raise LookupError

    async def linger(request: web.Request) -> web.Response:
        await until(lambda: request.transport is None, "the client to leave")
        return web.Response()

    app = application(registry, witness, max_routes=2, max_names=1)
    app.router.add_get("/crash", crash)
    app.router.add_get("/linger", linger)
    async with serving(app) as service:
        await service.get("/crash")
        await service.get("/nowhere")
        _, writer = await service.connect()
        writer.write(b"GET /linger HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: len(app[OBSERVABILITY].recorder.in_flight) == 1, "the request")
        writer.close()
        for _ in range(3):
            await witness.next()
    assert label_values(registry, f"{DURATION}_count", "http_route") == {"/crash", "/linger", "_unmatched"}
    errors = label_values(registry, f"{DURATION}_count", "error_type")
    assert errors == {"", "LookupError", "client_disconnected"}


async def test_statuses_that_http_does_not_know_use_up_no_names(
    registry: CollectorRegistry, witness: Witness
) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.match_info["status"] == "crash":
            raise LookupError
        return web.Response(status=int(request.match_info["status"]))

    app = application(registry, witness, max_names=2)
    app.router.add_get("/answer/{status}", answer)
    async with serving(app) as service:
        for status in (600, 601, 602, "crash"):
            await service.get(f"/answer/{status}")
            await witness.next()
    assert label_values(registry, f"{DURATION}_count", "error_type") == {"_other", "LookupError"}


async def test_names_beyond_the_limit_become_other(registry: CollectorRegistry) -> None:
    async def name_many(request: web.Request) -> web.Response:
        for number in range(10):
            with operation(f"operation {number}"):
                await spawn(asyncio.sleep(0), name=f"task {number}")
        return web.Response()

    app = application(registry, max_names=2)
    app.router.add_get("/many", name_many)
    async with serving(app) as service:
        await service.get("/many")
    operations = {"operation 0", "operation 1", "_other"}
    assert label_values(registry, f"{OPERATION}_count", "operation") == operations
    assert label_values(registry, "asyncio_task_outcomes_total", "name") == {"task 0", "task 1", "_other"}


async def test_hosts_beyond_the_limit_become_other(registry: CollectorRegistry) -> None:
    """Ports too: a host that isn't told apart has none."""

    async def call_many(request: web.Request) -> web.Response:
        async with client_session() as session:
            for number in range(2, 8):
                url = request.url.with_path("/hello").with_host(f"127.0.0.{number}")
                await (await session.get(url)).read()
        return web.Response()

    app = application(registry, max_hosts=2)
    app.router.add_get("/many", call_many)
    async with serving(app, host="0.0.0.0") as service:
        await service.get("/many")
    name = "http_client_request_duration_seconds_count"
    hosts = {"127.0.0.2", "127.0.0.3", "_other"}
    assert label_values(registry, name, "server_address") == hosts
    assert label_values(registry, "http_client_phase_seconds_count", "server_address") == hosts
    assert {labels[-2:] for labels in series(registry, name) if "_other" in labels} == {("_other", "")}


# The page


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_the_page_is_what_prometheus_client_makes_of_it(
    accept: str, registry: CollectorRegistry
) -> None:
    """Byte for byte, though its samples are made one by one."""
    registry.set_target_info({"service": 'a "shop"'})
    counter = Counter("jobs", "Jobs\n of a \\ kind", ["kind"], registry=registry)
    for number in range(300):
        counter.labels(f'{number} "\n\\').inc(number, {"trace_id": "1"})
    Gauge("level", "No labels", registry=registry).set(1.5)
    Histogram("took", "Seconds", ["what"], registry=registry).labels("é").observe(0.2, {"trace_id": "2"})
    Info("build", "Version", registry=registry).info({"version": "1"})
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), loop_watch=None, tasks=None)
    async with serving(app) as service:
        page = (await service.get("/metrics", headers={"Accept": accept})).text
        encode, _ = choose_encoder(accept)
        assert _of_the_service(page) == _of_the_service(encode(registry).decode())


def _of_the_service(page: str) -> list[str]:
    """Without what the scrape itself has changed."""
    return [line for line in page.splitlines() if "http_server_" not in line]


async def test_the_text_format_is_the_default(registry: CollectorRegistry) -> None:
    async with serving(application(registry)) as service:
        answer = await service.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert DURATION in families(answer)


async def test_openmetrics_is_negotiated_and_valid(registry: CollectorRegistry, witness: Witness) -> None:
    async with serving(application(registry, witness)) as service:
        await service.get("/hello")
        await witness.next()
        answer = await service.get("/metrics", headers=OPENMETRICS)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    parsed = parse_openmetrics(answer.text)  # type: ignore[no-untyped-call]
    names = {family.name for family in parsed}
    assert DURATION in names


@pytest.mark.parametrize(
    "accept",
    ["application/openmetrics-text;version=abc", "text/plain;version=", ";;,,=", "*/*;q=x", "\xff"],
)
async def test_a_scrapers_odd_wishes_are_answered_with_a_format_it_may_take(
    accept: str, registry: CollectorRegistry
) -> None:
    async with serving(application(registry)) as service:
        answer = await service.get("/metrics", headers={"Accept": accept})
    assert answer.status == 200
    assert DURATION in answer.text


def exemplars(answer: Answer) -> list[dict[str, str]]:
    parsed = parse_openmetrics(answer.text)  # type: ignore[no-untyped-call]
    samples = [sample for family in parsed if family.name == DURATION for sample in family.samples]
    return [sample.exemplar.labels for sample in samples if sample.exemplar]


async def test_a_requests_exemplar_is_its_trace(registry: CollectorRegistry, witness: Witness) -> None:
    async with serving(application(registry, witness)) as service:
        await service.get("/hello")
        exchange = await witness.next()
        assert exemplars(await service.get("/metrics", headers=OPENMETRICS)) == [
            {"trace_id": exchange.trace_id}
        ]


async def test_a_request_that_was_not_sampled_leaves_no_exemplar(
    registry: CollectorRegistry, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with serving(application(registry, witness)) as service:
        await service.get("/hello")
        assert not (await witness.next()).sampled
        assert exemplars(await service.get("/metrics", headers=OPENMETRICS)) == []


async def test_the_services_own_metrics_are_on_the_page(registry: CollectorRegistry) -> None:
    Counter("orders", "Orders taken", registry=registry).inc(3)
    async with serving(application(registry)) as service:
        assert families(await service.get("/metrics"))["orders"].samples[0].value == 3


async def test_the_page_can_be_elsewhere(registry: CollectorRegistry) -> None:
    async with serving(application(registry, path="/internal/metrics")) as service:
        assert (await service.get("/internal/metrics")).status == 200
        assert (await service.get("/metrics")).status == 404


async def test_the_page_can_be_nowhere(registry: CollectorRegistry, witness: Witness) -> None:
    """For those who push, or serve the registry themselves: measured it is all the same."""
    async with serving(application(registry, witness, path=None)) as service:
        assert (await service.get("/metrics")).status == 404
        await witness.next()
    assert sum(series(registry, f"{DURATION}_count").values()) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "Bearer secret-token"}, 200)],
    ids=["no token", "a wrong token", "the token"],
)
async def test_the_page_can_require_the_token(
    headers: dict[str, str], status: int, registry: CollectorRegistry
) -> None:
    app = web.Application()
    setup_observability(
        app,
        metrics=Metrics(registry=registry, require_token=True),
        admin=Admin(token="secret-token"),
    )
    async with serving(app) as service:
        answer = await service.get("/metrics", headers=headers)
    assert answer.status == status
    assert (DURATION in answer.text) == (status == 200)


class Waiting(Collector):
    """A collector that takes until somebody on the event loop lets it go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        self.begun.set()
        assert self.go_on.wait(10), "the loop was held while the registry was collected"
        yield GaugeMetricFamily("waited", "Waited", value=1)


async def test_the_loop_goes_on_while_metrics_are_collected(registry: CollectorRegistry) -> None:
    waiting = Waiting()
    registry.register(waiting)
    async with serving(application(registry)) as service:
        scraping = asyncio.create_task(service.get("/metrics"))
        await until(waiting.begun.is_set, "the scrape to begin")
        assert (await service.get("/hello")).status == 200
        waiting.go_on.set()
        assert "waited" in families(await scraping)


async def test_the_loop_goes_on_while_ten_thousand_series_are_encoded(registry: CollectorRegistry) -> None:
    """Rounds of the loop, counted while one scrape is under way: on the loop there would be two at most.

    How many depends on the machine; how long the loop is held is for the benchmarks to say.
    """
    gauge = Gauge("many", "Many", ["number"], registry=registry)
    for number in range(10_000):
        gauge.labels(str(number)).set(number)
    app = application(registry)
    async with serving(app) as service:
        rounds, scraping = 0, asyncio.create_task(service.get("/metrics"))
        while not scraping.done():
            await asyncio.sleep(0.001)
            rounds += 1
        assert (await scraping).text.count("\nmany{") == 10_000
    assert rounds > 3


async def test_metrics_answer_while_the_default_executor_is_full(registry: CollectorRegistry) -> None:
    """The very moment one wants to look."""
    free, loop = threading.Event(), asyncio.get_running_loop()
    async with serving(application(registry)) as service:
        busy = [loop.run_in_executor(None, free.wait) for _ in range(100)]
        try:
            assert (await service.get("/metrics")).status == 200
        finally:
            free.set()
            await asyncio.gather(*busy)


async def test_a_collector_that_fails_breaks_only_the_scrape(registry: CollectorRegistry) -> None:
    class Failing(Collector):
        def describe(self) -> list[Metric]:
            return []

        def collect(self) -> Iterator[Metric]:
            raise LookupError("a collector of the service's own")

    registry.register(Failing())
    async with serving(application(registry)) as service:
        assert (await service.get("/metrics")).status == 500
        assert (await service.get("/hello")).status == 200


async def test_a_registry_that_nobody_uses_any_more_is_let_go() -> None:
    registry = CollectorRegistry()
    async with serving(application(registry)):
        pass
    gone = weakref.ref(registry)
    del registry
    gc.collect()
    assert gone() is None


# @timeit


@timeit
async def bare() -> str:
    """Says bare."""
    return "bare"


@timeit(name="price lookup")
async def named(amount: int, *, factor: int = 2) -> int:
    return amount * factor


@timeit()
async def with_parentheses() -> None:
    pass


@timeit
async def fail() -> None:
    raise LookupError


@timeit
async def wait() -> None:
    await asyncio.Event().wait()


class Shop:
    @timeit
    async def price(self, item: str) -> str:
        return f"price of {item}"

    @classmethod
    @timeit
    async def opened(cls) -> str:
        return cls.__name__

    @staticmethod
    @timeit
    async def tax() -> int:
        return 7


class Orders(web.View):
    @timeit
    async def get(self) -> web.Response:
        return web.Response(text=self.request.path)


@timeit
async def timed_handler(request: web.Request) -> web.Response:
    return web.Response(text="timed")


async def cancel_in_time() -> None:
    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting


async def fail_quietly() -> None:
    with suppress(LookupError):
        await fail()


@asynccontextmanager
async def calling(registry: CollectorRegistry, call: Callable[[], Any]) -> AsyncIterator[tuple[Service, Any]]:
    """The result of ``call`` as awaited within a request, which ``/`` is."""
    results = []

    async def handler(request: web.Request) -> web.Response:
        results.append(await call())
        return web.Response()

    app = application(registry)
    app.router.add_get("/", handler)
    app.router.add_get("/timed", timed_handler)
    app.router.add_view("/orders", Orders)
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
        yield service, results.pop()


@pytest.mark.parametrize(
    ("call", "result", "name", "outcome"),
    [
        (bare, "bare", "bare", "ok"),
        (lambda: named(3, factor=5), 15, "price lookup", "ok"),
        (with_parentheses, None, "with_parentheses", "ok"),
        (fail_quietly, None, "fail", "error"),
        (cancel_in_time, None, "wait", "cancelled"),
        (lambda: Shop().price("tea"), "price of tea", "Shop.price", "ok"),
        (Shop.opened, "Shop", "Shop.opened", "ok"),
        (Shop.tax, 7, "Shop.tax", "ok"),
    ],
    ids=["bare", "named", "parentheses", "error", "cancelled", "method", "class method", "static method"],
)
async def test_every_call_of_a_timed_function_is_observed(
    call: Callable[[], Any], result: object, name: str, outcome: str, registry: CollectorRegistry
) -> None:
    async with calling(registry, call) as (_, returned):
        assert returned == result
    assert series(registry, f"{OPERATION}_count") == {(name, outcome): 1}


async def test_handlers_and_views_can_be_timed(registry: CollectorRegistry) -> None:
    async with calling(registry, bare) as (service, _):
        assert (await service.get("/timed")).text == "timed"
        assert (await service.get("/orders")).text == "/orders"
    counts = series(registry, f"{OPERATION}_count")
    assert counts == {("bare", "ok"): 1, ("timed_handler", "ok"): 1, ("Orders.get", "ok"): 1}


async def test_the_time_observed_is_that_of_the_call(registry: CollectorRegistry) -> None:
    @timeit
    async def sleep() -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.sleep(0.05)
        return loop.time() - begun

    async with calling(registry, sleep) as (_, seconds):
        (total,) = series(registry, f"{OPERATION}_sum").values()
    assert seconds <= total <= seconds + 1


async def test_outside_of_applications_the_process_is_measured() -> None:
    @timeit(name="outside of applications")
    async def work() -> None:
        pass

    await work()
    labels = {"operation": "outside of applications", "outcome": "ok"}
    assert REGISTRY.get_sample_value(f"{OPERATION}_count", labels) == 1


TAKEN = """
import asyncio, functools
from prometheus_client import Counter
from aiohttp_observe import timeit

Counter("asyncio_unhandled", "somebody else's")

@timeit
async def work(): return 7

assert asyncio.run(work()) == asyncio.run(work()) == 7
"""


def test_a_metric_of_somebody_elses_by_our_name_costs_no_call() -> None:
    done = run_python(TAKEN)
    assert done.stderr.count("timeit() measures nothing outside an application") == 1


async def test_what_a_partial_calls_is_timed_by_its_name() -> None:
    async def double(number: int) -> int:
        return 2 * number

    assert await timeit(functools.partial(double, 4))() == 8
    labels = {"operation": double.__qualname__, "outcome": "ok"}
    assert REGISTRY.get_sample_value(f"{OPERATION}_count", labels) == 1


TIMED_BEFORE = """
import asyncio
from aiohttp import web
from prometheus_client import REGISTRY
from aiohttp_observe import Metrics, setup_observability, timeit

@timeit
async def work(): pass

asyncio.run(work())
setup_observability(web.Application(), metrics=Metrics(max_names=1), logs=None)
for name in ("first", "second"):
    asyncio.run(timeit(name=name)(work.__wrapped__)())
print(*sorted(
    sample.labels["operation"]
    for family in REGISTRY.collect()
    for sample in family.samples
    if sample.name == "async_operation_duration_seconds_count"
))
"""


def test_what_is_timed_before_an_application_is_there_sets_no_limits() -> None:
    done = run_python(TIMED_BEFORE)
    assert (done.stdout, done.stderr) == ("_other work\n", "")


NO_ROOM = """
import asyncio, logging, resource, signal
from aiohttp import ClientSession, web
from aiohttp_observe import setup_observability

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logging.disable(logging.CRITICAL)

async def main():
    async def answer(request):
        return web.Response()

    app = web.Application()
    for path in ("/old", *(f"/new{number}" for number in range(300))):
        app.router.add_get(path, answer)
    setup_observability(app, logs=None, tracing=None, admin=None)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        async def get(path):
            async with session.get(path) as response:
                await response.read()

        await get("/old")
        await asyncio.sleep(0.1)
        # The files have a megabyte each.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        for number in range(300):
            await get(f"/new{number}")
            await get("/old")
    await runner.cleanup()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of files on Windows")
def test_a_series_that_cannot_be_written_costs_no_other(tmp_path: Path) -> None:
    done = run_python(NO_ROOM, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert (done.stdout, done.stderr) == ("", "")
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
    samples = [sample for family in registry.collect() for sample in family.samples]
    counts = {
        sample.labels["http_route"]: sample.value for sample in samples if sample.name == f"{DURATION}_count"
    }
    assert counts.pop("/old") == 301
    assert 0 < len(counts) < 300
    (failures,) = (each for each in samples if each.name == "aiohttp_observe_internal_errors_total")
    assert failures.labels == {"observer": "metrics"}
    assert failures.value > 0


def test_a_timed_function_looks_like_itself() -> None:
    assert (bare.__name__, bare.__doc__) == ("bare", "Says bare.")
    assert inspect.iscoroutinefunction(bare)


def synchronous() -> None:
    pass


async def generate() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("function", [synchronous, generate, Orders, Shop.__dict__["opened"], 7])
def test_only_coroutine_functions_are_timed(function: Any) -> None:
    with pytest.raises(TypeError, match=r"@timeit takes a coroutine function, got .*: write 'async def'"):
        timeit(function)


def test_a_name_is_a_text() -> None:
    name: Any = 7
    with pytest.raises(TypeError, match=r"timeit\(name=\.\.\.\) takes str, got 7"):
        timeit(name=name)


async def test_a_crowd_of_scrapers_that_left_costs_no_more_than_one(registry: CollectorRegistry) -> None:
    class Slow(Collector):
        collected = 0

        def describe(self) -> list[Metric]:
            return []

        def collect(self) -> list[Metric]:
            Slow.collected += 1
            time.sleep(0.05)
            return []

    registry.register(Slow())
    async with serving(application(registry)) as service:
        for _ in range(40):
            _, writer = await service.connect()
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await writer.drain()
            writer.close()
        assert (await service.get("/metrics")).status == 200
    assert Slow.collected <= 4


def test_the_ports_of_a_host_are_bounded(registry: CollectorRegistry) -> None:
    meter = Metrics(registry=registry, max_hosts=3).install().instruments
    for port in range(50):
        meter.client_request(("GET", "upstream", port, 200, None), 0.1, None)
    ports = label_values(registry, "http_client_request_duration_seconds_count", "server_port")
    assert ports == {"0", "1", "2", ""}


def test_statuses_of_others_take_no_room_from_the_exception_types(registry: CollectorRegistry) -> None:
    meter = Metrics(registry=registry, max_names=2).install().instruments
    for status in range(400, 420):
        meter.client_request(("GET", "upstream", 80, status, str(status)), 0.1, None)
    meter.client_request(("GET", "upstream", 80, None, "ClientConnectorError"), 0.1, None)
    errors = label_values(registry, "http_client_request_duration_seconds_count", "error_type")
    assert "ClientConnectorError" in errors
    assert meter.bounded_error("ZeroDivisionError") == "ZeroDivisionError"


def test_a_set_up_that_a_registry_refuses_leaves_nothing_in_it() -> None:
    registry = CollectorRegistry()
    theirs = Counter("aiohttp_observe_dropped", "Of the service's own", registry=registry)
    with pytest.raises(ValueError, match=r"give Metrics\(registry=...\) its own"):
        setup_observability(web.Application(), metrics=Metrics(registry=registry))
    assert {metric.name for metric in registry.collect()} == {"aiohttp_observe_dropped"}
    registry.unregister(theirs)
    setup_observability(web.Application(), metrics=Metrics(registry=registry))
    assert "http_server_request_duration_seconds" in {metric.name for metric in registry.collect()}


async def test_a_name_that_is_no_unicode_or_has_no_end_costs_nobody_the_page() -> None:
    async def handler(request: web.Request) -> web.Response:
        with operation("lookup \udcff"):
            await spawn(asyncio.sleep(0), name="mail \udcff" + "x" * 1_000_000)
        return web.Response()

    registry = CollectorRegistry()
    app = application(registry)
    app.router.add_get("/odd", handler)
    async with serving(app) as service:
        await service.get("/odd")
        for headers in ({}, OPENMETRICS):
            page = await service.get("/metrics", headers=headers)
            assert page.status == 200
            assert 'operation="lookup ?"' in page.text
            assert 'name="mail ?xxx' in page.text
            assert len(page.text) < 100_000
