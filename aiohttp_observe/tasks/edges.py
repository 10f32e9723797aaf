"""Who waits for whom, where the await chain itself doesn't lead there."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Iterator, Sequence
from types import CellType, GeneratorType
from typing import Any, NamedTuple

from .chain import held_by

__all__ = [
    "Awaited",
    "awaited",
    "first_is_enough",
    "grouped",
    "next_completed",
    "next_is_enough",
    "next_is_timed",
    "task_of_wait_for",
    "wait_is_timed",
    "waited_set",
]

_AS_COMPLETED = asyncio.as_completed.__code__
_TaskGroup: Any = getattr(asyncio, "TaskGroup", ())  # from Python 3.11


class Awaited(NamedTuple):
    """What a future at the end of a chain is, and the futures it stands for."""

    kind: str
    detail: str
    on: tuple[Any, ...] = ()


_FUTURE = Awaited("future", "future")
_EXECUTOR = Awaited("executor", "run_in_executor")


def awaited(future: Any, callbacks: Sequence[Any] | None = None) -> Awaited:
    """What it means to await ``future``, which ``gather``, ``shield`` and executors leave no frame for.

    ``callbacks`` are the future's own unless it is done, and has none any more.
    """
    if isinstance(future, asyncio.Task):
        return Awaited("task", "task", (future,))
    children = getattr(future, "_children", None)
    if isinstance(children, list):
        return Awaited("gather", "gather", tuple(_gathered(children)))
    for callback, _ in callbacks or getattr(future, "_callbacks", None) or ():
        name = getattr(callback, "__qualname__", None)
        if name == "shield.<locals>._outer_done_callback":
            return _shielded(inspect.getclosurevars(callback).nonlocals.get("inner"))
        if name == "_chain_future.<locals>._call_check_cancel":
            return _EXECUTOR
    return _FUTURE


def _gathered(children: Iterable[Any], depth: int = 8) -> Iterator[Any]:
    """What a gather waits for, what is gathered by a gather within it included."""
    for child in children:
        within = getattr(child, "_children", None)
        if isinstance(within, list) and depth:
            yield from _gathered(within, depth - 1)
        else:
            yield child


def _shielded(inner: Any) -> Awaited:
    if isinstance(inner, asyncio.Task):
        return Awaited("shield", "shield", (inner,))
    within = awaited(inner)
    return Awaited("shield", f"shield → {within.detail}", within.on)


def task_of_wait_for(awaitables: Sequence[Any], index: int) -> Iterable[Any]:
    """The task in which ``asyncio.wait_for`` runs a coroutine, up to Python 3.11."""
    return (held for held in held_by(awaitables[index]) if isinstance(held, asyncio.Task))


def waited_set(awaitables: Sequence[Any], index: int) -> Iterable[Any]:
    """What ``asyncio.wait`` waits for."""
    return next((held for held in held_by(awaitables[index]) if type(held) is set), ())


def wait_is_timed(awaitables: Sequence[Any], index: int) -> bool:
    """Whether ``asyncio.wait`` or ``wait_for`` was given a timeout, the only number it holds."""
    return any(isinstance(held, (int, float)) for held in held_by(awaitables[index]))


def first_is_enough(awaitables: Sequence[Any], index: int) -> bool:
    """Whether ``asyncio.wait`` may return before all are done."""
    return asyncio.ALL_COMPLETED not in [held for held in held_by(awaitables[index]) if type(held) is str]


def next_is_enough(awaitables: Sequence[Any], index: int) -> bool:
    """Whether one of the futures is enough: ``asyncio.as_completed`` waits for any one."""
    return True


def grouped(awaitables: Sequence[Any], index: int) -> Iterable[Any]:
    """The tasks that a ``TaskGroup`` waits for at its end."""
    groups = (held for held in held_by(awaitables[index]) if isinstance(held, _TaskGroup))
    return next((group._tasks for group in groups), ())


def next_completed(awaitables: Sequence[Any], index: int) -> Iterable[Any]:
    """What ``asyncio.as_completed`` waits for.

    From Python 3.13 on its iterator knows; before, the generator that is iterated over in the
    caller's frame does.
    """
    for held in held_by(awaitables[index]):
        if hasattr(held, "_todo"):
            return held._todo  # type: ignore[no-any-return]
    cells = _cells_of_completion(awaitables, index)
    return next((content for content in cells if type(content) is set), ())


def next_is_timed(awaitables: Sequence[Any], index: int) -> bool:
    """Whether ``asyncio.as_completed`` was given a timeout, for which it keeps a timer."""
    for held in held_by(awaitables[index]):
        if hasattr(held, "_timeout_handle"):
            return held._timeout_handle is not None
    # By name: uvloop's is a class of its own.
    return any(type(held).__name__ == "TimerHandle" for held in _cells_of_completion(awaitables, index))


def _cells_of_completion(awaitables: Sequence[Any], index: int) -> list[Any]:
    """What the functions within ``as_completed`` share, up to Python 3.12."""
    around = held_by(awaitables[index - 1]) if index else ()
    for held in around:
        if type(held) is GeneratorType and held.gi_code is _AS_COMPLETED:
            return [cell.cell_contents for cell in held_by(held) if type(cell) is CellType]
    return []
