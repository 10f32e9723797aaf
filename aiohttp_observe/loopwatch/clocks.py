"""What is read at each beat: the CPU time of the loop's thread and of the process, and collections'."""

from __future__ import annotations

import gc
import threading
import time
from time import perf_counter
from typing import Any, NamedTuple

__all__ = ["COLLECTIONS", "ClockReading", "read"]


class ClockReading(NamedTuple):
    """Seconds, each since some moment in the past; all threads' CPU time is ``process``.

    ``waits`` is how often the thread gave its CPU away to wait for something, ``None`` where
    the system doesn't tell (all but Linux).
    """

    at: float
    cpu: float
    process: float
    collecting: float
    waits: int | None


def read() -> ClockReading:
    """The clocks now; ``cpu`` and ``waits`` are the calling thread's.  About 2 µs."""
    return ClockReading(perf_counter(), _own_cpu(), time.process_time(), COLLECTIONS.seconds, _own_waits())


_own_cpu = getattr(time, "thread_time", time.process_time)


def _own_waits() -> int | None:
    return None if _OF_THREAD is None else resource.getrusage(_OF_THREAD).ru_nvcsw


try:
    import resource
except ImportError:  # Windows
    _OF_THREAD = None
else:
    _OF_THREAD = getattr(resource, "RUSAGE_THREAD", None)


class _Collections:
    """The seconds that garbage collections took, in whichever thread: they stop all.

    Measured by one hook in `gc.callbacks`, which is there while anybody wants it.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0
        self._users: set[object] = set()
        self._lock = threading.Lock()

    def enter(self, user: object) -> None:
        with self._lock:
            if not self._users:
                self._began = 0.0
                gc.callbacks.append(self._hear)
            self._users.add(user)

    def leave(self, user: object) -> None:
        """Stop counting for ``user``; a second call has no effect."""
        with self._lock:
            if user in self._users:
                self._users.remove(user)
                if not self._users:
                    gc.callbacks.remove(self._hear)

    def _hear(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._began = perf_counter()
        elif self._began:
            self.seconds += perf_counter() - self._began


COLLECTIONS = _Collections()
"""The one of the process."""
