"""Cancelling tasks, those included that await each other."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["cancel"]


def cancel(task: asyncio.Task[Any]) -> None:
    """As ``task.cancel()``, which fails for those that await each other, in a ring; on the task's loop.

    asyncio passes the wish on to what a task awaits, and in a ring that has no end.
    """
    try:
        task.cancel()
    except RecursionError:
        _wake_as_cancelled(task)


def _wake_as_cancelled(task: asyncio.Task[Any]) -> None:
    """Have ``task`` go on as if what it awaits had been cancelled, which goes on without it."""
    awaited: Any = getattr(task, "_fut_waiter", None)
    for wake, context in list(getattr(awaited, "_callbacks", None) or ()):
        if getattr(wake, "__self__", None) is task:
            awaited.remove_done_callback(wake)
            awaited.add_done_callback(_retrieve)
            cancelled = task.get_loop().create_future()
            cancelled.cancel()
            task.get_loop().call_soon(wake, cancelled, context=context)


def _retrieve(done: asyncio.Future[Any]) -> None:
    """Its outcome was for the task that has gone on: nobody else is to hear of it."""
    if not done.cancelled():
        done.exception()
