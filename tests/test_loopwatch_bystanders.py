"""Whom a block kept waiting: the requests in flight when the loop turns again, a few of them by name."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import pytest

from aiohttp_observe.exchange import Exchange, Scope
from aiohttp_observe.incidents import Block, Cause, Incidents
from aiohttp_observe.loopwatch import Bystanders
from aiohttp_observe.tasks import Frame


class Tracer:
    """What the tracing pillar hears."""

    def __init__(self) -> None:
        self.marked: list[tuple[float, str | None, int]] = []
        self.blocks: list[Block] = []

    def stalled(self, seconds: float, culprit: str | None, victims: Sequence[Exchange]) -> None:
        self.marked.append((seconds, culprit, len(victims)))

    def blocked(self, block: Block) -> None:
        self.blocks.append(block)


def tracer_of(scope: Scope) -> Tracer:
    tracer: Any = scope.tracer
    assert type(tracer) is Tracer
    return tracer


@pytest.fixture
def scope() -> Scope:
    scope = Scope()
    scope.tracer = Tracer()  # type: ignore[assignment]
    return scope


def requests(scope: Scope, count: int) -> dict[Exchange, None]:
    return {
        Exchange(scope, f"request-{number}", "GET", "/", "/", None, None, perf_counter()): None
        for number in range(count)
    }


def block(scope: Scope | None, started: float) -> Block:
    line = Frame("report.py", 88, "render")
    return Block(
        started=started,
        seconds=0.3,
        frame=line,
        stack=(line,),
        task=1,
        task_name="Task-1",
        request="GET /report",
        request_id="request-0",
        trace_id=None,
        span=None,
        scope=None if scope is None else id(scope),
        cause=Cause("cpu", "high", ""),
    )


def example(incidents: Incidents) -> Any:
    (row,) = incidents.to_dict()["blocked"]
    return row["example"]


def test_the_one_that_blocked_is_no_victim(scope: Scope) -> None:
    incidents = Incidents()
    bystanders = Bystanders(scope, requests(scope, 3), incidents, lambda: None)
    bystanders.stalled(1.0, 0.3, "request-0")
    bystanders.blocked(block(scope, 1.0))
    assert example(incidents)["victims"] == ["request-1", "request-2"]
    assert tracer_of(scope).marked == [(0.3, "request-0", 2)]
    assert len(tracer_of(scope).blocks) == 1


def test_of_thousands_a_few_are_named_and_all_are_counted(scope: Scope) -> None:
    incidents = Incidents()
    bystanders = Bystanders(scope, requests(scope, 5001), incidents, lambda: None)
    bystanders.stalled(1.0, 0.3, "request-0")
    bystanders.blocked(block(scope, 1.0))
    found = example(incidents)
    assert (len(found["victims"]), found["victims_total"]) == (20, 5000)
    assert tracer_of(scope).marked == [(0.3, "request-0", 1000)]


def test_each_block_has_its_own_victims(scope: Scope) -> None:
    incidents, in_flight = Incidents(), requests(scope, 2)
    bystanders = Bystanders(scope, in_flight, incidents, lambda: None)
    bystanders.stalled(1.0, 0.3, None)
    in_flight.clear()
    bystanders.stalled(2.0, 0.3, None)
    bystanders.blocked(block(scope, 1.0))
    assert example(incidents)["victims_total"] == 2


def test_a_block_by_another_application_has_no_span_here(scope: Scope) -> None:
    incidents = Incidents()
    bystanders = Bystanders(scope, requests(scope, 2), incidents, lambda: None)
    for number, other in enumerate([Scope(), None]):
        bystanders.stalled(number, 0.3, "request-of-the-other")
        bystanders.blocked(block(other, number))
    assert tracer_of(scope).blocks == []
    assert example(incidents)["victims_total"] == 2
    assert len(tracer_of(scope).marked) == 2


def test_without_tracing_the_incidents_are_kept() -> None:
    scope, incidents = Scope(), Incidents()
    bystanders = Bystanders(scope, requests(scope, 1), incidents, lambda: None)
    bystanders.stalled(1.0, 0.3, None)
    bystanders.blocked(block(scope, 1.0))
    assert example(incidents)["victims"] == ["request-0"]
