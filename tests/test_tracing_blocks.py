"""A block of the loop is in the traces: under the request that caused it, and on those that waited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from aiohttp_observe import LoopWatch, Tracing, setup_observability
from aiohttp_observe.exchange import Meter
from aiohttp_observe.incidents import Incidents
from aiohttp_observe.loopwatch import Bystanders
from aiohttp_observe.tracing.blocks import mark_victims
from tests.service import PATIENCE, Service, serving, until
from tests.spans import Spans, attributes, ids


def hold_the_loop() -> None:
    time.sleep(0.3)  # the line that blocks


@dataclass
class House:
    """A service that can be blocked, while others of its requests wait."""

    incidents: Incidents = field(default_factory=Incidents)
    waiting: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    in_flight: Callable[[], list[Any]] = list

    async def wait(self, request: web.Request) -> web.Response:
        if "touched" in request.query:
            trace.get_current_span().set_attribute("touched", True)
        self.waiting += 1
        await self.released.wait()
        return web.Response()

    async def block(self, request: web.Request) -> web.Response:
        self.released.set()  # those who wait end as soon as the loop turns again
        hold_the_loop()
        return web.Response()


@asynccontextmanager
async def blockable(spans: Spans) -> AsyncIterator[tuple[Service, House]]:
    house, app = House(), web.Application()
    app.router.add_get("/wait", house.wait)
    app.router.add_get("/block", house.block)
    tracing = Tracing(provider=spans.provider)
    observability = setup_observability(app, tracing=tracing, metrics=None, logs=None, loop_watch=None)
    recorder = observability.recorder
    bystanders = Bystanders(observability.scope, recorder.in_flight.values(), house.incidents, recorder.flush)
    house.in_flight = lambda: list(observability.recorder.in_flight.values())
    async with serving(app) as service:
        monitor = LoopWatch().install(asyncio.get_running_loop(), Meter(), bystanders)
        await asyncio.sleep(0.05)
        yield service, house
        monitor.close()


async def block_with_victims(spans: Spans, victims: int, query: str = "") -> Incidents:
    async with blockable(spans) as (service, house):
        waiting = [
            asyncio.create_task(service.get(f"/wait{query}", headers={"X-Request-ID": f"victim-{number}"}))
            for number in range(victims)
        ]
        await until(lambda: house.waiting == victims, "the victims")
        await service.get("/block", headers={"X-Request-ID": "culprit"})
        await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
        await until(lambda: house.incidents.to_dict()["blocked"], "the block")
    return house.incidents


def events(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


async def test_the_culprits_span_has_a_child_as_long_as_the_block() -> None:
    spans = Spans()
    await block_with_victims(spans, 0)
    server, block = spans.named("GET /block"), spans.named("event_loop_blocked")
    assert block.parent is not None
    assert (block.parent.span_id, ids(block).trace_id) == (ids(server).span_id, ids(server).trace_id)
    found = attributes(block)
    line = hold_the_loop.__code__.co_firstlineno + 1
    assert (found["code.function.name"], found["code.line.number"]) == ("hold_the_loop", line)
    assert (found["code.file.path"], found["cause"]) == (__file__, "blocking_call")
    assert None not in (block.start_time, block.end_time, server.start_time, server.end_time)
    assert (block.end_time or 0) - (block.start_time or 0) == pytest.approx(0.3e9, rel=0.9)
    assert block.start_time == pytest.approx(server.start_time, abs=0.1e9)
    assert (block.start_time or 0) > (server.start_time or 0) - 1e6, "within its parent"
    assert events(server) == []


@pytest.mark.parametrize("query", ["", "?touched"])
async def test_each_victims_span_has_an_event_that_names_the_culprit(query: str) -> None:
    spans = Spans()
    incidents = await block_with_victims(spans, 3, query)
    waited = [span for span in spans.servers if span.name == "GET /wait"]
    assert len(waited) == 3
    for span in waited:
        ((name, found),) = events(span)
        assert name == "event_loop_blocked"
        assert found["culprit.request_id"] == "culprit"
        assert found["duration_ms"] > 200
        assert ("touched" in attributes(span)) == bool(query)
    example = incidents.to_dict()["blocked"][0]["example"]
    assert sorted(example["victims"]) == ["victim-0", "victim-1", "victim-2"]
    assert (example["victims_total"], example["request_id"]) == (3, "culprit")


async def test_a_span_of_another_kind_is_marked_too() -> None:
    spans = Spans(span_limits=SpanLimits(max_event_attributes=1))
    await block_with_victims(spans, 1)
    ((name, found),) = events(spans.named("GET /wait"))
    assert (name, len(found)) == ("event_loop_blocked", 1)


async def test_a_trace_that_is_not_sampled_gets_nothing() -> None:
    spans = Spans(sampler=ALWAYS_OFF)
    incidents = await block_with_victims(spans, 2)
    assert spans.all == ()
    assert incidents.to_dict()["blocked"][0]["example"]["victims_total"] == 2


async def test_a_request_that_waits_through_many_blocks_has_no_more_events_than_the_limit() -> None:
    spans = Spans(span_limits=SpanLimits(max_events=5))
    async with blockable(spans) as (service, house):
        waiting = asyncio.create_task(service.get("/wait"))
        await until(lambda: house.waiting, "the victim")
        (exchange,) = house.in_flight()
        for number in range(8):
            mark_victims([exchange], number, None)
        house.released.set()
        await waiting
    found = events(spans.named("GET /wait"))
    assert [each["duration_ms"] for _, each in found] == [3000, 4000, 5000, 6000, 7000]


async def test_a_span_that_was_touched_afterwards_keeps_its_event() -> None:
    spans = Spans()
    async with blockable(spans) as (service, house):
        waiting = asyncio.create_task(service.get("/wait"))
        await until(lambda: house.waiting, "the victim")
        (exchange,) = house.in_flight()
        mark_victims([exchange], 0.3, "culprit")
        exchange.span.set_attribute("later", 1)
        house.released.set()
        await waiting
        mark_victims([exchange], 0.3, "too late")
    span = spans.named("GET /wait")
    assert events(span) == [("event_loop_blocked", {"duration_ms": 300, "culprit.request_id": "culprit"})]
    assert attributes(span)["later"] == 1
