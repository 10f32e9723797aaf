"""For how long a lock has been held: nobody notes when it is taken, so what is told is a lower bound.

A look that finds a task inside remembers when it first did.  Between looks the queue tells:
as long as the same waiter is at its head, nobody has been let in.
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
from .tracker import exchange_of, is_adopted, is_made_by_wait_for

__all__ = ["held_seconds", "note_contention"]

_holders: WeakKeyDictionary[Any, dict[int, float]] = WeakKeyDictionary()
"""When each task was first seen inside, by its id."""
_heads: WeakKeyDictionary[Any, tuple[Any, float]] = WeakKeyDictionary()
"""The waiter at the head of the queue, weakly, and when it was first seen there."""


def held_seconds(resource: Any, holders: dict[int, asyncio.Task[Any]], now: float) -> float | None:
    """For how long one of ``holders``, tasks by id, has been inside, at least; ``None`` if unknown."""
    bounds = [now - since for since in _first_seen(resource, holders, now)]
    bounds += [now - since for task in holders.values() for since in _suspended_since(task)]
    head = _known(_heads, resource)
    if head is not None and head[0]() is _head_of(resource):
        bounds.append(now - head[1])
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
    chain = Chain(task, is_made_by_wait_for)
    resource = read_wait(chain, stack_of_chain(chain)).resource if chain.waits else None
    head = None if resource is None else _head_of(resource)
    if head is None:
        return
    known = _heads.get(resource)
    if known is None or known[0]() is not head:
        _heads[resource] = ref(head), now


def _head_of(resource: Any) -> Any:
    """The future that is let in next."""
    waiters = getattr(resource, "_waiters", None)
    return next((waiter for waiter in list(waiters) if not waiter.done()), None) if waiters else None


def _first_seen(resource: Any, holders: Iterable[int], now: float) -> list[float]:
    known = _known(_holders, resource) or {}
    seen = {number: known.get(number, now) for number in holders}
    try:
        _holders[resource] = seen
    except TypeError:  # a lock that can't be hashed, or referred to weakly
        return []
    return list(seen.values())


def _known(memory: WeakKeyDictionary[Any, Any], resource: Any) -> Any:
    try:
        return memory.get(resource)
    except TypeError:
        return None


def _suspended_since(task: asyncio.Task[Any]) -> list[float]:
    """A request's own task hasn't left its ``async with`` since it was last run."""
    exchange = exchange_of(task) if is_adopted(task) else None
    return [] if exchange is None or exchange.suspended_at is None else [exchange.suspended_at]
