"""Bytes sent as they are, past every client that would put them right."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from tests.service import PATIENCE

__all__ = ["Reply", "ask", "request"]


@dataclass(frozen=True)
class Reply:
    """All that came back; ``status`` is 0 if that is no response."""

    received: bytes

    @property
    def status(self) -> int:
        first = self.received.partition(b"\r\n")[0].split(b" ")
        return int(first[1]) if first[0].startswith(b"HTTP/") else 0

    @property
    def body(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[2]


def request(
    target: str, *headers: str, method: str = "GET", host: str | None = "127.0.0.1", body: str = ""
) -> bytes:
    """A request as text; what isn't UTF-8 in it is written as lone surrogates."""
    lines = [f"{method} {target} HTTP/1.1"]
    if host is not None:
        lines.append(f"Host: {host}")
    sent = body.encode("utf-8", "surrogateescape")
    if sent:
        lines.append(f"Content-Length: {len(sent)}")
    head = "\r\n".join([*lines, *headers, "Connection: close", "", ""])
    return head.encode("utf-8", "surrogateescape") + sent


async def ask(door: int | Path, sent: bytes) -> Reply:
    """Send bytes to a port or a Unix socket; what comes back until the server closes."""
    if isinstance(door, Path):
        reader, writer = await asyncio.open_unix_connection(door)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", door)
    try:
        writer.write(sent)
        return Reply(await asyncio.wait_for(reader.read(), PATIENCE))
    finally:
        writer.close()
