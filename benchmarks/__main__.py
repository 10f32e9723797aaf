"""``python -m benchmarks``: what observing costs, next to what else there is."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import version
from time import perf_counter
from typing import Any

from .table import Table

ROOMS = ("request", "floors", "client", "logs", "tasks", "loopwatch", "scrape", "memory")
ON_DEMAND = ("instructions",)
"""Rooms that take long, or what isn't everywhere."""
_ROOMS_HELP = f"of {', '.join((*ROOMS, *ON_DEMAND))}; default: all but {', '.join(ON_DEMAND)}"


def main() -> None:
    options = _parser().parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("the benchmarks need two cores: one for the server, one for the load")
    begun = perf_counter()
    print(_heading(), flush=True)
    measured: dict[str, list[Table]] = {}
    for room in options.rooms:
        measured[room] = import_module(f"benchmarks.{room}").tables(options.rounds)
        for table in measured[room]:
            print(f"\n{table.text()}", flush=True)
    print(f"\nmeasured in {(perf_counter() - begun) / 60:.1f} minutes")
    if options.json:
        _write(options.json, measured)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds, default 3")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("rooms", nargs="*", metavar="room", default=list(ROOMS), help=_ROOMS_HELP)
    return parser


def _heading() -> str:
    libraries = ("aiohttp", "opentelemetry-sdk", "prometheus_client")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    cores = len(os.sched_getaffinity(0))
    return f"Python {platform.python_version()}, {versions}; {cores} cores of {_processor()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(": ")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _write(path: str, measured: dict[str, list[Table]]) -> None:
    figures: dict[str, Any] = {room: [table.plain() for table in each] for room, each in measured.items()}
    with open(path, "w") as file:
        json.dump({"heading": _heading(), **figures}, file, indent=2)


if __name__ == "__main__":
    main()
