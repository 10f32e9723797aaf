"""N tasks wait at this line: where all tasks stand, and how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from ..exchange import Exchange
from .model import CoroCount, Frame, Group, Summary
from .places import is_library
from .resources import is_asked_for_by_library
from .seen import Seen
from .stacks import Reading
from .tracker import is_request_task, number_of

__all__ = ["Crowd", "Encounter", "Groups"]

_MOST = 50
_CONNECTION = "RequestHandler.start"
"""What aiohttp's server runs for every connection, between its requests and during them."""
_IDLE = {"http_server_idle", "queue_get", "sleep", "websocket"}
"""Waits that many may be in while all is well: those who are in them are not at work."""
_NEWS = {"Condition.wait", "Condition.wait_for", "Event.wait", "Queue.get", "sleep"}
"""What a long poll, for a while, and a stream wait in until there is something to tell."""
_AROUND = {"async_generator", "timeout", "wait_for"}


class Crowd:
    """Tasks of one coroutine function that stand at the same line, in the same state or kind of wait.

    ``own`` counts those among them that are a request's own task, and ``left`` those of these
    whose client has left.
    """

    __slots__ = ("_idle", "_polls", "count", "first", "left", "oldest", "own")

    def __init__(self, first: Seen) -> None:
        self.count = self.own = self.left = 0
        self._idle = self._polls = 0
        self.first = first
        self.oldest: float | None = None

    def add(self, seen: Seen) -> None:
        """Count one more task."""
        self.count += 1
        if seen.age is not None and (self.oldest is None or seen.age > self.oldest):
            self.oldest, self.first = seen.age, seen

    def add_own(self, exchange: Exchange, *, idle: bool, polls: bool) -> None:
        """Count the task just added as the own task of ``exchange``."""
        self.own += 1
        self._idle += idle
        self._polls += polls
        if exchange.client_left_at is not None and exchange.duration is None:
            self.left += 1

    @classmethod
    def of(cls, crowds: Sequence[Crowd]) -> Crowd:
        """One crowd of all the tasks of ``crowds``."""
        oldest = max(crowds, key=lambda crowd: crowd.oldest or 0.0)
        whole = cls(oldest.first)
        whole.oldest = oldest.oldest
        for crowd in crowds:
            whole.count, whole.own = whole.count + crowd.count, whole.own + crowd.own
            whole.left, whole._idle = whole.left + crowd.left, whole._idle + crowd._idle
            whole._polls += crowd._polls
        return whole

    def at_work(self) -> int:
        """How many requests in the crowd don't just wait until there is something to do or to tell.

        A queue or condition that a library waits at, with a timeout, is most likely that of a
        pool of connections: who waits there is at work.
        """
        busy = self.own - self._idle
        return busy if not self._polls or is_asked_for_by_library(self.first.task) else busy - self._polls

    def is_of_requests(self) -> bool:
        """Whether the tasks are there because clients are: aiohttp's own, of connections and requests."""
        return self.own * 2 > self.count or self.first.coro == _CONNECTION

    @property
    def line(self) -> Frame | None:
        """The line at which the tasks stand."""
        return self.first.line


class Encounter(Crowd):
    """Requests that wait at the same resource, wherever they stand: how many are of which crowd."""

    __slots__ = ("crowds",)

    def __init__(self, first: Seen) -> None:
        super().__init__(first)
        self.crowds: dict[Crowd, int] = {}

    def add_of(self, crowd: Crowd, seen: Seen, exchange: Exchange, *, polls: bool) -> None:
        """Count one more request, which stands in ``crowd`` and isn't idle."""
        self.add(seen)
        self.add_own(exchange, idle=False, polls=polls)
        self.crowds[crowd] = self.crowds.get(crowd, 0) + 1


