"""The page a scraper reads."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable
from typing import Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ..daemonthread import in_daemon_thread
from .pieces import InPieces

__all__ = ["Gate", "MetricsPage"]


class Gate(Protocol):
    """Who may look; returns the refusal, or ``None`` for those who may."""

    def check(self, request: web.Request) -> web.Response | None: ...


_MOST_FORMATS = 4
"""Formats that may be in the making at a time: a client may ask for any number of them, by version."""
_LONGEST_ACCEPT = 1000
_MOST_UNFINISHED = 16
"""Answers on their way to clients that are slow to read them; each keeps a whole page in memory."""
_SEND_SECONDS = 30.0
"""For an answer to reach its client."""
_PIECE = 32_768
_FULL = "503: too many clients haven't read their page to its end yet\n"
_RETRY_SECONDS = "10"
_NO_FILES = (
    "503: PROMETHEUS_MULTIPROC_DIR isn't there any more, or was emptied: "
    "make it anew, and restart the workers, which write to files that are gone\n"
)

_Encode = Callable[[Collector], bytes]


class MetricsPage:
    """Serves a registry in the format the scraper asks for, encoded off the loop, and sent as it is read."""

    def __init__(self, registry: CollectorRegistry, gate: Gate | None) -> None:
        self._registry = registry
        self._gate = gate
        self._at_work: dict[str, asyncio.Future[bytes | None]] = {}
        self._turn = threading.Lock()
        self._unfinished: set[_Page] = set()

    async def get(self, request: web.Request) -> web.Response:
        refusal = None if self._gate is None else self._gate.check(request)
        if refusal is not None:
            return refusal
        if self._is_full():
            return _refusal_of_more()
        encode, content_type = self._format_for(request.headers.get("Accept", ""))
        body = await asyncio.shield(self._encoding(encode, content_type))
        if body is None:
            return web.Response(status=503, text=_NO_FILES)
        if self._is_full():
            return _refusal_of_more()
        # aiohttp refuses a content_type argument that carries parameters.
        page = _Page(body, request.transport, self._unfinished)
        return web.Response(body=page, headers={"Content-Type": content_type})

    def _is_full(self) -> bool:
        return len(self._unfinished) >= _MOST_UNFINISHED

    def _format_for(self, accept: str) -> tuple[_Encode, str]:
        encode, content_type = _chosen(accept)
        if len(self._at_work) >= _MOST_FORMATS and content_type not in self._at_work:
            return choose_encoder("")
        return encode, content_type

    def _encoding(self, encode: _Encode, content_type: str) -> asyncio.Future[bytes | None]:
        """The one at work, if there is: a crowd of scrapers, gone ones included, costs no more than one."""
        at_work = self._at_work.get(content_type)
        if at_work is None or at_work.done():
            at_work = self._at_work[content_type] = in_daemon_thread(lambda: self._encoded(encode))
            at_work.add_done_callback(functools.partial(self._forget, content_type))
        return at_work

    def _encoded(self, encode: _Encode) -> bytes | None:
        """``None`` if the files of multiprocess mode are gone."""
        with self._turn:  # several threads at it would leave the loop's the fewer turns
            return None if _lacks_files() else encode(InPieces(self._scraped()))

    def _forget(self, content_type: str, done: asyncio.Future[bytes | None]) -> None:
        if self._at_work.get(content_type) is done:
            del self._at_work[content_type]

    def _scraped(self) -> CollectorRegistry:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self._registry
        merged = CollectorRegistry()
        MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
        return merged


class _Page(Payload):
    """A page on its way to one client: no more of it is buffered than that reads.

    It is one of the ``unfinished`` meanwhile; one that takes too long is broken off.
    """

    def __init__(self, text: bytes, transport: asyncio.Transport | None, unfinished: set[_Page]) -> None:
        super().__init__(text)
        self._size = len(text)
        self._transport = transport
        self._unfinished = unfinished

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        text: bytes = self._value
        return text.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        deadline = asyncio.get_running_loop().call_later(_SEND_SECONDS, self._break_off)
        self._unfinished.add(self)
        try:
            for begin in range(0, len(self._value), _PIECE):
                await writer.write(self._value[begin : begin + _PIECE])
        finally:
            deadline.cancel()
            self._unfinished.discard(self)
            self._value = b""  # a connection remembers its last answer

    def _break_off(self) -> None:
        """Writing to it raises ``ConnectionResetError`` from now on, as if the client had left."""
        if self._transport is not None:
            self._transport.abort()


def _refusal_of_more() -> web.Response:
    return web.Response(status=503, text=_FULL, headers={"Retry-After": _RETRY_SECONDS})


def _lacks_files() -> bool:
    """Whether there is nothing to add up, though this process has metrics of its own."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    try:
        return directory is not None and not any(name.endswith(".db") for name in os.listdir(directory))
    except OSError:
        return True


def _chosen(accept: str) -> tuple[_Encode, str]:
    if len(accept) > _LONGEST_ACCEPT:  # anybody may say it
        accept = accept[:_LONGEST_ACCEPT].rpartition(",")[0]
    try:
        return choose_encoder(accept)
    except Exception:  # prometheus_client trips over a version that isn't a number
        return choose_encoder("")
