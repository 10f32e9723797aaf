"""The documents of the task console: what the running pillars of one application know, as JSON."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial, wraps
from itertools import islice
from operator import itemgetter
from time import perf_counter, time
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from .background import Worker, workers_of
from .bundles import Bundles
from .daemonthread import in_daemon_thread
from .exchange import Exchange
from .flightrecorder import FlightRecorder
from .history import History
from .incidents import LONG_BLOCK_SECONDS, Block, Incidents
from .jsonpieces import encode
from .loopwatch import LoopMonitor
from .middleware import Recorder
from .profile import NoProfileError, profile
from .tasks import (
    Finding,
    Frame,
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
    was_blocked,
)

__all__ = ["Documents"]

_MOST_NODES = 5000
_FRAMES = 20
_LINES = 200
_CANCELLED_AT_ONCE = 200
_MOST_IN_BUNDLE = 500
_BUNDLE_INTERVAL = 60.0
"""Seconds from one bundle of a long block to the next."""
_MOST_FINDINGS = 10
_RESTARTS = 2
"""Restarts of a worker after which the verdict tells of it."""
_JUST_SECONDS = 60.0
"""Seconds for which a worker that runs again may well fail again."""
_OFTEN, _BLOCKED_SHARE = 5, 0.05
"""Blocks in a minute, and the share of it that they take, that are worth a sentence."""
_MANY_ABANDONED, _ABANDONED_SECONDS = 5, 2.0
"""Requests whose clients have left, and seconds since, that are worth a sentence."""
_BUSY, _BUSY_POINTS = 0.9, 5
"""Share of the time that the loop is busy, in so many points of the history, that is worth a sentence."""
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

    def open(self, loop: asyncio.AbstractEventLoop, monitor: LoopMonitor | None) -> None:
        """The application runs, on ``loop`` in this thread, watched by ``monitor``."""
        self._loop, self._monitor, self._thread = loop, monitor, threading.get_ident()

    def close(self) -> None:
        """The application has ended."""
        self._loop = self._monitor = None

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
        more = [
            *_was_blocked(self._incidents.worst_block()),
            *_often_blocked(self._incidents.last_minute()),
            *_failed_workers(workers_of(self._recorder.scope)),
            *_failing_routes(self._flights.failing()),
            *_abandoned(self._recorder.left),
            *_busy(self._history.points()),
        ]
        return replace(snapshot, findings=(*snapshot.findings, *more[:_MOST_FINDINGS]))

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


def _was_blocked(block: Block | None) -> Iterator[Finding]:
    if block is None:
        return
    yield was_blocked(block.seconds, max(perf_counter() - block.ended, 0.0), block.frame, block.culprit)


def _often_blocked(blocks: Sequence[Block]) -> Iterator[Finding]:
    seconds = sum(block.seconds for block in blocks)
    if len(blocks) < _OFTEN or seconds < _BLOCKED_SHARE * 60:
        return
    took: Counter[Frame | str | None] = Counter()
    for block in blocks:
        took[block.frame or block.culprit] += block.seconds  # type: ignore[assignment]
    worst = took.most_common(1)[0][0]
    frame = worst if isinstance(worst, Frame) else None
    where = f"by {worst}" if frame is None else f"in {frame.function} ({frame.short})"
    sentence = (
        f"the loop was blocked {len(blocks)} times in the last minute, for {seconds:.1f} s together"
        f"{'' if worst is None else f', most of it {where}'}"
    )
    yield Finding(sentence, "blocked", frame=frame)


def _abandoned(left: Iterable[Exchange]) -> Iterator[Finding]:
    """Handlers that work for clients that have left, and not just for a moment more."""
    now = perf_counter()
    gone = [
        (now - exchange.client_left_at, exchange)
        for exchange in left
        if exchange.client_left_at is not None and now - exchange.client_left_at >= _ABANDONED_SECONDS
    ]
    if len(gone) >= _MANY_ABANDONED:
        seconds, oldest = max(gone, key=itemgetter(0))
        yield Finding(
            f"{len(gone)} requests are worked on for clients that have left, the longest, "
            f"{oldest.method} {oldest.route}, for {seconds:.0f} s",
            "abandoned",
        )


def _busy(points: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    last = points[-_BUSY_POINTS:]
    if len(last) == _BUSY_POINTS and all(point["utilization"] >= _BUSY for point in last):
        share = last[-1]["utilization"]
        yield Finding(
            f"the loop has been busy for {share:.0%} of the time, and all else waits: "
            "/_tasks/profile shows with what",
            "busy",
        )


def _failing_routes(routes: Iterable[tuple[str, str, str]]) -> Iterator[Finding]:
    for method, route, error in routes:
        yield Finding(
            f"{method} {route} fails: the last requests all did, the latest with {error}", "failing", ()
        )


def _failed_workers(workers: Iterable[Worker]) -> Iterator[Finding]:
    for worker in workers:
        if worker.state == "failed":
            sentence = f"worker {worker.name} has failed with {worker.last_error}, and isn't started again"
        elif worker.last_error is not None and worker.restarts >= _RESTARTS and _has_just_failed(worker):
            sentence = (
                f"worker {worker.name} fails again and again, the last time with {worker.last_error}: "
                f"it was started again {worker.restarts} times"
            )
        else:
            continue
        yield Finding(sentence, "worker", ())


def _has_just_failed(worker: Worker) -> bool:
    return worker.state == "backing_off" or (
        worker.state == "running" and time() - worker.since < _JUST_SECONDS
    )


def _is_stuck(exchange: Exchange, now: float) -> bool:
    return exchange.suspended_at is not None and now - exchange.suspended_at >= _STUCK_SECONDS


async def _joined(pieces: Iterable[str]) -> str:
    made = []
    for piece in pieces:
        made.append(piece)
        await asyncio.sleep(0)
    return "".join(made)
