"""Server CPU per request over bare aiohttp, from interleaved rounds in one run."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .load import closed_loop

__all__ = ["Figure", "compare"]

SERVER_CORE, LOAD_CORE = 0, 1
_WARM_UP_SECONDS = 0.3


@dataclass(frozen=True)
class Figure:
    """What one stack costs: medians over the rounds.

    ``cpu`` and ``over_bare`` in microseconds a request, ``p99`` in milliseconds at full load,
    the others as ratios of ``over_bare``.
    """

    stack: str
    cpu: float
    over_bare: float
    to_access_log: float
    to_opentelemetry: float
    p99: float


def compare(stacks: list[str], *, rounds: int, seconds: float, path: str = "/json/1") -> list[Figure]:
    """Measure each stack once a round, in turn, so that a noisy moment hits them all alike."""
    os.sched_setaffinity(0, {LOAD_CORE})
    found: dict[str, list[tuple[float, float]]] = {stack: [] for stack in stacks}
    for number in range(1, rounds + 1):
        for stack in stacks:
            print(f"\r\x1b[Kround {number}/{rounds}: {stack}", end="", file=sys.stderr, flush=True)
            found[stack].append(_measure(stack, path, seconds))
    print("\r\x1b[K", end="", file=sys.stderr)
    return _figures(found)


def _figures(found: dict[str, list[tuple[float, float]]]) -> list[Figure]:
    cpu = {stack: statistics.median(cpu for cpu, _ in rounds) for stack, rounds in found.items()}
    over = {stack: value - cpu["bare"] for stack, value in cpu.items()}
    return [
        Figure(
            stack,
            cpu[stack],
            over[stack],
            over[stack] / over["aiohttp access log"],
            over[stack] / over["OpenTelemetry"],
            statistics.median(p99 for _, p99 in rounds),
        )
        for stack, rounds in found.items()
    ]


def _measure(stack: str, path: str, seconds: float, connections: int = 16) -> tuple[float, float]:
    """Microseconds of server CPU a request, and the 99th percentile of latency in milliseconds."""
    with _server(stack) as (pid, port):
        asyncio.run(closed_loop(port, path, connections, _WARM_UP_SECONDS))
        before = _cpu_seconds(pid)
        latencies = asyncio.run(closed_loop(port, path, connections, seconds))
        spent = _cpu_seconds(pid) - before
    return spent / len(latencies) * 1e6, statistics.quantiles(latencies, n=100)[98] * 1e3


@contextmanager
def _server(stack: str) -> Iterator[tuple[int, int]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.stacks", stack, str(SERVER_CORE)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        yield process.pid, int(process.stderr.readline().split()[1])
    finally:
        process.terminate()
        process.wait()


def _cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, from the scheduler's own nanoseconds."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
