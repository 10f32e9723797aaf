"""Background work: tasks that are referenced, whose outcome is told, and that end with the service."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, Literal, TypeVar

from .exchange import Scope, current_scope
from .options import check_choice

__all__ = ["drain", "spawn"]

T = TypeVar("T")

logger = logging.getLogger("aiohttp_observe.background")

_unscoped = Scope()
"""Holds the tasks spawned where there is no application."""


def spawn(
    coro: Coroutine[Any, Any, T],
    *,
    name: str | None = None,
    trace: Literal["link", "child", "none"] = "link",
) -> asyncio.Task[T]:
    """Run ``coro`` as a supervised background task, and return the task.

    It is referenced until done; its outcome (``ok``, ``error``, ``cancelled``) is logged and
    counted in ``asyncio_task_outcomes_total{name, outcome}``; it is cancelled and awaited when
    the application is cleaned up.  ``name`` is the task's, default the coroutine's qualified
    name; it labels the metric, so it should be one of few.

    Its log lines keep the request id and the bound fields.  Its spans, by ``trace``: ``link``
    start a new trace linked to the request's, ``child`` stay in the request's trace, ``none``
    start a new trace.

    Raises ``TypeError`` unless ``coro`` is a coroutine, ``RuntimeError`` without a running loop.
    """
    if not asyncio.iscoroutine(coro):
        raise TypeError(f"spawn() takes a coroutine, got {coro!r}: call the coroutine function")
    try:
        check_choice("spawn(trace=...)", trace, ("link", "child", "none"))
        loop = asyncio.get_running_loop()
    except (ValueError, RuntimeError):
        coro.close()
        raise
    scope = current_scope() or _unscoped
    context = contextvars.copy_context()
    if scope.tracer is not None:
        context.run(scope.tracer.detach, trace)
    task: asyncio.Task[T] = context.run(loop.create_task, coro)
    task.set_name(name or getattr(coro, "__qualname__", type(coro).__qualname__))
    scope.background.add(task)
    task.add_done_callback(_Ending(scope), context=context)
    return task


class _Ending:
    """Tells how a spawned task ended, in the task's own context."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._started = perf_counter()

    def __call__(self, task: asyncio.Task[Any]) -> None:
        self._scope.background.discard(task)
        name, seconds = task.get_name(), perf_counter() - self._started
        fields = {"task": name, "duration_ms": round(seconds * 1000, 3)}
        if task.cancelled():
            outcome = "cancelled"
            logger.info("background task %s was cancelled", name, extra=fields)
        elif (exc := task.exception()) is not None:
            outcome = "error"
            logger.error("background task %s failed", name, exc_info=exc, extra=fields)
        else:
            outcome = "ok"
            logger.info("background task %s ended", name, extra=fields)
        self._scope.meter.task_outcome(name, outcome)


async def drain(scope: Scope, timeout: float) -> None:
    """Cancel what was spawned for ``scope`` and wait for it, ``timeout`` seconds at most.

    Tasks that these spawn as they end are cancelled too.  What doesn't stop in time is named
    in a log line and left alone.
    """
    deadline = perf_counter() + timeout
    own = asyncio.current_task()  # a background task may be what shuts the service down
    while running := {task for task in scope.background if task is not own and not task.done()}:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=max(deadline - perf_counter(), 0))
        if running:
            _tell_stubborn(running, timeout)
            scope.background -= running  # told and given up
            return


def _tell_stubborn(running: set[asyncio.Task[Any]], timeout: float) -> None:
    logger.error(
        "%d background tasks did not stop within %g s of being cancelled: %s",
        len(running),
        timeout,
        ", ".join(sorted(task.get_name() for task in running)[:20]),
    )
