"""Crowds of tasks of one coroutine at one line that grow from look to look: most likely a leak."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from weakref import WeakKeyDictionary

from .groups import Crowd, Groups
from .model import Frame
from .tracker import number_of

__all__ = ["Growing", "grown"]

_LEAST = 50
"""Tasks that a crowd must have."""
_FACTOR = 1.5
"""By how much it must have grown."""
_SPAN_SECONDS = 30.0
"""For how long it must have grown, never shrinking."""
_INTERVAL_SECONDS = 5.0
_LOOKS = 60
_MOST_CROWDS = 100

_Key = tuple["Frame | None", str]


@dataclass(frozen=True, slots=True)
class Growing:
    """A crowd of ``count`` tasks, of which ``before`` were there ``seconds`` ago."""

    line: Frame | None
    coro: str
    count: int
    before: int
    seconds: float
    example: int


class _Memory:
    """What was seen of one loop: times and sizes of each crowd, at least 5 s apart."""

    def __init__(self) -> None:
        self._sizes: dict[_Key, deque[tuple[float, int]]] = {}

    def note(self, crowds: Iterable[Crowd], now: float) -> list[Growing]:
        sizes, self._sizes = self._sizes, {}
        grown = []
        for key, crowd in islice(_whatever_they_do(crowds), _MOST_CROWDS):
            seen = self._sizes[key] = sizes.get(key) or deque(maxlen=_LOOKS)
            if seen and crowd.count < seen[-1][1]:
                seen.clear()
            if not seen or now - seen[-1][0] >= _INTERVAL_SECONDS:
                seen.append((now, crowd.count))
            since, before = seen[0]
            if (
                now - since >= _SPAN_SECONDS
                and len(seen) > 2
                and crowd.count >= max(_LEAST, _FACTOR * before)
            ):
                example = number_of(crowd.first.task)
                grown.append(Growing(*key, crowd.count, before, now - since, example))
        return grown


def _whatever_they_do(crowds: Iterable[Crowd]) -> Iterator[tuple[_Key, Crowd]]:
    """The crowds of one coroutine at one line as one: each look finds others of its tasks ready."""
    alike: dict[_Key, list[Crowd]] = {}
    for crowd in crowds:
        if crowd.is_of_requests():
            continue  # there are as many as are asked, and what they wait for is told as that
        alike.setdefault((crowd.line, crowd.first.coro), []).append(crowd)
    return ((key, Crowd.of(some)) for key, some in alike.items())


_memories: WeakKeyDictionary[asyncio.AbstractEventLoop, _Memory] = WeakKeyDictionary()


def grown(loop: asyncio.AbstractEventLoop, groups: Groups, now: float | None = None) -> list[Growing]:
    """Take in a look at all tasks of ``loop``; returns the crowds that have grown all the time."""
    memory = _memories.setdefault(loop, _Memory())
    return memory.note(groups.crowds(), perf_counter() if now is None else now)
