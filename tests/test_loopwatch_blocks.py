"""The loop watch tells what blocks the loop, once, from outside, and blames nobody wrongly."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest

from aiohttp_observe import LoopWatch
from aiohttp_observe.exchange import Exchange, Meter, Scope
from aiohttp_observe.loopwatch import LoopMonitor
from aiohttp_observe.tasks import (
    Blocked,
    Frame,
    LoopState,
    mark_request_task,
    number_of,
    take_snapshot,
    to_dict,
)
from tests.service import PATIENCE, run_python, until

pytestmark = pytest.mark.usefixtures("short_collections")

Main = Callable[[], Coroutine[Any, Any, None]]
RunOnLoop = Callable[[Main], None]


class Numbers(Meter):
    """A meter that keeps what the loop watch reports."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.blocks: list[float] = []
        self.errors: list[str] = []
        self.beat = asyncio.Event()

    def loop_lag(self, seconds: float) -> None:
        self.lags.append(seconds)
        self.beat.set()

    def loop_blocked(self, seconds: float) -> None:
        self.blocks.append(seconds)

    def internal_error(self, observer: str) -> None:
        self.errors.append(observer)


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of each implementation, run by the test itself."""
    made = pytest.importorskip("uvloop").new_event_loop() if request.param == "uvloop" else None
    loop = made or asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def watched(loop: asyncio.AbstractEventLoop, numbers: Numbers) -> RunOnLoop:
    """Runs a coroutine function on a watched loop; all is told when it returns."""

    async def watch(main: Main) -> None:
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        try:
            await main()
        finally:
            monitor.close()

    return lambda main: loop.run_until_complete(watch(main))


async def turn(numbers: Numbers) -> None:
    """Until the loop watch has been round."""
    for _ in range(2):
        numbers.beat.clear()
        await asyncio.wait_for(numbers.beat.wait(), PATIENCE)


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The log lines of the loop watch."""
    return [record for record in caplog.records if record.name == "aiohttp_observe.loopwatch"]


def the_line(caplog: pytest.LogCaptureFixture) -> Any:
    """The only log line of the loop watch."""
    (record,) = told(caplog)
    return record


def line_of(function: Callable[..., Any], text: str) -> int:
    """Where in the source of ``function`` the line with ``text`` is."""
    lines, first = inspect.getsourcelines(function)
    return next(first + index for index, line in enumerate(lines) if text in line)


def exchange(request_id: str, span: Any = None) -> Exchange:
    made = Exchange(Scope(), request_id, "GET", "/report", "/report", "127.0.0.1", None, perf_counter())
    made.span = span
    return made


# What is told of a block


def write_report(seconds: float = 0.5) -> None:
    time.sleep(seconds)  # the line that blocks


async def serve_report() -> None:
    write_report()


