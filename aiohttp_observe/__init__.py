"""Observability for aiohttp services: one line, and five pillars tell one story.

::

    from aiohttp_observe import setup_observability

    setup_observability(app)

=====================  ==============================================================
``plugin``             `setup_observability`, `Observability`, `OBSERVABILITY`
``metrics``            `Metrics`, `timeit`
``logs``               `Logs`, `bind`, `bound`, `log_context`, `AccessLogger`, `JsonFormatter`
``tracing``            `Tracing`, `operation`
``failures``           `Failures`
``background``         `spawn`, `supervised`, `Worker`
``tasks``              `Tasks`, `take_snapshot`, `register_wait_kind`
``loopwatch``          `LoopWatch`
``client``             `Client`, `client_session`, `client_trace_config`, `CLIENT_SESSION`
``admin``              `Admin`
``exchange``           `Exchange`, `Observer`, `current_exchange`, `request_id`
=====================  ==============================================================

Behind them:

=====================  ==============================================================
``middleware``         drives a request's handler, times it, tells the observers how it ended
``flightrecorder``     the last requests, by route
``incidents``          what blocked the loop, and failures nobody handled
``history``            the last minutes, in numbers
``bundles``            everything as it was at a moment
``profile``            where the loop's thread spends its time
``findings``           what stands out of what no task shows
``documents``          all of that as the JSON of the task console
``cli``                the console in a terminal
``flood``              when a line comes too often
``options``            checks of options
``redaction``          what must not be shown
``records``            log records of our own
``exceptiontext``      exceptions as they are shown
``switchinterval``     how soon a thread lets others have a turn
``texts``              names, bytes and moments as they are shown
``jsonpieces``         JSON in pieces, between which a loop can have a turn
``forks``              what begins anew in a forked child
``daemonthread``       a blocking call beside the loop
=====================  ==============================================================

Importing it has no effect.
"""

from .admin import Admin
from .background import Worker, spawn, supervised
from .client import CLIENT_SESSION, Client, client_session, client_trace_config
from .exchange import Exchange, Observer, current_exchange, request_id
from .failures import Failures
from .logs import AccessLogger, JsonFormatter, Logs, bind, bound, log_context
from .loopwatch import LoopWatch
from .metrics import Metrics, timeit
from .plugin import OBSERVABILITY, Observability, setup_observability
from .tasks import Tasks, register_wait_kind, take_snapshot
from .tracing import Tracing, operation

__version__ = "0.1.0"

__all__ = [
    "CLIENT_SESSION",
    "OBSERVABILITY",
    "AccessLogger",
    "Admin",
    "Client",
    "Exchange",
    "Failures",
    "JsonFormatter",
    "Logs",
    "LoopWatch",
    "Metrics",
    "Observability",
    "Observer",
    "Tasks",
    "Tracing",
    "Worker",
    "bind",
    "bound",
    "client_session",
    "client_trace_config",
    "current_exchange",
    "log_context",
    "operation",
    "register_wait_kind",
    "request_id",
    "setup_observability",
    "spawn",
    "supervised",
    "take_snapshot",
    "timeit",
]
