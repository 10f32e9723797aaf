"""Logging as services have it already: record factories, filters, configurations, no thread to be had."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import JsonFormatter, Logs, Metrics, bind, setup_observability, spawn, supervised
from tests.service import Witness, run_python, serving, until


@pytest.fixture
def names_of_its_own() -> Iterator[None]:
    """A record factory that says what ours would, as many recipes have it."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.task = record.request_id = record.kind = "the service's"
        return record

    logging.setLogRecordFactory(factory)
    yield
    logging.setLogRecordFactory(before)


async def seven() -> int:
    return 7


async def flaky() -> None:
    raise LookupError("flaky")


def lines_of(caplog: pytest.LogCaptureFixture, logger: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == logger]


@pytest.mark.usefixtures("names_of_its_own")
async def test_names_that_a_record_factory_has_set_cost_no_result(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert await asyncio.create_task(supervised(seven(), name="seven")) == 7
    (record,) = lines_of(caplog, "aiohttp_observe.background")
    assert record.getMessage() == "background task seven ended"
    assert vars(record)["task"] == "the service's"
    assert record.pathname.endswith("outcome.py")


@pytest.mark.usefixtures("names_of_its_own")
async def test_a_worker_goes_on_with_such_a_factory() -> None:
    worker = spawn(flaky, restart="always", backoff=(0.01, 0.02), name="flaky")
    await asyncio.sleep(0.3)
    assert not worker.done()
    worker.cancel()


@pytest.mark.usefixtures("names_of_its_own")
async def test_failures_and_requests_are_told_with_such_a_factory(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = web.Application()

    async def handler(request: web.Request) -> web.Response:
        asyncio.get_running_loop().call_soon(int, "no number")
        return web.Response()

    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry))
    async with serving(app) as service:
        assert (await service.get("/")).status == 200
        await until(lambda: bool(lines_of(caplog, "aiohttp_observe.failures")), "the failure")
        await until(lambda: bool(lines_of(caplog, "aiohttp_observe.access")), "the access line")


async def test_a_filter_that_raises_does_not_become_a_result(registry: CollectorRegistry) -> None:
    def raising(record: logging.LogRecord) -> bool:
        raise LookupError("of a filter")

    app, results = web.Application(), []

    async def handler(request: web.Request) -> web.Response:
        results.append(await supervised(seven()))
        return web.Response()

    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry), logs=None)
    logger = logging.getLogger("aiohttp_observe.background")
    logger.setLevel(logging.INFO)
    logger.addFilter(raising)
    try:
        async with serving(app) as service:
            await service.get("/")
    finally:
        logger.removeFilter(raising)
        logger.setLevel(logging.NOTSET)
    assert results == [7]
    counted = registry.get_sample_value("aiohttp_observe_internal_errors_total", {"observer": "background"})
    assert counted == 1


