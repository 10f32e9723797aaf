"""For how long a lock has been held: nobody notes when it is taken, so what is told is a lower bound.

A look that finds a task inside remembers what that one waited for: if it still does, it hasn't
run, and so not left.  And as long as the same waiter is at the head of the queue, nobody has
been let in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary, ref

from .chain import Chain
from .stacks import read_wait
from .suspension import stack_of_chain
from .tracker import exchange_of, is_request_task

__all__ = ["held_seconds", "note_contention"]

_holders: WeakKeyDictionary[Any, dict[int, tuple[Any, float]]] = WeakKeyDictionary()
"""Of each lock and the id of each task inside: what that waited for, weakly, and since when it is seen to."""
_heads: WeakKeyDictionary[Any, tuple[Any, float]] = WeakKeyDictionary()
"""Of each lock: the waiter at the head of its queue, weakly, and when it was first seen there."""


def held_seconds(resource: Any, holders: dict[int, asyncio.Task[Any]], now: float) -> float | None:
    """For how long one of ``holders``, tasks by id, has been inside, at least; ``None`` if unknown."""
    bounds = [now - since for since in _unmoved_since(resource, holders, now)]
    bounds += [now - since for task in holders.values() for since in _suspended_since(task)]
    bounds += [now - since for since in _same_head_since(resource, now)]
    longest = max(bounds, default=0.0)
    return round(longest, 3) if longest > 0 else None


def note_contention(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Remember who is at the head of the queues that these few tasks wait in; never raises."""
    now = perf_counter()
    for task in tasks:
        try:
            _note_head(task, now)
        except Exception:  # somebody's own lock that is like no other
            continue


def _note_head(task: asyncio.Task[Any], now: float) -> None:
    chain = Chain.of(task)
    resource = read_wait(chain, stack_of_chain(chain)).resource if chain.waits else None
    if resource is not None:
        _same_head_since(resource, now)


def _head_of(resource: Any) -> Any:
    """The future of the waiter that ``resource`` lets in next."""
    waiters = getattr(resource, "_waiters", None)
    return next((waiter for waiter in list(waiters) if not waiter.done()), None) if waiters else None


def _unmoved_since(resource: Any, holders: dict[int, asyncio.Task[Any]], now: float) -> list[float]:
    known = _known(_holders, resource) or {}
    seen = {}
    for number, task in holders.items():
        awaited = getattr(task, "_fut_waiter", None)
        mark = known.get(number)
        if awaited is not None:
            seen[number] = mark if mark is not None and mark[0]() is awaited else (ref(awaited), now)
    try:
        _holders[resource] = seen
    except TypeError:  # a lock that can't be hashed, or referred to weakly
        return []
    return [since for _, since in seen.values()]


def _same_head_since(resource: Any, now: float) -> list[float]:
    head = _head_of(resource)
    if head is None:
        return []
    known = _known(_heads, resource)
    if known is None or known[0]() is not head:
        try:
            known = _heads[resource] = ref(head), now
        except TypeError:
            return []
    return [known[1]]


def _known(memory: WeakKeyDictionary[Any, Any], resource: Any) -> Any:
    try:
        return memory.get(resource)
    except TypeError:
        return None


def _suspended_since(task: asyncio.Task[Any]) -> list[float]:
    """Since when a request's own task is suspended: it can't have left its ``async with`` meanwhile."""
    exchange = exchange_of(task) if is_request_task(task) else None
    return [] if exchange is None or exchange.suspended_at is None else [exchange.suspended_at]
