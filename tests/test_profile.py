"""What a profile sees of a busy thread, and when it ends."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
from aiohttp import web

from aiohttp_observe.profile import NoProfileError, end_profile, profile
from tests.service import serving


def compute(milliseconds: float) -> None:
    until = time.thread_time() + milliseconds / 1000
    while time.thread_time() < until:
        pass


def render() -> None:
    compute(1.5)


def serialise() -> None:
    compute(0.5)


async def page(request: web.Request) -> web.Response:
    render()
    serialise()
    return web.Response(text="ok")


async def profile_under_load(seconds: float) -> str:
    """Of a loop that serves one request after the other, none of which keeps it for long."""
    app = web.Application()
    app.router.add_get("/page", page)
    ident = threading.get_ident()
    with ThreadPoolExecutor(1) as pool:
        async with serving(app, access_log=None) as service:
            profiling = asyncio.get_running_loop().run_in_executor(pool, profile, ident, seconds)

            async def ask(session: aiohttp.ClientSession) -> None:
                while not profiling.done():
                    async with session.get(service.url("/page")) as answer:
                        await answer.read()

            await asyncio.gather(*(ask(service.session) for _ in range(4)))
            return await profiling


async def test_the_shares_of_what_requests_do_come_out_right() -> None:
    """They are short, and the loop lets go of the interpreter by itself in its socket calls only."""
    seen = counted(await profile_under_load(2))
    rendering, serialising = seen["render"], seen["serialise"]
    assert rendering + serialising > 0.4 * seen["all"]
    assert 0.6 < rendering / (rendering + serialising) < 0.9  # three quarters


def counted(text: str) -> Counter[str]:
    seen: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, number = line.rpartition(" ")
        functions = {frame.partition(" ")[0] for frame in stack.split(";")}
        seen.update(dict.fromkeys([*functions, "all"], int(number)))
    return seen


def taken_aside(seconds: float) -> tuple[threading.Thread, list[str]]:
    """A profile of this thread that has begun."""
    texts: list[str] = []
    ident, usual = threading.get_ident(), sys.getswitchinterval()
    thread = threading.Thread(target=lambda: texts.append(profile(ident, seconds)), daemon=True)
    thread.start()
    wait_for(lambda: sys.getswitchinterval() != usual)
    return thread, texts


def wait_for(true: Callable[[], bool]) -> None:
    until = time.perf_counter() + 10
    while not true():
        assert time.perf_counter() < until
        time.sleep(0.001)


def test_one_can_be_ended_and_leaves_nothing_behind() -> None:
    usual = sys.getswitchinterval()
    thread, texts = taken_aside(60)
    with pytest.raises(NoProfileError, match="a profile is being taken"):
        profile(thread.ident or 0, 0.1)
    end_profile()
    thread.join(5)
    assert "(test_profile.py:" in texts[0]
    assert sys.getswitchinterval() == usual


def test_the_end_of_one_is_not_that_of_the_next() -> None:
    end_profile()
    begun = time.perf_counter()
    thread, texts = taken_aside(0.2)
    thread.join(5)
    assert texts[0]
    assert time.perf_counter() - begun >= 0.2
