"""Many observations of one series, told to its histogram together."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import Histogram

__all__ = ["ObserveAll", "buckets_of", "observing_all"]

ObserveAll = Callable[[Sequence[float]], None]


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
