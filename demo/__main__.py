"""``python -m demo``: two services, and customers, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress

from . import inventory, shop
from .serving import serving
from .traffic import customers

WELCOME = """
  {shop}/        the shop: links to everything, and switches that misbehave
  {shop}/_tasks  what every task is doing
  {console}/_tasks  the same while the shop's event loop is blocked
  {inventory}/metrics, of the inventory: each service has its own

Ctrl-C ends it.
"""
MOST_PER_SECOND = 20.0

logger = logging.getLogger("demo")


def main() -> None:
    options = read_options()
    if sys.stdout.isatty():
        os.environ.setdefault("AIOHTTP_OBSERVE_LOG_FORMAT", "text")
    try:
        asyncio.run(run(options))
    except OSError as exc:
        sys.exit(f"{exc}: see python -m demo --help")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Two services to look at.")
    parser.add_argument("--port", type=int, default=8080, help="the shop's, default 8080; 0 takes a free one")
    parser.add_argument("--inventory-port", type=int, default=8081, help="default 8081")
    parser.add_argument("--console-port", type=int, default=8082, help="of the console apart, default 8082")
    parser.add_argument(
        "--rate", type=rate, default=1.0, help="customers' requests a second, default 1, at most 20"
    )
    return parser.parse_args()


def rate(text: str) -> float:
    value = float(text)
    if not 0 <= value <= MOST_PER_SECOND:
        raise argparse.ArgumentTypeError(f"takes 0 to {MOST_PER_SECOND:g} requests a second, got {text}")
    return value


async def run(options: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        inventory_url = await stack.enter_async_context(
            serving(inventory.create_app(), options.inventory_port)
        )
        app = shop.create_app(inventory_url, options.console_port)
        shop_url = await stack.enter_async_context(serving(app, options.port))
        welcome(shop_url, inventory_url, options.console_port)
        if options.rate:
            await stack.enter_async_context(customers(shop_url, options.rate))
        await asked_to_stop()


def welcome(shop_url: str, inventory_url: str, console_port: int) -> None:
    if sys.stdout.isatty():
        console = f"http://127.0.0.1:{console_port}"
        print(WELCOME.format(shop=shop_url, inventory=inventory_url, console=console), flush=True)
    else:
        logger.info("open %s/ in a browser", shop_url, extra={"shop": shop_url, "inventory": inventory_url})


async def asked_to_stop() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # on Windows, where an interrupt ends all the same
            loop.add_signal_handler(number, stop.set)
    await stop.wait()


if __name__ == "__main__":
    main()
