"""Metrics: what Prometheus scrapes, and the timer for any coroutine function."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from bisect import bisect_left
from collections import Counter as Counted
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from inspect import iscoroutinefunction
from time import perf_counter
from typing import Any, Final, ParamSpec, Protocol, TypeVar, overload
from weakref import WeakKeyDictionary

from aiohttp import web
from prometheus_async.aio import time as time_awaitable
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from .exchange import MALFORMED, OTHER, Exchange, SpanIds, current_scope, taken
from .options import check_flag, check_instance, check_path, check_positive_int

__all__ = ["Metrics", "timeit"]

P = ParamSpec("P")
T = TypeVar("T")

_DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds, as the stable HTTP semantic conventions advise."""
_BUSY_BUCKETS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZE_BUCKETS = (0.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 16777216.0)
_PAUSE_EVERY = 100
_PAUSE = 0.00005
"""Samples encoded before the loop may have a turn, and seconds for it to wake and take it."""
_EXEMPLAR_INTERVAL = 1.0
"""Seconds between exemplars of one bucket: a scrape reads only the newest."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What is measured, and where it is served.

    ``path``           where ``GET`` answers, default ``/metrics``; ``None`` serves nothing
    ``registry``       default: the process-wide ``prometheus_client.REGISTRY``; give an
                       application a ``CollectorRegistry`` of its own to keep it apart
    ``require_token``  whether ``path`` is guarded as ``/_tasks`` is, default ``False``
    ``exemplars``      whether sampled requests leave their trace id in OpenMetrics, default ``True``
    ``max_routes``     route templates told apart before ``_other``, default 500
    ``max_hosts``      hosts, and pairs of host and port, of outbound requests told apart, default 100
    ``max_names``      operations, spawned tasks and exception types told apart, default 200 each

    The limits of the first description to use a registry hold for that registry.
    """

    path: str | None = "/metrics"
    registry: CollectorRegistry | None = None
    require_token: bool = False
    exemplars: bool = True
    max_routes: int = 500
    max_hosts: int = 100
    max_names: int = 200

    def __post_init__(self) -> None:
        if self.path is not None:
            check_path("Metrics(path=...)", self.path)
        check_instance("Metrics(registry=...)", self.registry, (CollectorRegistry, type(None)))
        check_flag("Metrics(require_token=...)", self.require_token)
        check_flag("Metrics(exemplars=...)", self.exemplars)
        check_positive_int("Metrics(max_routes=...)", self.max_routes, "route templates")
        check_positive_int("Metrics(max_hosts=...)", self.max_hosts, "hosts")
        check_positive_int("Metrics(max_names=...)", self.max_names, "names")

    def install(self) -> ServerMetrics:
        """Make the instruments in the registry, or find them there; nothing is served yet."""
        return ServerMetrics(self, REGISTRY if self.registry is None else self.registry)


class Gate(Protocol):
    """Who may look; returns the refusal, or ``None`` for those who may."""

    def check(self, request: web.Request) -> web.Response | None: ...


