"""What may be asked of the console, and what it says to anything else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, Metrics, setup_observability
from tests.service import Service, serving


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=CollectorRegistry()))
    async with serving(app, shutdown_timeout=0.1) as served:
        yield served


@pytest.mark.parametrize("path", ["/_tasks", "/_tasks/groups", "/_tasks/stream"])
async def test_an_unknown_parameter_is_named_and_those_there_are(service: Service, path: str) -> None:
    answer = await service.get(f"{path}?wait=lock&corro=x")
    assert answer.status == 400
    assert json.loads(answer.text)["error"] == (
        "there is no parameter 'corro' here, but there are "
        "state, wait, coro, request_id, search, min_age, limit, frames, sort, format"
    )


async def test_an_unknown_format_is_refused_too(service: Service) -> None:
    answer = await service.get("/_tasks?format=xml")
    assert (answer.status, json.loads(answer.text)["error"]) == (400, "format takes html, json")


async def test_the_page_knows_where_it_is() -> None:
    """Its own path may stand in that of what it is part of."""
    root, app = web.Application(), web.Application()
    admin = Admin(path="/ops", token="secret")
    setup_observability(app, admin=admin, metrics=None, logs=None)
    root.add_subapp("/ops-eu", app)
    headers = {"Accept": "text/html", "Authorization": "Bearer secret"}
    async with serving(root) as served:
        for path in ("/ops-eu/ops", "/ops-eu/ops/requests/ops"):
            answer = await served.get(path, headers=headers)
            assert 'data-base="/ops-eu/ops"' in answer.text


async def test_not_more_than_is_needed_is_told_back(service: Service) -> None:
    answer = await service.get(f"/_tasks?{'n' * 5000}=1")
    assert answer.status == 400
    assert len(answer.text) < 250


@pytest.mark.parametrize("path", ["/_tasks", "/_tasks/groups"])
async def test_all_that_are_documented_go_together(service: Service, path: str) -> None:
    query = "state=waiting&wait=sleep&coro=x&request_id=y&search=z&min_age=1&limit=5&frames=2&sort=age"
    assert (await service.get(f"{path}?{query}&format=json")).status == 200


async def test_a_wait_kind_that_nobody_knows_may_come_up_yet(service: Service) -> None:
    answer = await service.get("/_tasks?wait=nonsense")
    assert (answer.status, json.loads(answer.text)["tasks"]) == (200, [])


async def test_it_is_found_out_when_asked_whether_anybody_is_left_to_wake_a_task(service: Service) -> None:
    async def wait_for_nobody() -> None:
        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(wait_for_nobody())
    (found,) = json.loads((await service.get("/_tasks?coro=wait_for_nobody")).text)["tasks"]
    path = f"/_tasks/{found['id']}"
    asked = json.loads((await service.get(f"{path}?referrers=1")).text)
    assert asked.keys() == found.keys()
    assert asked["warnings"] == [
        "nothing but this task refers to what it waits for: nobody is left to wake it, most likely"
    ]
    assert json.loads((await service.get(path)).text)["warnings"] == []
    misspelt = await service.get(f"{path}?referers=1")
    assert misspelt.status == 400
    assert "no parameter 'referers' here, but there are referrers, format" in misspelt.text
    task.cancel()
