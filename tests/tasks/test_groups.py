"""Tasks that stand at the same line are one group."""

from __future__ import annotations

import asyncio

from aiohttp_observe.tasks import Group, Tasks, findings_to_dict, number_of, take_snapshot

from .scenes import info_of, suspended


async def waits_here() -> None:
    await asyncio.get_running_loop().create_future()


async def waits_there() -> None:
    await asyncio.get_running_loop().create_future()


async def waits_in_one_of_two_ways(*, sleep: bool) -> None:
    await (asyncio.sleep(60) if sleep else asyncio.get_running_loop().create_future())


def groups() -> list[Group]:
    return [group for group in take_snapshot().groups if group.wait is not None]


async def test_one_for_each_line_the_largest_first() -> None:
    async with suspended(waits_there(), waits_here(), waits_here(), waits_here()):
        found = groups()
    assert [(group.coro, group.count) for group in found] == [("waits_here", 3), ("waits_there", 1)]
    assert [group.frame.function for group in found if group.frame is not None] == [
        "waits_here",
        "waits_there",
    ]


async def test_the_kind_of_waiting_parts_them() -> None:
    ways = [waits_in_one_of_two_ways(sleep=sleep) for sleep in (True, True, False)]
    async with suspended(*ways):
        found = groups()
    assert {(group.wait, group.detail, group.count) for group in found} == {
        ("sleep", "sleep", 2),
        ("future", "future", 1),
    }


async def test_the_example_is_the_oldest() -> None:
    tracker = Tasks().install(asyncio.get_running_loop())
    try:
        async with suspended(waits_here(), waits_here(), waits_here()) as tasks:
            snapshot = take_snapshot()
            oldest = info_of(tasks[0], snapshot)
            (group,) = (group for group in snapshot.groups if group.coro == "waits_here")
    finally:
        tracker.uninstall()
    assert group.example == number_of(tasks[0])
    assert group.oldest_seconds == oldest.age_seconds


async def test_what_runs_and_what_is_ready_are_groups_too() -> None:
    ready = asyncio.create_task(waits_here())
    found = {(group.wait, group.detail) for group in take_snapshot().groups}
    ready.cancel()
    await asyncio.wait({ready})
    assert found == {(None, "running"), (None, "scheduled")}


async def test_they_count_those_that_the_limit_leaves_out() -> None:
    async with suspended(*(waits_here() for _ in range(30))):
        snapshot = take_snapshot(limit=5)
    assert snapshot.groups[0].count == 30
    assert len(snapshot.tasks) == 5


async def test_at_most_fifty_are_told() -> None:
    scope: dict[str, object] = {"asyncio": asyncio}
    for number in range(60):
        source = f"async def at_{number}(): await asyncio.get_running_loop().create_future()"
        exec(compile(source, f"line{number}.py", "exec"), scope)
    async with suspended(*(scope[f"at_{number}"]() for number in range(60))):  # type: ignore[operator]
        assert len(take_snapshot().groups) == 50


async def test_they_are_in_the_live_pages_document() -> None:
    async with suspended(waits_here(), waits_here()):
        document = findings_to_dict(take_snapshot())
    (group,) = (group for group in document["groups"] if group["coro"] == "waits_here")
    assert group["count"] == 2
    assert group["frame"]["function"] == "waits_here"
    assert document["findings"] == []
