"""The await chain of a task: from its own coroutine down to the innermost one that is suspended.

``Task.get_stack()`` gives only the outermost frame of a suspended task, so the chain is
followed by hand, through coroutines, generators, async generators, `drive`, and objects
written in C or with an ``__await__`` of their own.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

from .drive import drive
from .model import Frame
from .places import place_of
from .threads import caller_of, innermost_frames
from .tracker import coroutine_of, is_made_by_wait_for

__all__ = ["Chain", "held_by", "running_places"]

_DEEPEST = 2000
"""Links that are followed at most: nobody reads more, and a chain that never ends must."""

_DRIVE = drive.__code__
_WAIT_FOR = asyncio.wait_for.__code__
_FRAMES_ARE_APART = sys.version_info < (3, 11)
_FRAME_ATTRIBUTES = ("cr_frame", "gi_frame", "ag_frame")
_WAIT_FOR_MAKES_A_TASK = sys.version_info < (3, 12)


class Chain:
    """The await chain of a task, outermost first.

    ``awaitables``  the suspended coroutines and generators
    ``frames``      the frame of each
    ``key``         code and instruction of each: equal for tasks that stand at the same places
    ``leaf``        the future that the innermost awaits, ``None`` if the task is ready
    ``waits``       whether the task waits, for the future that it awaits itself
    ``own``         how many are the task's own: up to Python 3.11 ``wait_for`` runs what it
                    waits for in a task of its own, whose chain follows here as it does on
                    newer versions

    Given a coroutine and the future that its task awaits; `of` finds both.
    """

    __slots__ = ("awaitables", "frames", "key", "leaf", "own", "waits")

    def __init__(self, coro: Any, leaf: Any) -> None:
        self.awaitables: list[Any] = []
        self.frames: list[FrameType] = []
        places: list[int] = []
        self._follow(coro, places)
        self.leaf = leaf
        self.waits = self.leaf is not None and not self.leaf.done()
        self.own = len(self.frames)
        if _WAIT_FOR_MAKES_A_TASK:
            self._follow_helpers(places)
        self.key = tuple(places)

    @classmethod
    def of(cls, task: asyncio.Task[Any]) -> Chain:
        """The chain of a task as it stands now."""
        return cls(coroutine_of(task), getattr(task, "_fut_waiter", None))

    def _follow(self, awaitable: Any, places: list[int]) -> None:
        awaitables, frames = self.awaitables, self.frames
        for _ in range(_DEEPEST):
            if type(awaitable) is CoroutineType:
                frame, inner = awaitable.cr_frame, awaitable.cr_await
            else:
                frame, inner = _READ.get(type(awaitable), _read_other)(awaitable)
            if frame is not None:
                awaitables.append(awaitable)
                frames.append(frame)
                places.append(id(frame.f_code))
                places.append(frame.f_lasti)
            if inner is None:
                break
            awaitable = inner

    def _follow_helpers(self, places: list[int]) -> None:
        while self.frames and self.frames[-1].f_code is _WAIT_FOR and len(self.frames) < _DEEPEST:
            timed = _timed_future(self.awaitables[-1], self.leaf)
            if not isinstance(timed, asyncio.Task) or not is_made_by_wait_for(timed) or self._is_given(timed):
                self.leaf = timed or self.leaf
                break
            known = len(self.frames)
            self._follow(coroutine_of(timed), places)
            self.leaf = getattr(timed, "_fut_waiter", None)
            if len(self.frames) == known:  # it has just ended
                break

    def _is_given(self, task: asyncio.Task[Any]) -> bool:
        """Whether the code around ``wait_for`` has ``task``, so that it can't be made in there."""
        return any(held is task for around in self.awaitables[:-1] for held in held_by(around))

    def module(self, index: int) -> str:
        """The name of the module that a frame's code is in."""
        name: str | None = self.frames[index].f_globals.get("__name__")
        if name is None:  # the frames of what Cython compiled have no globals
            name = getattr(self.awaitables[index], "__module__", "")
        return name

    def place(self, index: int) -> Frame:
        """Where a frame stood when the chain was followed."""
        return place_of(self.frames[index].f_code, self.key[2 * index + 1])


