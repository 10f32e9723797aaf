"""A worker: background work that goes on, is started again when it ends, and has a health."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

from ..exchange import Scope
from .outcome import tell_now_and_then

__all__ = ["Restart", "Supervision", "Worker", "workers_of"]

Restart = Literal["never", "on-failure", "always"]
State = Literal["running", "backing_off", "stopped", "failed"]

_MOST_ENDED = 100
"""Ended workers that are remembered."""

_GROUPS_LEAVE_CANCELLING = (3, 11) <= sys.version_info < (3, 13)
"""Whether a task group that lost a task may leave its own task counted as being cancelled (gh-116720)."""


@dataclass(frozen=True)
class Worker:
    """The health of a worker that ``spawn(..., restart=...)`` has started.

    ``name``        its task's
    ``state``       ``running``; ``backing_off``: it ended, and waits to be started again;
                    ``stopped``: it has returned or was cancelled; ``failed``: it raised, and
                    isn't started again
    ``restarts``    how often it was started again
    ``last_error``  the type of the last exception it ended with, ``None`` if there was none
    ``since``       when it entered this state, in seconds since the epoch
    """

    name: str
    state: State
    restarts: int
    last_error: str | None
    since: float


def workers_of(scope: Scope) -> list[Worker]:
    """The workers of an application in the order in which they were spawned.  In any thread."""
    return [supervision.health for supervision in list(scope.workers)]


class Supervision:
    """Runs ``work``, a coroutine function, and by ``restart`` runs it again; keeps its `Worker` up to date.

    What is never started again may be a coroutine.

    ``backoff`` are the seconds before the first restart, which double with each further one,
    and the most that they become.  ``closing`` is set when it is not to go on, whatever happens.
    """

    def __init__(
        self,
        work: Any,
        name: str,
        restart: Restart,
        backoff: tuple[float, float],
        scope: Scope,
    ) -> None:
        self._work = work
        self._restart = restart
        self._first, self._most = backoff
        self._scope = scope
        self._in_a_row = 0
        self.closing = False
        self.has_ended = False
        self.health = Worker(name, "running", 0, None, time.time())
        _remember(self, scope)

    async def run(self) -> Any:
        while True:
            started = perf_counter()
            try:
                result = await self._begin()
            except (Exception, asyncio.CancelledError) as exc:
                if not self._goes_on(exc):
                    raise
                delay = self._back_off(started, exc)
            else:
                if not self._goes_on(None):
                    return result
                delay = self._back_off(started, None)
            await asyncio.sleep(delay)
            self._enter("running", None, restarts=1)
            self._scope.meter.task_restart(self.health.name)

    def _begin(self) -> Coroutine[Any, Any, Any]:
        coro: Any = self._work if asyncio.iscoroutine(self._work) else self._work()
        if not asyncio.iscoroutine(coro):
            self.closing = True  # the next time it would be the same
            raise TypeError(f"spawn(restart=...) takes a coroutine function, got one that returned {coro!r}")
        return coro

    def _goes_on(self, exc: BaseException | None) -> bool:
        """Whether the worker is to be started again after it ended with ``exc``."""
        if self.closing or _is_asked_to_stop(exc):
            return False
        return self._restart == "always" or (self._restart == "on-failure" and exc is not None)

    def _delay(self, ran: float) -> float:
        if ran >= self._most:
            self._in_a_row = 0
        delay = min(self._most, self._first * 2.0 ** min(self._in_a_row, 60))
        self._in_a_row += 1
        return delay * random.uniform(0.5, 1.0)  # so that many don't come back at once

    def _back_off(self, started: float, exc: BaseException | None) -> float:
        """Tell how a run ended; the seconds until the next."""
        name, health = self.health.name, self.health
        delay = self._delay(perf_counter() - started)
        fields = {
            "task": name,
            "duration_ms": round((perf_counter() - started) * 1000, 3),
            "restarts": health.restarts,
        }
        self._scope.meter.task_outcome(name, "ok" if exc is None else "error")
        self._enter("backing_off", exc)
        _is_asked_no_more()
        ended = "ended" if exc is None else "failed"
        tell_now_and_then(
            self._scope, f"background task %s {ended}, and starts again in {delay:.3g} s", name, exc, fields
        )
        return delay

    def ended(self, exc: BaseException | None) -> None:
        """The worker's task is done."""
        self.has_ended = True
        if exc is None or isinstance(exc, asyncio.CancelledError):
            self._enter("stopped", None)
        else:
            self._enter("failed", exc)

    def _enter(self, state: State, exc: BaseException | None, restarts: int = 0) -> None:
        health = self.health
        last_error = health.last_error if exc is None else type(exc).__qualname__
        self.health = Worker(health.name, state, health.restarts + restarts, last_error, time.time())


def _is_asked_to_stop(exc: BaseException | None) -> bool:
    """Whether its task was cancelled, even if ``work`` has ended otherwise since.

    Up to Python 3.10 that can't be told from a cancellation which ``work`` itself has made,
    and up to 3.12 not from a task group in it that failed: a group of exceptions is a failure.
    """
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    if cancelling is None:
        return isinstance(exc, asyncio.CancelledError)
    if _GROUPS_LEAVE_CANCELLING and hasattr(exc, "exceptions"):
        return False
    return bool(cancelling() > 0)


def _is_asked_no_more() -> None:
    """Let the task go of being asked to stop: what a task group has left must not stop the next run."""
    task: Any = asyncio.current_task()
    if _GROUPS_LEAVE_CANCELLING:
        for _ in range(task.cancelling()):
            task.uncancel()


def _remember(supervision: Supervision, scope: Scope) -> None:
    """In place of one of its name that has ended, and of the oldest that has ended if there are many."""
    name = supervision.health.name
    known = [each for each in scope.workers if not (each.has_ended and each.health.name == name)]
    ended = [each for each in known if each.has_ended]
    if len(ended) >= _MOST_ENDED:
        known.remove(ended[0])
    scope.workers = [*known, supervision]
