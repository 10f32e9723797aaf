"""Tasks that have failed, and whose outcome nobody has asked for.

asyncio tells of such a failure when the task is collected.  Of one that something refers to, be it
a list of background tasks, it never does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

from .model import Frame
from .places import raised_in
from .tracker import title_of

__all__ = ["Unretrieved", "unretrieved"]

_SECONDS = 5.0
"""Who gathers the outcomes of several tasks asks for the last one's later."""
_MOST = 3


@dataclass(frozen=True, slots=True)
class Unretrieved:
    """A task that has failed at least ``seconds`` ago, in a ``line`` of the service's own if in any."""

    task: str
    exception: str
    line: Frame | None
    seconds: float


_seen_failed: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()
"""When each was seen first."""


def unretrieved(loop: asyncio.AbstractEventLoop, now: float | None = None) -> list[Unretrieved]:
    """Those of ``loop`` that an earlier look has seen, at least 5 s ago; three at most, the latest first."""
    now = perf_counter() if now is None else now
    since: list[tuple[float, asyncio.Task[Any]]] = []
    for task in _all_that_are_referred_to():
        if _has_failed(task) and task.get_loop() is loop:
            first = _seen_failed.setdefault(task, now)
            if now - first >= _SECONDS:
                since.append((first, task))
    since.sort(key=lambda each: -each[0])
    return [_told(task, now - first) for first, task in since[:_MOST]]


def _all_that_are_referred_to() -> Iterable[asyncio.Task[Any]]:
    """The tasks that asyncio knows of, ended ones included; from Python 3.14 on it forgets these."""
    known: Any = getattr(asyncio.tasks, "_scheduled_tasks", None) or getattr(asyncio.tasks, "_all_tasks", ())
    try:
        return list(known)
    except RuntimeError:  # another thread makes some: the next look will do
        return ()


def _has_failed(task: asyncio.Task[Any]) -> bool:
    """Whether nobody has asked for its exception; a class of the service's own may not know."""
    failed: bool = task.done() and getattr(task, "_log_traceback", False)
    return failed and getattr(task, "_exception", None) is not None


def _told(task: asyncio.Task[Any], seconds: float) -> Unretrieved:
    exc: Any = task._exception  # the method would count as having asked
    return Unretrieved(title_of(task), type(exc).__qualname__, raised_in(exc), seconds)
