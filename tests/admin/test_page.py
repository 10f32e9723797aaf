"""The task page, in a real browser."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer
from playwright.async_api import Browser, Page, Route, ViewportSize, async_playwright, expect
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, LoopWatch, Metrics, operation, setup_observability
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
DESKTOP, PHONE = ViewportSize(width=1280, height=800), ViewportSize(width=390, height=844)
LONG_ROUTE = "/warehouses/{warehouse_identifier}/shelves/{shelf_identifier}/items/{item_identifier}"
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
LOOK = """[
    ...["verdict", "tiles"].map((id) => Number(getComputedStyle(document.getElementById(id)).opacity)),
    getComputedStyle(document.querySelector("#verdict > *"), "::before").content,
    document.title,
]"""
"""How sure the page looks of what it shows."""
MARKUP = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


class Job:
    async def run(self) -> None:
        await asyncio.Event().wait()


class Mail(Job):
    async def run(self) -> None:
        await super().run()


class Parcels(Job):
    async def run(self) -> None:
        await super().run()


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
    """A service with tasks that wait on a lock, one of them with a hostile name.

    A busy machine holds its loop up now and then: a block is what lasts a second.
    """
    app = web.Application()
    setup_observability(
        app,
        admin=admin,
        loop_watch=LoopWatch(threshold=1.0),
        logs=None,
        metrics=Metrics(registry=CollectorRegistry()),
    )
    lock = asyncio.Lock()

    async def hold() -> None:
        async with lock:
            await asyncio.Event().wait()

    async def packed(request: web.Request) -> web.Response:
        async with operation("pack order"):
            return web.Response()

    async def waiting(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    async def blocking(request: web.Request) -> web.Response:
        time.sleep(1.5)  # noqa: ASYNC251 - the mistake on show
        return web.Response()

    async def asking(request: web.Request) -> web.Response:
        async with aiohttp.ClientSession() as session, session.get(request.url.with_path("/waiting")):
            return web.Response()

    app.router.add_get("/packed", packed)
    app.router.add_get("/waiting", waiting)
    app.router.add_get("/blocking", blocking)
    app.router.add_get(LONG_ROUTE, asking)
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
        assert await watched.page.locator("#view img, #view script").count() == 0
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


async def test_the_verdict_names_a_deadlock_and_leads_to_it(browser: Browser) -> None:
    async with service(Admin()) as server:
        watched = Watched(await browser.new_page())
        page = watched.page
        await page.goto(str(server.make_url("/_tasks")))
        await expect(page.locator("#verdict")).to_have_text("Nothing stands out.")
        first, second = asyncio.Lock(), asyncio.Lock()

        async def take(one: asyncio.Lock, other: asyncio.Lock) -> None:
            async with one:
                await asyncio.sleep(0)
                async with other:
                    pass

        tasks = [
            asyncio.create_task(take(first, second), name="one"),
            asyncio.create_task(take(second, first), name=MARKUP),
        ]
        finding = page.get_by_role("button", name="deadlock")
        await expect(finding).to_contain_text(MARKUP)
        await finding.click()
        await expect(page.get_by_role("tab", name="Trees")).to_have_attribute("aria-selected", "true")
        await expect(page.locator("#view .deadlock")).to_contain_text("one")
        for task in tasks:
            task.cancel()
        await expect(page.locator("#verdict")).to_have_text("Nothing stands out.")
        assert watched.errors == []


@asynccontextmanager
async def requests_to(server: BaseTestServer, path: str, number: int) -> AsyncIterator[None]:
    """So many requests that stay in flight within the block."""

    async def ask(session: aiohttp.ClientSession) -> None:
        async with session.get(server.make_url(path)):
            pass

    async with aiohttp.ClientSession() as session:
        asked = [asyncio.create_task(ask(session)) for _ in range(number)]
        try:
            yield
        finally:
            for request in asked:
                request.cancel()
            await asyncio.gather(*asked, return_exceptions=True)


async def is_in_sight(page: Page, selector: str) -> None:
    """It begins below the tabs, which stay on top, and above the end of the window."""
    await page.wait_for_function(
        """selector => {
            const { top } = document.querySelector(selector)?.getBoundingClientRect() ?? {};
            return top >= document.getElementById("tabs").getBoundingClientRect().bottom - 1
                && top < window.innerHeight;
        }""",
        arg=selector,
    )


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_a_sentence_of_the_verdict_brings_its_task_into_view(
    browser: Browser, size: ViewportSize
) -> None:
    async with service(Admin()) as server:
        older = [asyncio.create_task(asyncio.sleep(600)) for _ in range(30)]
        async with requests_to(server, "/waiting", 12):
            watched = Watched(await browser.new_page(viewport=size, has_touch=size is PHONE))
            page = watched.page
            await page.goto(str(server.make_url("/_tasks")))
            finding = page.get_by_role("button", name="requests wait for Event.wait")
            await (finding.tap() if size is PHONE else finding.click())
            opened = page.locator("tr.task[aria-expanded=true]")
            await expect(opened).to_contain_text("waiting")
            await expect(opened).to_be_focused()
            await is_in_sight(page, "tr.task[aria-expanded=true]")
            await is_in_sight(page, "tr.details")
            before = str(await page.locator("#clock").text_content())
            await expect(page.locator("#clock")).not_to_have_text(before)
            await expect(opened).to_be_focused()
            await page.keyboard.press("Escape")
            await expect(page.locator("tr.details")).to_have_count(0)
            await page.evaluate("window.scrollTo({ top: 0, behavior: 'instant' })")
            await finding.press("Enter")
            await is_in_sight(page, "tr.details")
            await page.evaluate("window.scrollTo({ top: 0, behavior: 'instant' })")
            await finding.press("Enter")  # the address stays the same
            await is_in_sight(page, "tr.details")
            assert watched.errors == []
        for task in older:
            task.cancel()


async def test_a_sentence_leads_past_the_filter_to_a_task_that_was_not_sent(browser: Browser) -> None:
    async with service(Admin()) as server:
        older = [asyncio.create_task(asyncio.sleep(600)) for _ in range(300)]
        async with requests_to(server, "/waiting", 12):
            page = await browser.new_page(viewport=PHONE)
            await page.goto(str(server.make_url("/_tasks")))
            await expect(page.locator("#count")).to_contain_text("not sent")
            await page.get_by_label("Filter").fill("holder")
            await expect(page.locator("tr.task")).to_have_count(1)
            await page.get_by_role("button", name="requests wait for Event.wait").click()
            await is_in_sight(page, "tr.details")
            await expect(page.locator("tr.task[aria-expanded=true]")).to_be_focused()
            await expect(page.get_by_label("Filter")).to_have_value("")
        for task in older:
            task.cancel()


async def test_a_task_that_has_ended_is_said_to_have(browser: Browser) -> None:
    async with service(Admin()) as server:
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks#tasks/999999")))
        await expect(page.locator("#view")).to_contain_text("Task 999999 isn't there any more")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_a_sentence_of_the_verdict_brings_its_lock_into_view(
    browser: Browser, size: ViewportSize
) -> None:
    async with service(Admin()) as server:
        locks = [asyncio.Lock() for _ in range(8)]
        contended = asyncio.Lock()

        async def take(lock: asyncio.Lock) -> None:
            async with lock:
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(take(lock)) for lock in [*locks, *locks, *[contended] * 13]]
        page = await browser.new_page(viewport=size)
        await page.goto(str(server.make_url("/_tasks")))
        await page.get_by_role("button", name="12 tasks wait for Lock").press("Enter")
        chosen = page.locator("tr.chosen")
        await is_in_sight(page, "tr.chosen")
        await expect(chosen).to_be_focused()
        for task in tasks:
            task.cancel()


async def test_who_wants_no_motion_gets_none(browser: Browser) -> None:
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    async with service(Admin()) as server:
        calm = await browser.new_page(reduced_motion="reduce")
        await calm.goto(str(server.make_url("/_tasks")))
        assert await calm.evaluate(behaviour) == "auto"
        other = await browser.new_page(reduced_motion="no-preference")
        await other.goto(str(server.make_url("/_tasks")))
        assert await other.evaluate(behaviour) == "smooth"


async def test_the_page_says_that_it_loads_until_there_is_a_picture(browser: Browser) -> None:
    async with service(Admin()) as server:
        page = await browser.new_page()
        held, asked = asyncio.Event(), asyncio.Event()

        async def hold(route: Route) -> None:
            asked.set()
            await held.wait()
            await route.continue_()

        await page.route("**/_tasks/stream?*", hold)
        await page.goto(str(server.make_url("/_tasks")))
        await asked.wait()
        await expect(page.locator("#view")).to_have_text("Loading…")
        held.set()
        await expect(page.locator("tr.task").filter(has_text="waiter")).to_be_visible()
        await expect(page.get_by_text("Loading…")).to_have_count(0)


async def test_every_view_shows_what_there_is(browser: Browser) -> None:
    async with service(Admin()) as server:
        watched = Watched(await browser.new_page())
        page, view = watched.page, watched.page.locator("#view")
        await page.goto(str(server.make_url("/_tasks#requests")))
        await expect(view).to_contain_text("/_tasks/stream")
        await page.get_by_role("link", name="task").first.click()
        await expect(page.locator("tr.details")).to_contain_text("Await chain")
        await page.keyboard.press("3")
        await expect(view).to_contain_text("holder")
        await page.get_by_role("tab", name="Incidents").click()
        await expect(view).to_contain_text("Not once since the start.")
        asyncio.get_running_loop().call_soon(time.sleep, 1.5)
        await expect(view).to_contain_text("blocking call")
        await page.get_by_role("tab", name="Trees").click()
        await expect(view).to_contain_text("Who started whom")
        assert watched.errors == []
        assert watched.asked == {f"{server.host}:{server.port}"}


async def test_a_request_shows_its_steps(browser: Browser) -> None:
    async with service(Admin()) as server:
        async with aiohttp.ClientSession() as session:
            headers = {"X-Request-ID": "the-one"}
            await session.get(server.make_url("/packed"), headers=headers)
        watched = Watched(await browser.new_page())
        await watched.page.goto(str(server.make_url("/_tasks#requests/the-one")))
        view = watched.page.locator("#view")
        await expect(view).to_contain_text("GET /packed")
        await expect(view).to_contain_text("pack order")
        assert watched.errors == []


async def test_the_keyboard_does_it_all(browser: Browser) -> None:
    async with service(Admin()) as server:
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks")))
        rows = page.locator("tr.task")
        await expect(rows.filter(has_text="waiter")).to_be_visible()
        await page.keyboard.press("/")
        await page.keyboard.type("waiter")
        await expect(rows).to_have_count(1)
        await expect(page.get_by_label("Filter")).to_be_focused()
        await page.keyboard.press("Escape")
        await page.keyboard.press("p")
        await expect(page.get_by_role("button", name="Go on")).to_be_visible()
        await expect(page.locator("#live")).to_have_text("paused")


async def test_a_service_that_ends_is_said_to_be_gone(browser: Browser) -> None:
    page = await browser.new_page()
    async with service(Admin()) as server:
        await page.goto(str(server.make_url("/_tasks")))
        await expect(page.locator("#live")).to_contain_text("live")
    await expect(page.locator("#live")).to_contain_text("no answer, again in")
    assert await page.evaluate(LOOK) == [0.5, 0.5, "none", "(?) Tasks"]


async def test_a_service_that_is_silent_does_not_look_well(browser: Browser) -> None:
    async with service(Admin()) as server:
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks")))
        await expect(page.locator("#verdict")).to_have_text("Nothing stands out.")
        assert await page.evaluate(LOOK) == [1, 1, '"✓ "', "Tasks"]
        await page.evaluate(
            f"""() => {{
                window.seen = [];
                const note = () => window.seen.push([document.getElementById("live").textContent, {LOOK}]);
                new MutationObserver(note).observe(document.getElementById("live"), {{ childList: true }});
            }}"""
        )
        asyncio.get_running_loop().call_soon(time.sleep, 9)
        await page.wait_for_function("() => window.seen.at(-1)?.[0] === 'live'", timeout=20_000)
        *silent, again = await page.evaluate("window.seen")
        told = [
            re.fullmatch(r"no picture for (\d+) s: the loop may be blocked; .* would answer", text)
            for text, _ in silent
        ]
        assert told, "it was silent for long"
        assert all(told), silent
        assert all(look == [0.5, 0.5, "none", "(?) Tasks"] for _, look in silent)
        assert again[1][:2] == [1, 1], "when it is heard again"


async def test_a_paused_page_is_neither_silent_nor_well(browser: Browser) -> None:
    async with service(Admin()) as server:
        page = await browser.new_page()
        await page.clock.install()
        await page.goto(str(server.make_url("/_tasks")))
        await expect(page.locator("#live")).to_have_text("live")
        await page.get_by_role("button", name="Pause").click()
        await page.clock.run_for(60_000)
        await expect(page.locator("#live")).to_have_text("paused")
        assert await page.evaluate(LOOK) == [1, 1, "none", "Tasks"]


@pytest.mark.parametrize("name", ["constructor", "toString", "__proto__"])
async def test_a_view_that_there_is_not_shows_the_tasks(browser: Browser, name: str) -> None:
    async with service(Admin()) as server:
        watched = Watched(await browser.new_page())
        await watched.page.goto(str(server.make_url(f"/_tasks#{name}")))
        await expect(watched.page.locator("tr.task").filter(has_text="waiter")).to_be_visible()
        await expect(watched.page.get_by_role("tab", name="Tasks")).to_have_attribute("aria-selected", "true")
        assert watched.errors == []


@pytest.mark.parametrize(("seconds", "shown"), [(0.6, False), (1.6, True)])
async def test_only_a_block_that_lasts_moves_the_page(browser: Browser, seconds: float, shown: bool) -> None:
    async with service(Admin()) as server:
        url = server.make_url("/_tasks/stream")
        async with aiohttp.ClientSession() as session, session.get(url) as feed:
            while await feed.content.readline() != b"event: picture\r\n":
                pass
            picture = json.loads((await feed.content.readline()).removeprefix(b"data:"))
        picture["loop"]["blocked_now"] = {
            "seconds": seconds, "task": None, "request_id": None, "trace_id": None, "stack": []
        }  # fmt: skip
        page = await browser.new_page()
        body = f"event: picture\ndata: {json.dumps(picture)}\n\n"

        async def blocked(route: Route) -> None:
            await route.fulfill(content_type="text/event-stream", body=body)

        await page.route("**/_tasks/stream?*", blocked)
        await page.goto(str(server.make_url("/_tasks")))
        await expect(page.locator("#process")).to_contain_text("pid")
        await expect(page.locator("#blocked")).to_be_visible(visible=shown)


async def test_the_tab_of_incidents_has_their_number(browser: Browser) -> None:
    async with service(Admin()) as server:
        asyncio.get_running_loop().call_soon(time.sleep, 1.5)
        await asyncio.sleep(0.1)
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks")))
        await expect(page.locator("#tab-incidents")).to_have_attribute("data-count", "1", timeout=20_000)


async def test_a_line_is_drawn_when_there_are_points_for_it(browser: Browser) -> None:
    async with service(Admin()) as server:
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks")))
        tasks = page.locator(".tile").filter(has_text="tasks")
        await expect(tasks).to_have_count(1)
        assert await tasks.locator("polyline").count() == 0
        await expect(tasks.locator("polyline")).to_have_count(1, timeout=20_000)


async def test_those_that_wait_for_the_same_task_are_one_line_of_the_tree(browser: Browser) -> None:
    async with service(Admin()) as server:
        lock = asyncio.Lock()

        async def take() -> None:
            async with lock:
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(take(), name=name) for name in ("first", *["same"] * 24, "another")]
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks#trees")))
        awaits = page.locator("#view .tree").first
        crowd = awaits.locator("summary").filter(has_text="25 wait")
        await expect(crowd).to_contain_text("and 5 more")
        assert await crowd.get_by_role("link").count() == 20
        held = awaits.locator("li").filter(has=page.locator("summary").filter(has_text="25 wait"))
        await expect(held.get_by_role("link", name="first")).to_have_count(1)
        await expect(held.get_by_text("see above")).to_have_count(0)
        await crowd.get_by_role("link").first.click()
        await expect(page.locator("tr.details")).to_contain_text("in take")
        for task in tasks:
            task.cancel()


async def test_rows_that_would_read_alike_say_what_differs(browser: Browser) -> None:
    async with service(Admin()) as server:
        jobs = [asyncio.create_task(job.run()) for job in (Mail(), Mail(), Parcels())]
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks")))
        rows = page.locator("#view table").first.locator("tr.pick")
        await expect(rows.filter(has_text="Mail.run")).to_have_count(1)
        await expect(rows.filter(has_text="Parcels.run")).to_have_count(1)
        read = [re.sub(r"[\d.]+ m?s$", "", text) for text in await rows.all_inner_texts()]
        assert len(set(read)) == len(read), read
        for job in jobs:
            job.cancel()


async def test_a_task_is_cancelled_after_one_has_agreed(browser: Browser) -> None:
    async with service(Admin(token="open sesame", allow_cancel=True)) as server:
        watched = Watched(await browser.new_page())
        page = watched.page
        await page.goto(str(server.make_url("/_tasks")))
        await page.get_by_label("Admin token").fill("open sesame")
        await page.get_by_role("button", name="Log in").click()
        rows = page.locator("tr.task")
        await rows.filter(has_text="waiter").click()
        await page.get_by_role("button", name="Cancel this task").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("waiter")
        await dialog.get_by_role("button", name="Keep running").click()
        await page.get_by_role("button", name="Cancel this task").click()
        await dialog.get_by_role("button", name="Cancel", exact=True).click()
        await expect(rows.filter(has_text="waiter")).to_have_count(0)
        await expect(rows.filter(has_text="holder")).to_have_count(1)
        # The browser itself tells of the login page's answer, and of a task that is no more.
        assert [error for error in watched.errors if "401" not in error and "404" not in error] == []


async def test_ten_thousand_tasks_stay_smooth(browser: Browser) -> None:
    async with service(Admin()) as server:
        tasks = [asyncio.create_task(asyncio.sleep(600)) for _ in range(10_000)]
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks")))
        await expect(page.locator("#count")).to_contain_text("not sent", timeout=20_000)
        assert await page.locator("tr.task").count() <= 200
        drawn = await page.evaluate(
            "() => { const begun = performance.now(); location.hash = '#tasks'; "
            "window.dispatchEvent(new Event('hashchange')); return performance.now() - begun }"
        )
        assert drawn < 1000
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_browser_logs_in(browser: Browser) -> None:
    async with service(Admin(token="open sesame")) as server:
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks")))
        await page.get_by_label("Admin token").fill("close sesame")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("status")).to_contain_text("That isn't the token.")
        await page.get_by_label("Admin token").fill("open sesame")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.locator("tr.task").filter(has_text="holder")).to_be_visible()
        assert "sesame" not in page.url
        assert await page.evaluate("document.cookie") == ""


async def test_what_is_folded_out_or_marked_stays_so_while_the_page_lives(browser: Browser) -> None:
    async with service(Admin()) as server:
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks#incidents")))
        asyncio.get_running_loop().call_soon(time.sleep, 1.5)
        folded = page.locator("#view details")
        await folded.locator("summary").click()
        drawn = await page.evaluate_handle("() => document.querySelector('#view table')")
        await page.wait_for_function("table => !table.isConnected", arg=drawn)
        await expect(folded.locator("ol.stack")).to_be_visible()
        await page.evaluate(
            "() => document.getSelection().selectAllChildren(document.querySelector('#view h2'))"
        )
        drawn = await page.evaluate_handle("() => document.querySelector('#view table')")
        before = await page.locator("#clock").text_content()
        await expect(page.locator("#clock")).not_to_have_text(str(before))
        assert await drawn.evaluate("table => table.isConnected")


async def test_connections_that_idle_are_told_apart_from_the_work(browser: Browser) -> None:
    async with service(Admin()) as server, aiohttp.ClientSession() as session:
        async with session.get(server.make_url("/packed")):
            pass
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks")))
        rows = page.locator("tr.task")
        await expect(rows.filter(has_text="waiter")).to_be_visible()
        await expect(rows.filter(has_text="RequestHandler.start")).to_have_count(0)
        await page.get_by_role("button", name="connections").click()
        await expect(rows.filter(has_text="RequestHandler.start").first).to_be_visible()
        assert await rows.last.get_attribute("class") == "pick task aside", "what the page itself asks for"


async def test_a_search_goes_through_all_tasks(browser: Browser) -> None:
    async with service(Admin()) as server:
        tasks = [asyncio.create_task(asyncio.sleep(600)) for _ in range(3000)]
        tasks.append(asyncio.create_task(asyncio.sleep(600), name="the youngest"))
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks")))
        await expect(page.locator("#count")).to_contain_text("not sent", timeout=20_000)
        await page.get_by_label("Filter").fill("youngest")
        await expect(page.locator("tr.task")).to_have_count(1, timeout=20_000)
        await page.get_by_label("Filter").fill("nothing like it")
        await expect(page.locator("#view")).to_contain_text("No task passes the filter.", timeout=20_000)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_it_fits_a_phone(browser: Browser) -> None:
    async with service(Admin()) as server:
        page = await browser.new_page(viewport={"width": 360, "height": 740})
        await page.goto(str(server.make_url("/_tasks")))
        for view in ("tasks", "requests", "resources", "incidents", "trees"):
            await page.goto(str(server.make_url(f"/_tasks#{view}")))
            await expect(page.locator("#view h2").first).to_be_visible()
            assert await page.evaluate(TOO_WIDE) == 0, view


async def test_long_names_wrap_on_a_phone(browser: Browser) -> None:
    async with service(Admin()) as server:

        async def chain(links: int) -> None:
            if links:
                await asyncio.create_task(chain(links - 1), name=f"link-{links}-of-a-chain-of-tasks")
            await asyncio.Event().wait()

        deep = asyncio.create_task(chain(30), name="a_name_without_any_gap_" * 4)
        path = LONG_ROUTE.format(warehouse_identifier="n", shelf_identifier="s", item_identifier="i")
        async with requests_to(server, path, 2):
            page = await browser.new_page(viewport=PHONE)
            for view, name in {
                "tasks": "ClientSession.request → ClientResponse.start",
                "requests": "ClientSession.request → ClientResponse.start",
                "resources": "holder",
                "incidents": "Not once since the start.",
                "trees": "link-1-of-a-chain-of-tasks",
            }.items():
                await page.goto(str(server.make_url(f"/_tasks#{view}")))
                await expect(page.locator("#view")).to_contain_text(name)
                assert await page.evaluate(TOO_WIDE) == 0, view
            await page.goto(str(server.make_url("/_tasks#requests")))
            await page.locator("#view").get_by_role("link", name="task").first.click()
            await expect(page.locator("tr.details")).to_be_visible()
            assert await page.evaluate(TOO_WIDE) == 0, "details of a task"
        deep.cancel()


async def test_the_ids_of_incidents_are_short_and_lead_to_the_request(browser: Browser) -> None:
    async with service(Admin()) as server:
        request_id = "0123456789abcdef-0123456789abcdef"
        async with aiohttp.ClientSession() as session:
            await session.get(server.make_url("/blocking"), headers={"X-Request-ID": request_id})
        page = await browser.new_page(viewport=DESKTOP)
        await page.goto(str(server.make_url("/_tasks#incidents")))
        link = page.get_by_role("link", name="012345…abcdef")
        await expect(link).to_have_attribute("title", request_id)
        line = page.locator("#view .where").first
        assert await line.evaluate("line => line.getClientRects().length") <= 2, "lines on the page"
        await link.click()
        await expect(page.locator("#view")).to_contain_text("GET /blocking")
        await expect(page.locator("#view")).to_contain_text(request_id)


async def test_latency_is_told_in_words(browser: Browser) -> None:
    async with service(Admin()) as server:
        async with aiohttp.ClientSession() as session:
            await session.get(server.make_url("/blocking"))
        page = await browser.new_page()
        await page.goto(str(server.make_url("/_tasks#requests")))
        row = page.locator("#view tr").filter(has_text="GET /blocking")
        await expect(row.locator(".latency")).to_have_text("1\N{EN DASH}5 s1")


async def test_a_bundle_is_kept_from_the_page(browser: Browser) -> None:
    async with service(Admin()) as server:
        watched = Watched(await browser.new_page())
        await watched.page.goto(str(server.make_url("/_tasks#incidents")))
        await watched.page.get_by_role("button", name="Keep one now").click()
        await expect(watched.page.get_by_role("link", name="open")).to_have_count(1)
        await expect(watched.page.locator("#view")).to_contain_text("asked for")
        assert watched.errors == []
