"""What a colleague would say after a look at the tasks, worst first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from ..texts import counted
from .groups import Crowd, Groups
from .growth import Growing
from .model import Blocked, Finding, Frame, LoopState, Resource
from .places import own_line
from .resources import Meetings
from .suspension import outbound_call
from .tracker import age_of, exchange_of, is_adopted, number_of, title_of

__all__ = ["findings"]

_CROWD = 10
"""Tasks waiting at one place that are worth a sentence."""
_LONG_SECONDS = 10.0
"""Time for which a lock that anybody waits for is held that is worth one however few wait."""
_SHARE = 0.5
"""Share of the requests at work that wait at one line that is worth one."""
_IDLE = {"http_server_idle", "queue_get", "sleep", "websocket"}
"""Waits that many may be in while all is well: those who are in them are not at work."""
_NEVER_IDLE = {"connect", "dns", "executor", "http_client", "lock", "semaphore", "subprocess"}
"""Waits for somebody's work, which nobody is in for long while all is well."""
_MOST = 20


def findings(
    loop: LoopState,
    running: asyncio.Task[Any] | None,
    resources: Sequence[Resource],
    deadlocks: Sequence[Sequence[int]],
    meetings: Meetings,
    groups: Groups,
    growing: Sequence[Growing],
) -> tuple[Finding, ...]:
    """All that stands out, at most 20 sentences.  ``running`` is the task that the loop runs."""
    verdict = _Verdict(meetings, groups)
    found = [
        *_blocked(loop.blocked_now, running),
        *(verdict.deadlock(cycle) for cycle in deadlocks),
        *verdict.held(resources, {number for cycle in deadlocks for number in cycle}),
        *verdict.crowds(resources),
        *(_leak(crowd) for crowd in growing),
    ]
    return tuple(found[:_MOST])


def _blocked(blocked: Blocked | None, running: asyncio.Task[Any] | None) -> Iterator[Finding]:
    if blocked is None:
        return
    frame = blocked.frame or own_line(blocked.stack) or next(iter(blocked.stack), None)
    place = "" if frame is None else f" in {_short(frame)}"
    sentence = f"the loop has been blocked for {_seconds(blocked.seconds)} s{place}{_by(blocked, running)}"
    yield Finding(sentence, "blocked", () if blocked.task is None else (blocked.task,), frame=frame)


def _by(blocked: Blocked, running: asyncio.Task[Any] | None) -> str:
    exchange = None if running is None else exchange_of(running)
    if exchange is not None and exchange.request_id == blocked.request_id:
        return f" by {exchange.method} {exchange.route}"
    if blocked.request_id is not None:
        return f" by request {blocked.request_id}"
    if running is not None and number_of(running) == blocked.task:
        return f" by task {title_of(running)}"
    return ""


class _Verdict:
    def __init__(self, meetings: Meetings, groups: Groups) -> None:
        self._meetings = meetings
        self._groups = groups
        self._requests = groups.requests()
        self._at_work = self._requests - groups.requests(_IDLE)

    def deadlock(self, cycle: Sequence[int]) -> Finding:
        names = [self._name_of(task) for task in (*cycle, cycle[0])]
        return Finding(f"deadlock: {' → '.join(names)}", "deadlock", tuple(cycle))

    def held(self, resources: Sequence[Resource], in_deadlock: set[int]) -> Iterator[Finding]:
        """Locks and semaphores that many wait for, or that are held for long."""
        for resource in resources:
            if not resource.holders or in_deadlock.issuperset(resource.holders + resource.waiters):
                continue
            if len(resource.waiters) >= _CROWD or (resource.held_seconds or 0.0) >= _LONG_SECONDS:
                yield Finding(
                    f"{self._waiting(resource)}, {self._held_by(resource)}",
                    "held",
                    resource.holders,
                    resource.id,
                    resource.frame,
                )

    def crowds(self, resources: Sequence[Resource]) -> Iterator[Finding]:
        """Lines at which many requests wait for something that nobody is known to hold."""
        told = {resource.frame for resource in resources if resource.holders}
        for crowd in self._groups.crowds():
            if crowd.own < _CROWD:
                continue
            reading = crowd.first.reading
            if reading is None or reading.kind in _IDLE or crowd.line in told:
                continue
            is_old = reading.kind in _NEVER_IDLE and (crowd.oldest or 0.0) >= _LONG_SECONDS
            if is_old or crowd.own >= _SHARE * self._at_work:
                yield self._crowd(crowd, reading.detail)

    def _crowd(self, crowd: Crowd, detail: str) -> Finding:
        oldest = "" if crowd.oldest is None else f", the oldest for {_seconds(crowd.oldest)} s"
        place = "" if crowd.line is None else f" at {_short(crowd.line)}"
        who = _of_all(crowd.own, self._requests)
        return Finding(
            f"{who} wait for {detail}{place}{oldest}",
            "crowd",
            (number_of(crowd.first.task),),
            frame=crowd.line,
        )

    def _waiting(self, resource: Resource) -> str:
        tasks = [self._meetings.tasks[number] for number in resource.waiters]
        own = sum(map(is_adopted, tasks))
        number = len(tasks)
        who = _of_all(number, self._requests) if own == number else counted(number, "task")
        place = "" if resource.frame is None else f" at {_short(resource.frame)}"
        return f"{who} {'waits' if number == 1 else 'wait'} for {resource.type}{place}"

    def _held_by(self, resource: Resource) -> str:
        held = "held" if resource.held_seconds is None else f"held for {_seconds(resource.held_seconds)} s"
        if len(resource.holders) > 1:
            return f"{held} by {len(resource.holders)} tasks, among them {self._holder(resource.holders[0])}"
        return f"{held} by {self._holder(resource.holders[0], known=resource.held_seconds is not None)}"

    def _holder(self, number: int, *, known: bool = True) -> str:
        """Who it is, since when if that says more than how long it has held, and what it waits for."""
        task = self._meetings.tasks[number]
        exchange = exchange_of(task)
        who = f"task {title_of(task)}"
        if exchange is not None:
            who += f" (request {exchange.request_id})"
        age = age_of(task)
        if not known and age is not None:
            who += f", which started {_seconds(age)} s ago"
        waits = self._waits_for(number)
        return who if waits is None else f"{who}, which waits for {waits}"

    def _waits_for(self, number: int) -> str | None:
        reading = self._meetings.readings.get(number)
        if reading is None:
            return None
        call = outbound_call(self._meetings.tasks[number]) if reading.kind == "http_client" else None
        return call or reading.detail

    def _name_of(self, number: int) -> str:
        task = self._meetings.tasks[number]
        exchange = exchange_of(task) if is_adopted(task) else None
        return title_of(task) + ("" if exchange is None else f" ({exchange.method} {exchange.route})")


def _leak(crowd: Growing) -> Finding:
    place = "" if crowd.line is None else f" at {_short(crowd.line)}"
    return Finding(
        f"a leak, likely: {crowd.count} tasks of {crowd.coro} wait{place}, and ever more: "
        f"{crowd.before} were there {_seconds(crowd.seconds)} s ago",
        "leak",
        (crowd.example,),
        frame=crowd.line,
    )


def _of_all(number: int, requests: int) -> str:
    return f"{number} of {counted(requests, 'request')}"


def _short(frame: Frame) -> str:
    return f"{PurePath(frame.file).name}:{frame.line}"


def _seconds(seconds: float) -> str:
    """Three digits say enough: ``93``, ``7.5``, ``7``."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}".removesuffix(".0")
