"""Customers of the shop, in a process of their own: ``python -m demo.traffic URL REQUESTS_PER_SECOND``."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

__all__ = ["customers"]


@asynccontextmanager
async def customers(shop: str, rate: float) -> AsyncIterator[None]:
    """Have ``shop`` visited within the block, ``rate`` times a second at most."""
    command = (sys.executable, "-m", __name__, shop, str(rate))
    # A session of its own: Ctrl-C in the terminal is for the services.
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def visit(shop: str, rate: float) -> None:
    """One request after the other, until the shop closes."""
    async with aiohttp.ClientSession(shop) as session:
        while True:
            method = random.choice(("GET", "GET", "GET", "POST"))
            try:
                async with session.request(method, f"/orders/{random.randrange(100_000)}") as response:
                    await response.read()
            except aiohttp.ClientConnectionError:
                return
            await asyncio.sleep(1 / rate)


if __name__ == "__main__":
    asyncio.run(visit(sys.argv[1], float(sys.argv[2])))
