"""How many messages a websocket carries.

aiohttp has no signal for messages.  So the methods of the one socket are exchanged while it
is served; no class is touched, and what `note_close` takes away are attributes of the object.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from ..exchange import Websocket

__all__ = ["count_messages", "note_close"]

_MESSAGES = (WSMsgType.TEXT, WSMsgType.BINARY)
# RFC 6455, 7.1.5; a handler that is cancelled, or raises, leaves its socket without a code.
_NO_STATUS = 1005
_NO_CLOSE_FRAME = 1006

Send = Callable[..., Awaitable[None]]


def count_messages(socket: web.WebSocketResponse) -> Websocket:
    """Count what ``socket`` receives and sends from now on; pings and pongs are no messages."""
    counts = Websocket()
    receive, close = socket.receive, socket.close

    @wraps(receive)
    async def counted(*args: Any, **options: Any) -> WSMessage:
        message = await receive(*args, **options)
        if message.type in _MESSAGES:
            counts.received += 1
        return message

    @wraps(close)
    async def closed(*args: Any, **options: Any) -> bool:  # by position only in a class of the service's
        if counts.close_code is None and socket.close_code is None:  # else somebody was first
            counts.close_code = options.get("code", args[0] if args else WSCloseCode.OK)
        return await close(*args, **options)

    socket.receive, socket.close = counted, closed  # type: ignore[method-assign]
    for name, counting in _SENDING.items():
        setattr(socket, name, counting(getattr(socket, name), counts))
    return counts


def note_close(counts: Websocket, socket: Any) -> None:
    """How ``socket`` was closed at last; leave it as it was.

    What counts would keep it alive until the garbage collector comes.
    """
    code = getattr(socket, "close_code", None)
    if code in (None, WSCloseCode.OK) and counts.close_code is not None:
        code = counts.close_code  # aiohttp forgets it if somebody was waiting to receive
    counts.close_code = _NO_CLOSE_FRAME if code is None else int(code) or _NO_STATUS
    for name in ("receive", "close", *_SENDING):
        vars(socket).pop(name, None)


def _counted(send: Send, counts: Websocket) -> Send:
    @wraps(send)
    async def counted(*args: Any, **options: Any) -> None:
        await send(*args, **options)
        counts.sent += 1

    return counted


def _frames_counted(send: Send, counts: Websocket) -> Send:
    """Count the frames that begin a message."""

    @wraps(send)
    async def counted(message: bytes, opcode: WSMsgType, *args: Any, **options: Any) -> None:
        await send(message, opcode, *args, **options)
        counts.sent += opcode in _MESSAGES

    return counted


_SENDING: dict[str, Callable[[Send, Websocket], Send]] = {
    "send_str": _counted,
    "send_bytes": _counted,
    "send_frame": _frames_counted,
}
