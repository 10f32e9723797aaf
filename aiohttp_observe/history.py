"""The last minutes of the service, as a few numbers every other second."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter, time
from typing import Any

from .texts import timestamp

__all__ = ["History"]

_INTERVAL = 2.0
"""Seconds between points."""
_POINTS = 150
"""Those of five minutes."""


class History:
    """A ring of points; ``note`` is called several times a second on the loop.

    ``lag``, ``utilization``, ``requests`` and ``in_flight`` are asked for the current values:
    seconds, share, number of requests ended so far, number of those being served.
    """

    def __init__(
        self,
        lag: Callable[[], float],
        utilization: Callable[[], float],
        requests: Callable[[], int],
        in_flight: Callable[[], int],
    ) -> None:
        self._lag = lag
        self._utilization = utilization
        self._requests = requests
        self._in_flight = in_flight
        self._points: deque[dict[str, Any]] = deque(maxlen=_POINTS)
        self._since = perf_counter()
        self._ended = 0
        self._worst_lag = 0.0

    def note(self) -> None:
        """Add a point if it is time for one; its lag is the worst seen since the last one."""
        self._worst_lag = max(self._worst_lag, self._lag())
        now = perf_counter()
        if now - self._since >= _INTERVAL:
            self._points.append(self.now())
            self._since, self._ended, self._worst_lag = now, self._requests(), 0.0

    def now(self) -> dict[str, Any]:
        """The point of this moment; works from any thread."""
        passed = max(perf_counter() - self._since, 0.001)
        rate = max(self._requests() - self._ended, 0) / passed
        if passed < _INTERVAL / 4 and self._points:  # too short to tell
            rate = self._points[-1]["requests_per_second"]
        at = timestamp(time())
        return {
            "at": at,
            "lag_seconds": round(max(self._worst_lag, self._lag()), 6),
            "utilization": round(self._utilization(), 4),
            "requests_per_second": round(rate, 2),
            "in_flight": self._in_flight(),
        }

    def points(self) -> list[dict[str, Any]]:
        """The points that are kept, oldest first."""
        return list(self._points)
