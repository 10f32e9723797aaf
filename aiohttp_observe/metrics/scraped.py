"""The gauges computed when somebody scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["AtScrape", "TaskCounts", "Utilization"]

TaskCounts = Callable[[], Iterable[tuple[str, str, int]]]
"""Returns (state, wait kind or "", number of tasks); called in the scraping thread."""
Utilization = Callable[[], float]


class AtScrape(Collector):
    """The gauges computed when somebody scrapes, summed over the loops that run.

    Those in ``before`` are called first, to bring all other metrics up to date.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget what is read at scrape: it is another process's."""
        self.before: list[Callable[[], None]] = []
        self.tasks: list[tuple[object, TaskCounts]] = []
        self.utilization: list[Utilization] = []

    def describe(self) -> list[Metric]:
        return [self._tasks_family(), self._utilization_family()]

    def collect(self) -> Iterator[Metric]:
        for update in list(self.before):
            update()
        totals: dict[tuple[str, str], int] = {}
        for count in dict(self.tasks).values():  # applications may share a loop
            for state, wait, number in count():
                totals[state, wait] = totals.get((state, wait), 0) + number
        family = self._tasks_family()
        for labels, total in totals.items():
            family.add_metric(labels, total)
        yield family
        ratios = [read() for read in list(self.utilization)]
        utilization = self._utilization_family()
        if ratios:  # a process with several loops is as busy as its busiest
            utilization.add_metric((), max(ratios))
        yield utilization

    @staticmethod
    def _tasks_family() -> GaugeMetricFamily:
        return GaugeMetricFamily("asyncio_tasks", "Live asyncio tasks", labels=["state", "wait"])

    @staticmethod
    def _utilization_family() -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "asyncio_loop_utilization_ratio", "Share of time the event loop's thread was on a CPU", labels=[]
        )
