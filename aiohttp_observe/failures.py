"""Failures that nobody handled: counted, and logged once with where they were born."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from types import FrameType
from typing import Any

from .exchange import CURRENT, Exchange, Meter, current_exchange
from .incidents import Incidents
from .options import check_flag, check_positive
from .tasks import birth_of, exchange_of, own_line
from .tasks.model import Frame
from .tasks.places import place_of

__all__ = ["Failures", "LoopFailures"]

logger = logging.getLogger("aiohttp_observe.failures")

_LIMIT_COUNT = 10
_LIMIT_SECONDS = 10.0
_MOST_KINDS = 500

_SUPERVISION = f"{__package__}.background.outcome"

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

    def install(
        self, loop: asyncio.AbstractEventLoop, meter: Meter, incidents: Incidents | None = None
    ) -> LoopFailures:
        """Watch ``loop``, at start-up; closing the result restores what was before."""
        return LoopFailures(loop, meter, incidents or Incidents(), never_awaited=self.never_awaited)


class LoopFailures:
    """The exception handler of a loop, in front of the one the service had set.

    A failure is counted in ``asyncio_unhandled_total`` and logged here, in place of asyncio's
    own line; a handler set by the service is called as before.  Of several applications on
    a loop each keeps the incidents of its own requests, and one those that belong to none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        meter: Meter,
        incidents: Incidents,
        *,
        never_awaited: bool,
    ) -> None:
        self._loop = loop
        self._meter = meter
        self._incidents = incidents
        self._limit = _Limit()
        self._previous: ExceptionHandler | None = loop.get_exception_handler()
        self._handler: ExceptionHandler = self._handle
        self._open = True
        self._never_awaited = never_awaited
        loop.set_exception_handler(self._handler)
        if never_awaited:
            _coroutine_watch.enter(meter, incidents)

    def close(self) -> None:
        self._open = False
        if self._loop.get_exception_handler() is self._handler:
            self._loop.set_exception_handler(self._beneath())
        if self._never_awaited:
            _coroutine_watch.leave(self._meter, self._incidents)

    def _beneath(self) -> ExceptionHandler | None:
        """The handler to go on with, past those of applications that have ended before this one."""
        owner = getattr(self._previous, "__self__", None)
        return owner._beneath() if isinstance(owner, LoopFailures) and not owner._open else self._previous

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        beneath = self._beneath()
        shared = isinstance(getattr(beneath, "__self__", None), LoopFailures)
        try:
            if self._open:
                self._tell(context, shared)
        except Exception:
            self._meter.internal_error("failures")
        if beneath is not None:
            beneath(loop, context)

    def _tell(self, context: dict[str, Any], shared: bool) -> None:
        """Keep it if it is this application's; what is ``shared``, another one on this loop tells."""
        if _is_supervised(context):
            return
        exchange = _born_in(context)
        meter = self._meter if exchange is None else exchange.scope.meter
        if meter is self._meter and not (exchange is None and shared):
            _keep(self._incidents, context, exchange)
        if not shared:
            meter.unhandled(_kind_of(context))
            _log(context, exchange, self._limit)


def _is_supervised(context: dict[str, Any]) -> bool:
    """Whether a scheduler passes on the exception of a task whose end was told: see `supervised`."""
    exc = context.get("exception")
    if exc is None or _kind_of(context) != "other":
        return False
    frames = (frame for frame, _ in traceback.walk_tb(exc.__traceback__))
    return any(frame.f_globals.get("__name__") == _SUPERVISION for frame in frames)


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


def _keep(incidents: Incidents, context: dict[str, Any], exchange: Exchange | None) -> None:
    task, exc = _task_of(context), context.get("exception")
    incidents.unhandled(
        _kind_of(context),
        exception=None if exc is None else type(exc).__qualname__,
        coro=None if task is None else _coro_of(task),
        frame=_raised_in(exc) or (None if task is None else _birthplace(task)),
        task=None if task is None else task.get_name(),
        request_id=None if exchange is None else exchange.request_id,
        trace_id=None if exchange is None else exchange.trace_id,
    )


def _raised_in(exc: BaseException | None) -> Frame | None:
    """The innermost of the service's own lines that an exception came through, else where it was raised."""
    if exc is None:
        return None
    stack = [
        Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(exc.__traceback__)
    ]
    return own_line(reversed(stack)) or next(reversed(stack), None)


def _birthplace(task: asyncio.Task[Any]) -> Frame | None:
    birth = birth_of(task)
    return None if birth is None else birth.place


def _coro_of(task: asyncio.Task[Any]) -> str:
    return _name_of(task.get_coro())


def _name_of(coro: Any) -> str:
    return str(getattr(coro, "__qualname__", type(coro).__qualname__))


