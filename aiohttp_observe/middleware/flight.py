"""A request on its way."""

from __future__ import annotations

import asyncio
import re
from contextvars import Context, copy_context
from time import perf_counter
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from multidict import istr

from ..exchange import METHODS, OTHER_METHOD, RANDOM, UNMATCHED, Exchange
from ..tasks import suspended_for
from ..texts import valid
from .ending import has_begun, is_complete, is_disconnected, is_own, result_of

if TYPE_CHECKING:
    from .recorder import Recorder

__all__ = ["REQUEST_ID_HEADER", "Flight"]

REQUEST_ID_HEADER = istr("X-Request-ID")
_well_formed_id = re.compile(r"[A-Za-z0-9._:-]{1,128}").fullmatch


class Flight(Exchange):
    """The exchange of a request on its way, and what the recorder keeps of that until it has ended.

    One object for both, since every object a request needs costs it as much as a function call.
    """

    request: web.Request
    writer: AbstractStreamWriter
    task: asyncio.Task[Any]
    response: web.StreamResponse | None = None
    error: str | None = None
    context: Context | None = None
    gone = False

    def __init__(self, recorder: Recorder, request: web.Request, writer: AbstractStreamWriter) -> None:
        # Sets what `Exchange` would, without one more call.
        headers, path = request.headers, request.rel_url.raw_path
        claimed, agent = headers.get(REQUEST_ID_HEADER), headers.get(hdrs.USER_AGENT)
        try:
            resource = request.match_info.route.resource
            self.route = UNMATCHED if resource is None else resource.canonical
        except Exception:  # of a router or resource of the service's own, which needn't know of any of that
            self.route = UNMATCHED
        self.started = perf_counter()
        self.scope = recorder.scope
        if claimed is not None and _well_formed_id(claimed):
            self.request_id = claimed
        else:
            self.drawn = drawn = RANDOM.getrandbits(128)
            self.request_id = "%032x" % drawn  # noqa: UP031 - a third faster than with a format specifier
        self.method = METHODS.get(request.method, OTHER_METHOD)
        self.path = path if path.isascii() else valid(path)
        self.client_address = request.remote or None
        self.user_agent = agent if agent is None or agent.isascii() else valid(agent)
        self.recorder = recorder
        self.request = request
        self.writer = writer
        self.task = asyncio.current_task()  # type: ignore[assignment]

    def let_go(self) -> None:
        """Let go of what is the server's: the flight has landed, and may be kept for long."""
        self.request = self.writer = self.task = self.response = self.context = None  # type: ignore[assignment]

    def waited(self, coro: Any, future: Any, callbacks: Any, since: float, until: float) -> None:
        """The handler goes on: part of the wait may have been for the loop, which had other work."""
        try:
            self._split_wait(coro, future, callbacks, since, until)
        except Exception as exc:  # nothing of ours may reach the handler
            self.recorder.report_error("recorder", exc)

    def held(self, seconds: float) -> None:
        """Take in for how long the handler has just held the loop."""
        try:
            if self.scope.held is not None:
                self.scope.held(self, seconds)
        except Exception as exc:  # nothing of ours may reach the handler
            self.recorder.report_error("recorder", exc)

    def _split_wait(self, coro: Any, future: Any, callbacks: Any, since: float, until: float) -> None:
        stalled = self.scope.stalled_since
        stalled_since = None if stalled is None else stalled(until)
        if stalled_since is not None:
            stalled_since = max(stalled_since, since)
            self.ready += until - stalled_since
            until = stalled_since
        self.add_wait(suspended_for(coro, future, callbacks), until - since)

    def add_wait(self, kind: str, seconds: float) -> None:
        """Add to the time for which it has waited, by kind."""
        self.waiting = {**self.waiting, kind: self.waiting.get(kind, 0.0) + seconds}

    def raised(self, error: BaseException) -> None:
        """The handler has raised ``error``; aiohttp makes a response of it, unless its task is cancelled."""
        if self.has_landed():
            return
        if is_disconnected(self.request):
            self.gone = not is_complete(self.response)
        if not isinstance(error, web.HTTPException) or self.websocket is not None:
            self.error = type(error).__qualname__
        elif error.status < 500:
            return
        if isinstance(error, Exception):
            self.recorder.tell_raised(self, error)

    def has_landed(self) -> bool:
        """Whether it has been told, though its handler may still be at work: see `Recorder.close`."""
        return self.duration is not None

    def be_told_of_end(self) -> None:
        """Have `landed` called when the request's own task ends."""
        if not self.has_landed():
            self.context = copy_context()
            self.task.add_done_callback(self.landed, context=self.context)

    def land_with(self, task: asyncio.Task[Any]) -> None:
        """The request's own is ``task``, not the one its handler was called in."""
        self.task = task
        self.be_told_of_end()

    def landed_unnoticed(self) -> None:
        """As `landed`, but some while ago: if nothing was sent, that was when its handler had ended."""
        self.landed(self.task, None if has_begun(self.response) else self.suspended_at)

    def landed(self, task: asyncio.Task[Any], ended: float | None = None) -> None:
        """The request's own task has ended: who doesn't hear of the end otherwise learns it here."""
        if task is not self.task or self._is_handled():
            return
        reset, failure = result_of(task)
        # What is cancelled while it sends has lost its client: `Recorder.end` knows of shutting down.
        self.gone = self.gone or reset or (failure == "CancelledError" and self.error is None)
        self.recorder.end(self, self.response, failure and (self.error or failure), ended)

    def _is_handled(self) -> bool:
        """Whether some middleware outside ours, or aiohttp that sends, is still at it in another task."""
        protocol = self.request.protocol
        handled = getattr(protocol, "_current_request", None)
        if handled is not None:
            return bool(handled.writer is self.writer)
        return getattr(protocol, "_request_in_progress", False) and not is_own(self.task)
