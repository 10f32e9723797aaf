"""Told together or one by one, histograms count the same."""

from __future__ import annotations

import gc
import math
import random
import sys
import threading
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.samples import Sample

from aiohttp_observe import Exchange, Metrics
from aiohttp_observe.exchange import Scope
from aiohttp_observe.metrics.tally import observing_all
from aiohttp_observe.middleware import Recorder
from tests.test_metrics import DURATION

BOUNDS = (-1.0, 0.0, 0.25, 0.5, 1.0, 10.0)


def samples(registry: CollectorRegistry) -> list[Sample]:
    (family,) = registry.collect()
    return [sample for sample in family.samples if not sample.name.endswith("_created")]


def observed_one_by_one(values: Sequence[float]) -> list[Sample]:
    registry = CollectorRegistry()
    histogram = Histogram("sizes", "Sizes", buckets=BOUNDS, registry=registry)
    for value in values:
        histogram.observe(value)
    return samples(registry)


@pytest.mark.parametrize(
    "values",
    [[], [0.3], [*BOUNDS] * 3, [0, 0.0, 256, 1e300, math.inf], [-5, -0.5], [n / 64 for n in range(-99, 999)]],
    ids=["none", "one", "the bounds", "large and small", "negative", "many"],
)
def test_a_histogram_told_of_many_is_as_if_it_had_been_told_of_each(
    values: list[float], registry: CollectorRegistry
) -> None:
    observe_all = observing_all(Histogram("sizes", "Sizes", buckets=BOUNDS, registry=registry))
    chance, untold = random.Random(7), list(values)
    while untold:
        some = chance.randint(1, 20)
        observe_all(untold[:some])
        del untold[:some]
    assert samples(registry) == observed_one_by_one(values)


class Otherwise:
    """A series of a prometheus_client to come."""

    def __init__(self) -> None:
        self.observed: list[float] = []

    def observe(self, amount: float) -> None:
        self.observed.append(amount)


def test_a_series_built_otherwise_is_told_of_each() -> None:
    series: Any = Otherwise()
    observing_all(series)([0.5, 2])
    assert series.observed == [0.5, 2]


# A batch of requests


def ended() -> Exchange:
    """A request that took half a second."""
    exchange = Exchange(Scope(), "id", "GET", "/hello", "/hello", "127.0.0.1", None, perf_counter())
    exchange.status, exchange.duration = 200, 0.5
    return exchange


def requests_counted(registry: CollectorRegistry) -> float:
    return sum(
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"{DURATION}_count"
    )


@pytest.fixture
def recorder(registry: CollectorRegistry) -> Recorder:
    recorder = Recorder(Scope())
    recorder.add("metrics", Metrics(registry=registry).install())
    return recorder


def test_threads_that_flush_at_once_count_each_request_once(
    recorder: Recorder, registry: CollectorRegistry
) -> None:
    """The loop's, and one that scrapes."""

    def serve() -> None:
        for _ in range(1000):
            recorder.unflushed.append(ended())
            recorder.flush()

    threads, before = [threading.Thread(target=serve) for _ in range(4)], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(before)
    assert requests_counted(registry) == 4000


def test_a_request_that_a_finalizer_ends_while_others_are_flushed_is_counted(
    recorder: Recorder, registry: CollectorRegistry
) -> None:
    """In the thread that flushes, wherever in it the garbage collector runs."""
    finalized = 0

    class Abandoned:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            nonlocal finalized
            finalized += 1
            recorder.unflushed.append(ended())
            recorder.flush()

    recorder.unflushed.append(ended())
    recorder.flush()
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(300):
            recorder.unflushed.append(ended())
            Abandoned()
            recorder.flush()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    recorder.flush()
    assert finalized == 300
    assert requests_counted(registry) == 601
