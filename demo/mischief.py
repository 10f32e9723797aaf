"""The shop's switches that misbehave on purpose; time and number are bounded."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from aiohttp_observe import operation, spawn

from . import stock

__all__ = ["setup"]

BLOCK_SECONDS = 0.5
LONGEST_BLOCK_SECONDS = 10.0
DEADLOCK_SECONDS = 30.0
HOLD_SECONDS = 30.0
LEAK_SECONDS = 60.0
MOST_TASKS = 200

CATALOGUE = web.AppKey("CATALOGUE", asyncio.Lock)
routes = web.RouteTableDef()


def setup(app: web.Application) -> None:
    app[CATALOGUE] = asyncio.Lock()
    app.add_routes(routes)


@routes.get("/block")
async def block(request: web.Request) -> web.Response:
    """Holds the event loop: meanwhile nobody is served."""
    seconds = min(float(request.query.get("seconds", BLOCK_SECONDS)), LONGEST_BLOCK_SECONDS)
    render_invoice(seconds)
    return web.Response(text=f"The event loop was blocked for {seconds:g} s: see the log.\n")


def render_invoice(seconds: float) -> None:
    time.sleep(seconds)


@routes.get("/stuck")
async def stuck(request: web.Request) -> web.Response:
    """Waits for a lock that a background task holds."""
    refuse_too_many()
    catalogue = request.app[CATALOGUE]
    if not any(task.get_name() == "rebuild-catalogue" for task in asyncio.all_tasks()):
        spawn(rebuild(catalogue), name="rebuild-catalogue")
    await asyncio.sleep(0)  # that task takes the lock first
    async with catalogue:
        return web.Response(text="The lock is free again.\n")


async def rebuild(catalogue: asyncio.Lock) -> None:
    async with catalogue:
        await asyncio.sleep(HOLD_SECONDS)


@routes.get("/deadlock")
async def deadlock(request: web.Request) -> web.Response:
    """Starts two tasks that take the same two locks in opposite orders."""
    refuse_too_many()
    stock, prices = asyncio.Lock(), asyncio.Lock()
    counting = spawn(update(stock, prices), name="count-stock")
    spawn(update(prices, stock), name="set-prices")
    spawn(end(counting), name="end-deadlock")
    return web.Response(text="Two tasks wait for each other: see /_tasks.\n")


async def end(task: asyncio.Task[None]) -> None:
    """Cancels it in time, not by a timer of its own: nothing that times out is told as a deadlock."""
    await asyncio.sleep(DEADLOCK_SECONDS)
    task.cancel()


async def update(first: asyncio.Lock, second: asyncio.Lock) -> None:
    async with first:
        await asyncio.sleep(0.01)
        async with second:
            pass


@routes.get("/slow")
async def slow(request: web.Request) -> web.Response:
    """Waits for another service that is slow."""
    refuse_too_many()
    async with operation("wait for recount"):
        in_stock = await stock.recount(request.app, "table")
    return web.json_response({"in_stock": in_stock})


@routes.get("/leak")
async def leak(request: web.Request) -> web.Response:
    """Leaves tasks behind that nobody refers to or awaits."""
    refuse_too_many()
    for _ in range(3):
        asyncio.create_task(poll_carrier())  # noqa: RUF006 - the mistake on show
    return web.Response(text="Three tasks go on without their request: see /_tasks.\n")


async def poll_carrier() -> None:
    for _ in range(round(LEAK_SECONDS)):
        await asyncio.sleep(1)


@routes.get("/crash")
async def crash(request: web.Request) -> web.Response:
    """Starts a task that fails, and looks at nothing."""
    asyncio.create_task(send_receipt())  # noqa: RUF006 - the mistake on show
    return web.Response(text="The receipt is on its way, it seems: see the log.\n")


async def send_receipt() -> None:
    raise ConnectionError("the mail server went away")


def refuse_too_many() -> None:
    if len(asyncio.all_tasks()) > MOST_TASKS:
        raise web.HTTPServiceUnavailable(text="There is enough going on: try again in a minute.\n")
