"""What a colleague would say after a look at the tasks, worst first."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from time import perf_counter
from types import FrameType
from typing import Any

from ..texts import counted
from .groups import Crowd, Encounter, Groups
from .growth import Growing
from .model import Blocked, Finding, Frame, LoopState, Resource
from .places import is_library, line_to_name, place_of
from .resources import ResourceIndex, state_of
from .stacks import Reading
from .suspension import outbound_call
from .threads import caller_of, innermost_frames
from .tracker import age_of, exchange_of, is_request_task, number_of, title_of
from .unretrieved import Unretrieved

__all__ = ["findings", "was_blocked"]

_CROWD = 10
"""Tasks waiting at one place, or for one thing, that are worth a sentence."""
_LONG_SECONDS = 10.0
"""Time for which a lock is held that is worth a sentence however few wait for it."""
_SHARE = 0.5
"""Share of the requests at work that wait at one line that is worth a sentence."""
_OPEN = {
    *("async_generator", "barrier", "condition", "event", "future", "gather", "queue_put", "shield"),
    *("stream", "task", "task_group", "timeout", "wait", "wait_for"),
    *("http_server_idle", "queue_get", "sleep", "websocket"),
}
"""Waits that may be for anything.  All others, those that are registered too, are for somebody's work,
which nobody waits for for long while all is well."""
_MEETING_PLACES = (
    asyncio.Condition,
    asyncio.Event,
    asyncio.Queue,
    getattr(asyncio, "Barrier", asyncio.Event),  # from Python 3.11
)
"""What may be waited at for anything, too; a lock, a semaphore or a pool is waited for until it is free."""
_BY_THREADS = {"dns", "executor"}
_OUTBOUND = {"connect", "dns", "http_client"}
_LASTING_SECONDS = 1.0
"""Time for which a request waits for a thread that is worth a sentence: shorter waits are soon over."""
_YOUNG_SECONDS = 0.5
"""Age up to which requests that all wait at one line are just being served."""
_MOST = 20


def findings(
    loop: LoopState,
    running: asyncio.Task[Any] | None,
    resources: Sequence[Resource],
    deadlocks: Sequence[Sequence[int]],
    index: ResourceIndex,
    groups: Groups,
    growing: Sequence[Growing],
    failed: Sequence[Unretrieved],
    executor: Any = None,
) -> tuple[Finding, ...]:
    """All that stands out among the tasks, at most 20 sentences.

    ``running`` is the task that the loop runs, ``executor`` the loop's default one, if it has one.
    """
    verdict = _Verdict(index, groups)
    found = [
        *_blocked(loop.blocked_now, running),
        *(verdict.deadlock(cycle) for cycle in deadlocks),
        *verdict.held(resources, {number for cycle in deadlocks for number in cycle}),
        *verdict.full(executor),
        *verdict.crowds(resources),
        *map(_failed, failed),
        *(_leak(crowd) for crowd in growing),
    ]
    return tuple(found[:_MOST])


def _blocked(blocked: Blocked | None, running: asyncio.Task[Any] | None) -> Iterator[Finding]:
    if blocked is None:
        return
    frame = blocked.frame or line_to_name(blocked.stack)
    place = "" if frame is None else f" in {frame.short}"
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


def was_blocked(seconds: float, ago: float, frame: Frame | None, by: str | None) -> Finding:
    """The finding of a block that was over ``ago`` seconds ago; ``frame`` and ``by`` as far as was seen."""
    place = "" if frame is None else f", in {frame.named}"
    who = f" by {by}" if by else ""
    unseen = "" if place or who else ", nobody saw by what"
    sentence = f"the loop was blocked for {_seconds(seconds)} s, {_seconds(ago)} s ago{place}{who}{unseen}"
    return Finding(sentence, "blocked", frame=frame)


class _Verdict:
    def __init__(self, index: ResourceIndex, groups: Groups) -> None:
        self._index = index
        self._groups = groups
        self._requests = groups.requests()
        self._at_work = groups.at_work()

    def deadlock(self, cycle: Sequence[int]) -> Finding:
        names = [self._name_of(task) for task in (*cycle, cycle[0])]
        return Finding(f"deadlock: {' → '.join(names)}", "deadlock", tuple(cycle))

    def held(self, resources: Sequence[Resource], in_deadlock: set[int]) -> Iterator[Finding]:
        """Tell of locks and semaphores that many wait for, or that are held for long."""
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

    def full(self, executor: Any) -> Iterator[Finding]:
        """Tell of the loop's default executor, if calls wait for a thread and not just for a moment."""
        at_work, waiting = _load_of(executor)
        threads = len(at_work)
        if not waiting:
            return
        crowds = [crowd for crowd in self._groups.crowds() if _waits_in(crowd, _BY_THREADS)]
        if waiting >= threads or any(map(_is_lasting, crowds)):
            yield Finding(
                f"the loop's default executor is full: {threads} of {counted(threads, 'thread')} "
                f"{'is' if threads == 1 else 'are'} at work, "
                f"{counted(waiting, 'call')} {'waits' if waiting == 1 else 'wait'}{_most_are_in(at_work)}",
                "executor",
                tuple(number_of(crowd.first.task) for crowd in crowds[:1]),
            )

    def crowds(self, resources: Sequence[Resource]) -> Iterator[Finding]:
        """Tell of many requests that wait for one thing, or at one line, which nobody is known to hold."""
        held = {resource.id for resource in resources if resource.holders}
        told = Counter[Crowd]()
        for encounter in self._groups.encounters():
            resource = number_of(_resource_of(encounter))
            number = encounter.at_work()
            if resource not in held and self._is_much(encounter, number):
                held.add(resource)
                yield self._encounter(encounter, number, resource)
            if resource in held:
                told.update(encounter.crowds)
        for crowds in self._groups.lines():
            number = sum(crowd.at_work() - told[crowd] for crowd in crowds)
            if number >= _CROWD and self._is_much(whole := Crowd.of(crowds), number):
                yield self._crowd(whole, number)

    def _is_much(self, crowd: Crowd, number: int) -> bool:
        reading = crowd.first.reading
        if number < _CROWD or reading is None:
            return False
        is_old = (crowd.oldest or 0.0) >= _LONG_SECONDS and _is_for_work(reading)
        # Those that are younger may well be all there are: a busy service has one such line.
        is_lasting = crowd.oldest is None or crowd.oldest >= _YOUNG_SECONDS
        return is_old or (is_lasting and number >= _SHARE * self._at_work)

    def _encounter(self, encounter: Encounter, number: int, resource: int) -> Finding:
        crowds = sorted(encounter.crowds, key=lambda crowd: -encounter.crowds[crowd])
        lines = [crowd.line for crowd in crowds if crowd.line is not None]
        what = _thing(encounter.first.reading, _resource_of(encounter))
        sentence = self._sentence(encounter, number, f"{what}{_places(lines)}")
        example = (number_of(encounter.first.task),)
        return Finding(sentence, "crowd", example, resource, next(iter(lines), None))

    def _crowd(self, crowd: Crowd, number: int) -> Finding:
        reading = crowd.first.reading
        detail = "" if reading is None else reading.detail
        call = outbound_call(crowd.first.task) if reading is not None and reading.kind in _OUTBOUND else None
        if call is not None:
            detail += f" ({call})"
        place = "" if crowd.line is None else f" at {crowd.line.short}"
        sentence = self._sentence(crowd, number, f"{detail}{place}")
        return Finding(sentence, "crowd", (number_of(crowd.first.task),), frame=crowd.line)

    def _sentence(self, crowd: Crowd, number: int, what: str) -> str:
        oldest = "" if crowd.oldest is None else f", the oldest for {_seconds(crowd.oldest)} s"
        return f"{_of_all(number, self._requests)} wait for {what}{oldest}{_left(crowd)}"

    def _waiting(self, resource: Resource) -> str:
        tasks = [self._index.tasks[number] for number in resource.waiters]
        own = sum(map(is_request_task, tasks))
        number = len(tasks)
        who = _of_all(number, self._requests) if own == number else counted(number, "task")
        place = "" if resource.frame is None else f" at {resource.frame.short}"
        return f"{who} {'waits' if number == 1 else 'wait'} for {resource.type}{place}"

    def _held_by(self, resource: Resource) -> str:
        held = "held" if resource.held_seconds is None else f"held for {_seconds(resource.held_seconds)} s"
        if len(resource.holders) > 1:
            return f"{held} by {len(resource.holders)} tasks, among them {self._holder(resource.holders[0])}"
        return f"{held} by {self._holder(resource.holders[0], known=resource.held_seconds is not None)}"

    def _holder(self, number: int, *, known: bool = True) -> str:
        """Who a holder is, since when if that isn't told otherwise, and what it waits for itself."""
        task = self._index.tasks[number]
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
        reading = self._index.readings.get(number)
        if reading is None:
            return None
        call = outbound_call(self._index.tasks[number]) if reading.kind in _OUTBOUND else None
        if call is None:
            return reading.detail
        inner = reading.innermost
        return call if inner.startswith("ClientResponse.") else f"{call} ({inner})"

    def _name_of(self, number: int) -> str:
        task = self._index.tasks[number]
        exchange = exchange_of(task) if is_request_task(task) else None
        return title_of(task) + ("" if exchange is None else f" ({exchange.method} {exchange.route})")


