"""Failures that nobody handled: counted, and logged once with where they were born."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from .exchange import CURRENT, Exchange, Meter, current_exchange
from .options import check_flag, check_positive
from .tasks import birth_of, exchange_of

__all__ = ["Failures", "LoopFailures"]

logger = logging.getLogger("aiohttp_observe.failures")

ExceptionHandler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What is done about failures that nobody handled.

    ``never_awaited``     whether coroutines that were never awaited are told too, default ``True``
    ``shutdown_timeout``  seconds that spawned tasks have to stop after being cancelled at
                          clean-up, default 10
    """

    never_awaited: bool = True
    shutdown_timeout: float = 10.0

    def __post_init__(self) -> None:
        check_flag("Failures(never_awaited=...)", self.never_awaited)
        check_positive("Failures(shutdown_timeout=...)", self.shutdown_timeout, "seconds")

    def install(self, loop: asyncio.AbstractEventLoop, meter: Meter) -> LoopFailures:
        """Watch ``loop``, at start-up; closing the result restores what was before."""
        return LoopFailures(loop, meter, never_awaited=self.never_awaited)


class LoopFailures:
    """The exception handler of a loop, in front of the one the service had set.

    A failure is counted in ``asyncio_unhandled_total`` and logged here, in place of asyncio's
    own line; a handler set by the service is called as before.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, meter: Meter, *, never_awaited: bool) -> None:
        self._loop = loop
        self._meter = meter
        self._previous: ExceptionHandler | None = loop.get_exception_handler()
        self._handler: ExceptionHandler = self._handle
        self._open = True
        self._never_awaited = never_awaited
        loop.set_exception_handler(self._handler)
        if never_awaited:
            _coroutine_watch.enter(meter)

    def close(self) -> None:
        self._open = False
        if self._loop.get_exception_handler() is self._handler:
            self._loop.set_exception_handler(self._beneath())
        if self._never_awaited:
            _coroutine_watch.leave(self._meter)

    def _beneath(self) -> ExceptionHandler | None:
        """The handler to go on with, past those of applications that have ended before this one."""
        owner = getattr(self._previous, "__self__", None)
        return owner._beneath() if isinstance(owner, LoopFailures) and not owner._open else self._previous

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        beneath = self._beneath()
        shared = isinstance(getattr(beneath, "__self__", None), LoopFailures)
        try:
            if self._open and not shared:  # else another application on this loop tells it
                exchange = _born_in(context)
                meter = self._meter if exchange is None else exchange.scope.meter
                meter.unhandled(_kind_of(context))
                _log(context, exchange)
        except Exception:
            self._meter.internal_error("failures")
        if beneath is not None:
            beneath(loop, context)


def _task_of(context: dict[str, Any]) -> asyncio.Task[Any] | None:
    future = context.get("task") or context.get("future")
    return future if isinstance(future, asyncio.Task) else None


def _born_in(context: dict[str, Any]) -> Exchange | None:
    """The request whose work failed: of several applications on a loop, the failure is counted there."""
    task = _task_of(context)
    if task is not None:
        return exchange_of(task)
    # Up to Python 3.11 asyncio calls the handler outside of the failed callback's context.
    surroundings = getattr(context.get("handle"), "_context", None)
    return current_exchange() if surroundings is None else surroundings.get(CURRENT)


def _kind_of(context: dict[str, Any]) -> str:
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


def _log(context: dict[str, Any], exchange: Exchange | None) -> None:
    task = _task_of(context)
    fields: dict[str, Any] = {"kind": _kind_of(context), **_ids(exchange)}
    message = str(context.get("message") or "Unhandled failure in the event loop")
    if task is not None:
        fields.update(_origin_of(task))
        message = f"{message}: {task.get_name()}{_created(fields)}"
    elif "handle" in context:
        message = f"{message.partition(' <')[0]}"
    logger.error("%s", message, exc_info=context.get("exception"), extra=fields)


def _origin_of(task: asyncio.Task[Any]) -> dict[str, str]:
    fields = {"task": task.get_name()}
    coro: Any = task.get_coro()
    fields["coro"] = getattr(coro, "__qualname__", type(coro).__qualname__)
    birth = birth_of(task)
    place = None if birth is None else birth.place
    if place is not None:
        fields["created_at"] = f"{place.file}:{place.line} in {place.function}"
    return fields


def _created(fields: dict[str, Any]) -> str:
    return f", created at {fields['created_at']}" if "created_at" in fields else ""


def _ids(exchange: Exchange | None) -> dict[str, str]:
    return {} if exchange is None else exchange.ids


class _CoroutineWatch:
    """Hears of every coroutine that was never awaited, whatever the warnings filters say.

    The interpreter calls ``warnings._warn_unawaited_coroutine`` for each, before any filter
    or once-per-line registry; it is replaced while an application runs, and calls the
    original, so that the warning itself stays as it was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meters: list[Meter] = []
        self._original: Callable[[Any], None] | None = None

    def enter(self, meter: Meter) -> None:
        with self._lock:
            self._meters.append(meter)
            if self._original is None:
                self._original = getattr(warnings, "_warn_unawaited_coroutine", None)
                if self._original is not None:
                    warnings._warn_unawaited_coroutine = self._told  # type: ignore[attr-defined]

    def leave(self, meter: Meter) -> None:
        with self._lock:
            self._meters.remove(meter)
            if not self._meters and self._original is not None:
                warnings._warn_unawaited_coroutine = self._original  # type: ignore[attr-defined]
                self._original = None

    def _told(self, coro: Any) -> None:
        exchange = current_exchange()
        meter = exchange.scope.meter if exchange is not None else self._meters[-1]
        try:
            meter.unhandled("never_awaited")
            _log_never_awaited(coro, sys._getframe(1))
        except Exception:
            meter.internal_error("failures")
        original = self._original
        if original is not None:
            original(coro)


_coroutine_watch = _CoroutineWatch()


def _log_never_awaited(coro: Any, dropped_in: FrameType) -> None:
    """``dropped_in`` is the frame that let go of the coroutine: for a forgotten ``await``, the culprit."""
    name = getattr(coro, "__qualname__", type(coro).__qualname__)
    fields = {"kind": "never_awaited", "coro": name, "dropped_at": _place(dropped_in)}
    origin = getattr(coro, "cr_origin", None)
    code = getattr(coro, "cr_code", None)
    if origin:  # sys.set_coroutine_origin_tracking_depth is on
        file, line, function = origin[0]
        fields["created_at"] = f"{file}:{line} in {function}"
    if code is not None:
        fields["defined_at"] = f"{code.co_filename}:{code.co_firstlineno}"
    place = _created(fields) or f", dropped at {fields['dropped_at']}"
    logger.error("coroutine %s was never awaited%s", name, place, extra=fields)


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
