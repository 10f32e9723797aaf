"""The ground floor: the facts of one request, who may look at them, and where code finds them.

Everything here is plain Python.  The pillars know each other only through three things of
this room: the `Exchange` (facts), the `Scope` (what one application's pillars offer to code
that runs in its requests) and the `Meter` (the numbers the other pillars report); and through
the `incidents`, which loop watch and failures tell of.  The client
stands above them, and asks the scope's tracer itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from random import Random
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import WeakSet

__all__ = [
    "CLIENT_DISCONNECTED",
    "CURRENT",
    "FIELDS",
    "MALFORMED",
    "METHODS",
    "OTHER",
    "OTHER_METHOD",
    "RANDOM",
    "SCOPE",
    "UNMATCHED",
    "ClientOutcome",
    "Ended",
    "Exchange",
    "Meter",
    "Observer",
    "Outcome",
    "Scope",
    "SpanIds",
    "Step",
    "Tracer",
    "Websocket",
    "current_exchange",
    "current_scope",
    "request_id",
    "taken",
]

T = TypeVar("T")

RANDOM = Random()
"""What ids are drawn from: the service may seed the common one, and clients see what this one draws.

Who is about to draw from it seeds it anew, and in forked children again, as `random` does with its own.
"""

METHODS = {
    name: name
    for name in (
        *("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE"),  # RFC 9110
        "PATCH",  # RFC 5789
        "QUERY",  # RFC 10008
    )
}
"""The standard methods."""
OTHER_METHOD = "_OTHER"
"""All others, as in OpenTelemetry's conventions."""

OTHER = "_other"
"""What a label says for every value beyond its limit."""
UNMATCHED = "_unmatched"
"""The route of a request for which there is none."""
MALFORMED = "_malformed"
"""The route of a request that the parser refused."""
CLIENT_DISCONNECTED = "client_disconnected"
"""The error of one whose client has left."""

_MOST_STEPS = 50


class SpanIds(Protocol):
    """Where a span stands in its trace: the part of OpenTelemetry's ``SpanContext`` used here."""

    @property
    def trace_id(self) -> int: ...

    @property
    def span_id(self) -> int: ...


class Step:
    """Something done for a request: an outbound call or an `operation`.

    ``seconds`` is ``None`` while it goes on; ``error`` names what went wrong.
    """

    __slots__ = ("error", "kind", "name", "seconds", "started")

    def __init__(self, kind: str, name: str, started: float) -> None:
        self.kind = kind
        self.name = name
        self.started = started
        self.seconds: float | None = None
        self.error: str | None = None

    def end(self, seconds: float, error: str | None) -> None:
        """Note that it has ended, after ``seconds``."""
        self.seconds, self.error = seconds, error


class Websocket:
    """What passed over a websocket: its text and binary messages.

    ``close_code`` (RFC 6455) is ``None`` until it is closed.
    """

    __slots__ = ("close_code", "received", "sent")

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0
        self.close_code: int | None = None

    @property
    def attributes(self) -> dict[str, int]:
        """Its numbers, by the names that an access line and a span have for them."""
        attributes = {
            "websocket.messages_received": self.received,
            "websocket.messages_sent": self.sent,
        }
        if self.close_code is not None:
            attributes["websocket.close_code"] = self.close_code
        return attributes


