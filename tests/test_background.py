"""Manual spans around costly awaits, and the traces of work that outlives its request."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import io
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx
import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    CLIENT_SESSION,
    Logs,
    Metrics,
    Tracing,
    bind,
    client_session,
    operation,
    request_id,
    setup_observability,
    spawn,
    take_snapshot,
)
from tests.service import Service, run_python, serving
from tests.spans import Spans, attributes, ids

Work = Callable[[], Awaitable[object]]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@asynccontextmanager
async def performing(
    spans: Spans, work: Work, registry: CollectorRegistry | None = None, stream: io.StringIO | None = None
) -> AsyncIterator[Service]:
    """A service whose ``GET /`` does ``work``, and which has been asked to once, as request ``asked``."""

    async def handler(request: web.Request) -> web.Response:
        await work()
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    app.router.add_get("/elsewhere", elsewhere)
    setup_observability(
        app,
        tracing=Tracing(provider=spans.provider),
        metrics=None if registry is None else Metrics(registry=registry),
        logs=None if stream is None else Logs(stream=stream, replace=True, access=False),
    )
    async with serving(app) as service:
        await service.get("/", headers={"X-Request-ID": "asked"})
        yield service


async def elsewhere(request: web.Request) -> web.Response:
    return web.Response(text="elsewhere")


async def perform(spans: Spans, work: Work, registry: CollectorRegistry | None = None) -> None:
    async with performing(spans, work, registry):
        pass


def counted(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """How many operations ended how."""
    return {
        (sample.labels["operation"], sample.labels["outcome"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "async_operation_duration_seconds_count"
    }


# Operations: a span, a duration and a name


async def in_a_with() -> None:
    with operation("price", order=7):
        pass


async def in_an_async_with() -> None:
    async with operation("price", order=7):
        await asyncio.sleep(0)


async def decorated() -> None:
    @operation("price", order=7)
    async def price() -> int:
        await asyncio.sleep(0)
        return 5

    assert await price() == 5


async def decorated_function() -> None:
    @operation("price", order=7)
    def price() -> int:
        return 5

    assert price() == 5


async def decorated_callable() -> None:
    class Price:
        async def __call__(self) -> int:
            await asyncio.sleep(0)
            return 5

    assert await operation("price", order=7)(Price())() == 5


async def decorated_method() -> None:
    class Shop:
        cents = 5

        @operation("price", order=7)
        async def price(self) -> int:
            return self.cents

    assert await Shop().price() == 5


@pytest.mark.parametrize(
    "work",
    [in_a_with, in_an_async_with, decorated, decorated_function, decorated_callable, decorated_method],
)
async def test_an_operation_is_a_span_and_a_duration(
    work: Work, spans: Spans, registry: CollectorRegistry
) -> None:
    await perform(spans, work, registry)
    price, server = spans.named("price"), spans.named("GET /")
    assert price.parent == ids(server)
    assert attributes(price) == {"async.operation": "price", "order": 7}
    assert price.status.status_code is StatusCode.UNSET
    assert counted(registry) == {("price", "ok"): 1}


async def test_a_coroutine_that_is_only_made_within_an_operation_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def price() -> int:
        return 5

    @operation("price")
    def retried() -> Any:
        return price()

    assert [await retried(), await retried()] == [5, 5]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "aiohttp_observe"]
    assert line.startswith("operation 'price' has ended before the coroutine that ")
    assert line.endswith(".retried has made began: decorate the 'async def' itself, beneath other decorators")


async def test_a_class_is_called_as_before_within_an_operation() -> None:
    @operation("price")
    class Price:
        async def __call__(self) -> int:
            return 5

    assert await Price()() == 5


async def test_the_with_gives_the_span(spans: Spans) -> None:
    async def work() -> None:
        async with operation("price") as span:
            assert trace.get_current_span() is span
            span.set_attribute("cents", 5)

    await perform(spans, work)
    assert attributes(spans.named("price"))["cents"] == 5


async def test_what_is_secret_in_its_attributes_is_redacted(spans: Spans) -> None:
    async def work() -> None:
        url = "https://me:hush@upstream/?token=hush&page=2"
        with operation("price", password="hush", url=url, urls=[url], number=7):
            pass

    await perform(spans, work)
    span = spans.named("price")
    assert "hush" not in span.to_json()
    assert attributes(span)["number"] == 7
    assert "page=2" in str(attributes(span)["urls"])


async def test_operations_nest_across_awaits_and_tasks(spans: Spans) -> None:
    async def inner(name: str) -> None:
        async with operation(name):
            await asyncio.sleep(0)

    async def work() -> None:
        with operation("outer"):
            await asyncio.gather(inner("one"), inner("other"))
            await inner("awaited")
        await inner("after")

    await perform(spans, work)
    outer, server = ids(spans.named("outer")), ids(spans.named("GET /"))
    assert [spans.named(name).parent for name in ("one", "other", "awaited")] == [outer] * 3
    assert [spans.named(name).parent for name in ("outer", "after")] == [server] * 2


async def test_an_operation_is_around_any_awaitable(spans: Spans, registry: CollectorRegistry) -> None:
    """The documented example: a call of another library, which nothing instruments."""
    answers = []

    async def work() -> None:
        async with operation("http_call", library="httpx"):
            answers.append(await asyncio.wait_for(fetched.get(url), 20))

    async with httpx.AsyncClient(trust_env=False) as fetched, performing(spans, in_a_with) as other:
        url = other.url("/elsewhere")
        await perform(spans, work, registry)
    assert answers[0].text == "elsewhere"
    assert attributes(spans.named("http_call"))["library"] == "httpx"
    assert counted(registry) == {("http_call", "ok"): 1}


async def test_an_exception_is_recorded_and_passes_through(spans: Spans, registry: CollectorRegistry) -> None:
    async def work() -> None:
        with pytest.raises(KeyError, match="lamp"):
            async with operation("price"):
                raise KeyError("lamp")

    await perform(spans, work, registry)
    span = spans.named("price")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "KeyError")
    assert attributes(span)["error.type"] == "KeyError"
    assert [event.name for event in span.events] == ["exception"]
    assert spans.named("GET /").status.status_code is StatusCode.UNSET
    assert counted(registry) == {("price", "error"): 1}


class Failing(SpanProcessor):
    def __init__(self, when: str) -> None:
        self._when = when

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self._when == "on_start" and span.name == "price":
            raise ZeroDivisionError

    def on_end(self, span: ReadableSpan) -> None:
        if self._when == "on_end" and span.name == "price":
            raise ZeroDivisionError


@pytest.mark.parametrize("when", ["on_start", "on_end"])
async def test_a_span_processor_that_fails_costs_neither_work_nor_metric(
    when: str, spans: Spans, registry: CollectorRegistry
) -> None:
    async def work() -> None:
        with operation("price"):
            pass
        with pytest.raises(KeyError, match="lamp"), operation("price"):
            raise KeyError("lamp")

    spans.provider.add_span_processor(Failing(when))
    await perform(spans, work, registry)
    assert counted(registry) == {("price", "ok"): 1, ("price", "error"): 1}
    labels = {"observer": "operation"}
    assert registry.get_sample_value("aiohttp_observe_internal_errors_total", labels) == 2


async def test_a_cancellation_passes_through_and_is_no_error(
    spans: Spans, registry: CollectorRegistry
) -> None:
    begun = asyncio.Event()

    async def wait() -> None:
        async with operation("wait"):
            begun.set()
            await asyncio.Event().wait()

    async def work() -> None:
        task = asyncio.create_task(wait())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await perform(spans, work, registry)
    span = spans.named("wait")
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["error.type"] == "cancelled"
    assert counted(registry) == {("wait", "cancelled"): 1}


async def counting() -> AsyncIterator[int]:
    async with operation("counting"):
        for number in range(10):
            yield number


async def abandon_to_the_collector() -> None:
    async for _ in counting():
        break
    gc.collect()


async def close_in_another_task() -> None:
    numbers = counting()
    await anext(numbers)
    await asyncio.create_task(numbers.aclose())  # type: ignore[attr-defined]


async def continue_in_another_task() -> None:
    numbers = counting()
    await anext(numbers)

    async def rest() -> None:
        async for _ in numbers:
            pass

    await asyncio.create_task(rest())


async def finish_in_an_empty_context() -> None:
    numbers = counting()
    await anext(numbers)
    closing: Any = numbers
    await contextvars.Context().run(asyncio.create_task, closing.aclose())


@pytest.mark.parametrize(
    "work",
    [
        abandon_to_the_collector,
        close_in_another_task,
        continue_in_another_task,
        finish_in_an_empty_context,
    ],
)
async def test_an_operation_in_a_generator_finalised_elsewhere_leaves_no_complaint(
    work: Work, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    async with performing(spans, work):
        await spans.until(2)
    assert spans.named("counting").status.status_code is StatusCode.UNSET
    # A collection of everything may well block the loop, which is told rightly.
    complaints = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [each.getMessage() for each in complaints if each.name != "aiohttp_observe.loopwatch"] == []


async def test_a_generator_finalised_elsewhere_leaves_the_operation_there_current(spans: Spans) -> None:
    async def finalise(numbers: Any) -> None:
        with operation("elsewhere"):
            await numbers.aclose()
            with operation("within"):
                pass

    async def work() -> None:
        numbers = counting()
        await anext(numbers)
        await asyncio.create_task(finalise(numbers))

    await perform(spans, work)
    assert spans.named("within").parent == ids(spans.named("elsewhere"))


async def test_the_operation_of_a_task_is_on_the_task_page(spans: Spans) -> None:
    named: list[str | None] = []

    def look() -> None:
        task = asyncio.current_task()
        named.extend(row.operation for row in take_snapshot().tasks if task and row.name == task.get_name())

    async def work() -> None:
        look()
        with operation("outer"):
            with operation("inner"):
                look()
            look()
        look()

    await perform(spans, work)
    assert named == [None, "inner", "outer", None]


def test_an_operation_works_without_a_loop_or_an_application() -> None:
    with operation("alone") as span:
        assert not span.is_recording()

    @operation("added")
    def add(one: int, other: int) -> int:
        """Adds."""
        return one + other

    assert add(1, other=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Adds.")


def test_without_an_application_the_global_provider_has_the_span() -> None:
    """In a process of its own, since the global provider can't be taken back."""
    done = run_python(
        """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from aiohttp_observe import operation

trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))

async def main():
    async with operation("alone", size=3):
        await asyncio.sleep(0)

asyncio.run(main())
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["name"], told["attributes"]) == ("alone", {"async.operation": "alone", "size": 3})


def test_a_decorated_function_keeps_its_kind() -> None:
    assert inspect.iscoroutinefunction(operation("x")(in_a_with))
    assert not inspect.iscoroutinefunction(operation("x")(links))


def one_by_one() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("function", [one_by_one, counting])
def test_generators_are_not_decorated(function: Any) -> None:
    with pytest.raises(TypeError, match="write 'with operation"):
        operation("numbers")(function)


def test_a_name_is_a_text() -> None:
    name: Any = in_a_with
    with pytest.raises(TypeError, match=r"operation\(name\) takes str"):
        operation(name)


# Background work: whose trace it is in


async def work_twice() -> None:
    """Two spans, the second after the first has ended."""
    async with operation("work"):
        await asyncio.sleep(0)
    async with operation("more work"):
        await asyncio.sleep(0)


async def spawned_as(how: Any, spans: Spans) -> tuple[ReadableSpan, ReadableSpan, ReadableSpan]:
    """The server's span and the two of work that its request has spawned."""
    tasks = []

    async def work() -> None:
        tasks.append(spawn(work_twice(), trace=how))

    async with performing(spans, work):
        await tasks[0]
        await spans.until(3)
    return spans.named("GET /"), spans.named("work"), spans.named("more work")


def links(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


async def test_by_default_its_spans_start_traces_linked_to_the_request(spans: Spans) -> None:
    server, work, more = await spawned_as("link", spans)
    assert len({ids(span).trace_id for span in (server, work, more)}) == 3
    assert (work.parent, more.parent) == (None, None)
    assert links(work) == links(more) == [ids(server).span_id]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks before Python 3.12")
async def test_an_eager_task_is_timed_from_its_begin(spans: Spans) -> None:
    async def busy() -> None:
        time.sleep(0.05)  # noqa: ASYNC251 - its first stretch is what matters

    async def work() -> None:
        spawn(busy(), name="busy")

    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    stream = io.StringIO()
    async with performing(spans, work, stream=stream):
        pass
    (line,) = (line for line in map(json.loads, stream.getvalue().splitlines()) if line.get("task") == "busy")
    assert line["message"] == "background task busy ended"
    assert line["duration_ms"] >= 50


async def test_as_a_child_it_stays_in_the_requests_trace(spans: Spans) -> None:
    server, work, more = await spawned_as("child", spans)
    assert (work.parent, more.parent) == (ids(server), ids(server))
    assert links(work) == links(more) == []


async def test_without_a_trace_it_has_nothing_of_the_requests(spans: Spans) -> None:
    server, work, more = await spawned_as("none", spans)
    assert len({ids(span).trace_id for span in (server, work, more)}) == 3
    assert (work.parent, more.parent, links(work), links(more)) == (None, None, [], [])


async def test_only_the_first_span_of_a_trace_has_the_link(spans: Spans) -> None:
    async def nested() -> None:
        with operation("root"), operation("leaf"):
            pass

    tasks = []

    async def work() -> None:
        tasks.append(spawn(nested()))

    async with performing(spans, work):
        await tasks[0]
    assert links(spans.named("root")) == [ids(spans.named("GET /")).span_id]
    assert links(spans.named("leaf")) == []


async def test_the_link_is_to_the_operation_that_spawned_it(spans: Spans) -> None:
    tasks = []

    async def work() -> None:
        with operation("ordering"):
            tasks.append(spawn(work_twice()))

    async with performing(spans, work):
        await tasks[0]
    assert links(spans.named("work")) == [ids(spans.named("ordering")).span_id]


async def test_what_spawned_work_spawns_is_linked_to_the_request_too(spans: Spans) -> None:
    async def parent() -> None:
        await spawn(work_twice())

    tasks = []

    async def work() -> None:
        tasks.append(spawn(parent()))

    async with performing(spans, work):
        await tasks[0]
    assert links(spans.named("work")) == [ids(spans.named("GET /")).span_id]


async def test_the_link_does_not_leak_into_later_requests(spans: Spans) -> None:
    async def work() -> None:
        await spawn(work_twice())

    async with performing(spans, work) as service:
        await service.get("/elsewhere")
        await spans.until(4)
    assert links(spans.named("GET /elsewhere")) == []
    assert spans.named("GET /elsewhere").parent is None


async def test_a_long_lived_worker_does_not_glue_requests_together(spans: Spans) -> None:
    """The worker that the first request starts serves the others without being in its trace."""
    jobs: asyncio.Queue[int] = asyncio.Queue()
    workers: list[asyncio.Task[None]] = []

    async def worker() -> None:
        while True:
            await jobs.get()
            with operation("job"):
                pass
            jobs.task_done()

    async def work() -> None:
        if not workers:
            workers.append(spawn(worker()))
        jobs.put_nowait(1)

    async with performing(spans, work) as service:
        for _ in range(2):
            await service.get("/")
        await jobs.join()
        await spans.until(6)
    done = [span for span in spans.all if span.name == "job"]
    assert len({ids(span).trace_id for span in spans.all}) == 6
    assert [links(span) for span in done] == [[ids(spans.servers[0]).span_id]] * 3


async def test_calls_of_spawned_work_start_linked_traces_as_well(spans: Spans) -> None:
    tasks = []
    session = client_session()

    async def call() -> None:
        async with session.get(urls[0]) as response:
            await response.read()

    async def work() -> None:
        if urls:
            tasks.append(spawn(call()))

    urls: list[str] = []
    async with session, performing(spans, work) as service:
        urls.append(service.url("/elsewhere"))
        await service.get("/")
        await tasks[0]
        await spans.until(4)
    (client,) = spans.clients
    assert client.parent is None
    assert links(client) == [ids(spans.servers[1]).span_id]
    assert ids(spans.named("GET /elsewhere")).trace_id == ids(client).trace_id


async def test_its_log_lines_keep_the_request_id_and_the_fields_but_have_the_new_trace(spans: Spans) -> None:
    stream, tasks = io.StringIO(), []

    async def log() -> None:
        assert request_id() == "asked"
        with operation("logging"):
            logging.getLogger("shop").info("packed")

    async def work() -> None:
        bind(order=7)
        tasks.append(spawn(log(), name="packer"))

    async with performing(spans, work, stream=stream):
        await tasks[0]
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (packed,) = (line for line in lines if line["message"] == "packed")
    assert (packed["request_id"], packed["order"], packed["task"]) == ("asked", 7, "packer")
    assert packed["trace_id"] == f"{ids(spans.named('logging')).trace_id:032x}"
    assert packed["trace_id"] != f"{ids(spans.named('GET /')).trace_id:032x}"


async def test_work_spawned_at_start_up_has_no_link_and_ends_at_clean_up(spans: Spans) -> None:
    tasks, began = [], asyncio.Event()

    async def worker() -> None:
        with operation("working"):
            began.set()
            await asyncio.Event().wait()

    async def start(app: web.Application) -> None:
        tasks.append(spawn(worker()))

    app = web.Application()
    app.on_startup.append(start)
    setup_observability(app, tracing=Tracing(provider=spans.provider), metrics=None, logs=None)
    async with serving(app):
        assert not app[CLIENT_SESSION].closed
        await began.wait()
    assert tasks[0].cancelled()
    (span,) = spans.all
    assert (span.name, span.parent, links(span)) == ("working", None, [])


async def test_without_tracing_work_is_spawned_just_the_same() -> None:
    tasks = []

    async def handler(request: web.Request) -> web.Response:
        tasks.append(spawn(asyncio.sleep(0, "done"), trace="link"))
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    setup_observability(app, tracing=None, metrics=None, logs=None)
    async with serving(app) as service:
        await service.get("/")
        assert await tasks[0] == "done"


@pytest.mark.parametrize("trace", ["sideways", None, ["link"]])
async def test_a_coroutine_that_is_not_spawned_is_closed(trace: Any) -> None:
    """Else Python would warn that it was never awaited, and hide the true mistake."""
    coroutine = work_twice()
    with pytest.raises(ValueError, match=r"spawn\(trace=...\)"):
        spawn(coroutine, trace=trace)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


@pytest.mark.parametrize("restart", [None, "never"])
async def test_a_back_off_without_a_restart_is_a_mistake(restart: Literal["never"] | None) -> None:
    with pytest.raises(ValueError, match=r"spawn\(backoff=...\) is for workers: say restart="):
        spawn(work_twice(), restart=restart, backoff=(0.5, 5.0))
