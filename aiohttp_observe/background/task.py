"""Spawned tasks: referenced until done, their outcome told, ended with the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from time import perf_counter
from typing import Any, Literal, TypeVar, overload

from ..exchange import Scope, current_scope
from ..options import check_choice, check_instance, check_positive
from ..texts import qualified_name
from .outcome import UNSCOPED, Trace, check_coroutine, detached, named, tell
from .worker import Restart, Supervision

__all__ = ["spawn"]

T = TypeVar("T")

_BACKOFF = (1.0, 60.0)
"""Seconds before a worker's first restart, and the most."""


@overload
def spawn(
    coro: Coroutine[Any, Any, T],
    *,
    name: str | None = None,
    trace: Trace = "link",
    restart: Literal["never"] | None = None,
    backoff: tuple[float, float] = _BACKOFF,
) -> asyncio.Task[T]: ...


@overload
def spawn(
    coro: Callable[[], Coroutine[Any, Any, T]],
    *,
    name: str | None = None,
    trace: Trace = "link",
    restart: Restart,
    backoff: tuple[float, float] = _BACKOFF,
) -> asyncio.Task[T]: ...


def spawn(
    coro: Any,
    *,
    name: str | None = None,
    trace: Trace = "link",
    restart: Restart | None = None,
    backoff: tuple[float, float] = _BACKOFF,
) -> asyncio.Task[Any]:
    """Run a coroutine as a supervised background task, and return the task.

    It is referenced until done; its outcome (``ok``, ``error``, ``cancelled``) is logged and
    counted in ``asyncio_task_outcomes_total{name, outcome}``; it is cancelled and awaited when
    the application is cleaned up.  ``name`` is the task's, default the coroutine's qualified
    name; it labels the metric, so it should be one of few.

    Its log lines keep the request id and the bound fields.  Its spans, by ``trace``: ``link``
    start a new trace linked to the request's, ``child`` stay in the request's trace, ``none``
    start a new trace.

    With ``restart`` it is a worker, whose health is in ``app[OBSERVABILITY].workers()``, and
    ``coro`` is a coroutine function without arguments, such as a ``functools.partial``.  It is
    called again when it has failed (``on-failure``), when it has ended in whatever way
    (``always``), or not at all (``never``, which takes a coroutine too); not once it was
    cancelled.  Before that it waits, by ``backoff``, 1 second, 2, 4 and so on, 60 at most, each
    shortened by up to a half at random.  A run of that most or longer begins anew with the
    first.  Each run's outcome is counted, and restarts in ``asyncio_task_restarts_total{name}``.

    Raises ``TypeError`` unless ``coro`` and ``name`` are what they should be, ``ValueError`` for
    other values of ``trace``, ``restart`` or ``backoff``, ``RuntimeError`` in a thread without a
    running loop.
    """
    try:
        _check(coro, name, trace, restart, backoff)
        loop = _running_loop()
    except (TypeError, ValueError, RuntimeError):
        if asyncio.iscoroutine(coro):
            coro.close()  # else Python would warn that it was never awaited, and hide the mistake
        raise
    scope = current_scope() or UNSCOPED
    name = name or qualified_name(coro)
    supervision = None if restart is None else Supervision(coro, name, restart, backoff, scope)
    work = coro if supervision is None else named(supervision.run(), coro)
    context, ending = detached(scope, trace), _Ending(scope, supervision)  # an eager task begins at once
    try:
        task: asyncio.Task[Any] = context.run(partial(loop.create_task, work, name=name))
    except Exception as exc:  # of a task factory
        work.close()
        if supervision is not None:
            supervision.ended(exc)
        raise
    scope.background.add(task)
    task.add_done_callback(ending, context=context)
    return task


class _Ending:
    """Tells how a spawned task ended, in the task's own context."""

    def __init__(self, scope: Scope, supervision: Supervision | None) -> None:
        self._scope = scope
        self._supervision = supervision
        self._started = perf_counter()

    def __call__(self, task: asyncio.Task[Any]) -> None:
        exc = asyncio.CancelledError() if task.cancelled() else task.exception()
        given_up = task not in self._scope.background
        self._scope.background.discard(task)
        if self._supervision is not None:
            self._supervision.ended(exc)
        if not given_up:
            tell(self._scope, task.get_name(), self._started, exc)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "spawn() is called on the event loop, and there is no running event loop in this thread: "
            "from another one use loop.call_soon_threadsafe()"
        ) from None


def _check(work: Any, name: Any, trace: Any, restart: Any, backoff: Any) -> None:
    check_instance("spawn(name=...)", name, (str, type(None)))
    check_choice("spawn(trace=...)", trace, ("link", "child", "none"))
    if restart in (None, "never") and backoff != _BACKOFF:
        raise ValueError("spawn(backoff=...) is for workers: say restart='on-failure' or 'always', too")
    if restart is None:
        check_coroutine("spawn", work)
        return
    check_choice("spawn(restart=...)", restart, ("never", "on-failure", "always"))
    _check_backoff(backoff)
    if asyncio.iscoroutine(work):
        if restart != "never":
            raise TypeError(
                f"spawn(restart={restart!r}) takes a coroutine function, which it can call again, got "
                f"{work!r}: leave out the parentheses; functools.partial(function, ...) gives it arguments"
            )
    elif not callable(work):
        raise TypeError(f"spawn(restart={restart!r}) takes a coroutine function, got {work!r}")


def _check_backoff(backoff: Any) -> None:
    if not isinstance(backoff, tuple) or len(backoff) != 2:
        raise TypeError(
            f"spawn(backoff=...) takes two numbers of seconds, the first and the most, got {backoff!r}"
        )
    for seconds in backoff:
        check_positive("spawn(backoff=...)", seconds, "seconds")
    if backoff[0] > backoff[1]:
        raise ValueError(
            f"spawn(backoff=...) takes the first number of seconds, then the most, got {backoff!r}"
        )
