"""Whoever works for a request, wherever that is, knows which one: ids, trace and bound fields."""

from __future__ import annotations

import asyncio
import contextvars
import io
import json
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import aiojobs
import pytest
from aiohttp import web
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    Logs,
    Metrics,
    Tracing,
    bind,
    bound,
    client_session,
    current_exchange,
    operation,
    request_id,
    setup_observability,
    spawn,
    supervised,
)
from tests.service import PATIENCE, Service, Witness, serving, until
from tests.spans import Spans, attributes

logger = logging.getLogger("shop")

Told = tuple["str | None", str]


def tell() -> Told:
    """Request id and trace id as they are here; makes a span and a log line besides."""
    with operation("told"):
        now = trace.get_current_span().get_span_context()
    logger.info("told")
    return request_id(), f"{now.trace_id:032x}"


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def lines() -> io.StringIO:
    return io.StringIO()


def said(lines: io.StringIO, message: str = "told") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [line for line in found if line["message"] == message]


@asynccontextmanager
async def observed(
    spans: Spans, lines: io.StringIO, handler: Any, **tracing: Any
) -> AsyncIterator[tuple[Service, Witness]]:
    app, witness = web.Application(), Witness()
    app.router.add_get("/", handler)
    setup_observability(
        app,
        metrics=Metrics(registry=CollectorRegistry()),
        logs=Logs(stream=lines, replace=True),
        tracing=Tracing(provider=spans.provider, **tracing),
        observers=[witness],
    )
    async with serving(app) as service:
        yield service, witness


async def in_a_task() -> Told:
    async def told() -> Told:
        return tell()

    return await asyncio.create_task(told())


async def gathered() -> Told:
    first, second = await asyncio.gather(in_a_task(), in_a_task())
    assert first == second
    return first


async def in_a_group() -> Told:
    async with getattr(asyncio, "TaskGroup")() as group:  # noqa: B009 - it is from Python 3.11
        task = group.create_task(in_a_task())
    told: Told = task.result()
    return told


async def timed() -> Told:
    return await asyncio.wait_for(in_a_task(), PATIENCE)


async def shielded() -> Told:
    return await asyncio.shield(in_a_task())


async def to_a_thread() -> Told:
    return await asyncio.to_thread(tell)


