"""The benchmarks run: what they measure is for them to say."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks import floors
from benchmarks.load import Traffic, closed_loop, open_loop
from benchmarks.request import TRAFFIC, upstream
from benchmarks.stacks import PARTS, STACKS
from benchmarks.table import Table
from tests.service import ROOT


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with upstream() as port:
        yield port


@pytest.mark.parametrize("traffic", [name for name in TRAFFIC if name != "1 outbound request"])
def test_every_kind_of_traffic_is_answered(port: int, traffic: str) -> None:
    latencies = asyncio.run(closed_loop(port, TRAFFIC[traffic], 2, 0.1))
    assert latencies
    assert all(0 < latency < 20 for latency in latencies)


def test_an_open_loop_sends_what_it_was_asked_to(port: int) -> None:
    assert len(asyncio.run(open_loop(port, Traffic("/json/1"), 4, 0.5, 100))) == 50


@pytest.mark.parametrize("stack", [*STACKS, *PARTS])
def test_every_stack_serves(stack: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.stacks", stack, "0", "asyncio"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert server.stderr is not None
        port = int(server.stderr.readline().removeprefix("port "))
        assert asyncio.run(closed_loop(port, Traffic("/json/1"), 1, 0.05))
    finally:
        server.kill()
        server.communicate()


def test_the_floors_are_printed() -> None:
    (table,) = floors.tables(1)
    assert all(figure > 0 for _, figure in table.rows)
    assert "Histogram.observe" in table.text()


def test_a_table_fits_a_terminal_and_goes_into_json() -> None:
    table = Table("costs", ("stack", "µs"), (("bare", 1.234), ("none", None)), "a note")
    assert table.text() == "costs\n-----\nstack    µs\nbare   1.23\nnone      -\na note"
    assert table.plain()["rows"] == [{"stack": "bare", "µs": 1.234}, {"stack": "none", "µs": None}]
