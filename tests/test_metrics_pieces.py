"""Collected in pieces or at once, a registry reads the same, to the byte."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from aiohttp_observe.metrics import MetricsPage
from aiohttp_observe.metrics.pieces import InPieces
from tests.real import require
from tests.service import Answer, run_python, serving, until

FORMATS = {
    "text": "text/plain",
    "text 1.0": "text/plain; version=1.0.0; escaping=allow-utf-8",
    "OpenMetrics": "application/openmetrics-text",
    "OpenMetrics 1.0": "application/openmetrics-text; version=1.0.0; escaping=underscores",
    "OpenMetrics, UTF-8": "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8",
    "OpenMetrics, dots": "application/openmetrics-text; version=1.0.0; escaping=dots",
    "OpenMetrics, values": "application/openmetrics-text; version=1.0.0; escaping=values",
    "OpenMetrics 2.0": "application/openmetrics-text; version=2.0.0",
}
NASTY = 'a "quoted" \\ back\\slash,\nnew line, ünïcode 🙂, {braces}'


def every_kind(registry: CollectorRegistry) -> None:
    """Each kind of metric, with labels and without, and what is hard to spell."""
    counter = Counter("paid", NASTY, ["shop", "till"], registry=registry)
    counter.labels(NASTY, "").inc(1e21, {"trace_id": "a" * 32})
    counter.labels("second", "1").inc()
    Counter("plain", "Without labels", registry=registry).inc(0.1)
    Gauge("never_set", "No child yet", ["label"], registry=registry)
    Gauge("pressure", "With a unit", unit="pascal", registry=registry).set(float("nan"))
    Gauge("read", "At scrape", registry=registry).set_function(lambda: 7)
    latency = Histogram("latency", "With exemplars", ["route"], registry=registry, unit="seconds")
    for number in range(300):
        latency.labels(f"/{number % 40}").observe(number / 30, {"trace_id": f"{number:032x}"})
    Histogram("cold", "Below zero", buckets=(-5.0, 0.0, 5.0), registry=registry).observe(-1)
    Gauge("odd.name: ü", "To be escaped", ["odd.label"], registry=registry).labels(NASTY).set(2)
    Summary("spent", "Seconds spent", ["what"], registry=registry).labels("lunch").observe(1800)
    Info("build", "Of this service", registry=registry).info({"version": NASTY})
    Enum("mood", "Of the day", ["who"], states=["fair", "foul"], registry=registry).labels("me").state("foul")


class Own(Collector):
    """A collector of the service's own, which keeps the families it gives."""

    def __init__(self) -> None:
        self.gauge = GaugeMetricFamily("own", "Kept", labels=["number"])
        for number in range(600):
            self.gauge.add_metric([str(number)], number, timestamp=number)
        self.histogram = GaugeHistogramMetricFamily(
            "sizes", "Kept too", buckets=[("1", 2), ("+Inf", 3)], gsum_value=5
        )

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        return [self.gauge, self.histogram]


class Twice(Gauge):
    """A metric that says for itself what is collected."""

    def collect(self) -> Iterable[Metric]:
        for family in super().collect():
            family.samples = [sample._replace(value=sample.value * 2) for sample in family.samples]
            yield family


class Filtered(CollectorRegistry):
    """A registry that says for itself what is collected."""

    def collect(self) -> Iterator[Metric]:
        return (family for family in super().collect() if not family.name.startswith("p"))


@pytest.fixture(params=[CollectorRegistry, Filtered])
def filled(request: pytest.FixtureRequest) -> CollectorRegistry:
    registry: CollectorRegistry = request.param(target_info={"service": NASTY})
    every_kind(registry)
    registry.register(Own())
    Twice("doubled", "What it does", registry=registry).set(21)
    return registry


async def scraped(registry: CollectorRegistry, accept: str) -> Answer:
    app, page = web.Application(), MetricsPage(registry, None)
    app.router.add_get("/metrics", page.get)
    async with serving(app) as service:
        return await service.get("/metrics", headers={"Accept": accept})


@pytest.mark.parametrize("accept", FORMATS.values(), ids=FORMATS)
async def test_the_page_is_what_prometheus_client_would_say(accept: str, filled: CollectorRegistry) -> None:
    encode, content_type = choose_encoder(accept)
    for _ in range(2):  # whatever is kept is as it was
        answer = await scraped(filled, accept)
        assert answer.text.encode() == encode(filled)
        assert answer.headers["Content-Type"] == content_type


