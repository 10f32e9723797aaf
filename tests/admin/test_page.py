"""The task page, in a real browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer
from playwright.async_api import Browser, Page, async_playwright, expect
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, Metrics, setup_observability
from tests.real import require

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MARKUP = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    chromium = require("chromium")
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield launched
        await launched.close()


class Watched:
    """A page, what it complained of and whom it asked."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.asked: set[str] = set()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console", lambda message: self.errors.append(message.text) if message.type == "error" else None
        )
        page.on("request", lambda request: self.asked.add(request.url.split("/")[2]))


@asynccontextmanager
async def service(admin: Admin) -> AsyncIterator[BaseTestServer]:
    """A service with tasks that wait on a lock, one of them with a hostile name."""
    app = web.Application()
    setup_observability(app, admin=admin, metrics=Metrics(registry=CollectorRegistry()), logs=None)
    lock = asyncio.Lock()

    async def hold() -> None:
        async with lock:
            await asyncio.Event().wait()

    async with TestServer(app) as server:
        tasks = [asyncio.create_task(hold(), name=name) for name in ("holder", "waiter", MARKUP)]
        yield server
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_page_shows_the_tasks_and_nothing_else_happens(browser: Browser) -> None:
    async with service(Admin()) as server:
        watched = Watched(await browser.new_page())
        await watched.page.goto(str(server.make_url("/_tasks")))
        rows = watched.page.locator("tr.task")
        await expect(rows.filter(has_text="waiter")).to_contain_text("lock")
        await expect(rows.filter(has_text="holder")).to_contain_text("event")
        await expect(rows.filter(has_text=MARKUP)).to_have_count(1)
        assert await watched.page.title() == "Tasks"
        assert await watched.page.locator("#tasks img, #tasks script").count() == 0
        assert watched.errors == []
        assert watched.asked == {f"{server.host}:{server.port}"}


async def test_the_page_filters_opens_and_follows(browser: Browser) -> None:
    async with service(Admin()) as server:
        watched = Watched(await browser.new_page())
        page = watched.page
        await page.goto(str(server.make_url("/_tasks")))
        rows = page.locator("tr.task")
        await page.get_by_label("Filter").fill("holder")
        await expect(rows).to_have_count(1)
        await rows.first.press("Enter")
        await expect(page.locator("tr.details")).to_contain_text("in hold")
        await page.get_by_label("Filter").fill("late-comer")
        await expect(rows).to_have_count(0)
        late = asyncio.create_task(asyncio.sleep(60), name="late-comer")
        await expect(rows).to_have_count(1)
        late.cancel()
        await expect(rows).to_have_count(0)
        await page.get_by_label("Filter").fill("")
        await page.get_by_role("button", name="lock", exact=False).first.click()
        await expect(rows).to_have_count(2)
        assert watched.errors == []


async def test_a_browser_logs_in(browser: Browser) -> None:
    async with service(Admin(token="open sesame")) as server:
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks")))
        await page.get_by_label("Admin token").fill("open sesame")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.locator("tr.task").filter(has_text="holder")).to_be_visible()
        assert "sesame" not in page.url
        assert await page.evaluate("document.cookie") == ""
