"""The flight recorder: the last requests of every route, kept in memory to be looked at.

As golang.org/x/net/trace does: for each family, counts by latency and a few of the slowest,
of the failed and of the latest.  What is kept are exchanges, which hold no request, response
or task; their number is bounded by that of the families.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappush, heappushpop
from itertools import chain, count
from math import inf
from time import perf_counter
from typing import Any, NamedTuple

from .exchange import OTHER, Ended, Exchange
from .jsonpieces import encode, listed
from .texts import timestamp_of

__all__ = ["Failing", "FlightRecorder", "StateOf"]

_LATENCIES = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, inf)
"""Seconds, the upper ends of the latency classes."""
_CLASSES = ("<=10ms", "<=50ms", "<=100ms", "<=500ms", "<=1s", "<=5s", ">5s")
_MOST_FAMILIES = 200
_KEPT = 5
"""Exchanges of each sort that a family keeps."""
_MINUTE, _SLOT = 60.0, 6.0
"""Seconds in which failures are counted, and the steps in which that moves on."""
_OFTEN, _SHARE = 5, 0.05
"""Failures in a minute, and their share of a route's requests, that are worth telling."""
_MOST_IN_FLIGHT = 500
_SLICE = 10
"""Requests or routes in one piece of text."""

StateOf = Callable[[Exchange], "tuple[int | None, tuple[str, str] | None]"]
"""The task id of a request in flight, and kind and detail of what it waits for."""


class Failing(NamedTuple):
    """A route that fails: of the ``total`` requests of the last minute ``failed``, with a 5xx or no answer.

    ``all_of_late``: its last five requests all did.  ``error`` is that of the latest.
    """

    method: str
    route: str
    error: str
    failed: int
    total: int
    all_of_late: bool


class FlightRecorder:
    """Takes in every request that has ended; an observer.

    ``in_flight`` gives the requests that haven't.
    """

    def __init__(self, in_flight: Callable[[], Iterable[Exchange]]) -> None:
        self._in_flight = in_flight
        self._families: dict[tuple[str, str], _Family] = {}
        self.total = 0

    def flush(self, ended: Ended) -> None:
        """Sort in those that have ended since the last time."""
        now = perf_counter()
        for (method, route, _, error), alike in ended.items():
            self.total += len(alike)
            family = self._families.get((method, route)) or self._new_family(method, route)
            family.add(alike, now, has_error=error is not None)

    def _new_family(self, method: str, route: str) -> _Family:
        return self._families.setdefault(self._key(method, route), _Family())

    def _key(self, method: str, route: str) -> tuple[str, str]:
        """Under what a request is remembered."""
        key = method, route
        return key if key in self._families or len(self._families) < _MOST_FAMILIES else (OTHER, OTHER)

    def overview(self, state_of: StateOf) -> Iterator[str]:
        """The document of ``/_tasks/requests`` as JSON, in pieces between which a loop can have a turn.

        First the routes that took the most time, requests in flight included.  Works from any thread.
        """
        flying, families = list(self._in_flight()), dict(list(self._families.items()))
        flying.sort(key=lambda exchange: exchange.started)
        now = perf_counter()
        number: Counter[tuple[str, str]] = Counter()
        so_far: defaultdict[tuple[str, str], float] = defaultdict(float)
        for exchange in flying:
            key = self._key(exchange.method, exchange.route)
            number[key] += 1
            so_far[key] += now - exchange.started
        for key in number:
            families.setdefault(key, _Family())  # if none has ended yet
        yield '{"in_flight":['
        shown = (_flying(exchange, state_of) for exchange in flying[:_MOST_IN_FLIGHT])
        yield from listed(map(encode, shown), _SLICE)
        yield '],"routes":['
        routes = (
            {
                "method": key[0],
                "route": key[1],
                "in_flight": number[key],
                "in_flight_seconds": round(so_far[key], 6),
                **family.told(),
            }
            for key, family in sorted(families.items(), key=lambda item: -item[1].seconds - so_far[item[0]])
        )
        yield from listed(map(encode, routes), _SLICE)
        yield f'],"left_out":{max(0, len(flying) - _MOST_IN_FLIGHT)}}}'

    def failing(self) -> list[Failing]:
        """The routes that fail just now, by number of failures; in any thread."""
        now, found = perf_counter(), []
        for (method, route), family in list(self._families.items()):
            failing = family.failing(method, route, now)
            if failing is not None:
                found.append(failing)
        return sorted(found, key=lambda failing: -failing.failed)

    def find(self, request_id: str, state_of: StateOf) -> dict[str, Any] | None:
        """The document of ``/_tasks/requests/{request_id}``, if it is known.

        A service that calls itself passes the id on: it is the first one that is meant.
        """
        known = chain(self._in_flight(), self._kept())
        matching = (exchange for exchange in known if exchange.request_id == request_id)
        found = min(matching, key=lambda exchange: exchange.started, default=None)
        return None if found is None else _whole(found, state_of(found)[1])

    def _kept(self) -> Iterator[Exchange]:
        for family in list(self._families.values()):
            yield from family.kept()


