"""Findings in a real service, of odd names, and what looking leaves behind."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import weakref
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import OBSERVABILITY, Metrics, setup_observability
from aiohttp_observe.tasks import Finding, Snapshot, note_contention, take_snapshot
from tests.service import serving

from .scenes import suspended


async def hold(lock: asyncio.Lock) -> None:
    async with lock:
        await asyncio.sleep(60)


async def want(lock: asyncio.Lock) -> None:
    async with lock:
        pass


def finding(kind: str) -> Finding:
    (found,) = [each for each in take_snapshot().findings if each.kind == kind]
    return found


async def test_a_block_is_told_by_line_and_route(registry: CollectorRegistry) -> None:
    app = web.Application()
    seen: list[Snapshot] = []

    async def block(request: web.Request) -> web.Response:
        looker = threading.Timer(0.4, lambda: seen.append(app[OBSERVABILITY].snapshot()))
        looker.start()
        looker.join()
        return web.Response()

    app.router.add_get("/report", block)
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(app) as service:
        await service.get("/report")
    line = block.__code__.co_firstlineno + 3
    pattern = rf"the loop has been blocked for 0\.\d s in test_findings.py:{line} by GET /report"
    assert re.fullmatch(pattern, seen[0].verdict[0])


async def test_nothing_seen_is_kept_alive() -> None:
    class Lock(asyncio.Lock):
        pass

    lock = Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(12))) as tasks:
        take_snapshot()
        note_contention(tasks)
        await asyncio.sleep(0)
        take_snapshot()
        gone: list[weakref.ref[Any]] = [weakref.ref(lock), *map(weakref.ref, tasks)]
    del lock, tasks
    await asyncio.sleep(0)
    gc.collect()
    assert [kept() for kept in gone if kept() is not None] == []


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "<script>", "\ud800"])
async def test_odd_names_break_nothing(hostile: str) -> None:
    lock = asyncio.Lock()
    async with suspended(hold(lock), *(want(lock) for _ in range(12))) as tasks:
        tasks[0].set_name(hostile)
        assert hostile in finding("held").sentence


async def test_a_name_without_end_is_cut() -> None:
    async with suspended(asyncio.sleep(60)) as (task,):
        task.set_name("?" + "x" * 1_000_000)
        (name,) = [each.name for each in take_snapshot().tasks if each.name.startswith("?x")]
    assert name == "?" + "x" * 255 + "…"