class Groups:
    """The tasks of one snapshot, by where they stand."""

    def __init__(self) -> None:
        # By identity of the line, which all tasks at the same places share: the first one keeps it.
        self._crowds: dict[tuple[int, str, str], Crowd] = {}
        self._encounters: dict[int, Encounter] = {}
        self._alone: dict[
            int, tuple[Crowd, Seen, Exchange, bool]
        ] = {}  # as most are: an encounter costs more

    def add(self, seen: Seen) -> None:
        """Count one task."""
        reading = seen.reading
        key = (id(seen.line), seen.coro, seen.state if reading is None else reading.kind)
        crowd = self._crowds.get(key)
        if crowd is None:
            crowd = self._crowds[key] = Crowd(seen)
        crowd.add(seen)
        if seen.exchange is not None and is_request_task(seen.task):
            self._add_own(crowd, seen, seen.exchange)

    def _add_own(self, crowd: Crowd, seen: Seen, exchange: Exchange) -> None:
        reading = seen.reading
        if reading is None:
            crowd.add_own(exchange, idle=False, polls=False)
            return
        waits_for_news = _is_for_news(reading.detail)
        # A status is known before the end only of what is a stream.
        idle = _is_idle(reading) or (waits_for_news and exchange.status is not None)
        polls = waits_for_news and reading.timed and not idle
        crowd.add_own(exchange, idle=idle, polls=polls)
        # Requests that have yet to answer, and wait at the same queue, wait for what is in a pool.
        is_for_pool = reading.kind == "queue_get" and exchange.status is None
        if reading.resource is not None and (not idle or is_for_pool):
            self._meet(id(reading.resource), crowd, seen, exchange, polls)

    def _meet(self, resource: int, crowd: Crowd, seen: Seen, exchange: Exchange, polls: bool) -> None:
        """Note who waits at a resource, given by its `id`: the first who waits there keeps that its own."""
        encounter = self._encounters.get(resource)
        if encounter is None:
            first = self._alone.setdefault(resource, (crowd, seen, exchange, polls))
            if first[1] is seen:
                return
            encounter = self._encounters[resource] = Encounter(first[1])
            encounter.add_of(*first[:3], polls=first[3])
        encounter.add_of(crowd, seen, exchange, polls=polls)

    def encounters(self) -> list[Encounter]:
        """Requests that wait at the same resource, two or more, those most wanted first."""
        return sorted(self._encounters.values(), key=lambda encounter: -encounter.own)

    def lines(self) -> list[list[Crowd]]:
        """The crowds that wait, in lists of those that wait for the same at the same line."""
        lines: dict[tuple[Frame | None, str], list[Crowd]] = {}
        for crowd in self.crowds():
            if crowd.first.reading is not None:
                lines.setdefault((crowd.line, crowd.first.reading.innermost), []).append(crowd)
        return list(lines.values())

    def crowds(self) -> list[Crowd]:
        """All crowds, those in the service's own code before those in a library's, the largest first."""
        return sorted(self._crowds.values(), key=lambda crowd: (_is_foreign(crowd.line), -crowd.count))

    def total(self) -> int:
        """How many tasks there are."""
        return sum(crowd.count for crowd in self._crowds.values())

    def connections(self) -> int:
        """How many of the tasks do nothing but serve a connection."""
        return sum(crowd.count for crowd in self._crowds.values() if crowd.first.coro == _CONNECTION)

    def summary(self, *, connections: bool = True) -> Summary:
        """The tasks in numbers, with or without those that do nothing but serve a connection."""
        by_state: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        by_coro: Counter[str] = Counter()
        oldest: dict[str, float] = {}
        for crowd in self._crowds.values():
            seen, count = crowd.first, crowd.count
            if seen.coro == _CONNECTION and not connections:
                continue
            by_state[seen.state] += count
            by_coro[seen.coro] += count
            if seen.reading is not None:
                waiting[seen.reading.kind] += count
            if crowd.oldest is not None:
                oldest[seen.coro] = max(round(crowd.oldest, 6), oldest.get(seen.coro, 0.0))
        return Summary(
            total=sum(by_state.values()),
            by_state=dict(by_state),
            waiting=dict(waiting.most_common()),
            by_coro=tuple(CoroCount(coro, n, oldest.get(coro)) for coro, n in by_coro.most_common()),
        )

    def requests(self) -> int:
        """How many of the tasks are a request's own."""
        return sum(crowd.own for crowd in self._crowds.values())

    def at_work(self) -> int:
        """How many requests don't just wait until there is something to do or to tell."""
        return sum(crowd.at_work() for crowd in self._crowds.values())

    def top(self) -> tuple[Group, ...]:
        """The largest crowds, as the documents show them."""
        return tuple(_group(crowd) for crowd in self.crowds()[:_MOST])


@lru_cache(maxsize=1024)
def _is_for_news(detail: str) -> bool:
    """Whether a wait is for nobody's work, but until there is something to tell."""
    *around, innermost = detail.split(" → ")
    return innermost in _NEWS and _AROUND.issuperset(around)


def _is_idle(reading: Reading) -> bool:
    """Whether many may wait so while all is well; who sends to a web socket waits for its client to read."""
    return reading.kind in _IDLE and (reading.kind != "websocket" or "receive" in reading.detail)


def _is_foreign(line: Frame | None) -> bool:
    return line is None or is_library(line.file)


def _group(crowd: Crowd) -> Group:
    seen = crowd.first
    reading = seen.reading
    return Group(
        frame=seen.line,
        coro=seen.coro,
        wait=None if reading is None else reading.kind,
        detail=seen.state if reading is None else reading.detail,
        count=crowd.count,
        oldest_seconds=None if crowd.oldest is None else round(crowd.oldest, 6),
        example=number_of(seen.task),
    )
