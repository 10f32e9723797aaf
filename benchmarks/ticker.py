"""How long a loop was held: the longest that a task took to come round again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

__all__ = ["Ticker", "ticking"]


class Ticker:
    """``worst``: seconds between two of its turns, ``every`` included."""

    def __init__(self, every: float) -> None:
        self._every = every
        self.worst = 0.0

    async def run(self) -> None:
        last = perf_counter()
        while True:
            await asyncio.sleep(self._every)
            now = perf_counter()
            self.worst, last = max(self.worst, now - last), now


@asynccontextmanager
async def ticking(every: float = 0.0) -> AsyncIterator[Ticker]:
    """A ticker that has begun; it has another turn at the end."""
    ticker = Ticker(every)
    task = asyncio.create_task(ticker.run())
    await asyncio.sleep(0)
    yield ticker
    await asyncio.sleep(2 * every)
    await asyncio.sleep(0)
    task.cancel()
