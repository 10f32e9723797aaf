"""A real service on a real socket, and an observer that tests can wait for."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from aiohttp_observe import Exchange

__all__ = ["PATIENCE", "ROOT", "Answer", "Service", "Witness", "free_port", "run_python", "serving", "until"]

ROOT = Path(__file__).parent.parent
PATIENCE = 20.0
"""Seconds to wait for what comes at once on a machine that isn't busy."""


class Witness:
    """An observer that keeps the exchanges it hears of, in the order in which they ended."""

    def __init__(self) -> None:
        self.begun: list[Exchange] = []
        self._ended: asyncio.Queue[Exchange] = asyncio.Queue()

    def started(self, exchange: Exchange) -> None:
        self.begun.append(exchange)

    def finished(self, exchange: Exchange) -> None:
        self._ended.put_nowait(exchange)

    async def next(self) -> Exchange:
        """The next exchange to have ended; all pillars have heard of it too."""
        return await asyncio.wait_for(self._ended.get(), PATIENCE)


@dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: Any
    text: str

    @property
    def request_id(self) -> str:
        """The one ``X-Request-ID`` of the response."""
        (value,) = self.headers.getall("X-Request-ID")
        assert isinstance(value, str)
        return value


class Service:
    """An application being served on 127.0.0.1, with a session to call it."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self.port = port
        self.session = session

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def get(self, path: str, **kwargs: Any) -> Answer:
        return await self.request("GET", path, **kwargs)

    async def request(self, method: str, path: str, **kwargs: Any) -> Answer:
        async with self.session.request(method, self.url(path), **kwargs) as response:
            return Answer(response.status, response.headers.copy(), await response.text())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange_bytes(self, sent: bytes) -> bytes:
        """Send raw bytes; what comes back until the server closes the connection."""
        reader, writer = await self.connect()
        writer.write(sent)
        received = await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        await writer.wait_closed()
        return received


@asynccontextmanager
async def serving(app: web.Application, *, host: str = "127.0.0.1", **kwargs: Any) -> AsyncIterator[Service]:
    """Serve ``app`` until the block is left; ``kwargs`` are those of `web.AppRunner`."""
    runner = web.AppRunner(app, **kwargs)
    try:
        await runner.setup()
        await web.TCPSite(runner, host, 0).start()
        async with aiohttp.ClientSession() as session:
            yield Service(runner.addresses[0][1], session)
    finally:
        await runner.cleanup()


async def until(true: Callable[[], object], what: str) -> None:
    """Wait for something that has no event of its own."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not true():
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.005)


def free_port() -> int:
    """One that nothing listens on, held so that the system gives it to nobody else but who asks for it."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, that may share it so
    port: int = held.getsockname()[1]
    _held.append(held.detach())
    if len(_held) > _MOST_HELD:
        os.close(_held.popleft())
    return port


_held: deque[int] = deque()
_MOST_HELD = 100
"""More than any test has use for, and far from what a process may have open."""


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a Python of its own, where it may do to the process what it likes."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )
