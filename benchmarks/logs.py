"""What a log line costs the loop and the process, and what a sink that stalls does to the loop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from logging.handlers import QueueHandler, QueueListener
from statistics import median
from typing import Any, TextIO

from aiohttp import web

from .rounds import child, interleaved, note
from .table import Table
from .ticker import ticking

__all__ = ["tables"]

_CORE = 0
_BURSTS, _BURST = 40, 100
_STALLED_LINES, _STALLED_BURST = 20_000, 20
_STALL_SECONDS = 1.0
_TICK = 0.001
_MESSAGE = "order accepted"
_FIELDS = {"order": 4711, "customer": "c-0815", "amount": 12.5}
_PATTERN = "%(asctime)s %(levelname)s %(name)s %(message)s"
_PLAIN, _NOWHERE, _QUEUE, _OURS = "plain text", "NullHandler", "plain text, QueueHandler", "ours"


def tables(rounds: int) -> list[Table]:
    """The cost of a line, then a stalled sink."""
    return [_cost(rounds), _stall(max(rounds - 2, 1))]


def _cost(rounds: int) -> Table:
    contenders = {name: name for name in _SINKS if name != _NOWHERE}
    found, failed = interleaved(contenders, rounds, lambda name: child("logs", "cost", name))
    loop, whole = found[_PLAIN]
    rows = tuple((name, here, here / loop, total, total / whole) for name, (here, total) in found.items())
    columns = ("logging", "µs on the loop", "x plain", "µs in all threads", "x plain")
    told = f"With an extra of three fields, which plain text leaves out; bursts of {_BURST} lines."
    return Table("CPU per log line to /dev/null, µs", columns, rows, note(failed, told))


def _stall(rounds: int) -> Table:
    contenders = {name: name for name in (_NOWHERE, _PLAIN, "structlog", _QUEUE, _OURS)}
    found, failed = interleaved(contenders, rounds, lambda name: child("logs", "stall", name), median)
    gaps = {name: gap for name, (gap, _, _) in found.items()}
    rows = tuple(
        (name, gap, gap / gaps[_NOWHERE], _blocked(gap), int(read), int(dropped))
        for name, (gap, read, dropped) in found.items()
    )
    columns = ("logging", "worst gap, ms", f"x {_NOWHERE}", "the loop", "lines read", "dropped")
    told = (
        f"The longest wait of a {_TICK * 1e3:.0f} ms timer; the pipe is read after {_STALL_SECONDS:.0f} s.  "
        "dropped: aiohttp_observe_dropped_total."
    )
    title = f"{_STALLED_LINES:,} lines into a pipe that nobody reads"
    return Table(title, columns, rows, note(failed, told))


def _blocked(gap: float) -> str:
    return "blocked until read" if gap > _STALL_SECONDS * 0.5e3 else "runs"


# In a process of its own


@dataclass(frozen=True)
class _Sink:
    """``log`` logs a line, ``drain`` waits until all are written, ``dropped`` tells how many won't be."""

    log: Callable[[], object]
    drain: Callable[[], object] = lambda: None
    dropped: Callable[[], float] = lambda: 0.0


OpenSink = Callable[[TextIO], AbstractAsyncContextManager[_Sink]]


def _log_line() -> None:
    logging.getLogger("bench").info(_MESSAGE, extra=_FIELDS)


def _handled_by(make: Callable[[TextIO], logging.Handler]) -> OpenSink:
    """Logging with one handler."""

    @asynccontextmanager
    async def opened(stream: TextIO) -> AsyncIterator[_Sink]:
        logging.basicConfig(level=logging.INFO, handlers=[make(stream)])
        yield _Sink(_log_line)

    return opened


def _stream_handler(stream: TextIO, formatter: logging.Formatter | None = None) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter or logging.Formatter(_PATTERN))
    return handler


def _json_logger(stream: TextIO) -> logging.Handler:
    from pythonjsonlogger.json import JsonFormatter

    return _stream_handler(stream, JsonFormatter(_PATTERN))


def _json_logger_orjson(stream: TextIO) -> logging.Handler:
    from pythonjsonlogger.orjson import OrjsonFormatter

    return _stream_handler(stream, OrjsonFormatter(_PATTERN))


def _json_logger_msgspec(stream: TextIO) -> logging.Handler:
    from pythonjsonlogger.msgspec import MsgspecFormatter

    return _stream_handler(stream, MsgspecFormatter(_PATTERN))


def _our_formatter(stream: TextIO) -> logging.Handler:
    from aiohttp_observe import JsonFormatter

    return _stream_handler(stream, JsonFormatter())


