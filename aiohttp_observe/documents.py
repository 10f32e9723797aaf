"""The documents of the task console: what the running pillars of one application know, as JSON."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

from .exchange import Exchange
from .flightrecorder import FlightRecorder
from .history import History
from .incidents import Incidents
from .loopwatch import LoopMonitor
from .middleware import Recorder
from .profile import profile
from .tasks import (
    LoopState,
    find_tasks,
    json_pieces,
    number_of,
    snapshot_without_blocking,
    waits_for,
)

__all__ = ["Documents"]

_MOST_TASKS = 100_000


class Documents:
    """What `aiohttp_observe.admin.console.Console` asks for, on any loop and in any thread.

    What grows with the number of tasks is made in slices, between which the calling loop goes
    on with its other work.
    """

    def __init__(self, recorder: Recorder, flights: FlightRecorder, incidents: Incidents) -> None:
        self._recorder = recorder
        self._flights = flights
        self._incidents = incidents
        self._monitor: LoopMonitor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._history = History(
            lag=lambda: self.loop_state().lag_seconds,
            utilization=lambda: self.loop_state().utilization,
            requests=lambda: flights.total,
            in_flight=lambda: len(recorder.in_flight),
        )

    def open(self, loop: asyncio.AbstractEventLoop, monitor: LoopMonitor | None) -> None:
        """The application runs, on ``loop`` in this thread, watched by ``monitor``."""
        self._loop, self._monitor, self._thread = loop, monitor, threading.get_ident()

    def close(self) -> None:
        """It has ended."""
        self._loop = self._monitor = None

    def note(self) -> None:
        """To be called several times a second, on the application's loop."""
        self._history.note()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The application's.  Raises ``RuntimeError`` while it isn't running."""
        if self._loop is None:
            raise RuntimeError("the application isn't running: take a snapshot after its start-up")
        return self._loop

    def loop_state(self) -> LoopState:
        """What the loop watch knows; all zero without one."""
        return LoopState() if self._monitor is None else self._monitor.state()

    async def tasks(self, **filters: Any) -> str:
        snapshot = await snapshot_without_blocking(self.loop, loop_state=self.loop_state(), **filters)
        return await _joined(json_pieces(snapshot))

    async def picture(self, *, allow_cancel: bool, **filters: Any) -> str:
        snapshot = await snapshot_without_blocking(self.loop, loop_state=self.loop_state(), **filters)
        point = {**self._history.now(), "waiting": snapshot.summary.waiting}
        return await _joined(json_pieces(snapshot, {"point": point, "allow_cancel": allow_cancel}))

    def incidents(self) -> dict[str, Any]:
        return self._incidents.to_dict()

    def requests(self) -> dict[str, Any]:
        return self._flights.overview(self._line_of)

    def request(self, request_id: str) -> dict[str, Any] | None:
        return self._flights.find(request_id)

    def history(self) -> list[dict[str, Any]]:
        return self._history.points()

    async def profile(self, seconds: float) -> str:
        return await asyncio.get_running_loop().run_in_executor(None, partial(profile, self._thread, seconds))

    async def matching(self, **filters: Any) -> list[asyncio.Task[Any]]:
        snapshot = await snapshot_without_blocking(self.loop, limit=_MOST_TASKS, frames=1, **filters)
        own = asyncio.current_task()
        found = find_tasks([task.id for task in snapshot.tasks], self.loop)
        return [task for task in found if task is not own]

    def cancel(self, tasks: list[asyncio.Task[Any]]) -> list[int]:
        for task in tasks:
            self.loop.call_soon_threadsafe(task.cancel)
        return [number_of(task) for task in tasks]

    def _line_of(self, exchange: Exchange) -> tuple[int | None, str | None]:
        flight = self._recorder.in_flight.get(exchange)
        return (None, None) if flight is None else (number_of(flight.task), waits_for(flight.task))


async def _joined(pieces: Any) -> str:
    made = []
    for piece in pieces:
        made.append(piece)
        await asyncio.sleep(0)
    return "".join(made)
