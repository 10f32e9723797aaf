"""Profiles, for as long as somebody waits for them."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..profile import UnderWayError, end_profile
from .access import ASK_FROM_HERE, is_same_site
from .console import Console
from .query import check_known, seconds_of

__all__ = ["Profiling"]

_LOOK_SECONDS = 0.2
"""Seconds until it is noticed that nobody waits any more."""


class Profiling:
    """Serves ``/_tasks/profile``.

    One at a time is taken, so that it ends when its client has left, and with the service.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._closing = False

    async def close(self, app: web.Application) -> None:
        """End the one that is being taken; a signal handler of the application's shutdown."""
        self._closing = True

    async def serve(self, request: web.Request) -> web.Response:
        """Raises ``ValueError`` for a parameter that can't be."""
        check_known(request.query, ["seconds"])
        seconds = seconds_of(request.query)
        if not is_same_site(request):
            return web.json_response({"error": ASK_FROM_HERE}, status=403)
        try:
            return web.Response(text=await self._profile(request, seconds))
        except UnderWayError as exc:
            return web.json_response({"error": str(exc)}, status=409)

    async def _profile(self, request: web.Request, seconds: float) -> str:
        taking = asyncio.ensure_future(self._console.profile(seconds))
        try:
            while not (await asyncio.wait([taking], timeout=_LOOK_SECONDS))[0]:
                if self._closing or _has_left(request):
                    end_profile()
            return taking.result()
        finally:
            if taking.cancel():  # it isn't done: the handler was cancelled
                end_profile()


def _has_left(request: web.Request) -> bool:
    """Its handler isn't cancelled unless the service asks aiohttp for it."""
    return request.transport is None or request.transport.is_closing()