async def test_requests_are_answered_though_no_thread_is_to_be_had(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, witness, app = io.StringIO(), Witness(), web.Application()
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "aiohttp-observe-log":
            raise RuntimeError("can't start new thread")
        start(thread)

    async def handler(request: web.Request) -> web.Response:
        logging.getLogger("shop").warning("line %s", request.query["line"])
        return web.Response()

    app.router.add_get("/", handler)
    logs = Logs(stream=out, replace=True)
    setup_observability(app, metrics=Metrics(registry=registry), logs=logs, observers=[witness])
    async with serving(app) as service:
        monkeypatch.setattr(threading.Thread, "start", refused)
        assert (await service.get("/?line=1")).status == 200
        await witness.next()
        monkeypatch.undo()
        assert (await service.get("/?line=2")).status == 200
    messages = [json.loads(line)["message"] for line in out.getvalue().splitlines()]
    assert [message for message in messages if message.startswith("line")] == ["line 1", "line 2"]


def test_the_formatter_is_configured_by_its_class() -> None:
    script = """
import json, logging.config
logging.config.dictConfig({
    "version": 1,
    "formatters": {"json": {"class": "aiohttp_observe.JsonFormatter", "format": "%(message)s"}},
    "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}},
    "root": {"handlers": ["out"], "level": "INFO"},
})
logging.getLogger("shop").info("configured")
"""
    assert json.loads(run_python(script).stdout)["message"] == "configured"


def test_the_formatter_takes_what_every_formatter_does() -> None:
    """The defaults are for a format, which isn't heeded either."""
    ours = JsonFormatter("%(message)s", "%H:%M", "%", True, defaults={"customer": "nobody"})
    line = json.loads(ours.format(logging.makeLogRecord({"msg": "ordered"})))
    assert line.keys() == {"timestamp", "level", "logger", "message"}


def test_what_a_record_factory_adds_is_told_whenever_this_is_imported() -> None:
    script = """
import json, logging, sys
before = logging.getLogRecordFactory()
def factory(*args, **kwargs):
    record = before(*args, **kwargs)
    record.tenant = "acme"
    return record
logging.setLogRecordFactory(factory)
from aiohttp_observe import JsonFormatter
print(JsonFormatter().format(logging.makeLogRecord({"msg": "ordered"})))
"""
    assert json.loads(run_python(script).stdout)["tenant"] == "acme"


async def test_a_field_by_the_name_of_the_task_is_told_beside_it(registry: CollectorRegistry) -> None:
    out, app = io.StringIO(), web.Application()

    async def handler(request: web.Request) -> web.Response:
        bind(task="nightly import")
        logging.getLogger("shop").warning("ordered")
        return web.Response()

    app.router.add_get("/", handler)
    setup_observability(app, metrics=Metrics(registry=registry), logs=Logs(stream=out, replace=True))
    async with serving(app) as service:
        await service.get("/")
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    lines = {line["logger"]: line for line in told if line["logger"] in ("shop", "aiohttp_observe.access")}
    assert len(lines) == 2
    for line in lines.values():
        assert line["task_"] == "nightly import"
        assert line["task"].startswith("Task-")


class NoTerminal(io.StringIO):
    def isatty(self) -> bool:
        raise ValueError("closed")


async def test_a_start_that_fails_leaves_logging_as_it_was(registry: CollectorRegistry) -> None:
    failing = web.Application()
    logs = Logs(stream=NoTerminal(), format="text", replace=True)
    setup_observability(failing, metrics=Metrics(registry=registry), logs=logs)
    handlers, factory = logging.root.handlers[:], logging.getLogRecordFactory()
    with pytest.raises(ValueError, match="closed"):
        async with serving(failing):
            pass
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=registry), logs=Logs(replace=True))
    async with serving(app):
        assert logging.root.handlers != handlers
    assert logging.root.handlers == handlers
    assert logging.getLogRecordFactory() is factory


DISABLING = """
import asyncio, logging, logging.config
from aiohttp import web
from aiohttp_observe import setup_observability
from tests.service import serving

async def main():
    app = web.Application()
    setup_observability(app)
    logging.config.dictConfig({"version": 1})
    assert logging.getLogger("aiohttp_observe.access").disabled
    async with serving(app) as service:
        await service.get("/nowhere")

asyncio.run(main())
"""


def test_what_dict_config_has_disabled_is_heard_again() -> None:
    """It disables every logger that it doesn't name, unless it is told otherwise."""
    done = run_python(DISABLING)
    assert done.returncode == 0, done.stderr
    assert "GET /nowhere 404" in done.stdout


async def test_options_that_have_no_effect_are_warned_of(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    for logs in (Logs(level="INFO", format="text"), Logs()):
        app = web.Application()
        setup_observability(app, metrics=Metrics(registry=registry), logs=logs)
        async with serving(app):
            pass
    (warning,) = [record for record in caplog.records if record.name == "aiohttp_observe"]
    assert warning.getMessage().startswith("Logs(level=..., format=...) has no effect: ")
