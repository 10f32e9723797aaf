"""The console's documents: what they add to the snapshot, and that they are made in slices, one at a time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from aiohttp_observe import CLIENT_SESSION, OBSERVABILITY, Logs, Metrics, setup_observability
from aiohttp_observe.documents import Documents
from aiohttp_observe.exchange import Exchange, Scope
from aiohttp_observe.incidents import Block, Cause
from aiohttp_observe.tasks import Frame, number_of
from tests.service import serving, until
from tests.tasks.scenes import suspended


@asynccontextmanager
async def documents() -> AsyncIterator[Documents]:
    """Those of a service that runs."""
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=CollectorRegistry()))
    async with serving(app):
        yield app[OBSERVABILITY].documents


class Turns:
    """How often the loop turns, and for how long it doesn't, at most, in seconds."""

    def __init__(self) -> None:
        self.number = 0
        self.longest = 0.0

    async def count(self) -> None:
        while True:
            before = perf_counter()
            await asyncio.sleep(0)
            self.number += 1
            self.longest = max(self.longest, perf_counter() - before)


@asynccontextmanager
async def turns() -> AsyncIterator[Turns]:
    counted = Turns()
    counting = asyncio.create_task(counted.count())
    await asyncio.sleep(0)
    yield counted
    counting.cancel()


async def sleeper() -> None:
    await asyncio.sleep(60)


def block(seconds: float, **facts: Any) -> Block:
    about: dict[str, Any] = {
        "frame": Frame("/srv/api.py", 141, "report"),
        "stack": (),
        "task": 7,
        "task_name": "Task-7",
        "request": "GET /report",
        "request_id": "r7",
        "trace_id": None,
        "span": None,
        "scope": None,
        "cause": Cause("cpu", "high", "measured"),
    }
    return Block(started=perf_counter() - seconds - 40, seconds=seconds, **{**about, **facts})


async def test_a_block_that_is_over_is_in_the_verdict() -> None:
    async with documents() as shown:
        incidents = shown._incidents
        incidents.blocked(block(0.5))
        assert shown.snapshot().verdict == ()
        incidents.blocked(block(25.0))
        incidents.blocked(block(3.0))
        (finding,) = shown.snapshot().findings
    assert (
        finding.sentence == "the loop was blocked for 25 s, 40 s ago, in report (api.py:141) by GET /report"
    )
    assert (finding.kind, finding.frame) == ("blocked", Frame("/srv/api.py", 141, "report"))


async def test_many_short_ones_are_told_together() -> None:
    async with documents() as shown:
        for number in range(40):
            frame = Frame("/srv/api.py", 141 if number % 4 else 7, "report")
            shown._incidents.blocked(block(0.2, frame=frame))
        (finding,) = shown.snapshot().findings
    assert finding.sentence == (
        "the loop was blocked 40 times in the last minute, for 8.0 s together, "
        "most of it in report (api.py:141)"
    )
    assert (finding.kind, finding.frame) == ("blocked", Frame("/srv/api.py", 141, "report"))


async def test_work_for_clients_that_have_left_is_told() -> None:
    left: list[Any] = [
        Exchange(Scope(), f"r{n}", "GET", "/report", "/report", None, None, 0.0) for n in range(6)
    ]
    async with documents() as shown:
        for number, exchange in enumerate(left):
            exchange.client_left_at = perf_counter() - number * 4
        shown._recorder.left = left[1:]
        (finding,) = shown.snapshot().findings
        shown._recorder.left = left[:5]
        assert shown.snapshot().findings == ()
    assert finding.sentence == (
        "5 requests are worked on for clients that have left, the longest, GET /report, for 20 s"
    )


async def test_a_loop_that_is_always_busy_is_told() -> None:
    """As one that spins in ``sleep(0)``, which waits for nothing."""
    async with documents() as shown:
        points = shown._history._points
        points.extend({"utilization": 0.95} for _ in range(4))
        assert shown.snapshot().findings == ()
        points.append({"utilization": 0.975})
        (finding,) = shown.snapshot().findings
    assert finding.sentence == (
        "the loop has been busy for 98% of the time, and all else waits: /_tasks/profile shows with what"
    )


