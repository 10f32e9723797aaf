"""Cancelling tasks from the console."""

from __future__ import annotations

import asyncio
import json
import logging
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, Metrics, setup_observability
from tests.service import Answer, Service, serving

BEARER = {"Authorization": "Bearer secret"}


async def sleeper() -> None:
    await asyncio.sleep(60)


class Console:
    """A service with three sleeping tasks, and its console."""

    def __init__(self, service: Service, tasks: list[asyncio.Task[None]]) -> None:
        self._service = service
        self.tasks = tasks

    async def cancel(self, path: str, confirm: Any = None, **kwargs: Any) -> Answer:
        kwargs = {"headers": BEARER, "json": {"confirm": confirm}, **kwargs}
        return await self._service.request("POST", f"/_tasks{path}", **kwargs)

    async def id_of(self, task: asyncio.Task[None]) -> int:
        answer = await self._service.get("/_tasks?coro=sleeper", headers=BEARER)
        rows = json.loads(answer.text)["tasks"]
        number: int = next(row["id"] for row in rows if row["name"] == task.get_name())
        return number


@asynccontextmanager
async def console(admin: Admin) -> AsyncIterator[Console]:
    app = web.Application()
    setup_observability(app, admin=admin, metrics=Metrics(registry=CollectorRegistry()))
    async with serving(app) as service:
        tasks = [asyncio.create_task(sleeper(), name=f"sleeper-{number}") for number in range(3)]
        await asyncio.sleep(0)
        yield Console(service, tasks)
        for task in tasks:
            task.cancel()


ALLOWED = Admin(token="secret", allow_cancel=True)


async def test_one_task_is_cancelled_and_it_is_logged_who_did_it(caplog: pytest.LogCaptureFixture) -> None:
    async with console(ALLOWED) as shown:
        number = await shown.id_of(shown.tasks[1])
        answer = await shown.cancel(f"/{number}/cancel", 1)
        assert (answer.status, json.loads(answer.text)) == (200, {"cancelled": [number]})
        await asyncio.wait(shown.tasks[1:2], timeout=5)
        assert [task.cancelled() for task in shown.tasks] == [False, True, False]
    (record,) = [record for record in caplog.records if record.name == "aiohttp_observe.admin"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "1 task cancelled from the task console by 127.0.0.1: sleeper-1"


async def test_a_group_is_cancelled_by_filter() -> None:
    async with console(ALLOWED) as shown:
        answer = await shown.cancel("/cancel?coro=sleeper", 3)
        assert len(json.loads(answer.text)["cancelled"]) == 3
        await asyncio.wait(shown.tasks, timeout=5)
        assert all(task.cancelled() for task in shown.tasks)


async def test_nothing_is_done_unless_as_many_match_as_were_agreed_to() -> None:
    async with console(ALLOWED) as shown:
        answer = await shown.cancel("/cancel?coro=sleeper", 2)
        assert (answer.status, json.loads(answer.text)["matches"]) == (409, 3)
        assert not any(task.cancelling() if hasattr(task, "cancelling") else False for task in shown.tasks)
        assert (await shown.cancel("/999999/cancel", 1)).status == 409


@pytest.mark.parametrize("confirm", [None, 0, -1, True, "3", 3.0, [3]])
async def test_an_agreement_that_is_none_is_refused(confirm: Any) -> None:
    async with console(ALLOWED) as shown:
        assert (await shown.cancel("/cancel?coro=sleeper", confirm)).status == 400


async def test_there_is_no_cancelling_of_everything() -> None:
    async with console(ALLOWED) as shown:
        answer = await shown.cancel("/cancel", 1)
        assert answer.status == 400
        assert "say which" in answer.text


@pytest.mark.parametrize("admin", [Admin(), Admin(allow_cancel=True), Admin(token="secret")])
async def test_it_is_off_unless_allowed_and_behind_a_token(admin: Admin) -> None:
    async with console(admin) as shown:
        answer = await shown.cancel(f"/{await shown.id_of(shown.tasks[0])}/cancel", 1)
        assert answer.status == 403
        assert "Admin(allow_cancel=True) and a token" in answer.text


@pytest.mark.parametrize(("admin", "times"), [(Admin(allow_cancel=True), 1), (ALLOWED, 0), (Admin(), 0)])
async def test_that_it_is_off_in_spite_of_being_allowed_is_logged_once(
    admin: Admin, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with console(admin):
        told = [record for record in caplog.records if record.name == "aiohttp_observe.admin"]
    assert [record.levelno for record in told] == [logging.WARNING] * times
    for record in told:
        assert "cancelling is off" in record.getMessage()
        assert "set AIOHTTP_OBSERVE_ADMIN_TOKEN" in record.getMessage()


async def test_a_misspelt_filter_cancels_nothing() -> None:
    async with console(ALLOWED) as shown:
        answer = await shown.cancel("/cancel?coro=sleeper&stat=running", 3)
        assert answer.status == 400
        assert "no parameter 'stat'" in answer.text


async def test_nobody_without_the_token_learns_even_that() -> None:
    async with console(ALLOWED) as shown:
        answer = await shown.cancel("/1/cancel", 1, headers={})
        assert answer.status == 401
        assert "cancel" not in answer.text


@pytest.mark.parametrize(
    "foreign",
    [
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
)
async def test_a_foreign_page_cannot_have_it_done(foreign: dict[str, str]) -> None:
    async with console(ALLOWED) as shown:
        headers = {"Content-Type": "application/json", **BEARER, **foreign}
        answer = await shown.cancel(
            "/cancel?coro=sleeper", headers=headers, json=None, data=json.dumps({"confirm": 3})
        )
        assert answer.status == 403


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_nothing_but_post_will_do(method: str) -> None:
    async with console(ALLOWED) as shown:
        number = await shown.id_of(shown.tasks[0])
        answer = await shown._service.request(method, f"/_tasks/{number}/cancel", headers=BEARER)
        assert answer.status == 404


async def test_a_body_that_would_unpack_to_more_cancels_nothing() -> None:
    async with console(ALLOWED) as shown:
        headers = {**BEARER, "Content-Type": "application/json", "Content-Encoding": "deflate"}
        body = zlib.compress(b'{"confirm": 3}')
        answer = await shown.cancel("/cancel?coro=sleeper", json=None, data=body, headers=headers)
        assert answer.status == 400
        assert not any(
            task.cancelling() if hasattr(task, "cancelling") else task.done() for task in shown.tasks
        )
