"""The timer for any coroutine function."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from inspect import iscoroutinefunction
from typing import Any, Final, TypeVar, cast, overload

from prometheus_async.aio import time as time_awaitable
from prometheus_client import REGISTRY

from ..exchange import Meter, current_scope
from ..options import check_instance
from ..texts import qualified_name
from .instruments import instruments_of

__all__ = ["timeit"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])

logger = logging.getLogger("aiohttp_observe")


class _Outcome:
    """Watches one call: the outcome as seen, the seconds as prometheus-async measures them."""

    __slots__ = ("_name", "_outcome")

    def __init__(self, name: str) -> None:
        self._name = name
        self._outcome = "ok"

    async def watch(self, awaitable: Awaitable[T]) -> T:
        try:
            return await awaitable
        except (asyncio.CancelledError, GeneratorExit):
            self._outcome = "cancelled"
            raise
        except BaseException:
            self._outcome = "error"
            raise

    def observe(self, seconds: float) -> None:
        scope = current_scope()
        meter = _metrics_of_the_process() if scope is None else scope.meter
        meter.operation(self._name, self._outcome, seconds)


@functools.cache
def _metrics_of_the_process() -> Meter:
    try:
        return instruments_of(REGISTRY)
    except ValueError as exc:  # somebody else has a metric by one of our names
        logger.error("timeit() measures nothing outside an application: %s", exc)
        return Meter()


@overload
def timeit(function: F, /) -> F: ...


@overload
def timeit(*, name: str | None = None) -> Callable[[F], F]: ...


def timeit(function: Any = None, /, *, name: str | None = None) -> Any:
    """Time every call of a coroutine function, method or handler.

    Bare or with a name: ``@timeit`` or ``@timeit(name="price lookup")``.  Each call is
    observed in ``async_operation_duration_seconds{operation, outcome}``: ``operation`` is
    ``name``, or the function's qualified name; ``outcome`` is ``ok``, ``error`` or
    ``cancelled``.  The metrics are those of the application whose request or start-up the
    call descends from, else those of ``prometheus_client.REGISTRY``.

    Raises ``TypeError`` for anything but a coroutine function.
    """
    if name is not None:
        check_instance("timeit(name=...)", name, str)
    if function is None:
        return functools.partial(_timed, name=name)
    return _timed(function, name=name)


def _timed(function: F, *, name: str | None) -> F:
    if not iscoroutinefunction(function):
        raise TypeError(
            f"@timeit takes a coroutine function, got {function!r}: write 'async def', "
            "or time a block with 'with operation(...)'"
        )
    label: Final = name or qualified_name(function)

    @functools.wraps(function)
    async def timed(*args: Any, **kwargs: Any) -> Any:
        outcome = _Outcome(label)
        return await time_awaitable(outcome, outcome.watch(function(*args, **kwargs)))

    return cast(F, timed)
