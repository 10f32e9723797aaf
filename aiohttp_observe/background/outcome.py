"""How a task ended: logged, and counted."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import weakref
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, Literal, TypeVar, cast

from ..exchange import CURRENT, FIELDS, SCOPE, Scope, current_scope
from ..flood import OTHERS, Flood, more_like_it
from ..options import check_choice, check_instance
from ..records import log
from ..texts import qualified_name

__all__ = [
    "UNSCOPED",
    "Trace",
    "check_coroutine",
    "detached",
    "named",
    "supervised",
    "tell",
    "tell_left_out",
    "tell_now_and_then",
]

T = TypeVar("T")
Trace = Literal["link", "child", "none"]

logger = logging.getLogger("aiohttp_observe.background")

UNSCOPED = Scope()
"""Stands in where there is no application."""

_flood = Flood()


def tell(scope: Scope, name: str, started: float, exc: BaseException | None) -> None:
    """Log and count the end of a task ``started`` at that `time.perf_counter`."""
    fields = {"task": name, "duration_ms": round((perf_counter() - started) * 1000, 3)}
    if isinstance(exc, asyncio.CancelledError):
        outcome = "cancelled"
        _log(scope, "background task %s was cancelled", name, fields)
    elif exc is not None:
        outcome = "error"
        tell_now_and_then(scope, "background task %s failed", name, exc, fields)
    else:
        outcome = "ok"
        _log(scope, "background task %s ended", name, fields)
    scope.meter.task_outcome(name, outcome)


def tell_now_and_then(
    scope: Scope, message: str, name: str, exc: BaseException | None, fields: dict[str, Any]
) -> None:
    """Log an end that may come again and again: of a flood, ten in ten seconds."""
    left_out = _flood.admit((name, None if exc is None else type(exc).__qualname__))
    if left_out is None:
        return
    if left_out:
        fields["left_out"] = left_out
    _log(scope, message + more_like_it(left_out), name, fields, exc)


def _log(
    scope: Scope, message: str, name: str, fields: dict[str, Any], exc: BaseException | None = None
) -> None:
    """Log how a task ended; what a filter or handler of the service's raises must not become that."""
    try:
        log(logger, logging.INFO if exc is None else logging.ERROR, message, name, fields=fields, exc=exc)
    except Exception:
        scope.meter.internal_error("background")


def tell_left_out(*, at_once: bool = False) -> None:
    """Log how many lines were left out of a flood that is over; ``at_once`` even if it isn't."""
    for kind, left_out in _flood.subsided(at_once=at_once):
        name, error = (OTHERS[0], "many kinds") if kind is OTHERS else kind
        fields = {"task": name, "left_out": left_out}
        level, ended = (logging.INFO, "ended") if error is None else (logging.ERROR, f"failed with {error}")
        log(
            logger,
            level,
            "background task %s %s%s",
            name,
            ended,
            more_like_it(left_out),
            fields=fields,
        )


def supervised(
    coro: Coroutine[Any, Any, T], *, name: str | None = None, trace: Trace = "link"
) -> Coroutine[Any, Any, T]:
    """A coroutine that does ``coro``, for somebody else to run as a task: `spawn` without the task.

    Its outcome is logged and counted as that of a spawned one, and its log lines and spans are
    those of the request that this was called in, however late it starts.  When it ends, and
    what becomes of its result or exception, is up to who runs it; a scheduler that passes the
    exception on to the loop's exception handler isn't told a second time::

        await scheduler.spawn(supervised(send_mail(order), name="mail"))    # of aiojobs

    Raises ``TypeError`` unless ``coro`` is a coroutine and ``name`` a text.
    """
    check_coroutine("supervised", coro)
    try:
        check_instance("supervised(name=...)", name, (str, type(None)))
        check_choice("supervised(trace=...)", trace, ("link", "child", "none"))
    except (TypeError, ValueError):
        coro.close()
        raise
    name = name or qualified_name(coro)
    scope = current_scope() or UNSCOPED
    return named(_supervised(coro, name, scope, detached(scope, trace)), coro)


async def _supervised(
    coro: Coroutine[Any, Any, T], name: str, scope: Scope, context: contextvars.Context
) -> T:
    _enter(context)
    scope.supervised.add(cast("asyncio.Task[Any]", asyncio.current_task()))
    started = perf_counter()
    try:
        result = await coro
    except (Exception, asyncio.CancelledError) as exc:
        tell(scope, name, started, exc)
        raise
    tell(scope, name, started, None)
    return result


def _enter(context: contextvars.Context) -> None:
    """Have the running task's context say what ``context`` does: a queue may have started it for others."""
    for own in (CURRENT, SCOPE, FIELDS):
        own.set(None)
    for variable, value in context.items():
        variable.set(value)


def detached(scope: Scope, trace: Trace) -> contextvars.Context:
    """A copy of the calling context for work whose spans are, by ``trace``, elsewhere."""
    context = contextvars.copy_context()
    if scope.tracer is not None:
        context.run(scope.tracer.detach, trace)
    return context


def named(outer: Coroutine[Any, Any, T], inner: Any) -> Coroutine[Any, Any, T]:
    """``outer``, known by the name of ``inner``, which is closed with it if it never began."""
    cast(Any, outer).__qualname__ = qualified_name(inner)
    if asyncio.iscoroutine(inner):
        weakref.finalize(outer, inner.close).atexit = False
    return outer


def check_coroutine(caller: str, coro: Any) -> None:
    """Raise ``TypeError`` unless it is one."""
    if not asyncio.iscoroutine(coro):
        raise TypeError(f"{caller}() takes a coroutine, got {coro!r}: call the coroutine function")
