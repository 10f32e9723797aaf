"""What the shop asks the inventory: every call is a client span, timed, with the ids sent along."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from aiohttp_observe import CLIENT_SESSION

__all__ = ["INVENTORY", "look_up", "recount", "take"]

INVENTORY = web.AppKey("INVENTORY", str)
"""The URL of the inventory."""


async def look_up(app: web.Application, item: str) -> int:
    """How many of ``item`` there are."""
    return await _ask(app, "GET", f"/stock/{item}")


async def take(app: web.Application, item: str) -> int:
    """Take one; returns how many are left."""
    return await _ask(app, "POST", f"/stock/{item}/take")


async def recount(app: web.Application, item: str) -> int:
    """Have them counted again, which takes long."""
    return await _ask(app, "POST", f"/stock/{item}/recount")


async def _ask(app: web.Application, method: str, path: str) -> int:
    async with app[CLIENT_SESSION].request(method, app[INVENTORY] + path, raise_for_status=True) as response:
        answer: dict[str, Any] = await response.json()
    return int(answer["in_stock"])
