"""Everything as it was at a moment, kept for later."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import OBSERVABILITY, Metrics, setup_observability
from tests.service import Service, serving, until
from tests.tasks.scenes import suspended


def application() -> web.Application:
    app = web.Application()

    async def block(request: web.Request) -> web.Response:
        time.sleep(float(request.query["seconds"]))  # noqa: ASYNC251 - to block the loop is the point
        return web.Response()

    app.router.add_get("/block", block)
    setup_observability(app, metrics=Metrics(registry=CollectorRegistry()))
    return app


async def kept(service: Service) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads((await service.get("/_tasks/bundles")).text)["bundles"]
    return listed


async def test_one_is_made_when_asked_for() -> None:
    async with serving(application()) as service:
        assert await kept(service) == []
        made = await service.request("POST", "/_tasks/bundles")
        assert made.status == 201
        (bundle,) = await kept(service)
        assert bundle["reason"] == "asked for"
        whole = json.loads((await service.get(f"/_tasks/bundles/{bundle['id']}")).text)
    assert whole.keys() == {"reason", "tasks", "resources", "tree", "incidents", "requests", "history"}
    assert whole["tasks"]["summary"]["total"] > 0


async def test_one_is_made_where_thousands_wait_for_a_pool() -> None:
    pool = asyncio.BoundedSemaphore(100)

    async def inside() -> None:
        async with pool:
            await asyncio.get_running_loop().create_future()

    async with serving(application()) as service, suspended(*(inside() for _ in range(3000))):
        assert (await service.request("POST", "/_tasks/bundles")).status == 201
        (bundle,) = await kept(service)
    assert bundle["bytes"] < 4_000_000


async def test_a_long_block_leaves_one_behind_and_a_short_one_none() -> None:
    app = application()
    async with serving(app) as service:
        await service.get("/block?seconds=0.3")
        await service.get("/block?seconds=1.3", headers={"X-Request-ID": "the-culprit"})
        bundles = app[OBSERVABILITY].documents.bundles
        await until(bundles, "the bundle")
        (bundle,) = await kept(service)
        assert bundle["reason"].startswith("the loop was blocked for 1.")
        whole = json.loads((await service.get(f"/_tasks/bundles/{bundle['id']}")).text)
    longest = [line["example"]["request_id"] for line in whole["incidents"]["blocked"]]
    assert longest == ["the-culprit"]


async def test_only_the_latest_ten_are_kept() -> None:
    async with serving(application()) as service:
        for _ in range(12):
            await service.request("POST", "/_tasks/bundles")
        assert [bundle["id"] for bundle in await kept(service)] == list(range(12, 2, -1))
        assert (await service.get("/_tasks/bundles/1")).status == 404


async def test_a_foreign_page_cannot_have_one_made() -> None:
    async with serving(application()) as service:
        headers = {"Origin": "http://evil.example"}
        assert (await service.request("POST", "/_tasks/bundles", headers=headers)).status == 403
