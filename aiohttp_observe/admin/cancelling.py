"""Cancelling tasks from the console: off unless allowed, never by accident, always logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import hdrs, web

from ..records import log
from ..texts import counted
from .access import is_same_site
from .console import Console
from .problem import problem
from .query import FILTERS, chosen

__all__ = ["Cancelling"]

_MOST_BYTES = 1000
logger = logging.getLogger("aiohttp_observe.admin")


class Cancelling:
    """Cancels one task, or all that pass the filters.

    The body says how many the user has agreed to, ``{"confirm": n}``; if that isn't how many
    there are, nothing is done and the answer is 409 with the true number.  Only JSON is taken,
    which no foreign page can send without asking first.  Both raise ``ValueError`` for a parameter
    that can't be.
    """

    def __init__(self, console: Console, *, allowed: bool) -> None:
        self._console = console
        self._allowed = allowed

    async def one(self, request: web.Request) -> web.Response:
        return await self._cancel(request, {"id": int(request.match_info["id"])})

    async def many(self, request: web.Request) -> web.Response:
        filters = {name: value for name, value in chosen(request.query).items() if name in FILTERS}
        if not filters:
            return problem(400, f"say which: one or more of {', '.join(FILTERS)}")
        return await self._cancel(request, filters)

    async def _cancel(self, request: web.Request, filters: Mapping[str, Any]) -> web.Response:
        if not self._allowed:
            return problem(403, "cancelling is off: it takes Admin(allow_cancel=True) and a token")
        if not is_same_site(request) or request.content_type != "application/json":
            return problem(403, "cancel from the page itself, or with a JSON body of your own")
        confirmed = await _confirmed(request)
        if confirmed is None:
            return problem(400, 'the body takes {"confirm": number of tasks}')
        matching = await self._console.matching(**filters)
        if len(matching) != confirmed:
            return problem(409, f"{len(matching)} tasks match now", matches=len(matching))
        cancelled = self._console.cancel(matching)
        _log(request, filters, [task.get_name() for task in matching])
        return web.json_response({"cancelled": cancelled})


async def _confirmed(request: web.Request) -> int | None:
    if request.content_length is None or request.content_length > _MOST_BYTES:
        return None
    if hdrs.CONTENT_ENCODING in request.headers:  # it would unpack to more
        return None
    try:
        number = json.loads(await request.text())["confirm"]
    except (LookupError, RecursionError, TypeError, ValueError):
        return None
    return number if type(number) is int and number > 0 else None


def _log(request: web.Request, filters: Mapping[str, Any], names: list[str]) -> None:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    who = peer[0] if isinstance(peer, tuple) else "a Unix socket"
    log(
        logger,
        logging.WARNING,
        "%s cancelled from the task console by %s: %s",
        counted(len(names), "task"),
        who,
        ", ".join(names[:20]),
        fields={"cancelled_by": who, "filters": dict(filters), "cancelled": names[:20]},
    )
