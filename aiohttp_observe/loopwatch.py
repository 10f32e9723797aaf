"""The loop watch: how late the event loop runs, how busy it is, and which line blocks it.

A *pulse*, a timer on the loop, measures how late it is and does nothing else.  A *watchdog*, a
thread, sleeps until the pulse is overdue, and then looks at what the loop's thread is doing,
again and again until the pulse is back.  So a loop that waits is never taken for a blocked
one, it costs next to nothing while all is well, and any loop implementation will do.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import sysconfig
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from time import perf_counter
from types import CodeType, FrameType
from typing import Any

from .exchange import Meter
from .options import check_positive
from .tasks.model import Blocked, Frame, LoopState
from .tasks.places import place_of
from .tasks.tracker import exchange_of, number_of

__all__ = ["LoopMonitor", "LoopWatch"]

logger = logging.getLogger("aiohttp_observe.loopwatch")

_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 0.005, 0.05
"""Seconds between beats of the pulse, however short or long the threshold is."""
_LONGEST_PAUSE = 1.0
"""Seconds between looks at a long block."""
_STILL_BLOCKED = 5.0
"""Age in seconds at which a block is told though it goes on: it may never end."""
_DEEPEST = 50
_MOST_SIGHTINGS = 50
_WINDOW = 10
"""Seconds that utilization looks back."""
_CLOSE_TIMEOUT = 2.0


@dataclass(frozen=True, kw_only=True)
class LoopWatch:
    """When the event loop counts as blocked.

    ``threshold``  seconds that callbacks may keep the loop from turning, default 0.1

    The loop's timer beats four times a threshold (every 5 to 50 ms), and the lag of each beat
    is measured.  A stretch shorter than the threshold is never told, one that is longer by a
    beat always is, and its duration is right to half a beat.

    Each block is counted once and logged once, when it ends: how long, the line seen there
    most often (the innermost of the service's own code, if there is one), the task, and the
    request and trace it works for.  One that lasts 5 s is logged then as well, with
    ``still_blocked``, so that a hung loop isn't silent.

    Not counted, and seen in the lag only: stretches in which the watching thread could not run
    either while the loop's thread used no CPU, because then no line is to blame but a process
    that was stopped, starved of CPU, or whose other threads kept the interpreter lock.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_positive("LoopWatch(threshold=...)", self.threshold, "seconds")

    def install(self, loop: asyncio.AbstractEventLoop, meter: Meter) -> LoopMonitor:
        """Watch ``loop``, which runs in the calling thread, and report to ``meter``.

        Applications on one loop share one watch, with the threshold of the first, and each
        distinct meter hears everything once.
        """
        watch = _watches.get(loop)
        if watch is None:
            watch = _watches[loop] = _Watch(loop, self.threshold)
        return LoopMonitor(watch, meter)


class LoopMonitor:
    """One application's share in the watch of its loop.  All but `close` works from any thread."""

    def __init__(self, watch: _Watch, meter: Meter) -> None:
        self._watch = watch
        self._meter = meter
        self._open = True
        watch.join(meter)

    @property
    def lag(self) -> float:
        """Seconds by which the last beat was late."""
        return self._watch.pulse.lag

    def utilization(self) -> float | None:
        """Share of the last 10 s that the loop's thread was on a CPU, 0 to 1.

        A thread that sleeps is not: blocking calls show as blocked seconds instead.  ``None``
        where threads have no CPU clock (macOS).
        """
        return self._watch.usage.share()

    def blocked_now(self) -> Blocked | None:
        """What blocks the loop at this moment; ``None`` if nothing does, or for the loop's own thread."""
        return self._watch.blocked_now()

    def state(self) -> LoopState:
        """All three, as the task console shows them."""
        return LoopState(self.lag, self.utilization() or 0.0, self.blocked_now())

    def close(self) -> None:
        """Stop watching for this application; call it in the loop's thread.

        The last one ends the timer and the thread, which it waits for, 2 s at most.  A second
        call has no effect.
        """
        if self._open:
            self._open = False
            self._watch.leave(self._meter)


class _Watch:
    """Pulse and watchdog of one loop, and the meters of the applications that want them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threshold: float) -> None:
        self._loop = loop
        self._threshold = threshold
        self._meters: list[Meter] = []
        self._wake = threading.Event()
        self._thread = _LoopThread(loop)
        self.usage = _Usage(self._thread)
        self.pulse = _Pulse(loop, threshold, self._wake)
        self._watchdog = _Watchdog(self._thread, self.usage, self.pulse, threshold, self._wake, self._forget)

    def join(self, meter: Meter) -> None:
        self._meters.append(meter)
        self.pulse.meters = tuple(dict.fromkeys(self._meters))

    def leave(self, meter: Meter) -> None:
        self._meters.remove(meter)
        if self._meters:
            self.pulse.meters = tuple(dict.fromkeys(self._meters))
            return
        self._forget()
        self.pulse.stop()
        self._watchdog.stop()

    def blocked_now(self) -> Blocked | None:
        pulse = self.pulse
        overdue = perf_counter() - pulse.due
        if overdue < self._threshold or threading.get_ident() == self._thread.ident:
            return None
        seen = self._thread.look(pulse.caller)
        if seen is None:
            return None
        return Blocked(overdue + pulse.interval / 2, seen.task, seen.request_id, seen.trace_id, seen.stack)

    def _forget(self) -> None:
        if _watches.get(self._loop) is self:
            del _watches[self._loop]


_watches: dict[asyncio.AbstractEventLoop, _Watch] = {}


class _Pulse:
    """The timer on the loop: ``due`` is when it beats next, ``late`` which beats came how late.

    ``caller`` is the code that calls the loop's callbacks, as a thread's stack shows it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threshold: float, wake: threading.Event) -> None:
        self.meters: tuple[Meter, ...] = ()
        self.interval = min(max(threshold / 4, _SHORTEST_INTERVAL), _LONGEST_INTERVAL)
        self.lag = 0.0
        self.late: deque[tuple[float, float]] = deque(maxlen=16)
        self.caller: CodeType | None = None
        self.due = perf_counter()
        self._loop = loop
        self._threshold = threshold
        self._wake = wake
        self._timer: asyncio.Handle = loop.call_soon(self._beat)

    def stop(self) -> None:
        self._timer.cancel()
        if self._loop.is_running() and perf_counter() >= self.due:  # what blocks it just now is told too
            self._measure()

    def _beat(self) -> None:
        self._timer = self._loop.call_later(self.interval, self._beat)
        self.caller = sys._getframe(1).f_code
        self._measure()

    def _measure(self) -> None:
        now = perf_counter()
        due = self.due
        # A timer may come a little early: on uvloop they count in whole milliseconds.
        self.lag = lag = max(now - due, 0.0)
        if lag >= self._threshold:
            self.late.append((due, lag))
            self._wake.set()
        self.due = now + self.interval
        _report(self.meters, lambda meter: meter.loop_lag(lag))


