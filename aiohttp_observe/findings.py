"""What stands out of a service that no live task shows: what has ended, failed, or been left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from time import perf_counter, time
from typing import Any

from .background import Worker
from .exchange import Exchange
from .flightrecorder import Failing
from .incidents import Block, Incidents
from .tasks import Finding, Frame, was_blocked

__all__ = ["findings"]

_MOST = 10
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
_STALLED_SECONDS = 5.0
"""Seconds in which a log's stream takes nothing that are worth a sentence."""


def findings(
    incidents: Incidents,
    workers: Iterable[Worker],
    failing: Iterable[Failing],
    left: Iterable[Exchange],
    history: Sequence[Mapping[str, Any]],
    backlog: tuple[float, int],
) -> list[Finding]:
    """At most ten sentences, worst first.

    ``left`` are the requests in flight whose client has left, ``history`` the points of the last
    minutes, ``backlog`` for how many seconds the log's stream has taken nothing, and how many lines
    wait for it.
    """
    found = [
        *_was_blocked(incidents.worst_block()),
        *_often_blocked(incidents.last_minute()),
        *_failed_workers(workers),
        *_failing_routes(failing),
        *_abandoned(left),
        *_busy(history),
        *_stalled_log(*backlog),
    ]
    return found[:_MOST]


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
    where = f"by {worst}" if frame is None else f"in {frame.named}"
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


def _stalled_log(seconds: float, waiting: int) -> Iterator[Finding]:
    if seconds >= _STALLED_SECONDS:
        yield Finding(
            f"log lines aren't written: for {seconds:.0f} s whoever reads the log has taken none, "
            f"and {waiting:,} wait",
            "log",
        )


def _failing_routes(failing: Iterable[Failing]) -> Iterator[Finding]:
    for route in failing:
        if route.all_of_late:
            how = "fails: the last requests all did"
        else:
            how = f"failed {route.failed} of {route.total} times in the last minute"
        yield Finding(f"{route.method} {route.route} {how}, the latest with {route.error}", "failing")


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