def _read_generator(generator: GeneratorType[Any, Any, Any]) -> tuple[FrameType | None, Any]:
    if generator.gi_code is _DRIVE:
        return generator.gi_frame, next(filter(_is_link, held_by(generator)), None)
    return generator.gi_frame, generator.gi_yieldfrom


def _read_async_generator(generator: AsyncGeneratorType[Any, Any]) -> tuple[FrameType | None, Any]:
    return generator.ag_frame, generator.ag_await


def _read_nothing(awaitable: Any) -> tuple[FrameType | None, Any]:
    return None, None


def _read_other(awaitable: Any) -> tuple[FrameType | None, Any]:
    """Frame and next link of a coroutine that Cython compiled, or an iterator in front of what is awaited."""
    if type(awaitable).__name__ == "FutureIter":  # the end of nearly every chain
        return None, None
    if hasattr(awaitable, "cr_await"):
        return awaitable.cr_frame, awaitable.cr_await
    return None, next(_within(awaitable), None)


def _within(awaitable: Any) -> Iterator[Any]:
    """What an ``async_generator_asend``, a ``coroutine_wrapper``, an object's iterator, ... stands for."""
    for held in gc.get_referents(awaitable):
        # Up to Python 3.12 an object written in Python holds its attributes in a dictionary.
        for candidate in held.values() if type(held) is dict else (held,):
            if _is_link(candidate) or type(candidate).__name__ in _WRAPPERS:
                yield candidate


_READ: dict[type, Callable[[Any], tuple[FrameType | None, Any]]] = {
    GeneratorType: _read_generator,
    AsyncGeneratorType: _read_async_generator,
    type(None): _read_nothing,
}
_WRAPPERS = {
    "anext_awaitable",
    "async_generator_asend",
    "async_generator_athrow",
    "coroutine_wrapper",
}


def _is_link(held: Any) -> bool:
    return type(held) in (CoroutineType, GeneratorType, AsyncGeneratorType) or hasattr(held, "cr_await")


def _held_by_the_frame(awaitable: Any) -> list[Any]:
    frame = next(filter(None, (getattr(awaitable, name, None) for name in _FRAME_ATTRIBUTES)), None)
    return gc.get_referents(frame)


held_by: Callable[[Any], list[Any]] = _held_by_the_frame if _FRAMES_ARE_APART else gc.get_referents
"""What a suspended coroutine or generator holds: its locals and its evaluation stack."""


def _timed_future(wait_for: Any, waiter: Any) -> asyncio.Future[Any] | None:
    """What ``wait_for`` up to Python 3.11 waits for, where its coroutine awaits only ``waiter``."""
    for held in held_by(wait_for):
        if isinstance(held, asyncio.Future) and held is not waiter:
            return held
    return None


def running_places(task: asyncio.Task[Any]) -> list[tuple[str, CodeType, int]]:
    """Module, code and instruction of each frame of the running task, innermost first.

    Whatever thread its loop runs in.  Empty if it has stopped running meanwhile.
    """
    outermost = getattr(coroutine_of(task), "cr_frame", None)
    places: list[tuple[str, CodeType, int]] = []
    frames = list(innermost_frames().values())
    while frames:  # to the end: one is the frame of this very call, which must not keep itself alive
        places = _places_up_to(outermost, frames.pop()) or places
    return places


def _places_up_to(outermost: FrameType | None, frame: FrameType | None) -> list[tuple[str, CodeType, int]]:
    places = []
    while frame is not None:
        places.append((frame.f_globals.get("__name__", ""), frame.f_code, frame.f_lasti))
        if frame is outermost:
            return places
        frame = caller_of(frame)
    return []
