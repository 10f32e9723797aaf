"""How many messages a websocket carries.

aiohttp has no signal for messages.  So the methods of the one socket are exchanged while it
is served; no class is touched, and what `uncount` takes away are attributes of the object.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

from .exchange import Websocket

__all__ = ["count_messages", "uncount"]

_MESSAGES = (WSMsgType.TEXT, WSMsgType.BINARY)
_SENDING = ("send_str", "send_bytes", "send_frame")

Send = Callable[..., Awaitable[None]]


def count_messages(socket: web.WebSocketResponse) -> Websocket:
    """Count what ``socket`` receives and sends from now on; aiohttp's own pings and pongs are no messages."""
    counts = Websocket()
    receive = socket.receive

    @wraps(receive)
    async def counted(timeout: float | None = None) -> WSMessage:
        message = await receive(timeout)
        if message.type in _MESSAGES:
            counts.received += 1
        return message

    socket.receive = counted  # type: ignore[method-assign]
    for name in _SENDING:
        setattr(socket, name, _counted(getattr(socket, name), counts))
    return counts


def _counted(send: Send, counts: Websocket) -> Send:
    @wraps(send)
    async def counted(*args: Any, **options: Any) -> None:
        await send(*args, **options)
        counts.sent += 1

    return counted


def uncount(socket: Any) -> None:
    """Leave ``socket`` as it was: what counts would keep it alive until the garbage collector comes."""
    for name in ("receive", *_SENDING):
        vars(socket).pop(name, None)
