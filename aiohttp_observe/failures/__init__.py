"""Failures that nobody handled: counted, and logged once with where they were born.

============  ==================================================================
``loop``      what the loop's exception handler is told
``process``   what no loop is told: threads, finalizers, coroutines never awaited
``context``   what there is to read in what the handler is told
``line``      the log lines, and what becomes of a flood of them
``listener``  which application is told
============  ==================================================================
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

from ..exchange import Scope
from ..incidents import Incidents
from ..options import check_flag, check_positive
from .line import tell_left_out
from .listener import FailureListener
from .loop import LoopHandler
from .process import Hook, never_awaited, raised_in_threads, unraisable

__all__ = ["FailureWatch", "Failures"]


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What is done about failures that nobody handled.

    ``never_awaited``     whether coroutines that were never awaited are told too, default ``True``
    ``outside_loop``      whether exceptions that end a thread, and those in ``__del__`` and the
                          like, are told too, default ``True``
    ``origins``           whether each coroutine remembers the line that made it, for when it is
                          never awaited, default ``False``: it costs about as much as making one
    ``shutdown_timeout``  seconds that spawned tasks have to stop after being cancelled at
                          clean-up, default 10
    """

    never_awaited: bool = True
    outside_loop: bool = True
    origins: bool = False
    shutdown_timeout: float = 10.0

    def __post_init__(self) -> None:
        check_flag("Failures(never_awaited=...)", self.never_awaited)
        check_flag("Failures(outside_loop=...)", self.outside_loop)
        check_flag("Failures(origins=...)", self.origins)
        check_positive("Failures(shutdown_timeout=...)", self.shutdown_timeout, "seconds")

    def install(self, loop: asyncio.AbstractEventLoop, scope: Scope, incidents: Incidents) -> FailureWatch:
        """Watch ``loop``, at start-up, in its thread; closing the result restores what was before."""
        hooks = [never_awaited] if self.never_awaited else []
        if self.outside_loop:
            hooks += [raised_in_threads, unraisable]
        return FailureWatch(LoopHandler.of(loop), hooks, FailureListener(scope, incidents), self)


class FailureWatch:
    """Hears of the failures that concern one application."""

    def __init__(
        self, handler: LoopHandler, hooks: list[Hook], listener: FailureListener, options: Failures
    ) -> None:
        self._handler = handler
        self._hooks = hooks
        self._listener = listener
        handler.enter(listener)
        for hook in hooks:
            hook.enter(listener)
        if options.origins:
            _origins.enter(self)

    def tick(self) -> None:
        """Notice what no event announces; to be called several times a second."""
        self._handler.stay_in_front()
        tell_left_out()

    def close(self) -> None:
        _origins.leave(self)
        for hook in self._hooks:
            hook.leave(self._listener)
        self._handler.leave(self._listener)
        tell_left_out(at_once=True)


class _Origins:
    """Has coroutines remember the line that made them, while anybody wants it."""

    def __init__(self) -> None:
        self._users: set[FailureWatch] = set()
        self._is_ours = False

    def enter(self, user: FailureWatch) -> None:
        if not self._users and not sys.get_coroutine_origin_tracking_depth():
            self._is_ours = True
            sys.set_coroutine_origin_tracking_depth(1)
        self._users.add(user)

    def leave(self, user: FailureWatch) -> None:
        """Stop for ``user``, which may never have entered."""
        self._users.discard(user)
        if self._is_ours and not self._users:
            self._is_ours = False
            if sys.get_coroutine_origin_tracking_depth() == 1:
                sys.set_coroutine_origin_tracking_depth(0)


_origins = _Origins()
