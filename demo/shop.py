"""The shop: shows orders, takes new ones, and has them packed in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from string import Template

from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, Metrics, Tracing, bind, bound, operation, setup_observability, spawn

from . import mischief, stock

__all__ = ["create_app"]

ITEMS = ("chair", "lamp", "table")
PAGE = Path(__file__).with_name("index.html")
CONSOLE = web.AppKey("CONSOLE", str)
QUEUE = web.AppKey("QUEUE", asyncio.Queue[int])

logger = logging.getLogger("shop")
routes = web.RouteTableDef()


def create_app(inventory: str | None = None, console_port: int | None = None) -> web.Application:
    """The application; without ``inventory`` whoever runs it sets ``app[stock.INVENTORY]``."""
    app = web.Application()
    # Numbers and a name of its own, as two services share a process; alone, setup_observability(app) is all.
    setup_observability(
        app,
        metrics=Metrics(registry=CollectorRegistry()),
        tracing=Tracing(service_name="shop"),
        admin=Admin(port=console_port),
    )
    app[CONSOLE] = f"http://127.0.0.1:{console_port}" if console_port else ""  # its own, else
    if inventory is not None:
        app[stock.INVENTORY] = inventory
    app.cleanup_ctx.append(run_packer)
    app.add_routes(routes)
    mischief.setup(app)
    return app


@routes.get("/")
async def index(request: web.Request) -> web.Response:
    page = Template(PAGE.read_text(encoding="utf-8"))
    return web.Response(
        text=page.substitute(inventory=request.app[stock.INVENTORY], console=request.app[CONSOLE]),
        content_type="text/html",
    )


@routes.get(r"/orders/{id:\d{1,6}}")
async def show_order(request: web.Request) -> web.Response:
    order = int(request.match_info["id"])
    bind(order=order)  # in every log line of this request from here on, the access line included
    item = item_of(order)
    in_stock = await stock.look_up(request.app, item)
    logger.info("order looked up")
    return web.json_response({"order": order, "item": item, "in_stock": in_stock})


@routes.post(r"/orders/{id:\d{1,6}}")
async def place_order(request: web.Request) -> web.Response:
    order = int(request.match_info["id"])
    bind(order=order)
    await request.app[QUEUE].put(order)
    return web.json_response({"order": order}, status=202)


async def run_packer(app: web.Application) -> AsyncIterator[None]:
    """Start the background worker; the clean-up cancels and awaits what was spawned."""
    app[QUEUE] = asyncio.Queue(maxsize=100)
    spawn(pack_orders(app), name="packer")
    yield


async def pack_orders(app: web.Application) -> None:
    while True:
        order = await app[QUEUE].get()
        with bound(order=order), operation("pack order", order=order):
            left = await stock.take(app, item_of(order))
            logger.info("order packed", extra={"left": left})


def item_of(order: int) -> str:
    return ITEMS[order % len(ITEMS)]
