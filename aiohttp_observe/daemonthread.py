"""A blocking call beside the loop, in a daemon thread of its own.

The loop's default executor may be full of the service's calls, just when the service ends or
somebody looks why it is stuck.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter
from typing import TypeVar

__all__ = ["in_daemon_thread", "until_ended"]

T = TypeVar("T")


async def until_ended(thread: threading.Thread, seconds: float) -> None:
    """Wait for the end of ``thread``, so long at most."""
    deadline = perf_counter() + seconds
    # A thread sets no event of asyncio's as it ends.
    while thread.is_alive() and perf_counter() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def in_daemon_thread(call: Callable[[], T], *, or_here: bool = True) -> asyncio.Future[T]:
    """Run ``call`` there, or here if the process may have no further thread.

    One that never returns doesn't keep the process from ending.  Raises ``RuntimeError`` for
    want of a thread unless it may run here.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # who gives up waiting doesn't cancel it

    def run() -> None:
        try:
            result = call()
        except BaseException as exc:
            done.set_exception(exc)
        else:
            done.set_result(result)

    try:
        threading.Thread(target=run, name="aiohttp-observe-call", daemon=True).start()
    except RuntimeError:
        if not or_here:
            raise
        run()
    return asyncio.wrap_future(done)
