"""A task that has failed, and that something still refers to, is told of: asyncio never would."""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter
from typing import Any

import pytest

from aiohttp_observe.tasks import take_snapshot
from aiohttp_observe.tasks.unretrieved import unretrieved

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio forgets ended tasks there")


async def consume() -> None:
    raise LookupError("no such order")


async def ended(task: asyncio.Task[Any]) -> asyncio.Task[Any]:
    await asyncio.wait([task])
    return task


async def test_it_is_told_at_the_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp_observe.tasks.unretrieved._SECONDS", 0.0)
    kept = await ended(asyncio.create_task(consume(), name="packer"))
    (finding,) = take_snapshot().findings
    assert finding.sentence.startswith(
        "task packer has failed with LookupError in consume (test_unretrieved.py:"
    )
    assert finding.sentence.endswith(" s ago, and nobody has asked for its outcome")
    assert finding.kind == "failed"
    assert finding.frame is not None
    assert finding.frame.function == "consume"
    assert isinstance(kept.exception(), LookupError), "looking asks for nothing"
    assert take_snapshot().findings == ()


async def test_it_is_not_told_of_one_that_may_yet_be_asked() -> None:
    kept = await ended(asyncio.create_task(consume()))
    loop, now = asyncio.get_running_loop(), perf_counter()
    assert unretrieved(loop, now) == []
    assert unretrieved(loop, now + 4) == []
    (told,) = unretrieved(loop, now + 6)
    assert (told.exception, told.seconds) == ("LookupError", 6)
    kept.exception()


async def test_nothing_is_told_of_what_was_cancelled_or_asked_for() -> None:
    async def sleep() -> None:
        await asyncio.sleep(60)

    cancelled, asked = asyncio.create_task(sleep()), asyncio.create_task(consume())
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, asked, return_exceptions=True)
    loop, now = asyncio.get_running_loop(), perf_counter()
    assert [unretrieved(loop, now), unretrieved(loop, now + 60)] == [[], []]
