"""Outbound calls and their phases, measured a few at once, as requests are."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram

from ..exchange import OTHER, ClientOutcome, SpanIds, taken
from .labels import MOST_HOSTS, MOST_NAMES, Bounded, bounded_outcome, label
from .tally import DURATION_BUCKETS, Timed, observing_all

if TYPE_CHECKING:
    from .description import Metrics

__all__ = ["ClientCalls"]

_MOST_WAITING = 64

Phase = tuple[str, str, bool]
"""Host, phase, and whether it was an answer that sent the call to this host."""

_seconds = itemgetter(0)


class ClientCalls:
    """Takes calls down from any thread, and observes them when told to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._bounded_host = Bounded(MOST_HOSTS)
        self._bounded_port = Bounded(MOST_HOSTS)
        self._bounded_error = Bounded(MOST_NAMES)
        self._ended: deque[tuple[ClientOutcome, float, SpanIds | None]] = deque()
        self._phases: deque[tuple[Phase, float]] = deque()
        self._series: dict[tuple[object, ...], Timed] = {}
        self._duration = Histogram(
            "http_client_request_duration_seconds",
            "Duration of HTTP client requests, to the last byte",
            [
                "http_request_method",
                "server_address",
                "server_port",
                "http_response_status_code",
                "error_type",
            ],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._phase_duration = Histogram(
            "http_client_phase_seconds",
            "Parts of HTTP client requests; queue is the wait for a pooled connection",
            ["server_address", "phase"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )

    def limit(self, limits: Metrics) -> None:
        """How many labels of a kind there may be."""
        self._bounded_host.limit = self._bounded_port.limit = limits.max_hosts
        self._bounded_error.limit = limits.max_names

    def add(self, outcome: ClientOutcome, seconds: float, span: SpanIds | None) -> None:
        """A call has ended; ``span`` may be its exemplar."""
        self._ended.append((outcome, seconds, span))

    def add_phase(self, phase: Phase, seconds: float) -> None:
        """Take down how long a phase of a call has taken."""
        self._phases.append((phase, seconds))

    @property
    def are_many(self) -> bool:
        """Whether so many calls are taken down that it is time to flush."""
        return len(self._ended) >= _MOST_WAITING or len(self._phases) >= _MOST_WAITING

    def forget(self) -> None:
        """In a forked child: what waits is the parent's."""
        self._ended.clear()
        self._phases.clear()

    def flushing(self) -> Iterator[Callable[[], None]]:
        """What observes the calls taken down since the last time, a series at a time: each may fail."""
        calls: defaultdict[ClientOutcome, list[tuple[float, SpanIds | None]]] = defaultdict(list)
        for outcome, seconds, span in taken(self._ended):
            calls[outcome].append((seconds, span))
        phases: defaultdict[Phase, list[float]] = defaultdict(list)
        for phase, seconds in taken(self._phases):
            phases[phase].append(seconds)
        for outcome, alike in calls.items():
            yield partial(self._observe_calls, outcome, alike)
        for phase, durations in phases.items():
            yield partial(self._observe_phases, phase, durations)

    def _observe_calls(self, outcome: ClientOutcome, alike: list[tuple[float, SpanIds | None]]) -> None:
        alike.sort(key=_seconds)
        self._series_of(outcome).observe(*zip(*alike, strict=True))

    def _observe_phases(self, phase: Phase, durations: list[float]) -> None:
        host, name, redirected = phase
        bounded = self._bounded_host(host, admit=not redirected)
        observing_all(self._phase_duration.labels(bounded, name))(durations)

    def _series_of(self, outcome: ClientOutcome) -> Timed:
        method, host, port, status, error_type = outcome
        bounded = self._bounded_host(host)
        if bounded is OTHER or self._bounded_port(f"{host}:{port}") is OTHER:
            port = None
        code, error_type = bounded_outcome(status, error_type, self._bounded_error)
        key = (method, bounded, port, code, error_type)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = Timed(self._duration.labels(*map(label, key)))
        return series