async def run_in_an_executor() -> Told:
    """As docs/context.rst has it."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:
        return await loop.run_in_executor(pool, contextvars.copy_context().run, tell)


async def called_soon() -> Told:
    told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: told.set_result(tell()))
    return await told


async def called_later() -> Told:
    told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.001, lambda: told.set_result(tell()))
    return await told


async def generated() -> Told:
    async def each() -> AsyncIterator[Told]:
        await asyncio.sleep(0)
        yield tell()

    (told,) = [told async for told in each()]
    return told


WAYS: list[Callable[[], Awaitable[Told]]] = [
    in_a_task,
    gathered,
    *([in_a_group] if sys.version_info >= (3, 11) else []),
    timed,
    shielded,
    to_a_thread,
    run_in_an_executor,
    called_soon,
    called_later,
    generated,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_the_request_is_known(
    way: Callable[[], Awaitable[Told]], spans: Spans, lines: io.StringIO
) -> None:
    told: list[Told] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bind(user="ada")
        told.append(await way())
        return web.Response()

    async with observed(spans, lines, handler) as (service, witness):
        await service.get("/", headers={"X-Request-ID": "r1"})
        exchange = await witness.next()
    assert told == [("r1", exchange.trace_id)]
    for line in said(lines):
        assert (line["request_id"], line["trace_id"], line["user"]) == ("r1", exchange.trace_id, "ada")
    (server,) = spans.servers
    made = [span for span in spans.all if span.name == "told"]
    assert made
    assert {span.parent and span.parent.span_id for span in made} == {
        server.context and server.context.span_id
    }


async def test_a_task_that_outlives_its_request_still_knows_it(spans: Spans, lines: io.StringIO) -> None:
    ended = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def later() -> Told:
        await ended.wait()
        return tell()

    async def handler(request: web.Request) -> web.StreamResponse:
        tasks.append(asyncio.create_task(later()))
        return web.Response()

    async with observed(spans, lines, handler) as (service, witness):
        await service.get("/", headers={"X-Request-ID": "first"})
        exchange = await witness.next()
        await service.get("/", headers={"X-Request-ID": "second"})
        ended.set()
        told = await asyncio.gather(*tasks)
    assert [each[0] for each in told] == ["first", "second"]
    assert told[0][1] == exchange.trace_id
    assert sorted(line["request_id"] for line in said(lines)) == ["first", "second"]


async def test_spawned_work_keeps_the_id_in_a_trace_of_its_own(spans: Spans, lines: io.StringIO) -> None:
    told: list[Told] = []

    async def work() -> None:
        await asyncio.sleep(0)
        told.append(tell())

    async def handler(request: web.Request) -> web.StreamResponse:
        await spawn(work(), name="work")
        return web.Response()

    async with observed(spans, lines, handler) as (service, witness):
        await service.get("/", headers={"X-Request-ID": "r1"})
        exchange = await witness.next()
    assert told[0][0] == "r1"
    assert told[0][1] != exchange.trace_id
    (link,) = spans.named("told").links
    assert f"{link.context.trace_id:032x}" == exchange.trace_id


async def test_pipelined_requests_on_one_connection_do_not_leak(spans: Spans, lines: io.StringIO) -> None:
    told: list[tuple[str | None, str | None]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.headers.get("X-Request-ID") == "b":
            bind(user="ada")
        await asyncio.sleep(0)
        logger.info("told")
        told.append((request_id(), None if (now := current_exchange()) is None else now.trace_id))
        return web.Response()

    names = ["a", "b", "c", "d"]
    sent = "".join(f"GET / HTTP/1.1\r\nHost: x\r\nX-Request-ID: {name}\r\n\r\n" for name in names[:-1])
    last = "GET / HTTP/1.1\r\nHost: x\r\nX-Request-ID: d\r\nConnection: close\r\n\r\n"
    async with observed(spans, lines, handler) as (service, witness):
        received = await service.exchange_bytes((sent + last).encode())
        ended = [await witness.next() for _ in names]
    assert received.count(b"HTTP/1.1 200") == 4
    assert told == [(exchange.request_id, exchange.trace_id) for exchange in ended]
    assert [exchange.request_id for exchange in ended] == names
    assert len({exchange.trace_id for exchange in ended}) == 4
    assert [line.get("user") for line in said(lines)] == [None, "ada", None, None]


async def test_a_generator_that_is_finalised_late_disturbs_nobody(
    spans: Spans, lines: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    """By the loop, in another context than it ran in: OpenTelemetry's own spans complain there."""
    left: list[AsyncIterator[int]] = []
    closed: list[str | None] = []

    async def numbers() -> AsyncIterator[int]:
        with operation("numbers"), bound(part="numbers"):
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                closed.append(request_id())

    async def handler(request: web.Request) -> web.StreamResponse:
        generator = numbers()
        await generator.__anext__()
        left.append(generator)
        return web.Response()

    async with observed(spans, lines, handler) as (service, witness):
        await service.get("/", headers={"X-Request-ID": "r1"})
        await witness.next()
        left.clear()  # the last reference: the loop closes it in a task of its own
        await until(lambda: closed, "the generator's end")
        await until(lambda: [span for span in spans.all if span.name == "numbers"], "its span")
        await service.get("/", headers={"X-Request-ID": "r2"})
        exchange = await witness.next()
    assert spans.named("numbers").end_time
    assert exchange.request_id == "r2"
    assert "different Context" not in caplog.text + lines.getvalue()


async def test_a_generator_that_another_request_closes_leaves_nothing_with_it(
    spans: Spans, lines: io.StringIO
) -> None:
    """A cursor of a pool, say, that the next one to need its connection closes."""
    left: list[AsyncGenerator[int, None]] = []

    async def numbers() -> AsyncGenerator[int, None]:
        with bound(part="numbers"):
            yield 1

    async def handler(request: web.Request) -> web.StreamResponse:
        if left:
            await left.pop().aclose()
            logger.info("closed")
        else:
            bind(user="first")
            left.append(numbers())
            await left[0].__anext__()
        return web.Response()

    async with observed(spans, lines, handler) as (service, witness):
        for _ in range(2):
            await service.get("/")
            await witness.next()
    (line,) = said(lines, "closed")
    assert not {"user", "part"} & set(line)


