"""One task as a snapshot sees it, before anything is sorted, cut or worded."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import dropwhile, islice
from time import perf_counter
from typing import Any, NamedTuple

from ..exchange import Exchange
from .chain import Chain, running_places
from .model import Frame
from .places import line_to_name, place_of
from .resources import ResourceIndex
from .stacks import Reading, Stacks, read_wait
from .timers import within_reach_of_timers
from .tracker import age_of, coro_of, exchange_of

__all__ = ["Look", "Seen", "live_tasks"]

_OURS = __name__.rpartition(".")[0]


class Seen(NamedTuple):
    """The facts of one task; ``frames`` innermost first, ``age`` in seconds, ``failure`` to find them.

    ``line`` is the one to name, the innermost of the service's own.
    """

    task: asyncio.Task[Any]
    state: str
    coro: str
    frames: tuple[Frame, ...]
    line: Frame | None
    reading: Reading | None
    age: float | None
    exchange: Exchange | None
    failure: str | None


class Look:
    """Looks at the tasks of ``loop``, one by one, keeping ``depth`` frames of each.

    ``index`` collects the resources they meet at.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, depth: int) -> None:
        self.index = ResourceIndex(lambda: live_tasks(loop), partial(within_reach_of_timers, loop))
        self._running = asyncio.current_task(loop)
        self._depth = depth
        self._stacks = Stacks(depth)
        self._readings: dict[tuple[object, ...], Reading] = {}
        self._now = perf_counter()

    def running(self) -> asyncio.Task[Any] | None:
        """The task that the loop is running."""
        return self._running

    def at(self, task: asyncio.Task[Any]) -> Seen:
        """What ``task`` does.  Its loop may be running in another thread meanwhile; never raises."""
        exchange = exchange_of(task)
        age = age_of(task, self._now)
        if task is self._running and (frames := self._running_frames(task)):
            return Seen(
                task, "running", coro_of(task), frames, line_to_name(frames), None, age, exchange, None
            )
        try:
            chain = Chain.of(task)
            stack = self._stacks.of(chain)
            reading = None
            if chain.waits:
                reading = read_wait(chain, stack)
                if reading is not stack.reading:
                    reading = self._shared(reading)
            if stack.managing or (reading is not None and reading is not stack.reading):
                self.index.note(task, chain, stack, reading)
        except Exception as exc:  # somebody's own task, future or awaitable that is like no other
            failure = type(exc).__qualname__
            return Seen(task, "waiting", coro_of(task), (), None, None, age, exchange, failure)
        coro = chain.awaitables[stack.start].__qualname__ if stack.start else coro_of(task)
        state = "scheduled" if reading is None else "waiting"
        return Seen(task, state, coro, stack.frames, stack.line, reading, age, exchange, None)

    def _shared(self, reading: Reading) -> Reading:
        """The first of the readings that say the same: thousands would set off a whole garbage collection."""
        if reading.on:
            return reading
        key = reading.kind, reading.detail, id(reading.resource), reading.any_of, reading.timed
        return self._readings.setdefault(key, reading)

    def _running_frames(self, task: asyncio.Task[Any]) -> tuple[Frame, ...]:
        places = dropwhile(lambda place: place[0].startswith(_OURS), running_places(task))
        return tuple(place_of(code, lasti) for _, code, lasti in islice(places, self._depth))


def live_tasks(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """`asyncio.all_tasks`, which gives up where tasks come and go in another thread all the time."""
    while True:
        try:
            return list(asyncio.all_tasks(loop))
        except RuntimeError:
            continue
