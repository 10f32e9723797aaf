"""Cancelling tasks, those included that await each other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

__all__ = ["cancel"]


def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel ``task``, be it one of a ring of tasks that await each other; call it on the task's loop.

    ``task.cancel()`` passes the wish on to what the task awaits.  In a ring that has no end, and
    counts each time as one more wish that somebody would have to take back.
    """
    if _has_no_end(task):
        _wake_as_cancelled(task)
    else:
        task.cancel()


def _has_no_end(task: asyncio.Task[Any]) -> bool:
    """Whether a wish to cancel ``task``, passed on, would come round to where it was already."""
    on_the_way, ended = {id(task)}, set[int]()
    way: list[tuple[Any, Iterator[Any]]] = [(task, _passed_on(task))]
    while way:
        at, further = way[-1]
        step = next(further, None)
        if step is None:
            way.pop()
            on_the_way.discard(id(at))
            ended.add(id(at))
        elif id(step) in on_the_way:
            return True
        elif id(step) not in ended:
            on_the_way.add(id(step))
            way.append((step, _passed_on(step)))
    return False


def _passed_on(future: Any) -> Iterator[Any]:
    """To whom asyncio passes a wish to cancel on: what a task awaits, what is gathered."""
    awaited = getattr(future, "_fut_waiter", None)
    if awaited is not None:
        yield awaited
    children = getattr(future, "_children", None)
    if isinstance(children, list):
        yield from children


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
    """Have nobody hear of the outcome: it was for the task that has gone on without it."""
    if not done.cancelled():
        done.exception()
