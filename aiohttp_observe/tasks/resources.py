"""Locks, queues and the like: who is inside, who waits, and who therefore never gets on.

Nothing is instrumented.  A waiter's chain ends in the resource's own method; a holder is in
its ``async with`` block, which keeps its ``__aexit__`` on the suspended frame.  So the
holders of a lock acquired in any other way are unknown, and a running task shows none.
"""

from __future__ import annotations

import asyncio
import dis
import gc
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Set
from functools import lru_cache
from time import perf_counter
from types import AsyncGeneratorType, CodeType, CoroutineType, GeneratorType, MethodType
from typing import Any

from .chain import Chain, held_by
from .deadlock import Need, cycles
from .holding import held_seconds
from .managers import EXIT_IS_APART, entered_by, managers_in
from .model import Frame, Resource
from .places import is_library
from .readers import may_release, readers_of, running_codes
from .stacks import Reading, Stack
from .tracker import number_of
from .waits import registered_state

__all__ = ["ResourceIndex", "is_asked_for_by_library", "state_of"]


_HELD = (asyncio.Lock, asyncio.Semaphore)
"""What tasks are inside of, and others wait for them to leave."""
_JAMS = (*_HELD, asyncio.Queue)
_ACQUIRE = asyncio.Lock.acquire.__code__
_SLICE = 2000
_SUSPENDED = (CoroutineType, GeneratorType, AsyncGeneratorType)


_LONGEST_STATE = 100
_MOST_PARTIES = 300
"""Waiting tasks beyond which it isn't worked out who could read a full queue."""


class _Meeting:
    __slots__ = ("holders", "place", "resource", "waiters")

    def __init__(self, resource: Any) -> None:
        self.resource = resource
        self.place: Frame | None = None
        self.holders: dict[int, None] = {}  # in the order seen, each once
        self.waiters: list[int] = []


