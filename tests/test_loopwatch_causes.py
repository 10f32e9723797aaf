"""Why the loop was held: told from what was measured, with the evidence, and not told when in doubt."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from aiohttp_observe import LoopWatch
from aiohttp_observe.exchange import Meter
from aiohttp_observe.incidents import Block, Cause
from aiohttp_observe.loopwatch import throttling
from aiohttp_observe.loopwatch.cause import Measurements, cause_of
from aiohttp_observe.loopwatch.throttling import Throttling
from tests.service import PATIENCE, until

# The rules

NOTHING = Measurements(
    seconds=1.0,
    blocked=1.0,
    cpu=0.0,
    others=0.0,
    collecting=0.0,
    throttled=0.0,
    queued=0.0,
    starved=0.0,
    contending=0.0,
    in_call=False,
)


@pytest.mark.parametrize(
    ("facts", "kind", "confidence"),
    [
        (replace(NOTHING, cpu=0.95), "cpu", "high"),
        (replace(NOTHING, cpu=0.7), "cpu", "medium"),
        (replace(NOTHING, cpu=0.95, others=1.0), "cpu", "high"),
        (replace(NOTHING, cpu=0.4, queued=0.5), "cpu", "medium"),
        (replace(NOTHING, cpu=0.05, queued=0.9), "unknown", "low"),
        (replace(NOTHING, cpu=0.05, queued=0.2, in_call=True), "blocking_call", "high"),
        (replace(NOTHING, cpu=0.1, queued=0.3, others=0.5, contending=0.5), "gil", "high"),
        (replace(NOTHING, cpu=0.1, queued=0.8, throttled=0.9), "throttled", "high"),
        (replace(NOTHING, in_call=True), "blocking_call", "high"),
        (replace(NOTHING), "blocking_call", "medium"),
        (replace(NOTHING, in_call=True, others=1.0), "blocking_call", "high"),
        (replace(NOTHING, cpu=0.5), "unknown", "low"),
        (replace(NOTHING, starved=0.9), "unknown", "low"),
        (replace(NOTHING, cpu=0.95, collecting=0.9), "gc", "high"),
        (replace(NOTHING, collecting=0.6, others=0.6), "gc", "medium"),
        (replace(NOTHING, cpu=0.95, collecting=0.3), "cpu", "high"),
        (replace(NOTHING, cpu=0.3, others=0.7, contending=0.6), "gil", "high"),
        (replace(NOTHING, cpu=0.1, others=0.9, contending=0.3), "gil", "medium"),
        (replace(NOTHING, cpu=0.3, others=0.7, contending=None), "gil", "low"),
        (replace(NOTHING, cpu=0.3, others=0.7), "blocking_call", "medium"),
        (replace(NOTHING, cpu=0.3, contending=0.6), "blocking_call", "medium"),
        (replace(NOTHING, others=1.0, starved=0.9), "gil", "high"),
        (replace(NOTHING, cpu=0.3, others=0.3), "blocking_call", "medium"),
        (replace(NOTHING, cpu=0.1, throttled=0.9), "throttled", "high"),
        (replace(NOTHING, cpu=0.4, throttled=2.4), "throttled", "medium"),
        (replace(NOTHING, cpu=0.9, throttled=2.4), "cpu", "high"),
        (replace(NOTHING, throttled=0.9, starved=0.9), "throttled", "high"),
    ],
)
def test_each_cause_has_its_rule(facts: Measurements, kind: str, confidence: str) -> None:
    cause = cause_of(facts)
    assert (cause.kind, cause.confidence) == (kind, confidence)
    assert " s" in cause.evidence, "evidence is something that was measured"


# What is measured


class Blocks:
    """A listener that keeps what it hears, and from which thread."""

    def __init__(self) -> None:
        self.stalls: list[tuple[float, float, str | None]] = []
        self.told: list[Block] = []
        self.threads: set[int] = set()

    def suspected(self) -> None:
        pass

    def stalled(self, started: float, seconds: float, culprit: str | None) -> None:
        assert threading.get_ident() not in self.threads
        self.stalls.append((started, seconds, culprit))

    def blocked(self, block: Block) -> None:
        self.threads.add(threading.get_ident())
        self.told.append(block)


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of each implementation, run by the test itself."""
    made = pytest.importorskip("uvloop").new_event_loop() if request.param == "uvloop" else None
    loop = made or asyncio.new_event_loop()
    yield loop
    loop.close()


