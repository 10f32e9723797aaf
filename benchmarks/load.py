"""A small HTTP load generator over keep-alive connections."""

from __future__ import annotations

import asyncio
from time import perf_counter

__all__ = ["closed_loop"]


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, deadline: float) -> None:
        self._request = request
        self._deadline = deadline
        self._size = 0
        self._received = 0
        self.done = 0
        self.latencies: list[float] = []
        self._sent = 0.0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._size:  # every answer is as long as the first
            head, _, _ = data.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self._size = len(head) + 4 + length
        self._received += len(data)
        if self._received < self._size:
            return
        self._received = 0
        self.done += 1
        now = perf_counter()
        self.latencies.append(now - self._sent)
        if now < self._deadline:
            self._send()
        else:
            self._transport.close()
            self.finished.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_exception(exc or ConnectionError("the server closed the connection"))


async def closed_loop(port: int, path: str, connections: int, seconds: float) -> list[float]:
    """Seconds each request took, every connection sending the next as soon as it's answered."""
    loop = asyncio.get_running_loop()
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: bench\r\n\r\n".encode()
    deadline = perf_counter() + seconds
    made = [
        (await loop.create_connection(lambda: _Connection(request, deadline), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(connection.finished for connection in made))
    return [latency for connection in made for latency in connection.latencies]
