"""From a task as seen to its row in the picture."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from ..exchange import Exchange
from .model import Served, TaskInfo, Wait
from .places import Places
from .seen import Seen
from .stacks import Reading
from .tracker import birth_of, number_of, operation_of, title_of
from .warnings import Circumstances, is_orphan, warnings_of

__all__ = ["Rows"]


class Rows:
    """Words the tasks of one snapshot, of which many share a place, a wait or a request."""

    def __init__(self, circumstances: Circumstances) -> None:
        self._circumstances = circumstances
        self._places = Places()
        self._requests: dict[Exchange, tuple[Served, str | None]] = {}
        self._waits: dict[int, tuple[Wait, Reading]] = {}

    def row(self, seen: Seen) -> TaskInfo:
        """What a snapshot says of the task."""
        task, exchange, reading = seen.task, seen.exchange, seen.reading
        birth = birth_of(task, self._places.of)
        creator = None if birth is None else birth.creator
        request, trace_id = (None, None) if exchange is None else self._request(exchange)
        return TaskInfo(
            number_of(task),
            title_of(task),
            seen.coro,
            seen.state,
            None if reading is None else self._wait(reading),
            seen.frames,
            None if seen.age is None else round(seen.age, 6),
            None if birth is None else birth.place,
            None if creator is None else number_of(creator),
            operation_of(task),
            request,
            trace_id,
            is_orphan(seen),
            warnings_of(seen, self._circumstances),
        )

    def _request(self, exchange: Exchange) -> tuple[Served, str | None]:
        known = self._requests.get(exchange)
        if known is None:
            served = Served(exchange.request_id, exchange.method, exchange.route)
            known = self._requests[exchange] = served, exchange.trace_id
        return known

    def _wait(self, reading: Reading) -> Wait:
        known = self._waits.get(id(reading))  # kept below, so that its id stays its own
        if known is None:
            resource = None if reading.resource is None else number_of(reading.resource)
            wait = Wait(reading.kind, reading.detail, tuple(_task_numbers(reading.on)), resource)
            known = self._waits[id(reading)] = wait, reading
        return known[0]


def _task_numbers(futures: Any) -> Iterator[int]:
    """The ids of those among ``futures`` that are tasks and still at it."""
    for future in futures:
        if isinstance(future, asyncio.Task) and not future.done():
            yield number_of(future)
