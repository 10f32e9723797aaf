"""The live page's feed: server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from time import perf_counter
from typing import Any

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from .console import Console
from .query import chosen

__all__ = ["Streams"]

_INTERVAL = 2.0
_SHARE = 0.05
"""Seconds between pictures, and the share of the time that making them may take."""
_LIMIT = 200
"""Tasks in a picture unless more are asked for."""
_MOST_STREAMS = 8
_SEND_SECONDS = 30.0


class Streams:
    """Serves ``/_tasks/stream``, to a few clients at a time."""

    def __init__(self, console: Console, headers: Mapping[str, str], *, may_cancel: bool) -> None:
        self._console = console
        self._headers = headers
        self._may_cancel = may_cancel
        self._open = 0
        self._closing = asyncio.Event()

    async def close(self, app: web.Application) -> None:
        """End all streams; a signal handler of the application's shutdown."""
        self._closing.set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """``history`` once, then ``picture`` every two seconds."""
        try:
            filters = {"limit": _LIMIT, **chosen(request.query)}
        except ValueError as exc:
            return web.json_response({"error": str(exc)}, status=400)
        if self._open >= _MOST_STREAMS:
            return web.json_response({"error": "too many pages are open"}, status=503)
        self._open += 1
        try:
            response = EventSourceResponse()
            response.headers.update(self._headers)
            await response.prepare(request)
            async with response:
                with suppress(ConnectionError, asyncio.TimeoutError):
                    await self._feed(response, filters)
            return response
        finally:
            self._open -= 1

    async def _feed(self, response: EventSourceResponse, filters: Mapping[str, Any]) -> None:
        await _send(response, json.dumps(self._console.history()), "history")
        while not self._closing.is_set():
            begun = perf_counter()
            try:
                text = await self._console.picture(allow_cancel=self._may_cancel, **filters)
            except (TypeError, ValueError) as exc:
                await _send(response, json.dumps({"error": str(exc)}), "refused")
                return
            took = perf_counter() - begun
            await _send(response, text, "picture")
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), max(_INTERVAL, took / _SHARE))


async def _send(response: EventSourceResponse, text: str, event: str) -> None:
    await asyncio.wait_for(response.send(text, event=event), _SEND_SECONDS)
