"""The page a scraper reads."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ..aside import aside
from .pieces import InPieces

__all__ = ["Gate", "MetricsPage"]


class Gate(Protocol):
    """Who may look; returns the refusal, or ``None`` for those who may."""

    def check(self, request: web.Request) -> web.Response | None: ...


_FORMATS = 4
"""Encoded at a time.  A client may ask for any number of them, by version."""

_NO_FILES = (
    "503: PROMETHEUS_MULTIPROC_DIR isn't there any more, or was emptied: "
    "make it anew, and restart the workers, which write to files that are gone\n"
)

_Encode = Callable[[Collector], bytes]


class MetricsPage:
    """Serves a registry in the format the scraper asks for, encoded off the loop."""

    def __init__(self, registry: CollectorRegistry, gate: Gate | None) -> None:
        self._registry = registry
        self._gate = gate
        self._at_work: dict[str, asyncio.Future[bytes]] = {}

    async def get(self, request: web.Request) -> web.Response:
        refusal = None if self._gate is None else self._gate.check(request)
        if refusal is not None:
            return refusal
        if _lacks_files():
            return web.Response(status=503, text=_NO_FILES)
        encode, content_type = self._format_for(request.headers.get("Accept", ""))
        body = await asyncio.shield(self._encoding(encode, content_type))
        # aiohttp refuses a content_type argument that carries parameters.
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _format_for(self, accept: str) -> tuple[_Encode, str]:
        encode, content_type = _chosen(accept)
        if len(self._at_work) >= _FORMATS and content_type not in self._at_work:
            return choose_encoder("")
        return encode, content_type

    def _encoding(self, encode: _Encode, content_type: str) -> asyncio.Future[bytes]:
        """The one at work, if there is: a crowd of scrapers, gone ones included, costs no more than one."""
        at_work = self._at_work.get(content_type)
        if at_work is None or at_work.done():
            at_work = self._at_work[content_type] = aside(lambda: encode(InPieces(self._scraped())))
            at_work.add_done_callback(functools.partial(self._forget, content_type))
        return at_work

    def _forget(self, content_type: str, done: asyncio.Future[bytes]) -> None:
        if self._at_work.get(content_type) is done:
            del self._at_work[content_type]

    def _scraped(self) -> CollectorRegistry:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self._registry
        merged = CollectorRegistry()
        MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
        return merged


def _lacks_files() -> bool:
    """Whether there is nothing to add up, though this process has metrics of its own."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    try:
        return directory is not None and not any(name.endswith(".db") for name in os.listdir(directory))
    except OSError:
        return True


def _chosen(accept: str) -> tuple[_Encode, str]:
    try:
        return choose_encoder(accept)
    except Exception:  # prometheus_client trips over a version that isn't a number
        return choose_encoder("")
