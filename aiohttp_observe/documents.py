"""The documents of the task console: what the running pillars of one application know, as JSON."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial, wraps
from itertools import islice
from time import perf_counter
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from .background import workers_of
from .bundles import Bundles
from .daemonthread import in_daemon_thread
from .exchange import Exchange
from .findings import findings
from .flightrecorder import FlightRecorder
from .history import History
from .incidents import LONG_BLOCK_SECONDS, Block, Incidents
from .jsonpieces import encode
from .logs import ServerLogs
from .loopwatch import LoopMonitor
from .middleware import Recorder
from .profile import NoProfileError, profile
from .tasks import (
    LoopState,
    Snapshot,
    Tree,
    cancel,
    find_tasks,
    findings_to_dict,
    is_forgotten,
    json_pieces,
    matching_tasks,
    note_contention,
    number_of,
    resource_pieces,
    snapshot_without_blocking,
    take_snapshot,
    tree_lines,
    tree_of,
    tree_pieces,
    waits_for,
)

__all__ = ["Documents"]

_MOST_NODES = 5000
_FRAMES = 20
_LINES = 200
_CANCELLED_AT_ONCE = 200
_MOST_IN_BUNDLE = 500
_BUNDLE_INTERVAL = 60.0
"""Seconds from one bundle of a long block to the next."""
_STUCK_SECONDS = 1.0
_MOST_LOOKED_AT = 50


Make = TypeVar("Make", bound=Callable[..., Coroutine[Any, Any, Any]])


def _in_turn(make: Make) -> Make:
    """Have each loop make one of the costly documents at a time.

    Several at once would hold it, from one of its turns to the next, for as many times as long,
    and take as many times the memory.  The live page's picture waits for none: it is small, one
    for all pages, and made the less often the longer it takes.
    """

    @wraps(make)
    async def made(documents: Documents, *args: Any, **kwargs: Any) -> Any:
        async with documents.turn():
            return await make(documents, *args, **kwargs)

    return cast(Make, made)


class Documents:
    """What `aiohttp_observe.admin.console.Console` asks for, on any loop and in any thread.

    What grows with the number of tasks, or of requests that are remembered, is made in slices,
    between which the calling loop goes on with its other work.
    """

    def __init__(self, recorder: Recorder, flights: FlightRecorder, incidents: Incidents) -> None:
        self._recorder = recorder
        self._flights = flights
        self._incidents = incidents
        self._monitor: LoopMonitor | None = None
        self._logs: ServerLogs | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._noted = 0.0
        self._bundles = Bundles()
        self._bundled = -_BUNDLE_INTERVAL
        self._bundling: asyncio.Future[int | None] | None = None
        # Of each loop that asks: the application's, and the console's own.
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self._history = History(
            lag=lambda: self.loop_state().lag_seconds,
            utilization=lambda: self.loop_state().utilization,
            requests=lambda: flights.total,
            in_flight=lambda: len(recorder.in_flight),
        )

    def open(
        self, loop: asyncio.AbstractEventLoop, monitor: LoopMonitor | None, logs: ServerLogs | None
    ) -> None:
        """The application runs, on ``loop`` in this thread, watched by ``monitor``."""
        self._loop, self._thread = loop, threading.get_ident()
        self._monitor, self._logs = monitor, logs

    def close(self) -> None:
        """The application has ended."""
        self._loop = self._monitor = self._logs = None

    def note(self) -> None:
        """Take note of what the loop does just now; to be called several times a second, on that loop."""
        self._history.note()
        now = perf_counter()
        if now - self._noted >= _STUCK_SECONDS:
            self._noted = now
            flights = islice(self._recorder.in_flight.values(), _MOST_LOOKED_AT)
            note_contention(flight.task for flight in flights if _is_stuck(flight, now))

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The application's loop.  Raises ``RuntimeError`` while it isn't running."""
        if self._loop is None:
            raise RuntimeError("the application isn't running: take a snapshot after its start-up")
        return self._loop

    def loop_state(self) -> LoopState:
        """What the loop watch knows; all zero without one."""
        return LoopState() if self._monitor is None else self._monitor.state()

    def turn(self) -> asyncio.Lock:
        """What the running loop's costly documents wait for, one after another."""
        return self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    @_in_turn
    async def tasks(self, **filters: Any) -> str:
        snapshot = await self._snapshot(**filters)
        return await _joined(json_pieces(snapshot))

    async def picture(self, *, allow_cancel: bool, **filters: Any) -> str:
        snapshot = await self._snapshot(**filters)
        work = {
            "total": snapshot.work.total,
            "waiting": snapshot.work.waiting,
            "connections": snapshot.connections,
        }
        point = {**self._history.now(), "waiting": snapshot.summary.waiting, "work": work}
        more = {**findings_to_dict(snapshot), "point": point, "allow_cancel": allow_cancel}
        return await _joined(json_pieces(snapshot, more))

    @_in_turn
    async def groups(self, **filters: Any) -> str:
        snapshot = await self._snapshot(**{**filters, "limit": 1})
        return encode({"taken_at": snapshot.taken_at, "groups": findings_to_dict(snapshot)["groups"]})

    @_in_turn
    async def tree(self) -> str:
        return await _joined(tree_pieces(await self._tree()))

    @_in_turn
    async def tree_text(self) -> str:
        lines = tree_lines(await self._tree())
        slices = iter(lambda: list(islice(lines, _LINES)), [])
        return await _joined("".join(f"{line}\n" for line in some) for some in slices)

    async def _tree(self) -> Tree:
        snapshot = await self._snapshot(limit=_MOST_NODES, frames=_FRAMES)
        return await in_daemon_thread(partial(tree_of, snapshot))

    @_in_turn
    async def resources(self) -> str:
        return await _joined(resource_pieces(await self._snapshot(limit=_MOST_NODES, frames=_FRAMES)))

    async def is_forgotten(self, number: int) -> bool | None:
        found = find_tasks([number], self.loop)
        return is_forgotten(found[0]) if found else None

    def bundles(self) -> list[dict[str, Any]]:
        return self._bundles.listed()

    def bundle(self, number: int) -> str | None:
        return self._bundles.text(number)

    async def make_bundle(self, reason: str) -> int | None:
        parts = {
            "reason": encode(reason),
            "tasks": await self.tasks(limit=_MOST_IN_BUNDLE, frames=_FRAMES),
            "resources": await self.resources(),
            "tree": await self.tree(),
            "incidents": encode(self.incidents()),
            "requests": await self.requests(),
            "history": encode(self.history()),
        }
        whole = ",".join(f'"{name}":{text}' for name, text in parts.items())
        return await in_daemon_thread(partial(self._bundles.keep, reason, f"{{{whole}}}"))

    def bundle_after(self, block: Block) -> None:
        """Keep a bundle of what a long block leaves behind; called in any thread."""
        loop, now = self._loop, perf_counter()
        if loop is None or block.seconds < LONG_BLOCK_SECONDS or now - self._bundled < _BUNDLE_INTERVAL:
            return
        self._bundled = now
        frame = block.frame
        where = f"by {block.culprit or 'a line unseen'}" if frame is None else f"in {frame.file}:{frame.line}"
        reason = f"the loop was blocked for {block.seconds:.1f} s {where}"
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(self._bundle_soon, reason)

    def _bundle_soon(self, reason: str) -> None:
        # Kept here, or the collector might take it.
        self._bundling = asyncio.ensure_future(self.make_bundle(reason))
        self._bundling.add_done_callback(_forget_failure)

    def incidents(self) -> dict[str, Any]:
        return self._incidents.to_dict()

    async def requests(self) -> str:
        self._recorder.flush()
        return await _joined(self._flights.overview(self._state_of))

    def request(self, request_id: str) -> dict[str, Any] | None:
        self._recorder.flush()
        return self._flights.find(request_id, self._state_of)

    def history(self) -> list[dict[str, Any]]:
        return self._history.points()

    async def profile(self, seconds: float) -> str:
        try:
            taking = in_daemon_thread(partial(profile, self._thread, seconds), or_here=False)
        except RuntimeError as exc:
            raise NoProfileError(str(exc)) from exc
        return await taking

    @_in_turn
    async def matching(self, **filters: Any) -> list[asyncio.Task[Any]]:
        own = asyncio.current_task()
        return [task for task in await matching_tasks(self.loop, **filters) if task is not own]

    def cancel(self, tasks: list[asyncio.Task[Any]]) -> list[int]:
        self.loop.call_soon_threadsafe(_cancel_some, self.loop, iter(tasks))
        return [number_of(task) for task in tasks]

    async def _snapshot(self, **filters: Any) -> Snapshot:
        snapshot = await snapshot_without_blocking(self.loop, loop_state=self.loop_state(), **filters)
        return self._with_more_findings(snapshot)

    def snapshot(self, **filters: Any) -> Snapshot:
        """A snapshot with all findings, taken at once; raises what `take_snapshot` does."""
        return self._with_more_findings(take_snapshot(self.loop, loop_state=self.loop_state(), **filters))

    def _with_more_findings(self, snapshot: Snapshot) -> Snapshot:
        """``snapshot`` with the findings that no task shows, as what they tell of has ended."""
        self._recorder.flush()
        more = findings(
            self._incidents,
            workers_of(self._recorder.scope),
            self._flights.failing(),
            self._recorder.left,
            self._history.points(),
            (0.0, 0) if self._logs is None else self._logs.backlog(),
        )
        return replace(snapshot, findings=(*snapshot.findings, *more))

    def _state_of(self, exchange: Exchange) -> tuple[int | None, tuple[str, str] | None]:
        task = getattr(exchange, "task", None)  # until it lands, maybe while another thread looks
        return (None, None) if task is None else (number_of(task), waits_for(task))


def _cancel_some(loop: asyncio.AbstractEventLoop, tasks: Iterator[asyncio.Task[Any]]) -> None:
    """Cancel as many as take a moment, and the others in the next turns of the loop."""
    some = list(islice(tasks, _CANCELLED_AT_ONCE))
    for task in some:
        cancel(task)
    if some:
        loop.call_soon(_cancel_some, loop, tasks)


def _forget_failure(bundling: asyncio.Future[int | None]) -> None:
    """Have nobody hear of a failed bundle: the service has ended meanwhile, and there is nothing to keep."""
    if not bundling.cancelled():
        bundling.exception()


def _is_stuck(exchange: Exchange, now: float) -> bool:
    return exchange.suspended_at is not None and now - exchange.suspended_at >= _STUCK_SECONDS


async def _joined(pieces: Iterable[str]) -> str:
    made = []
    for piece in pieces:
        made.append(piece)
        await asyncio.sleep(0)
    return "".join(made)
