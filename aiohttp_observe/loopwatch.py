"""Loop watch: how late the event loop is, how busy, and which line blocks it.

A timer on the loop measures its lag.  A thread sleeps until that timer would be overdue by
the threshold; if it is then, the loop is blocked right now, and the thread reads from
outside what the loop's thread is doing.  An idle loop runs its timer in time, so waiting is
never taken for blocking; and a thread that woke late itself looks again before it believes
that the loop, and not the whole process, was held up.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

from .exchange import Exchange, Meter
from .options import check_positive
from .tasks import Blocked, Frame, LoopState, exchange_of, number_of, stack_of

__all__ = ["LoopMonitor", "LoopWatch"]

logger = logging.getLogger("aiohttp_observe.loopwatch")

_SAMPLE_INTERVAL = 0.02
_MOST_SAMPLES = 100
"""Stacks read of one block: the line named is the one seen most often."""
_HUNG_SECONDS = 5.0
"""A block this long is told of while it lasts, since it may never end."""
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class LoopWatch:
    """How the event loop is watched.

    ``threshold``  seconds the loop may be held before it counts as blocked, default 0.1

    Of several applications on one loop the first one's threshold holds.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_positive("LoopWatch(threshold=...)", self.threshold, "seconds")

    def install(self, loop: asyncio.AbstractEventLoop, meter: Meter) -> LoopMonitor:
        """Watch ``loop``, which must be running in this thread, until the result is closed."""
        watch = _watches.get(loop)
        if watch is None:
            watch = _watches[loop] = _Watch(loop, self.threshold)
        return LoopMonitor(watch, meter)


class LoopMonitor:
    """One application's share in the watch of its loop; readable from any thread."""

    def __init__(self, watch: _Watch, meter: Meter) -> None:
        self._watch = watch
        self._meter = meter
        watch.meters.append(meter)

    def utilization(self) -> float | None:
        """Share of the last seconds that the loop's thread was on a CPU, 0 to 1; ``None`` if unknown."""
        return self._watch.utilization()

    def state(self) -> LoopState:
        """What the task console shows of the loop."""
        watch = self._watch
        return LoopState(watch.lag, watch.utilization() or 0.0, watch.blocked_now())

    def close(self) -> None:
        """Stop; the last application on the loop to do so ends the watch."""
        self._watch.meters.remove(self._meter)
        if not self._watch.meters:
            self._watch.close()


class _Block:
    """One stretch for which the loop is held, as far as it is known."""

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self.task_name = None if task is None else task.get_name()
        self.task_id = None if task is None else number_of(task)
        self.exchange: Exchange | None = None if task is None else exchange_of(task)
        self.stack: tuple[Frame, ...] = ()
        self._seen: Counter[Frame] = Counter()

    def look(self, thread_id: int) -> None:
        """Read where the loop's thread is now."""
        self.stack = stack_of(sys._current_frames().get(thread_id))
        if self.stack:
            self._seen[_culprit(self.stack)] += 1

    @property
    def line(self) -> Frame | None:
        """Where it was seen most often."""
        return self._seen.most_common(1)[0][0] if self._seen else None


def _culprit(stack: tuple[Frame, ...]) -> Frame:
    """The innermost frame of the service's own code, else the innermost of all."""
    return next((frame for frame in stack if not _is_library(frame.file)), stack[0])


def _is_library(file: str) -> bool:
    return file.startswith((_STDLIB, "<frozen ", _OURS)) or "site-packages" in file


_STDLIB = asyncio.__file__.rpartition("asyncio")[0]
_OURS = __file__.rpartition("loopwatch")[0]


