"""The frames of other threads are read without a risk to the interpreter."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading

import pytest

from aiohttp_observe.tasks import caller_of, innermost_frames

PROVOCATION = """
import gc, threading, time
from aiohttp_observe.tasks import caller_of, innermost_frames

class Slow:
    def __init__(self):
        self.cycle = self
    def __del__(self):
        time.sleep(0.0001)  # the other thread has a turn

functions = []
for size in range(1, 12):  # frames of many sizes, so that a stale one is seen to be
    variables = "".join(f"    v{i} = functions\\n" for i in range(size))
    exec(f"def deep(n):\\n{variables}    functions[(n * 7 + {size}) % 11](n - 1) if n else time.sleep(0)")
    functions.append(deep)

def look():
    for number in range(5000):
        Slow()
        frame = innermost_frames()[main]
        gc.set_threshold(gc.get_count()[0] + number % 12 + 1, 10, 1000)
        while frame is not None:
            assert type(frame).__name__ == "frame"
            frame = caller_of(frame)

main, number = threading.get_ident(), 0
looks = threading.Thread(target=look)
looks.start()
while looks.is_alive():
    number += 1
    functions[number % 11](number % 30)
"""


def test_they_are_although_finalizers_let_that_thread_go_on() -> None:
    provoked = subprocess.run(
        [sys.executable, "-c", PROVOCATION], capture_output=True, text=True, timeout=60, check=False
    )
    assert (provoked.returncode, provoked.stderr) == (0, "")


@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_is_left_as_it_was(collects: bool) -> None:
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        frame = innermost_frames()[threading.get_ident()]
        assert caller_of(frame) is not None
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


async def test_the_callers_lead_to_the_outermost() -> None:
    def stack() -> list[str]:
        frame = innermost_frames().get(ident)
        names = []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = caller_of(frame)
        return names

    ident = threading.get_ident()
    assert "_run_once" in await asyncio.to_thread(stack)
