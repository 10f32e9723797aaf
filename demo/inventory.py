"""The inventory: how many of each item are on the shelf."""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import Metrics, Tracing, operation, setup_observability, timeit

__all__ = ["create_app"]

RECOUNT_SECONDS = 15.0

STOCK = web.AppKey("STOCK", dict[str, int])
routes = web.RouteTableDef()


def create_app() -> web.Application:
    app = web.Application()
    # Numbers and a name of its own, as two services share a process; alone, setup_observability(app) is all.
    setup_observability(
        app, metrics=Metrics(registry=CollectorRegistry()), tracing=Tracing(service_name="inventory")
    )
    app[STOCK] = {"chair": 12, "lamp": 40, "table": 3}
    app.add_routes(routes)
    return app


@routes.get("/stock/{item}")
async def show_stock(request: web.Request) -> web.Response:
    item = known_item(request)
    await look_at_shelf()
    return web.json_response({"item": item, "in_stock": request.app[STOCK][item]})


@routes.post("/stock/{item}/take")
async def take_from_stock(request: web.Request) -> web.Response:
    item, stock = known_item(request), request.app[STOCK]
    await look_at_shelf()
    stock[item] = stock[item] - 1 or 50  # the last one gone, a delivery comes in
    return web.json_response({"item": item, "in_stock": stock[item]})


@routes.post("/stock/{item}/recount")
async def recount(request: web.Request) -> web.Response:
    """Takes long, for the shop's ``/slow``."""
    item = known_item(request)
    async with operation("recount", item=item):
        await asyncio.sleep(RECOUNT_SECONDS)
    return web.json_response({"item": item, "in_stock": request.app[STOCK][item]})


@timeit
async def look_at_shelf() -> None:
    """Stands for a query to a database; in /metrics as ``async_operation_duration_seconds``."""
    await asyncio.sleep(0.02)


def known_item(request: web.Request) -> str:
    item = request.match_info["item"]
    if item not in request.app[STOCK]:
        raise web.HTTPNotFound(text=f"no such item: {item}")
    return item
