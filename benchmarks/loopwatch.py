"""What watching the loop costs a busy server, and what the watchers tell of a block."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
from aiohttp import web

from .load import Traffic, closed_loop
from .request import cpu_seconds
from .rounds import NotMeasuredError, child, interleaved, note, turns
from .table import Table

__all__ = ["tables"]

_SERVER_CORE, _LOAD_CORE = 0, 1
_CONNECTIONS = 16
_WARM_UP_SECONDS, _SECONDS = 0.2, 0.6
_THRESHOLD = 0.05
_BLOCK_SECONDS = 0.1
_PATIENCE = 0.3
_WITHOUT, _HANGS = "without", "aiodebug, hangs"


def tables(rounds: int) -> list[Table]:
    """Throughput, then what is told."""
    os.sched_setaffinity(0, {_LOAD_CORE})
    return [_throughput(rounds), _told(rounds)]


def _throughput(rounds: int) -> Table:
    contenders = {name: name for name in _WATCHES if name != _HANGS}
    found, failed = interleaved(contenders, rounds, _full_load)
    wall, cpu = found[_WITHOUT]
    rows = tuple(
        (name, round(1e6 / one), wall / one, other, other / cpu) for name, (one, other) in found.items()
    )
    columns = ("watch", "requests/s", "x without", "CPU per request, µs", "x without")
    title = "a server at full load, watched with a threshold of 50 ms"
    return Table(title, columns, rows, note(failed))


def _told(rounds: int) -> Table:
    found: dict[str, list[_Report]] = {name: [] for name in _WATCHES if name != _WITHOUT}
    failed: dict[str, str] = {}
    for name in turns(found, rounds):
        if name not in failed:
            try:
                found[name] += [_Report(*report) for report in child("loopwatch", "block", name)]
            except NotMeasuredError as exc:
                failed[name] = str(exc)
    rows = tuple(_row(name, reports, rounds) for name, reports in found.items() if name not in failed)
    columns = ("watch", "told", "after, ms", "as, ms", "x true", "names the line")
    told = "after: from the block's begin to the report.  as: the duration reported."
    title = "time.sleep(0.1) in a handler, threshold 50 ms"
    return Table(title, columns, rows, note(failed, told))


def _row(name: str, reports: list[_Report], blocks: int) -> tuple[Any, ...]:
    after = statistics.median(report.after for report in reports) if reports else None
    durations = [report.seconds for report in reports if report.seconds is not None]
    seconds = statistics.median(durations) if durations else None
    return (
        name,
        f"{len(reports)} of {blocks}",
        None if after is None else after * 1e3,
        None if seconds is None else seconds * 1e3,
        None if seconds is None else seconds / _BLOCK_SECONDS,
        f"{sum(report.names_the_line for report in reports)} of {blocks}",
    )


def _full_load(name: str) -> tuple[float, float]:
    """Microseconds from answer to answer, and of server CPU: the load's own core may be the limit."""
    traffic = Traffic("/")
    with _server(name) as (pid, port):
        asyncio.run(closed_loop(port, traffic, _CONNECTIONS, _WARM_UP_SECONDS))
        before, begun = cpu_seconds(pid), perf_counter()
        requests = len(asyncio.run(closed_loop(port, traffic, _CONNECTIONS, _SECONDS)))
        elapsed, spent = perf_counter() - begun, cpu_seconds(pid) - before
    return elapsed / requests * 1e6, spent / requests * 1e6


@contextmanager
def _server(name: str) -> Iterator[tuple[int, int]]:
    """The process id and the port of a server, which prints it first."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.loopwatch", "serve", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            port = process.stdout.readline()
            if not port:
                raise NotMeasuredError(process.stderr.read().strip().rpartition("\n")[2][:100])
            yield process.pid, int(port)
        finally:
            process.terminate()


# In a process of its own


@dataclass(frozen=True)
class _Report:
    """What a watch told of a block: seconds after its begin, how long it said, and whether where."""

    after: float
    seconds: float | None
    names_the_line: bool


Tell = Callable[["float | None", str], None]
"""Takes how long the loop was blocked, if that's told, and a text in which places are ``file:line``."""


class _Heard(logging.Handler):
    """Passes a logger's records on."""

    def __init__(self, logger: str, hear: Callable[[Any], None]) -> None:
        super().__init__()
        self._hear = hear
        logging.getLogger(logger).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record)


