"""How much of the time a loop's thread is on a CPU."""

from __future__ import annotations

from collections import deque
from time import perf_counter

from .pulse import Pulse
from .thread import LoopThread

__all__ = ["Usage"]

_WINDOW = 10
"""Seconds that utilization looks back."""


class Usage:
    """``note`` is called several times a second, ``share`` by whoever wants to know it."""

    def __init__(self, thread: LoopThread, pulse: Pulse) -> None:
        self._thread = thread
        self._pulse = pulse
        self._noted = deque([(perf_counter(), self._cpu_seconds())], maxlen=_WINDOW)

    def note(self, now: float) -> None:
        if now - self._noted[-1][0] >= 1.0:
            self._noted.append((now, self._cpu_seconds()))

    def share(self) -> float:
        since, before = self._noted[0]
        elapsed = perf_counter() - since
        return min(max((self._cpu_seconds() - before) / elapsed, 0.0), 1.0) if elapsed > 0 else 0.0

    def _cpu_seconds(self) -> float:
        """Where no other thread can read its clock: as the loop's own has read it last."""
        return self._pulse.before.cpu if self._thread.clock is None else self._thread.cpu_seconds()
