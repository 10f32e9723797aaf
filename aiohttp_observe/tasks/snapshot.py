"""The picture of all tasks of a loop, taken from the loop itself or from any other thread."""

from __future__ import annotations

import asyncio
import os
import platform
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from time import perf_counter, time
from typing import Any

from ..exchange import taken
from ..texts import timestamp
from .groups import Groups
from .growth import grown
from .model import LoopState, ProcessInfo, Resource, Snapshot, TaskInfo
from .rows import Rows
from .seen import Look, Seen, live_tasks
from .selection import Selection
from .tracker import number_of
from .unretrieved import Unretrieved, unretrieved
from .verdict import findings
from .warnings import Circumstances

__all__ = ["count_tasks", "find_tasks", "matching_tasks", "snapshot_without_blocking", "take_snapshot"]

_SLICE = 200
"""Tasks looked at, or put into words, before the loop has a turn."""

_MOST_STUCK = 200
_MOST_TOLD = 100
"""Resources of which the verdict tells."""

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
    ``coro``        part of the coroutine's qualified name, or a glob pattern for all of it;
                    with ``!`` before it, the others
    ``request_id``  the request worked for
    ``min_age``     seconds
    ``search``      words, all of them in what the console shows of the task: name, place, request, ...
    ``id``          the one task with this id
    ``sort``        ``age`` (oldest first, the default), ``state``, ``coro`` or ``wait``
    ``limit``       how many of the sorted tasks to give, default 1000
    ``frames``      how many frames of each, default 3

    The summary counts all that were chosen; resources, deadlocks and the verdict are of all tasks.
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
    """What `take_snapshot` gives, made in slices between which the calling loop goes on with its work.

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
    for task in live_tasks(loop):
        if not task.done():
            seen = look.at(task)
            counts[seen.state, "" if seen.reading is None else seen.reading.kind] += 1
    return [(*labels, number) for labels, number in counts.items()]


def find_tasks(numbers: Iterable[int], loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """The live tasks of ``loop`` among those that snapshots show with the ids ``numbers``."""
    wanted = set(numbers)
    return [task for task in live_tasks(loop) if number_of(task) in wanted]


async def matching_tasks(loop: asyncio.AbstractEventLoop, **filters: Any) -> list[asyncio.Task[Any]]:
    """The live tasks of ``loop`` that pass the filters of `take_snapshot`, looked at in slices.

    Between these the calling loop goes on with its work; tasks that end meanwhile are left out.

    Raises ``TypeError`` or ``ValueError`` for a filter that can't be.
    """
    selection, look, found = Selection(**filters), Look(loop, depth=1), list[asyncio.Task[Any]]()
    tasks = live_tasks(loop)
    while tasks:
        await asyncio.sleep(0)
        some = tasks[-_SLICE:]
        del tasks[-_SLICE:]
        found += [task for task in some if not task.done() and selection.takes(look.at(task))]
    return [task for task in found if not task.done()]


class _Picture:
    """A snapshot in the making: run through `steps`, then ask for it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop | None, loop_state: LoopState | None, selection: Selection
    ) -> None:
        self._loop = loop or _running_loop()
        self._loop_state = loop_state or LoopState()
        self._selection = selection
        self._filtered = selection.filters
        self._look = Look(self._loop, selection.frames)
        self._groups = Groups()
        self._all = Groups() if selection.filters else self._groups
        self._circumstances = Circumstances(self._loop, self._loop_state)
        self._chosen: list[Seen] = []
        self._rows: list[TaskInfo] = []
        self._stuck: list[TaskInfo] = []
        self._resources: tuple[Resource, ...] = ()
        self._deadlocks: tuple[tuple[int, ...], ...] = ()
        self._unretrieved: list[Unretrieved] = []

    def steps(self) -> Iterator[None]:
        """Do the work, pausing after every slice of it."""
        tasks = live_tasks(self._loop)  # of very many, this alone is the longest stretch of all
        yield
        while tasks:
            for task in tasks[-_SLICE:]:
                if not task.done():
                    seen = self._look.at(task)
                    self._circumstances.note(seen)
                    self._choose(seen)
            del tasks[-_SLICE:]
            yield
        chosen, self._chosen = deque(self._best()), []
        # The verdict is the same however few are shown.
        self._resources = self._look.index.resources(max(self._selection.limit, _MOST_TOLD))
        self._circumstances.conclude(self._resources)
        yield
        self._deadlocks = yield from self._look.index.deadlocks()
        yield
        self._unretrieved = unretrieved(self._loop)
        yield
        words = Rows(self._circumstances)
        for count, seen in enumerate(taken(chosen), 1):  # of very many, not both it and its row are kept
            if not seen.task.done():
                self._rows.append(words.row(seen))
            if count % _SLICE == 0:
                yield
        self._stuck += [words.row(self._look.at(task)) for task in self._deadlocked_besides()]

    def _deadlocked_besides(self) -> list[asyncio.Task[Any]]:
        tasks = self._look.index.tasks
        shown = {row.id for row in self._rows}
        stuck = {number for cycle in self._deadlocks for number in cycle}
        return [tasks[number] for number in sorted(stuck - shown)[:_MOST_STUCK] if not tasks[number].done()]

    def snapshot(self) -> Snapshot:
        """The picture, once all steps have been made."""
        index, groups, look = self._look.index, self._groups, self._look
        resources, deadlocks = self._resources, self._deadlocks
        growing = grown(self._loop, self._all)
        return Snapshot(
            taken_at=timestamp(time()),
            process=_process(self._loop),
            loop=self._loop_state,
            summary=groups.summary(),
            tasks=tuple(self._rows),
            resources=resources[: self._selection.limit],
            deadlocks=deadlocks,
            findings=findings(
                self._loop_state,
                look.running(),
                resources,
                deadlocks,
                index,
                self._all,
                growing,
                self._unretrieved,
                getattr(self._loop, "_default_executor", None),
            ),
            work=self._all.summary(connections=False),
            connections=self._all.connections(),
            stuck=tuple(self._stuck),
            groups=groups.top(),
            truncated=max(0, groups.total() - self._selection.limit),
        )

    def _choose(self, seen: Seen) -> None:
        if self._filtered:
            self._all.add(seen)
            if not self._selection.takes(seen):
                return
        self._groups.add(seen)
        self._chosen.append(seen)
        if len(self._chosen) > 2 * self._selection.limit + _SLICE:
            self._chosen = self._best()  # so that no sort is of more than this

    def _best(self) -> list[Seen]:
        return sorted(self._chosen, key=self._selection.key)[: self._selection.limit]


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("no event loop is running in this thread: pass the loop to look at") from None


def _process(loop: asyncio.AbstractEventLoop) -> ProcessInfo:
    return ProcessInfo(
        pid=os.getpid(),
        python=platform.python_version(),
        loop="uvloop" if type(loop).__module__.partition(".")[0] == "uvloop" else "asyncio",
        uptime_seconds=round(perf_counter() - _imported, 3),
    )
