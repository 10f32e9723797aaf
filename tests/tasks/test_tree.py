"""Who awaits whom and who started whom, as a graph and as text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import pytest

from aiohttp_observe.tasks import (
    Tasks,
    Tree,
    number_of,
    take_snapshot,
    tree_lines,
    tree_of,
    tree_pieces,
)

from .scenes import suspended


@pytest.fixture(autouse=True)
async def tracked() -> AsyncIterator[None]:
    """Tasks know who started them."""
    tracker = Tasks().install(asyncio.get_running_loop())
    yield
    tracker.uninstall()


def text_of(tree: Tree) -> str:
    return "".join(f"{line}\n" for line in tree_lines(tree))


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def inside(lock: Any) -> None:
    async with lock:
        await forever()


async def inside_both(outer: Any, inner: Any) -> None:
    async with outer, inner:
        pass


async def family() -> None:
    """A parent that awaits two children, one of which awaits its own."""
    rename("parent")
    await asyncio.gather(
        asyncio.create_task(forever(), name="first"), asyncio.create_task(elder(), name="second")
    )


async def elder() -> None:
    await asyncio.create_task(forever(), name="grandchild")


async def two_names_for_one() -> None:
    rename("parent")
    child = asyncio.create_task(forever(), name="child")
    await asyncio.gather(child, asyncio.create_task(awaits(child), name="other"))


async def awaits(task: asyncio.Task[Any]) -> None:
    await task


async def twice(lock: asyncio.Lock) -> None:
    rename("stuck")
    async with lock, lock:
        pass


def rename(name: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.set_name(name)


def tree(**filters: Any) -> Tree:
    return tree_of(take_snapshot(**filters))


def names(tree: Tree, edges: Any) -> set[tuple[str, str]]:
    known = {node.id: node.name for node in tree.nodes}
    return {(known[edge[0]], known[edge[1]]) for edge in edges}


def drawn(text: str, heading: str) -> list[str]:
    """The lines below ``heading``, as indent and name."""
    lines = text.split(f"{heading}\n{'=' * len(heading)}\n")[1].split("\n\n")[0].splitlines()
    return [f"{' ' * (len(line) - len(line.lstrip()))}{line.split(' (task')[0].lstrip()}" for line in lines]


async def test_edges_are_those_of_awaiting_and_of_starting() -> None:
    async with suspended(family()):
        found = tree()
    family_edges = {("parent", "first"), ("parent", "second"), ("second", "grandchild")}
    assert names(found, found.awaits) == family_edges
    assert names(found, found.created) >= family_edges
    assert {via for _, _, via in found.awaits} == {""}


async def test_a_waiter_leads_through_the_lock_to_its_holder() -> None:
    lock = asyncio.Lock()
    async with suspended(inside(lock), inside(lock)) as (holder, waiter):
        found = tree()
        text = text_of(found)
    ((task, other, via),) = found.awaits
    assert (task, other) == (number_of(waiter), number_of(holder))
    assert via == f"Lock {number_of(lock)} (locked)"
    assert f"  [{via}] {holder.get_name()} (task {number_of(holder)})" in text


async def test_thousands_that_wait_lead_to_a_few_of_many_holders() -> None:
    semaphore = asyncio.BoundedSemaphore(100)
    async with suspended(*(inside(semaphore) for _ in range(600))) as tasks:
        found = tree()
        text = text_of(found)
    waiters, holders, (via,) = (set(column) for column in zip(*found.awaits, strict=True))
    assert waiters == set(map(number_of, tasks[100:]))
    assert holders < set(map(number_of, tasks[:100]))
    assert len(found.awaits) == 5 * 500
    assert via == f"BoundedSemaphore {number_of(semaphore)} (0 free of 100), 5 of its 100 holders"
    assert text.count(f"[{via}] ") == 5 * 500


async def test_of_many_holders_the_one_in_a_deadlock_is_drawn() -> None:
    semaphore, lock = asyncio.BoundedSemaphore(20), asyncio.Lock()
    gate = asyncio.Event()

    async def crossing() -> None:
        async with lock:
            await gate.wait()
            async with semaphore:
                pass

    async with suspended(crossing(), *(inside_both(semaphore, lock) for _ in range(20))) as (first, *others):
        gate.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        found = tree()
    ((one, other),) = found.cycles
    assert {one, other} < set(map(number_of, (first, *others)))
    assert {(one, other), (other, one)} < {edge[:2] for edge in found.awaits}


async def test_the_text_indents_whom_is_awaited() -> None:
    async with suspended(family()):
        lines = drawn(text_of(tree(sort="age")), "Who awaits whom")
    start = lines.index("parent")
    assert lines[start : start + 4] == ["parent", "  first", "  second", "    grandchild"]


async def test_the_text_tells_the_line_the_wait_and_the_age() -> None:
    async with suspended(forever()) as (task,):
        text = text_of(tree())
    line, _ = (line for line in text.splitlines() if line.lstrip().startswith(task.get_name() + " "))
    assert f"{task.get_name()} (task {number_of(task)}) forever: future at test_tree.py:" in line
    assert line.endswith(" s old")


async def test_a_task_that_two_await_is_drawn_once() -> None:
    async with suspended(two_names_for_one()):
        lines = drawn(text_of(tree()), "Who awaits whom")
    start = lines.index("parent")
    assert [line.partition(",")[0] for line in lines[start : start + 4]] == [
        "parent",
        "  child",
        "  other",
        "    child",
    ]


async def test_a_deadlock_is_told_and_drawn_without_end() -> None:
    lock = asyncio.Lock()
    async with suspended(twice(lock), inside(lock)) as (stuck, _):
        found = tree()
        text = text_of(found)
    number = number_of(stuck)
    assert found.cycles == ((number,),)
    assert text.startswith(f"deadlock: stuck (task {number}) → stuck (task {number})\n")
    assert f"stuck (task {number}), see above" in text


async def test_a_ring_of_two_is_drawn() -> None:
    first, second = asyncio.Lock(), asyncio.Lock()

    async def crossing(one: asyncio.Lock, other: asyncio.Lock) -> None:
        async with one:
            await asyncio.sleep(0)
            async with other:
                pass

    async with suspended(crossing(first, second), crossing(second, first)) as (a, b):
        lines = drawn(text_of(tree()), "Who awaits whom")
    named = [line for line in lines if a.get_name() in line or b.get_name() in line]
    assert len(named) == 3  # either, and the first again


async def test_a_chain_longer_than_the_stack_is_drawn() -> None:
    async def link(number: int) -> None:
        await (asyncio.create_task(link(number - 1)) if number else forever())

    task = asyncio.create_task(link(1500))
    for _ in range(1510):
        await asyncio.sleep(0)
    text = text_of(tree(limit=5000))
    innermost = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    # The recursion of cancelling all from the outermost would be too deep for asyncio itself.
    for each in innermost:
        if not isinstance(getattr(each, "_fut_waiter", None), asyncio.Task):
            each.cancel()
    await asyncio.wait({task})
    assert text.count("link: task at") == 2 * 1500


async def test_names_cannot_forge_lines() -> None:
    async with suspended(forever()) as (task,):
        task.set_name("innocent\nWho awaits whom\x1b[31m")
        text = text_of(tree())
    assert "innocent?Who awaits whom?[31m (task " in text
    assert text.count("\nWho awaits whom\n") + text.startswith("Who awaits whom\n") == 1


async def test_the_limit_leaves_no_edge_without_its_nodes() -> None:
    async with suspended(family()):
        found = tree(limit=2)
        text = text_of(found)
    known = {node.id for node in found.nodes}
    assert len(known) == 2
    assert found.truncated == 3
    assert all(known.issuperset(edge[:2]) for edge in (*found.awaits, *found.created))
    assert text.endswith("and 3 tasks more\n")


async def test_the_document_is_plain() -> None:
    lock = asyncio.Lock()
    async with suspended(family(), inside(lock), inside(lock), twice(asyncio.Lock())):
        document = json.loads("".join(tree_pieces(tree())))
    assert set(document) == {"taken_at", "nodes", "awaits", "created", "cycles", "truncated"}
    assert set(document["nodes"][0]) == {
        "id", "name", "coro", "state", "wait", "frame", "age_seconds", "request"
    }  # fmt: skip
    assert all(len(edge) == 3 for edge in document["awaits"])


async def test_the_document_comes_in_pieces_of_bounded_size() -> None:
    lock = asyncio.Lock()
    async with suspended(*(inside(lock) for _ in range(350))):
        found = tree()
    pieces = list(tree_pieces(found))
    document = json.loads("".join(pieces))
    assert document["nodes"] == json.loads(json.dumps([asdict(node) for node in found.nodes]))
    assert document["awaits"] == json.loads(json.dumps(found.awaits))
    assert max(piece.count('"name"') for piece in pieces) == 100
    assert max(piece.count("[") for piece in pieces) <= 102


async def test_those_in_a_deadlock_are_named_however_many_tasks_are_older() -> None:
    async with suspended(*(asyncio.sleep(60) for _ in range(20)), twice(asyncio.Lock())) as tasks:
        number = number_of(tasks[-1])
        tasks[-1].set_name("stuck")
        found = tree(limit=5, sort="wait")
        assert len(take_snapshot(limit=5).tasks) == 5
    assert found.cycles == ((number,),)
    assert {node.name for node in found.nodes if node.id == number} == {"stuck"}