class _Bounded:
    """Lets the first ``limit`` different values through; every later one becomes ``_other``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, str] = {}

    def __call__(self, value: str) -> str:
        known = self._known.get(value)
        if known is not None:
            return known
        if len(self._known) >= self._limit:
            return OTHER
        return self._known.setdefault(value, value)


class _Timed:
    """One duration series: observes, with at most one exemplar a bucket and second."""

    __slots__ = ("_child", "_exemplar_due")

    def __init__(self, child: Histogram) -> None:
        self._child = child
        self._exemplar_due = [0.0] * (len(_DURATION_BUCKETS) + 1)

    def observe(self, seconds: float, span: SpanIds | None) -> None:
        if span is not None:
            bucket = bisect_left(_DURATION_BUCKETS, seconds)
            now = perf_counter()
            if now >= self._exemplar_due[bucket]:
                self._exemplar_due[bucket] = now + _EXEMPLAR_INTERVAL
                self._child.observe(seconds, {"trace_id": f"{span.trace_id:032x}"})
                return
        self._child.observe(seconds)


class _PerRoute:
    """The series of one method and route, looked up once."""

    __slots__ = ("_instruments", "_method", "busy", "ended", "request_size", "response_size", "route")

    def __init__(self, instruments: Instruments, method: str, route: str) -> None:
        self._instruments = instruments
        self._method = method
        self.route = route
        self.busy = instruments.busy.labels(method, route).observe
        self.request_size = instruments.request_size.labels(method, route).observe
        self.response_size = instruments.response_size.labels(method, route).observe
        self.ended: dict[tuple[int | None, str | None], _Timed] = {}

    def add(self, status: int | None, error: str | None) -> _Timed:
        """The duration series of requests that ended so."""
        if error is not None:
            error = self._instruments.bounded_error(error)
        series = self.ended.get((status, error))
        if series is None:
            labels = map(_label, (self._method, self.route, status, error))
            series = self.ended[status, error] = _Timed(self._instruments.duration.labels(*labels))
        return series


class Instruments:
    """The metrics of one registry; a `Meter` for the other pillars.

    Children are looked up once per combination of label values and kept: every label is
    bounded, so their number is too.
    """

    def __init__(self, registry: CollectorRegistry, limits: Metrics) -> None:
        self.bounded_route = _Bounded(limits.max_routes)
        self.bounded_host = _Bounded(limits.max_hosts)
        self.bounded_error = _Bounded(limits.max_names)
        self._bounded_port = _Bounded(limits.max_hosts)
        self._bounded_client_error = _Bounded(limits.max_names)
        self._bounded_operation = _Bounded(limits.max_names)
        self._bounded_task = _Bounded(limits.max_names)
        self.in_flight: list[InFlight] = []
        self._methods: set[str] = set()
        self._client: dict[tuple[str, str, int | None, int | None, str | None], _Timed] = {}
        self.at_scrape = AtScrape()
        self.at_scrape.before.append(self.count_active)
        registry.register(self.at_scrape)  # first, so that all below is up to date when read
        self._add_server(registry)
        self._add_client(registry)
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
            buckets=_DURATION_BUCKETS,
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

    def _add_client(self, registry: CollectorRegistry) -> None:
        self._client_duration = Histogram(
            "http_client_request_duration_seconds",
            "Duration of HTTP client requests, to the last byte",
            [
                "http_request_method",
                "server_address",
                "server_port",
                "http_response_status_code",
                "error_type",
            ],
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self._client_phase = Histogram(
            "http_client_phase_seconds",
            "Parts of HTTP client requests; queue is the wait for a pooled connection",
            ["server_address", "phase"],
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )

    def _add_asyncio(self, registry: CollectorRegistry) -> None:
        self._task_outcomes = Counter(
            "asyncio_task_outcomes", "Spawned tasks by how they ended", ["name", "outcome"], registry=registry
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
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )

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

    def operation(self, name: str, outcome: str, seconds: float) -> None:
        self._operations.labels(self._bounded_operation(name), outcome).observe(seconds)

    def client_request(
        self,
        method: str,
        host: str,
        port: int | None,
        status: int | None,
        error_type: str | None,
        seconds: float,
        span: SpanIds | None,
    ) -> None:
        bounded = self.bounded_host(host)
        if bounded is OTHER or self._bounded_port(f"{host}:{port}") is OTHER:
            port = None
        if error_type is not None and error_type != str(status):
            error_type = self._bounded_client_error(error_type)
        key = (method, bounded, port, status, error_type)
        series = self._client.get(key)
        if series is None:
            series = self._client[key] = _Timed(self._client_duration.labels(*map(_label, key)))
        series.observe(seconds, span)

    def client_phase(self, host: str, phase: str, seconds: float) -> None:
        self._client_phase.labels(self.bounded_host(host), phase).observe(seconds)

    def task_outcome(self, name: str, outcome: str) -> None:
        self._task_outcomes.labels(self._bounded_task(name), outcome).inc()

    def unhandled(self, kind: str) -> None:
        self._unhandled.labels(kind).inc()

    def loop_lag(self, seconds: float) -> None:
        self._lag.observe(seconds)

    def loop_blocked(self, seconds: float) -> None:
        self._blocked.inc()
        self._blocked_seconds.inc(seconds)

    def internal_error(self, observer: str) -> None:
        self._internal_errors.labels(observer).inc()

    def dropped(self, what: str, count: int = 1) -> None:
        self._dropped.labels(what).inc(count)


def _label(value: object) -> str:
    return "" if value is None else str(value)


_instruments: WeakKeyDictionary[CollectorRegistry, Instruments] = WeakKeyDictionary()
_instruments_lock = threading.Lock()


def _instruments_of(registry: CollectorRegistry, limits: Metrics) -> Instruments:
    """The instruments of ``registry``, made once: applications may share a registry."""
    with _instruments_lock:
        instruments = _instruments.get(registry)
        if instruments is None:
            instruments = _instruments[registry] = Instruments(registry, limits)
        return instruments


InFlight = Callable[[], Iterable[Exchange]]
"""Returns the requests being served; called in any thread."""
TaskCounts = Callable[[], Iterable[tuple[str, str, int]]]
"""Returns (state, wait kind or "", number of tasks); called in the scraping thread."""
Utilization = Callable[[], "float | None"]


class AtScrape(Collector):
    """The gauges computed when somebody scrapes, summed over the loops that run.

    Those in ``before`` are called first, to bring all other metrics up to date.
    """

    def __init__(self) -> None:
        self.before: list[Callable[[], None]] = []
        self.tasks: list[tuple[object, TaskCounts]] = []
        self.utilization: list[Utilization] = []

    def describe(self) -> list[Metric]:
        return [self._tasks_family(), self._utilization_family()]

    def collect(self) -> Iterator[Metric]:
        for update in list(self.before):
            update()
        totals: dict[tuple[str, str], int] = {}
        for count in dict(self.tasks).values():  # applications may share a loop
            for state, wait, number in count():
                totals[state, wait] = totals.get((state, wait), 0) + number
        family = self._tasks_family()
        for labels, total in totals.items():
            family.add_metric(labels, total)
        yield family
        ratios = [ratio for read in list(self.utilization) if (ratio := read()) is not None]
        utilization = self._utilization_family()
        if ratios:  # a process with several loops is as busy as its busiest
            utilization.add_metric((), max(ratios))
        yield utilization

    @staticmethod
    def _tasks_family() -> GaugeMetricFamily:
        return GaugeMetricFamily("asyncio_tasks", "Live asyncio tasks", labels=["state", "wait"])

    @staticmethod
    def _utilization_family() -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "asyncio_loop_utilization_ratio", "Share of time the event loop's thread was on a CPU", labels=[]
        )


class ServerMetrics:
    """Hears of every request of one application."""

    def __init__(self, options: Metrics, registry: CollectorRegistry) -> None:
        self.instruments = _instruments_of(registry, options)
        self._options = options
        self._registry = registry
        self._exemplars = options.exemplars
        self._per_route: dict[tuple[str, str], _PerRoute] = {}
        self._waiting: deque[Exchange] = deque()
        self.finished = self._waiting.append

    def serve(self, app: web.Application, gate: Gate | None) -> None:
        """Serve the registry on ``app``; ``gate`` says who may look if a token is required."""
        options = self._options
        if options.path is not None:
            page = MetricsPage(self._registry, gate if options.require_token else None)
            app.router.add_get(options.path, page.get)
            app.on_cleanup.append(page.close)

    def settle(self) -> None:
        """Observe the requests that have finished since the last time."""
        for exchange in taken(self._waiting):
            self._observe(exchange)

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
            per_route = self._per_route[known] = _PerRoute(self.instruments, *known)
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


class MetricsPage:
    """Serves a registry in the format the scraper asks for, encoded off the loop.

    A thread of its own, so that a default executor full of the service's work, the very
    moment one wants to look, doesn't hide the metrics.
    """

    def __init__(self, registry: CollectorRegistry, gate: Gate | None) -> None:
        self._registry = registry
        self._gate = gate
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiohttp-observe-metrics")
        self._at_work: dict[Callable[[Collector], bytes], asyncio.Future[bytes]] = {}

    async def get(self, request: web.Request) -> web.Response:
        refusal = None if self._gate is None else self._gate.check(request)
        if refusal is not None:
            return refusal
        encode, content_type = _encoder_for(request.headers.get("Accept", ""))
        body = await asyncio.shield(self._encoding(encode))
        # aiohttp refuses a content_type argument that carries parameters.
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _encoding(self, encode: Callable[[Collector], bytes]) -> asyncio.Future[bytes]:
        """The one at work, if there is: a crowd of scrapers, gone ones included, costs no more than one."""
        at_work = self._at_work.get(encode)
        if at_work is None or at_work.done():
            loop = asyncio.get_running_loop()
            at_work = loop.run_in_executor(self._thread, lambda: encode(self._scraped()))
            self._at_work[encode] = at_work
        return at_work

    def _scraped(self) -> Collector:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return _SampleBySample(self._registry)
        merged = CollectorRegistry()
        MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
        return merged

    async def close(self, app: web.Application) -> None:
        self._thread.shutdown(wait=False)


class _SampleBySample(Collector):
    """A registry whose samples are made when they are encoded, one by one, and not kept.

    prometheus_client makes all samples of a family first: containers by the ten thousand, which
    set off a garbage collection of everything.  And what computes in a thread without a pause
    holds up the loop for 5 ms each time that wants the interpreter lock.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        registry: Any = self._registry
        if getattr(registry, "_target_info", None):
            yield registry._target_info_metric()
        for collector in list(registry._collector_to_names):
            if isinstance(collector, MetricWrapperBase):
                yield _lazy_family(collector)
            else:
                yield from collector.collect()


