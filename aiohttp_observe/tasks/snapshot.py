"""The picture of all tasks of a loop, taken from the loop itself or from any other thread."""

from __future__ import annotations

import asyncio
import os
import platform
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from time import perf_counter
from typing import Any

from .model import CoroCount, LoopState, ProcessInfo, Snapshot, Summary, TaskInfo
from .rows import Rows
from .seen import Look, Seen
from .selection import Selection
from .tracker import number_of
from .verdict import verdict

__all__ = ["count_tasks", "find_task", "snapshot_without_blocking", "take_snapshot"]

_SLICE = 100
"""Tasks looked at, or put into words, before the loop has a turn."""

_imported = perf_counter()


def take_snapshot(
    loop: asyncio.AbstractEventLoop | None = None,
    *,
    loop_state: LoopState | None = None,
    **filters: Any,
) -> Snapshot:
    """The tasks of ``loop``, by default the running one, from any thread and whatever it does.

    ``loop_state`` is what a loop watch knows.  The ``filters`` choose among the tasks:

    ``state``       ``running``, ``scheduled`` or ``waiting``
    ``wait``        a wait kind
    ``coro``        part of the coroutine's qualified name, or a glob pattern for all of it
    ``request_id``  the request worked for
    ``min_age``     seconds
    ``id``          the one task with this id
    ``sort``        ``age`` (oldest first, the default), ``state``, ``coro`` or ``wait``
    ``limit``       how many of the sorted tasks to give, default 1000
    ``frames``      how many frames of each, default 3

    The summary counts all that were chosen; resources and deadlocks are those of all tasks.
    The calling thread is busy for some microseconds a task: see `snapshot_without_blocking`.

    Raises ``RuntimeError`` without a loop, ``TypeError`` or ``ValueError`` for a filter that
    can't be.
    """
    picture = _Picture(loop, loop_state, Selection(**filters))
    for _ in picture.steps():
        pass
    return picture.snapshot()


async def snapshot_without_blocking(
    loop: asyncio.AbstractEventLoop | None = None,
    *,
    loop_state: LoopState | None = None,
    **filters: Any,
) -> Snapshot:
    """As `take_snapshot`, in slices between which the calling loop goes on with its work.

    Tasks that end meanwhile are left out.
    """
    picture = _Picture(loop, loop_state, Selection(**filters))
    for _ in picture.steps():
        await asyncio.sleep(0)
    return picture.snapshot()


def count_tasks(loop: asyncio.AbstractEventLoop) -> list[tuple[str, str, int]]:
    """State, wait kind (``""`` if it doesn't wait) and number of the tasks of ``loop``, from any thread."""
    look = Look(loop, depth=1)
    counts: Counter[tuple[str, str]] = Counter()
    for seen in _seen(look, _live_tasks(loop)):
        counts[seen.state, "" if seen.reading is None else seen.reading.kind] += 1
    return [(*labels, number) for labels, number in counts.items()]


def find_task(number: int, loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Task[Any] | None:
    """The live task of ``loop`` that snapshots show with the id ``number``."""
    tasks = _live_tasks(loop or asyncio.get_running_loop())
    return next((task for task in tasks if number_of(task) == number), None)


class _Picture:
    """A snapshot in the making: run through `steps`, then ask for it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop | None, loop_state: LoopState | None, selection: Selection
    ) -> None:
        self._loop = loop or _running_loop()
        self._loop_state = loop_state or LoopState()
        self._selection = selection
        self._look = Look(self._loop, selection.frames)
        self._tally = _Tally()
        self._chosen: list[tuple[tuple[Any, ...], int, Seen]] = []
        self._rows: list[TaskInfo] = []

    def steps(self) -> Iterator[None]:
        """Do the work, pausing after every slice of it."""
        tasks = _live_tasks(self._loop)
        for number, seen in enumerate(_seen(self._look, tasks), 1):
            if self._selection.takes(seen):
                self._choose(seen)
            if number % _SLICE == 0:
                yield
        words = Rows()
        for number, (_, _, seen) in enumerate(self._best(), 1):
            if not seen.task.done():
                self._rows.append(words.row(seen))
            if number % _SLICE == 0:
                yield

    def snapshot(self) -> Snapshot:
        """The result."""
        meetings = self._look.meetings
        resources, deadlocks = meetings.resources(self._selection.limit), meetings.deadlocks()
        return Snapshot(
            taken_at=datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            process=_process(self._loop),
            loop=self._loop_state,
            summary=self._tally.summary(),
            tasks=tuple(self._rows),
            resources=resources,
            deadlocks=deadlocks,
            verdict=verdict(self._loop_state, resources, deadlocks, meetings.name_of),
            truncated=max(0, self._tally.total - self._selection.limit),
        )

    def _choose(self, seen: Seen) -> None:
        self._tally.add(seen)
        self._chosen.append((self._selection.key(seen), self._tally.total, seen))
        if len(self._chosen) > 2 * self._selection.limit + _SLICE:
            self._chosen = self._best()  # so that no sort is of more than this

    def _best(self) -> list[tuple[tuple[Any, ...], int, Seen]]:
        return sorted(self._chosen)[: self._selection.limit]


class _Tally:
    """Counts what was chosen, the tasks that the limit leaves out included."""

    def __init__(self) -> None:
        self.total = 0
        self._by_state: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._by_coro: dict[str, list[Any]] = {}

    def add(self, seen: Seen) -> None:
        self.total += 1
        self._by_state[seen.state] += 1
        if seen.reading is not None:
            self._waiting[seen.reading.kind] += 1
        entry = self._by_coro.setdefault(seen.coro, [0, None])
        entry[0] += 1
        if seen.age is not None and (entry[1] is None or seen.age > entry[1]):
            entry[1] = seen.age

    def summary(self) -> Summary:
        by_coro = sorted(self._by_coro.items(), key=lambda item: -item[1][0])
        return Summary(
            total=self.total,
            by_state=dict(self._by_state),
            waiting=dict(self._waiting.most_common()),
            by_coro=tuple(
                CoroCount(coro, count, None if oldest is None else round(oldest, 6))
                for coro, (count, oldest) in by_coro
            ),
        )


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("no event loop is running in this thread: pass the loop to look at") from None


def _live_tasks(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """`asyncio.all_tasks`, which gives up where tasks come and go in another thread all the time."""
    while True:
        try:
            return list(asyncio.all_tasks(loop))
        except RuntimeError:
            continue


def _seen(look: Look, tasks: list[asyncio.Task[Any]]) -> Iterator[Seen]:
    """Look at each task that still lives, letting go of it."""
    while tasks:
        task = tasks.pop()
        if not task.done():
            yield look.at(task)


def _process(loop: asyncio.AbstractEventLoop) -> ProcessInfo:
    return ProcessInfo(
        pid=os.getpid(),
        python=platform.python_version(),
        loop="uvloop" if type(loop).__module__.partition(".")[0] == "uvloop" else "asyncio",
        uptime_seconds=round(perf_counter() - _imported, 3),
    )
