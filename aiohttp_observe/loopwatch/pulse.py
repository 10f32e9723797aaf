"""The timer on the loop: how late it comes, and what was used meanwhile."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from time import perf_counter
from types import CodeType

from ..exchange import Exchange, Meter
from .clocks import ClockReading, read
from .reporting import report

__all__ = ["Late", "Pulse"]

_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 0.005, 0.05
"""Seconds between beats of the pulse, however short or long the threshold is."""
_STALL = 0.002 if sys.platform != "win32" else 0.02
"""Lag in seconds from which on a loop counts as stalled: uvloop's timers count in whole milliseconds,
those of Windows in ticks of 15.6 ms."""
_AFTERMATH = 0.005
"""Seconds after a stall in which the callbacks still run that were kept waiting by it."""


@dataclass(frozen=True, slots=True)
class Late:
    """A beat that was due at ``due`` and came ``lag`` seconds late, and the clocks at both ends.

    ``holder`` is the request that held the loop for most of it, if one did, or the one of a route's
    requests that held it longest, if these did together.
    """

    due: float
    lag: float
    before: ClockReading
    after: ClockReading
    holder: Exchange | None

    @property
    def worked(self) -> float:
        """Seconds for which the loop's thread was on a CPU."""
        return self.after.cpu - self.before.cpu


_Holds = tuple[float, float, Exchange]
"""Seconds for which the requests of a route have held the loop, the longest time, and whose that was."""


class Pulse:
    """``due`` is when it beats next; ``hear`` is told, on the loop, of beats that are too late.

    ``caller`` is the code that calls the loop's callbacks, as a thread's stack shows it.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, threshold: float, hear: Callable[[Late], None]
    ) -> None:
        self.meters: tuple[Meter, ...] = ()
        self.interval = min(max(threshold / 4, _SHORTEST_INTERVAL), _LONGEST_INTERVAL)
        self.shortest_lag = max(threshold - self.interval, _SHORTEST_INTERVAL)
        """The lag of a block as long as the threshold that began right after a beat."""
        self.lag = 0.0
        self.caller: CodeType | None = None
        self.due = perf_counter()
        self.stalled_from = 0.0
        self.stalled_until = 0.0
        self.before = read()
        """The clocks at the last beat."""
        self._loop = loop
        self._hear = hear
        self._holds: dict[str, _Holds] = {}
        self._timer: asyncio.Handle = loop.call_soon(self._beat)

    def stop(self) -> None:
        self._timer.cancel()
        if self._loop.is_running() and perf_counter() >= self.due:  # what blocks it just now is told too
            self._measure()
        self.due = math.inf
        self.stalled_until = 0.0
        self._holds = {}

    def stalled_since(self, now: float) -> float | None:
        """Since when the loop hasn't turned, if it is late at ``now`` or was a moment before."""
        due = self.due
        if now - due > _STALL:
            return due
        return self.stalled_from if now < self.stalled_until else None

    def held(self, exchange: Exchange, seconds: float) -> None:
        """A request has just held the loop for so long."""
        held, longest, whose = self._holds.get(exchange.route) or (0.0, 0.0, exchange)
        if seconds > longest:
            longest, whose = seconds, exchange
        self._holds[exchange.route] = held + seconds, longest, whose

    def _holder_of(self, lag: float) -> Exchange | None:
        held, _, whose = max(self._holds.values(), key=itemgetter(0), default=(0.0, 0.0, None))
        return whose if held * 2 > lag else None

    def _beat(self) -> None:
        self._timer = self._loop.call_later(self.interval, self._beat)
        self.caller = sys._getframe(1).f_code
        self._measure()

    def _measure(self) -> None:
        before, self.before = self.before, read()
        now, due = self.before.at, self.due
        # A timer may come a little early: on uvloop they count in whole milliseconds.
        self.lag = lag = max(now - due, 0.0)
        self.due = now + self.interval
        if lag > _STALL:
            self.stalled_from, self.stalled_until = due, now + _AFTERMATH
            if lag >= self.shortest_lag:
                self._hear(Late(due, lag, before, self.before, self._holder_of(lag)))
        self._holds = {}
        report(self.meters, lambda meter: meter.loop_lag(lag))
