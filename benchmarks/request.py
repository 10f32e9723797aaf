"""What observing a request costs: server CPU per request over bare aiohttp, and the tail.

CPU time is that of all the server's threads, from the operating system's accounting.  The
server has one core, the load another.  Every stack is measured once a round, in turn, so
that a noisy moment hits all alike; figures are the least over the rounds.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .load import Traffic, closed_loop, open_loop
from .rounds import NotMeasuredError, interleaved, note
from .stacks import OTHERS, PARTS, STACKS
from .table import Table

__all__ = ["CONNECTIONS", "Case", "compared", "cpu_seconds", "process", "serving", "tables", "upstream"]

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 16
_WARM_UP_SECONDS = 0.3
_SECONDS = 0.8
_TAIL_SECONDS = 2.0
_OFFERED = 2000
"""Requests a second for the tail: what every stack of the table can serve."""
_ACCESS_LOG, _OPENTELEMETRY = "aiohttp access log", "OpenTelemetry"
_OTEL = (_OPENTELEMETRY, f"{_OPENTELEMETRY} at 1 %")

JSON = Traffic("/json/1")
TRAFFIC = {
    "trivial JSON": JSON,
    "3 awaits, 1 log line": Traffic("/awaits/1"),
    "1 outbound request": Traffic("/outbound/1"),
    "404 flood": Traffic("/nowhere/{}"),
    "websocket echo": Traffic("/websocket/1", websocket=True),
}


@dataclass(frozen=True)
class Case:
    """A stack under some traffic on some loop."""

    stack: str
    traffic: Traffic = JSON
    loop: str = "asyncio"


def tables(rounds: int) -> list[Table]:
    """All that is to be known of a request."""
    os.sched_setaffinity(0, {LOAD_CORE})
    with upstream() as port:
        os.environ["BENCH_UPSTREAM"] = f"http://127.0.0.1:{port}/json/1"
        return [
            _cost("server CPU per request, µs: trivial JSON", [*STACKS, *PARTS, *OTHERS], rounds),
            _handlers(["bare", _ACCESS_LOG, "all", "all at 1 %", _OPENTELEMETRY], max(rounds - 1, 1)),
            _cost("on uvloop", ["bare", _ACCESS_LOG, "all", "all at 1 %", *_OTEL], rounds, loop="uvloop"),
            _tail(["bare", "bare again", _ACCESS_LOG, "all", "all at 1 %", *_OTEL], rounds),
        ]


def _cost(title: str, stacks: list[str], rounds: int, *, loop: str = "asyncio") -> Table:
    cases = {stack: Case(stack, loop=loop) for stack in stacks}
    cpu, failed = interleaved(cases, rounds, _cpu_per_request)
    return compared(title, "µs", cpu, failed)


def compared(
    title: str, unit: str, found: Mapping[str, float], failed: Mapping[str, str], told: str = ""
) -> Table:
    """What each stack takes, over bare, and that next to the ones that count."""
    over = {stack: value - found.get("bare", 0.0) for stack, value in found.items()}
    others = [over.get(stack) for stack in (_ACCESS_LOG, *_OTEL)]
    rows: list[tuple[object, ...]] = [
        (stack, value, over[stack], *(None if other is None else over[stack] / other for other in others))
        for stack, value in found.items()
    ]
    rows += [(stack, None, None, None, None, None) for stack in failed]
    columns = ("stack", unit, "over bare", "x access log", "x OpenTelemetry", "x the same at 1 %")
    return Table(title, columns, tuple(rows), note(failed, told))


def _handlers(stacks: list[str], rounds: int) -> Table:
    """The same for other handlers: over bare, and as ratios to the two that count."""
    rows: list[tuple[object, ...]] = []
    for name, traffic in TRAFFIC.items():
        cases = {stack: Case(stack, traffic) for stack in stacks}
        cpu, _ = interleaved(cases, rounds, _cpu_per_request)
        over = {stack: value - cpu["bare"] for stack, value in cpu.items()}
        ratios = (over["all"] / over[_ACCESS_LOG], over["all"] / over[_OPENTELEMETRY])
        rows.append((name, cpu["bare"], *(over[stack] for stack in stacks[1:]), *ratios))
    columns = ("handler", "bare", *("access log", "all", "at 1 %", "OTel"), "all x log", "all x OTel")
    told = (
        "bare: µs per request (per message); the others over bare.  A websocket's message has no access line."
    )
    return Table("other handlers", columns, tuple(rows), told)


def _tail(stacks: list[str], rounds: int) -> Table:
    found, failed = interleaved({stack: Case(stack) for stack in stacks}, rounds, _latency, statistics.median)
    bare = found["bare"][1]
    rows = tuple((stack, p50, p99, p99 / bare) for stack, (p50, p99) in found.items())
    columns = ("stack", "p50", "p99", "p99 x bare")
    return Table(f"latency at {_OFFERED} requests/s, ms", columns, rows, note(failed))


def _latency(case: Case) -> tuple[float, float]:
    """The median and the 99th percentile of milliseconds, at the offered load."""
    with serving(case) as (_, port):
        asyncio.run(closed_loop(port, case.traffic, CONNECTIONS, _WARM_UP_SECONDS))
        latencies = asyncio.run(open_loop(port, case.traffic, CONNECTIONS, _TAIL_SECONDS, _OFFERED))
    quantiles = statistics.quantiles(latencies, n=100)
    return quantiles[49] * 1e3, quantiles[98] * 1e3


def _cpu_per_request(case: Case) -> float:
    """Microseconds of server CPU for each answer."""
    with serving(case) as (pid, port):
        asyncio.run(closed_loop(port, case.traffic, CONNECTIONS, _WARM_UP_SECONDS))
        before = cpu_seconds(pid)
        latencies = asyncio.run(closed_loop(port, case.traffic, CONNECTIONS, _SECONDS))
        spent = cpu_seconds(pid) - before
    return spent / len(latencies) * 1e6


@contextmanager
def serving(case: Case) -> Iterator[tuple[int, int]]:
    command = ["benchmarks.stacks", case.stack, str(SERVER_CORE), case.loop]
    with process(command) as (pid, port):
        yield pid, port


@contextmanager
def upstream() -> Iterator[int]:
    """What outbound requests ask: a server in another process, on the load's core."""
    with process(["benchmarks.stacks", "bare", str(LOAD_CORE), "asyncio"]) as (_, port):
        yield port


@contextmanager
def process(module: list[str], under: Sequence[str] = ()) -> Iterator[tuple[int, int]]:
    """A server's process id and port, as it prints it on standard error; it is run by ``under``."""
    command = [*under, sys.executable, "-W", "ignore", "-m", *module]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process.pid, _port(process)
        finally:
            process.terminate()


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    line = ""
    for line in process.stderr:
        if line.startswith("port "):
            return int(line.split()[1])
    raise NotMeasuredError(line.strip()[:100])


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, from the scheduler's own nanoseconds."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
