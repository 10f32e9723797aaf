"""The end of the background work, with the service."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import Any

from ..exchange import Scope
from ..tasks import cancel, whereabouts
from ..texts import counted

__all__ = ["drain"]

logger = logging.getLogger("aiohttp_observe.background")

_MOST_NAMED = 20


async def drain(scope: Scope, timeout: float) -> None:
    """Cancel what was spawned for ``scope`` and wait for it, ``timeout`` seconds at most.

    Tasks that these spawn as they end are cancelled too.  What doesn't stop in time is named
    in a log line, counted as ``abandoned`` and left alone.
    """
    deadline = perf_counter() + timeout
    own = asyncio.current_task()  # a background task may be what shuts the service down
    while running := [task for task in scope.background if task is not own and not task.done()]:
        for worker in scope.workers:
            worker.closing = True
        for task in running:
            cancel(task)
        _, stubborn = await asyncio.wait(running, timeout=max(deadline - perf_counter(), 0))
        if stubborn:
            _give_up(scope, sorted(stubborn, key=lambda task: task.get_name()), timeout)
            return


def _give_up(scope: Scope, stubborn: list[asyncio.Task[Any]], timeout: float) -> None:
    for task in stubborn:
        scope.background.discard(task)
        scope.meter.task_outcome(task.get_name(), "abandoned")
    logger.warning(
        "%s did not stop within %g s of being cancelled: %s%s",
        counted(len(stubborn), "background task"),
        timeout,
        "; ".join(f"{task.get_name()} ({whereabouts(task)})" for task in stubborn[:_MOST_NAMED]),
        f"; and {len(stubborn) - _MOST_NAMED} more" if len(stubborn) > _MOST_NAMED else "",
    )
