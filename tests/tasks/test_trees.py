"""Who awaits whom, and who started whom."""

from __future__ import annotations

import asyncio

from aiohttp_observe.tasks import Tasks, number_of, take_snapshot, tree_of, tree_text, tree_to_dict

from .scenes import suspended


async def sleep() -> None:
    await asyncio.sleep(60)


async def gather(*tasks: asyncio.Task[None]) -> None:
    await asyncio.gather(*tasks)


async def test_edges_lead_from_those_who_wait_to_those_they_wait_for() -> None:
    async with suspended(sleep(), sleep()) as (one, two), suspended(gather(one, two)) as (both,):
        tree = tree_of(take_snapshot())
    edges = {(number_of(both), number_of(one), ""), (number_of(both), number_of(two), "")}
    assert set(tree.awaits) == edges
    assert tree.cycles == ()


async def test_an_edge_through_a_lock_says_so() -> None:
    lock = asyncio.Lock()

    async def hold() -> None:
        async with lock:
            await sleep()

    async def want() -> None:
        async with lock:
            pass

    async with suspended(hold(), want()) as (holder, waiter):
        tree = tree_of(take_snapshot())
    (edge,) = tree.awaits
    assert edge == (number_of(waiter), number_of(holder), f"Lock {number_of(lock)} (locked)")


async def test_creation_is_an_edge_while_the_creator_lives() -> None:
    tracker = Tasks().install(asyncio.get_running_loop())

    async def create() -> None:
        child = asyncio.create_task(sleep(), name="child")
        try:
            await sleep()
        finally:
            child.cancel()

    async with suspended(create()) as (creator,):
        tree = tree_of(take_snapshot())
        names = {node.id: node.name for node in tree.nodes}
        assert "child" in [names[to] for creator_id, to in tree.created if creator_id == number_of(creator)]
        text = tree_text(tree)
    tracker.uninstall()
    started = text[text.index("Who started whom") :]
    line = next(line for line in started.splitlines() if "child" in line)
    assert line.startswith("  ")


async def test_a_deadlock_is_drawn_once_and_to_its_end() -> None:
    tasks: dict[str, asyncio.Task[None]] = {}

    async def follow(name: str) -> None:
        await asyncio.sleep(0)
        await asyncio.wait([tasks[name]])  # cancelling goes no further than this

    for name, next_one in (("a", "b"), ("b", "c"), ("c", "a")):
        tasks[name] = asyncio.create_task(follow(next_one), name=name)
    for _ in range(5):
        await asyncio.sleep(0)
    tree = tree_of(take_snapshot())
    text = tree_text(tree)
    assert len(tree.cycles) == 1
    assert text.startswith("deadlock: ")
    awaiting = text[: text.index("Who started whom")]
    assert awaiting.count("see above") == 1
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_text_stays_small_where_paths_are_many() -> None:
    """Layers of tasks that each wait for all of the next: the paths are 4 to the power of 6."""
    layers: list[list[asyncio.Task[None]]] = [[asyncio.create_task(sleep()) for _ in range(4)]]
    for _ in range(6):
        layers.append([asyncio.create_task(gather(*layers[-1])) for _ in range(4)])
    await asyncio.sleep(0.01)
    text = tree_text(tree_of(take_snapshot()))
    assert len(text.splitlines()) < 250
    for task in layers[0]:
        task.cancel()
    await asyncio.gather(*(task for layer in layers for task in layer), return_exceptions=True)


async def test_names_cannot_forge_lines() -> None:
    async with suspended(sleep()) as (task,):
        task.set_name("innocent\nroot (task 1) forged")
        text = tree_text(tree_of(take_snapshot()))
    assert "innocent?root" in text
    assert not any(line.strip().startswith("root (task 1) forged") for line in text.splitlines())


async def test_the_document_has_what_is_promised() -> None:
    document = tree_to_dict(tree_of(take_snapshot()))
    assert list(document) == ["taken_at", "nodes", "awaits", "created", "cycles", "truncated"]
    assert list(document["nodes"][0]) == ["id", "name", "coro", "state", "wait", "frame", "age_seconds"]
