"""The last requests, kept in memory: ``/_tasks/requests``."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    CLIENT_SESSION,
    OBSERVABILITY,
    Exchange,
    Logs,
    Metrics,
    operation,
    setup_observability,
    spawn,
)
from aiohttp_observe.exchange import Scope
from aiohttp_observe.flightrecorder import Failing, FlightRecorder
from aiohttp_observe.middleware import Recorder

from .service import Service, serving, until


def application(registry: CollectorRegistry, **pillars: Any) -> web.Application:
    app = web.Application()

    async def hello(request: web.Request) -> web.Response:
        return web.Response()

    async def crash(request: web.Request) -> web.Response:
        raise LookupError("no such order")

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.06)
        return web.Response()

    async def stuck(request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response()

    async def steps(request: web.Request) -> web.Response:
        async with operation("price lookup"):
            await asyncio.sleep(0.01)
        async with request.app[CLIENT_SESSION].get(request.url.with_path("/hello")) as response:
            await response.read()
        with pytest.raises(LookupError), operation("failing"):
            raise LookupError
        return web.Response()

    async def sometimes(request: web.Request) -> web.Response:
        if request.query.get("fails"):
            raise LookupError
        return web.Response()

    for handler in (hello, crash, slow, stuck, steps, sometimes):
        app.router.add_get(f"/{handler.__name__}", handler)
    setup_observability(app, metrics=Metrics(registry=registry), logs=Logs(), **pillars)
    return app


async def document(service: Service, path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await service.get(path)).text)
    return found


async def overview(service: Service) -> dict[str, Any]:
    return await document(service, "/_tasks/requests")


async def route(service: Service, wanted: str) -> dict[str, Any]:
    routes = (await overview(service))["routes"]
    found: dict[str, Any] = next(family for family in routes if family["route"] == wanted)
    return found


async def test_requests_are_counted_by_route_and_latency(registry: CollectorRegistry) -> None:
    async with serving(application(registry)) as service:
        for _ in range(7):
            await service.get("/hello")
        await service.get("/slow")
        hello, slow = await route(service, "/hello"), await route(service, "/slow")
    assert (hello["method"], hello["count"], hello["errors"]) == ("GET", 7, 0)
    assert sum(hello["latency"].values()) == 7
    assert len(hello["recent"]) == 5
    assert slow["latency"]["<=10ms"] == slow["latency"]["<=50ms"] == 0
    assert slow["waiting"]["sleep"] > 0.05
    assert slow["seconds"] > slow["waiting"]["sleep"] + slow["busy_seconds"] + slow["ready_seconds"]


async def test_the_slowest_and_the_failed_are_kept_however_many_come_after(
    registry: CollectorRegistry,
) -> None:
    async with serving(application(registry)) as service:
        await service.get("/hello", headers={"X-Request-ID": "the-first"})
        failed = await service.get("/crash", headers={"X-Request-ID": "the-crash"})
        slow = await service.get("/slow", headers={"X-Request-ID": "the-slow"})
        for _ in range(300):
            await service.get("/hello")
        crash = await route(service, "/crash")
        assert (failed.status, slow.status) == (500, 200)
        assert [(r["request_id"], r["status"], r["error_type"]) for r in crash["failed"]] == [
            ("the-crash", 500, "LookupError")
        ]
        kept = json.loads((await service.get("/_tasks/requests/the-slow")).text)
        assert kept["route"] == "/slow"
        assert (await service.get("/_tasks/requests/never-seen")).status == 404


async def test_those_in_flight_say_what_they_wait_for(registry: CollectorRegistry) -> None:
    async with serving(application(registry)) as service:
        stuck = asyncio.ensure_future(service.get("/stuck", headers={"X-Request-ID": "the-stuck"}))
        seen: list[dict[str, Any]] = []
        while not seen:
            flying = (await overview(service))["in_flight"]
            seen = [row for row in flying if row["request_id"] == "the-stuck" and row["waits_for"]]
        assert (seen[0]["method"], seen[0]["route"], seen[0]["waits_for"]) == ("GET", "/stuck", "sleep")
        assert not seen[0]["client_left"]
        task = json.loads((await service.get(f"/_tasks/{seen[0]['task']}")).text)
        assert task["request"]["id"] == "the-stuck"
        whole = json.loads((await service.get("/_tasks/requests/the-stuck")).text)
        assert whole["in_flight"] is True
        assert whole["status"] is None
        await stuck


async def test_a_route_of_which_none_has_ended_comes_first_once_it_takes_longest(
    registry: CollectorRegistry,
) -> None:
    app = application(registry)
    async with serving(app) as service:
        await service.get("/slow")
        stuck = [asyncio.ensure_future(service.get("/stuck")) for _ in range(2)]
        await until(lambda: len(app[OBSERVABILITY].recorder.in_flight) == 2, "both")
        await asyncio.sleep(0.1)
        first, second, *_ = (await overview(service))["routes"]
        assert (first["route"], first["in_flight"], first["count"]) == ("/stuck", 2, 0)
        assert 0.2 <= first["in_flight_seconds"] < 5
        assert first["seconds"] == 0
        assert (second["route"], second["in_flight"], second["in_flight_seconds"]) == ("/slow", 0, 0)
        await asyncio.gather(*stuck)


async def test_the_steps_of_a_request_are_told_in_their_order(registry: CollectorRegistry) -> None:
    async with serving(application(registry)) as service:
        await service.get("/steps", headers={"X-Request-ID": "with-steps"})
        whole = json.loads((await service.get("/_tasks/requests/with-steps")).text)
    assert [(step["kind"], step["name"], step["error"]) for step in whole["steps"]] == [
        ("operation", "price lookup", None),
        ("client", "GET 127.0.0.1", None),
        ("operation", "failing", "LookupError"),
    ]
    assert whole["steps"][0]["seconds"] > 0.009
    assert whole["steps"][1]["started_seconds"] > whole["steps"][0]["started_seconds"]
    assert whole["steps_left_out"] == 0
    assert len(whole["trace_id"]) == 32


async def test_what_a_task_does_that_outlives_its_request_is_none_of_its_steps(
    registry: CollectorRegistry,
) -> None:
    async def work(has_ended: asyncio.Event) -> None:
        with operation("within"):
            await has_ended.wait()
        with operation("after"):
            pass

    async def begin(request: web.Request) -> web.Response:
        tasks.append(spawn(work(has_ended)))
        await asyncio.sleep(0)
        return web.Response()

    tasks: list[asyncio.Task[None]] = []
    has_ended, app = asyncio.Event(), application(registry)
    app.router.add_get("/begin", begin)
    async with serving(app) as service:
        answer = await service.get("/begin")
        has_ended.set()
        await tasks[0]
        found = json.loads((await service.get(f"/_tasks/requests/{answer.headers['X-Request-ID']}")).text)
    assert [step["name"] for step in found["steps"]] == ["within"]


async def test_it_needs_neither_tracing_nor_metrics_nor_logs(registry: CollectorRegistry) -> None:
    app = web.Application()
    setup_observability(app, metrics=None, logs=None, tracing=None, tasks=None, loop_watch=None)
    async with serving(app) as service:
        await service.get("/nothing", headers={"X-Request-ID": "mine"})
        whole = json.loads((await service.get("/_tasks/requests/mine")).text)
    assert (whole["route"], whole["status"], whole["trace_id"]) == ("_unmatched", 404, None)


async def test_a_flood_of_requests_keeps_no_more_than_some(registry: CollectorRegistry) -> None:
    app = application(registry)
    async with serving(app) as service:
        for number in range(400):
            await service.get(f"/{number}")
        flights = app[OBSERVABILITY].flights
        await until(lambda: flights.total >= 400, "the requests to be sorted in")
        kept = {id(exchange) for exchange in flights._kept()}
        assert len(kept) <= 15


def ended(number: int, error_type: str | None = None, route: str = "/orders") -> Exchange:
    exchange = Exchange(Scope(), f"r{number}", "GET", route, "/orders", None, None, float(number))
    exchange.status, exchange.duration, exchange.error_type = 200, 0.001, error_type
    return exchange


def kept_of(*ends: Exchange) -> dict[str, list[str]]:
    """The requests that are kept of those that ended together, by why."""
    recorder, kept = Recorder(Scope()), FlightRecorder(list)
    recorder.add("flightrecorder", kept)
    recorder.unflushed.extend(ends)
    recorder.flush()
    (family,) = json.loads("".join(kept.overview(lambda exchange: (None, None))))["routes"]
    return {why: [row["request_id"] for row in family[why]] for why in ("recent", "failed")}


def test_the_latest_are_the_last_to_end_however_they_did() -> None:
    errors = {1: "LookupError", 2: "OSError", 3: "OSError", 4: "LookupError", 5: "OSError", 6: "OSError"}
    assert kept_of(*(ended(number, errors.get(number)) for number in range(20))) == {
        "recent": ["r19", "r18", "r17", "r16", "r15"],
        "failed": ["r6", "r5", "r4", "r3", "r2"],
    }


class Unhashable(str):
    """A route that can't be told from others."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


