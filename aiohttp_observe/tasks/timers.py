"""What the timers of a loop refer to: they may still end a wait that nothing else can."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import partial
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["within_reach_of_timers"]

_DEEPEST = 8
"""Links that are followed: what leads further is nobody's timer."""
_MOST = 100
"""Things that one link may have: more are nobody's timer either."""

_SLEEP = getattr(asyncio.futures, "_set_result_unless_cancelled", None)
_CONTAINERS = (tuple, list, set, dict)
_SLICE = 500
_LEAD_EVERYWHERE = (asyncio.Future, asyncio.AbstractEventLoop, asyncio.BaseProtocol, ModuleType, type)
"""A protocol's timers look after its connection, and leave the tasks it has alone."""


def within_reach_of_timers(
    loop: asyncio.AbstractEventLoop, wanted: Iterable[Any]
) -> Generator[None, None, list[Any]]:
    """Which of ``wanted``, tasks and locks, a timer's callback has: to cancel or to release, say.

    All timers of the loop are gone through, in slices, and where it doesn't show them all
    objects of the process: for suspects only.
    """
    left = {id(each): each for each in wanted}
    found = []
    for number, timer in enumerate(_timers(loop)):
        found += [left.pop(reached) for reached in _reached(timer, left)]
        if number % _SLICE == 0:
            yield
    return found


def _timers(loop: asyncio.AbstractEventLoop) -> list[Any]:
    scheduled = getattr(loop, "_scheduled", None)
    if scheduled is None:  # uvloop
        return [each for each in gc.get_objects() if type(each).__name__ == "TimerHandle"]
    return [timer for timer in list(scheduled) if timer._callback is not _SLEEP]


def _reached(timer: Any, wanted: Mapping[int, Any]) -> set[int]:
    """The ids of those that the timer's callback or arguments lead to."""
    found: set[int] = set()
    if timer.cancelled():
        return found
    seen: dict[int, Any] = {}
    shown = isinstance(timer, asyncio.TimerHandle)
    edge = [timer._callback, *(timer._args or ())] if shown else gc.get_referents(timer)
    for _ in range(_DEEPEST):
        new = {id(each): each for each in edge if id(each) not in seen}
        seen |= new
        found |= new.keys() & wanted.keys()
        edge = [further for each in new.values() for further in _led_to_by(each)]
    return found


def _led_to_by(each: Any) -> Sequence[Any]:
    """What ``each`` does something with, if it is a callback or a part of one."""
    if isinstance(each, FunctionType):
        return [*(each.__closure__ or ()), *(each.__defaults__ or ())]
    if isinstance(each, (MethodType, BuiltinMethodType)):
        owner = each.__self__
        return [owner] if isinstance(owner, _LEAD_EVERYWHERE) else [owner, *_few(gc.get_referents(owner))]
    if isinstance(each, _CONTAINERS):
        return gc.get_referents(each) if len(each) < _MOST else ()
    return gc.get_referents(each) if isinstance(each, (CellType, partial)) else ()


def _few(things: Sequence[Any]) -> Sequence[Any]:
    return things if len(things) < _MOST else ()