class ResourceIndex:
    """The resources of one snapshot, gathered task by task.

    ``live`` gives all tasks of its loop, ``timed`` which of some tasks and locks its timers refer to.
    """

    def __init__(
        self,
        live: Callable[[], Iterable[asyncio.Task[Any]]],
        timed: Callable[[Iterable[Any]], Generator[None, None, list[Any]]],
    ) -> None:
        self._live = live
        self._timed = timed
        self._known: dict[int, _Meeting] = {}  # by identity: a user's queue may not be hashable
        self._waits: dict[int, Reading] = {}
        self._awaited: dict[int, Any] = {}
        self.readings: dict[int, Reading | None] = {}
        self.tasks: dict[int, asyncio.Task[Any]] = {}

    def note(self, task: asyncio.Task[Any], chain: Chain, stack: Stack, reading: Reading | None) -> None:
        """Take in what ``task`` holds and what it waits for."""
        waits_at = None if reading is None else reading.resource
        number = number_of(task)
        self.tasks[number] = task
        self.readings[number] = reading
        self._awaited[number] = getattr(task, "_fut_waiter", None)
        if stack.managing:
            for lock in _held_locks(chain, stack, waits_at):
                self._of(lock).holders[number] = None
        if reading is None:
            return
        if waits_at is not None and chain.own == len(chain.frames):
            meeting = self._of(waits_at)
            meeting.waiters.append(number)
            if meeting.place is None:
                meeting.place = _asked_at(chain)
        if isinstance(waits_at, asyncio.Condition) and chain.frames[-1].f_code is _ACQUIRE:
            # It has been notified, and wants the lock back.
            waits_at = _lock_of(waits_at)
            reading = reading._replace(resource=waits_at)
            self._of(waits_at).waiters.append(number)
        if not reading.timed and (reading.on or isinstance(waits_at, _JAMS)):
            self._waits[number] = reading

    def resources(self, limit: int) -> tuple[Resource, ...]:
        """The resources that somebody waits at, the most wanted first, ``limit`` of them."""
        wanted = sorted((m for m in self._known.values() if m.waiters), key=lambda m: -len(m.waiters))
        now = perf_counter()
        return tuple(self._told(meeting, now) for meeting in wanted[:limit])

    def _told(self, meeting: _Meeting, now: float) -> Resource:
        resource, state, place = meeting.resource, state_of(meeting.resource), meeting.place
        at = "" if place is None else f"at {place.file}:{place.line}"
        holders = {number: self.tasks[number] for number in meeting.holders}
        return Resource(
            id=number_of(resource),
            type=type(resource).__name__,
            detail=", ".join(filter(None, (_condition_of(resource), at))),
            holders=tuple(holders),
            waiters=tuple(meeting.waiters),
            state=state,
            frame=place,
            held_seconds=held_seconds(resource, holders, now) if holders else None,
        )

    def deadlocks(self) -> Generator[None, None, tuple[tuple[int, ...], ...]]:
        """Cycles of task ids, each waiting for what the next one holds or does; found in slices."""
        found = yield from self._cycles(set())
        if found:
            timed = yield from self._timed([*self._waiting(), *(m.resource for m in self._known.values())])
            found = yield from self._cycles({number_of(each) for each in timed})
        return found

    def _waiting(self) -> Iterator[asyncio.Task[Any]]:
        """Tasks that wait for others: those of a cycle, and those whose end would be its end."""
        return (self.tasks[number] for number, reading in self.readings.items() if reading is not None)

    def _cycles(self, timed: Set[int]) -> Generator[None, None, tuple[tuple[int, ...], ...]]:
        """The deadlocks that are certain, without the tasks and resources that are ``timed``."""
        jammed = {}
        for count, meeting in enumerate(self._known.values(), 1):
            if count % _SLICE == 0:
                yield
            if self._is_jammed(meeting) and number_of(meeting.resource) not in timed:
                jammed[number_of(meeting.resource)] = meeting
        needs = {number: Need(list(meeting.holders), any_of=True) for number, meeting in jammed.items()}
        yield
        needs.update((yield from self._full_queues()))
        rescued = yield from self._rescued(timed)
        for count, (number, reading) in enumerate(self._waits.items(), 1):
            if count % _SLICE == 0:
                yield
            if number in rescued:
                continue
            if reading.resource is not None:
                resource = number_of(reading.resource)
                if resource in needs:
                    needs[number] = Need([resource], any_of=True)
            elif tasks := self._hopeless(reading):
                needs[number] = Need(tasks, any_of=reading.any_of)
        found = yield from cycles(needs)
        plain = set().union(*(_behind(cycle, needs) for cycle in found)) & jammed.keys()
        plain = {number for number in plain if type(jammed[number].resource) is asyncio.Semaphore}
        if plain:
            for number in plain:
                needs[number] = self._need_of_plain(jammed[number])
                yield
            found = yield from cycles(needs)
        certain = [cycle for cycle in found if self._is_certain(_behind(cycle, needs))]
        return tuple(tuple(filter(self.tasks.get, cycle)) for cycle in certain)

    def _need_of_plain(self, meeting: _Meeting) -> Need:
        """Who may give back a permit of a semaphore that doesn't tell how many it let in.

        So all that is entered anywhere is looked for, and whoever may have acquired it without
        a block: that takes long, but only where there is a cycle.
        """
        seen = len(meeting.holders) + len(meeting.waiters)
        if (EXIT_IS_APART and self._runs_in_a_block()) or _entered(meeting.resource) > seen:
            return Need([], any_of=False)
        others = [number_of(task) for task in self._live() if may_release(task)]
        return Need([*dict.fromkeys([*meeting.holders, *others])], any_of=True)

    def _runs_in_a_block(self) -> bool:
        """Whether a running task may be inside of something: where exits lie apart, that can't be seen."""
        return any(_may_manage(code) for task in self._live() for code in running_codes(task))

    def _is_certain(self, stuck: Iterable[int]) -> bool:
        """Whether the tasks among ``stuck``, which are ids of tasks and resources, still wait as they did.

        A picture is made in slices, between which tasks go on.
        """
        return all(map(self._is_unmoved, filter(self.tasks.get, stuck)))

    def _is_unmoved(self, number: int) -> bool:
        """Whether a task hasn't run since it was looked at."""
        awaited: Any = self._awaited[number]
        if awaited is None or awaited.done():
            return False
        return getattr(self.tasks[number], "_fut_waiter", None) is awaited

    def _rescued(self, timed: Set[int]) -> Generator[None, None, set[int]]:
        """Tasks that are cancelled, likely, when their time or that of one that awaits them has passed."""
        rescued: set[int] = set()
        found = [task for number in timed if (task := self.tasks.get(number)) is not None]
        for count, reading in enumerate(self.readings.values(), 1):
            if count % _SLICE == 0:
                yield
            if reading is not None and reading.timed:
                found += reading.on
        looked_at = 0
        while found:
            looked_at += 1
            if looked_at % _SLICE == 0:
                yield
            task = found.pop()
            if _is_pending_task(task) and number_of(task) not in rescued:
                rescued.add(number_of(task))
                reading = self.readings.get(number_of(task))
                found += reading.on if reading else ()
        return rescued

    def _full_queues(self) -> Generator[None, None, dict[int, Need]]:
        """Queues that tasks wait to put into, and the only tasks that could take something out."""
        needs: dict[int, Need] = {}
        if len(self._waits) > _MOST_PARTIES:
            return needs
        for meeting in self._known.values():
            writers = self._writers(meeting)
            if writers:
                known = sum(reading.resource is meeting.resource for reading in self._waits.values())
                readers = readers_of(meeting, self._live(), known)
                if readers and not set(readers) <= set(writers):
                    needs[number_of(meeting.resource)] = Need(readers, any_of=True)
                yield
        return needs

    def _writers(self, meeting: _Meeting) -> list[int]:
        """The tasks that wait to put something into a queue, for as long as it takes."""
        if not isinstance(meeting.resource, asyncio.Queue):
            return []
        waits = self._waits
        return [number for number in meeting.waiters if number in waits and waits[number].kind == "queue_put"]

    def _is_jammed(self, meeting: _Meeting) -> bool:
        """Whether only tasks that wait can let somebody in, and nobody unseen may."""
        if not isinstance(meeting.resource, _HELD):
            return False
        places: int = getattr(meeting.resource, "_bound_value", 1)
        return len(meeting.holders) >= places and self._waits.keys() >= meeting.holders.keys()

    def _hopeless(self, reading: Reading) -> list[int]:
        """Of the tasks waited for those that wait as well; none if another one is enough."""
        tasks = [number_of(future) for future in reading.on if _is_pending_task(future)]
        waiting = [task for task in tasks if task in self._waits]
        return waiting if not reading.any_of or len(waiting) == len(tasks) else []

    def _of(self, resource: Any) -> _Meeting:
        meeting = self._known.get(id(resource))
        if meeting is None:
            meeting = self._known[id(resource)] = _Meeting(resource)
        return meeting