def test_a_route_that_cannot_be_told_apart_costs_no_other_request() -> None:
    ends = (ended(1), ended(2, route=Unhashable("/odd")), ended(3))
    assert kept_of(*ends)["recent"] == ["r3", "r1"]


# What the verdict says of them


async def verdict(service: Service) -> list[str]:
    told: list[str] = (await document(service, "/_tasks"))["verdict"]
    return told


async def test_a_route_whose_last_requests_have_all_failed_stands_out(registry: CollectorRegistry) -> None:
    async with serving(application(registry)) as service:
        for _ in range(4):
            await service.get("/crash")
            await service.get("/nowhere")
        assert await verdict(service) == []
        await service.get("/crash")
        assert await verdict(service) == [
            "GET /crash fails: the last requests all did, the latest with LookupError"
        ]


def minute(failed: int, of: int, *, last: int) -> list[Failing]:
    """What is told of a route of whose requests some failed, all but the ``last``."""
    kept = FlightRecorder(list)
    for status, error, number in ((200, None, of - failed - last), (503, "503", failed), (200, None, last)):
        alike = [ended(number) for number in range(number)]
        for exchange in alike:
            exchange.status, exchange.error_type = status, error
        if alike:
            kept.flush({("GET", "/orders", status, error): alike})
    return kept.failing()


