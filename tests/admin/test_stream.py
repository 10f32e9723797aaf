"""The live page's feed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, Metrics, setup_observability
from tests.service import PATIENCE, Service, serving


def application(**options: Any) -> web.Application:
    app = web.Application()

    async def wait(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    app.router.add_get("/wait", wait)
    setup_observability(app, admin=Admin(**options), metrics=Metrics(registry=CollectorRegistry()))
    return app


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[Service, aiohttp.ClientSession]]:
    """A service, and a session that takes long lines."""
    async with serving(application()) as service, aiohttp.ClientSession(read_bufsize=2**22) as session:
        yield service, session


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """Name and data of each server-sent event."""
    name = ""
    async for raw in response.content:
        line = raw.decode().rstrip("\r\n")
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def next_of(events: AsyncIterator[tuple[str, Any]]) -> tuple[str, Any]:
    return await asyncio.wait_for(anext(events), PATIENCE)


async def test_it_begins_with_the_history_and_goes_on_with_pictures() -> None:
    async with (
        serving(application(), shutdown_timeout=0.1) as service,
        aiohttp.ClientSession(read_bufsize=2**22) as session,
    ):
        response = await session.get(service.url("/_tasks/stream"))
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        events = events_of(response)
        name, history = await next_of(events)
        assert (name, history) == ("history", [])
        name, picture = await next_of(events)
        assert name == "picture"
        assert {"taken_at", "tasks", "summary", "verdict", "point", "allow_cancel"} <= picture.keys()
        assert picture["allow_cancel"] is False
        point = picture["point"]
        assert point["in_flight"] == 1
        assert point["waiting"] == picture["summary"]["waiting"]
        waiting = asyncio.ensure_future(service.get("/wait"))
        name, picture = await next_of(events)
        assert picture["point"]["in_flight"] == 2
        await waiting
        response.close()


async def test_it_takes_the_filters_of_the_document() -> None:
    async with (
        serving(application(), shutdown_timeout=0.1) as service,
        aiohttp.ClientSession(read_bufsize=2**22) as session,
    ):
        waiting = asyncio.ensure_future(service.get("/wait"))
        response = await session.get(service.url("/_tasks/stream?wait=sleep&limit=5"))
        events = events_of(response)
        await next_of(events)
        await next_of(events)  # perhaps before the other request came
        _, picture = await next_of(events)
        assert {task["wait"]["kind"] for task in picture["tasks"]} == {"sleep"}
        assert "/wait" in {task["request"]["route"] for task in picture["tasks"] if task["request"]}
        refused = await service.get("/_tasks/stream?limit=many")
        assert refused.status == 400
        assert "limit takes a whole number" in refused.text
        await waiting
        response.close()


async def test_pages_that_show_the_same_share_each_picture() -> None:
    async with watched() as (service, session):
        responses = [await session.get(service.url("/_tasks/stream")) for _ in range(3)]
        other = await session.get(service.url("/_tasks/stream?wait=sleep"))
        feeds = [events_of(response) for response in responses]
        seen = []
        for _ in range(3):
            named = [await next_of(feed) for feed in feeds]
            seen.append({picture["taken_at"] for name, picture in named if name == "picture"})
        assert [len(moments) for moments in seen] == [0, 1, 1]
        assert seen[1] != seen[2]
        for response in (*responses, other):
            response.close()


async def test_a_client_that_leaves_is_noticed_long_before_the_next_picture() -> None:
    async with watched() as (service, session):
        responses = [await session.get(service.url("/_tasks/stream")) for _ in range(8)]
        for response in responses:
            feed = events_of(response)
            await next_of(feed)
            await next_of(feed)
        left = asyncio.get_running_loop().time()
        for response in responses:
            response.close()
        while (again := await session.get(service.url("/_tasks/stream"))).status != 200:
            again.close()
            await asyncio.sleep(0.05)
        assert asyncio.get_running_loop().time() - left < 1.9
        again.close()


async def test_it_is_as_private_as_the_rest() -> None:
    async with serving(application(token="secret")) as service:
        assert (await service.get("/_tasks/stream")).status == 401


async def test_the_number_of_open_streams_is_limited() -> None:
    async with watched() as (service, session):
        responses = [await session.get(service.url("/_tasks/stream")) for _ in range(8)]
        assert {response.status for response in responses} == {200}
        assert (await service.get("/_tasks/stream")).status == 503
        for response in responses:
            response.close()


async def test_a_client_that_leaves_makes_room() -> None:
    async with watched() as (service, session):
        for _ in range(3):
            responses = [await session.get(service.url("/_tasks/stream")) for _ in range(8)]
            for response in responses:
                response.close()

            async def is_open() -> bool:
                answer = await session.get(service.url("/_tasks/stream"))
                answer.close()
                return answer.status == 200

            for _ in range(200):
                if await is_open():
                    break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("the streams of clients that have left still count")
