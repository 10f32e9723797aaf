"""What was seen at the looks at one block, weighed by the time that each stands for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from math import inf

from ..tasks import Frame
from .thread import Sample

__all__ = ["Samples"]

_MOST = 50


class Samples:
    """What was seen while the beat that was due at ``due`` did not come.

    ``top``        the line that took the most time, and the task that was there for most of it; that
                   has no task, nor a request, if no single one had the loop for at least half of the time
    ``there``      seconds for which that line was seen there, of the ``seconds`` looked at
    ``by_many``    whether ``top`` has no task for that reason
    ``found``      how often something was seen
    ``looked_at``  when it was looked for the first time, `time.perf_counter` seconds
    ``in_calls``   seconds for which it was seen in a call of something not Python code
    ``runs_from``  since when the loop has run, as far as was seen: ``due``, unless it didn't run meanwhile;
                   infinite while it doesn't
    ``starved``    seconds in which the watching thread couldn't run either
    ``told``       whether it was told as one that goes on
    """

    def __init__(self, due: float, starved: float) -> None:
        self.due = self.runs_from = due
        self.starved = starved
        self.told = self.by_many = False
        self.found = 0
        self.seconds = self.there = self.in_calls = 0.0
        self.top: Sample | None = None
        self.looked_at = inf
        self._seen: defaultdict[Sample, float] = defaultdict(float)
        self._at: defaultdict[Frame | None, float] = defaultdict(float)
        self._by: defaultdict[int | None, float] = defaultdict(float)

    def add(self, seen: Sample | None, now: float) -> None:
        """Take in what is seen ``now``: it stands for the time since the last look."""
        lasted = max(now - self.due - self.seconds, 0.0)
        self.seconds += lasted
        self.looked_at = min(self.looked_at, now)
        if seen is None:
            return
        self.found += 1
        if seen.in_call:
            self.in_calls += lasted
        if seen in self._seen or len(self._seen) < _MOST:
            self._seen[seen] += lasted
            self._at[seen.place] += lasted
            self._by[seen.task] += lasted
            self._choose()

    def _choose(self) -> None:
        place = max(self._at, key=self._at.__getitem__)
        top = max((each for each in self._seen if each.place == place), key=self._seen.__getitem__)
        self.there = self._at[place]
        self.by_many = self._by[top.task] * 2 < sum(self._by.values())
        self.top = _nobodys(top) if self.by_many else top


def _nobodys(seen: Sample) -> Sample:
    return replace(
        seen, task=None, task_name=None, request=None, request_id=None, trace_id=None, span=None, scope=None
    )
