"""What the loop's exception handler is told, read: whose failure it is, of what kind, and from where."""

from __future__ import annotations

import asyncio
from traceback import walk_tb
from typing import Any

from ..exchange import CURRENT, Exchange, current_exchange
from ..tasks import Frame, birth_of, exchange_of

__all__ = ["birthplace", "born_in", "is_supervised", "kind_of", "task_of"]

_SUPERVISION = f"{__package__.partition('.')[0]}.background.outcome"


def is_supervised(context: dict[str, Any]) -> bool:
    """Whether a scheduler passes on the exception of a task whose end was told: see `supervised`."""
    exc = context.get("exception")
    if exc is None or kind_of(context) != "other":
        return False
    frames = (frame for frame, _ in walk_tb(exc.__traceback__))
    return any(frame.f_globals.get("__name__") == _SUPERVISION for frame in frames)


def task_of(context: dict[str, Any]) -> asyncio.Task[Any] | None:
    future = context.get("task") or context.get("future")
    return future if isinstance(future, asyncio.Task) else None


def born_in(context: dict[str, Any]) -> Exchange | None:
    """The request whose work failed: of several applications on a loop, the failure is counted there."""
    task = task_of(context)
    if task is not None:
        return exchange_of(task)
    # Up to Python 3.11 asyncio calls the handler outside of the failed callback's context.
    surroundings = getattr(context.get("handle"), "_context", None)
    return current_exchange() if surroundings is None else surroundings.get(CURRENT)


def kind_of(context: dict[str, Any]) -> str:
    if "task" in context and "exception" in context:
        return "task_exception"
    if "task" in context:
        return "task_destroyed_pending"
    if "handle" in context:
        return "callback"
    future = context.get("future")
    if isinstance(future, asyncio.Task) and "exception" in context:
        return "task_exception"
    return "other"


def birthplace(task: asyncio.Task[Any]) -> Frame | None:
    birth = birth_of(task)
    return None if birth is None else birth.place