class _Watchdog:
    """The thread that looks while the pulse is overdue, and tells what it saw."""

    def __init__(
        self,
        loop_thread: _LoopThread,
        usage: _Usage,
        pulse: _Pulse,
        threshold: float,
        wake: threading.Event,
        over: Callable[[], None],
    ) -> None:
        self._loop_thread = loop_thread
        self._usage = usage
        self._pulse = pulse
        self._threshold = threshold
        # Early, so that even a block just over the threshold has been seen when it ends; not earlier,
        # because each time this thread wakes it contends with a busy loop for the interpreter lock.
        self._suspicious = threshold * 0.75
        self._wake = wake
        self._over = over
        self._stopping = False
        self._pause = 0.0
        self._planned = perf_counter()
        self._cpu = loop_thread.cpu_seconds()
        self._block: _Block | None = None
        self._thread = threading.Thread(target=self._run, name="aiohttp-observe-loop-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(_CLOSE_TIMEOUT)

    def _run(self) -> None:
        last = False
        while not last:
            self._planned = perf_counter() + self._pause
            self._wake.wait(self._pause)
            self._wake.clear()
            last = self._stopping or (self._pulse.due < self._planned and self._loop_thread.is_gone())
            self._pause = self._attend_safely()
        self._over()

    def _attend_safely(self) -> float:
        try:
            return min(self._attend(), _LONGEST_PAUSE)
        except Exception:
            _report(self._pulse.meters, lambda meter: meter.internal_error("loopwatch"))
            return self._suspicious

    def _attend(self) -> float:
        """Do what there is to do; returns the seconds until there may be more."""
        due = self._pulse.due  # before the late beats: an end that is missed here is told next time
        now = perf_counter()
        starved = self._starved(now)
        if self._block is not None:
            self._block.starved += starved
        self._tell_ended()
        overdue = now - due
        if overdue < self._suspicious:
            return self._suspicious - overdue
        block = self._block
        if block is None or block.due != due:
            block = self._block = _Block(due, min(starved, overdue))
        self._look(block, overdue - block.starved)
        return max(overdue, self._threshold) / 4

    def _starved(self, now: float) -> float:
        """Seconds for which nothing ran: not this thread, which is late, nor the loop's, which used no CPU.

        A callback that keeps the interpreter lock (a regular expression, one large sort) makes
        this thread late too, but uses CPU meanwhile.
        """
        cpu = self._loop_thread.cpu_seconds()
        used, self._cpu = cpu - self._cpu, cpu
        self._usage.note(now, cpu)
        late = now - self._planned
        if late < self._threshold / 4:
            return 0.0
        # What it used while this thread was asleep as planned says nothing of the time since.
        return max(late - max(used - self._pause, 0.0), 0.0)

    def _look(self, block: _Block, lasting: float) -> None:
        seen = self._loop_thread.look(self._pulse.caller)
        if self._pulse.due != block.due:  # it ended meanwhile
            return
        block.add(seen)
        if lasting >= _STILL_BLOCKED and block.seen and not block.told:
            block.told = True
            _tell(block, lasting + self._pulse.interval / 2, still=True)

    def _tell_ended(self) -> None:
        late = self._pulse.late
        while late:
            due, lag = late.popleft()
            block = self._block
            if block is not None and block.due == due:
                self._block = None
                self._end(block, lag - block.starved)

    def _end(self, block: _Block, lasted: float) -> None:
        if lasted < self._threshold or not block.seen:
            return
        # It began somewhere between two beats.
        seconds = lasted + self._pulse.interval / 2
        _report(self._pulse.meters, lambda meter: meter.loop_blocked(seconds))
        _tell(block, seconds, still=False)


@dataclass(frozen=True, slots=True)
class _Sighting:
    """What the loop's thread was seen doing: ``place`` is the line to name.  Plain values only."""

    place: Frame
    task: int | None
    task_name: str | None = field(compare=False)
    request: str | None = field(compare=False)
    request_id: str | None = field(compare=False)
    trace_id: str | None = field(compare=False)
    stack: tuple[Frame, ...] = field(compare=False)


class _Block:
    """What was seen while the beat that was due at ``due`` did not come."""

    def __init__(self, due: float, starved: float) -> None:
        self.due = due
        self.starved = starved
        self.told = False
        self.looks = 0
        self.seen: Counter[_Sighting] = Counter()

    def add(self, seen: _Sighting | None) -> None:
        self.looks += 1
        if seen is not None and (seen in self.seen or len(self.seen) < _MOST_SIGHTINGS):
            self.seen[seen] += 1


class _LoopThread:
    """The thread that runs the loop, seen from another one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ident = threading.get_ident()
        self.clock = _cpu_clock(self.ident)
        self._loop = loop

    def is_gone(self) -> bool:
        """Whether nobody will run the loop any more."""
        return self._loop.is_closed() or self.ident not in sys._current_frames()

    def cpu_seconds(self) -> float:
        """CPU time of the thread, of the whole process where threads have no clock."""
        if self.clock is None:
            return time.process_time()
        try:
            return self.clock()
        except OSError:  # the thread has ended
            return 0.0

    def look(self, caller: CodeType | None) -> _Sighting | None:
        """What it does now, ``None`` unless it is in a callback.  ``caller``: see `_Pulse`."""
        if not self._loop.is_running():
            return None
        stack = _callback_stack(sys._current_frames().get(self.ident), caller)
        return _sighting(stack, _current_task(self._loop)) if stack else None


class _Usage:
    """How much of the time a thread is on a CPU."""

    def __init__(self, thread: _LoopThread) -> None:
        self._thread = thread
        self._noted = deque([(perf_counter(), thread.cpu_seconds())], maxlen=_WINDOW)

    def note(self, now: float, cpu: float) -> None:
        if now - self._noted[-1][0] >= 1.0:
            self._noted.append((now, cpu))

    def share(self) -> float | None:
        since, before = self._noted[0]
        elapsed = perf_counter() - since
        if self._thread.clock is None or elapsed <= 0:
            return None
        return min(max((self._thread.cpu_seconds() - before) / elapsed, 0.0), 1.0)


def _cpu_clock(ident: int) -> Callable[[], float] | None:
    clock_of = getattr(time, "pthread_getcpuclockid", None)  # not on macOS
    return None if clock_of is None else partial(time.clock_gettime, clock_of(ident))


def _current_task(loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task(loop)
    except RuntimeError:  # a loop implementation that answers in its own thread only
        return None


_HANDLE_RUN = asyncio.Handle._run.__code__


def _callback_stack(frame: FrameType | None, caller: CodeType | None) -> tuple[Frame, ...]:
    """Where a loop's thread is within a callback, innermost first; empty if it isn't in one."""
    stack: list[Frame] = []
    while frame is not None and frame.f_code is not caller:
        if len(stack) < _DEEPEST:
            stack.append(place_of(frame.f_code, frame.f_lasti))
        frame = frame.f_back
    if frame is None:  # asyncio's select has no Handle._run beneath it
        return ()
    if not stack and caller is _HANDLE_RUN:  # a callback written in C, which has no frame
        stack.append(place_of(frame.f_code, frame.f_lasti))
    return tuple(stack)


def _sighting(stack: tuple[Frame, ...], task: asyncio.Task[Any] | None) -> _Sighting:
    place = next((frame for frame in stack if not _is_library(frame.file)), stack[0])
    exchange = None if task is None else exchange_of(task)
    return _Sighting(
        place=place,
        task=None if task is None else number_of(task),
        task_name=None if task is None else task.get_name(),
        request=None if exchange is None else f"{exchange.method} {exchange.route}",
        request_id=None if exchange is None else exchange.request_id,
        trace_id=None if exchange is None else exchange.trace_id,
        stack=stack,
    )


_INSIDE = tuple(
    f"{path}/"
    for path in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), PurePath(__file__).parent)
)


def _is_library(file: str) -> bool:
    """Whether code is not the service's own: the standard library's, an installed package's or ours."""
    return file.startswith(("<frozen ", *_INSIDE)) or "/site-packages/" in file or "/dist-packages/" in file


def _tell(block: _Block, seconds: float, *, still: bool) -> None:
    """Log it, in the watchdog's thread: the loop is blocked, or has just got going again."""
    ((sighting, count),) = block.seen.most_common(1)
    place = sighting.place
    logger.warning(
        "event loop %s %.2f s in %s (%s:%d) by %s%s",
        "still blocked after" if still else "blocked for",
        seconds,
        place.function,
        PurePath(place.file).name,
        place.line,
        _culprit(sighting),
        "" if count == block.looks else f", seen there at {count} of {block.looks} looks",
        extra=_fields(sighting, seconds, still),
    )


def _culprit(sighting: _Sighting) -> str:
    if sighting.task_name is None:
        return "a callback"
    request = "" if sighting.request is None else f", {sighting.request}"
    return f"task {sighting.task_name}{request}"


def _fields(sighting: _Sighting, seconds: float, still: bool) -> dict[str, Any]:
    """The ``extra`` of the log line: those that there are."""
    place = sighting.place
    fields = {
        "blocked_ms": round(seconds * 1000, 1),
        "code.function": place.function,
        "code.filepath": place.file,
        "code.lineno": place.line,
        "still_blocked": still or None,
        "task": sighting.task_name,
        "request_id": sighting.request_id,
        "trace_id": sighting.trace_id,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _report(meters: tuple[Meter, ...], to: Callable[[Meter], None]) -> None:
    """Report ``to`` each meter; one that raises, against its contract, harms nobody."""
    for meter in meters:
        try:
            to(meter)
        except Exception:
            with suppress(Exception):
                meter.internal_error("loopwatch")
