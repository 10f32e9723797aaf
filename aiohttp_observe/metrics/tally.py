"""Many observations of one series, told to its histogram together."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from math import inf
from time import perf_counter

from prometheus_client import Histogram

from ..exchange import SpanIds

__all__ = ["DURATION_BUCKETS", "ObserveAll", "Timed", "buckets_of", "observing_all"]

ObserveAll = Callable[[Sequence[float]], None]

DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds, as the stable HTTP semantic conventions advise."""
_UPPER_BOUNDS = (*DURATION_BUCKETS, inf)
_EXEMPLAR_INTERVAL = 1.0
"""Seconds between exemplars of one bucket: a scrape reads only the newest."""


def buckets_of(ascending: Sequence[float], bounds: Sequence[float]) -> Iterator[tuple[int, int, int]]:
    """The buckets, by their upper ``bounds``, that values fall into, and where each one's begin and end."""
    begin = 0
    while begin < len(ascending):
        bucket = bisect_left(bounds, ascending[begin])
        end = bisect_right(ascending, bounds[bucket], begin)
        yield bucket, begin, end
        begin = end


def observing_all(series: Histogram) -> ObserveAll:
    """How to observe many values of ``series``, from any thread.

    ``Histogram.observe`` takes two locks and looks through the bounds for each value; this
    takes them once for all that fall into one bucket.
    """
    try:
        bounds, buckets, total = series._upper_bounds, series._buckets, series._sum
    except AttributeError:  # not built as prometheus_client's have been, since 0.22 at least

        def observe_each(values: Sequence[float]) -> None:
            for value in values:
                series.observe(value)

        return observe_each

    def observe_all(values: Sequence[float]) -> None:
        total.inc(sum(values))
        for bucket, begin, end in buckets_of(sorted(values), bounds):
            buckets[bucket].inc(end - begin)

    return observe_all


class Timed:
    """One duration series: observes, with at most one exemplar a bucket and second."""

    __slots__ = ("_exemplar_due", "_observe_all", "_series")

    def __init__(self, series: Histogram) -> None:
        self._series = series
        self._observe_all = observing_all(series)
        self._exemplar_due = [0.0] * len(_UPPER_BOUNDS)

    def observe(self, ascending: Sequence[float], spans: Sequence[SpanIds | None]) -> None:
        """Seconds, each with the span that may be its exemplar."""
        plain = list(ascending)
        if any(spans):
            for seconds, span in self._exemplars(ascending, spans):
                self._series.observe(seconds, {"trace_id": f"{span.trace_id:032x}"})
                plain.remove(seconds)
        self._observe_all(plain)

    def _exemplars(
        self, ascending: Sequence[float], spans: Sequence[SpanIds | None]
    ) -> Iterator[tuple[float, SpanIds]]:
        now, due = perf_counter(), self._exemplar_due
        for bucket, begin, end in buckets_of(ascending, _UPPER_BOUNDS):
            if now < due[bucket]:
                continue
            for seconds, span in zip(ascending[begin:end], spans[begin:end], strict=True):
                if span is not None:
                    due[bucket] = now + _EXEMPLAR_INTERVAL
                    yield seconds, span
                    break
