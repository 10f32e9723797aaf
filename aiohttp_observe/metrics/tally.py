"""Many observations of one series, told to its histogram together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import Histogram

__all__ = ["ObserveAll", "observing_all"]

ObserveAll = Callable[[Sequence[float]], None]


def observing_all(series: Histogram) -> ObserveAll:
    """How to observe many values of ``series``, from any thread.

    ``Histogram.observe`` takes two locks and looks through the bounds for each value; this
    takes them once for all that fall into one bucket, and goes through the bounds once.
    """
    try:
        bounds, buckets, total = series._upper_bounds, series._buckets, series._sum
    except AttributeError:  # not built as prometheus_client's have been, since 0.22 at least

        def observe_each(values: Sequence[float]) -> None:
            for value in values:
                series.observe(value)

        return observe_each

    def observe_all(values: Sequence[float]) -> None:
        counts: dict[int, int] = {}
        bucket = 0
        for value in sorted(values):
            while value > bounds[bucket]:
                bucket += 1
            counts[bucket] = counts.get(bucket, 0) + 1
        total.inc(sum(values))
        for bucket, count in counts.items():
            buckets[bucket].inc(count)

    return observe_all
