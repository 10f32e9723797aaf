"""Who could take something out of a full queue: known only if nobody unseen refers to it.

A queue says nothing of its readers.  But if every reference to it is a local variable of live
tasks, or a closure's that these share, then nobody else can get at it; and of these tasks
only those whose code there says ``get`` will.

A task that can't be followed, whose awaitable is like no other, may do anything.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from types import CellType, CodeType, FunctionType
from typing import Any, Protocol

from .chain import Chain, held_by, running_places
from .places import is_library
from .tracker import coroutine_of, number_of

__all__ = ["may_release", "readers_of", "running_codes"]

_TAKES = {"get", "get_nowait"}


class Holder(Protocol):
    """Has the queue as its ``resource``; nothing in this room may keep another reference to that."""

    resource: Any


def readers_of(holder: Holder, tasks: Iterable[asyncio.Task[Any]], known: int) -> list[int] | None:
    """The ids of the tasks that may read the queue; ``None`` if somebody unseen may.

    ``known`` is the number of references to it besides the holder's and the tasks'.
    """
    references = _References(holder)
    readers = [number_of(task) for task in tasks if references.add(task)]
    if sys.getrefcount(holder.resource) != references.counted() + known + 2:  # the holder's, the call's
        return None
    return None if references.may_be_read_later() else readers


def may_release(task: asyncio.Task[Any]) -> bool:
    """Whether the service's code that ``task`` is in gives back some permit, or may for all we know."""
    try:
        codes = [frame.f_code for frame in Chain.of(task).frames]
    except Exception:  # an awaitable that is like no other
        return True
    return any(
        "release" in code.co_names and not is_library(code.co_filename)
        for code in (*codes, *running_codes(task))
    )


class _References:
    """The references to a queue that frames of tasks hold, directly or by a closure's cell."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._direct = 0
        self._cells: dict[int, CellType] = {}
        self._functions: dict[int, FunctionType] = {}
        self._started: set[CodeType] = set()
        self._unseen = False

    def counted(self) -> int:
        return self._direct + len(self._cells)

    def add(self, task: asyncio.Task[Any]) -> bool:
        """Look at the frames of ``task``; returns whether it may read the queue."""
        reads = False
        try:
            frames = list(_frames(task))
        except Exception:  # an awaitable that is like no other
            self._unseen = True
            return True
        for code, held in frames:
            self._started.add(code)
            if self._holds(held) and code.co_filename != asyncio.queues.__file__:
                reads = reads or _takes(code)
        for code in running_codes(task):
            reads = reads or _takes(code)
            shares = bool(code.co_cellvars or code.co_freevars)
            self._unseen = self._unseen or (shares and code not in self._started)
        return reads

    def _holds(self, held: Iterable[Any]) -> bool:
        found = False
        for each in held:
            if each is self._holder.resource:
                self._direct += 1
                found = True
            elif type(each) is CellType and self._is_content_of(each):
                self._cells[id(each)] = each
                found = True
            elif type(each) is FunctionType:
                self._functions[id(each)] = each
        return found

    def _is_content_of(self, cell: CellType) -> bool:
        try:
            return cell.cell_contents is self._holder.resource
        except ValueError:  # not yet assigned
            return False

    def may_be_read_later(self) -> bool:
        """Whether a function that hasn't been started shares the closure and reads from it, or may."""
        return self._unseen or any(
            function.__code__ not in self._started
            and _takes(function.__code__)
            and any(id(cell) in self._cells for cell in function.__closure__ or ())
            for function in self._functions.values()
        )


def _takes(code: CodeType) -> bool:
    return not _TAKES.isdisjoint(code.co_names)


def _frames(task: asyncio.Task[Any]) -> Iterator[tuple[CodeType, list[Any]]]:
    """Code and references of each frame of a task: of its await chain, or of what it runs."""
    chain = Chain.of(task)
    for awaitable, frame in zip(chain.awaitables, chain.frames, strict=True):
        yield frame.f_code, held_by(awaitable)
    running = chain.awaitables[-1] if chain.awaitables else None
    while getattr(running, "cr_running", False):  # nothing is awaited: it is on the stack
        running = next((each for each in held_by(running) if getattr(each, "cr_running", False)), None)
        if running is not None:
            yield running.cr_code, held_by(running)


def running_codes(task: asyncio.Task[Any]) -> list[CodeType]:
    """The service's own code that a task runs now, innermost first; not all of what it holds can be seen."""
    if not getattr(coroutine_of(task), "cr_running", False):
        return []
    return [code for _, code, _ in running_places(task) if not is_library(code.co_filename)]