async def test_a_cancelled_stream_within_an_operation_leaves_no_complaint(
    spans: Spans, lines: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async with operation("streaming"):
            while request.transport is not None:
                await response.write(b"x" * 10_000)
                await asyncio.sleep(0)
        return response

    async with observed(spans, lines, handler) as (service, witness):
        async with service.session.get(service.url("/")) as response:
            await response.content.readexactly(10_000)
            response.close()
        exchange = await witness.next()
    assert (exchange.status, exchange.error_type) == (499, "client_disconnected")
    assert spans.named("streaming").parent is not None
    assert "different Context" not in caplog.text + lines.getvalue()


# bind()


async def test_what_a_nested_task_binds_is_its_own(spans: Spans, lines: io.StringIO) -> None:
    async def nested() -> None:
        bind(step="nested", user="bob")
        logger.info("within")

    async def handler(request: web.Request) -> web.StreamResponse:
        bind(user="ada")
        await asyncio.create_task(nested())
        logger.info("after the task")
        await nested()
        logger.info("after the call")
        return web.Response()

    async with observed(spans, lines, handler) as (service, witness):
        await service.get("/")
        await witness.next()
    bound_to = {
        message: [(line.get("user"), line.get("step")) for line in said(lines, message)]
        for message in ("within", "after the task", "after the call")
    }
    assert bound_to == {
        "within": [("bob", "nested"), ("bob", "nested")],
        "after the task": [("ada", None)],
        "after the call": [("bob", "nested")],
    }


async def test_what_is_bound_later_does_not_reach_a_task(spans: Spans, lines: io.StringIO) -> None:
    async def nested(bound_meanwhile: asyncio.Event) -> None:
        await bound_meanwhile.wait()
        logger.info("within")

    async def handler(request: web.Request) -> web.StreamResponse:
        bound_meanwhile = asyncio.Event()
        task = asyncio.create_task(nested(bound_meanwhile))
        bind(user="ada")
        bound_meanwhile.set()
        await task
        return web.Response()

    async with observed(spans, lines, handler) as (service, witness):
        await service.get("/")
        await witness.next()
    assert "user" not in said(lines, "within")[0]


# Baggage


async def test_chosen_baggage_is_on_every_line_and_span(spans: Spans, lines: io.StringIO) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await in_a_task()
        await spawn(in_a_task(), name="spawned")
        async with client_session(request.app) as session, session.get(request.query["ask"]) as response:
            assert response.status == 200
        return web.Response()

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.headers["baggage"] == "tenant=acme,plan=gold,secret=x"
        return web.Response()

    other = web.Application()
    other.router.add_get("/", answer)
    async with observed(spans, lines, handler, baggage=("tenant", "plan", "absent")) as (service, witness):
        async with serving(other) as asked:
            headers = {"baggage": "tenant=acme,plan=gold,secret=x"}
            await service.get("/", params={"ask": asked.url("/")}, headers=headers)
        exchange = await witness.next()
    carried = {"tenant": "acme", "plan": "gold"}
    theirs = [span for span in spans.all if attributes(span).get("tenant") == "acme"]
    assert sorted(span.name for span in theirs) == ["GET", "GET /", "told", "told"]
    for span in theirs:
        assert carried.items() <= attributes(span).items()
        assert not {"absent", "secret"} & attributes(span).keys()
    told = said(lines) + [
        line for line in said(lines, "GET / 200") if line["request_id"] == exchange.request_id
    ]
    assert len(told) >= 3
    for line in told[:2] + told[-1:]:
        assert carried.items() <= line.items()
        assert not {"absent", "secret"} & line.keys()


async def test_baggage_that_nobody_chose_stays_out(spans: Spans, lines: io.StringIO) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        tell()
        return web.Response()

    async with observed(spans, lines, handler) as (service, witness):
        await service.get("/", headers={"baggage": "tenant=acme"})
        await witness.next()
    assert "acme" not in lines.getvalue()
    assert all("acme" not in attributes(span).values() for span in spans.all)


@pytest.mark.parametrize("value", ["%0d%0aInjected:%201", "%ff%fe", "a" * 4000, "%F0%9F%90%8D", "%00"])
async def test_hostile_baggage_stays_one_valid_line(value: str, spans: Spans, lines: io.StringIO) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        tell()
        return web.Response()

    async with observed(spans, lines, handler, baggage=("tenant",)) as (service, witness):
        await service.get("/", headers={"baggage": f"tenant={value}"})
        await witness.next()
    (line,) = said(lines)
    (span,) = spans.servers
    assert line["tenant"] == attributes(span)["tenant"]
    attributes(span)["tenant"].encode()


async def test_without_baggage_its_option_costs_nothing(spans: Spans, lines: io.StringIO) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        tell()
        return web.Response()

    async with observed(spans, lines, handler, baggage=("tenant",)) as (service, witness):
        await service.get("/")
        await witness.next()
    assert "tenant" not in said(lines)[0]


@pytest.mark.parametrize("keys", ["tenant", ["tenant"], ("",), (1,)])
def test_baggage_keys_are_a_tuple_of_names(keys: Any) -> None:
    with pytest.raises(TypeError, match=r"Tracing\(baggage=\.\.\.\) takes a tuple of names"):
        Tracing(baggage=keys)


async def test_a_queued_job_has_its_own_requests_baggage(spans: Spans, lines: io.StringIO) -> None:
    scheduler = aiojobs.Scheduler(limit=1)

    async def work() -> None:
        await asyncio.sleep(0.05)
        tell()

    async def handler(request: web.Request) -> web.StreamResponse:
        await scheduler.spawn(supervised(work(), name="job"))
        return web.Response()

    async with scheduler, observed(spans, lines, handler, baggage=("tenant",)) as (service, _):
        await service.get("/", headers={"baggage": "tenant=acme"})
        await service.get("/")  # its job waits in the queue behind the other, which starts it
        await until(lambda: len(said(lines)) == 2, "both jobs")
    assert [line.get("tenant") for line in said(lines)] == ["acme", None]
    told = [span for span in spans.all if span.name == "told"]
    assert [attributes(span).get("tenant") for span in told] == ["acme", None]
