"""The frames of other threads, read without a risk to the interpreter."""

from __future__ import annotations

import gc
import operator
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

__all__ = ["caller_of", "innermost_frames"]


def _undisturbed(read: Callable[[], Any]) -> Any:
    """What ``read``, which is written in C, returns, with no collection meanwhile.

    The three are called from C, so that no other thread has a turn between them.  No variable
    holds the result: one of the frames in it is this one, which must not keep itself alive.
    """
    if not gc.isenabled():
        return read()
    return tuple(map(operator.call, (gc.disable, read, gc.enable)))[1]  # type: ignore[attr-defined]


def _read_innermost_frames() -> dict[int, FrameType]:
    return _undisturbed(sys._current_frames)  # type: ignore[no-any-return]


def _read_caller(frame: FrameType) -> FrameType | None:
    return _undisturbed(partial(getattr, frame, "f_back"))  # type: ignore[no-any-return]


# Python 3.11 makes frame objects when they are asked for, and may collect garbage meanwhile: a
# finalizer then lets the other thread go on and leave the very function that an object is being
# made for, which ends in a crash.  From 3.12 on nothing is collected at that point; before 3.11
# the objects exist anyway.
_MAKES_OBJECTS = sys.version_info[:2] == (3, 11)

innermost_frames: Callable[[], dict[int, FrameType]] = (
    _read_innermost_frames if _MAKES_OBJECTS else sys._current_frames
)
"""The innermost frame of each thread, by its identifier."""
caller_of: Callable[[FrameType], FrameType | None] = (
    _read_caller if _MAKES_OBJECTS else operator.attrgetter("f_back")
)
"""The frame that called one of another thread, ``None`` for the outermost."""
