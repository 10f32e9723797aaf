"""Drive a coroutine by hand, timing each stretch it holds the event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from time import perf_counter
from types import CoroutineType, coroutine
from typing import Any, Protocol, TypeVar

__all__ = ["Polled", "drive"]

A = TypeVar("A")
T = TypeVar("T")


class Polled(Protocol):
    """Where `drive` adds up: seconds on the loop, number of polls, longest poll in seconds.

    ``suspended_at`` is when the loop was last given back, `time.perf_counter` seconds.
    """

    busy: float
    polls: int
    longest_poll: float
    suspended_at: float | None


@coroutine
def drive(
    function: Callable[[A], Awaitable[T]],
    argument: A,
    polled: Polled,
    left: Callable[[T | None, BaseException | None], None],
) -> Generator[Any, Any, T]:
    """Await ``function(argument)``; behaves as that does, exceptions and cancellation included.

    ``left`` is told when it ends: what it returned, and what it raised.

    The await chain (`aiohttp_observe.tasks.chain`) knows this generator and continues at
    ``coro``, since a generator that sends by hand has no ``gi_yieldfrom``.
    """
    value: Any = None
    try:
        coro: Any = function(argument)
        if type(coro) is not CoroutineType:  # a class-based view, say
            coro = _awaiting(coro)
        resume = coro.send
        while True:
            begun = perf_counter()
            try:
                awaited = resume(value)
            finally:
                poll = perf_counter() - begun
                polled.busy += poll
                polled.polls += 1
                if poll > polled.longest_poll:
                    polled.longest_poll = poll
                value = None
            polled.suspended_at = begun + poll
            try:
                value = yield awaited
            except GeneratorExit:
                coro.close()
                raise
            except BaseException as exc:  # CancelledError among others: the coroutine's to handle
                resume, value = coro.throw, exc
            else:
                resume = coro.send
    except StopIteration as stop:
        left(stop.value, None)
        return stop.value  # type: ignore[no-any-return]
    except BaseException as exc:
        left(None, exc)
        raise


async def _awaiting(awaitable: Awaitable[T]) -> T:
    return await awaitable