class Exchange:
    """The facts of one request and its response.

    Filled in as the request goes on: an observer's ``started`` sees the request's half,
    ``finished`` all of it.  Numbers and short strings only: once it has ended an exchange
    keeps no request, response, task or frame alive.

    ============================ ==========================================================
    ``request_id``               the ``X-Request-ID`` taken over or generated
    ``drawn``                    the random number that a generated one is, which is the id of a trace that
                                 begins with this request, too; else ``None``
    ``method``                   a standard method, or ``_OTHER`` (RFC 9110, RFC 5789)
    ``route``                    the route's template, ``_unmatched`` or ``_malformed``
    ``path``                     the raw path as sent, without the query
    ``client_address``           the peer's address, ``None`` on a Unix socket
    ``user_agent``               the ``User-Agent`` header
    ``task_name``                the name of its task, once it has ended
    ``started``                  when the middleware saw it, `time.perf_counter` seconds
    ``status``                   the status sent; 499 for a client that left
    ``websocket``                what passed over it, if it is one
    ``error_type``               exception name, ``client_disconnected`` or a status of 500 or more
    ``duration``                 seconds to the last byte sent
    ``busy``                     seconds its handler held the event loop
    ``polls``, ``longest_poll``  how often the handler was resumed, longest stretch (s)
    ``ready``                    seconds it could have gone on while the loop was held up
    ``waiting``                  seconds it waited, by wait kind; those under 1 ms aren't told, nor a
                                 ``response`` that was sent within 10 ms
    ``suspended_at``             when it last gave the loop back, ``None`` if it never did
    ``client_left_at``           when its client has left before the end, to an eighth of a second
    ``abandoned``                seconds worked after the client had left
    ``abandoned_counted``        of these, those that metrics have counted before its end
    ``request_size``             bytes of the request's body that were received
    ``response_size``            bytes of the response's body that were sent
    ``steps``                    what was done for it, the first 50; ``steps_left_out`` counts the rest
    ``span``                     the server span's ids, ``None`` without tracing
    ``sampled``                  whether the server span is recorded for export
    ============================ ==========================================================
    """

    # Class attributes for what a request begins with: a third of the cost of setting each.
    drawn: int | None = None
    task_name: str | None = None
    status: int | None = None
    websocket: Websocket | None = None
    error_type: str | None = None
    duration: float | None = None
    busy: float = 0.0
    polls: int = 0
    longest_poll: float = 0.0
    ready: float = 0.0
    waiting: Mapping[str, float] = MappingProxyType({})
    suspended_at: float | None = None
    client_left_at: float | None = None
    abandoned: float = 0.0
    abandoned_counted: float = 0.0
    request_size: int = 0
    response_size: int = 0
    steps: Sequence[Step] = ()
    steps_left_out: int = 0
    span: SpanIds | None = None
    sampled: bool = False

    def __init__(
        self,
        scope: Scope,
        request_id: str,
        method: str,
        route: str,
        path: str,
        client_address: str | None,
        user_agent: str | None,
        started: float,
    ) -> None:
        self.scope = scope
        self.request_id = request_id
        self.method = method
        self.route = route
        self.path = path
        self.client_address = client_address
        self.user_agent = user_agent
        self.started = started

    def begin_step(self, kind: str, name: str, started: float) -> Step:
        """Note that something begins, at ``started`` of `time.perf_counter`; tell the result of its end.

        A task that the request has left behind works for it no more once it has ended.
        """
        step = Step(kind, name, started)
        if self.duration is not None:
            return step
        if len(self.steps) < _MOST_STEPS:
            self.steps = [*self.steps, step]
        else:
            self.steps_left_out += 1
        return step

    @property
    def trace_id(self) -> str | None:
        """The server span's trace id, 32 hex digits; ``None`` without tracing."""
        return None if self.span is None else f"{self.span.trace_id:032x}"

    @property
    def span_id(self) -> str | None:
        """The server span's id, 16 hex digits; ``None`` without tracing."""
        return None if self.span is None else f"{self.span.span_id:016x}"

    @property
    def ids(self) -> dict[str, str]:
        """``request_id``, and with tracing ``trace_id`` and ``span_id``: as log lines have them."""
        ids = {"request_id": self.request_id}
        if self.span is not None:
            ids["trace_id"] = f"{self.span.trace_id:032x}"
            ids["span_id"] = f"{self.span.span_id:016x}"
        return ids

    def __repr__(self) -> str:
        return f"<Exchange {self.request_id} {self.method} {self.route} {self.status}>"


Outcome = tuple[str, str, "int | str | None", "str | None"]
"""Method, route, status and error."""

Ended = Mapping[Outcome, Sequence[Exchange]]
"""Requests that have ended, those of one outcome together, in the order in which they did."""


@runtime_checkable
class Observer(Protocol):
    """What ``setup_observability(observers=...)`` takes: either hook may be missing.

    Both are called on the event loop, in the request's own context, and must not block.
    What they raise is logged once per observer and exception type, counted in
    ``aiohttp_observe_internal_errors_total`` and never reaches the request.
    """

    def started(self, exchange: Exchange) -> None:
        """The request has been routed and its handler is about to run."""
        return  # a body, so that type checkers take a subclass with one hook for whole

    def finished(self, exchange: Exchange) -> None:
        """The last byte has been sent, or the client has left."""
        return