@asynccontextmanager
async def _queued(stream: TextIO) -> AsyncIterator[_Sink]:
    """The standard library's way off the loop; its queue has no end."""
    waiting: queue.Queue[Any] = queue.Queue()
    listener = QueueListener(waiting, _stream_handler(stream))
    logging.basicConfig(level=logging.INFO, handlers=[QueueHandler(waiting)])
    listener.start()
    yield _Sink(_log_line, waiting.join)
    listener.stop()


@asynccontextmanager
async def _structlog(stream: TextIO, *, orjson: bool = False) -> AsyncIterator[_Sink]:
    import structlog

    factory: Any = structlog.WriteLoggerFactory(stream)
    renderer = structlog.processors.JSONRenderer()
    if orjson:
        from orjson import dumps

        factory = structlog.BytesLoggerFactory(stream.buffer)
        renderer = structlog.processors.JSONRenderer(dumps)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    logger = structlog.get_logger("bench")
    yield _Sink(lambda: logger.info(_MESSAGE, **_FIELDS))


@asynccontextmanager
async def _ours(stream: TextIO) -> AsyncIterator[_Sink]:
    from prometheus_client import REGISTRY

    from aiohttp_observe import Logs, setup_observability

    def dropped() -> float:
        return REGISTRY.get_sample_value("aiohttp_observe_dropped_total", {"what": "log_lines"}) or 0.0

    app = web.Application()
    setup_observability(app, logs=Logs(stream=stream, replace=True))
    runner = web.AppRunner(app)
    await runner.setup()
    (handler,) = logging.getLogger().handlers
    yield _Sink(_log_line, handler.flush, dropped)
    await runner.cleanup()


_SINKS: dict[str, OpenSink] = {
    _NOWHERE: _handled_by(lambda stream: logging.NullHandler()),
    _PLAIN: _handled_by(_stream_handler),
    _QUEUE: _queued,
    "python-json-logger": _handled_by(_json_logger),
    "python-json-logger, orjson": _handled_by(_json_logger_orjson),
    "python-json-logger, msgspec": _handled_by(_json_logger_msgspec),
    "structlog": _structlog,
    "structlog, orjson": partial(_structlog, orjson=True),
    "our JsonFormatter": _handled_by(_our_formatter),
    _OURS: _ours,
}


def _cost_of(name: str) -> tuple[float, float]:
    """Microseconds a line: of the loop's thread while it logs, and of all threads until it is written."""
    with open(os.devnull, "w") as stream:
        here, whole = asyncio.run(_cpu_seconds(_SINKS[name](stream)))
    return here / (_BURSTS * _BURST) * 1e6, whole / (_BURSTS * _BURST) * 1e6


async def _cpu_seconds(opening: AbstractAsyncContextManager[_Sink]) -> tuple[float, float]:
    async with opening as sink:
        _burst(sink)  # to warm up
        before = time.process_time()
        here = sum(_burst(sink) for _ in range(_BURSTS))
        return here, time.process_time() - before


def _burst(sink: _Sink) -> float:
    """Log some lines and have them written; seconds of this thread for the logging."""
    before = time.thread_time()
    for _ in range(_BURST):
        sink.log()
    spent = time.thread_time() - before
    sink.drain()
    return spent


def _stalled(name: str) -> tuple[float, int, float]:
    """The worst gap in milliseconds, the lines that came out of the pipe, and those dropped."""
    with _late_reader() as (stream, lines):
        gap, dropped = asyncio.run(_gap_and_drops(_SINKS[name](stream)))
    return gap * 1e3, len(lines), dropped


async def _gap_and_drops(opening: AbstractAsyncContextManager[_Sink]) -> tuple[float, float]:
    async with opening as sink:
        return await _worst_gap(sink), sink.dropped()


@contextmanager
def _late_reader() -> Iterator[tuple[TextIO, list[str]]]:
    """A pipe that is read after a while; afterwards, the lines that came."""
    reading, writing = os.pipe()
    lines: list[str] = []

    def read() -> None:
        time.sleep(_STALL_SECONDS)
        with open(reading) as file:
            lines.extend(file)

    reader = threading.Thread(target=read)
    with open(writing, "w") as stream:
        reader.start()
        yield stream, lines
    reader.join()


async def _worst_gap(sink: _Sink) -> float:
    """Seconds, the longest that a timer took to come round while lines are logged."""
    async with ticking(_TICK) as ticker:
        for _ in range(_STALLED_LINES // _STALLED_BURST):
            for _ in range(_STALLED_BURST):
                sink.log()
            await asyncio.sleep(0)
    return ticker.worst


def main(what: str, name: str) -> None:
    os.sched_setaffinity(0, {_CORE})
    print(json.dumps(_cost_of(name) if what == "cost" else _stalled(name)))


if __name__ == "__main__":
    main(*sys.argv[1:])