def test_so_does_one_of_whose_requests_a_part_fails() -> None:
    assert minute(4, of=80, last=5) == []
    assert minute(5, of=101, last=5) == []
    assert minute(5, of=100, last=5) == [Failing("GET", "/orders", "503", 5, 100, all_of_late=False)]


async def test_that_is_told_with_its_share(registry: CollectorRegistry) -> None:
    app = application(registry)
    async with serving(app) as service:
        for _ in range(6):
            await service.get("/sometimes?fails=yes")
        for _ in range(9):
            await service.get("/sometimes")
        assert await verdict(service) == [
            "GET /sometimes failed 6 of 15 times in the last minute, the latest with LookupError"
        ]
        (finding,) = app[OBSERVABILITY].snapshot().findings
    assert finding.kind == "failing"


async def test_so_does_a_worker_that_fails_again_and_again(registry: CollectorRegistry) -> None:
    async def fail() -> None:
        raise LookupError

    app = application(registry)

    async def start(app: web.Application) -> None:
        spawn(fail, name="refresh", restart="on-failure", backoff=(0.001, 3600))
        spawn(fail, name="once", restart="never")

    app.on_startup.append(start)
    async with serving(app) as service:
        await until(lambda: any(each.restarts > 5 for each in app[OBSERVABILITY].workers()), "the restarts")
        await until(lambda: app[OBSERVABILITY].workers()[0].state == "backing_off", "a pause")
        again, once = await verdict(service)
    assert again.startswith("worker refresh fails again and again, the last time with LookupError: it was ")
    assert once == "worker once has failed with LookupError, and isn't started again"


async def test_a_worker_that_runs_again_is_still_told_of(registry: CollectorRegistry) -> None:
    runs: list[float] = []

    async def fail() -> None:
        runs.append(0.0)
        if len(runs) > 3:
            await asyncio.sleep(60)
        raise LookupError

    async def start(app: web.Application) -> None:
        spawn(fail, name="refresh", restart="on-failure", backoff=(0.001, 0.002))

    app = application(registry)
    app.on_startup.append(start)
    async with serving(app) as service:
        await until(lambda: len(runs) > 3, "the restarts")
        (told,) = await verdict(service)
    assert told.startswith("worker refresh fails again and again, the last time with LookupError: it was ")
