"""N tasks wait at this line: where all tasks stand, and how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from .model import CoroCount, Frame, Group, Summary
from .places import is_library
from .seen import Seen
from .tracker import is_adopted, number_of

__all__ = ["Crowd", "Groups"]

_MOST = 50
_CONNECTION = "RequestHandler.start"
"""What aiohttp's server runs for every connection, between its requests and during them."""


class Crowd:
    """Tasks of one coroutine function that stand at the same line, in the same state or kind of wait.

    ``own`` counts those among them that are a request's own task.
    """

    __slots__ = ("count", "first", "oldest", "own")

    def __init__(self, first: Seen) -> None:
        self.count = 0
        self.own = 0
        self.first = first
        self.oldest: float | None = None

    def waits_in(self, kinds: Collection[str]) -> bool:
        """Whether they wait, in one of ``kinds``."""
        reading = self.first.reading
        return reading is not None and reading.kind in kinds

    @property
    def line(self) -> Frame | None:
        """Where they stand."""
        return self.first.line


class Groups:
    """The tasks of one snapshot, by where they stand."""

    def __init__(self) -> None:
        # By identity of the line, which all tasks at the same places share: the first one keeps it.
        self._crowds: dict[tuple[int, str, str], Crowd] = {}

    def add(self, seen: Seen) -> None:
        """Count one task."""
        reading = seen.reading
        key = (id(seen.line), seen.coro, seen.state if reading is None else reading.kind)
        crowd = self._crowds.get(key)
        if crowd is None:
            crowd = self._crowds[key] = Crowd(seen)
        crowd.count += 1
        if seen.exchange is not None and is_adopted(seen.task):
            crowd.own += 1
        if seen.age is not None and (crowd.oldest is None or seen.age > crowd.oldest):
            crowd.oldest, crowd.first = seen.age, seen

    def crowds(self) -> list[Crowd]:
        """All, those in the service's own code before those in a library's, the largest first."""
        return sorted(self._crowds.values(), key=lambda crowd: (_is_foreign(crowd.line), -crowd.count))

    def total(self) -> int:
        """How many tasks there are."""
        return sum(crowd.count for crowd in self._crowds.values())

    def connections(self) -> int:
        """How many of the tasks do nothing but serve a connection."""
        return sum(crowd.count for crowd in self._crowds.values() if crowd.first.coro == _CONNECTION)

    def summary(self, *, connections: bool = True) -> Summary:
        """They in numbers, those that serve connections among them or not."""
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

    def requests(self, kinds: Collection[str] | None = None) -> int:
        """How many of the tasks are a request's own, and wait in one of ``kinds``."""
        crowds = self._crowds.values()
        return sum(crowd.own for crowd in crowds if kinds is None or crowd.waits_in(kinds))

    def top(self) -> tuple[Group, ...]:
        """The largest, in words."""
        return tuple(_group(crowd) for crowd in self.crowds()[:_MOST])


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