def _waits_in(crowd: Crowd, kinds: Container[str]) -> bool:
    return crowd.first.reading is not None and crowd.first.reading.kind in kinds


def _is_lasting(crowd: Crowd) -> bool:
    """Whether the oldest of ``crowd``, if a request's own, has waited for long enough to tell."""
    exchange = crowd.first.exchange
    since = None if exchange is None else exchange.suspended_at
    return crowd.own > 0 and since is not None and perf_counter() - since >= _LASTING_SECONDS


def _load_of(executor: Any) -> tuple[list[int], int]:
    """The threads that an executor of any class has, and how many calls wait if it may have no more."""
    try:
        threads = [thread.ident for thread in list(executor._threads)]
        return threads, int(executor._work_queue.qsize()) if len(threads) >= executor._max_workers else 0
    except Exception:  # it isn't like ThreadPoolExecutor
        return [], 0


def _most_are_in(threads: Iterable[int]) -> str:
    """Where most of some threads are in the service's own code, in words; nothing if nowhere."""
    frames = innermost_frames()
    places = (_own_line(frames.get(thread)) for thread in threads)
    most = Counter(filter(None, places)).most_common(1)
    return "".join(f"; {number} of the threads in {line.named}" for line, number in most)


def _own_line(frame: FrameType | None) -> Frame | None:
    """The innermost line of the service's own code that has led to ``frame``."""
    while frame is not None and is_library(frame.f_code.co_filename):
        frame = caller_of(frame)
    return None if frame is None else place_of(frame.f_code, frame.f_lasti)


