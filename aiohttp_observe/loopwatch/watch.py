"""What is installed on a loop, and an application's share in it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from time import perf_counter

from ..exchange import Meter
from ..options import check_positive
from ..tasks import Blocked, LoopState
from .clocks import COLLECTIONS
from .pulse import Late, Pulse
from .reporting import BlockListener, inform
from .thread import LoopThread
from .usage import Usage
from .watchdog import Watchdog

__all__ = ["LoopMonitor", "LoopWatch"]


@dataclass(frozen=True, kw_only=True)
class LoopWatch:
    """When the event loop counts as blocked.

    ``threshold``  seconds that callbacks may keep the loop from turning, default 0.1

    The loop's timer beats four times a threshold (every 5 to 50 ms), and the lag of each beat
    is measured.  A stretch as long as the threshold is always told if that is 0.02 or more, one
    that is shorter by a beat never is, and its duration is right to half a beat.

    Each block is counted once and logged once, when it ends: how long, the line that took most
    of it (the innermost of the service's own code, if there is one), the task, the
    request and trace it works for, and the cause as far as it can be told.  The line isn't known of
    a call that keeps the interpreter lock if another thread gets it next.  One that lasts 5 s
    is logged then as well, with ``still_blocked``, so that a hung loop isn't silent.

    Not counted, and seen in the lag only: stretches in which the watching thread could not run
    either while the loop's thread used no CPU, because then no line is to blame but a process
    that was stopped or starved of CPU.  Where a container's limit explains it, it is told as
    such, if the loop was in a callback then, and where another thread kept the interpreter
    lock, always.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_positive("LoopWatch(threshold=...)", self.threshold, "seconds")

    def install(
        self, loop: asyncio.AbstractEventLoop, meter: Meter, blocks: BlockListener | None = None
    ) -> LoopMonitor:
        """Watch ``loop``, which runs in the calling thread, and report to ``meter``.

        ``blocks`` hears of each block.  Applications on one loop share one watch, with the
        threshold of the first, and each distinct meter hears everything once.
        """
        watch = _watches.get(loop)
        if watch is None:
            watch = _watches[loop] = _Watch(loop, self.threshold)
        return LoopMonitor(watch, meter, blocks)


class LoopMonitor:
    """One application's share in the watch of its loop.

    All but `stalled_since`, `held` and `close` works from any thread.
    """

    def __init__(self, watch: _Watch, meter: Meter, blocks: BlockListener | None) -> None:
        self._watch = watch
        self._share = (meter, blocks)
        self._open = True
        self.stalled_since = watch.pulse.stalled_since
        """`Pulse.stalled_since`, bound once: it is asked for every request."""
        self.held = watch.pulse.held
        """`Pulse.held`: of a block that nobody could look at, whose it was is known from here."""
        watch.join(self._share)

    @property
    def lag(self) -> float:
        """Seconds by which the last beat was late."""
        return self._watch.pulse.lag

    def utilization(self) -> float:
        """Share of the last 10 s that the loop's thread was on a CPU, 0 to 1.

        A thread that sleeps is not: blocking calls show as blocked seconds instead.
        """
        return self._watch.usage.share()

    def blocked_now(self) -> Blocked | None:
        """What blocks the loop at this moment; ``None`` if nothing does, or for the loop's own thread."""
        return self._watch.blocked_now()

    def state(self) -> LoopState:
        """All three, as the task console shows them; while the loop is blocked it lags by that."""
        blocked = self.blocked_now()
        lag = self.lag if blocked is None else max(self.lag, blocked.seconds)
        return LoopState(lag, self.utilization(), blocked)

    def close(self) -> None:
        """Stop watching for this application; call it in the loop's thread.

        The last one ends the timer and the thread, which it waits for, 2 s at most.  A second
        call has no effect.
        """
        if self._open:
            self._open = False
            self._watch.leave(self._share)


_Share = tuple[Meter, "BlockListener | None"]


class _Watch:
    """Pulse and watchdog of one loop, and the applications that want them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threshold: float) -> None:
        self._loop = loop
        self._threshold = threshold
        self._shares: list[_Share] = []
        self._thread = LoopThread(loop)
        self.pulse = Pulse(loop, threshold, self._hear)
        self.usage = Usage(self._thread, self.pulse)
        self._watchdog = Watchdog(self._thread, self.usage, self.pulse, threshold, self._forget)
        COLLECTIONS.enter(self)

    def join(self, share: _Share) -> None:
        self._shares.append(share)
        self._tell_whom()

    def leave(self, share: _Share) -> None:
        if len(self._shares) > 1:
            self._shares.remove(share)
            self._tell_whom()
            return
        self._forget()
        self.pulse.stop()
        self._watchdog.stop()

    def blocked_now(self) -> Blocked | None:
        pulse = self.pulse
        seconds = perf_counter() - pulse.due + pulse.interval / 2
        if seconds < self._threshold or threading.get_ident() == self._thread.ident:
            return None
        seen = self._thread.sample(pulse.caller)
        if seen is None:
            return None
        return Blocked(seconds, seen.task, seen.request_id, seen.trace_id, seen.stack, seen.place)

    def _hear(self, late: Late) -> None:
        """A beat came too late; those it kept waiting are still there, before they go on."""
        seen = self._watchdog.seen_in(late)
        if seen is not None:
            half = self.pulse.interval / 2
            started, seconds, culprit = late.due - half, late.lag + half, seen.request_id
            of = self._watchdog.listeners
            inform(of, lambda listener: listener.stalled(started, seconds, culprit), self.pulse.meters)
        self._watchdog.ended(late)

    def _tell_whom(self) -> None:
        self.pulse.meters = tuple(dict.fromkeys(meter for meter, _ in self._shares))
        self._watchdog.listeners = tuple(blocks for _, blocks in self._shares if blocks is not None)

    def _forget(self) -> None:
        COLLECTIONS.leave(self)
        if _watches.get(self._loop) is self:
            del _watches[self._loop]


_watches: dict[asyncio.AbstractEventLoop, _Watch] = {}