def block_by(loop: asyncio.AbstractEventLoop, hold: Callable[[], None], as_wanted: str) -> Block:
    """A block by ``hold``, again until its cause is as wanted: a busy machine may have its share in one."""

    async def main() -> Block:
        blocks = Blocks()
        monitor = LoopWatch().install(loop, Meter(), blocks)
        deadline = perf_counter() + PATIENCE
        try:
            while True:
                await asyncio.sleep(0.1)
                hold()
                await until(lambda: blocks.told, "the block")
                block = blocks.told.pop()
                if block.cause.kind == as_wanted or perf_counter() > deadline:
                    return block
        finally:
            monitor.close()

    return loop.run_until_complete(main())


def burn() -> None:
    deadline = time.thread_time() + 0.3
    for _ in takewhile(lambda _: time.thread_time() < deadline, iter(int, 1)):
        pass


def wait() -> None:
    time.sleep(0.3)


def collect() -> None:
    deadline = perf_counter() + 0.3
    while perf_counter() < deadline:
        gc.collect()


@pytest.mark.parametrize(("hold", "kind"), [(burn, "cpu"), (wait, "blocking_call"), (collect, "gc")])
def test_the_cause_of_a_block_is_told(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture, hold: Callable[[], None], kind: str
) -> None:
    block = block_by(loop, hold, kind)
    assert block.cause.kind == kind
    assert block.frame is not None
    assert block.frame.function in (hold.__name__, "<lambda>")
    record: Any = [record for record in caplog.records if record.name == "aiohttp_observe.loopwatch"][-1]
    assert (record.cause, record.cause_confidence) == (kind, block.cause.confidence)
    assert record.cause_evidence == block.cause.evidence
    assert (block.cause.evidence in record.getMessage()) == (kind == "gc"), "the line is not to blame for it"


@contextmanager
def busy_threads() -> Iterator[None]:
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_threads_that_use_the_interpreter_lock_are_the_cause(loop: asyncio.AbstractEventLoop) -> None:
    with busy_threads():
        block = block_by(loop, burn, "gil")
    assert block.cause.kind == "gil"
    assert "other threads used" in block.cause.evidence


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how often a thread waits")
def test_a_call_that_waits_is_the_cause_however_busy_other_threads_are(
    loop: asyncio.AbstractEventLoop,
) -> None:
    with busy_threads():
        block = block_by(loop, wait, "blocking_call")
    assert block.cause.kind == "blocking_call"


