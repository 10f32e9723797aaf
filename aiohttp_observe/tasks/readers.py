"""Who could take something out of a full queue, or give a permit back: known only if nobody unseen has it.

Neither a queue nor a plain semaphore says who will.  But if every reference to it is a local
variable of live tasks, or is in something that only these have (a closure's cell, an object, a
dictionary), then nobody else can get at it.  All references to each link are counted: one
that isn't found is somebody unseen.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
    TracebackType,
)
from typing import Any, Protocol
from weakref import getweakrefcount

from .chain import Chain, held_by
from .tracker import is_made_by_wait_for, number_of

__all__ = ["says_get", "within_reach_of"]

_TAKES = {"get", "get_nowait"}

_DEEPEST = 6
_WIDEST = 100
_MOST = 20_000
"""Links that are followed, things that one of them may have, and all looked into: the rest is unseen."""
_SLICE = 50
_SUSPENDED = (GeneratorType, AsyncGeneratorType)
_NOT_FOLLOWED = (
    CoroutineType,  # a task's own are looked at with it, and others, not yet awaited, are unseen
    type,
    ModuleType,
    FrameType,
    CodeType,
    TracebackType,
    asyncio.Future,
    asyncio.AbstractEventLoop,
)


class Holder(Protocol):
    """What refers to the queue on our side; nothing here may keep another reference to it."""

    resource: Any


def within_reach_of(
    holder: Holder, tasks: Iterable[asyncio.Task[Any]], known: int
) -> Generator[None, None, list[int] | None]:
    """The ids of the tasks that have its resource, found in slices; ``None`` if somebody unseen may.

    ``known`` is the number of references to it besides the holder's and the tasks'.
    """
    references = _References(holder)
    found = []
    for number, task in enumerate(tasks, 1):
        if references.add(task):
            found.append(number_of(task))
        if number % _SLICE == 0:
            yield
    return found if references.are_all(known) else None


def says_get(task: asyncio.Task[Any]) -> bool:
    """Whether the code that ``task`` is in takes something out of a queue, or looks like it."""
    return any(
        not _TAKES.isdisjoint(frame.f_code.co_names) for frame in Chain(task, is_made_by_wait_for).frames
    )


class _References:
    """The references to a resource, and to each thing that has one, that were found with tasks."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._counts: Counter[int] = Counter()
        self._things: dict[int, Any] = {}
        self._others: set[int] = set()
        self._left = _MOST

    def add(self, task: asyncio.Task[Any]) -> bool:
        """Look at the frames of ``task``; whether one of them leads to the resource."""
        awaitables = list(_frames(task))
        self._others.update(map(id, awaitables))  # each is looked at here, and nowhere else
        return sum(self._count(held_by(awaitable), _DEEPEST) for awaitable in awaitables) > 0

    def are_all(self, known: int) -> bool:
        """Whether there are no others, with ``known`` ones to the resource."""
        counts, things = self._counts, self._things
        if sys.getrefcount(self._holder.resource) != counts[id(self._holder.resource)] + known + 2:
            return False  # 2: the holder's, the call's
        return all(sys.getrefcount(things[key]) == counts[key] + 2 for key in things) and not any(
            type(thing) not in _SUSPENDED and getweakrefcount(thing) for thing in things.values()
        )

    def _count(self, held: Iterable[Any], depth: int) -> int:
        leading = [id(each) for each in held if self._leads(each, depth)]
        self._counts.update(leading)
        return len(leading)

    def _leads(self, each: Any, depth: int) -> bool:
        if each is self._holder.resource or id(each) in self._things:
            return True
        if not depth or not self._left or id(each) in self._others or not gc.is_tracked(each):
            return False
        self._left -= 1
        self._others.add(id(each))  # so that no circle is followed
        if not self._count(_had_by(each), depth - 1):
            return False
        self._others.discard(id(each))
        self._things[id(each)] = each
        return True


def _had_by(each: Any) -> Sequence[Any]:
    if isinstance(each, _NOT_FOLLOWED):
        return ()
    if isinstance(each, FunctionType):
        return [each.__closure__]
    had = held_by(each) if type(each) in _SUSPENDED else gc.get_referents(each)
    return had if len(had) <= _WIDEST else ()


def _frames(task: asyncio.Task[Any]) -> Iterator[Any]:
    """The coroutines and generators of a task: of its await chain, or of what it runs."""
    chain = Chain(task, is_made_by_wait_for)
    yield from chain.awaitables
    running = chain.awaitables[-1] if chain.awaitables else None
    while getattr(running, "cr_running", False):  # nothing is awaited: it is on the stack
        running = next((each for each in held_by(running) if getattr(each, "cr_running", False)), None)
        if running is not None:
            yield running
