"""Where a thread spends its time: its stack, looked at a hundred times a second from another thread."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import PurePath
from types import FrameType

from .switchinterval import short_switch_interval
from .tasks import caller_of, innermost_frames

__all__ = ["NoProfileError", "end_profile", "profile"]

_INTERVAL = 0.01
_DEEPEST = 100
_MOST_STACKS = 5000
_at_work = threading.Lock()
_enough = threading.Event()
"""Set when the one that is being taken is to end; each has its own."""


class NoProfileError(RuntimeError):
    """None can be taken now."""


def profile(ident: int, seconds: float) -> str:
    """Collapsed stacks of the thread ``ident``, as flame graph tools read them; blocks for ``seconds``.

    A line each: the functions from the outermost to the innermost, with ``;`` between, and how
    often they were seen.  Raises `NoProfileError` while another one is being taken.
    """
    global _enough
    if not _at_work.acquire(blocking=False):
        raise NoProfileError("a profile is being taken: wait for its end")
    try:
        _enough = enough = threading.Event()
        with short_switch_interval():  # or all that is seen of a busy thread is where it sends and receives
            seen = _sample(ident, seconds, enough)
    finally:
        _at_work.release()
    return "".join(f"{stack} {count}\n" for stack, count in seen.most_common())


def end_profile() -> None:
    """Have the one that is being taken, if there is, end at once with what it has seen."""
    _enough.set()


def _sample(ident: int, seconds: float, enough: threading.Event) -> Counter[str]:
    seen: Counter[str] = Counter()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        frame = innermost_frames().get(ident)
        if frame is not None:
            stack = _collapsed(frame)
            seen[stack if stack in seen or len(seen) < _MOST_STACKS else "_other"] += 1
        frame = None  # or the stack would be kept alive for as long as this waits
        if enough.wait(_INTERVAL):
            break
    return seen


def _collapsed(frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None and len(names) < _DEEPEST:
        code = frame.f_code
        names.append(f"{code.co_name} ({PurePath(code.co_filename).name}:{frame.f_lineno})".replace(";", ","))
        frame = caller_of(frame)
    return ";".join(reversed(names))
