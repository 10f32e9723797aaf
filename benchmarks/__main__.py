"""``python -m benchmarks``: what observing a request costs, next to what else there is."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version

from .request import Figure, compare
from .stacks import STACKS


def main() -> None:
    options = _parser().parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("the benchmark needs two cores: one for the server, one for the load")
    figures = compare(options.stacks, rounds=options.rounds, seconds=options.seconds)
    print(_heading())
    print(_table(figures))
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(figure) for figure in figures], file, indent=2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds, default 7")
    parser.add_argument("--seconds", type=float, default=1.5, help="of load a stack and round, default 1.5")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("stacks", nargs="*", default=list(STACKS), help="default: all")
    return parser


def _heading() -> str:
    libraries = ("aiohttp", "opentelemetry-sdk", "prometheus_client")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return f"server CPU per request; Python {platform.python_version()}, {versions}\n"


def _table(figures: list[Figure]) -> str:
    head = f"{'stack':<22}{'µs':>8}{'over bare':>11}{'x access log':>14}{'x OpenTelemetry':>17}{'p99 ms':>8}"
    rows = (
        f"{row.stack:<22}{row.cpu:8.1f}{row.over_bare:11.1f}{row.to_access_log:14.2f}"
        f"{row.to_opentelemetry:17.2f}{row.p99:8.2f}"
        for row in figures
    )
    return "\n".join((head, *rows))


if __name__ == "__main__":
    main()