def _lazy_family(collector: Any) -> Metric:
    family: Metric = collector._get_metric()
    family.samples = _lazy_samples(collector)  # type: ignore[assignment]
    return family


def _lazy_samples(collector: Any) -> Iterator[Sample]:
    for number, sample in enumerate(collector._samples()):
        if number % _PAUSE_EVERY == 0:
            time.sleep(_PAUSE)  # lets go of the interpreter lock
        yield Sample(collector._name + sample.name, *sample[1:])


def _encoder_for(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(accept)
    except Exception:  # prometheus_client trips over a version that isn't a number
        return choose_encoder("")


class _Outcome:
    """Watches one call: the outcome as seen, the seconds as prometheus-async measures them."""

    __slots__ = ("_name", "_outcome")

    def __init__(self, name: str) -> None:
        self._name = name
        self._outcome = "ok"

    async def watch(self, awaitable: Awaitable[T]) -> T:
        try:
            return await awaitable
        except (asyncio.CancelledError, GeneratorExit):
            self._outcome = "cancelled"
            raise
        except BaseException:
            self._outcome = "error"
            raise

    def observe(self, seconds: float) -> None:
        scope = current_scope()
        meter = _instruments_of(REGISTRY, Metrics()) if scope is None else scope.meter
        meter.operation(self._name, self._outcome, seconds)


_Timeable = Callable[P, Coroutine[Any, Any, T]]


@overload
def timeit(function: _Timeable[P, T], /) -> _Timeable[P, T]: ...


@overload
def timeit(*, name: str | None = None) -> Callable[[_Timeable[P, T]], _Timeable[P, T]]: ...


def timeit(function: Any = None, /, *, name: str | None = None) -> Any:
    """Time every call of a coroutine function, method or handler.

    Bare or with a name: ``@timeit`` or ``@timeit(name="price lookup")``.  Each call is
    observed in ``async_operation_duration_seconds{operation, outcome}``: ``operation`` is
    ``name``, or the function's qualified name; ``outcome`` is ``ok``, ``error`` or
    ``cancelled``.  The metrics are those of the application whose request or start-up the
    call descends from, else those of ``prometheus_client.REGISTRY``.

    Raises ``TypeError`` for anything but a coroutine function.
    """
    if name is not None:
        check_instance("timeit(name=...)", name, str)
    if function is None:
        return functools.partial(_timed, name=name)
    return _timed(function, name=name)


def _timed(function: _Timeable[P, T], *, name: str | None) -> _Timeable[P, T]:
    if not iscoroutinefunction(function):
        raise TypeError(
            f"@timeit takes a coroutine function, got {function!r}: write 'async def', "
            "or time a block with 'with operation(...)'"
        )
    label: Final = name or function.__qualname__

    @functools.wraps(function)
    async def timed(*args: P.args, **kwargs: P.kwargs) -> T:
        outcome = _Outcome(label)
        return await time_awaitable(outcome, outcome.watch(function(*args, **kwargs)))

    return timed