def test_a_block_is_told_once_with_line_task_and_request(
    watched: RunOnLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        task = asyncio.create_task(serve_report(), name="reporter")
        mark_request_task(task, exchange("request-1", SimpleNamespace(trace_id=0xABC, span_id=1)))
        await task

    watched(main)
    record, line = the_line(caplog), line_of(write_report, "time.sleep")
    (seconds,) = numbers.blocks
    assert 0.3 < seconds < PATIENCE
    assert record.levelno == logging.WARNING
    assert re.fullmatch(
        rf"event loop blocked for \d+\.\d\d s in write_report \({re.escape(Path(__file__).name)}:{line}\) "
        r"by task reporter, GET /report(, seen there for \d+\.\d\d of \d+\.\d\d s)?",
        record.getMessage(),
    )
    assert record.blocked_ms == pytest.approx(seconds * 1000, abs=0.1)
    assert (vars(record)["code.function.name"], vars(record)["code.file.path"]) == ("write_report", __file__)
    assert vars(record)["code.line.number"] == line
    assert record.task == "reporter"
    assert (record.request_id, record.trace_id) == ("request-1", f"{0xABC:032x}")
    assert not hasattr(record, "still_blocked")


def test_what_there_is_not_is_left_out(watched: RunOnLoop, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(write_report)
        await asyncio.sleep(0.01)

    watched(main)
    record = the_line(caplog)
    assert " in write_report (" in record.getMessage()
    assert record.getMessage().partition(" by ")[2].startswith("a callback")
    assert not {"task", "request_id", "trace_id", "still_blocked"} & set(vars(record))


def test_the_loop_thread_tells_nothing_itself(watched: RunOnLoop, caplog: pytest.LogCaptureFixture) -> None:
    watched(serve_report)
    assert the_line(caplog).thread != threading.get_ident()


def burn() -> None:
    until = perf_counter() + 0.5
    while perf_counter() < until:
        pass


def test_burning_cpu_blocks_too(
    watched: RunOnLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        burn()

    watched(main)
    assert vars(the_line(caplog))["code.function.name"] == "burn"
    assert len(numbers.blocks) == 1


def keep_the_lock() -> None:
    sum(range(40_000_000))  # one call in C, in which no other thread gets to run


def test_a_call_that_lets_no_thread_run_is_named(
    watched: RunOnLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    def have_been_told(count: int) -> bool:
        return len(told(caplog)) == count

    async def main() -> None:
        # Again, if another thread than the watching one gets the lock next: see test_loopwatch_unseen.
        for count_so_far in range(1, 21):
            keep_the_lock()
            await until(partial(have_been_told, count_so_far), "the block")
            if hasattr(told(caplog)[-1], "code.line.number"):
                break

    watched(main)
    assert vars(told(caplog)[-1])["code.line.number"] == line_of(keep_the_lock, "sum(")
    assert len(numbers.blocks) == len(told(caplog))


def wait_in_a_library() -> None:
    with pytest.raises(queue.Empty):
        queue.Queue[None]().get(timeout=0.5)


def test_the_line_named_is_the_services_own(watched: RunOnLoop, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        wait_in_a_library()

    watched(main)
    assert vars(the_line(caplog))["code.line.number"] == line_of(wait_in_a_library, "timeout=")


def dawdle(first: float, then: float) -> None:
    time.sleep(first)
    time.sleep(then)  # most of it


@pytest.mark.parametrize(("first", "then"), [(0.15, 0.6), (0.4, 1.4)])
def test_the_line_named_is_the_one_that_took_the_most_time(
    first: float, then: float, watched: RunOnLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """It is looked at ever more rarely: a look stands for the time since the last."""

    async def main() -> None:
        dawdle(first, then)

    watched(main)
    record = the_line(caplog)
    assert vars(record)["code.line.number"] == line_of(dawdle, "most of it")
    there, of = re.findall(r", seen there for (\d+\.\d\d) of (\d+\.\d\d) s$", record.getMessage())[0]
    assert float(of) / 2 < float(there) < float(of)


def spend(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_of_a_herd_no_single_one_is_to_blame(
    watched: RunOnLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        event = asyncio.Event()

        async def wait(number: int) -> None:
            mark_request_task(asyncio.current_task(), exchange(f"request-{number}"))  # type: ignore[arg-type]
            await event.wait()
            spend(0.004)

        herd = [asyncio.create_task(wait(number)) for number in range(100)]
        await turn(numbers)
        event.set()
        await asyncio.gather(*herd)

    watched(main)
    record = the_line(caplog)
    assert vars(record)["code.function.name"] == "spend"
    assert "by many tasks" in record.getMessage()
    assert not {"task", "request_id", "trace_id"} & vars(record).keys()


def test_the_route_whose_handlers_held_the_loop_is_told_whoever_was_seen_after_each(
    loop: asyncio.AbstractEventLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    """As where each keeps the interpreter lock: others are looked at in between."""

    async def main() -> None:
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        mark_request_task(asyncio.current_task(), exchange("innocent"))  # type: ignore[arg-type]
        time.sleep(0.4)  # noqa: ASYNC251 - where all looks are
        for number in range(3):
            culprit = Exchange(Scope(), f"r{number}", "GET", "/search", "/search", None, None, 0.0)
            monitor.held(culprit, 0.1 + number * 0.01)
        await turn(numbers)
        monitor.close()

    loop.run_until_complete(main())
    record = the_line(caplog)
    assert record.getMessage().endswith(" by GET /search, in a line that nobody saw: it let no thread look")
    assert record.request_id == "r2"


def test_what_the_collector_calls_of_ours_is_not_named(
    watched: RunOnLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        garbage: list[list[dict[str, int]]] = [[{}] for _ in range(1_500_000)]
        asyncio.get_running_loop().call_soon(gc.collect)
        await asyncio.sleep(0.01)
        garbage.clear()

    watched(main)
    for record in told(caplog):
        assert "clocks.py" not in record.getMessage()


def test_a_function_in_c_called_by_the_loop_itself_is_no_secret(
    numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        loop.call_soon(time.sleep, 0.5)
        await turn(numbers)
        monitor.close()

    asyncio.run(main())
    assert (vars(the_line(caplog))["code.function.name"], len(numbers.blocks)) == ("_run", 1)


def test_each_block_is_told(watched: RunOnLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        for _ in range(3):
            write_report(0.3)
            await turn(numbers)

    watched(main)
    assert (len(told(caplog)), len(numbers.blocks)) == (3, 3)


@pytest.mark.parametrize("phase", range(4))
def test_a_block_as_long_as_the_threshold_is_told(watched: RunOnLoop, numbers: Numbers, phase: int) -> None:
    async def main() -> None:
        await turn(numbers)
        await asyncio.sleep(phase * 0.006)  # a beat is 25 ms
        write_report(0.1)
        await turn(numbers)

    watched(main)
    (seconds,) = numbers.blocks
    assert seconds >= 0.0875


def test_a_hung_loop_is_told_while_it_hangs(
    watched: RunOnLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_observe.loopwatch.watchdog._STILL_BLOCKED", 0.2)

    async def main() -> None:
        hang_until(lambda: bool(told(caplog)))
        write_report()  # in which it is not told again

    watched(main)
    still, ended = told(caplog)
    assert still.getMessage().startswith("event loop still blocked after 0.")
    assert (vars(still)["still_blocked"], hasattr(ended, "still_blocked")) == (True, False)
    assert ended.getMessage().startswith("event loop blocked for ")
    assert len(numbers.blocks) == 1


def hang_until(seen: Callable[[], bool]) -> None:
    """Hold the loop until ``seen``."""
    deadline = perf_counter() + PATIENCE
    while not seen() and perf_counter() < deadline:
        time.sleep(0.01)


# What is not a block


def test_work_before_the_loop_turns_or_while_it_does_not_run_is_no_block(
    loop: asyncio.AbstractEventLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    async def begin() -> LoopMonitor:
        monitor = LoopWatch().install(loop, numbers)
        burn()  # as a service that starts up
        await turn(numbers)
        return monitor

    async def end(monitor: LoopMonitor) -> None:
        await turn(numbers)
        monitor.close()

    monitor = loop.run_until_complete(begin())
    burn()
    loop.run_until_complete(end(monitor))
    assert (numbers.blocks, told(caplog)) == ([], [])


@pytest.mark.parametrize(("seconds", "counted"), [(0.3, 0), (0.9, 1)])
def test_what_comes_first_in_another_run_counts_without_the_time_between(
    loop: asyncio.AbstractEventLoop,
    numbers: Numbers,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
    counted: int,
) -> None:
    async def begin() -> LoopMonitor:
        monitor = LoopWatch(threshold=0.5).install(loop, numbers)
        await turn(numbers)
        return monitor

    async def go_on(monitor: LoopMonitor) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - what comes first
        await turn(numbers)
        monitor.close()

    monitor = loop.run_until_complete(begin())
    time.sleep(1)
    loop.run_until_complete(go_on(monitor))
    assert len(numbers.blocks) == len(told(caplog)) == counted
    assert max(numbers.blocks, default=0.0) < 1.4


def test_an_idle_loop_is_not_blocked(
    watched: RunOnLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    watched(lambda: asyncio.sleep(1.0))
    assert (numbers.blocks, told(caplog)) == ([], [])
    assert numbers.lags
    assert min(numbers.lags) >= 0


def test_a_loop_busy_with_many_short_callbacks_is_not_blocked(
    watched: RunOnLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        for _ in takewhile(lambda _: len(numbers.lags) < 15, count()):
            await asyncio.sleep(0)

    watched(main)
    assert (numbers.blocks, told(caplog)) == ([], [])


def test_a_loop_that_waits_is_not_blocked_however_late_its_timer(
    loop: asyncio.AbstractEventLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        # From a thread of its own: the loop waits for it without doing anything.
        looked = asyncio.get_running_loop().run_in_executor(None, blocked_after, monitor, 0.5)
        await turn(numbers)
        monitor._watch.pulse._timer.cancel()
        assert await looked is None
        monitor.close()

    loop.run_until_complete(main())
    assert max(numbers.lags) > 0.4
    assert (numbers.blocks, told(caplog)) == ([], [])


def blocked_after(monitor: LoopMonitor, seconds: float) -> Blocked | None:
    time.sleep(seconds)
    return monitor.blocked_now()


def test_a_stretch_below_the_threshold_is_not_told(
    loop: asyncio.AbstractEventLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        monitor = LoopWatch(threshold=5).install(loop, numbers)
        await turn(numbers)
        write_report(0.3)
        await turn(numbers)
        monitor.close()

    loop.run_until_complete(main())
    assert (numbers.blocks, told(caplog)) == ([], [])
    assert max(numbers.lags) > 0.2


def test_another_thread_that_keeps_the_interpreter_lock_is_told_as_such(
    watched: RunOnLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing on the loop is to blame, but it stood still: that is no secret.

    On a crowded machine that thread may get too little of a CPU to be blamed for it, now and then.
    """

    async def main() -> None:
        deadline = time.perf_counter() + PATIENCE
        while not told(caplog) and time.perf_counter() < deadline:
            await asyncio.to_thread(keep_the_lock)
            await turn(numbers)

    watched(main)
    record: Any = told(caplog)[0]
    assert re.fullmatch(
        r"event loop blocked for \d\.\d\d s by another thread, which kept the interpreter lock",
        record.getMessage(),
    )
    assert record.cause == "gil"
    assert numbers.blocks[0] * 1000 == pytest.approx(record.blocked_ms, abs=0.1)
    assert numbers.blocks[0] <= max(numbers.lags) + 0.05
    assert not {"task", "request_id", "code.function.name"} & vars(record).keys()


def test_a_loop_that_is_not_running_is_not_blocked(
    loop: asyncio.AbstractEventLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    async def begin() -> LoopMonitor:
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        return monitor

    async def end() -> None:
        await turn(numbers)
        monitor.close()

    monitor = loop.run_until_complete(begin())
    write_report()
    loop.run_until_complete(end())
    assert (numbers.blocks, told(caplog)) == ([], [])


BUSY = """
import asyncio, sys, time
from aiohttp_observe import LoopWatch
from aiohttp_observe.exchange import Meter

class Numbers(Meter):
    longest, blocks = 0.0, 0
    def loop_lag(self, seconds): self.longest = max(self.longest, seconds)
    def loop_blocked(self, seconds): self.blocks += 1

def work():
    until = time.perf_counter() + 0.05
    while time.perf_counter() < until:
        pass

async def main():
    numbers = Numbers()
    monitor = LoopWatch(threshold=0.2).install(asyncio.get_running_loop(), numbers)
    await asyncio.sleep(0.2)
    print("ready", flush=True)
    while numbers.longest < 0.8:
        work()
        await asyncio.sleep(0)
    monitor.close()
    print(numbers.blocks)

asyncio.run(main())
"""


def test_a_process_that_was_stopped_blames_no_line() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        time.sleep(1.0)  # for which it is stopped
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "0\n"


# What is seen from outside


def test_a_block_is_seen_from_another_thread_while_it_lasts(
    loop: asyncio.AbstractEventLoop, numbers: Numbers
) -> None:
    seen: list[Blocked] = []

    def look(monitor: LoopMonitor) -> None:
        hang_until(lambda: monitor.blocked_now() is not None)
        seen.extend(filter(None, [monitor.blocked_now()]))

    async def main() -> None:
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        assert await asyncio.to_thread(monitor.blocked_now) is None
        task = asyncio.current_task()
        assert task is not None
        mark_request_task(task, exchange("request-2"))
        with_eyes = threading.Thread(target=look, args=(monitor,))
        with_eyes.start()
        hang_until(lambda: bool(seen))
        with_eyes.join()
        assert monitor.blocked_now() is None, "whoever asks on the loop isn't told of itself"
        await turn(numbers)
        assert (await asyncio.to_thread(monitor.state)).blocked_now is None
        monitor.close()
        assert seen[0].task == number_of(task)

    loop.run_until_complete(main())
    (blocked,) = seen
    assert 0.1 <= blocked.seconds < PATIENCE
    assert (blocked.request_id, blocked.trace_id) == ("request-2", None)
    functions = [frame.function for frame in blocked.stack if frame.file == __file__]
    assert functions[-2:] == ["hang_until", "main"]
    assert blocked.stack[-1].function == "main", "what runs the loop is no part of the block"
    assert blocked.frame in blocked.stack


def test_what_blocks_now_is_named_as_in_the_log(
    loop: asyncio.AbstractEventLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Blocked] = []

    def look(monitor: LoopMonitor) -> None:
        hang_until(lambda: monitor.blocked_now() is not None)
        seen.extend(filter(None, [monitor.blocked_now()]))

    async def main() -> None:
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        with_eyes = threading.Thread(target=look, args=(monitor,))
        with_eyes.start()
        wait_in_a_library()
        with_eyes.join()
        monitor.close()

    loop.run_until_complete(main())
    (blocked,) = seen
    assert blocked.frame is not None
    assert blocked.frame != blocked.stack[0], "the library's"
    assert blocked.frame.line == line_of(wait_in_a_library, "timeout=")
    assert vars(the_line(caplog))["code.line.number"] == blocked.frame.line


def test_lag_is_how_late_the_loop_was(watched: RunOnLoop, numbers: Numbers) -> None:
    watched(serve_report)
    assert 0.4 < max(numbers.lags) < PATIENCE


def test_utilization_is_time_on_the_cpu(loop: asyncio.AbstractEventLoop, numbers: Numbers) -> None:
    async def main() -> None:
        began, cpu = perf_counter(), time.thread_time()
        monitor = LoopWatch().install(loop, numbers)
        write_report(0.3)
        while time.thread_time() < cpu + 0.3:
            pass
        share = monitor.utilization()
        assert share == pytest.approx((time.thread_time() - cpu) / (perf_counter() - began), abs=0.05)
        assert monitor.state().utilization == pytest.approx(share, abs=0.05)
        assert monitor.state().lag_seconds == monitor.lag
        monitor.close()

    loop.run_until_complete(main())


def test_without_thread_clocks_blocks_are_told_and_the_loop_reads_its_own(
    loop: asyncio.AbstractEventLoop,
    numbers: Numbers,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(time, "pthread_getcpuclockid")

    async def main() -> None:
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        keep_the_lock()
        await turn(numbers)
        assert monitor.state().utilization == pytest.approx(monitor.utilization(), abs=0.2)
        assert monitor.utilization() > 0.3
        monitor.close()

    loop.run_until_complete(main())
    assert the_line(caplog).blocked_ms == pytest.approx(numbers.blocks[0] * 1000, abs=0.1)
    assert len(numbers.blocks) == 1


# Its start and its end


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aiohttp-observe-loop-watch"]


def test_closing_leaves_no_thread_and_no_timer(loop: asyncio.AbstractEventLoop, numbers: Numbers) -> None:
    async def main() -> None:
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        assert len(watchdogs()) == 1
        monitor.close()
        assert watchdogs() == []
        heard = len(numbers.lags)
        await asyncio.sleep(0.15)
        assert len(numbers.lags) == heard
        monitor.close()  # again, to no effect

    loop.run_until_complete(main())


def test_what_blocks_at_clean_up_is_told_too(
    loop: asyncio.AbstractEventLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        write_report()
        monitor.close()

    loop.run_until_complete(main())
    assert vars(the_line(caplog))["code.function.name"] == "write_report"
    assert len(numbers.blocks) == 1


def test_applications_on_one_loop_share_a_watch(
    loop: asyncio.AbstractEventLoop, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    others = Numbers()

    async def main() -> None:
        one, same = (LoopWatch().install(loop, numbers) for _ in range(2))
        other = LoopWatch(threshold=5).install(loop, others)
        await turn(numbers)
        assert len(watchdogs()) == 1
        write_report()
        await turn(numbers)
        one.close()
        other.close()
        heard = len(others.lags)
        await turn(numbers)
        assert len(others.lags) == heard
        assert len(watchdogs()) == 1
        same.close()
        assert watchdogs() == []

    loop.run_until_complete(main())
    assert len(told(caplog)) == 1
    assert (len(numbers.blocks), len(others.blocks)) == (1, 1)
    assert abs(len(numbers.lags) - len(others.lags)) < len(numbers.lags)


def test_a_loop_can_be_watched_again(watched: RunOnLoop, numbers: Numbers) -> None:
    watched(serve_report)
    watched(serve_report)
    assert len(numbers.blocks) == 2


class Broken(Numbers):
    def loop_lag(self, seconds: float) -> None:
        super().loop_lag(seconds)
        raise ValueError("broken")

    def loop_blocked(self, seconds: float) -> None:
        super().loop_blocked(seconds)
        raise ValueError("broken")


def test_errors_are_counted_and_disturb_nothing(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    numbers, failures = Broken(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: failures.append(context))

    async def main() -> None:
        monitor = LoopWatch().install(loop, numbers)
        await turn(numbers)
        for _ in range(2):
            write_report(0.3)
            await turn(numbers)
        monitor.close()

    loop.run_until_complete(main())
    assert failures == []
    assert (len(numbers.blocks), len(told(caplog))) == (2, 2)
    assert set(numbers.errors) == {"loopwatch"}


def test_a_log_call_that_raises_does_not_end_the_watch(watched: RunOnLoop, numbers: Numbers) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise ValueError(record)

    async def main() -> None:
        for _ in range(2):
            write_report(0.3)
            await turn(numbers)

    logger = logging.getLogger("aiohttp_observe.loopwatch")
    logger.addFilter(refuse)
    try:
        watched(main)
    finally:
        logger.removeFilter(refuse)
    assert (len(numbers.blocks), numbers.errors) == (2, ["loopwatch"] * 2)


def test_the_thread_ends_with_a_loop_that_nobody_cleaned_up(numbers: Numbers) -> None:
    async def main() -> None:
        LoopWatch().install(asyncio.get_running_loop(), numbers)
        await turn(numbers)
        assert len(watchdogs()) == 1

    asyncio.run(main())
    for thread in watchdogs():
        thread.join(PATIENCE)
    assert watchdogs() == []
    assert numbers.errors == []


LEFT_RUNNING = """
import asyncio, sys
from aiohttp_observe import LoopWatch
from aiohttp_observe.exchange import Meter

async def main():
    LoopWatch().install(asyncio.get_running_loop(), Meter())
    await asyncio.sleep(0.1)
    sys.exit(3)

asyncio.new_event_loop().run_until_complete(main())
"""


def test_the_interpreter_exits_quietly_with_the_thread_running() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_RUNNING], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_the_line_named_is_no_part_of_the_document() -> None:
    line = Frame("report.py", 88, "render")
    blocked = Blocked(7.0, 1, "request-1", None, (line,), line)

    async def main() -> dict[str, Any]:
        return to_dict(take_snapshot(loop_state=LoopState(7.0, 0.0, blocked)))

    document = asyncio.run(main())
    assert set(document["loop"]["blocked_now"]) == {"seconds", "task", "request_id", "trace_id", "stack"}


INSTALLED = """
import asyncio, logging, sys
sys.path.insert(0, sys.argv[1])
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
from aiohttp import ClientSession, web
from aiohttp_observe import setup_observability
import lines
from company.shop import views

async def main():
    app = web.Application()
    app.router.add_get("/", views.report)
    setup_observability(app, metrics=None)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with ClientSession() as session:
        await (await session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/")).text()
    await asyncio.sleep(0.2)
    await runner.cleanup()

asyncio.run(main())
"""


def test_a_service_that_is_installed_is_no_library(tmp_path: Path) -> None:
    """As images have it: ``pip install .``, here into a namespace package beside a real library."""
    installed = tmp_path / "site-packages"
    shop = installed / "company" / "shop"
    shop.mkdir(parents=True)
    (installed / "lines.py").write_text("import time\n\ndef wait():\n    time.sleep(0.4)\n")
    (shop / "__init__.py").write_text("")
    (shop / "views.py").write_text(
        "from aiohttp import web\nimport lines\n\n"
        "async def report(request):\n    lines.wait()\n    return web.Response()\n"
    )
    done = run_python(INSTALLED, str(installed))
    assert "in report (views.py:5) by task" in done.stdout