async def test_a_log_that_nobody_reads_is_told() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", closefd=False) as stream:
        app = web.Application()
        logs = Logs(stream=stream, replace=True)
        setup_observability(app, metrics=Metrics(registry=CollectorRegistry()), logs=logs)
        async with serving(app):
            shown = app[OBSERVABILITY].documents
            for _ in range(50):
                logging.getLogger("shop").info("x" * 10_000)
            assert shown.snapshot().verdict == ()
            await until(lambda: bool(shown.snapshot().verdict), "the finding")
            (told,) = shown.snapshot().verdict
            assert re.fullmatch(
                r"log lines aren't written: for \d s whoever reads the log has taken none, and 5\d wait", told
            )
            os.set_blocking(reading, False)

            def is_over() -> bool:
                with suppress(BlockingIOError):
                    os.read(reading, 2**20)
                return not shown.snapshot().verdict

            await until(is_over, "its end")
        os.close(writing)
    os.close(reading)


async def test_a_crowd_at_an_upstream_names_the_call(registry: CollectorRegistry) -> None:
    async def front(request: web.Request) -> web.Response:
        async with request.app[CLIENT_SESSION].get(request.query["of"]) as response:
            return web.Response(text=await response.text())

    async def silent(request: web.Request) -> web.Response:
        await until(lambda: request.transport is None, "the client to leave")
        return web.Response()

    app, upstream = web.Application(), web.Application()
    app.router.add_get("/", front)
    upstream.router.add_get("/stock", silent)
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(upstream) as stock, serving(app) as service:
        callers = [asyncio.ensure_future(service.get(f"/?of={stock.url('/stock')}")) for _ in range(12)]
        shown = app[OBSERVABILITY].documents
        await until(lambda: bool(shown.snapshot().verdict), "the finding")
        (told,) = shown.snapshot().verdict
        for caller in callers:
            caller.cancel()
    assert re.fullmatch(
        r"12 of 12 requests wait for ClientSession\.request → ClientResponse\.start \(GET 127\.0\.0\.1\) "
        r"at test_documents\.py:\d+, the oldest for .*",
        told,
    )


async def test_one_that_no_request_caused_names_the_task() -> None:
    async with documents() as shown:
        shown._incidents.blocked(block(2.0, request=None, frame=None))
        assert shown.snapshot().verdict == ("the loop was blocked for 2 s, 40 s ago by task Task-7",)


async def test_one_by_another_thread_says_so() -> None:
    nobody = {"request": None, "frame": None, "task_name": None, "task": None}
    async with documents() as shown:
        shown._incidents.blocked(block(2.0, **nobody, cause=Cause("gil", "high", "measured")))
        (told,) = shown.snapshot().verdict
    assert told.endswith("40 s ago by another thread, which kept the interpreter lock")


async def test_streams_and_websockets_that_wait_for_news_are_nothing_to_tell() -> None:
    news = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await news.wait()
        return response

    async def push(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await news.wait()
        return socket

    async def late(request: web.Request) -> web.StreamResponse:
        await news.wait()
        return web.Response()

    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=CollectorRegistry()))
    for handler in (stream, push, late):
        app.router.add_get(f"/{handler.__name__}", handler)
    client = TestClient(TestServer(app))
    async with client:
        shown = app[OBSERVABILITY].documents
        for _ in range(12):
            await client.get("/stream")
            await client.ws_connect("/push")
        assert shown.snapshot().verdict == ()
        calls = [asyncio.create_task(client.get("/late")) for _ in range(12)]
        await until(lambda: "12 of 36" in "".join(shown.snapshot().verdict), "those who come late")
        (sentence,) = shown.snapshot().verdict
        news.set()
        await asyncio.gather(*calls)
    assert sentence.startswith("12 of 36 requests wait for Event.wait at test_documents.py:")


