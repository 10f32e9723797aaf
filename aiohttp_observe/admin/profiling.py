"""Profiles, for as long as somebody waits for them."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..profile import NoProfileError, end_profile
from .access import ASK_FROM_HERE, is_disconnected, is_same_site
from .console import Console
from .problem import problem
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
            return problem(403, ASK_FROM_HERE)
        try:
            return web.Response(text=await self._profile(request, seconds))
        except NoProfileError as exc:
            return problem(409, str(exc))

    async def _profile(self, request: web.Request, seconds: float) -> str:
        taking = asyncio.ensure_future(self._console.profile(seconds))
        try:
            while not (await asyncio.wait([taking], timeout=_LOOK_SECONDS))[0]:
                if self._closing or is_disconnected(request):
                    end_profile()
            return taking.result()
        finally:
            if taking.cancel():  # it isn't done: the handler was cancelled
                end_profile()
