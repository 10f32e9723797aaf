"""Drive a coroutine by hand, timing each stretch it holds the event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from math import inf
from sys import getrefcount
from time import perf_counter
from types import CoroutineType, coroutine
from typing import Any, Protocol, TypeVar

__all__ = ["Driven", "drive"]

A = TypeVar("A")
T = TypeVar("T")

_SHORT = 0.001
"""Seconds of waiting that aren't worth telling what for, or of holding the loop."""
_MANY = 50
"""References to a future, of which each of those who await it holds some."""


class Driven(Protocol):
    """Where `drive` says what it sees: seconds on the loop, number of polls, longest poll in seconds.

    ``suspended_at`` is when the loop was last given back, `time.perf_counter` seconds.
    """

    busy: float
    polls: int
    longest_poll: float
    suspended_at: float | None

    def waited(self, coro: Any, future: Any, callbacks: Any, since: float, until: float) -> None:
        """``coro`` goes on; what it awaited was ``future``, with these callbacks when the wait began."""

    def held(self, seconds: float) -> None:
        """The coroutine has just held the loop for that long."""


@coroutine
def drive(function: Callable[[A], Awaitable[T]], argument: A, driven: Driven) -> Generator[Any, Any, T]:
    """Await ``function(argument)``; behaves as that does, exceptions and cancellation included.

    ``driven`` is told of every wait, and of every stretch on the loop, that isn't short.

    The await chain (`aiohttp_observe.tasks.chain`) knows this generator and continues at
    ``coro``, since a generator that sends by hand has no ``gi_yieldfrom``.
    """
    value = awaited = callbacks = None
    busy, polls, longest_poll, ended = 0.0, 0, 0.0, inf
    coro: Any = function(argument)
    if type(coro) is not CoroutineType:  # a class-based view, say
        coro = _awaiting(coro)
    resume = coro.send
    while True:
        begun = perf_counter()
        if begun - ended > _SHORT:
            driven.waited(coro, awaited, callbacks, ended, begun)
        try:
            awaited = resume(value)
        except StopIteration as stop:
            returned: T = stop.value
            return returned
        finally:
            ended = perf_counter()
            poll = ended - begun
            busy += poll
            polls += 1
            if poll > longest_poll:
                driven.longest_poll = longest_poll = poll
            driven.busy, driven.polls, driven.suspended_at = busy, polls, ended
            if poll > _SHORT:
                driven.held(poll)
            value = None
        # A copy of the list: that of a future which thousands await would be made thousands of times.
        callbacks = getattr(awaited, "_callbacks", None) if getrefcount(awaited) < _MANY else None
        try:
            value = yield awaited
        except GeneratorExit:
            coro.close()
            raise
        except BaseException as exc:  # CancelledError among others: the coroutine's to handle
            resume, value = coro.throw, exc
        else:
            resume = coro.send


async def _awaiting(awaitable: Awaitable[T]) -> T:
    return await awaitable