class _Family:
    """The requests of one method and route."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._busy = 0.0
        self._ready = 0.0
        self._waiting: dict[str, float] = {}
        self._count = 0
        self._errors = 0
        self._latencies = [0] * len(_CLASSES)
        self._fastest_kept = -1.0
        self._slowest: list[tuple[float, int, Exchange]] = []
        self._failed: list[Exchange] = []
        self._recent: list[Exchange] = []
        self._last_minute = _LastMinute()
        self._last_failure: str | None = None

    def add(self, alike: Sequence[Exchange], now: float, *, has_error: bool) -> None:
        """Keep the best of some requests that have ended alike, just ``now``."""
        self._count += len(alike)
        self._busy += sum([exchange.busy for exchange in alike])
        self._recent = _newest(self._recent, alike)
        if has_error:
            self._errors += len(alike)
            self._failed = _newest(self._failed, alike)
        failed = _is_failed(alike[-1])
        if failed:
            self._last_failure = alike[-1].error_type
        self._last_minute.add(now, len(alike), failed=failed)
        for exchange in alike:
            if exchange.waiting or exchange.ready:
                self._add_waits(exchange)
        self._add_durations(alike)

    def _add_durations(self, alike: Sequence[Exchange]) -> None:
        durations = [exchange.duration or 0.0 for exchange in alike]
        self.seconds += sum(durations)
        ascending, before = sorted(durations), 0
        for latency, bound in enumerate(_LATENCIES):
            upto = bisect_right(ascending, bound)
            self._latencies[latency] += upto - before
            before = upto
        if ascending[-1] > self._fastest_kept:
            for seconds, exchange in zip(durations, alike, strict=True):
                if seconds > self._fastest_kept:
                    self._keep_slow(seconds, exchange)

    def _add_waits(self, exchange: Exchange) -> None:
        self._ready += exchange.ready
        for kind, waited in exchange.waiting.items():
            self._waiting[kind] = self._waiting.get(kind, 0.0) + waited

    def _keep_slow(self, seconds: float, exchange: Exchange) -> None:
        kept = (seconds, next(_order), exchange)
        if len(self._slowest) < _KEPT:
            heappush(self._slowest, kept)
        else:
            heappushpop(self._slowest, kept)
            self._fastest_kept = self._slowest[0][0]

    def failing(self, method: str, route: str, now: float) -> Failing | None:
        """Whether it fails just ``now``, as the route it is of."""
        failed, total = self._last_minute.counted(now)
        recent = self._recent
        all_of_late = failed > 0 and len(recent) == _KEPT and all(map(_is_failed, recent))
        if all_of_late or (failed >= _OFTEN and failed >= _SHARE * total):
            return Failing(method, route, str(self._last_failure), failed, total, all_of_late)
        return None

    def kept(self) -> Iterator[Exchange]:
        yield from reversed(self._recent)
        yield from reversed(self._failed)
        yield from (exchange for _, _, exchange in list(self._slowest))

    def told(self) -> dict[str, Any]:
        slowest = sorted(self._slowest, reverse=True)
        return {
            "count": self._count,
            "errors": self._errors,
            "latency": dict(zip(_CLASSES, self._latencies, strict=True)),
            "seconds": round(self.seconds, 6),
            "busy_seconds": round(self._busy, 6),
            "ready_seconds": round(self._ready, 6),
            "waiting": _rounded(self._waiting),
            "slowest": [_brief(exchange) for _, _, exchange in slowest],
            "failed": [_brief(exchange) for exchange in reversed(self._failed)],
            "recent": [_brief(exchange) for exchange in reversed(self._recent)],
        }


class _LastMinute:
    """How many requests ended, and failed, in about the last minute: by when some seconds began."""

    def __init__(self) -> None:
        self._slots: deque[tuple[float, list[int]]] = deque(maxlen=int(_MINUTE / _SLOT))

    def add(self, now: float, number: int, *, failed: bool) -> None:
        if not self._slots or now - self._slots[-1][0] >= _SLOT:
            self._slots.append((now, [0, 0]))
        counts = self._slots[-1][1]
        counts[0] += number if failed else 0
        counts[1] += number

    def counted(self, now: float) -> tuple[int, int]:
        """How many failed, and of how many; in any thread."""
        recent = [counts for begun, counts in list(self._slots) if now - begun < _MINUTE]
        return sum(failed for failed, _ in recent), sum(total for _, total in recent)


def _newest(kept: Sequence[Exchange], ended: Sequence[Exchange]) -> list[Exchange]:
    """The last to end of two lists, each oldest first."""
    return sorted([*kept, *ended[-_KEPT:]], key=_ended)[-_KEPT:]


def _is_failed(exchange: Exchange) -> bool:
    return exchange.status is None or exchange.status >= 500


def _ended(exchange: Exchange) -> float:
    return exchange.started + (exchange.duration or 0.0)


_order = count()


def _brief(exchange: Exchange) -> dict[str, Any]:
    return {
        "request_id": exchange.request_id,
        "at": timestamp_of(exchange.started),
        "status": exchange.status,
        "error_type": exchange.error_type,
        "seconds": _seconds(exchange),
    }


def _flying(exchange: Exchange, state_of: StateOf) -> dict[str, Any]:
    task, wait = state_of(exchange)
    return {
        "request_id": exchange.request_id,
        "method": exchange.method,
        "route": exchange.route,
        "seconds": _seconds(exchange),
        **_split(exchange, wait),
        "waits_for": None if wait is None else wait[1],
        "task": task,
        "trace_id": exchange.trace_id,
        "client_left": exchange.client_left_at is not None,
    }


def _whole(exchange: Exchange, wait: tuple[str, str] | None) -> dict[str, Any]:
    return {
        "request_id": exchange.request_id,
        "method": exchange.method,
        "route": exchange.route,
        "path": exchange.path,
        "at": timestamp_of(exchange.started),
        "in_flight": exchange.duration is None,
        "status": exchange.status,
        "websocket": None if exchange.websocket is None else exchange.websocket.attributes,
        "error_type": exchange.error_type,
        "seconds": _seconds(exchange),
        **_split(exchange, wait),
        "polls": exchange.polls,
        "longest_poll_seconds": round(exchange.longest_poll, 6),
        "trace_id": exchange.trace_id,
        "span_id": exchange.span_id,
        "client_address": exchange.client_address,
        "steps": [
            {
                "kind": step.kind,
                "name": step.name,
                "started_seconds": round(step.started - exchange.started, 6),
                "seconds": None if step.seconds is None else round(step.seconds, 6),
                "error": step.error,
            }
            for step in exchange.steps
        ],
        "steps_left_out": exchange.steps_left_out,
    }


def _split(exchange: Exchange, wait: tuple[str, str] | None) -> dict[str, Any]:
    """Where an exchange's time went, what it waits for now included."""
    waiting = dict(exchange.waiting)
    if wait is not None and exchange.duration is None and exchange.suspended_at is not None:
        waiting[wait[0]] = waiting.get(wait[0], 0.0) + perf_counter() - exchange.suspended_at
    return {
        "busy_seconds": round(exchange.busy, 6),
        "ready_seconds": round(exchange.ready, 6),
        "waiting": _rounded(waiting),
    }


def _rounded(waiting: Any) -> dict[str, float]:
    return {kind: round(seconds, 6) for kind, seconds in dict(waiting).items()}


def _seconds(exchange: Exchange) -> float:
    """An exchange's duration, so far if it is in flight."""
    seconds = perf_counter() - exchange.started if exchange.duration is None else exchange.duration
    return round(seconds, 6)
