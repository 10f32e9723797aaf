"""How soon a thread that works has to let others have a turn."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["short_switch_interval"]

_INTERVAL = 0.0002
"""Seconds of a turn then; `sys.getswitchinterval` is 0.005 unless somebody has set it."""
_lock = threading.Lock()
_wanted = 0
_usual = 0.0


@contextmanager
def short_switch_interval() -> Iterator[None]:
    """Have a waiting thread get its turn at once, wherever the others are.

    One that looks at others would otherwise see them only where they let go of the
    interpreter by themselves, as they send or wait, if they do so every few milliseconds.
    """
    global _wanted, _usual
    with _lock:
        if not _wanted:
            _usual = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual, _INTERVAL))
        _wanted += 1
    try:
        yield
    finally:
        with _lock:
            _wanted -= 1
            if not _wanted:
                sys.setswitchinterval(_usual)