def _entered(semaphore: asyncio.Semaphore) -> int:
    """How many tasks are in or at an ``async with`` block of ``semaphore``, running ones included."""
    referrers = gc.get_referrers(semaphore)
    if EXIT_IS_APART:
        suspended = (each for each in referrers if type(each) in _SUSPENDED)
        return sum(managers_in(held_by(each)).count(semaphore) for each in suspended)
    return sum(type(each) is MethodType and each.__name__ == "__aexit__" for each in referrers)


@lru_cache(maxsize=1024)
def _may_manage(code: CodeType) -> bool:
    return any(each.argrepr == "__aexit__" for each in dis.get_instructions(code))


def _behind(cycle: Iterable[int], needs: Mapping[int, Need]) -> set[int]:
    """All that has to stay as it is for ``cycle`` to be one."""
    behind: set[int] = set()
    found = list(cycle)
    while found:
        each = found.pop()
        if each not in behind:
            behind.add(each)
            found += needs[each].tasks if each in needs else ()
    return behind


def _held_locks(chain: Chain, stack: Stack, waits_at: Any) -> list[Any]:
    """The locks and semaphores in whose ``async with`` blocks a task is, and not just about to be."""
    locks = []
    for index in stack.managing:
        if index < chain.own:
            for manager in entered_by(chain.awaitables[index], chain.awaitables):
                lock = _lock_of(manager)
                if isinstance(lock, _HELD):
                    locks.append(lock)
    if stack.entering or isinstance(waits_at, asyncio.Condition):  # whose wait() has let go of the lock
        _drop_last(locks, _lock_of(waits_at))
    return locks


def _lock_of(manager: Any) -> Any:
    return getattr(manager, "_lock", None) if isinstance(manager, asyncio.Condition) else manager


def _drop_last(locks: list[Any], lock: Any) -> None:
    for index in range(len(locks) - 1, -1, -1):
        if locks[index] is lock:
            del locks[index]
            return


def _is_pending_task(future: Any) -> bool:
    return isinstance(future, asyncio.Task) and not future.done()


def is_asked_for_by_library(task: asyncio.Task[Any]) -> bool:
    """Whether what ``task`` waits for isn't what code of the service asks asyncio for.  Never raises."""
    try:
        place = _asked_at(Chain.of(task))
    except Exception:  # an awaitable that is like no other
        return False
    return place is not None and is_library(place.file)


def _asked_at(chain: Chain) -> Frame | None:
    """The innermost place of ``chain`` outside asyncio."""
    for index in range(len(chain.frames) - 1, -1, -1):
        if not chain.module(index).startswith("asyncio."):
            return chain.place(index)
    return None


def _condition_of(resource: Any) -> str:
    """Whether ``resource`` is open, by its own public methods, which a subclass may have broken."""
    try:
        return _told_by(resource)
    except Exception:
        return ""


def state_of(resource: Any) -> str:
    """Whether ``resource`` is open, in numbers if there are any: ``locked``, ``2 free of 5``, ``3 of 10``."""
    free, places = getattr(resource, "_value", None), getattr(resource, "_bound_value", None)
    if isinstance(resource, asyncio.Semaphore) and isinstance(free, int):
        return f"{free} free of {places}" if places else f"{free} free"
    return _condition_of(resource)


def _told_by(resource: Any) -> str:
    registered = registered_state(resource)
    if registered is not None:
        return registered[:_LONGEST_STATE]
    if isinstance(resource, (asyncio.Lock, asyncio.Semaphore, asyncio.Condition)):
        return "locked" if resource.locked() else "free"
    if isinstance(resource, asyncio.Event):
        return "set" if resource.is_set() else "not set"
    if isinstance(resource, asyncio.Queue):
        return f"{resource.qsize()} of {resource.maxsize or 'unlimited'}"
    return f"{resource.n_waiting} of {resource.parties}"
