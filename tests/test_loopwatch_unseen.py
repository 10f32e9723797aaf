"""A call that keeps the interpreter lock is told even if the watching thread isn't the next to get it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator

import pytest
from aiohttp import web

from aiohttp_observe import Tracing, setup_observability
from tests.service import serving, until
from tests.spans import Spans, attributes

pytestmark = pytest.mark.usefixtures("short_collections")

MOST = 60
"""Blocks until one was seen and one was not: about half are."""


@pytest.fixture
def others() -> Iterator[None]:
    """Threads that ask for the interpreter lock all the time, as those of a busy service do."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            time.sleep(0.002)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


async def keep_the_lock(request: web.Request) -> web.Response:
    # One call in C, in which no other thread gets to run; who looks right after it finds the same line.
    return web.Response(text=str(sum(range(30_000_000))))


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "aiohttp_observe.loopwatch"]


async def test_each_block_is_told_with_its_request_whether_or_not_anybody_saw_the_line(
    others: None, caplog: pytest.LogCaptureFixture
) -> None:
    spans, app = Spans(), web.Application()
    app.router.add_get("/parse", keep_the_lock)
    setup_observability(app, tracing=Tracing(provider=spans.provider))
    sent: list[str] = []
    async with serving(app) as service:
        while (
            len({hasattr(record, "code.function.name") for record in told(caplog)}) < 2 and len(sent) < MOST
        ):
            sent.append(f"parse-{len(sent)}")
            await service.get("/parse", headers={"X-Request-ID": sent[-1]})
            await until(lambda: len(told(caplog)) == len(sent), "the block")
        incidents = json.loads((await service.get("/_tasks/incidents")).text)
        metrics = (await service.get("/metrics")).text

    records = told(caplog)
    assert [vars(record)["request_id"] for record in records] == sent
    for record in records:
        assert record.getMessage().endswith(
            " by GET /parse, in a line that nobody saw: it let no thread look"
        ) != hasattr(record, "code.function.name")
    assert f"asyncio_loop_blocked_total {len(sent)}.0\n" in metrics
    unseen, seen = sorted(incidents["blocked"], key=lambda row: row["frame"] is not None)
    assert (unseen["frame"], unseen["example"]["request"]) == (None, "GET /parse")
    assert (unseen["example"]["stack"], unseen["cause"]["kind"]) == ([], "cpu")
    assert seen["frame"]["function"] == "keep_the_lock"
    assert unseen["count"] + seen["count"] == len(sent)
    blocks = [span for span in spans.all if span.name == "event_loop_blocked"]
    assert len(blocks) == len(sent)
    assert len({"code.function.name" in attributes(span) for span in blocks}) == 2
