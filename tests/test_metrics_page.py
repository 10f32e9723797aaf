"""The page of the metrics as it is sent: to those who read it, and those who don't."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from aiohttp_observe import Metrics, setup_observability
from aiohttp_observe.metrics import MetricsPage, page
from tests.service import PATIENCE, Service, serving
from tests.spans import Handler

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
ASKED = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def registry_of(megabytes: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("big", "x" * (megabytes * 1_000_000), registry=registry).set(1)
    return registry


@web.middleware
async def compressing(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    response.enable_compression()
    return response


@asynccontextmanager
async def served(registry: CollectorRegistry, *, compressed: bool = False) -> AsyncIterator[Service]:
    app = web.Application(middlewares=[compressing] if compressed else [])
    app.router.add_get("/metrics", MetricsPage(registry, None).get)
    async with serving(app, shutdown_timeout=0.1) as service:
        yield service


class Reader:
    """A client that asks for the page, and reads no more of it than it is told to."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        self._socket.sendall(ASKED)
        self._socket.setblocking(False)

    async def read(self, most: int = 1000) -> bytes:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.sock_recv(self._socket, most), PATIENCE)

    async def read_all(self) -> int:
        """How much comes until the connection is closed or reset."""
        total = 0
        try:
            while received := await self.read(100_000):
                total += len(received)
        except ConnectionResetError:
            pass
        return total

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def readers(service: Service, number: int) -> AsyncIterator[list[Reader]]:
    async with AsyncExitStack() as stack:
        made = [Reader(service.port) for _ in range(number)]
        for reader in made:
            stack.callback(reader.close)
        yield made


async def test_answers_that_nobody_reads_are_bounded() -> None:
    async with served(registry_of(20)) as service:
        async with readers(service, 40) as slow:
            heads = [await reader.read() for reader in slow]
            statuses = [head.split()[1] for head in heads]
            assert sorted(statuses) == [b"200"] * 16 + [b"503"] * 24
            refused = await service.get("/metrics")
            assert (refused.status, refused.headers["Retry-After"]) == (503, "10")
        await until_it_answers(service)


async def until_it_answers(service: Service) -> None:
    for _ in range(200):
        if (await service.get("/metrics")).status == 200:
            return
        await asyncio.sleep(0.05)
    pytest.fail("there is no room again")


async def test_no_more_of_a_page_is_buffered_than_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    buffered: list[asyncio.Transport] = []
    app = web.Application()
    monkeypatch.setattr(page, "_MOST_UNFINISHED", 100)
    app.router.add_get("/metrics", MetricsPage(registry_of(20), None).get)

    @web.middleware
    async def remembering(request: web.Request, handler: Handler) -> web.StreamResponse:
        assert isinstance(request.transport, asyncio.Transport)
        buffered.append(request.transport)
        return await handler(request)

    app.middlewares.append(remembering)
    async with serving(app, shutdown_timeout=0.1) as service, readers(service, 10) as slow:
        for reader in slow:
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        assert len(buffered) == 10
        assert max(transport.get_write_buffer_size() for transport in buffered) < 500_000


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_one_that_takes_too_long_to_read_is_broken_off(
    run: Callable[[Coroutine[Any, Any, None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_SEND_SECONDS", 0.3)
    monkeypatch.setattr(page, "_MOST_UNFINISHED", 1)
    run(be_slow())


async def be_slow() -> None:
    async with served(registry_of(20)) as service, readers(service, 1) as (slow,):
        await slow.read()
        assert (await service.get("/metrics")).status == 503
        await until_it_answers(service)
        assert await slow.read_all() < 20_000_000


class Slow(Collector):
    """Tells how many collect it at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.go_on = threading.Event()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        self.now += 1
        self.most = max(self.most, self.now)
        self.go_on.wait(0.1)
        self.now -= 1
        return []


async def test_one_format_is_encoded_at_a_time() -> None:
    registry, slow = CollectorRegistry(), Slow()
    registry.register(slow)
    async with served(registry) as service:
        formats = ["text/plain", "application/openmetrics-text; version=1.0.0"]
        asked = (service.get("/metrics", headers={"Accept": accept}) for accept in formats)
        answers = await asyncio.gather(*asked)
    assert len({answer.headers["Content-Type"] for answer in answers}) == 2
    assert slow.most == 1


@pytest.mark.parametrize("megabytes", [0, 1])
async def test_a_scraper_finds_the_answer_as_ever(megabytes: int) -> None:
    registry = registry_of(megabytes)
    encode, content_type = choose_encoder(OPENMETRICS["Accept"])
    async with served(registry) as service:
        got = await service.get("/metrics", headers=OPENMETRICS)
        head = await service.request("HEAD", "/metrics", headers=OPENMETRICS)
    assert got.text.encode() == encode(registry)
    for answer in (got, head):
        assert answer.headers["Content-Type"] == content_type
        assert answer.headers["Content-Length"] == str(len(encode(registry)))
        assert "Transfer-Encoding" not in answer.headers
    assert head.text == ""


async def test_a_service_may_have_it_compressed() -> None:
    registry = registry_of(1)
    async with served(registry, compressed=True) as service:
        answer = await service.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.text.encode() == choose_encoder("")[0](registry)


async def test_what_a_scraper_likes_is_read_as_far_as_one_would_say_it() -> None:
    async with served(CollectorRegistry()) as service:
        for accept, kind in (
            (f"{OPENMETRICS['Accept']},{'a' * 5000}", "application/openmetrics-text"),
            (f"{'a' * 1000},{OPENMETRICS['Accept']}", "text/plain"),
            (f"{'a' * 960},{OPENMETRICS['Accept']}", "text/plain"),
        ):
            answer = await service.get("/metrics", headers={"Accept": accept})
            assert answer.headers["Content-Type"].startswith(kind)


async def test_a_process_that_can_start_no_thread_is_scraped_all_the_same(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), logs=None)

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with serving(app) as service:
        monkeypatch.setattr(threading.Thread, "start", refused)
        answer = await service.get("/metrics")
        monkeypatch.undo()
    assert (answer.status, answer.text[:6]) == (200, "# HELP")


async def test_the_loop_does_not_wait_for_the_disk_of_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a worker's files for every one that ever was, a look into their folder takes a while."""
    listing, listdir = list[threading.Thread](), os.listdir

    def listed(path: str) -> list[str]:
        listing.append(threading.current_thread())
        return listdir(path)

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(os, "listdir", listed)
    async with served(CollectorRegistry()) as service:
        refused = await service.get("/metrics")
        (tmp_path / "counter_1.db").write_bytes(bytes(16))
        assert (await service.get("/metrics")).status == 200
    assert (refused.status, refused.text.split(",")[0]) == (
        503,
        "503: PROMETHEUS_MULTIPROC_DIR isn't there any more",
    )
    assert listing
    assert threading.main_thread() not in listing
