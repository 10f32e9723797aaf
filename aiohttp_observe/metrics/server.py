"""The requests of one application, measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry

from ..exchange import MALFORMED, Exchange
from .instruments import InFlight, Instruments, Timed, instruments_of, label
from .page import Gate, MetricsPage
from .scraped import TaskCounts, Utilization
from .tally import Tallies

if TYPE_CHECKING:
    from .description import Metrics

__all__ = ["ServerMetrics"]

T = TypeVar("T")


class _PerRoute:
    """The series of one method and route, looked up once."""

    __slots__ = (
        *("_instruments", "_method", "_tallies"),
        *("busy", "ended", "request_size", "response_size", "route"),
    )

    def __init__(self, instruments: Instruments, tallies: Tallies, method: str, route: str) -> None:
        self._instruments = instruments
        self._tallies = tallies
        self._method = method
        self.route = route
        self.busy = tallies.add(instruments.busy.labels(method, route))
        self.request_size = tallies.add(instruments.request_size.labels(method, route))
        self.response_size = tallies.add(instruments.response_size.labels(method, route))
        self.ended: dict[tuple[int | None, str | None], Timed] = {}

    def add(self, status: int | None, error: str | None) -> Timed:
        """The duration series of requests that ended so."""
        if error is not None:
            error = self._instruments.bounded_error(error)
        timed = self.ended.get((status, error))
        if timed is None:
            labels = map(label, (self._method, self.route, status, error))
            series = self._instruments.duration.labels(*labels)
            timed = self.ended[status, error] = Timed(series, self._tallies.add(series))
        return timed


class ServerMetrics:
    """Hears of every request of one application."""

    def __init__(self, options: Metrics, registry: CollectorRegistry) -> None:
        self.instruments = instruments_of(registry, options)
        self._options = options
        self._registry = registry
        self._exemplars = options.exemplars
        self._tallies = Tallies()
        self._per_route: dict[tuple[str, str], _PerRoute] = {}

    def serve(self, app: web.Application, gate: Gate | None) -> None:
        """Serve the registry on ``app``; ``gate`` says who may look if a token is required."""
        options = self._options
        if options.path is not None:
            page = MetricsPage(self._registry, gate if options.require_token else None)
            app.router.add_get(options.path, page.get)
            app.on_cleanup.append(page.close)

    def settle(self, ended: Sequence[Exchange]) -> None:
        """Observe the requests that have ended since the last time."""
        for exchange in ended:
            self._observe(exchange)
        self._tallies.tell()

    def _observe(self, exchange: Exchange) -> None:
        method = exchange.method
        per_route = self._per_route.get((method, exchange.route)) or self._add_route(exchange)
        ended = per_route.ended.get((exchange.status, exchange.error_type))
        if ended is None:
            ended = per_route.add(exchange.status, exchange.error_type)
        exemplar = exchange.span if self._exemplars and exchange.sampled else None
        ended.observe(exchange.duration or 0.0, exemplar)
        if exchange.route is MALFORMED:  # it never started
            return
        per_route.busy(exchange.busy)
        if exchange.request_size:
            per_route.request_size(exchange.request_size)
        per_route.response_size(exchange.response_size)
        if exchange.abandoned:
            self.instruments.abandoned.labels(per_route.route).inc(exchange.abandoned)

    def _add_route(self, exchange: Exchange) -> _PerRoute:
        known = (exchange.method, self.instruments.bounded_route(exchange.route))
        per_route = self._per_route.get(known)
        if per_route is None:
            per_route = self._per_route[known] = _PerRoute(self.instruments, self._tallies, *known)
            self.instruments.add_method(exchange.method)
        return per_route

    def tick(self) -> None:
        """Several times a second: what another process reads from a file can't wait for a scrape."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self.instruments.count_active()

    # What is read at scrape; each returns how to stop

    def settle_at_scrape(self, settle: Callable[[], None]) -> Callable[[], None]:
        """Call ``settle`` before anything is read."""
        return _added(self.instruments.at_scrape.before, settle)

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
    return lambda: items.remove(item)