async def test_websockets_whose_clients_do_not_read_are_told() -> None:
    async def push(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        while True:
            await socket.send_bytes(bytes(2**20))

    app = web.Application()
    app.router.add_get("/push", push)
    setup_observability(app, metrics=Metrics(registry=CollectorRegistry()))
    upgrade = (
        b"GET /push HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with serving(app, shutdown_timeout=0.1) as service:
        writers = []
        for _ in range(12):
            _, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1024)
            writer.write(upgrade)
            writers.append(writer)
        shown = app[OBSERVABILITY].documents
        await until(lambda: "12 of 12" in "".join(shown.snapshot().verdict), "those who can't send")
        (sentence,) = shown.snapshot().verdict
        for writer in writers:
            writer.transport.abort()
    assert "WebSocketResponse.send_bytes at test_documents.py:" in sentence


class TestMatching:
    async def test_finds_the_tasks_themselves(self) -> None:
        async with (
            documents() as shown,
            suspended(*(sleeper() for _ in range(500)), asyncio.sleep(60)) as all_,
        ):
            async with turns() as counted:
                found = await shown.matching(coro="sleeper")
            assert set(found) == set(all_[:-1])
            assert counted.number >= 2
            assert await shown.matching(id=number_of(all_[3])) == [all_[3]]

    async def test_makes_no_rows_of_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any) -> None:
            raise AssertionError

        monkeypatch.setattr("aiohttp_observe.tasks.rows.Rows.row", refuse)
        async with documents() as shown, suspended(sleeper()) as tasks:
            assert await shown.matching(coro="sleeper") == tasks

    async def test_leaves_out_who_asks(self) -> None:
        async def ask(shown: Documents) -> list[asyncio.Task[Any]]:
            return await shown.matching(coro="*.ask")

        async with documents() as shown:
            assert await asyncio.create_task(ask(shown)) == []

    @pytest.mark.parametrize("filters", [{"stat": "running"}, {"state": "stuck"}])
    async def test_refuses_what_is_no_filter(self, filters: dict[str, str]) -> None:
        async with documents() as shown:
            with pytest.raises((TypeError, ValueError)):
                await shown.matching(**filters)


async def test_resources_are_told_in_slices() -> None:
    async with documents() as shown, suspended(*(asyncio.Event().wait() for _ in range(2000))):
        async with turns() as looking:
            await shown._snapshot(limit=5000)
        async with turns() as telling:
            document = json.loads(await shown.resources())
    assert len(document["resources"]) == len(document["tasks"]) == 2000
    assert telling.number >= looking.number + 2 * 20


async def test_many_are_cancelled_in_more_than_one_turn() -> None:
    async with documents() as shown, suspended(*(sleeper() for _ in range(1000))) as tasks:
        async with turns() as counted:
            assert shown.cancel(tasks) == [number_of(task) for task in tasks]
            await asyncio.wait(tasks)
        assert counted.number > 4
        assert all(task.cancelled() for task in tasks)


class TestInTurn:
    async def test_the_costly_ones_are_made_one_after_another(self) -> None:
        at_once, most = 0, 0

        class Slow(Documents):
            async def _snapshot(self, **filters: Any) -> Any:
                nonlocal at_once, most
                at_once += 1
                most = max(most, at_once)
                try:
                    return await super()._snapshot(**filters)
                finally:
                    at_once -= 1

        async with documents() as shown, suspended(*(sleeper() for _ in range(500))):
            shown.__class__ = Slow
            made = [
                *(shown.tasks() for _ in range(5)),
                shown.groups(),
                shown.tree(),
                shown.tree_text(),
                shown.resources(),
            ]
            assert all(await asyncio.gather(*made))
            assert await shown.make_bundle("asked for") is not None
        assert most == 1

    async def test_one_who_goes_away_keeps_nobody_waiting(self) -> None:
        async with documents() as shown, suspended(*(sleeper() for _ in range(500))):
            first, second, third = (asyncio.create_task(shown.tasks()) for _ in range(3))
            await asyncio.sleep(0)
            first.cancel()
            second.cancel()
            assert await asyncio.wait_for(third, 10)

    async def test_the_live_page_waits_for_none_of_them(self) -> None:
        async with documents() as shown, shown.turn():
            assert await asyncio.wait_for(shown.picture(allow_cancel=False), 10)

    async def test_another_loop_has_a_turn_of_its_own(self) -> None:
        async with documents() as shown, shown.turn():
            text: list[str] = []
            apart = threading.Thread(target=lambda: text.append(asyncio.run(shown.tasks())))
            apart.start()
            await asyncio.to_thread(apart.join, 10)
        assert text
