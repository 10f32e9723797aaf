"""The shop with its inventory alongside, in one application: ``adev runserver demo``."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from . import inventory, shop, stock
from .serving import serving

__all__ = ["create_app"]


async def create_app() -> web.Application:
    """The shop; the inventory comes along on a free port."""
    app = shop.create_app()
    app.cleanup_ctx.append(run_inventory)
    return app


async def run_inventory(app: web.Application) -> AsyncIterator[None]:
    async with serving(inventory.create_app(), port=0) as app[stock.INVENTORY]:
        yield
