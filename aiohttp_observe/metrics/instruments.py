"""The metrics of one registry."""

from __future__ import annotations

import logging
import threading
from collections import Counter as Counted
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

from ..exchange import (
    CLIENT_DISCONNECTED,
    MALFORMED,
    UNMATCHED,
    ClientOutcome,
    Exchange,
    Meter,
    SpanIds,
)
from ..forks import reset_after_fork
from .labels import MOST_NAMES, MOST_ROUTES, Bounded
from .outbound import ClientCalls
from .scraped import AtScrape
from .tally import DURATION_BUCKETS

if TYPE_CHECKING:
    from .description import Metrics

__all__ = ["InFlight", "Instruments", "instruments_of"]

logger = logging.getLogger("aiohttp_observe")

InFlight = Callable[[], Iterable[Exchange]]
"""Returns the requests being served; called in any thread."""
_BUSY_BUCKETS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZE_BUCKETS = (0.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 16777216.0)


Method = TypeVar("Method", bound=Callable[..., None])


def _guarded(method: Method) -> Method:
    """Count what ``method`` raises: it is called from within requests, and must not raise into them.

    What it writes to may be gone: the files of prometheus_client's multiprocess mode.
    """

    @wraps(method)
    def guarded(self: Instruments, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as exc:
            self.note_failure(exc)

    return cast(Method, guarded)


class Instruments(Meter):
    """The metrics of one registry, to which the other pillars report.

    Children are looked up once per combination of label values and kept: every label is
    bounded, so their number is too.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.bounded_route = Bounded(MOST_ROUTES, UNMATCHED, MALFORMED)
        self.bounded_error = Bounded(MOST_NAMES, CLIENT_DISCONNECTED)
        self._bounded_operation = Bounded(MOST_NAMES)
        self._bounded_task = Bounded(MOST_NAMES)
        self._is_limited = False
        self._failed = False
        self.in_flight: list[InFlight] = []
        self._methods: set[str] = set()
        self.at_scrape = AtScrape()
        self.at_scrape.before.append(self.count_active)
        registry.register(self.at_scrape)  # first, so that all below is up to date when read
        self._add_server(registry)
        self._calls = ClientCalls(registry)
        reset_after_fork(self)
        self._add_asyncio(registry)
        self._internal_errors = Counter(
            "aiohttp_observe_internal_errors",
            "Exceptions of observers and of this package, none of which reached a request",
            ["observer"],
            registry=registry,
        )
        self._dropped = Counter(
            "aiohttp_observe_dropped",
            "Log lines, spans and the like given up rather than block a request or grow",
            ["what"],
            registry=registry,
        )

    def _add_server(self, registry: CollectorRegistry) -> None:
        by_route = ["http_request_method", "http_route"]
        self.duration = Histogram(
            "http_server_request_duration_seconds",
            "Duration of HTTP server requests, to the last byte",
            [*by_route, "http_response_status_code", "error_type"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._active = Gauge(
            "http_server_active_requests",
            "HTTP server requests being served",
            ["http_request_method"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.busy = Histogram(
            "http_server_request_busy_seconds",
            "Seconds a request's handler held the event loop",
            by_route,
            buckets=_BUSY_BUCKETS,
            registry=registry,
        )
        self.abandoned = Counter(
            "http_server_abandoned_seconds",
            "Seconds handlers worked for clients that had already left",
            ["http_route"],
            registry=registry,
        )
        self.request_size = Histogram(
            "http_server_request_body_size_bytes",
            "Bytes received of request bodies, where there was one",
            by_route,
            buckets=_SIZE_BUCKETS,
            registry=registry,
        )
        self.response_size = Histogram(
            "http_server_response_body_size_bytes",
            "Bytes of response bodies sent",
            by_route,
            buckets=_SIZE_BUCKETS,
            registry=registry,
        )

    def _add_asyncio(self, registry: CollectorRegistry) -> None:
        self._task_outcomes = Counter(
            "asyncio_task_outcomes", "Spawned tasks by how they ended", ["name", "outcome"], registry=registry
        )
        self._task_restarts = Counter(
            "asyncio_task_restarts", "Times spawned workers were started again", ["name"], registry=registry
        )
        self._unhandled = Counter("asyncio_unhandled", "Failures nobody handled", ["kind"], registry=registry)
        self._lag = Histogram(
            "asyncio_loop_lag_seconds",
            "How late the event loop ran a timer",
            buckets=_BUSY_BUCKETS,
            registry=registry,
        )
        self._blocked_seconds = Counter(
            "asyncio_loop_blocked_seconds", "Seconds the event loop was blocked", registry=registry
        )
        self._blocked = Counter("asyncio_loop_blocked", "Times the event loop was blocked", registry=registry)
        self._operations = Histogram(
            "async_operation_duration_seconds",
            "Duration of operations and timed coroutine functions",
            ["operation", "outcome"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )

    def limit(self, limits: Metrics) -> None:
        """How many labels of a kind there may be: those of the first application hold."""
        if self._is_limited:
            return
        self._is_limited = True
        self.bounded_route.limit = limits.max_routes
        for names in (self.bounded_error, self._bounded_operation, self._bounded_task):
            names.limit = limits.max_names
        self._calls.limit(limits)

    @_guarded
    def count_active(self) -> None:
        """Set the gauge of requests being served, which costs less than to move it with each."""
        served = Counted(exchange.method for in_flight in list(self.in_flight) for exchange in in_flight())
        for method in {*self._methods, *served}:
            self.add_method(method)
            self._active.labels(method).set(served[method])

    def add_method(self, method: str) -> None:
        """Have a gauge for ``method`` even if none of its requests is ever seen being served."""
        if method not in self._methods:
            self._methods.add(method)
            self._active.labels(method)

    # The Meter

    @_guarded
    def operation(self, name: str, outcome: str, seconds: float) -> None:
        self._operations.labels(self._bounded_operation(name), outcome).observe(seconds)

    @_guarded
    def client_request(self, outcome: ClientOutcome, seconds: float, span: SpanIds | None) -> None:
        self._calls.add(outcome, seconds, span)
        if self._calls.are_many or not self.in_flight:  # no application runs that would flush them soon
            self.flush_calls()

    @_guarded
    def client_phase(self, host: str, phase: str, seconds: float, *, redirected: bool) -> None:
        self._calls.add_phase((host, phase, redirected), seconds)
        if self._calls.are_many:
            self.flush_calls()

    def reset_in_child(self) -> None:
        """In a forked child, where no application runs."""
        self.in_flight.clear()
        self.at_scrape.forget()
        self.at_scrape.before.append(self.count_active)
        self._calls.forget()

    def flush_calls(self) -> None:
        """Observe the outbound calls that have ended since the last time."""
        for observe in self._calls.flushing():
            self.attempt(observe)

    @_guarded
    def attempt(self, observe: Callable[[], None]) -> None:
        """Have one series written, whose file may be full: the others' aren't."""
        observe()

    def note_failure(self, exc: Exception) -> None:
        """Count it, if that can be written, and log the first."""
        if not self._failed:
            self._failed = True
            with suppress(Exception):  # of a filter or handler of the service's
                logger.error(
                    "metrics can't be written; this is told once, and counted if it can be", exc_info=exc
                )
        with suppress(Exception):
            self._internal_errors.labels("metrics").inc()

    @_guarded
    def task_outcome(self, name: str, outcome: str) -> None:
        self._task_outcomes.labels(self._bounded_task(name), outcome).inc()

    @_guarded
    def task_restart(self, name: str) -> None:
        self._task_restarts.labels(self._bounded_task(name)).inc()

    @_guarded
    def unhandled(self, kind: str) -> None:
        self._unhandled.labels(kind).inc()

    @_guarded
    def loop_lag(self, seconds: float) -> None:
        self._lag.observe(seconds)

    @_guarded
    def loop_blocked(self, seconds: float) -> None:
        self._blocked.inc()
        self._blocked_seconds.inc(seconds)

    @_guarded
    def internal_error(self, observer: str) -> None:
        self._internal_errors.labels(observer).inc()

    @_guarded
    def dropped(self, what: str, count: int = 1) -> None:
        self._dropped.labels(what).inc(count)


_instruments: WeakKeyDictionary[CollectorRegistry, Instruments] = WeakKeyDictionary()
_instruments_lock = threading.Lock()


def instruments_of(registry: CollectorRegistry) -> Instruments:
    """The instruments of ``registry``, made once: applications may share a registry."""
    with _instruments_lock:
        instruments = _instruments.get(registry)
        if instruments is None:
            with _all_or_none(registry) as registering:
                instruments = _made(registering)
            _instruments[registry] = instruments
        return instruments


def _made(registry: CollectorRegistry) -> Instruments:
    try:
        return Instruments(registry)
    except ValueError as exc:
        raise ValueError(
            f"somebody else's metric has the name of one of ours: give Metrics(registry=...) its own ({exc})"
        ) from exc


class _Registering(CollectorRegistry):
    """Registers with another registry, and remembers what."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry
        self.registered: list[Collector] = []

    def register(self, collector: Collector) -> None:
        self._registry.register(collector)
        self.registered.append(collector)


@contextmanager
def _all_or_none(registry: CollectorRegistry) -> Iterator[CollectorRegistry]:
    """If one metric is refused, as one of that name is there already, none stays."""
    registering = _Registering(registry)
    try:
        yield registering
    except BaseException:
        for collector in registering.registered:
            registry.unregister(collector)
        raise
