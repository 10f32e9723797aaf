"""The live page's feed: server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from time import perf_counter
from typing import Any

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from .access import is_disconnected
from .console import Console
from .problem import problem
from .query import chosen

__all__ = ["Streams"]

_INTERVAL = 2.0
"""Seconds between pictures."""
_SHARE = 0.05
"""Of the time that making pictures may take, for all pages together."""
_LIMIT = 200
"""Tasks in a picture unless more are asked for."""
_MOST_STREAMS = 8
_SEND_SECONDS = 30.0
_LOOK_SECONDS = 0.5
"""Seconds until it is noticed that a client has left."""


class Streams:
    """Serves ``/_tasks/stream``, to a few clients at a time; those with the same filters share pictures."""

    def __init__(self, console: Console, headers: Mapping[str, str], *, may_cancel: bool) -> None:
        self._console = console
        self._headers = headers
        self._may_cancel = may_cancel
        self._open = 0
        self._pictures: dict[tuple[tuple[str, Any], ...], _SharedPicture] = {}
        self._closing = asyncio.Event()

    async def close(self, app: web.Application) -> None:
        """End all streams; a signal handler of the application's shutdown."""
        self._closing.set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """``history`` once, then ``picture`` every two seconds.

        Raises ``ValueError`` for a parameter that can't be; ``refused`` says so of one that only
        shows itself in making a picture.
        """
        filters = {"limit": _LIMIT, **chosen(request.query)}
        if self._open >= _MOST_STREAMS:
            return problem(503, "too many pages are open")
        self._open += 1
        try:
            response = EventSourceResponse()
            response.headers.update(self._headers)
            await response.prepare(request)
            async with response:
                with suppress(ConnectionError, asyncio.TimeoutError):
                    await self._feed(request, response, filters)
            return response
        finally:
            self._open -= 1

    async def _feed(
        self, request: web.Request, response: EventSourceResponse, filters: Mapping[str, Any]
    ) -> None:
        await _send(response, json.dumps(self._console.history()), "history")
        show = self._enter(filters)
        try:
            while not self._closing.is_set():
                try:
                    text = await show.picture()
                except (TypeError, ValueError) as exc:
                    await _send(response, json.dumps({"error": str(exc)}), "refused")
                    return
                await _send(response, text, "picture")
                await self._pause(request, show.due(len(self._pictures)))
        finally:
            self._leave(show)

    async def _pause(self, request: web.Request, seconds: float) -> None:
        """Wait, unless the console or the client closes: a page that filters anew opens another stream."""
        until = perf_counter() + seconds
        while (left := until - perf_counter()) > 0 and not self._closing.is_set():
            if is_disconnected(request):
                raise ConnectionResetError
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), min(left, _LOOK_SECONDS))

    def _enter(self, filters: Mapping[str, Any]) -> _SharedPicture:
        key = tuple(sorted(filters.items()))
        show = self._pictures.get(key)
        if show is None:

            async def make() -> str:
                return await self._console.picture(allow_cancel=self._may_cancel, **filters)

            show = self._pictures[key] = _SharedPicture(key, make)
        show.viewers += 1
        return show

    def _leave(self, show: _SharedPicture) -> None:
        show.viewers -= 1
        if not show.viewers:
            del self._pictures[show.key]


class _SharedPicture:
    """The pictures with some filters: ``make`` makes one, which all that ask meanwhile or soon after get."""

    def __init__(self, key: tuple[tuple[str, Any], ...], make: Callable[[], Awaitable[str]]) -> None:
        self.key = key
        self.viewers = 0
        self._make = make
        self._making = asyncio.Lock()
        self._text = ""
        self._made = float("-inf")
        self._took = 0.0

    async def picture(self) -> str:
        """The picture of the moment.  Raises what ``make`` raises."""
        async with self._making:
            begun = perf_counter()
            if begun - self._made >= self._pause(1) / 2:
                self._text = await self._make()
                self._made = perf_counter()
                self._took = self._made - begun
            return self._text

    def due(self, shows: int) -> float:
        """Seconds until the next one may be made, as one of so many shows."""
        return max(self._made + self._pause(shows) - perf_counter(), _INTERVAL / 2)

    def _pause(self, shows: int) -> float:
        return max(_INTERVAL, shows * self._took / _SHARE)


async def _send(response: EventSourceResponse, text: str, event: str) -> None:
    await asyncio.wait_for(response.send(text, event=event), _SEND_SECONDS)
