"""Drive a coroutine by hand, timing each stretch it holds the event loop."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from time import perf_counter
from types import coroutine
from typing import Any, Protocol, TypeVar

__all__ = ["Polled", "drive"]

T = TypeVar("T")


class Polled(Protocol):
    """Where `drive` adds up: seconds on the loop, number of polls, longest poll in seconds."""

    busy: float
    polls: int
    longest_poll: float


@coroutine
def drive(coro: Coroutine[Any, Any, T], polled: Polled) -> Generator[Any, Any, T]:
    """Await ``coro``; behaves as ``await coro`` does, exceptions and cancellation included.

    The await chain (`aiohttp_observe.tasks.chain`) knows this generator and continues at
    ``coro``, since a generator that sends by hand has no ``gi_yieldfrom``.
    """
    resume = coro.send
    value: Any = None
    while True:
        begun = perf_counter()
        try:
            awaited = resume(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            poll = perf_counter() - begun
            polled.busy += poll
            polled.polls += 1
            if poll > polled.longest_poll:
                polled.longest_poll = poll
        try:
            value = yield awaited
        except GeneratorExit:
            coro.close()
            raise
        except BaseException as exc:  # CancelledError among others: the coroutine's to handle
            resume, value = coro.throw, exc
        else:
            resume = coro.send