@contextmanager
def one_cpu_shared_with(processes: int) -> Iterator[None]:
    """This thread on one CPU, which other processes want all the time."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        time.sleep(0.3)  # until they are at it
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="nothing tells who queues for a CPU")
def test_what_works_is_the_cause_though_others_have_its_cpu_most_of_the_time(
    loop: asyncio.AbstractEventLoop,
) -> None:
    took = []

    def compete() -> None:
        began = perf_counter()
        burn()
        took.append(perf_counter() - began)

    with one_cpu_shared_with(1):
        block = block_by(loop, compete, "cpu")
    assert block.cause.kind == "cpu"
    assert "queued for one" in block.cause.evidence
    assert block.seconds > took[-1] * 0.7


def test_a_listener_hears_of_each_block_and_before_of_the_stall(loop: asyncio.AbstractEventLoop) -> None:
    blocks = Blocks()

    async def main() -> None:
        monitor = LoopWatch().install(loop, Meter(), blocks)
        for _ in range(2):
            await asyncio.sleep(0.1)
            wait()
        await until(lambda: len(blocks.told) == 2, "the blocks")
        monitor.close()

    loop.run_until_complete(main())
    assert [(started, culprit) for started, _, culprit in blocks.stalls] == [
        (block.started, None) for block in blocks.told
    ]
    assert threading.get_ident() not in blocks.threads
    block = blocks.told[0]
    assert block.started < perf_counter() - block.seconds
    assert block.task is not None
    assert (block.request, block.request_id, block.span, block.scope) == (None, None, None, None)


class Broken(Blocks):
    def stalled(self, started: float, seconds: float, culprit: str | None) -> None:
        raise ValueError("broken")

    def blocked(self, block: Block) -> None:
        super().blocked(block)
        raise ValueError("broken")


class Errors(Meter):
    def __init__(self) -> None:
        self.errors: list[str] = []

    def internal_error(self, observer: str) -> None:
        self.errors.append(observer)


def test_a_listener_that_raises_harms_nobody(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    broken, blocks, errors = Broken(), Blocks(), Errors()

    async def main() -> None:
        monitors = [LoopWatch().install(loop, errors, listener) for listener in (broken, blocks)]
        for _ in range(2):
            await asyncio.sleep(0.1)
            wait()
        await until(lambda: len(blocks.told) == 2, "the blocks")
        for monitor in monitors:
            monitor.close()

    loop.run_until_complete(main())
    assert (len(broken.told), len(blocks.stalls)) == (2, 2)
    assert errors.errors == ["loopwatch"] * 4
    assert len([record for record in caplog.records if record.name == "aiohttp_observe.loopwatch"]) == 2


def test_collections_are_measured_only_while_a_loop_is_watched() -> None:
    before = list(gc.callbacks)

    async def watch(also: Callable[[], None]) -> None:
        monitor = LoopWatch().install(asyncio.get_running_loop(), Meter())
        assert len(gc.callbacks) == len(before) + 1, "one for all watches"
        await asyncio.to_thread(also)
        assert len(gc.callbacks) == len(before) + 1
        monitor.close()

    asyncio.run(watch(lambda: asyncio.run(watch(lambda: None))))
    assert gc.callbacks == before


# A container's limit


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the control groups are, of which there are none yet."""
    monkeypatch.setattr(throttling, "_OURS", tmp_path / "of-this-process")
    monkeypatch.setattr(throttling, "_GROUPS", tmp_path / "groups")
    return tmp_path / "groups"


def make_group(group: Path, **files: str) -> Path:
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(text)
    return group


def test_version_2_is_read(groups: Path) -> None:
    (groups.parent / "of-this-process").write_text("0::/\n")
    group = make_group(groups, cpu__max="50000 100000\n", cpu__stat="usage_usec 1\nthrottled_usec 1500000\n")
    assert Throttling().seconds() == 1.5
    (group / "cpu.stat").unlink()
    assert Throttling().seconds() == 0.0


def test_version_1_is_read(groups: Path) -> None:
    (groups.parent / "of-this-process").write_text("5:memory:/\n4:cpu,cpuacct:/docker/1\n")
    stat = "nr_periods 10\nnr_throttled 7\nthrottled_time 2500000000\n"
    make_group(groups / "cpu,cpuacct" / "docker" / "1", cpu__cfs_quota_us="50000\n", cpu__stat=stat)
    assert Throttling().seconds() == 2.5


def test_the_nearest_group_with_a_limit_counts(groups: Path) -> None:
    (groups.parent / "of-this-process").write_text("0::/slice/unit\n")
    make_group(groups / "slice", cpu__max="50000 100000\n", cpu__stat="throttled_usec 3000000\n")
    make_group(groups / "slice" / "unit", cpu__max="max 100000\n", cpu__stat="throttled_usec 0\n")
    assert Throttling().seconds() == 3.0


@pytest.mark.parametrize("ours", [None, "", "0::/\n", "nonsense\n", "0::/gone\n"])
def test_where_there_is_no_limit_nothing_is_throttled(groups: Path, ours: str | None) -> None:
    if ours is not None:
        (groups.parent / "of-this-process").write_text(ours)
    make_group(groups, cpu__max="max 100000\n", cpu__stat="throttled_usec 3000000\n")
    assert Throttling().seconds() == 0.0


def test_a_container_that_used_up_its_share_is_the_cause(
    loop: asyncio.AbstractEventLoop, groups: Path
) -> None:
    (groups.parent / "of-this-process").write_text("0::/\n")
    group = make_group(groups, cpu__max="50000 100000\n", cpu__stat="throttled_usec 0\n")
    throttled = iter(range(300_000, 100_000_000, 300_000))

    def hold() -> None:
        time.sleep(0.3)
        (group / "cpu.stat").write_text(f"throttled_usec {next(throttled)}\n")

    block = block_by(loop, hold, "throttled")
    assert block.cause == Cause("throttled", "high", block.cause.evidence)
    assert "the container got no CPU for 0.30 s" in block.cause.evidence