def test_promtool_finds_nothing_wrong_with_what_came_in_pieces(registry: CollectorRegistry) -> None:
    promtool, latency = require("promtool"), Histogram("latency_seconds", NASTY, ["route"], registry=registry)
    for number in range(300):
        latency.labels(f"{NASTY} {number}").observe(number / 30)
    text = asyncio.run(scraped(registry, "text/plain")).text
    check = [str(promtool), "check", "metrics"]
    done = subprocess.run(check, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SEVERAL_PROCESSES = """
import asyncio, os, sys
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from tests.test_metrics_pieces import few_kinds, scraped

async def main():
    few_kinds(CollectorRegistry())
    merged = CollectorRegistry()
    MultiProcessCollector(merged)
    for accept in sys.argv[1:]:
        encode, _ = choose_encoder(accept)
        answer = await scraped(CollectorRegistry(), accept)
        assert answer.text.encode() == encode(merged), accept
        print(answer.text.count('le="'))

asyncio.run(main())
sys.stdout.flush()
os._exit(0)  # prometheus_client leaves its files open
"""


def few_kinds(registry: CollectorRegistry) -> None:
    """Of the kinds that several processes can share."""
    Counter("paid", NASTY, ["shop"], registry=registry).labels(NASTY).inc(1e21)
    Gauge("many", NASTY, ["shop"], registry=registry, multiprocess_mode="livesum").labels("one").set(3)
    latency = Histogram("latency_seconds", "Of routes", ["route"], registry=registry)
    for number in range(300):
        latency.labels(f"/{number % 40}").observe(number / 30)


def test_several_processes_read_as_prometheus_client_would_say(tmp_path: Path) -> None:
    done = run_python(SEVERAL_PROCESSES, *FORMATS.values(), PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["600"] * len(FORMATS)


# What pieces are for


def ten_thousand(registry: CollectorRegistry) -> None:
    gauge = Gauge("many", "Many", ["number"], registry=registry)
    for number in range(10_000):
        gauge.labels(str(number)).set(number)


def test_samples_are_let_go_as_soon_as_they_are_written(registry: CollectorRegistry) -> None:
    """Ten thousand at once would have the garbage collector walk the whole heap."""
    ten_thousand(registry)
    (family,) = InPieces(registry).collect()
    gc.collect()
    before = samples_alive()
    for number, _ in enumerate(family.samples):
        if number % 2_000 == 0:
            assert samples_alive() < before + 10


def samples_alive() -> int:
    return sum(type(found) is Sample for found in gc.get_objects())


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
def test_ten_thousand_series_set_off_no_garbage_collection_of_everything(
    accept: str, registry: CollectorRegistry
) -> None:
    ten_thousand(registry)
    encode, _ = choose_encoder(accept)
    gc.collect()
    before = [generation["collections"] for generation in gc.get_stats()]
    for _ in range(3):
        encode(InPieces(registry))
    after = [generation["collections"] for generation in gc.get_stats()]
    assert after[2] == before[2]


# One encoding of a format at a time


class Held(Collector):
    """Counts how often it is collected, which takes until it is let go."""

    def __init__(self) -> None:
        self.collected = 0
        self.go_on = threading.Event()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        self.collected += 1
        assert self.go_on.wait(10)
        return []


async def scraped_at_once(registry: CollectorRegistry, formats: Sequence[str]) -> tuple[list[Answer], int]:
    """The answers to scrapers that came while the first was served, and how often there was a collection."""
    held, heard, app, page = Held(), [], web.Application(), MetricsPage(registry, None)

    async def get(request: web.Request) -> web.Response:
        heard.append(request)
        return await page.get(request)

    registry.register(held)
    app.router.add_get("/metrics", get)
    async with serving(app) as service:
        asked = [service.get("/metrics", headers={"Accept": accept}) for accept in formats]
        scraping = asyncio.gather(*asked)
        await until(lambda: len(heard) == len(formats), "all to be heard")
        held.go_on.set()
        return await scraping, held.collected


@pytest.mark.parametrize("accept", FORMATS.values(), ids=FORMATS)
async def test_those_who_scrape_at_once_share_an_encoding(accept: str, registry: CollectorRegistry) -> None:
    answers, collected = await scraped_at_once(registry, [accept] * 20)
    assert {answer.status for answer in answers} == {200}
    assert collected == 1


async def test_formats_beyond_a_few_at_once_become_plain_text(registry: CollectorRegistry) -> None:
    formats = [f"application/openmetrics-text; version=1.0.{number}" for number in range(20)]
    answers, collected = await scraped_at_once(registry, formats)
    assert {answer.status for answer in answers} == {200}
    assert len({answer.headers["Content-Type"] for answer in answers}) == collected <= 5


@pytest.mark.parametrize("accept", FORMATS.values(), ids=FORMATS)
async def test_the_page_keeps_nothing_that_it_has_served(accept: str, registry: CollectorRegistry) -> None:
    every_kind(registry)
    app, page = web.Application(), MetricsPage(registry, None)
    app.router.add_get("/metrics", page.get)
    async with serving(app) as service:
        assert (await service.get("/metrics", headers={"Accept": accept})).status == 200
        await until(lambda: not any(map(holds_a_page, gc.get_objects())), "the encoded page to be let go")


def holds_a_page(thing: object) -> bool:
    if not issubclass(type(thing), asyncio.Future):
        return False
    assert isinstance(thing, asyncio.Future)
    if not thing.done() or thing.cancelled() or thing.exception() is not None:
        return False
    return isinstance(body := thing.result(), bytes) and b"latency_seconds_bucket" in body
