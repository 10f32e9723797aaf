"""The thread that runs a loop, seen from another one."""

from __future__ import annotations

import asyncio
import dis
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from ..exchange import Exchange
from ..incidents import SpanPlace
from ..tasks import (
    Frame,
    caller_of,
    exchange_of,
    innermost_frames,
    line_to_name,
    number_of,
    place_of,
    title_of,
)
from . import pulse
from .clocks import COLLECTIONS

__all__ = ["DEEPEST", "LoopThread", "Sample", "out_of_sight"]

DEEPEST = 50
"""Frames of a stack that are kept, the innermost ones."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the loop's thread was seen doing, or must have done.  Plain values only.

    ``place`` is the line to name, ``None`` if nobody could look, and then there is no ``stack`` either.
    """

    place: Frame | None
    task: int | None
    task_name: str | None = field(compare=False)
    request: str | None = field(compare=False)
    request_id: str | None = field(compare=False)
    trace_id: str | None = field(compare=False)
    span: SpanPlace | None = field(compare=False)
    scope: int | None = field(compare=False)
    stack: tuple[Frame, ...] = field(compare=False)
    in_call: bool = field(compare=False)
    """Whether its innermost line was in a call of something that isn't Python code."""


class LoopThread:
    """The thread that runs ``loop``: made in it, asked from another one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ident = threading.get_ident()
        self.clock = _cpu_clock(self.ident)
        self._schedstat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._loop = loop

    def is_gone(self) -> bool:
        """Whether nobody will run the loop any more."""
        return self._loop.is_closed() or self.ident not in innermost_frames()

    def runs(self) -> bool:
        """Whether the loop runs: between two runs it turns no more than when it is blocked."""
        return self._loop.is_running()

    def cpu_seconds(self) -> float:
        """CPU time of the thread, of the whole process where threads have no clock."""
        if self.clock is None:
            return time.process_time()
        try:
            return self.clock()
        except OSError:  # the thread has ended
            return 0.0

    def queued_seconds(self) -> float:
        """For how long the thread has waited for a CPU that others had; 0 where nothing tells.

        https://docs.kernel.org/scheduler/sched-stats.html
        """
        try:
            return int(self._schedstat.read_bytes().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0

    def sample(self, caller: CodeType | None) -> Sample | None:
        """What the thread does now, if it is in a callback of others.  ``caller``: see `Pulse`."""
        if not self.runs():
            return None
        frame = innermost_frames().get(self.ident)
        stack = _callback_stack(frame, caller)
        if frame is None or not stack or stack[-1].file == pulse.__file__:
            return None
        task = asyncio.current_task(self._loop)
        return _sample(stack, task, None if task is None else exchange_of(task), _is_in_call(frame))


def _cpu_clock(ident: int) -> Callable[[], float] | None:
    clock_of = getattr(time, "pthread_getcpuclockid", None)  # not on macOS
    return None if clock_of is None else partial(time.clock_gettime, clock_of(ident))


_HANDLE_RUN = asyncio.Handle._run.__code__
_COLLECTED = type(COLLECTIONS)._hear.__code__
"""What the collector calls of ours, wherever it works."""


def _callback_stack(frame: FrameType | None, caller: CodeType | None) -> tuple[Frame, ...]:
    """Where a loop's thread is within a callback, innermost first; empty if it isn't in one."""
    stack: list[Frame] = []
    while frame is not None and frame.f_code is not caller:
        if frame.f_code is not _COLLECTED and len(stack) < DEEPEST:
            stack.append(place_of(frame.f_code, frame.f_lasti))
        frame = caller_of(frame)
    if frame is None:  # asyncio's select has no Handle._run beneath it
        return ()
    if not stack and caller is _HANDLE_RUN:  # a callback written in C, which has no frame
        stack.append(place_of(frame.f_code, frame.f_lasti))
    return tuple(stack)


def _is_in_call(frame: FrameType) -> bool:
    """Whether the instruction a frame is at calls something: ``with`` and ``for`` do so unseen."""
    code, at = frame.f_code.co_code, frame.f_lasti
    name = dis.opname[code[at]] if 0 <= at < len(code) else ""
    return name.startswith(("CALL", "PRECALL", "BEFORE_", "WITH_", "SETUP_WITH", "FOR_ITER"))


def out_of_sight(exchange: Exchange | None) -> Sample:
    """The sample of a block that nobody saw, done for ``exchange`` as far as is known."""
    return _sample((), None, exchange, in_call=False)


def _sample(
    stack: tuple[Frame, ...], task: asyncio.Task[Any] | None, exchange: Exchange | None, in_call: bool
) -> Sample:
    span = None if exchange is None else exchange.span
    return Sample(
        place=line_to_name(stack),
        task=None if task is None else number_of(task),
        task_name=None if task is None else title_of(task),
        request=None if exchange is None else f"{exchange.method} {exchange.route}",
        request_id=None if exchange is None else exchange.request_id,
        trace_id=None if exchange is None else exchange.trace_id,
        span=None if exchange is None or span is None else _span_place(span, exchange),
        scope=None if exchange is None else id(exchange.scope),
        stack=stack,
        in_call=in_call,
    )


def _span_place(span: Any, exchange: Exchange) -> SpanPlace:
    return SpanPlace(span.trace_id, span.span_id, exchange.sampled, exchange.started)