def _nothing(tell: Tell) -> None:
    pass


def _ours(tell: Tell) -> None:
    from aiohttp_observe import LoopWatch
    from aiohttp_observe.exchange import Meter

    def hear(record: logging.LogRecord) -> None:
        fields = vars(record)
        tell(fields["blocked_ms"] / 1e3, f"{fields['code.file.path']}:{fields['code.line.number']}")

    _Heard("aiohttp_observe.loopwatch", hear)
    LoopWatch(threshold=_THRESHOLD).install(asyncio.get_running_loop(), Meter())


def _aiodebug(tell: Tell) -> None:
    from aiodebug import log_slow_callbacks

    log_slow_callbacks.enable(_THRESHOLD, lambda name, seconds: tell(seconds, name))


def _aiodebug_hangs(tell: Tell) -> None:
    """Its other tool, a thread that writes all stacks to files."""
    from aiodebug import hang_inspection

    save = hang_inspection.TraceDumper._save_stack_trace

    def save_and_tell(dumper: Any, filename: str) -> None:
        save(dumper, filename)
        stacks = Path(directory.name, filename).read_text()
        tell(None, re.sub(r'File: "(.+?)", line (\d+)', r"\1:\2", stacks))

    directory = tempfile.TemporaryDirectory()
    hang_inspection.TraceDumper._save_stack_trace = save_and_tell
    hang_inspection.start(directory.name, _THRESHOLD)


def _aiocop(tell: Tell) -> None:
    import aiocop

    def hear(event: Any) -> None:
        if event.exceeded_threshold:
            places = [*event.blocking_events, *event.cpu_stack_samples]
            tell(event.elapsed_ms / 1e3, " ".join(place["trace"] for place in places))

    aiocop.patch_audit_functions()
    aiocop.start_blocking_io_detection()
    aiocop.detect_slow_tasks(threshold_ms=int(_THRESHOLD * 1e3), on_slow_task=hear)
    aiocop.activate()


def _debug_mode(tell: Tell) -> None:
    def hear(record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and "took" in str(record.msg):
            handle, seconds = record.args
            tell(float(str(seconds)), str(handle))

    _Heard("asyncio", hear)
    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = _THRESHOLD
    loop.set_debug(True)


_WATCHES: dict[str, Callable[[Tell], None]] = {
    _WITHOUT: _nothing,
    "ours": _ours,
    "aiodebug, slow callbacks": _aiodebug,
    _HANGS: _aiodebug_hangs,
    "aiocop": _aiocop,
    "asyncio's debug mode": _debug_mode,
}


async def _answer(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


def _hold_the_loop() -> None:
    time.sleep(_BLOCK_SECONDS)


_THE_LINE = f"{Path(__file__).name}:{_hold_the_loop.__code__.co_firstlineno + 1}"


async def _block(request: web.Request) -> web.Response:
    begun = perf_counter()
    _hold_the_loop()
    return web.json_response(begun)


async def _started(name: str, tell: Tell) -> tuple[web.AppRunner, int]:
    """A watched server, and its port."""
    app = web.Application()
    app.router.add_get("/", _answer)
    app.router.add_get("/block", _block)
    _WATCHES[name](tell)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, runner.addresses[0][1]


async def _serve(name: str) -> None:
    _, port = await _started(name, lambda seconds, places: None)
    print(port, flush=True)
    await asyncio.Event().wait()


async def _blocked(name: str) -> list[tuple[float, float | None, bool]]:
    """What is told of one block, if anything is."""
    told: list[tuple[float, float | None, str]] = []
    runner, port = await _started(name, lambda *report: told.append((perf_counter(), *report)))
    await asyncio.sleep(0.1 + random.random() / 10)  # any phase of whatever timers a watch has
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/block") as response:
        begun = await response.json()
    await asyncio.sleep(_PATIENCE)
    reports = [
        (when - begun, seconds, _THE_LINE in places) for when, seconds, places in told if when >= begun
    ]
    await runner.cleanup()
    return reports[:1]


def main(what: str, name: str) -> None:
    os.sched_setaffinity(0, {_SERVER_CORE})
    if what == "serve":
        asyncio.run(_serve(name))
    else:
        print(json.dumps(asyncio.run(_blocked(name))))


if __name__ == "__main__":
    main(*sys.argv[1:])
