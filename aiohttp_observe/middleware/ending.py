"""How a request ended: the status, error and size that are true once its last byte is sent."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web, web_protocol

from ..exchange import CLIENT_DISCONNECTED, Exchange
from ..tasks import coroutine_of
from .websockets import note_close

__all__ = [
    "handles",
    "has_begun",
    "is_cancelled",
    "is_complete",
    "is_cut_short",
    "is_disconnected",
    "is_own",
    "is_small",
    "result_of",
    "size_as_sent",
    "tell_end",
]

_HANDLING = web_protocol.RequestHandler._handle_request.__code__
"""What a request's own task runs, from its routing to its last byte."""

_SWITCHING_PROTOCOLS = 101
_CLIENT_CLOSED_REQUEST = 499
_SMALL = 65_536
"""Bytes that a transport takes without having anybody wait."""
_LEFT = ("CancelledError", "ConnectionResetError", "ClientConnectionResetError", "BrokenPipeError")
"""How a websocket's handler hears that its client has left."""


def tell_end(
    exchange: Exchange, response: Any, *, gone: bool, error: str | None, failure: str | None
) -> None:
    """Fill in status, error and response size.

    ``response`` is what was sent, if it is known.  ``gone``: the client left before it had all
    of it.  ``error`` names what the handler raised, ``failure`` what the request's task did.
    """
    if response is not None:
        if failure is None or has_begun(response):
            exchange.status = getattr(response, "status", exchange.status)
        else:
            exchange.status = None
    status = exchange.status
    if status == _SWITCHING_PROTOCOLS:  # a websocket's client leaves as it likes
        if exchange.websocket is not None:
            note_close(exchange.websocket, response)
        what = failure or error
        exchange.error_type = None if gone and what in _LEFT else what
    elif gone:
        exchange.status, exchange.error_type = _CLIENT_CLOSED_REQUEST, CLIENT_DISCONNECTED
    elif failure is not None:
        exchange.error_type = failure
    elif status is not None and status >= 500:
        exchange.error_type = _being_handled() or error or str(status)
    if response is not None:
        exchange.response_size = _body_size(exchange, response, gone or failure is not None)


def _being_handled() -> str | None:
    """What aiohttp answers with a 500 or 504, known while it tells the access logger.

    That is what left the outermost middleware, which may be another than ours.  The loop itself
    may have been started where some other exception is being handled.
    """
    exc = sys.exc_info()[1]
    if exc is None or isinstance(exc, web.HTTPException):
        return None
    caught = exc.__traceback__
    return type(exc).__qualname__ if caught is not None and caught.tb_frame.f_code is _HANDLING else None


def is_own(task: asyncio.Task[Any]) -> bool:
    """Whether ``task`` is one that aiohttp makes for a request."""
    return getattr(coroutine_of(task), "cr_code", None) is _HANDLING


def handles(task: asyncio.Task[Any], request: web.BaseRequest) -> bool:
    """Whether ``task``, which runs, is the one that aiohttp has made for ``request``.

    The connection's task awaits it, or, as it is started eagerly, is about to.
    """
    connection = request.task
    awaited = getattr(connection, "_fut_waiter", None)
    return awaited is task or (connection is not None and awaited is None and is_own(task))


def has_begun(response: Any) -> bool:
    """Whether the client has been sent some of ``response``, and so its status."""
    return response is not None and _bytes_sent(response) > 0


def is_disconnected(request: web.BaseRequest) -> bool:
    """Whether its client has left, or is being left."""
    transport = request.transport
    return transport is None or transport.is_closing()


def is_complete(response: Any) -> bool:
    """Whether all of ``response`` was sent within its handler: a stream or websocket that was ended."""
    return getattr(response, "_eof_sent", None) is True


def is_cut_short(response: Any) -> bool:
    """Whether aiohttp, which is done with ``response``, couldn't send all of it."""
    return getattr(response, "_eof_sent", None) is False


def result_of(task: asyncio.Task[Any]) -> tuple[bool, str | None]:
    """Whether a request's client left before its task ended, and what that raised.

    Its result is aiohttp's internal ``(response, reset)``, read defensively.
    """
    if task.cancelled():
        return False, "CancelledError"
    exc = task.exception()
    if exc is not None:
        return False, type(exc).__qualname__
    result = task.result()
    return isinstance(result, tuple) and len(result) == 2 and bool(result[1]), None


def _body_size(exchange: Exchange, response: Any, cut_short: bool) -> int:
    """Bytes of the body that were sent; a chunked one counts with its framing.

    aiohttp counts the response's head too, and leaves out what the kernel sent from a file.
    """
    if exchange.method == "HEAD" or exchange.status in (204, 304):
        return 0
    # Where its property looks, too, in three times as long.
    length = response.headers.get(hdrs.CONTENT_LENGTH)
    declared = None if length is None else int(length)
    if declared is not None and declared >= 0 and not cut_short:
        return declared
    sent = _bytes_sent(response)
    head = sum(
        len(f"{name}: {value}\r\n".encode("utf-8", "ignore")) for name, value in response.headers.items()
    )
    body = max(sent - head - len(f"HTTP/1.1 {response.status} {response.reason}\r\n\r\n"), 0)
    return body if declared is None else max(min(declared, body), 0)


def _bytes_sent(response: Any) -> int:
    sent: int = getattr(response, "body_length", 0)
    if not sent:  # it was never ended: its writer knows
        sent = getattr(getattr(response, "_payload_writer", None), "output_size", 0)
    return sent


def size_as_sent(request: web.Request, received: int) -> int:
    """The size of the body on the wire: aiohttp counts what it has unpacked."""
    declared = request.content_length
    unpacked = hdrs.CONTENT_ENCODING in request.headers and request.content.is_eof()
    return declared if unpacked and declared is not None else received


def is_small(response: Any) -> bool:
    """Whether ``response`` is sent without waiting for anybody, or running code of the service."""
    body = getattr(response, "_body", response)  # a stream, file or websocket has none; None was raised
    return body is None or (type(body) is bytes and len(body) < _SMALL)


def is_cancelled(task: asyncio.Task[Any]) -> bool:
    """Whether ``task`` was cancelled and makes nothing of it; only known from Python 3.11."""
    cancelling: Callable[[], int] = getattr(task, "cancelling", int)
    return cancelling() > 0
