"""A crowd that only ever grows is told to be a leak."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from aiohttp_observe.exchange import Exchange, Scope
from aiohttp_observe.tasks import mark_request_task, take_snapshot
from aiohttp_observe.tasks.groups import Groups
from aiohttp_observe.tasks.growth import Growing, grown
from aiohttp_observe.tasks.seen import Look

from .scenes import suspended

MINUTE = 60.0


async def forgotten() -> None:
    await asyncio.get_running_loop().create_future()


async def polling() -> None:
    while True:  # noqa: ASYNC110 - it is what many a leak does
        await asyncio.sleep(0.05)


async def looked_at(looks: Sequence[tuple[float, int]]) -> list[Growing]:
    """What is told at the last of these looks: each at a time (s), with so many tasks."""
    loop = asyncio.get_running_loop()
    told: list[Growing] = []
    for now, count in looks:
        async with suspended(*(forgotten() for _ in range(count))) as tasks:
            look, groups = Look(loop, depth=3), Groups()
            for task in tasks:
                groups.add(look.at(task))
            told = grown(loop, groups, now)
    return told


async def test_a_crowd_that_grows_is_a_leak() -> None:
    (crowd,) = await looked_at([(0, 40), (20, 60), (40, 80)])
    assert (crowd.coro, crowd.count, crowd.before, crowd.seconds) == ("forgotten", 80, 40, 40)
    assert crowd.line is not None
    assert crowd.line.function == "forgotten"


@pytest.mark.parametrize(
    ("looks", "why"),
    [
        ([(0, 40), (40, 80)], "two looks are no trend"),
        ([(0, 40), (10, 60), (20, 80)], "too short a time"),
        ([(0, 60), (20, 70), (40, 80)], "it has grown by a third"),
        ([(0, 10), (20, 20), (40, 49)], "too few"),
        ([(0, 80), (20, 80), (40, 80)], "it stays"),
        ([(0, 40), (20, 39), (40, 80)], "it shrank in between"),
        ([(0, 40), (20, 0), (40, 80), (60, 120)], "it was gone in between"),
        ([(0, 40), (1, 60), (2, 80), (3, 90)], "looks close together are one"),
    ],
)
async def test_is_none_where(looks: Sequence[tuple[float, int]], why: str) -> None:
    assert await looked_at(looks) == [], why


async def test_it_begins_anew_after_it_shrank() -> None:
    (crowd,) = await looked_at([(0, 90), (20, 40), (40, 60), (60, 80)])
    assert (crowd.before, crowd.seconds) == (40, 40)


async def test_pollers_are_one_crowd_whether_they_wait_or_are_about_to_go_on() -> None:
    loop, told = asyncio.get_running_loop(), list[Growing]()
    # At each look some are about to go on, now more and now fewer.
    for now, waiting, ready in ((0, 40, 20), (20, 60, 5), (40, 80, 25)):
        async with suspended(*(polling() for _ in range(waiting + ready))) as tasks:
            for task in tasks[:ready]:
                task._fut_waiter.set_result(None)  # type: ignore[attr-defined]
            look, groups = Look(loop, depth=3), Groups()
            for task in tasks:
                groups.add(look.at(task))
            assert {crowd.first.state for crowd in groups.crowds()} == {"waiting", "scheduled"}
            told = grown(loop, groups, now)
    (crowd,) = told
    assert (crowd.coro, crowd.count, crowd.before) == ("polling", 105, 60)


async def test_a_look_at_some_is_a_look_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp_observe.tasks.growth._SPAN_SECONDS", 0.0)
    monkeypatch.setattr("aiohttp_observe.tasks.growth._INTERVAL_SECONDS", 0.0)
    async with suspended(*(forgotten() for _ in range(20))):
        take_snapshot()
        take_snapshot()
    async with suspended(*(forgotten() for _ in range(60))):
        (finding,) = take_snapshot(coro="nothing like it").findings
    assert finding.kind == "leak"
    assert finding.sentence.startswith("a leak, likely: 60 tasks of forgotten wait at test_growth.py:")
    assert "and ever more: 20 were there" in finding.sentence
    assert finding.frame is not None
    assert finding.frame.function == "forgotten"


async def test_requests_are_no_leak_however_many_come() -> None:
    loop, told = asyncio.get_running_loop(), list[Growing]()
    for now, count in ((0, 40), (20, 80), (40, 120)):
        async with suspended(*(forgotten() for _ in range(count))) as tasks:
            look, groups = Look(loop, depth=3), Groups()
            for task in tasks:
                mark_request_task(task, Exchange(Scope(), "r", "GET", "/chat", "/chat", None, None, 0.0))
                groups.add(look.at(task))
            told += grown(loop, groups, now)
    assert told == []
