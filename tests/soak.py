"""A service under a mix of requests for a long time: nothing may be lost, left or grow.

``python -m tests.soak --requests 1000000``, or ``tox run -e soak``; ends with status 1 if a count
doesn't add up, if something is left, or if memory has grown.

A service with everything on runs in a process of its own; here are its clients, the reader of its
log and its OTLP collector, which is up and down by turns.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from time import monotonic
from typing import Any

import aiohttp
from aiohttp import web

from aiohttp_observe import (
    CLIENT_SESSION,
    OBSERVABILITY,
    Exchange,
    Logs,
    LoopWatch,
    operation,
    setup_observability,
    spawn,
)
from tests.otlp import Receiver, receiving_in_thread
from tests.service import ROOT

_CLIENTS = 32
_WARM = 0.2
"""Part of the run after which memory must not grow any more."""
_MOST_GROWTH = 1.05
_LONG_ENOUGH = 250_000
"""Requests after a fifth of which everything is warm."""
_COLLECTOR_TURN = 15.0
"""Seconds for which the collector is up, or down."""
_SETTLED = 60.0
_ACCESS = b'"logger":"aiohttp_observe.access"'


# The service


class Heard:
    """The observer whose count is compared."""

    def __init__(self) -> None:
        self.started_ = 0
        self.finished_ = 0

    def started(self, exchange: Exchange) -> None:
        self.started_ += 1

    def finished(self, exchange: Exchange) -> None:
        self.finished_ += 1


async def _plain(request: web.Request) -> web.StreamResponse:
    return web.json_response({"id": request.match_info["id"]})


async def _fails(request: web.Request) -> web.StreamResponse:
    raise LookupError(request.match_info["id"])


async def _streams(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(5):
        await response.write(b"x" * 1000)
        await asyncio.sleep(0)
    return response


async def _echoes(request: web.Request) -> web.StreamResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        await ws.send_str(message.data)
    return ws


async def _asks(request: web.Request) -> web.StreamResponse:
    url = request.url.origin() / "plain/asked"
    async with request.app[CLIENT_SESSION].get(url) as response:
        return web.json_response(await response.json())


async def _work() -> None:
    async with operation("soak-work"):
        await asyncio.sleep(0)


async def _spawns(request: web.Request) -> web.StreamResponse:
    spawn(_work(), name="soak-work")
    return web.Response()


async def _dawdles(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(0.05)
    return web.Response()


async def _counts(request: web.Request) -> web.StreamResponse:
    """What is there now, this request included."""
    gc.collect()
    observability, heard = request.app[OBSERVABILITY], request.app[_HEARD]
    exchanges = sum(issubclass(type(each), Exchange) for each in gc.get_objects())
    return web.json_response(
        {
            "rss_mib": _resident_mib(),
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "in_flight": len(observability.recorder.in_flight),
            "background": len(observability.scope.background),
            "exchanges": exchanges,
            "started": heard.started_,
            "finished": heard.finished_,
        }
    )


def _resident_mib() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


_HEARD = web.AppKey("heard", Heard)


async def _serve() -> None:
    app = web.Application()
    for path, handler in {
        "/plain/{id}": _plain,
        "/fails/{id}": _fails,
        "/streams": _streams,
        "/echoes": _echoes,
        "/asks": _asks,
        "/spawns": _spawns,
        "/dawdles": _dawdles,
        "/counts": _counts,
    }.items():
        app.router.add_get(path, handler)
    app[_HEARD] = Heard()
    quiet = LoopWatch(threshold=60.0)  # blocks of a busy machine would have spans, too
    setup_observability(app, logs=Logs(queue_size=100_000), loop_watch=quiet, observers=[app[_HEARD]])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"port {runner.addresses[0][1]}", file=sys.stderr, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


# Its clients


class Clients:
    """What they have sent: ``requests`` and ``spans`` that are to be told by the service."""

    def __init__(self, session: aiohttp.ClientSession, base: str, seed: int) -> None:
        self._session = session
        self._base = base
        self._random = Random(seed)
        self.sent: Counter[str] = Counter()
        self.kinds: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._plain, 50),
            (self._unmatched, 8),
            (self._fails, 5),
            (self._streams, 8),
            (self._talks, 4),
            (self._leaves, 4),
            (self._asks, 8),
            (self._spawns, 8),
            (self._malformed, 2),
        ]

    @property
    def requests(self) -> int:
        """Of those that are asked for something else in turn, both."""
        return self.sent.total() + self.sent["asks"]

    @property
    def spans(self) -> int:
        """One a request that reached the application, one an outbound call, one an operation."""
        return self.requests - self.sent["malformed"] + self.sent["asks"] + self.sent["spawns"]

    async def go_on(self, until: int) -> None:
        """One client: send requests until all have sent ``until``."""
        kinds, weights = zip(*self.kinds, strict=True)
        while self.requests < until:
            (send,) = self._random.choices(kinds, weights)
            await send()

    async def get(self, kind: str, path: str, status: int = 200) -> aiohttp.ClientResponse:
        self.sent[kind] += 1
        async with self._session.get(self._base + path) as response:
            await response.read()
            assert response.status == status, (path, response.status)
            return response

    async def _plain(self) -> None:
        await self.get("plain", f"/plain/{self._random.getrandbits(64)}")

    async def _unmatched(self) -> None:
        await self.get("unmatched", f"/{self._random.getrandbits(64):x}", 404)

    async def _fails(self) -> None:
        await self.get("fails", f"/fails/{self._random.getrandbits(64)}", 500)

    async def _streams(self) -> None:
        await self.get("streams", "/streams")

    async def _asks(self) -> None:
        await self.get("asks", "/asks")

    async def _spawns(self) -> None:
        await self.get("spawns", "/spawns")

    async def _talks(self) -> None:
        self.sent["talks"] += 1
        async with self._session.ws_connect(self._base + "/echoes") as ws:
            for _ in range(3):
                await ws.send_str("x")
                await ws.receive_str()

    async def _leaves(self) -> None:
        await self._write("leaves", b"GET /dawdles HTTP/1.1\r\nHost: x\r\n\r\n")

    async def _malformed(self) -> None:
        await self._write("malformed", b"GET / HTTP/1.1\r\nBad Header\r\n\r\n", answered=True)

    async def _write(self, kind: str, sent: bytes, *, answered: bool = False) -> None:
        host, port = self._base.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self.sent[kind] += 1
        writer.write(sent)
        await writer.drain()
        if answered:
            await reader.read()
        else:
            await asyncio.sleep(0.01)  # long enough to be read, not to be answered
        writer.close()


# The run


class LogReader:
    """Reads the service's log as fast as it comes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.access_lines = 0
        self._stdout: Any = process.stdout
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for line in self._stdout:
            self.access_lines += _ACCESS in line

    def join(self) -> None:
        self._thread.join(_SETTLED)


