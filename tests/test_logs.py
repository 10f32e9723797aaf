"""Every line carries the ids of its request, is one line, and never blocks the loop."""

from __future__ import annotations

import asyncio
import codecs
import gzip
import io
import json
import logging
import logging.handlers
import os
import pickle
import queue
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any, TextIO

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import (
    AccessLogger,
    Exchange,
    JsonFormatter,
    Logs,
    Metrics,
    bind,
    bound,
    current_exchange,
    log_context,
    setup_observability,
    spawn,
)
from aiohttp_observe.logs.writer import Writer
from tests.service import PATIENCE, ROOT, Service, Witness, free_port, run_python, serving, until

shop = logging.getLogger("shop")
Line = dict[str, Any]
Work = Callable[[], Any]


class Output(io.StringIO):
    """Where lines are written to."""

    @property
    def lines(self) -> list[Line]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def of(self, logger: str) -> list[Line]:
        return [line for line in self.lines if line["logger"] == logger]


def application(work: Work, **options: Any) -> web.Application:
    """Its one resource does ``work``, which may be a function or a coroutine function."""

    async def handler(request: web.Request) -> web.Response:
        done = work()
        if asyncio.iscoroutine(done):
            await done
        return web.Response(text=str(current_exchange().trace_id))  # type: ignore[union-attr]

    app = web.Application()
    app.router.add_get("/work", handler)
    setup_observability(app, **options)
    return app


async def written_by(work: Work, **options: Any) -> Output:
    """What a service writes in which one request, ``mine``, does ``work``."""
    output = Output()
    logs = Logs(stream=output, replace=True, **options)
    app = application(work, logs=logs, metrics=Metrics(registry=CollectorRegistry()))
    async with serving(app) as service:
        await service.get("/work", headers={"X-Request-ID": "mine", "User-Agent": "test"})
    return output


# The line


