"""The one middleware: it times a request, drives its handler, tells the truth about its end.

A request has two ends.  The middleware sees its handler return or raise; the request's own
task ends later, after the last byte, and knows the status really sent (504 for an escaped
``TimeoutError``, 500 for a crash) and whether the client was still there.  So the middleware
leaves a done-callback on that task, and observers hear ``finished`` from there.

The context variables set here are never reset: aiohttp writes its "Error handling request"
line in the same task after the middlewares have returned, and a reset would strip the ids
from exactly that line.  Nothing leaks, because every request has a context of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from random import getrandbits
from time import perf_counter
from typing import Any, Protocol

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import istr

from .exchange import CURRENT, MALFORMED, UNMATCHED, Exchange, Scope
from .tasks import adopt, drive

__all__ = ["CLIENT_DISCONNECTED", "REQUEST_ID_HEADER", "Recorder"]

REQUEST_ID_HEADER = istr("X-Request-ID")
CLIENT_DISCONNECTED = "client_disconnected"

_SWITCHING_PROTOCOLS = 101
_CLIENT_CLOSED_REQUEST = 499
_SETTLE_COUNT = 16
_SETTLE_DELAY = 0.02
"""Requests, and seconds, after which what they left for later is done."""
_well_formed_id = re.compile(r"[A-Za-z0-9._:-]{1,128}").fullmatch
_METHODS = {
    name: name
    for name in (
        *("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE"),  # RFC 9110
        "PATCH",  # RFC 5789
        "QUERY",  # RFC 10008
    )
}

logger = logging.getLogger("aiohttp_observe")


class RequestHooks(Protocol):
    """What a pillar may implement of a request's life; each hook is optional and guarded.

    ``finished`` may leave work for ``settle``, which is called once for many requests: soon
    after, on the loop, or earlier, in the thread of whoever wants to see the result.  Work
    done so costs half of what it costs between two requests.
    """

    def started(self, exchange: Exchange, request: web.BaseRequest) -> None: ...

    def raised(self, exchange: Exchange, exc: Exception) -> None: ...

    def prepared(self, exchange: Exchange, response: web.StreamResponse) -> None: ...

    def finished(self, exchange: Exchange) -> None: ...

    def settle(self) -> None: ...


class Recorder:
    """Makes an `Exchange` of every request of one application and tells the observers.

    ``observers`` are pairs of a name and an object with any of the `RequestHooks`.  A hook
    that raises is logged once per observer and exception type and counted always; the
    request goes on.  ``adapt``, if set, may exchange the handler that is called.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.in_flight: dict[Exchange, web.Request] = {}
        self.adapt: Callable[[Handler], Handler] | None = None
        self._stopping = False
        self._gone_at: dict[Exchange, float] = {}
        self._complaints: set[tuple[str, type]] = set()
        self._started: list[tuple[str, Callable[[Exchange, web.BaseRequest], None]]] = []
        self._raised: list[tuple[str, Callable[[Exchange, Exception], None]]] = []
        self._prepared: list[tuple[str, Callable[[Exchange, web.StreamResponse], None]]] = []
        self._finished: list[tuple[str, Callable[[Exchange], None]]] = []
        self._settle: list[tuple[str, Callable[[], None]]] = []
        self._unsettled = 0
        self._settling: asyncio.TimerHandle | None = None

    def add(self, name: str, observer: object) -> None:
        """Call ``observer``'s hooks from now on, after those added before it."""
        for hooks, hook in (
            (self._started, "started"),
            (self._raised, "raised"),
            (self._prepared, "prepared"),
            (self._finished, "finished"),
            (self._settle, "settle"),
        ):
            method = getattr(observer, hook, None)
            if method is not None:
                hooks.append((name, method))

    def middleware(self) -> Middleware:
        """The middleware; its place is outermost, so that it sees what all others do."""
        scope, in_flight, started = self.scope, self.in_flight, self._started

        @web.middleware
        def observe(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
            task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
            exchange = _exchange_of(request, scope)
            CURRENT.set(exchange)
            adopt(task, exchange)
            in_flight[exchange] = request
            for name, hook in started:
                try:
                    hook(exchange, request)
                except Exception as exc:
                    self._complain(name, exc)
            if self.adapt is not None:
                handler = self.adapt(handler)
            return drive(handler, request, exchange, partial(self._left, exchange, request, task))

        return observe

    def _left(
        self,
        exchange: Exchange,
        request: web.Request,
        task: asyncio.Task[Any],
        error: BaseException | None,
    ) -> None:
        """The handler has returned or raised; the response may still have to be sent."""
        name = None
        if isinstance(error, web.HTTPException):
            if error.status >= 500:
                self._tell_raised(exchange, error)
        elif error is not None:
            name = type(error).__qualname__
            if isinstance(error, Exception):
                self._tell_raised(exchange, error)
        transport = request.transport
        gone = transport is None or transport.is_closing()
        exchange.request_size = request.content.total_bytes
        task.add_done_callback(partial(self._ended, exchange, gone, name))

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """The ``on_response_prepare`` signal: the request id goes out on every response."""
        exchange = CURRENT.get()
        if exchange is None or exchange.scope is not self.scope:
            return
        exchange.status = response.status
        response.headers[REQUEST_ID_HEADER] = exchange.request_id
        for name, hook in self._prepared:
            try:
                hook(exchange, response)
            except Exception as exc:
                self._complain(name, exc)

    async def stop(self, app: web.Application) -> None:
        """The ``on_shutdown`` signal: from here on the server may cut requests short itself."""
        self._stopping = True

    def malformed(self, request: web.BaseRequest, response: web.StreamResponse, seconds: float) -> None:
        """A request that the parser refused: it never reached the application."""
        exchange = Exchange(
            self.scope,
            _new_id(),
            method="_OTHER",
            route=MALFORMED,
            path="",
            client_address=request.remote,
            user_agent=None,
            started=perf_counter() - seconds,
        )
        exchange.status = response.status
        exchange.duration = seconds
        exchange.response_size = response.body_length
        self._tell_finished(exchange)

    def note_departures(self) -> None:
        """Remember since when each client has been gone whose handler still works.

        Called now and then from the loop, since aiohttp announces no disconnect to a
        handler that isn't cancelled by it.
        """
        now = perf_counter()
        for exchange, request in self.in_flight.items():
            if request.transport is None:
                self._gone_at.setdefault(exchange, now)

    def _ended(self, exchange: Exchange, gone: bool, error: str | None, task: asyncio.Task[Any]) -> None:
        now = perf_counter()
        exchange.duration = now - exchange.started
        self.in_flight.pop(exchange, None)
        left_at = self._gone_at.pop(exchange, None)
        if left_at is not None:
            exchange.abandoned = now - left_at
        gone = gone and not (self._stopping and task.cancelled())
        try:
            _tell_the_end(exchange, gone, error, task)
        except Exception as exc:
            self._complain("recorder", exc)
        self._tell_finished(exchange)

    def settle(self) -> None:
        """Have the pillars do what they have left for later; may be called from any thread."""
        self._unsettled = 0
        for name, hook in self._settle:
            try:
                hook()
            except Exception as exc:
                self._complain(name, exc)

    def _tell_finished(self, exchange: Exchange) -> None:
        for name, hook in self._finished:
            try:
                hook(exchange)
            except Exception as exc:
                self._complain(name, exc)
        self._unsettled += 1
        if self._unsettled >= _SETTLE_COUNT:
            self.settle()
        elif self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(_SETTLE_DELAY, self._settle_late)

    def _settle_late(self) -> None:
        self._settling = None
        self.settle()

    def _tell_raised(self, exchange: Exchange, error: Exception) -> None:
        for name, hook in self._raised:
            try:
                hook(exchange, error)
            except Exception as exc:
                self._complain(name, exc)

    def _complain(self, name: str, exc: Exception) -> None:
        self.scope.meter.internal_error(name)
        complaint = (name, type(exc))
        if complaint not in self._complaints and len(self._complaints) < 100:
            self._complaints.add(complaint)
            logger.error(
                "observer %s failed; the request is not affected and further %s of it are only counted",
                name,
                type(exc).__qualname__,
                exc_info=exc,
            )


def _exchange_of(request: web.Request, scope: Scope) -> Exchange:
    headers = request.headers
    claimed = headers.get(REQUEST_ID_HEADER)
    return Exchange(
        scope,
        claimed if claimed is not None and _well_formed_id(claimed) else _new_id(),
        _METHODS.get(request.method, "_OTHER"),
        _route_of(request),
        request.rel_url.raw_path,
        request.remote,
        headers.get(hdrs.USER_AGENT),
        perf_counter(),
    )


def _new_id() -> str:
    return f"{getrandbits(128):032x}"


def _route_of(request: web.Request) -> str:
    resource = request.match_info.route.resource
    if resource is None:
        return UNMATCHED
    canonical: str = resource.canonical
    return canonical


def _tell_the_end(exchange: Exchange, gone: bool, error: str | None, task: asyncio.Task[Any]) -> None:
    """Fill in status, error and size from the request's ended task.

    The task's result is aiohttp's internal ``(response, reset)``, read defensively: what the
    middleware and the response's preparation saw stands where it says nothing.
    """
    reset, failure = False, None
    if task.cancelled():
        failure = "CancelledError"
    elif (exc := task.exception()) is not None:
        failure = error or type(exc).__qualname__
    else:
        response, reset = _result_of(task)
        exchange.status = getattr(response, "status", exchange.status)
        exchange.response_size = _body_size(exchange, response, gone or reset)
    status = exchange.status
    if status == _SWITCHING_PROTOCOLS:  # a websocket's client leaves as it likes
        exchange.error_type = failure
    elif gone or reset:
        exchange.status, exchange.error_type = _CLIENT_CLOSED_REQUEST, CLIENT_DISCONNECTED
    elif failure is not None:
        exchange.error_type = failure
    elif status is not None and status >= 500:
        exchange.error_type = error or str(status)


def _body_size(exchange: Exchange, response: Any, cut_short: bool) -> int:
    """Bytes of the body that were sent; a chunked one counts with its framing.

    aiohttp's ``body_length`` counts the response's head too, and leaves out what the kernel
    sent from a file.
    """
    sent: int = getattr(response, "body_length", 0)
    if not sent or exchange.method == "HEAD" or response.status in (204, 304):
        return 0
    declared: int | None = response.content_length
    if declared is not None:
        return min(declared, sent) if cut_short else declared
    head = sum(len(name) + len(value) + 4 for name, value in response.headers.items())
    return max(sent - head - len(f"HTTP/1.1 {response.status} {response.reason}\r\n\r\n"), 0)


def _result_of(task: asyncio.Task[Any]) -> tuple[Any, bool]:
    result = task.result()
    if isinstance(result, tuple) and len(result) == 2:
        return result[0], bool(result[1])
    return None, False


def user_observers(observers: Iterable[object]) -> list[tuple[str, object]]:
    """Name and adapt a user's observers, whose ``started`` takes the exchange alone."""
    return [(type(observer).__qualname__, _UserObserver(observer)) for observer in observers]


class _UserObserver:
    def __init__(self, observer: object) -> None:
        started = getattr(observer, "started", None)
        finished = getattr(observer, "finished", None)
        self.started = None if started is None else lambda exchange, request: started(exchange)
        self.finished = finished
