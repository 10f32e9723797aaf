"""Observations of a few requests, told to their histograms together."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable

from prometheus_client import Histogram

from ..exchange import taken

__all__ = ["Observe", "Tallies"]

Observe = Callable[[float], None]


class Tallies:
    """Makes series cheaper to observe; what was observed is in their histograms after `tell`.

    One thread at a time may observe or tell.  A finalizer that does so in the midst of it, in
    the same thread, does no harm.
    """

    def __init__(self) -> None:
        self._untold: deque[_Tally] = deque()

    def add(self, series: Histogram) -> Observe:
        try:
            return _Tally(series, self._untold).observe
        except AttributeError:  # not built as prometheus_client's have been, since 0.22 at least
            return series.observe

    def tell(self) -> None:
        for tally in taken(self._untold):
            tally.tell()


class _Tally:
    """What one series was observed to be since it was last told.

    ``Histogram.observe`` takes two locks and looks through the bounds for each observation;
    this takes them once for all that fell into one bucket.
    """

    __slots__ = ("_bounds", "_buckets", "_counts", "_sum", "_total", "_untold")

    def __init__(self, series: Histogram, untold: deque[_Tally]) -> None:
        self._bounds = series._upper_bounds
        self._buckets = series._buckets
        self._sum = series._sum
        self._untold = untold
        self._counts: dict[int, int] = {}
        self._total = 0.0

    def observe(self, value: float) -> None:
        bucket, counts = bisect_left(self._bounds, value), self._counts
        if not counts:
            self._untold.append(self)
        counts[bucket] = counts.get(bucket, 0) + 1
        self._total += value

    def tell(self) -> None:
        counts, self._counts = self._counts, {}
        total, self._total = self._total, 0.0
        self._sum.inc(total)
        for bucket, count in counts.items():
            self._buckets[bucket].inc(count)