ClientOutcome = tuple[str, str, "int | None", "int | None", "str | None"]
"""Method, host, port, status and error of an outbound call."""


class Meter:
    """The numbers that the pillars report to metrics, of an application without any.

    Seconds throughout; never raises.
    """

    def operation(self, name: str, outcome: str, seconds: float) -> None:
        pass

    def client_request(self, outcome: ClientOutcome, seconds: float, span: SpanIds | None) -> None:
        pass

    def client_phase(self, host: str, phase: str, seconds: float, *, redirected: bool) -> None:
        pass

    def task_outcome(self, name: str, outcome: str) -> None:
        pass

    def task_restart(self, name: str) -> None:
        pass

    def unhandled(self, kind: str) -> None:
        pass

    def loop_lag(self, seconds: float) -> None:
        pass

    def loop_blocked(self, seconds: float) -> None:
        pass

    def internal_error(self, observer: str) -> None:
        pass

    def dropped(self, what: str, count: int = 1) -> None:
        pass


class Tracer(Protocol):
    """What the tracing room offers to the others; without OpenTelemetry's types, which only that room knows.

    ``outbound`` traces outbound calls.
    """

    outbound: Any

    def current(self) -> SpanIds | None:
        """The ids of the span that is current in the calling context."""

    def start(self, name: str, attributes: Mapping[str, Any]) -> Any:
        """Start a span in the calling context."""

    def detach(self, how: str) -> None:
        """In a new task's context: ``link`` its traces to where it is from, or ``none``; ``child`` stays."""

    def stalled(self, seconds: float, culprit: str | None, victims: Iterable[Exchange]) -> None:
        """Requests were kept waiting, by the request ``culprit``; on the loop."""

    def blocked(self, block: Any) -> None:
        """A `Block` by a request has ended; in any thread."""


class Scope:
    """What one application's pillars offer to code that runs in its requests and tasks.

    ``stalled_since`` tells since when the loop hasn't turned, if it hasn't, and ``held`` hears who
    has held it for how many seconds (see `LoopMonitor`).
    ``tracer`` is ``None`` when that pillar is off.  ``background`` are the spawned tasks,
    ``supervised`` those that others run with `supervised`, ``workers`` what `workers_of` reads.
    """

    __slots__ = ("background", "held", "meter", "stalled_since", "supervised", "tracer", "workers")

    def __init__(self) -> None:
        self.meter = Meter()
        self.stalled_since: Callable[[float], float | None] | None = None
        self.held: Callable[[Exchange, float], None] | None = None
        self.tracer: Tracer | None = None
        self.background: set[Any] = set()
        self.supervised: WeakSet[Any] = WeakSet()
        self.workers: list[Any] = []


CURRENT: ContextVar[Exchange | None] = ContextVar("aiohttp_observe_exchange", default=None)
"""The exchange being served.  Set and never reset: see `aiohttp_observe.middleware`."""

SCOPE: ContextVar[Scope | None] = ContextVar("aiohttp_observe_scope", default=None)
"""The application whose start-up this code descends from, for code outside requests."""

FIELDS: ContextVar[Mapping[str, Any] | None] = ContextVar("aiohttp_observe_fields", default=None)
"""The fields bound to the log lines of this context."""


def current_exchange() -> Exchange | None:
    """The facts of the request being served, ``None`` outside one."""
    return CURRENT.get()


def request_id() -> str | None:
    """The id of the request being served, ``None`` outside one."""
    exchange = CURRENT.get()
    return None if exchange is None else exchange.request_id


def current_scope() -> Scope | None:
    """The application this code runs for: the request's, else the one whose start-up it descends from."""
    exchange = CURRENT.get()
    return SCOPE.get() if exchange is None else exchange.scope


def taken(waiting: deque[T]) -> Iterator[T]:
    """Take all that waits, oldest first; threads that do so at once share it between them."""
    take = waiting.popleft
    while waiting:
        try:
            item = take()
        except IndexError:
            return
        yield item
