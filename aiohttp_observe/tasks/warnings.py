"""What is odd about single tasks: each rule is small, says its evidence and how sure it is.

docs/warnings.rst says what to do about each.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from statistics import median
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary, ref

from .chain import Chain, held_by
from .model import LoopState, Resource
from .seen import Seen
from .suspension import outbound_call
from .tracker import is_request_task, number_of

__all__ = ["Circumstances", "is_orphan", "warnings_of"]

# A wait is long if it is so many times the median of at least so many peers, and so many seconds.
_TIMES = 10.0
_PEERS = 10
_LEAST_SECONDS = 1.0
_LOST_SECONDS = 1.0
_COUNTS_FAILED_GROUPS = sys.version_info < (3, 13)
"""A ``TaskGroup`` that a child fails at its end has cancelled its own task, and doesn't take that back."""
_OUTBOUND = {"connect", "dns", "http_client", "stream", "subprocess", "executor"}

Rule = Callable[[Seen, "Circumstances"], "str | None"]


class Circumstances:
    """What the rules know beyond the task itself, gathered in one look at all tasks of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, loop_state: LoopState) -> None:
        self.now = perf_counter()
        self.blocked = loop_state.blocked_now
        self._turns = _is_running_here(loop)
        self._waits: dict[int, list[float]] = {}
        self._medians: dict[int, float] = {}
        self._wanted: dict[int, Resource] = {}

    def note(self, seen: Seen) -> None:
        """Take in one task."""
        if seen.exchange is not None and (waited := self.waited(seen)) is not None:
            self._waits.setdefault(id(seen.line), []).append(waited)
        if seen.state == "scheduled" and self._turns:
            _note_scheduled(seen.task, self.now)

    def conclude(self, resources: Iterable[Resource]) -> None:
        """Work out what is known once all tasks have been noted; ``resources`` are what they wait at."""
        self._medians = {line: median(waits) for line, waits in self._waits.items() if len(waits) >= _PEERS}
        for resource in resources:
            for holder in resource.holders:
                self._wanted.setdefault(holder, resource)

    def waited(self, seen: Seen) -> float | None:
        """For how long a request's own task has been waiting, in seconds."""
        exchange = seen.exchange
        if seen.reading is None or exchange is None or exchange.suspended_at is None:
            return None
        return self.now - exchange.suspended_at if is_request_task(seen.task) else None

    def median_of_peers(self, seen: Seen) -> tuple[float, int] | None:
        """The median wait at the line of a task, and of how many tasks; ``None`` of too few."""
        known = self._medians.get(id(seen.line))
        return None if known is None else (known, len(self._waits[id(seen.line)]))

    def wanted_from(self, seen: Seen) -> Resource | None:
        """The resource that a task holds and others wait for."""
        return self._wanted.get(number_of(seen.task))


_scheduled: WeakKeyDictionary[asyncio.Task[Any], tuple[Any, float]] = WeakKeyDictionary()
"""What a task had waited for that was done, weakly, and when it was first seen not to have run since.

Only if looked at from its own loop, in whose next turn it should run.
"""


def _note_scheduled(task: asyncio.Task[Any], now: float) -> None:
    waiter = getattr(task, "_fut_waiter", None)
    known = _scheduled.get(task)
    if waiter is not None and (known is None or known[0]() is not waiter):
        _scheduled[task] = ref(waiter), now


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _not_examined(seen: Seen, known: Circumstances) -> str | None:
    return None if seen.failure is None else f"not fully examined: {seen.failure}"


def _orphan(seen: Seen, known: Circumstances) -> str | None:
    exchange = seen.exchange
    if exchange is None or not is_orphan(seen):
        return None
    ago = known.now - exchange.started - (exchange.duration or 0.0)
    return f"its request {exchange.request_id} finished {max(ago, 0.0):.1f} s ago"


def _client_left(seen: Seen, known: Circumstances) -> str | None:
    exchange = seen.exchange
    if exchange is None or exchange.client_left_at is None or exchange.duration is not None:
        return None
    return f"its client left {max(known.now - exchange.client_left_at, 0.0):.1f} s ago"


def _hogging(seen: Seen, known: Circumstances) -> str | None:
    blocked = known.blocked
    if blocked is None or blocked.task != number_of(seen.task):
        return None
    return f"hasn't yielded for {blocked.seconds:.1f} s: it blocks the loop"


def _cancelling(seen: Seen, known: Circumstances) -> str | None:
    cancelling = getattr(seen.task, "cancelling", None)  # from Python 3.11
    if cancelling is None or not cancelling():
        return None
    if _COUNTS_FAILED_GROUPS and (seen.failure is not None or not _handles_cancellation(seen.task)):
        return "asked to cancel and still here, unless a TaskGroup of its own has failed"
    return "asked to cancel and still here"


def _handles_cancellation(task: asyncio.Task[Any]) -> bool:
    """Whether ``task`` waits in the ``except`` or ``finally`` that a ``CancelledError`` has led to."""
    held = (each for awaitable in Chain.of(task).awaitables for each in held_by(awaitable))
    return any(isinstance(each, asyncio.CancelledError) for each in held)


def _slower_than_peers(seen: Seen, known: Circumstances) -> str | None:
    waited, peers = known.waited(seen), known.median_of_peers(seen)
    if waited is None or peers is None or waited < max(_LEAST_SECONDS, _TIMES * peers[0]):
        return None
    return f"has waited {waited:.1f} s, the median of the {peers[1]} at this line is {peers[0]:.1f} s"


def _lost_wakeup(seen: Seen, known: Circumstances) -> str | None:
    scheduled = _scheduled.get(seen.task)
    if scheduled is None or scheduled[0]() is not getattr(seen.task, "_fut_waiter", None):
        return None
    ago = known.now - scheduled[1]
    if ago < _LOST_SECONDS:
        return None
    return f"what it waited for was done {ago:.1f} s ago, and it hasn't run: a lost wake-up, likely"


def _held_across(seen: Seen, known: Circumstances) -> str | None:
    resource = known.wanted_from(seen)
    if resource is None or seen.reading is None or seen.reading.kind not in _OUTBOUND:
        return None
    waiting = len(resource.waiters)
    return (
        f"holds a {resource.type} that {waiting} {'wait' if waiting > 1 else 'waits'} for "
        f"while it waits for {outbound_call(seen.task) or seen.reading.detail}"
    )


_OF_A_REQUEST: tuple[Rule, ...] = (_client_left, _orphan, _slower_than_peers)
_RULES: dict[str, tuple[Rule, ...]] = {
    "running": (_hogging, _cancelling),
    "scheduled": (_lost_wakeup, _cancelling),
    "waiting": (_not_examined, _held_across, _cancelling),
}
"""The rules that can say something of a task in each state."""


def warnings_of(seen: Seen, known: Circumstances) -> tuple[str, ...]:
    """What the rules say of a task."""
    rules = _RULES[seen.state]
    if seen.exchange is not None:
        rules = _OF_A_REQUEST + rules
    return tuple([text for rule in rules if (text := rule(seen, known)) is not None])


def is_orphan(seen: Seen) -> bool:
    """Whether a task outlives its request, and is neither the request's own nor spawned and so supervised."""
    task, exchange = seen.task, seen.exchange
    return (
        exchange is not None
        and exchange.duration is not None
        and not is_request_task(task)
        and task not in exchange.scope.background
        and task not in exchange.scope.supervised
    )