class _Limit:
    """Lets through ten of a kind in ten seconds; the next one tells how many were left out.

    Called from finalizers too, in the middle of anything: it takes no lock.
    """

    def __init__(self) -> None:
        self._kinds: dict[Any, list[float]] = {}  # when the ten seconds began, seen, left out

    def left_out(self, kind: Any) -> int | None:
        """How many of ``kind`` were left out before this one; ``None`` if this one is to be left out."""
        now = perf_counter()
        window = self._kinds.get(kind)
        if window is None or now - window[0] >= _LIMIT_SECONDS:
            if window is None and len(self._kinds) >= _MOST_KINDS:
                self._kinds = {}
            self._kinds[kind] = [now, 1, 0]
            return 0 if window is None else int(window[2])
        window[1] += 1
        if window[1] <= _LIMIT_COUNT:
            return 0
        window[2] += 1
        return None

    def is_one_too_many(self, fields: dict[str, Any], *kind: Any) -> bool:
        """Whether a line is left out; else ``fields`` says how many were before it."""
        left_out = self.left_out(kind)
        if left_out:
            fields["left_out"] = left_out
        return left_out is None


def _log(context: dict[str, Any], exchange: Exchange | None, limit: _Limit) -> None:
    task = _task_of(context)
    fields: dict[str, Any] = {"kind": _kind_of(context), **_ids(exchange)}
    exc = context.get("exception")
    coro = None if task is None else _coro_of(task)
    if limit.is_one_too_many(fields, fields["kind"], type(exc), _raised_in(exc), coro):
        return
    message = str(context.get("message") or "Unhandled failure in the event loop")
    if task is not None:
        fields.update(_origin_of(task))
        message = f"{message}: {task.get_name()}{_created(fields)}"
    elif "handle" in context:
        message = f"{message.partition(' <')[0]}"
    logger.error("%s%s", message, _left_out(fields), exc_info=exc, extra=fields)


def _origin_of(task: asyncio.Task[Any]) -> dict[str, str]:
    fields = {"task": task.get_name(), "coro": _coro_of(task)}
    place = _birthplace(task)
    if place is not None:
        fields["created_at"] = f"{place.file}:{place.line} in {place.function}"
    return fields


def _created(fields: dict[str, Any]) -> str:
    return f", created at {fields['created_at']}" if "created_at" in fields else ""


def _left_out(fields: dict[str, Any]) -> str:
    return f"; {fields['left_out']} more like it were only counted" if "left_out" in fields else ""


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
        self._told_to: list[tuple[Meter, Incidents]] = []
        self._original: Callable[[Any], None] | None = None
        self._limit = _Limit()

    def enter(self, meter: Meter, incidents: Incidents) -> None:
        with self._lock:
            self._told_to.append((meter, incidents))
            if self._original is None:
                self._limit = _Limit()
                self._original = getattr(warnings, "_warn_unawaited_coroutine", None)
                if self._original is not None:
                    warnings._warn_unawaited_coroutine = self._told  # type: ignore[attr-defined]

    def leave(self, meter: Meter, incidents: Incidents) -> None:
        with self._lock:
            self._told_to.remove((meter, incidents))
            if not self._told_to and self._original is not None:
                warnings._warn_unawaited_coroutine = self._original  # type: ignore[attr-defined]
                self._original = None

    def _told(self, coro: Any) -> None:
        exchange = current_exchange()
        meter, incidents = self._of(exchange)
        try:
            meter.unhandled("never_awaited")
            dropped_in = sys._getframe(1)
            _log_never_awaited(coro, dropped_in, self._limit)
            incidents.unhandled(
                "never_awaited",
                coro=_name_of(coro),
                frame=place_of(dropped_in.f_code, dropped_in.f_lasti),
                request_id=None if exchange is None else exchange.request_id,
                trace_id=None if exchange is None else exchange.trace_id,
            )
        except Exception:
            meter.internal_error("failures")
        original = self._original
        if original is not None:
            original(coro)

    def _of(self, exchange: Exchange | None) -> tuple[Meter, Incidents]:
        """Of the application that a request belongs to, else of the latest."""
        latest = self._told_to[-1]
        if exchange is None:
            return latest
        meter = exchange.scope.meter
        return next((told for told in self._told_to if told[0] is meter), (meter, Incidents()))


_coroutine_watch = _CoroutineWatch()


def _log_never_awaited(coro: Any, dropped_in: FrameType, limit: _Limit) -> None:
    """``dropped_in`` is the frame that let go of the coroutine: for a forgotten ``await``, the culprit."""
    name = _name_of(coro)
    fields: dict[str, Any] = {"kind": "never_awaited", "coro": name, "dropped_at": _place(dropped_in)}
    origin = getattr(coro, "cr_origin", None)
    code = getattr(coro, "cr_code", None)
    if origin:  # sys.set_coroutine_origin_tracking_depth is on
        file, line, function = origin[0]
        fields["created_at"] = f"{file}:{line} in {function}"
    if code is not None:
        fields["defined_at"] = f"{code.co_filename}:{code.co_firstlineno}"
    if limit.is_one_too_many(fields, "never_awaited", name, fields["dropped_at"]):
        return
    place = _created(fields) or f", dropped at {fields['dropped_at']}"
    logger.error("coroutine %s was never awaited%s%s", name, place, _left_out(fields), extra=fields)


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
