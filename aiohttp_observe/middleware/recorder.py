"""The recorder of one application's requests, and what it calls."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable
from functools import partial
from time import perf_counter
from typing import Any, Protocol, cast
from weakref import WeakSet

from aiohttp import HttpVersion10, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.typedefs import Handler, Middleware

from ..exchange import (
    CURRENT,
    MALFORMED,
    OTHER_METHOD,
    RANDOM,
    Ended,
    Exchange,
    Outcome,
    Scope,
    taken,
)
from ..forks import reset_after_fork
from ..tasks import drive, mark_request_task, waits_for
from ..texts import LONGEST_TITLE, title
from .ending import (
    handles,
    has_begun,
    is_cancelled,
    is_cut_short,
    is_small,
    size_as_sent,
    tell_end,
)
from .flight import REQUEST_ID_HEADER, Flight
from .websockets import count_messages

__all__ = ["Recorder", "user_observers"]

_FLUSH_COUNT = 32
"""Requests after which what they left for later is done."""
_FLUSH_DELAY = 0.02
"""Seconds after which it is done, however few they are."""
_SENT_AT_ONCE = 0.01
"""Seconds in which a response may well have been sent without waiting for anybody."""
_RAISED = (Exception, asyncio.CancelledError)
"""What a hook may raise.  Nobody cancels a plain call: it has asked a cancelled task for its result."""

logger = logging.getLogger("aiohttp_observe")


class RequestHooks(Protocol):
    """What a pillar may implement of a request's life; each hook is optional and guarded.

    ``flush`` hears of several ended requests at once: soon after, on the loop, or earlier, in
    the thread of whoever wants to see the result.  Work done so costs half of what it costs
    between two requests.
    """

    def started(self, exchange: Exchange, request: web.BaseRequest) -> None: ...

    def raised(self, exchange: Exchange, exc: Exception) -> None: ...

    def prepared(self, exchange: Exchange, response: web.StreamResponse) -> None: ...

    def finished(self, exchange: Exchange) -> None: ...

    def flush(self, ended: Ended) -> None: ...


class Recorder:
    """Makes an `Exchange` of every request of one application and tells the observers.

    ``observers`` are pairs of a name and an object with any of the `RequestHooks`.  A hook
    that raises is logged once per observer and exception type and counted always; the
    request goes on.  ``adapt``, if set, may exchange the handler that is called;
    ``in_flight`` are the requests being served, by what aiohttp writes their answer with: that
    is one for each request, the same for its clones, and in whatever task it is handled.
    ``left`` are those of them whose client had left at the last look, ``unflushed`` the requests
    that have ended since `flush`.  ``others_prepare``: whether
    there are ``on_response_prepare`` signals that may fail besides ours.  ``stopping``: whether
    the server may cut requests short itself.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.in_flight: dict[AbstractStreamWriter, Flight] = {}
        self.hears_of_ends = False
        self.others_prepare = True
        self.adapt: Callable[[Handler], Handler] | None = None
        self.stopping = False
        self.left: list[Flight] = []
        self._ticked_at = 0.0
        self._outliving: Container[AbstractStreamWriter] = ()
        self._reported: set[tuple[str, type]] = set()
        self._started: list[tuple[str, Callable[[Exchange, web.BaseRequest], None]]] = []
        self._raised: list[tuple[str, Callable[[Exchange, Exception], None]]] = []
        self._prepared: list[tuple[str, Callable[[Exchange, web.StreamResponse], None]]] = []
        self._finished: list[tuple[str, Callable[[Exchange], None]]] = []
        self._flush: list[tuple[str, Callable[[Ended], None]]] = []
        self._flush_timer: asyncio.TimerHandle | None = None
        self.reset_in_child()
        reset_after_fork(self)

    def reset_in_child(self) -> None:
        """In a forked child: what is unflushed, the lock's owner and the ids to come are the parent's."""
        RANDOM.seed()
        self.unflushed: deque[Exchange] = deque()
        self._flushing = threading.RLock()  # a finalizer may end a request, and flush, in the midst of it

    def add(self, name: str, observer: object) -> None:
        """Call ``observer``'s hooks from now on, after those added before it."""
        for hooks, hook in (
            (self._started, "started"),
            (self._raised, "raised"),
            (self._prepared, "prepared"),
            (self._finished, "finished"),
            (self._flush, "flush"),
        ):
            method = getattr(observer, hook, None)
            if method is not None:
                hooks.append((name, method))

    def middleware(self) -> Middleware:
        """The middleware; its place is outermost, so that it sees what all others do."""
        in_flight = self.in_flight

        @web.middleware
        async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
            writer = request.writer
            known = in_flight.get(writer)
            if known is not None:  # some middleware outside tries again, or the service has a clone handled
                CURRENT.set(known)
                known.error = None
                return await handler(request)
            if writer in self._outliving:
                return await handler(request)
            in_flight[writer] = flight = Flight(self, request, writer)
            CURRENT.set(flight)
            mark_request_task(flight.task, flight)
            self._tell_started(flight, request)
            if self.adapt is not None:
                handler = self.adapt(handler)
            response = None
            try:
                response = await drive(handler, request, flight)
                return response
            except BaseException as exc:
                flight.raised(exc)
                raise
            finally:
                # aiohttp doesn't tell the access logger of a task that is cancelled or fails as it sends.
                if not self.hears_of_ends or flight.error is not None or not is_small(response):
                    flight.be_told_of_end()

        return observe

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """The ``on_response_prepare`` signal: the request id goes out on every response."""
        flight = self.in_flight.get(request.writer)
        if flight is None or flight is not CURRENT.get():
            flight = self._taken_over(flight, request)
        if flight is None:
            return
        if request.transport is None:
            flight.gone = True
            self._note_departure(flight, perf_counter())
            return
        if flight.response is not None:
            if has_begun(flight.response):
                return  # what follows isn't what its client takes for the answer
            flight.websocket = None
        flight.response = response
        if type(response) is not web.Response:  # it is on its way for longer
            flight.status = response.status
            if isinstance(response, web.WebSocketResponse):
                self._count_messages(flight, response)
        try:
            response.headers[REQUEST_ID_HEADER] = flight.request_id
        except Exception as exc:  # a response of the service's own class, whose headers are as they are
            self.report_error("recorder", exc)
        for name, hook in self._prepared:
            try:
                hook(flight, response)
            except Exception as exc:
                self.report_error(name, exc)

    def _count_messages(self, flight: Flight, socket: web.WebSocketResponse) -> None:
        try:
            flight.websocket = count_messages(socket)
        except Exception as exc:  # a class of the service's that lets nobody exchange its methods
            self.report_error("recorder", exc)

    def _taken_over(self, flight: Flight | None, request: web.Request) -> Flight | None:
        """The flight of a request that its own task, which is the one that runs, answers by itself.

        Some middleware outside ours has it handled in another task, or answers it, or aiohttp
        has refused its ``Expect`` before any middleware was called.  Other tasks, which may
        serve many requests, only write for it.
        """
        task = asyncio.current_task()
        if task is None or not handles(task, request):
            return flight
        if flight is None and request.writer in self._outliving:
            return None
        taken_over = flight or Flight(self, request, request.writer)
        self.in_flight[taken_over.writer] = taken_over
        CURRENT.set(taken_over)
        taken_over.land_with(task)
        if flight is None:
            self._tell_started(taken_over, request)
        return taken_over

    async def stop(self, app: web.Application) -> None:
        """The ``on_shutdown`` signal: from here on the server may cut requests short itself."""
        self.tick()
        self.stopping = True

    def answered(self, request: web.BaseRequest, response: web.StreamResponse, seconds: float) -> None:
        """Called by the access logger, in the request's own task: all of ``response`` is sent, or can't be.

        It is called for all but those whose task is cancelled or fails while sending.
        """
        try:
            flight = self.in_flight.get(request.writer)
            if flight is not None:
                # Known from the first answer on: a runner may have been given another access logger.
                self.hears_of_ends = not self.others_prepare
                # The transport may not know yet: what sends a file hears of it first.
                flight.gone = flight.gone or is_cut_short(response)
                self.end(flight, flight.response, None)
            elif request.writer not in self._outliving:
                self._answered_unseen(request, response, seconds)
        except Exception as exc:
            self.report_error("recorder", exc)

    def _answered_unseen(
        self, request: web.BaseRequest, response: web.StreamResponse, seconds: float
    ) -> None:
        """The parser has refused it, or the router has failed: no middleware, and no signal, was called."""
        if _is_malformed(request):
            exchange = _malformed(request, self.scope)
        else:
            exchange = flight = Flight(self, cast(web.Request, request), request.writer)
            CURRENT.set(flight)
            self._tell_started(flight, request)
            flight.let_go()
        exchange.started = perf_counter() - seconds
        exchange.duration = seconds
        tell_end(exchange, response, gone=is_cut_short(response), error=None, failure=None)
        self._tell_finished(exchange)

    def tick(self) -> None:
        """Several times a second: notice what nobody announces.

        That is a client leaving while its handler works, unless aiohttp cancels that or it is the
        server that leaves, and a task that ended while it sent the response.
        """
        now, left = perf_counter(), []
        for flight in list(self.in_flight.values()):
            if flight.task.done():
                _in_context_of(flight, flight.landed_unnoticed)
            elif flight.request.transport is None:
                self._note_departure(flight, now)
                left.append(flight)
        self._ticked_at, self.left = now, left

    def _note_departure(self, flight: Flight, now: float) -> None:
        """Its client has left since the last look, nobody knows when: on average half-way."""
        if flight.client_left_at is None and not self.stopping:
            flight.client_left_at = (max(self._ticked_at, flight.started) + now) / 2

    def close(self) -> None:
        """At clean-up: what hasn't ended works on for nobody, and is told as far as it is, once."""
        self.tick()
        self._outliving = WeakSet(self.in_flight)
        for flight in list(self.in_flight.values()):
            flight.gone = flight.client_left_at is not None
            failure = None if flight.gone else "CancelledError"
            _in_context_of(flight, partial(self.end, flight, flight.response, failure))

    def end(self, flight: Flight, response: Any, failure: str | None, ended: float | None = None) -> None:
        """Complete the exchange and tell the observers.

        ``ended`` is when, in `time.perf_counter` seconds, if not now.
        """
        if self.in_flight.pop(flight.writer, None) is None:
            return
        now = ended or perf_counter()
        flight.duration = now - flight.started
        left_at = flight.suspended_at
        if left_at is not None and now - left_at > _SENT_AT_ONCE:
            # If its handler has returned, the client had yet to take the response.
            waits = None if has_begun(flight.response) else waits_for(flight.task)
            flight.add_wait("response" if waits is None else waits[0], now - left_at)
        if flight.client_left_at is not None:
            flight.abandoned = now - flight.client_left_at
        gone = flight.gone
        if gone and self.stopping and (failure == "CancelledError" or is_cancelled(flight.task)):
            gone, failure = False, "CancelledError"  # it was the server that left
        try:
            name = flight.task.get_name()
            flight.task_name = name if len(name) < LONGEST_TITLE else title(name)
            received = flight.request.content.total_bytes
            if received:
                flight.request_size = size_as_sent(flight.request, received)
            tell_end(flight, response, gone=gone, error=flight.error, failure=failure)
        except Exception as exc:
            self.report_error("recorder", exc)
        self._tell_finished(flight)
        flight.let_go()

    def flush(self, *, wait: bool = True) -> None:
        """Have the pillars do what was left for later; may be called from any thread.

        Who won't ``wait`` leaves it to the thread that is at it.
        """
        if not self._flushing.acquire(blocking=wait):
            return
        try:
            ended: defaultdict[Outcome, list[Exchange]] = defaultdict(list)
            for exchange in taken(self.unflushed):
                outcome = exchange.method, exchange.route, exchange.status, exchange.error_type
                try:
                    ended[outcome].append(exchange)
                except Exception as exc:  # a route of the service's own class, which can't be told apart
                    self.report_error("recorder", exc)
            for name, hook in self._flush:
                try:
                    hook(ended)
                except Exception as exc:
                    self.report_error(name, exc)
        finally:
            self._flushing.release()

    def _tell_started(self, exchange: Exchange, request: web.BaseRequest) -> None:
        for name, hook in self._started:
            try:
                hook(exchange, request)
            except _RAISED as exc:
                self.report_error(name, exc)

    def _tell_finished(self, exchange: Exchange) -> None:
        for name, hook in self._finished:
            try:
                hook(exchange)
            except _RAISED as exc:
                self.report_error(name, exc)
        self.unflushed.append(exchange)
        if len(self.unflushed) >= _FLUSH_COUNT:
            self.flush()
        elif self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(_FLUSH_DELAY, self._flush_late)

    def _flush_late(self) -> None:
        self._flush_timer = None
        self.flush()

    def tell_raised(self, exchange: Exchange, error: Exception) -> None:
        for name, hook in self._raised:
            try:
                hook(exchange, error)
            except Exception as exc:
                self.report_error(name, exc)

    def report_error(self, name: str, exc: BaseException) -> None:
        """Count a failure of an observer, or of ours, and log it if it is the first of its kind."""
        self.scope.meter.internal_error(name)
        kind = (name, type(exc))
        if kind not in self._reported and len(self._reported) < 100:
            self._reported.add(kind)
            try:
                logger.error(
                    "observer %s failed; the request is not affected and further %s of it are only counted",
                    name,
                    type(exc).__qualname__,
                    exc_info=exc,
                )
            except Exception:  # of a filter or handler of the service's
                self.scope.meter.internal_error("logs")


