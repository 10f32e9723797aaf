"""Takes ``tasks.png`` of a demo that runs: ``python docs/images/take.py http://127.0.0.1:8080``."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import aiohttp
from playwright.async_api import async_playwright

SIZE = {"width": 1200, "height": 800}
LIVE_SECONDS = 9
"""Until the sparklines have something to show."""


async def main(demo: str) -> None:
    async with aiohttp.ClientSession(demo) as session:
        requests = []
        for path in ("/slow", "/stuck", "/leak", "/deadlock", *["/stuck"] * 11):
            requests.append(asyncio.ensure_future(session.get(path)))
            await asyncio.sleep(0.3)  # the ages are worth looking at, and so is the order
        await photograph(demo)
        for request in requests:
            request.cancel()


async def photograph(demo: str) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = await browser.new_page(viewport=SIZE, device_scale_factor=1.5)
        await page.goto(f"{demo}/_tasks")
        await asyncio.sleep(LIVE_SECONDS)
        await page.screenshot(path=Path(__file__).with_name("tasks.png"))
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
