"""The thread that looks while the pulse is overdue, and tells what it saw."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from math import inf
from time import perf_counter

from ..exchange import Exchange
from ..incidents import Block, Cause
from ..switchinterval import short_switch_interval
from ..tasks import drive, is_library
from .cause import Measurements, cause_of
from .clocks import COLLECTIONS, ClockReading
from .pulse import Late, Pulse
from .reporting import BlockListener, inform, log_block, logger, report
from .samples import Samples
from .thread import DEEPEST, LoopThread, Sample, out_of_sight
from .throttling import Throttling
from .usage import Usage

__all__ = ["Watchdog"]

_LONGEST_PAUSE = 1.0
"""Seconds between looks at a long block."""
_STILL_BLOCKED = 5.0
"""Age in seconds at which a block is told though it goes on: it may never end."""
_MOMENT = 0.001
"""Seconds after which it is looked once more, whatever turns threads take."""
_CLOSE_TIMEOUT = 2.0
_DRIVE = drive.__code__.co_filename
"""Handlers are driven in there."""


class Watchdog:
    """Sleeps until ``pulse`` is overdue.  ``on_end`` is called when there is nothing left to watch."""

    def __init__(
        self,
        loop_thread: LoopThread,
        usage: Usage,
        pulse: Pulse,
        threshold: float,
        on_end: Callable[[], None],
    ) -> None:
        self.listeners: tuple[BlockListener, ...] = ()
        self._loop_thread = loop_thread
        self._usage = usage
        self._pulse = pulse
        self._threshold = threshold
        # Early, so that a block just as long as the threshold, which is overdue a beat less, has been
        # seen when it ends; not earlier, because each time this thread wakes it contends with a busy
        # loop for the interpreter lock.
        self._suspicious = threshold * 0.6
        self._on_end = on_end
        self._late: deque[Late] = deque(maxlen=16)
        self._throttling = _ThrottledSince(Throttling())
        self._queue = _Queue(loop_thread.queued_seconds)
        self._wake = threading.Event()
        self._stopping = False
        self._pause = 0.0
        self._planned = perf_counter()
        self._cpu = loop_thread.cpu_seconds()
        self._samples: Samples | None = None
        self._thread = threading.Thread(target=self._run, name="aiohttp-observe-loop-watch", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as exc:
            logger.error("event loop blocks show as lag only: %s", exc)

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT)

    def ended(self, late: Late) -> None:
        """A beat came late: called on the loop."""
        self._late.append(late)
        self._wake.set()

    def seen_in(self, late: Late) -> Sample | None:
        """What has been seen most while that beat didn't come; on the loop."""
        samples = self._samples
        return self._seen(late, None if samples is None or samples.due != late.due else samples)

    def _seen(self, late: Late, samples: Samples | None) -> Sample | None:
        seen = None if samples is None else samples.top
        holder = late.holder
        in_time = samples is not None and samples.looked_at < late.after.at - self._pulse.interval / 2
        if seen is not None and holder is not None and _is_of_others(seen, holder):
            return out_of_sight(holder)
        if in_time or late.worked < self._threshold:
            return seen
        # What keeps the interpreter lock may be over before this thread looks, since others get it next;
        # then somebody else is seen, or the server, which sends the answer.
        if seen is None or seen.place is None:
            return out_of_sight(holder)
        is_over = holder and (seen.request_id != holder.request_id or is_library(seen.place.file))
        return out_of_sight(holder) if is_over else seen

    def _run(self) -> None:
        last = False
        while not last:
            self._planned = perf_counter() + self._pause
            self._wake.wait(self._pause)
            self._wake.clear()
            last = self._stopping or (self._pulse.due < self._planned and self._loop_thread.is_gone())
            self._pause = self._attend_safely()
        self._on_end()

    def _attend_safely(self) -> float:
        try:
            return min(self._attend(), _LONGEST_PAUSE)
        except Exception:
            report(self._pulse.meters, lambda meter: meter.internal_error("loopwatch"))
            return self._suspicious

    def _attend(self) -> float:
        """Do what there is to do; returns the seconds until there may be more."""
        due = self._pulse.due  # before the late beats: an end that is missed here is told next time
        now = perf_counter()
        starved = self._starved(now)
        if self._samples is not None:
            self._samples.starved += starved
        self._tell_ended(starved)
        overdue = now - due
        if overdue < self._suspicious:
            self._throttling.note(now)
            self._queue.note(now)
            return self._suspicious - overdue
        samples = self._samples
        is_new = samples is None or samples.due != due
        if samples is None or is_new:
            samples = self._samples = Samples(due, min(starved, overdue))
        samples.runs_from = min(samples.runs_from, now) if self._loop_thread.runs() else inf
        seen = self._sample_while(due)
        if seen is not None:
            seen = self._sample_anywhere_while(due) or seen
        if seen is not None or self._pulse.due == due:
            samples.add(seen, now)
        if is_new:
            self._begin(overdue)
            inform(self.listeners, lambda listener: listener.suspected(), self._pulse.meters)
        self._tell_of_hanging(samples, now - samples.runs_from - samples.starved)
        return max(overdue, self._threshold) / 4

    def _sample_while(self, due: float) -> Sample | None:
        seen = self._loop_thread.sample(self._pulse.caller)
        return seen if self._pulse.due == due else None  # else it ended meanwhile

    def _sample_anywhere_while(self, due: float) -> Sample | None:
        """Once more: a thread that often lets others have a turn was seen where it does."""
        with short_switch_interval():
            time.sleep(_MOMENT)
            return self._sample_while(due)

    def _begin(self, overdue: float) -> None:
        """Take readings that let go of the interpreter lock: after the look, which may be the only one."""
        self._throttling.begin(overdue)
        self._queue.begin()

    def _starved(self, now: float) -> float:
        """Seconds for which nothing ran: not this thread, which is late, nor the loop's, which used no CPU.

        A callback that keeps the interpreter lock (a regular expression, one large sort) makes
        this thread late too, but uses CPU meanwhile.
        """
        cpu = self._loop_thread.cpu_seconds()
        used, self._cpu = cpu - self._cpu, cpu
        self._usage.note(now)
        late = now - self._planned
        if late < self._threshold / 4:
            return 0.0
        # What it used while this thread was asleep as planned says nothing of the time since.
        return max(late - max(used - self._pause, 0.0), 0.0)

    def _tell_of_hanging(self, samples: Samples, lasting: float) -> None:
        if lasting >= _STILL_BLOCKED and samples.top and not samples.told:
            samples.told = True
            seconds = lasting + self._pulse.interval / 2
            cause = self._cause_so_far(samples, seconds)
            block = _block(self._pulse, samples, samples.top, seconds, cause)
            log_block(block, samples, still=True)

    def _tell_ended(self, starved: float) -> None:
        while self._late:
            late = self._late.popleft()
            samples = self._samples
            if samples is None or samples.due != late.due:
                samples = Samples(late.due, min(starved, late.lag))
                self._begin(late.lag)
            else:
                self._samples = None
            self._end(samples, late)

    def _end(self, samples: Samples, late: Late) -> None:
        lasted = late.after.at - samples.runs_from
        if lasted <= 0:
            return
        # It began somewhere between two beats.
        seconds = min(late.lag, lasted) + self._pulse.interval / 2
        worked = late.worked
        # While its thread was on a CPU it wasn't starved, whatever this one was.
        samples.starved = min(samples.starved, max(late.after.at - late.before.at - worked, 0.0))
        queued = self._queue.seconds_of(late.lag)
        cause = self._cause(samples, seconds, late.before, late.after, queued)
        top = self._seen(late, samples)
        if self._nothing_ran(samples, seconds, worked):
            if cause.kind != "gil":
                return  # what was seen may have begun when that was over
            top = out_of_sight(None)  # another thread kept the loop and this one from running
        else:
            seconds -= self._not_its_own(samples, cause, worked, queued)
        if top is None or seconds + self._pulse.interval / 2 < self._threshold:
            return
        meters = self._pulse.meters
        report(meters, lambda meter: meter.loop_blocked(seconds))
        block = _block(self._pulse, samples, top, seconds, cause)
        inform(self.listeners, lambda listener: listener.blocked(block), meters)
        log_block(block, samples, still=False)

    def _nothing_ran(self, samples: Samples, seconds: float, worked: float) -> bool:
        """Whether neither this thread nor the loop's could run for most of it: no line is to blame."""
        return samples.found < 2 and samples.starved * 2 > seconds and worked < self._threshold

    def _not_its_own(self, samples: Samples, cause: Cause, worked: float, queued: float) -> float:
        """Seconds of a block for which the process could not run, unless just that is its cause."""
        if cause.kind in _STARVING and samples.found >= 2:
            return 0.0
        # Queueing for a CPU is part of a block by something that works for long enough itself.
        return max(samples.starved - (queued if worked >= self._threshold else 0.0), 0.0)

    def _cause_so_far(self, samples: Samples, seconds: float) -> Cause:
        before = self._pulse.before
        if self._loop_thread.clock is None:
            return Cause("unknown", "low", "it goes on, and this system has no CPU clock for it")
        cpu = self._loop_thread.cpu_seconds()
        now = ClockReading(perf_counter(), cpu, time.process_time(), COLLECTIONS.seconds, None)
        return self._cause(samples, seconds, before, now, self._queue.seconds_of(seconds))

    def _cause(
        self, samples: Samples, seconds: float, before: ClockReading, after: ClockReading, queued: float
    ) -> Cause:
        if samples.runs_from > samples.due:
            return Cause("unknown", "low", "it came first in a run of the loop, whose clocks began before")
        cpu = after.cpu - before.cpu
        return cause_of(
            Measurements(
                seconds=after.at - before.at,
                blocked=seconds,
                cpu=cpu,
                others=max(after.process - before.process - cpu, 0.0),
                collecting=after.collecting - before.collecting,
                throttled=self._throttling.seconds(),
                queued=min(queued, max(after.at - before.at - cpu, 0.0)),
                starved=samples.starved,
                contending=_contending(before, after),
                in_call=samples.in_calls * 2 > samples.seconds,
            )
        )