class _Watch:
    """The timer and the thread of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threshold: float) -> None:
        self.meters: list[Meter] = []
        self.lag = 0.0
        self._loop = loop
        self._threshold = threshold
        self._interval = min(threshold / 4, 0.1)
        self._thread_id = threading.get_ident()
        self._cpu = _CpuShare(self._thread_id)
        self._closed = threading.Event()
        self._block: _Block | None = None
        self._due = perf_counter() + self._interval
        self._timer = loop.call_later(self._interval, self._tick)
        self._thread = threading.Thread(target=self._run, name="aiohttp-observe-loop-watch", daemon=True)
        self._thread.start()

    def utilization(self) -> float | None:
        return self._cpu.share

    def blocked_now(self) -> Blocked | None:
        block, since = self._block, self._due
        if block is None:
            return None
        exchange = block.exchange
        return Blocked(
            round(perf_counter() - since, 3),
            block.task_id,
            None if exchange is None else exchange.request_id,
            None if exchange is None else exchange.trace_id,
            stack_of(sys._current_frames().get(self._thread_id)) or block.stack,
        )

    def close(self) -> None:
        _watches.pop(self._loop, None)
        self._closed.set()
        self._timer.cancel()
        self._thread.join(_CLOSE_SECONDS)

    def _tick(self) -> None:
        """On the loop, as late as the loop is."""
        now = perf_counter()
        self.lag = lag = max(0.0, now - self._due)
        for meter in dict.fromkeys(self.meters):
            meter.loop_lag(lag)
        self._due = now + self._interval
        self._timer = self._loop.call_later(self._interval, self._tick)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._watch_once()
            except Exception:
                for meter in dict.fromkeys(self.meters):
                    meter.internal_error("loop_watch")
                self._closed.wait(self._threshold)

    def _watch_once(self) -> None:
        due = self._due
        until = due + self._threshold
        self._closed.wait(max(until - perf_counter(), 0.0))
        self._cpu.read()
        late = perf_counter() - until
        if late > self._threshold / 4:  # we were held up ourselves: let the loop have its turn first
            self._closed.wait(self._threshold / 4)
        if self._due == due and not self._closed.is_set():
            self._follow_block(due)

    def _follow_block(self, due: float) -> None:
        block = self._block = _Block(_current_task(self._loop))
        samples, told = 0, False
        while self._due == due and not self._closed.is_set():
            if samples < _MOST_SAMPLES:
                block.look(self._thread_id)
                samples += 1
            if not told and perf_counter() - due > _HUNG_SECONDS:
                told = True
                _log("event loop still blocked after", perf_counter() - due, block)
            self._closed.wait(_SAMPLE_INTERVAL if samples < _MOST_SAMPLES else self._threshold)
        self._block = None
        if self._due != due:
            self._report(block, self._due - self._interval - due)

    def _report(self, block: _Block, seconds: float) -> None:
        if block.exchange is not None:
            block.exchange.scope.meter.loop_blocked(seconds)
        else:
            for meter in dict.fromkeys(self.meters):
                meter.loop_blocked(seconds)
        _log("event loop blocked for", seconds, block)


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch] = WeakKeyDictionary()


def _current_task(loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task(loop)
    except RuntimeError:
        return None


def _log(what: str, seconds: float, block: _Block) -> None:
    """In the watching thread: the loop is held, or has just got going again."""
    line, exchange = block.line, block.exchange
    fields: dict[str, Any] = {"blocked_ms": round(seconds * 1000, 1)}
    message = f"{what} {seconds:.2f} s"
    if line is not None:
        fields |= {"code.function": line.function, "code.filepath": line.file, "code.lineno": line.line}
        message += f" in {line.function} ({line.file.rpartition('/')[2]}:{line.line})"
    if block.task_name is not None:
        fields["task"] = block.task_name
        message += f" by task {block.task_name}"
    if exchange is not None:
        ids = {"request_id": exchange.request_id, "trace_id": exchange.trace_id, "span_id": exchange.span_id}
        fields |= {name: value for name, value in ids.items() if value is not None}
        message += f", {exchange.method} {exchange.route}"
    logger.warning("%s", message, extra=fields)


class _CpuShare:
    """The share of a thread on a CPU, read from its CPU clock by another thread."""

    def __init__(self, thread_id: int) -> None:
        self.share: float | None = None
        get_clock = getattr(time, "pthread_getcpuclockid", None)  # not on macOS
        self._clock: int | None = None if get_clock is None else get_clock(thread_id)
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        return perf_counter(), 0.0 if self._clock is None else time.clock_gettime(self._clock)

    def read(self) -> None:
        if self._clock is None:
            return
        wall, cpu = self._now()
        elapsed = wall - self._began[0]
        if elapsed < 1.0:
            return
        self.share = min(max((cpu - self._began[1]) / elapsed, 0.0), 1.0)
        self._began = (wall, cpu)
