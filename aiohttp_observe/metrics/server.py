"""The requests of one application, measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache, partial
from operator import attrgetter
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry

from ..exchange import MALFORMED, Ended, Exchange, Outcome
from .instruments import InFlight, Instruments, instruments_of
from .labels import bounded_outcome, label
from .page import Gate, MetricsPage
from .scraped import TaskCounts, Utilization
from .tally import Timed, observing_all

if TYPE_CHECKING:
    from .description import Metrics

__all__ = ["ServerMetrics"]

T = TypeVar("T")

_duration = attrgetter("duration")


class _Series:
    """The series of requests that ended alike, looked up once."""

    def __init__(self, instruments: Instruments, outcome: Outcome) -> None:
        method, route, _, _ = outcome
        self._duration = Timed(instruments.duration.labels(*map(label, outcome)))
        if route == MALFORMED:  # it never started
            return
        self._busy = observing_all(instruments.busy.labels(method, route))
        # Few routes take a body: the series is there from the first one on.
        self._request_size = cache(lambda: observing_all(instruments.request_size.labels(method, route)))
        self._response_size = observing_all(instruments.response_size.labels(method, route))
        self._abandoned = partial(instruments.abandoned.labels, route)

    def observe(self, alike: Sequence[Exchange]) -> None:
        by_duration = sorted(alike, key=_duration)
        self._duration.observe(
            [exchange.duration or 0.0 for exchange in by_duration],
            [exchange.span if exchange.sampled else None for exchange in by_duration],
        )
        if alike[0].route is MALFORMED:
            return
        self._busy([exchange.busy for exchange in alike])
        # Of a websocket the messages are counted, not their bytes.
        sizes = [exchange.response_size for exchange in alike if exchange.websocket is None]
        if sizes:
            self._response_size(sizes)
        received = [exchange.request_size for exchange in alike if exchange.request_size]
        if received:
            self._request_size()(received)
        abandoned = sum([exchange.abandoned - exchange.abandoned_counted for exchange in alike])
        if abandoned > 0:
            self._abandoned().inc(abandoned)


class ServerMetrics:
    """Hears of every request of one application."""

    def __init__(self, options: Metrics, registry: CollectorRegistry) -> None:
        self.instruments = instruments_of(registry)
        self.instruments.limit(options)
        self._options = options
        self._registry = registry
        self._series: dict[Outcome, _Series] = {}

    def serve(self, app: web.Application, gate: Gate | None) -> None:
        """Serve the registry on ``app``; ``gate`` says who may look if a token is required."""
        options = self._options
        if options.path is not None:
            page = MetricsPage(self._registry, gate if options.require_token else None)
            app.router.add_get(options.path, page.get)

    def flush(self, ended: Ended) -> None:
        """Observe the requests, and outbound calls, that have ended since the last time."""
        self.instruments.flush_calls()
        for outcome, alike in ended.items():
            self.instruments.attempt(partial(self._observe, outcome, alike))

    def _observe(self, outcome: Outcome, alike: Sequence[Exchange]) -> None:
        series = self._series.get(outcome) or self._add(outcome)
        series.observe(alike)

    def _add(self, outcome: Outcome) -> _Series:
        method, route, status, error = outcome
        told = bounded_outcome(status, error, self.instruments.bounded_error)
        bounded = (method, self.instruments.bounded_route(route), *told)
        series = self._series.get(bounded)
        if series is None:
            series = self._series[bounded] = _Series(self.instruments, bounded)
            self.instruments.add_method(method)
        return series

    def tick(self, left: Iterable[Exchange]) -> None:
        """Several times a second, on the loop.  ``left`` are requests in flight whose client has left.

        What another process reads from a file can't wait for a scrape.
        """
        self.instruments.flush_calls()
        now = perf_counter()
        for exchange in left:
            self.instruments.attempt(partial(self._count_abandoned, exchange, now))
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self.instruments.count_active()

    def _count_abandoned(self, exchange: Exchange, now: float) -> None:
        """So far: its handler may never end."""
        so_far = now - (exchange.client_left_at or now)
        route = self.instruments.bounded_route(exchange.route)
        self.instruments.abandoned.labels(route).inc(max(so_far - exchange.abandoned_counted, 0.0))
        exchange.abandoned_counted = so_far

    # What is read at scrape; each returns how to stop

    def flush_at_scrape(self, flush: Callable[[], None]) -> Callable[[], None]:
        """Call ``flush`` before anything is read."""
        return _added(self.instruments.at_scrape.before, flush)

    def read_active(self, in_flight: InFlight) -> Callable[[], None]:
        """Have requests being served counted."""
        remove = _added(self.instruments.in_flight, in_flight)

        def stop() -> None:
            remove()
            self.instruments.count_active()

        return stop

    def count_tasks(self, loop: object, count: TaskCounts) -> Callable[[], None]:
        """Have the tasks of ``loop`` counted."""
        return _added(self.instruments.at_scrape.tasks, (loop, count))

    def read_utilization(self, read: Utilization) -> Callable[[], None]:
        """Have a loop's utilization read."""
        return _added(self.instruments.at_scrape.utilization, read)


def _added(items: list[T], item: T) -> Callable[[], None]:
    """Add ``item``; returns how to take it away again."""
    items.append(item)

    def remove() -> None:
        with suppress(ValueError):  # a forked child has none of its parent's
            items.remove(item)

    return remove