def _is_for_work(reading: Reading) -> bool:
    is_held = reading.resource is not None and not isinstance(reading.resource, _MEETING_PLACES)
    return is_held or reading.kind not in _OPEN


def _resource_of(encounter: Encounter) -> Any:
    return None if encounter.first.reading is None else encounter.first.reading.resource


def _thing(reading: Reading | None, resource: Any) -> str:
    """The call that waits there, and how much there is of what it waits for, if that is counted."""
    detail = "" if reading is None else reading.detail
    owner = type(resource).__name__
    call = next((call for call in detail.split(" → ") if call.startswith(f"{owner}.")), detail)
    state = state_of(resource)
    return f"{call} ({owner}, {state})" if any(map(str.isdigit, state)) else call


def _places(lines: Iterable[Frame]) -> str:
    first, *others = [*dict.fromkeys(line.short for line in lines)] or [""]
    if not others:
        return first and f" at {first}"
    return f" at {first} and {others[0] if len(others) == 1 else f'{len(others)} other places'}"


def _left(crowd: Crowd) -> str:
    if not crowd.left:
        return ""
    return f"; {crowd.left} of their clients {'has' if crowd.left == 1 else 'have'} left"


def _failed(task: Unretrieved) -> Finding:
    place = "" if task.line is None else f" in {task.line.named}"
    return Finding(
        f"task {task.task} has failed with {task.exception}{place}, at least {_seconds(task.seconds)} s ago, "
        "and nobody has asked for its outcome",
        "failed",
        frame=task.line,
    )


def _leak(crowd: Growing) -> Finding:
    place = "" if crowd.line is None else f" at {crowd.line.short}"
    return Finding(
        f"a leak, likely: {crowd.count} tasks of {crowd.coro} wait{place}, and ever more: "
        f"{crowd.before} were there {_seconds(crowd.seconds)} s ago",
        "leak",
        (crowd.example,),
        frame=crowd.line,
    )


def _of_all(number: int, requests: int) -> str:
    return f"{number} of {counted(requests, 'request')}"


def _seconds(seconds: float) -> str:
    """``seconds`` in as few digits as say enough: ``93``, ``7.5``, ``7``."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}".removesuffix(".0")
