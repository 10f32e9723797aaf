"""The requests that a block kept waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from ..exchange import Exchange, Scope
from ..incidents import Block, Incidents

__all__ = ["Bystanders"]

_MOST_NAMED = 20
_MOST_MARKED = 1000
"""Spans that are marked: each takes microseconds on the loop, which is late already."""


@dataclass(frozen=True, slots=True)
class _Stall:
    started: float
    victims: tuple[str, ...]
    total: int


class Bystanders:
    """Tells of each block, and of whom it kept waiting: a `BlockListener` for one application.

    The victims are the requests in flight, but for the one that blocked, at the moment when
    the loop turns again: many end right after it.  Their spans are marked then, by the
    tracer's ``stalled(seconds, culprit, victims)``, and their ids wait for the block itself,
    which goes to ``incidents`` and to the tracer's ``blocked(block)``, in the watchdog's
    thread.  The tracer is told of blocks by this application's requests only.

    ``in_flight`` are the application's exchanges, read on the loop; ``also`` hears of blocks too.
    ``flush`` does, in any thread, what was left for the loop to do later: it may never come to it.
    """

    def __init__(
        self,
        scope: Scope,
        in_flight: Iterable[Exchange],
        incidents: Incidents,
        flush: Callable[[], None],
        also: Callable[[Block], None] | None = None,
    ) -> None:
        self._flush = flush
        self._also = also
        self._scope = scope
        self._in_flight = in_flight
        self._incidents = incidents
        self._stalls: deque[_Stall] = deque(maxlen=16)

    def suspected(self) -> None:
        self._flush()

    def stalled(self, started: float, seconds: float, culprit: str | None) -> None:
        victims = [exchange for exchange in self._in_flight if exchange.request_id != culprit]
        named = tuple(exchange.request_id for exchange in islice(victims, _MOST_NAMED))
        self._stalls.append(_Stall(started, named, len(victims)))
        if self._scope.tracer is not None and victims:
            self._scope.tracer.stalled(seconds, culprit, victims[:_MOST_MARKED])

    def blocked(self, block: Block) -> None:
        stall = self._stall_of(block)
        self._incidents.blocked(block, stall.victims, stall.total)
        if self._scope.tracer is not None and block.scope == id(self._scope):
            self._scope.tracer.blocked(block)
        if self._also is not None:
            self._also(block)

    def _stall_of(self, block: Block) -> _Stall:
        for stall in self._stalls.copy():
            if stall.started == block.started:
                return stall
        return _Stall(block.started, (), 0)
