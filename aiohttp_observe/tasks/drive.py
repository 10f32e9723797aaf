"""Drive a coroutine by hand, timing each stretch it holds the event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from math import inf
from time import perf_counter
from types import CoroutineType, coroutine
from typing import Any, Protocol, TypeVar

__all__ = ["Polled", "Told", "drive"]

A = TypeVar("A")
T = TypeVar("T")

_SHORT = 0.001
"""Seconds of waiting that aren't worth telling what for."""


class Polled(Protocol):
    """Where `drive` adds up: seconds on the loop, number of polls, longest poll in seconds.

    ``suspended_at`` is when the loop was last given back, `time.perf_counter` seconds.
    """

    busy: float
    polls: int
    longest_poll: float
    suspended_at: float | None


class Told(Protocol):
    """Who hears of what happens between the polls."""

    def waited(self, coro: Any, future: Any, callbacks: Any, since: float, until: float) -> None:
        """``coro`` goes on; what it awaited was ``future``, with these callbacks when the wait began."""

    def left(self, returned: Any, raised: BaseException | None) -> None:
        """It has ended: what it returned, or raised."""


@coroutine
def drive(
    function: Callable[[A], Awaitable[T]],
    argument: A,
    polled: Polled,
    told: Told,
) -> Generator[Any, Any, T]:
    """Await ``function(argument)``; behaves as that does, exceptions and cancellation included.

    ``told`` hears of every wait that isn't short, and of the end.

    The await chain (`aiohttp_observe.tasks.chain`) knows this generator and continues at
    ``coro``, since a generator that sends by hand has no ``gi_yieldfrom``.
    """
    value: Any = None
    awaited: Any = None
    callbacks: Any = None
    ended = inf
    try:
        coro: Any = function(argument)
        if type(coro) is not CoroutineType:  # a class-based view, say
            coro = _awaiting(coro)
        resume = coro.send
        while True:
            begun = perf_counter()
            if begun - ended > _SHORT:
                told.waited(coro, awaited, callbacks, ended, begun)
            try:
                awaited = resume(value)
            except StopIteration as stop:
                returned: T = stop.value
                break
            finally:
                polled.suspended_at = ended = perf_counter()
                poll = ended - begun
                polled.busy += poll
                polled.polls += 1
                if poll > polled.longest_poll:
                    polled.longest_poll = poll
                value = None
            callbacks = getattr(awaited, "_callbacks", None)
            try:
                value = yield awaited
            except GeneratorExit:
                coro.close()
                raise
            except BaseException as exc:  # CancelledError among others: the coroutine's to handle
                resume, value = coro.throw, exc
            else:
                resume = coro.send
    except BaseException as exc:
        told.left(None, exc)
        raise
    told.left(returned, None)
    return returned


async def _awaiting(awaitable: Awaitable[T]) -> T:
    return await awaitable