async def _alternate(receiver: Receiver) -> None:
    while True:
        receiver.status = 200
        await asyncio.sleep(_COLLECTOR_TURN)
        receiver.status = 503
        await asyncio.sleep(_COLLECTOR_TURN)


async def _progress(clients: Clients, wanted: int) -> AsyncIterator[dict[str, Any]]:
    """What the service counts, at each twentieth of the run."""
    for part in range(1, 21):
        await asyncio.gather(*(clients.go_on(wanted * part // 20) for _ in range(_CLIENTS)))
        yield await (await clients.get("counts", "/counts")).json()


async def _reached(receiver: Receiver) -> None:
    """The collector is up for good and has got what waited: the scrape's own span finds room in the queue."""
    receiver.status, before = 200, len(receiver.spans)
    deadline = monotonic() + _SETTLED
    # It runs in a thread of its own.
    while len(receiver.spans) == before and monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def _settled(clients: Clients) -> dict[str, Any]:
    """What it counts once all have ended but the request that asks."""
    deadline = monotonic() + _SETTLED
    while True:
        await asyncio.sleep(0.5)
        now: dict[str, Any] = await (await clients.get("counts", "/counts")).json()
        if now["finished"] == clients.requests - 1 or monotonic() > deadline:
            return now


def _sum_of(metrics: str, name: str) -> int:
    values = re.findall(rf"^{name}(?:{{[^\n]*}})? ([0-9.e+]+)", metrics, re.MULTILINE)
    return int(sum(map(float, values)))


async def _drive(base: str, wanted: int, receiver: Receiver) -> tuple[Clients, list[dict[str, Any]], str]:
    limit = aiohttp.TCPConnector(limit=_CLIENTS)
    async with aiohttp.ClientSession(connector=limit) as session:
        clients, rows, begun = Clients(session, base, seed=1), [], monotonic()
        turns = asyncio.create_task(_alternate(receiver))
        print("requests  seconds  RSS MiB  tasks  descriptors  exchanges  collector")
        async for row in _progress(clients, wanted):
            rows.append(row)
            collector = "up" if receiver.status == 200 else "down"
            print(
                f"{clients.requests:8}  {monotonic() - begun:7.0f}  {row['rss_mib']:7.1f}  {row['tasks']:5}  "
                f"{row['descriptors']:11}  {row['exchanges']:9}  {collector}",
                flush=True,
            )
        turns.cancel()
        await _reached(receiver)
        rows.append(await _settled(clients))
        async with session.get(f"{base}/metrics") as response:
            metrics = await response.text()
        clients.sent["metrics"] += 1
        return clients, rows, metrics


def _judge(
    clients: Clients, rows: list[dict[str, Any]], metrics: str, lines: int, received: int
) -> list[tuple[str, float, float, bool]]:
    """What is compared: name, found, expected, whether it is right."""
    asked = clients.requests - 1  # the scrape itself is told after it
    last, warm = rows[-1], rows[int(len(rows) * _WARM)]
    dropped = _sum_of(metrics, "aiohttp_observe_dropped_total")
    durations = _sum_of(metrics, "http_server_request_duration_seconds_count")
    exact = [
        ("access lines", lines, clients.requests),
        ("http_server_request_duration_seconds_count", durations, asked),
        ("observer's finished, all but one that asks", last["finished"], asked - 1),
        ("spans received and dropped", received + dropped, clients.spans),
        ("in flight, the one that asks", last["in_flight"], 1),
        ("background tasks left", last["background"], 0),
    ]
    bounded = [
        ("tasks", last["tasks"], warm["tasks"] + _CLIENTS),
        ("descriptors", last["descriptors"], warm["descriptors"] + _CLIENTS),
    ]
    if clients.requests >= _LONG_ENOUGH:
        bounded += [
            ("RSS, MiB", last["rss_mib"], warm["rss_mib"] * _MOST_GROWTH),
            ("exchanges", last["exchanges"], warm["exchanges"] + 2 * _CLIENTS),
        ]
    return [(name, found, wanted, found == wanted) for name, found, wanted in exact] + [
        (f"{name} (at most)", found, most, found <= most) for name, found, most in bounded
    ]


def soak(wanted: int) -> bool:
    """Run it and print what was found; whether all is right."""
    with receiving_in_thread() as receiver:
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
        command = [sys.executable, "-m", "tests.soak", "--serve"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:  # type: ignore[call-overload]
            base = f"http://127.0.0.1:{int(process.stderr.readline().split()[1])}"
            reader = LogReader(process)
            clients, rows, metrics = asyncio.run(_drive(base, wanted, receiver))
            process.stdin.close()
            reader.join()
        found = _judge(clients, rows, metrics, reader.access_lines, len(receiver.spans))
    print(f"\nsent: {dict(clients.sent)}; exit status of the service: {process.returncode}")
    for name, value, expected, right in found:
        print(f"{'ok ' if right else 'BAD'} {name}: {value:,.10g}, expected {expected:,.10g}")
    return process.returncode == 0 and all(right for *_, right in found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="default 1,000,000")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(_serve())
        return 0
    return 0 if soak(options.requests) else 1


if __name__ == "__main__":
    sys.exit(main())