def _is_malformed(request: web.BaseRequest) -> bool:
    """Whether it is what aiohttp makes of a request that its parser has refused."""
    return request.method == "UNKNOWN" and request.version == HttpVersion10 and not request.headers


def _malformed(request: web.BaseRequest, scope: Scope) -> Exchange:
    """The exchange of a request that the parser refused: it never reached the application."""
    return Exchange(
        scope,
        f"{RANDOM.getrandbits(128):032x}",
        method=OTHER_METHOD,
        route=MALFORMED,
        path="",
        client_address=request.remote or None,
        user_agent=None,
        started=perf_counter(),
    )


def _in_context_of(flight: Flight, call: Callable[[], None]) -> None:
    """Run ``call`` where the flight's task ran, as known from its handler's end on, or Python 3.12."""
    context = flight.context
    if context is None and hasattr(flight.task, "get_context"):
        context = flight.task.get_context()
    if context is None:
        call()
        return
    try:
        context.run(call)
    except RuntimeError:  # it is where this runs: a handler cleans the application up
        call()


def user_observers(observers: Iterable[object]) -> list[tuple[str, object]]:
    """Name and adapt a user's observers, whose ``started`` takes the exchange alone."""
    return [(type(observer).__qualname__, _UserObserver(observer)) for observer in observers]


class _UserObserver:
    def __init__(self, observer: object) -> None:
        started = getattr(observer, "started", None)
        finished = getattr(observer, "finished", None)
        self.started = None if started is None else lambda exchange, request: started(exchange)
        self.finished = finished
