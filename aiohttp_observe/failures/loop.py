"""The exception handler of a loop, in front of those that the service and its libraries set."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from ..exchange import Exchange
from ..incidents import Incidents
from ..tasks import coro_of, raised_in, title_of
from .context import birthplace, born_in, is_supervised, kind_of, task_of
from .line import log_failure
from .listener import FailureListener, concerned

__all__ = ["LoopHandler"]

ExceptionHandler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], Any]

_MOST_BENEATH = 10

_handlers: dict[asyncio.AbstractEventLoop, LoopHandler] = {}


class LoopHandler:
    """The one handler of a loop for all applications that run on it.

    A failure is counted in ``asyncio_unhandled_total`` and logged here, in place of asyncio's
    own line; a handler that was set before is called as before, and so is one that is set
    later: `stay_in_front`.  Of several applications each keeps the incidents of its own
    requests, and the first those that belong to none.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._listeners: list[FailureListener] = []
        self._beneath: list[ExceptionHandler | None] = []  # those found in our place, the latest last
        self._handler: ExceptionHandler = self._handle
        self._handling = _Handling()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> LoopHandler:
        """The one of ``loop``, made if there is none."""
        return _handlers.setdefault(loop, cls(loop))

    def enter(self, listener: FailureListener) -> None:
        self._listeners.append(listener)
        self.stay_in_front()

    def leave(self, listener: FailureListener) -> None:
        """The last to leave restores the handler that would be there without us."""
        self._listeners.remove(listener)
        if self._listeners:
            return
        _handlers.pop(self._loop, None)
        if self._loop.get_exception_handler() is self._handler:
            # Others may go on to pass failures to ours, which passes them to the first.
            self._loop.set_exception_handler(self._beneath[-1])
            del self._beneath[1:]

    def stay_in_front(self) -> None:
        """Go before a handler that was set meanwhile: by replacing ours it would hide every failure."""
        current = self._loop.get_exception_handler()
        if current is self._handler:
            return
        if current in self._beneath:
            del self._beneath[self._beneath.index(current) + 1 :]
        else:
            if len(self._beneath) >= _MOST_BENEATH:
                del self._beneath[1]
            self._beneath.append(current)
        self._loop.set_exception_handler(self._handler)

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Tell it, and go on with the handler beneath, or with the next one if it comes back from there.

        As when ours replaced theirs, and theirs, set later, replaced ours and passes on to what it
        found: loop -> ours -> theirs -> ours again, which must neither tell it twice nor call theirs
        again -> what was there before both.
        """
        outer = self._handling.context, self._handling.depth
        depth = outer[1] + 1 if outer[0] is context else 0
        if depth == 0 and self._listeners:
            self._tell(context)
        beneath = self._beneath[-1 - depth] if depth < len(self._beneath) else None
        if beneath is None:
            return
        self._handling.context, self._handling.depth = context, depth
        try:
            beneath(loop, context)
        finally:
            self._handling.context, self._handling.depth = outer

    def _tell(self, context: dict[str, Any]) -> None:
        first = self._listeners[0]
        try:
            if is_supervised(context):
                return
            exchange = born_in(context)
            listener = concerned(exchange, self._listeners, first)
            listener.meter.unhandled(kind_of(context))
            _keep(listener.incidents, context, exchange)
            log_failure(context, exchange)
        except Exception:
            first.meter.internal_error("failures")


class _Handling(threading.local):
    """The failure being handled, of a thread: the collector calls the handler in any."""

    context: dict[str, Any] | None = None
    depth = 0


def _keep(incidents: Incidents, context: dict[str, Any], exchange: Exchange | None) -> None:
    task, exc = task_of(context), context.get("exception")
    incidents.unhandled(
        kind_of(context),
        exception=None if exc is None else type(exc).__qualname__,
        coro=None if task is None else coro_of(task),
        frame=raised_in(exc) or (None if task is None else birthplace(task)),
        task=None if task is None else title_of(task),
        exchange=exchange,
    )
