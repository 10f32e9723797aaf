"""HTTP and websocket load over keep-alive connections, from one core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import cycle
from time import perf_counter

__all__ = ["Traffic", "closed_loop", "open_loop"]

_FRAME = b"\x81\x85\x00\x00\x00\x00hello"
_ECHO = b"\x81\x05hello"
_PATIENCE = 30.0


class Traffic:
    """What the connections send: requests for ``path``, or messages after a websocket's handshake.

    A path with ``{}`` in it is another one each time.
    """

    def __init__(self, path: str, *, websocket: bool = False) -> None:
        self.handshake = _request(path, _UPGRADE) if websocket else None
        paths = [path.format(number) for number in range(500)] if "{}" in path else [path]
        self._messages = [_FRAME] if websocket else [_request(each) for each in paths]

    def messages(self) -> Iterator[bytes]:
        """Without end."""
        return cycle(self._messages)


_UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def _request(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n{headers}\r\n".encode()


class _Connection(asyncio.Protocol):
    """Sends one message at a time, notes how long its answer took, and tells ``answered``."""

    def __init__(self, traffic: Traffic) -> None:
        self._messages = traffic.messages()
        self._wanted = self._received = 0
        self._asked = 0.0
        self.latencies: list[float] = []
        self.answered: Callable[[_Connection], None] = lambda connection: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def shake_hands(self, handshake: bytes) -> None:
        done = asyncio.get_running_loop().create_future()
        self.answered = done.set_result
        self._send(handshake)
        await done
        self.latencies.clear()

    def ask(self, asked: float) -> None:
        """Send the next message; its answer counts from ``asked``."""
        self._asked = asked
        self._send(next(self._messages))

    def close(self) -> None:
        self._transport.close()

    def _send(self, message: bytes) -> None:
        self._wanted = self._received = 0
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        if not self._received:  # the head of an answer comes in one piece
            self._wanted = _length(data)
        self._received += len(data)
        if self._received >= self._wanted:
            self.latencies.append(perf_counter() - self._asked)
            self.answered(self)


def _length(received: bytes) -> int:
    """Bytes of the whole answer that begins so; 0 if that isn't known yet."""
    if received.startswith(_ECHO[:1]):
        return len(_ECHO)
    head, end, _ = received.partition(b"\r\n\r\n")
    if not end:
        return 0
    _, found, rest = head.lower().partition(b"content-length: ")
    return len(head) + 4 + (int(rest.partition(b"\r\n")[0]) if found else 0)


async def _connect(port: int, traffic: Traffic, number: int) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: _Connection(traffic), "127.0.0.1", port))[1]
        for _ in range(number)
    ]
    if traffic.handshake is not None:
        for connection in made:
            await connection.shake_hands(traffic.handshake)
    return made


def _close(made: list[_Connection]) -> list[float]:
    for connection in made:
        connection.close()
    return [latency for connection in made for latency in connection.latencies]


async def closed_loop(port: int, traffic: Traffic, connections: int, seconds: float) -> list[float]:
    """Seconds each answer took, every connection asking again as soon as it's answered.

    It never sleeps: waking it would be the server's work, and more so the slower that is.
    """
    made = await _connect(port, traffic, connections)
    loop, deadline, ended = asyncio.get_running_loop(), perf_counter() + seconds, asyncio.Semaphore(0)

    def stay_awake() -> None:
        if perf_counter() < deadline:
            loop.call_soon(stay_awake)

    def go_on(connection: _Connection) -> None:
        now = perf_counter()
        if now < deadline:
            connection.ask(now)
        else:
            ended.release()

    stay_awake()
    for connection in made:
        connection.answered = go_on
        go_on(connection)
    for _ in made:
        await asyncio.wait_for(ended.acquire(), seconds + _PATIENCE)
    return _close(made)


async def open_loop(
    port: int, traffic: Traffic, connections: int, seconds: float, rate: float
) -> list[float]:
    """Seconds each answer took, ``rate`` requests a second being sent whether answered or not.

    A request that finds no connection free waits for one, and that counts.
    """
    made = await _connect(port, traffic, connections)
    idle: asyncio.Queue[_Connection] = asyncio.Queue()
    for connection in made:
        connection.answered = idle.put_nowait
        idle.put_nowait(connection)
    begun = perf_counter()
    for number in range(int(rate * seconds)):
        wait = begun + number / rate - perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        asked = perf_counter()
        connection = await asyncio.wait_for(idle.get(), _PATIENCE) if idle.empty() else idle.get_nowait()
        connection.ask(asked)
    for _ in made:
        await asyncio.wait_for(idle.get(), _PATIENCE)
    return _close(made)
