"""A registry collected in pieces, with turns for the loop's thread in between.

prometheus_client makes all samples of a family before the first is written.  Ten thousand
of them at once set off a garbage collection of the whole heap, which holds every thread;
and a thread that never pauses gives the interpreter away only every 5 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from itertools import count
from time import sleep

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

__all__ = ["InPieces"]

_PIECE = 250
"""Samples between two pauses: about a millisecond's work."""
_PAUSE = 50e-6
"""Seconds.  With none, this thread would go on before the loop's has woken up."""


class InPieces(Collector):
    """Collects what ``registry`` does; a sample is made when it is written, and then let go.

    To be collected in a thread that isn't the loop's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        number = count(1)
        for family, read in _families(self._registry):
            paced = copy(family)  # some collectors keep theirs
            paced.samples = _Paced(read, number)  # type: ignore[assignment]  # encoders only iterate
            yield paced


@dataclass(frozen=True)
class _Paced:
    """The samples of a family, with a pause after each piece of all that are collected."""

    read: Callable[[], Iterable[Sample]]
    number: Iterator[int]

    def __iter__(self) -> Iterator[Sample]:
        for sample in self.read():
            yield sample
            if next(self.number) % _PIECE == 0:
                sleep(_PAUSE)


_Family = tuple[Metric, Callable[[], Iterable[Sample]]]


def _families(registry: CollectorRegistry) -> Iterator[_Family]:
    """What ``registry.collect()`` gives, in its order."""
    collectors = getattr(registry, "_collector_to_names", None)
    if collectors is None or not _is(registry.collect, CollectorRegistry.collect):
        yield from _collected(registry)
        return
    about_target = registry.get_target_info()
    if about_target:
        family = InfoMetricFamily("target", "Target metadata", about_target)
        yield family, lambda: family.samples
    for collector in list(collectors):
        yield from _unread(collector) if _can_be_unread(collector) else _collected(collector)


def _collected(collector: Collector) -> Iterator[_Family]:
    for family in collector.collect():
        samples = family.samples
        yield family, lambda samples=samples: samples  # type: ignore[misc]


def _can_be_unread(collector: Collector) -> bool:
    """Whether it is a metric of prometheus_client's own, collected as those are since 0.22."""
    return _is(collector.collect, MetricWrapperBase.collect) and hasattr(collector, "_samples")


def _unread(metric: MetricWrapperBase) -> Iterator[_Family]:
    """A metric's family, its samples unread: `MetricWrapperBase.collect` can't give them one by one."""
    family: Metric = metric._get_metric()  # type: ignore[no-untyped-call]
    yield family, lambda: (Sample(family.name + sample[0], *sample[1:]) for sample in metric._samples())


def _is(method: Callable[..., object], function: Callable[..., object]) -> bool:
    """Whether nobody has overridden it."""
    return getattr(method, "__func__", None) is function
