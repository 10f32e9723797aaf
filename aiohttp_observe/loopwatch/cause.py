"""Why the loop was held: one small rule a cause, from what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..incidents import Cause

__all__ = ["Measurements", "cause_of"]

_MOST, _NEARLY_ALL = 0.5, 0.8
_WORKING, _IDLE = 0.6, 0.4
"""Shares of time on a CPU: the stretch that is measured begins up to a beat before the block."""
_SOME = 0.3
_SERVED = 0.1
"""Share of the CPU time it wanted that a line must have got, to be blamed for more than bad luck."""
_ONE_CORE = 0.7


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured between the beats around a block, in seconds.

    ``seconds``     between the beats
    ``blocked``     of these, that the block lasted
    ``cpu``         CPU time of the loop's thread
    ``others``      CPU time of all other threads
    ``collecting``  spent collecting garbage, in whichever thread
    ``throttled``   in which the container got no CPU
    ``queued``      in which the loop's thread could have run, and others had its CPU; 0 where
                    that isn't known
    ``starved``     in which the watching thread couldn't run, though it wanted to
    ``contending``  in which the loop's thread woke at every switch interval, as one does that
                    waits for the interpreter lock; ``None`` where that isn't known
    ``in_call``     whether the thread was mostly seen in a call of something not Python code
    """

    seconds: float
    blocked: float
    cpu: float
    others: float
    collecting: float
    throttled: float
    queued: float
    starved: float
    contending: float | None
    in_call: bool

    @property
    def busy(self) -> float:
        """Share of the time that the loop's thread was on a CPU."""
        return self.cpu / self.seconds

    @property
    def wanted(self) -> float:
        """Share of the time that it was on one or would have been, had other processes not had it."""
        return (self.cpu + self.queued) / self.seconds

    @property
    def off(self) -> float:
        """Seconds for which it was not on a CPU."""
        return max(self.seconds - self.cpu, 0.0)

    @property
    def asleep(self) -> float:
        """Seconds for which it did not want one."""
        return max(self.off - self.queued, 0.0)


def cause_of(facts: Measurements) -> Cause:
    """The first rule that applies."""
    return next(filter(None, (rule(facts) for rule in _RULES)))


def _throttled(facts: Measurements) -> Cause | None:
    share = min(facts.throttled, facts.off) / facts.blocked
    if share < _MOST:
        return None
    evidence = f"the container got no CPU for {facts.throttled:.2f} s: it had used up its share"
    return Cause("throttled", _grade(share), evidence)


def _gc(facts: Measurements) -> Cause | None:
    share = facts.collecting / facts.blocked
    if share < _MOST:
        return None
    return Cause(
        "gc", _grade(share), f"garbage was collected for {min(facts.collecting, facts.blocked):.2f} s of it"
    )


def _gil(facts: Measurements) -> Cause | None:
    """Other threads use a core while the loop's is off its CPU, but doesn't sleep."""
    if facts.wanted >= _WORKING or facts.others < _ONE_CORE * facts.asleep:
        return None
    evidence = f"other threads used {facts.others:.2f} s of CPU while the loop's, with {facts.cpu:.2f} s, "
    if facts.starved >= _MOST * facts.blocked:
        return Cause("gil", "high", evidence + "and the watching one couldn't run")
    if facts.contending is None:
        return Cause("gil", "low", evidence + "may have waited for them") if facts.busy >= _SOME else None
    if facts.contending < _SOME * facts.asleep:
        return None
    confidence = "high" if facts.contending >= _MOST * facts.asleep else "medium"
    return Cause("gil", confidence, evidence + "asked for the interpreter lock again and again")


def _cpu(facts: Measurements) -> Cause | None:
    if facts.wanted < _WORKING or facts.busy < _SERVED * facts.wanted:
        return None
    return Cause("cpu", _grade(facts.busy), _time_on_cpu(facts))


def _blocking_call(facts: Measurements) -> Cause | None:
    if facts.wanted > _IDLE or facts.starved >= _MOST * facts.blocked:
        return None
    if facts.in_call:
        return Cause("blocking_call", "high", f"{_time_on_cpu(facts)}, and was seen waiting in a call")
    return Cause("blocking_call", "medium", _time_on_cpu(facts))


def _unknown(facts: Measurements) -> Cause:
    return Cause("unknown", "low", _time_on_cpu(facts))


_RULES: tuple[Callable[[Measurements], Cause | None], ...] = (
    _throttled,
    _gc,
    _gil,
    _cpu,
    _blocking_call,
    _unknown,
)
"""What stops every thread comes first, and what only the loop's own thread does last."""


def _grade(share: float) -> str:
    return "high" if share >= _NEARLY_ALL else "medium"


def _time_on_cpu(facts: Measurements) -> str:
    queued = f", and queued for one for {facts.queued:.2f} s" if facts.queued >= _SOME * facts.seconds else ""
    return f"the loop's thread was on a CPU for {facts.cpu:.2f} of {facts.seconds:.2f} s{queued}"