def _is_of_others(seen: Sample, holder: Exchange) -> bool:
    """Whether what was seen isn't in a handler of ``holder``'s route, which held the loop for most of it."""
    if seen.request is None:  # a callback, many tasks, or the server's task between two requests
        return seen.place is not None and is_library(seen.place.file)
    is_cut = len(seen.stack) >= DEEPEST
    is_in_handler = is_cut or any(frame.file == _DRIVE for frame in seen.stack)
    return seen.request != f"{holder.method} {holder.route}" or not is_in_handler


def _contending(before: ClockReading, after: ClockReading) -> float | None:
    if before.waits is None or after.waits is None:
        return None
    return (after.waits - before.waits) * sys.getswitchinterval()


_STARVING = ("throttled", "gil")
"""Causes that keep the watching thread from running too, and explain why it couldn't.

What it saw only once, after that, may have begun after it: no reason to name it."""


class _Queue:
    """For how long the loop's thread waited for a CPU in a block: at the rate of the part that is watched.

    A reading lets go of the interpreter lock, so it is taken once a second only while all is well.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self._noted = self._begun = (perf_counter(), read())

    def note(self, now: float) -> None:
        """All is well."""
        if now - self._noted[0] >= 1.0:
            self._noted = now, self._read()

    def begin(self) -> None:
        """A block has been seen for the first time."""
        self._begun = perf_counter(), self._read()

    def seconds_of(self, lasting: float) -> float:
        """Seconds of the last ``lasting`` for which it queued."""
        now, queued = perf_counter(), self._read()
        at, before = self._begun if now - self._begun[0] >= lasting / 2 else self._noted
        return min(max(queued - before, 0.0) / max(now - at, lasting / 2), 1.0) * lasting


class _ThrottledSince:
    """How long the container was throttled in a block, from two readings and one at most a second before."""

    def __init__(self, throttling: Throttling) -> None:
        self._now = throttling.seconds
        self._noted_at = perf_counter()
        self._noted = self._begun = throttling.seconds()
        self._missed = 0.0

    def note(self, now: float) -> None:
        """All is well."""
        if now - self._noted_at >= 1.0:
            self._noted_at, self._noted = now, self._now()

    def begin(self, overdue: float) -> None:
        """A block is seen for the first time, ``overdue`` seconds after it began."""
        self._begun = self._now()
        self._missed = min(self._begun - self._noted, overdue)

    def seconds(self) -> float:
        """Seconds for which it was throttled since the block began."""
        return self._missed + self._now() - self._begun


def _block(pulse: Pulse, samples: Samples, seen: Sample, seconds: float, cause: Cause) -> Block:
    return Block(
        started=samples.due - pulse.interval / 2,
        seconds=seconds,
        frame=seen.place,
        stack=seen.stack,
        task=seen.task,
        task_name=seen.task_name,
        request=seen.request,
        request_id=seen.request_id,
        trace_id=seen.trace_id,
        span=seen.span,
        scope=seen.scope,
        cause=cause,
    )