async def test_a_line_is_that_of_the_contract() -> None:
    (line,) = (await written_by(lambda: shop.info("sold %d of %s", 3, "tea", extra={"price": 7.5}))).of(
        "shop"
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert re.fullmatch(r"[0-9a-f]{32}", line["trace_id"])
    assert re.fullmatch(r"[0-9a-f]{16}", line["span_id"])
    assert line["task"].startswith("Task-")
    del line["timestamp"], line["trace_id"], line["span_id"], line["task"]
    assert line == {
        "level": "INFO",
        "logger": "shop",
        "message": "sold 3 of tea",
        "request_id": "mine",
        "price": 7.5,
    }


async def test_an_exception_is_told_in_parts() -> None:
    def fail() -> None:
        try:
            raise LookupError("no tea")
        except LookupError:
            shop.exception("failed")

    (line,) = (await written_by(fail)).of("shop")
    assert (line["level"], line["message"]) == ("ERROR", "failed")
    exception = line["exception"]
    assert (exception["type"], exception["message"]) == ("LookupError", "no tea")
    assert exception["stacktrace"].startswith("Traceback (most recent call last):\n")
    assert exception["stacktrace"].endswith("LookupError: no tea\n")


async def test_an_exceptions_type_is_qualified() -> None:
    def fail() -> None:
        shop.error("failed", exc_info=json.JSONDecodeError("odd", "x", 0))

    (line,) = (await written_by(fail)).of("shop")
    assert line["exception"]["type"] == "json.decoder.JSONDecodeError"


async def test_outside_of_requests_there_are_no_ids() -> None:
    output = Output()
    app = application(int, logs=Logs(stream=output, replace=True), metrics=None)
    async with serving(app):
        shop.info("between requests")
    (line,) = output.of("shop")
    assert {"request_id", "trace_id", "span_id"}.isdisjoint(line)


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"], ids=lambda level: f"at {level}")
async def test_the_level_is_the_root_loggers(level: str) -> None:
    def log_all() -> None:
        for name in ("DEBUG", "INFO", "WARNING", "ERROR"):
            shop.log(getattr(logging, name), "line")

    written = [line["level"] for line in (await written_by(log_all, level=level)).of("shop")]
    assert written == ["DEBUG", "INFO", "WARNING", "ERROR"][-len(written) :]
    assert written[0] == level


# Wherever it is written


async def in_a_thread() -> None:
    await asyncio.to_thread(shop.info, "here")


async def in_a_task() -> None:
    async def log() -> None:
        shop.info("here")

    await asyncio.create_task(log())


async def in_a_spawned_task() -> None:
    async def log() -> None:
        shop.info("here")

    await spawn(log())


async def in_a_nested_task_of_a_thread() -> None:
    async def log() -> None:
        await asyncio.to_thread(shop.info, "here")

    await asyncio.gather(log())


def in_a_child_logger() -> None:
    logging.getLogger("shop.orders").info("here")


class OwnLogger(logging.Logger):
    pass


def in_a_library_with_a_logger_of_its_own() -> None:
    logger = OwnLogger("library", logging.INFO)
    logger.parent = logging.root
    logger.info("here")


async def in_a_generator() -> None:
    async def numbers() -> AsyncIterator[int]:
        shop.info("here")
        yield 1

    async for _ in numbers():
        pass


@pytest.mark.parametrize(
    "work",
    [
        in_a_thread,
        in_a_task,
        in_a_spawned_task,
        in_a_nested_task_of_a_thread,
        in_a_child_logger,
        in_a_library_with_a_logger_of_its_own,
        in_a_generator,
    ],
)
async def test_the_ids_are_there_wherever_a_request_logs(work: Work) -> None:
    output = await written_by(work)
    (line,) = [line for line in output.lines if line["message"] == "here"]
    (access,) = output.of("aiohttp_observe.access")
    assert line["request_id"] == "mine"
    if work is not in_a_spawned_task:  # which starts a trace of its own
        assert line["trace_id"] == access["trace_id"]


async def test_the_task_is_named_that_logs() -> None:
    async def log_in_a_task() -> None:
        async def log() -> None:
            shop.info("here")

        await asyncio.create_task(log(), name="packer")
        await asyncio.to_thread(shop.info, "there")

    here, there = (await written_by(log_in_a_task)).of("shop")
    assert here["task"] == "packer"
    assert "task" not in there


# Bound fields


async def test_bound_fields_are_in_every_line_from_there_on() -> None:
    async def work() -> None:
        shop.info("before")
        bind(customer="c1", basket=7)
        shop.info("after")
        await asyncio.to_thread(shop.info, "in a thread")
        bind(basket=8)
        shop.info("changed")

    output = await written_by(work)
    before, *others = output.of("shop")
    (access,) = output.of("aiohttp_observe.access")
    assert "customer" not in before
    assert [(line["customer"], line["basket"]) for line in others] == [("c1", 7), ("c1", 7), ("c1", 8)]
    assert (access["customer"], access["basket"]) == ("c1", 8)


async def test_fields_can_be_bound_for_a_block() -> None:
    def work() -> None:
        bind(customer="c1")
        with bound(step="pay"):
            shop.info("within")
            with bound(step="refund", customer="c2"):
                shop.info("deeper")
        shop.info("after")

    within, deeper, after = (await written_by(work)).of("shop")
    assert (within["customer"], within["step"]) == ("c1", "pay")
    assert (deeper["customer"], deeper["step"]) == ("c2", "refund")
    assert after["customer"] == "c1"
    assert "step" not in after


async def test_fields_do_not_leak_into_the_next_request(registry: CollectorRegistry) -> None:
    output, seen = Output(), []

    def work() -> None:
        seen.append(log_context())
        bind(customer="c1")

    app = application(
        work, logs=Logs(stream=output, replace=True), metrics=Metrics(registry=registry), tracing=None
    )
    async with serving(app) as service:
        for number in range(2):
            await service.get("/work", headers={"X-Request-ID": f"id-{number}"})
    assert seen == [{"request_id": "id-0"}, {"request_id": "id-1"}]


async def test_an_extra_field_wins_over_a_bound_one() -> None:
    def work() -> None:
        bind(customer="c1")
        shop.info("here", extra={"customer": "c2"})

    (line,) = (await written_by(work)).of("shop")
    assert line["customer"] == "c2"


@pytest.mark.parametrize("name", ["request_id", "trace_id", "span_id", "task"])
async def test_an_extra_field_may_be_named_like_an_id(name: str) -> None:
    """`logging` itself refuses to overwrite what a record already has: ours must not count as that."""
    (line,) = (await written_by(lambda: shop.info("here", extra={name: "theirs"}))).of("shop")
    assert line[name] == "theirs"


@pytest.mark.parametrize("name", ["timestamp", "level", "logger", "exception"])
async def test_a_field_never_hides_one_of_the_lines_own(name: str) -> None:
    def work() -> None:
        bind(**{name: "bound"})
        shop.info("here", extra={name: "theirs"})

    output = await written_by(work)
    (line,) = output.of("shop")
    assert (line["logger"], line["level"], line[f"{name}_"]) == ("shop", "INFO", "theirs")
    assert output.of("aiohttp_observe.access")[0][f"{name}_"] == "bound"


# One line, whatever it contains


class Unprintable:
    def __repr__(self) -> str:
        raise LookupError("no text for this")

    __str__ = __repr__


def itself() -> dict[str, Any]:
    value: dict[str, Any] = {"name": "a circle"}
    value["itself"] = value
    return value


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(2000):
        value = [value]
    return value


HOSTILE: dict[str, Any] = {
    "line breaks": "a\nb\r\nc\x0bd\x0ce\x85f",
    "line separators": "a\u2028b\u2029c",
    "terminal commands": "\x1b[31mred\x1b[0m\x07\x00",
    "quotes": '"}{"level":"ERROR","\\',
    "a lone surrogate": "a\ud800b",
    "a surrogate in a key": {"\udfff": 1},
    "emoji": "🫖",
    "not a number": [float("nan"), float("inf"), float("-inf")],
    "a huge number": 10**400,
    "a number beyond the encoders": 2**64,
    "a huge text": "x" * 1_000_000,
    "a circle": itself(),
    "depth": deep(),
    "breadth": list(range(100_000)),
    "an object without text": Unprintable(),
    "a key without text": {Unprintable(): 1},
    "keys of many kinds": {1: 2, None: 3, (4, 5): 6, b"x": 7, 1.5: 8},
    "bytes": b"\xff\x00",
    "a set": {1, 2},
    "an exception": LookupError("x"),
    "a class": Unprintable,
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
async def test_a_record_is_one_line_whatever_it_contains(value: Any) -> None:
    """As message, argument, field and bound field; and the line after it is whole."""

    def work() -> None:
        with bound(field=value):
            shop.info("%s", value)
            shop.info(value)
            shop.info("extra", extra={"value": value})
            shop.error("failed", exc_info=LookupError(value))
        shop.info("the next")

    output = await written_by(work)
    lines = output.of("shop")
    assert len(lines) == 5
    assert lines[4]["message"] == "the next"
    assert len(output.getvalue()) < 500_000
    for line in output.getvalue().splitlines():
        assert len(line.split("\u2028")) == 1
    text = output.getvalue()
    assert not set(text) & {"\x1b", "\x00", "\x07", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"}


async def test_arguments_that_do_not_fit_are_told() -> None:
    (line,) = (await written_by(lambda: shop.info("%d of %d", "x"))).of("shop")
    assert line["message"] == "%d of %d [arguments don't fit: TypeError]"


async def test_what_a_handler_changes_after_logging_is_not_in_the_line() -> None:
    """The line is written later, but says what was true when it was logged."""

    def work() -> None:
        items = ["tea"]
        shop.info("sold %s", items, extra={"items": items})
        items.append("coffee")

    (line,) = (await written_by(work)).of("shop")
    assert (line["message"], line["items"]) == ("sold ['tea']", ["tea"])


class Ratio(float):
    def __str__(self) -> str:
        return f"{float(self):.0%}"


async def test_what_is_a_number_is_one_whatever_it_is_called_besides() -> None:
    odd = {"status": HTTPStatus.OK, "ratio": Ratio(0.5), "without": Ratio("nan"), "huge": Huge.TIMES}
    output = await written_by(lambda: shop.info("here", extra={**odd, "nested": [odd], "told": True}))
    (line,) = output.of("shop")
    numbers = {"status": 200, "ratio": 0.5, "without": "nan", "huge": hex(2**70)}
    assert {name: line[name] for name in odd} == numbers
    assert line["nested"] == [numbers]
    assert line["told"] is True


class Huge(IntEnum):
    TIMES = 2**70


async def test_lines_stay_in_order() -> None:
    def work() -> None:
        for number in range(2000):
            shop.info("%d", number)

    lines = (await written_by(work)).of("shop")
    assert [line["message"] for line in lines] == [str(number) for number in range(2000)]


# The access line


ACCESS = {
    "level": "INFO",
    "logger": "aiohttp_observe.access",
    "message": "GET /work 200",
    "request_id": "mine",
    "http.request.method": "GET",
    "http.route": "/work",
    "url.path": "/work",
    "http.response.status_code": 200,
    "polls": 1,
    "client.address": "127.0.0.1",
    "user_agent.original": "test",
    "http.response.body.size": 32,
}
MEASURED = {"timestamp", "trace_id", "span_id", "task", "duration_ms", "busy_ms", "longest_poll_ms"}


def without_measures(line: Line) -> Line:
    assert line.keys() >= MEASURED
    assert 0 < line["longest_poll_ms"] <= line["busy_ms"] <= line["duration_ms"]
    by_chance = {"waiting_ms"}  # a busy machine takes its time to send the response
    return {key: value for key, value in line.items() if key not in MEASURED | by_chance}


async def test_there_is_one_access_line_a_request() -> None:
    (line,) = (await written_by(int)).of("aiohttp_observe.access")
    assert without_measures(line) == ACCESS


async def test_it_is_the_same_line_for_handlers_of_the_services_own(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """There it is a record like any other, with the fields as ``extra`` ones."""
    caplog.set_level(logging.INFO)
    async with serving(application(int, metrics=Metrics(registry=registry))) as service:
        await service.get("/work", headers={"X-Request-ID": "mine", "User-Agent": "test"})
    (record,) = [record for record in caplog.records if record.name == "aiohttp_observe.access"]
    line = json.loads(JsonFormatter().format(record))
    assert without_measures(line) == ACCESS


async def test_the_access_line_tells_what_went_wrong() -> None:
    def crash() -> None:
        raise LookupError

    output = await written_by(crash)
    (line,) = output.of("aiohttp_observe.access")
    assert (line["http.response.status_code"], line["error.type"]) == (500, "LookupError")


async def test_aiohttps_own_error_line_carries_the_same_ids() -> None:
    def crash() -> None:
        raise LookupError

    output = await written_by(crash)
    (error,) = output.of("aiohttp.server")
    (access,) = output.of("aiohttp_observe.access")
    assert error["exception"]["type"] == "LookupError"
    for name in ("request_id", "trace_id", "span_id"):
        assert error[name] == access[name]


async def test_aiohttps_own_access_line_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(application(int, metrics=None)) as service:
        await service.get("/work")
    assert [record for record in caplog.records if record.name == "aiohttp.access"] == []


async def test_the_access_line_can_be_left_to_aiohttp(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(application(int, metrics=None, logs=Logs(access=False))) as service:
        await service.get("/work", headers={"X-Request-ID": "mine"})
    (record,) = [record for record in caplog.records if "access" in record.name]
    assert record.name == "aiohttp.access"
    assert record.__dict__["request_id"] == "mine"


async def test_a_query_is_not_in_the_access_line() -> None:
    output = Output()
    app = application(int, logs=Logs(stream=output, replace=True), metrics=None)
    async with serving(app) as service:
        await service.get("/work?token=secret", headers={"Authorization": "Bearer secret"})
    assert "secret" not in output.getvalue()


async def test_a_request_the_parser_refused_has_an_access_line() -> None:
    output = Output()
    app = application(int, logs=Logs(stream=output, replace=True), metrics=None)
    async with serving(app) as service:
        await service.exchange_bytes(b"GARBAGE\r\n\r\n")
    (line,) = output.of("aiohttp_observe.access")
    assert (line["http.route"], line["http.response.status_code"]) == ("_malformed", 400)
    assert line["message"] == "_OTHER _malformed 400"


async def test_a_silenced_access_logger_is_silent() -> None:
    output = Output()
    logger = logging.getLogger("aiohttp_observe.access")
    logger.setLevel(logging.WARNING)
    try:
        output = await written_by(lambda: shop.info("here"))
    finally:
        logger.setLevel(logging.NOTSET)
    assert [line["logger"] for line in output.lines] == ["shop"]


async def test_a_filter_of_the_services_own_is_heard() -> None:
    """Health checks, say: the shortcut past the records must not pass the filters."""
    logger = logging.getLogger("aiohttp_observe.access")
    reject = Reject()
    logger.addFilter(reject)
    try:
        output = await written_by(lambda: shop.info("here"))
    finally:
        logger.removeFilter(reject)
    assert [line["logger"] for line in output.lines] == ["shop"]


class Reject(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False


async def test_the_access_logger_works_without_observability(caplog: pytest.LogCaptureFixture) -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response()

    caplog.set_level(logging.INFO)
    app = web.Application()
    app.router.add_get("/hello", hello)
    async with serving(app, access_log_class=AccessLogger) as service:
        await service.get("/hello?q=1", headers={"User-Agent": "test"})
        await service.get("/nowhere")
        await service.exchange_bytes(b"nonsense\r\n\r\n")
    records = [record for record in caplog.records if "access" in record.name]
    lines = [json.loads(JsonFormatter().format(record)) for record in records]
    assert [line["http.route"] for line in lines] == ["/hello", "_unmatched", "_malformed"]
    assert "user_agent.original" not in lines[2]
    line = lines[0]
    assert line["message"] == "GET /hello 200"
    assert (line["url.path"], line["http.response.status_code"]) == ("/hello", 200)
    assert (line["client.address"], line["user_agent.original"]) == ("127.0.0.1", "test")
    assert line["duration_ms"] > 0


async def test_there_is_one_line_with_the_access_logger_given_as_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(application(int, metrics=None), access_log_class=AccessLogger) as service:
        await service.get("/work")
    assert len([record for record in caplog.records if "access" in record.name]) == 1


@pytest.mark.parametrize("logs", [None, Logs(access=False)], ids=["no logs", "no access line"])
async def test_the_access_logger_writes_where_logs_do_not(
    logs: Logs | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = application(int, metrics=None, logs=logs)
    async with serving(app, access_log_class=AccessLogger) as service:
        await service.get("/work")
    (record,) = [record for record in caplog.records if "access" in record.name]
    assert (record.name, record.getMessage()) == ("aiohttp_observe.access", "GET /work 200")


# Where the service has configured logging itself


@pytest.fixture
def own_handler() -> Iterator[Output]:
    """A handler of the service's own on the root logger, with a format that names an id."""
    output = Output()
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        logging.Formatter("%(request_id)s %(customer)s %(message)s", defaults={"customer": "-"})
    )
    with attached(handler):
        yield output


class attached:  # noqa: N801 - reads as a statement
    """A handler on the root logger, at level INFO, within the block."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler

    def __enter__(self) -> None:
        self._level = logging.root.level
        logging.root.addHandler(self._handler)
        logging.root.setLevel(logging.INFO)

    def __exit__(self, *exc_info: object) -> None:
        logging.root.removeHandler(self._handler)
        logging.root.setLevel(self._level)


@asynccontextmanager
async def as_configured(work: Work, **options: Any) -> AsyncIterator[Service]:
    async with serving(application(work, metrics=None, **options)) as service:
        await service.get("/work", headers={"X-Request-ID": "mine"})
        yield service


async def test_handlers_of_the_service_stay_and_their_records_gain_the_ids(own_handler: Output) -> None:
    def work() -> None:
        bind(customer="c1")
        shop.info("sold %s", "tea")

    before = logging.root.handlers[:]
    async with as_configured(work):
        assert logging.root.handlers == before
    assert "mine c1 sold tea\n" in own_handler.getvalue()
    assert "mine c1 GET /work 200\n" in own_handler.getvalue()


async def test_replacing_them_is_on_wish_and_not_for_good(own_handler: Output) -> None:
    output, before = Output(), logging.root.handlers[:]
    async with as_configured(lambda: shop.info("here"), logs=Logs(stream=output, replace=True)):
        assert len(logging.root.handlers) == 1
    assert logging.root.handlers == before
    assert own_handler.getvalue() == ""
    assert [line["message"] for line in output.of("shop")] == ["here"]


async def test_a_formatter_of_python_json_logger_gains_the_ids() -> None:
    from pythonjsonlogger.json import JsonFormatter as TheirFormatter

    def work() -> None:
        bind(customer="c1")
        shop.info("here", extra={"price": 7})

    output = Output()
    handler = logging.StreamHandler(output)
    handler.setFormatter(TheirFormatter("%(name)s %(message)s"))
    with attached(handler):
        async with as_configured(work):
            pass
    (line,) = [line for line in output.lines if line["name"] == "shop"]
    assert (line["message"], line["price"]) == ("here", 7)
    assert (line["request_id"], line["customer"]) == ("mine", "c1")


async def test_our_formatter_is_theirs_to_use() -> None:
    output = Output()
    handler = logging.StreamHandler(output)
    handler.setFormatter(JsonFormatter())
    with attached(handler):
        async with as_configured(lambda: shop.info("here", extra={"price": 7})):
            pass
    (line,) = output.of("shop")
    assert (line["message"], line["request_id"], line["price"]) == ("here", "mine", 7)


async def test_records_survive_a_queue() -> None:
    """A QueueHandler prepares a copy of the record, for a listener in another thread."""
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with attached(logging.handlers.QueueHandler(records)):
        async with as_configured(lambda: shop.info("sold %s", "tea", extra={"price": 7})):
            pass
    record = records.get_nowait()
    assert record.getMessage() == "sold tea"
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["request_id"], line["price"]) == ("sold tea", "mine", 7)


async def test_records_survive_pickling() -> None:
    """And need nothing of this package where they are unpickled."""
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with attached(logging.handlers.QueueHandler(records)):
        async with as_configured(lambda: shop.info("here")):
            pass
    dumped = pickle.dumps(records.get_nowait())
    assert b"aiohttp_observe" not in dumped
    record = pickle.loads(dumped)
    assert type(record) is logging.LogRecord
    assert (record.getMessage(), record.request_id) == ("here", "mine")  # type: ignore[attr-defined]


async def test_records_survive_a_socket_handler() -> None:
    pickled = []

    class Handler(logging.handlers.SocketHandler):
        def emit(self, record: logging.LogRecord) -> None:
            pickled.append(self.makePickle(record))

    with attached(Handler("127.0.0.1", 0)):
        async with as_configured(lambda: shop.info("here", extra={"price": 7})):
            pass
    attributes = pickle.loads(pickled[0][4:])
    assert (attributes["msg"], attributes["request_id"], attributes["price"]) == ("here", "mine", 7)


async def test_a_record_class_of_the_service_stays_its_class() -> None:
    class OwnRecord(logging.LogRecord):
        def shout(self) -> str:
            return self.getMessage().upper()

    records: list[Any] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(OwnRecord)
    try:
        with attached(Handler()):
            async with as_configured(lambda: shop.info("here")):
                pass
        assert logging.getLogRecordFactory() is OwnRecord
    finally:
        logging.setLogRecordFactory(factory)
    record = records[0]
    assert (record.shout(), record.request_id) == ("HERE", "mine")
    assert isinstance(record, OwnRecord)


async def test_a_factory_set_on_top_of_ours_stays() -> None:
    def their_factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return previous(*args, **kwargs)

    factory = logging.getLogRecordFactory()
    try:
        async with serving(application(int, metrics=None)):
            previous = logging.getLogRecordFactory()
            logging.setLogRecordFactory(their_factory)
        assert logging.getLogRecordFactory() is their_factory
        record = logging.getLogRecordFactory()("shop", 20, "", 0, "later", (), None)
        assert type(record) is logging.LogRecord
    finally:
        logging.setLogRecordFactory(factory)


# Text, for a terminal


async def test_the_text_format_is_readable() -> None:
    def work() -> None:
        bind(customer="c 1")
        shop.warning("sold %s", "tea")

    text = (await written_by(work, format="text")).getvalue().splitlines()
    line = re.sub(r"(trace_id|span_id|task)=\S+ ", "", text[0])
    assert re.fullmatch(r'\d\d:\d\d:\d\d\.\d{3} WARNING shop: sold tea request_id=mine customer="c 1"', line)
    assert "aiohttp_observe.access: GET /work 200 request_id=mine" in text[1]


async def test_the_text_format_ends_with_the_traceback() -> None:
    output = await written_by(lambda: shop.error("failed", exc_info=LookupError("x")), format="text")
    assert "\n  | LookupError: x\n" in output.getvalue()


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
async def test_the_text_format_does_not_drive_the_terminal(value: Any) -> None:
    def work() -> None:
        shop.info("%s", value, extra={"value": value})
        shop.error("failed", exc_info=LookupError(value))

    text = (await written_by(work, format="text")).getvalue()
    assert not set(text) & {"\x1b", "\x00", "\x07", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"}
    assert "shop: failed" in text


class Terminal(Output):
    def isatty(self) -> bool:
        return True


async def test_level_and_format_are_taken_in_any_case() -> None:
    text = (await written_by(lambda: shop.warning("here"), level="warning", format="Text")).getvalue()
    assert " WARNING shop: here " in text
    assert "GET /work" not in text


async def test_levels_are_coloured_on_a_terminal_only() -> None:
    terminal = Terminal()
    app = application(
        lambda: shop.error("here"), logs=Logs(stream=terminal, replace=True, format="text"), metrics=None
    )
    async with serving(app) as service:
        await service.get("/work")
    assert terminal.getvalue().startswith("\x1b[31m")
    assert "\x1b" not in (await written_by(lambda: shop.error("here"), format="text")).getvalue()


# A sink that doesn't take what it is given


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe: the descriptor to read from, and the stream to write to."""
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    yield reading, stream
    os.close(reading)
    with suppress(BrokenPipeError):
        stream.close()


def dropped(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("aiohttp_observe_dropped_total", {"what": "log_lines"}) or 0.0


async def test_a_sink_that_blocks_blocks_nobody(
    pipe: tuple[int, TextIO], registry: CollectorRegistry
) -> None:
    """Nobody reads the pipe: requests go on, what doesn't fit the queue is dropped and counted."""
    reading, stream = pipe
    witness = Witness()
    app = application(
        lambda: shop.info("x" * 8000),
        logs=Logs(stream=stream, replace=True, queue_size=50),
        metrics=Metrics(registry=registry),
        observers=[witness],
    )
    async with serving(app) as service:
        for _ in range(300):
            assert (await service.get("/work")).status == 200
            await witness.next()
        assert dropped(registry) > 0
        draining = threading.Thread(target=drain, args=[reading])
        draining.start()
    stream.close()
    draining.join()
    labels = {"http_request_method": "GET", "http_route": "/work"}
    assert registry.get_sample_value("http_server_request_busy_seconds_count", labels) == 300


def drain(reading: int) -> None:
    while os.read(reading, 1 << 20):
        pass


async def test_every_line_is_either_written_or_counted(registry: CollectorRegistry) -> None:
    def work() -> None:
        for _ in range(1000):
            shop.info("x")

    output = Output()
    app = application(
        work,
        logs=Logs(stream=output, replace=True, queue_size=10),
        metrics=Metrics(registry=registry),
        loop_watch=None,  # a thousand lines may block the loop of a busy machine, which is a line more
    )
    async with serving(app) as service:
        await service.get("/work")
    assert dropped(registry) > 0
    assert len(output.lines) + dropped(registry) == 1001


async def test_a_line_that_cannot_be_rendered_costs_no_other() -> None:
    def render(lines: Sequence[str]) -> list[bytes]:
        if "unspeakable" in lines:
            raise ValueError
        return [f"{line}\n".encode() for line in lines]

    output, dropped = io.StringIO(), list[int]()
    writer = Writer(output, render, 1000, dropped.append)
    writer.put(["one", "two", "unspeakable", "three"])
    await writer.close(5)
    assert output.getvalue() == "one\ntwo\nthree\n"
    assert dropped == [1]


async def test_nobody_waits_for_a_writer_that_has_ended() -> None:
    """As the interpreter would at its exit, where the application is still there."""
    writer = Writer(io.StringIO(), lambda lines: [b"x\n"], 1000, lambda count: None)
    writer.put(["x"])
    await writer.close(5)
    assert await asyncio.wait_for(asyncio.to_thread(writer.flush, 3600), PATIENCE)


async def test_more_lines_than_are_written_at_once_keep_their_order() -> None:
    output = Output()

    def work() -> None:
        for number in range(3000):
            shop.info("%d", number)

    app = application(work, logs=Logs(stream=output, replace=True))
    async with serving(app) as service:
        await service.get("/work")
    assert [line["message"] for line in output.of("shop")] == [str(number) for number in range(3000)]


async def test_a_stream_that_was_closed_is_no_failure(registry: CollectorRegistry) -> None:
    output = Output()
    app = application(
        lambda: shop.info("here"),
        logs=Logs(stream=output, replace=True),
        metrics=Metrics(registry=registry),
    )
    async with serving(app) as service:
        output.close()
        assert (await service.get("/work")).status == 200
    assert dropped(registry) == 2


async def test_a_pipe_whose_reader_has_gone_is_no_failure(registry: CollectorRegistry) -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    app = application(
        lambda: shop.info("here"),
        logs=Logs(stream=stream, replace=True),
        metrics=Metrics(registry=registry),
    )
    os.close(reading)
    async with serving(app) as service:
        assert (await service.get("/work")).status == 200
    assert dropped(registry) == 2
    stream.close()  # nothing was left in its buffer, which would raise here


async def test_a_stream_that_is_not_utf_8_gets_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    app = application(
        lambda: shop.info("tea 🫖"), logs=Logs(stream=stream, replace=True, access=False), metrics=None
    )
    async with serving(app) as service:
        await service.get("/work")
    assert b"tea \\ud83e\\uded6" in raw.getvalue()
    assert json.loads(raw.getvalue().splitlines()[0])["message"] == "tea 🫖"


async def test_a_character_that_it_lacks_costs_no_other_one() -> None:
    """Each line is as long as by itself: so those are counted that a full disk has no room for."""

    def work() -> None:
        shop.info("café")
        shop.info("tea 🫖")

    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    app = application(work, logs=Logs(stream=stream, replace=True, access=False), metrics=None)
    async with serving(app) as service:
        await service.get("/work")
    first, second, *_ = raw.getvalue().splitlines()
    assert b"caf\xe9" in first
    assert b"tea \\ud83e\\uded6" in second


class Tee:
    """Writes to two streams, and says of all else what the first one does."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self._first, self._second = first, second

    def write(self, text: str) -> None:
        self._first.write(text)
        self._second.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first, name)


async def written_to(stream: Any) -> None:
    """Have a service write one line, at its one request."""
    logs = Logs(stream=stream, replace=True, level="WARNING")
    metrics = Metrics(registry=CollectorRegistry())
    async with serving(application(lambda: shop.warning("tea 🫖"), logs=logs, metrics=metrics)) as service:
        await service.get("/work")


async def test_what_a_stream_does_beside_writing_to_its_file_is_done(tmp_path: Path) -> None:
    """Both have the descriptor of their file."""
    with gzip.open(tmp_path / "log.gz", "wt", encoding="utf-8") as compressed:
        await written_to(compressed)
    with gzip.open(tmp_path / "log.gz", "rt", encoding="utf-8") as compressed:
        assert json.loads(compressed.read())["message"] == "tea 🫖"
    other = Output()
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        await written_to(Tee(file, other))
    assert (tmp_path / "log").read_text(encoding="utf-8") == other.getvalue()
    assert other.lines[0]["message"] == "tea 🫖"


class Plain:
    """All that is asked of a stream."""

    def __init__(self) -> None:
        self.told = ""

    def write(self, text: str) -> None:
        self.told += text


async def test_a_stream_only_has_to_write() -> None:
    plain, registry = Plain(), CollectorRegistry()
    logs = Logs(stream=plain, replace=True, level="WARNING")  # type: ignore[arg-type]
    metrics = Metrics(registry=registry)
    async with serving(application(lambda: shop.warning("here"), logs=logs, metrics=metrics)) as service:
        await service.get("/work")
    assert json.loads(plain.told)["message"] == "here"
    assert dropped(registry) == 0


@pytest.mark.parametrize("names", ["iban", ["iban", 1]])
def test_names_of_secrets_are_checked_in_a_formatter_too(names: Any) -> None:
    with pytest.raises(TypeError, match=r"JsonFormatter\(redact=...\) takes "):
        JsonFormatter(redact=names)


class Mine(io.TextIOWrapper):
    """As a service may have, to add something of its own."""


def as_text(file: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8")


def as_text_of_a_service(file: Any) -> io.TextIOWrapper:
    return Mine(file, encoding="utf-8")


def as_codecs_do(file: Any) -> codecs.StreamWriter:
    return codecs.getwriter("utf-8")(file)


@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "as with python -u"])
@pytest.mark.parametrize("layer", [as_text, as_text_of_a_service, as_codecs_do])
async def test_a_plain_file_is_written_past_its_buffer(
    tmp_path: Path, buffering: int, layer: Callable[[Any], Any]
) -> None:
    """Whose lock a thread that is stuck would keep at the interpreter's end."""
    with (tmp_path / "log").open("wb", buffering) as file:
        stream = layer(file)
        if buffering:
            stream.write("not flushed yet")
        await written_to(stream)
        assert json.loads((tmp_path / "log").read_bytes())["message"] == "tea 🫖"
        if layer is not as_codecs_do:
            stream.detach()


class Coded(Output):
    encoding = "binary"


async def test_a_stream_whose_encoding_python_does_not_know_gets_text() -> None:
    output = Coded()
    await written_to(output)
    assert output.lines[0]["message"] == "tea 🫖"


async def test_a_stream_that_cannot_be_encoded_for_is_no_failure() -> None:
    """What Python calls ``hex`` makes no text of text; another line may find the stream mended."""
    output, dropped = Coded(), list[int]()
    output.encoding = "hex"
    writer = Writer(output, lambda lines: [line.encode() for line in lines], 1000, dropped.append)
    writer.put(["one\n", "two\n"])
    assert await asyncio.to_thread(writer.flush, PATIENCE)
    assert dropped == [2]
    output.encoding = "utf-8"
    writer.put(["three\n"])
    await writer.close(PATIENCE)
    assert (output.getvalue(), dropped) == ("three\n", [2])


# Processes


SCRIPT = """
import asyncio, logging, sys, aiohttp
from aiohttp import web
from aiohttp_observe import setup_observability, Logs

async def hello(request):
    odd = {"price": 7.5, "nan": float("nan"), "big": 2**70}
    logging.getLogger("shop").info("sold %s", "t\u00e9a", extra=odd)
    return web.Response()

app = web.Application()
app.router.add_get("/hello", hello)
setup_observability(app, metrics=None, tracing=None)

async def serve():
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        await session.get("/hello", headers={"X-Request-ID": "mine"})
    return runner
"""


def lines_of(stdout: str) -> list[Line]:
    return [json.loads(line) for line in stdout.splitlines()]


def test_what_was_logged_is_written_at_exit_without_a_clean_up() -> None:
    script = """
async def main():
    await serve()
    for number in range(5000):
        logging.getLogger("shop").info("%d", number)

asyncio.run(main())
"""
    done = run_python(SCRIPT + script)
    assert done.returncode == 0
    written = [line["message"] for line in lines_of(done.stdout) if line["logger"] == "shop"]
    assert written == ["sold téa", *map(str, range(5000))]


def test_the_first_handler_is_ours_where_nothing_was_configured() -> None:
    script = """
async def main():
    runner = await serve()
    root = logging.getLogger()
    assert [type(handler).__name__ for handler in root.handlers] == ["WriterHandler"], root.handlers
    assert root.level == logging.INFO
    await runner.cleanup()
    assert (root.handlers, root.level) == ([], logging.WARNING)

asyncio.run(main())
"""
    done = run_python(SCRIPT + script)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line["message"] for line in lines_of(done.stdout)] == ["sold téa", "GET /hello 200"]


@pytest.mark.parametrize(
    "environment",
    [
        {"AIOHTTP_OBSERVE_LOG_LEVEL": "warning"},
        {"AIOHTTP_OBSERVE_LOG_FORMAT": "text"},
        {"AIOHTTP_OBSERVE_LOG_FORMAT": "TEXT"},
    ],
    ids=["level", "format", "format in capitals"],
)
def test_the_environment_is_heard(environment: dict[str, str]) -> None:
    script = """
async def main():
    await (await serve()).cleanup()

asyncio.run(main())
"""
    done = run_python(SCRIPT + script, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout == "") == ("AIOHTTP_OBSERVE_LOG_LEVEL" in environment)
    assert ("INFO    shop: sold téa request_id=mine" in done.stdout) == (
        "AIOHTTP_OBSERVE_LOG_FORMAT" in environment
    )


def test_a_reader_who_stopped_reading_does_not_keep_the_process_alive() -> None:
    """What is left is given up after some seconds, and the interpreter ends in good order."""
    script = """
async def main():
    runner = await serve()
    for number in range(3000):
        logging.getLogger("shop").info("x" * 100)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()


# Other loggers


async def test_structlog_gains_the_ids_with_one_line() -> None:
    structlog = pytest.importorskip("structlog")
    output = Output()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(output),
        processors=[
            lambda logger, method, event: {**log_context(), **event},  # the one line
            structlog.processors.JSONRenderer(),
        ],
    )

    def work() -> None:
        bind(customer="c1")
        logger.info("sold", item="tea")

    async with as_configured(work):
        pass
    (line,) = output.lines
    assert (line["event"], line["item"], line["customer"]) == ("sold", "tea", "c1")
    assert line["request_id"] == "mine"
    assert len(line["trace_id"]) == 32


async def test_loguru_gains_the_ids_with_one_line() -> None:
    loguru = pytest.importorskip("loguru")
    logger = loguru.logger.patch(lambda record: record["extra"].update(log_context()))  # the one line
    output = Output()
    number = logger.add(output, format="{extra[request_id]} {extra[customer]} {message}")

    def work() -> None:
        bind(customer="c1")
        logger.info("sold tea")

    try:
        async with as_configured(work):
            pass
    finally:
        logger.remove(number)
    assert output.getvalue() == "mine c1 sold tea\n"


async def test_plain_logging_gains_the_ids_where_our_logs_are_off() -> None:
    """The one line there is a filter, or a call of `log_context` in a formatter."""
    seen = []
    async with as_configured(lambda: seen.append(log_context()), logs=None):
        pass
    assert seen[0]["request_id"] == "mine"


def test_outside_of_applications_the_context_is_empty() -> None:
    assert log_context() == {}


# What is logged may be broken, and so may be the moment


class Raising(dict[str, Any]):
    def items(self) -> Any:
        raise LookupError


class Lazy:
    """As a proxy whose object can't be made just now."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


BROKEN: dict[str, Callable[[], Any]] = {
    "a mapping": lambda: Raising(a=1),
    "a proxy": Lazy,
    "a mapping in a mapping": lambda: {"deep": Raising(a=1)},
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_field_that_cannot_be_read_fails_no_request(kind: str) -> None:
    output = await written_by(lambda: shop.info("here", extra={"broken": BROKEN[kind]()}))
    (line,) = output.of("shop")
    assert "reading it raised" in str(line["broken"])
    (access,) = output.of("aiohttp_observe.access")
    assert access["http.response.status_code"] == 200


async def test_names_with_an_underscore_are_the_services_own() -> None:
    output = await written_by(lambda: shop.info("here", extra={"_context": 1}))
    assert [line["message"] for line in output.of("shop")] == ["here"]


async def test_an_access_line_has_what_was_bound_as_it_was_then() -> None:
    basket = {"items": 0}

    def work() -> None:
        basket["items"] += 1
        bind(basket=basket)

    output = Output()
    app = application(
        work, logs=Logs(stream=output, replace=True), metrics=Metrics(registry=CollectorRegistry())
    )
    async with serving(app) as service:
        for _ in range(3):
            await service.get("/work")
    lines = output.of("aiohttp_observe.access")
    assert [line["basket"]["items"] for line in lines] == [1, 2, 3]


class Spoiler:
    """An observer that leaves of one request what isn't a number."""

    def finished(self, exchange: Exchange) -> None:
        if exchange.request_id == "spoilt":
            exchange.busy = None  # type: ignore[assignment]


async def test_a_line_that_cannot_be_made_costs_no_other_and_is_counted(registry: CollectorRegistry) -> None:
    output = Output()
    app = application(
        int,
        logs=Logs(stream=output, replace=True),
        metrics=Metrics(registry=registry),
        observers=[Spoiler()],
    )
    async with serving(app) as service:
        for request_id in ("before", "spoilt", "after"):
            await service.get("/work", headers={"X-Request-ID": request_id})
    lines = output.of("aiohttp_observe.access")
    assert [line["request_id"] for line in lines] == ["before", "after"]
    assert dropped(registry) == 1


async def test_no_text_of_a_client_looks_like_a_line_of_its_own() -> None:
    def fail() -> None:
        try:
            raise LookupError("x\n03:00:00.000 INFO    auth: admin logged in")
        except LookupError:
            shop.exception("failed", extra={"note": "a\u00a0request_id=forged", "bidi": "\u202eabc"})

    text = (await written_by(fail, format="text")).getvalue()
    assert not any(line.startswith("03:00:00") for line in text.splitlines())
    assert "\u00a0request_id" not in text
    assert "\u202e" not in text


async def test_terminal_commands_of_eight_bits_are_escaped_in_json() -> None:
    output = await written_by(lambda: shop.info("a\x9b31mb"))
    assert "\x9b" not in output.getvalue()
    assert [line["message"] for line in output.of("shop")] == ["a\x9b31mb"]


def test_a_forked_child_writes_its_own_lines_and_only_those() -> None:
    done = run_python("""
import asyncio, logging, os, sys
from aiohttp import web
from aiohttp_observe import setup_observability

async def main():
    app = web.Application()
    setup_observability(app)
    runner = web.AppRunner(app)
    await runner.setup()
    logging.info("of the parent")
    child = os.fork()
    if not child:
        for number in range(3):
            logging.info("of the child %d", number)
        logging.getLogger().handlers[0].flush()
        os._exit(0)
    os.waitpid(child, 0)
    await runner.cleanup()

import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
asyncio.run(main())
""")
    assert (done.returncode, done.stderr) == (0, "")
    messages = [json.loads(line)["message"] for line in done.stdout.splitlines()]
    assert sorted(messages) == ["of the child 0", "of the child 1", "of the child 2", "of the parent"]


def test_a_process_of_multiprocessing_writes_what_it_has_logged() -> None:
    done = run_python("""
import asyncio, logging, multiprocessing
from aiohttp import web
from aiohttp_observe import setup_observability

async def main():
    app = web.Application()
    setup_observability(app)
    runner = web.AppRunner(app)
    await runner.setup()
    logging.info("of the parent")
    child = multiprocessing.get_context("fork").Process(target=logging.info, args=("of the child",))
    child.start()
    child.join()
    assert child.exitcode == 0
    await runner.cleanup()

import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
asyncio.run(main())
""")
    assert (done.returncode, done.stderr) == (0, "")
    messages = [json.loads(line)["message"] for line in done.stdout.splitlines()]
    assert sorted(messages) == ["of the child", "of the parent"]


def test_a_disk_that_was_full_for_a_while_has_whole_lines_and_what_is_left_out_is_counted(
    tmp_path: Path,
) -> None:
    """A limit on the size of files stands in for the disk."""
    path = tmp_path / "log"
    done = run_python(
        """
import asyncio, logging, resource, sys
from aiohttp import web
from prometheus_client import CollectorRegistry
from aiohttp_observe import Logs, Metrics, setup_observability

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def written(handler):
    assert handler.writer.flush(20)

async def main():
    registry, app = CollectorRegistry(), web.Application()
    with open(sys.argv[1], "w") as log:
        setup_observability(app, metrics=Metrics(registry=registry), logs=Logs(stream=log))
        runner = web.AppRunner(app)
        await runner.setup()
        handler = logging.getLogger().handlers[0]
        for size in (1000, 1000, resource.RLIM_INFINITY):
            limit(size)
            for number in range(20):
                logging.info("line %d", number)
            written(handler)
        await runner.cleanup()
    print(registry.get_sample_value("aiohttp_observe_dropped_total", {"what": "log_lines"}))

asyncio.run(main())
""",
        str(path),
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) + float(done.stdout) == 60
    assert 22 < len(lines) < 40


async def test_a_log_call_from_within_the_writing_of_another_goes_through() -> None:
    """As the garbage collector makes them, anywhere: nothing of ours may hold a lock then."""
    again: list[str] = ["twice"]

    class Nested:
        def __str__(self) -> str:
            if again:
                shop.info("%s", again.pop())
            return "once"

    output = await written_by(lambda: shop.info("%s", Nested()))
    assert sorted(line["message"] for line in output.of("shop")) == ["once", "twice"]


HANGING = """
import sys, time
from aiohttp import web
from aiohttp_observe import setup_observability

async def hello(request):
    return web.Response()

async def hang(request):
    time.sleep(60)

app = web.Application()
app.router.add_get("/hello", hello)
app.router.add_get("/hang", hang)
setup_observability(app)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


async def test_what_was_answered_before_the_loop_hangs_is_told_though_it_never_ends() -> None:
    port = free_port()
    command = [sys.executable, "-c", HANGING, str(port)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=ROOT)
    told: list[bytes] = []

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            told.append(line)

    reading = asyncio.create_task(read())
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            for number in range(5):
                await answered(session, f"/hello?{number}")
            hanging = asyncio.create_task(answered(session, "/hang"))
            await until(lambda: sum(b"GET /hello 200" in line for line in told) == 5, "the access lines")
            hanging.cancel()
    finally:
        process.kill()
        await process.wait()
        await reading


async def answered(session: aiohttp.ClientSession, path: str) -> None:
    """Ask until the server is up, and read the answer."""
    while True:
        try:
            async with session.get(path) as response:
                await response.read()
                return
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0.05)
