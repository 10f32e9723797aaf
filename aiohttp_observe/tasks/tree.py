"""Who awaits whom, and who started whom: nodes and edges, of a snapshot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass

from ..jsonpieces import Long, encode, pieces
from .model import Frame, Resource, Served, Snapshot, TaskInfo
from .places import line_to_name

__all__ = ["Tree", "tree_lines", "tree_of", "tree_pieces"]

_MOST_HOLDERS = 5
"""Holders of a resource that each who waits there leads to: to all of them it might be millions of edges."""
_SLICE = 100
"""Nodes or edges in one piece of text."""


@dataclass(frozen=True, slots=True)
class Node:
    """One task; ``frame`` is the innermost of the service's own lines, else of all."""

    id: int
    name: str
    coro: str
    state: str
    wait: str | None
    frame: Frame | None
    age_seconds: float | None
    request: Served | None


@dataclass(frozen=True, slots=True)
class Tree:
    """``awaits`` has who waits, for whom, and through which resource (``""`` if directly).

    Where many hold a resource, those who wait there lead to the first five of them, and the
    words for it end with ``5 of its 100 holders``.  ``created`` has who started whom.  Both may
    have cycles; those of tasks that wait for each other and that nothing can wake are ``cycles``.
    """

    taken_at: str
    nodes: tuple[Node, ...]
    awaits: tuple[tuple[int, int, str], ...]
    created: tuple[tuple[int, int], ...]
    cycles: tuple[tuple[int, ...], ...]
    truncated: int


def tree_of(snapshot: Snapshot) -> Tree:
    """The tree of the tasks that a snapshot has, and of those in a deadlock."""
    tasks = snapshot.tasks + snapshot.stuck
    known = {task.id for task in tasks}
    ways = {resource.id: _way_through(resource, known) for resource in snapshot.resources}
    return Tree(
        taken_at=snapshot.taken_at,
        nodes=tuple(map(_node, tasks)),
        awaits=tuple(edge for edge in _awaits(tasks, ways) if known.issuperset(edge[:2])),
        created=tuple((task.created_by, task.id) for task in tasks if task.created_by in known),
        cycles=snapshot.deadlocks,
        truncated=snapshot.truncated,
    )


def _node(task: TaskInfo) -> Node:
    frame = line_to_name(task.frames)
    kind = None if task.wait is None else task.wait.kind
    return Node(task.id, task.name, task.coro, task.state, kind, frame, task.age_seconds, task.request)


_Way = tuple[Sequence[int], str]
"""The holders of a resource that those who wait there lead to, and the words for it."""


def _way_through(resource: Resource, known: Set[int]) -> _Way:
    """The first of the holders that are ``known``; a deadlock's cycle is by way of the very first."""
    holders = [task for task in resource.holders if task in known][:_MOST_HOLDERS]
    number = len(resource.holders)
    shown = "" if len(holders) == number else f", {len(holders)} of its {number} holders"
    return holders, f"{resource.type} {resource.id} ({resource.state}){shown}"


def _awaits(tasks: Iterable[TaskInfo], ways: Mapping[int, _Way]) -> Iterator[tuple[int, int, str]]:
    for task in tasks:
        if task.wait is None:
            continue
        for other in task.wait.on:
            yield task.id, other, ""
        holders, via = ways.get(task.wait.resource or 0, ((), ""))
        for other in holders:
            yield task.id, other, via


def tree_pieces(tree: Tree) -> Iterator[str]:
    """The document of ``/_tasks/tree`` as JSON text in pieces, after each of which a loop can have a turn."""
    return pieces(
        {
            "taken_at": tree.taken_at,
            "nodes": Long((encode(asdict(node)) for node in tree.nodes), _SLICE),
            "awaits": Long(map(encode, tree.awaits), _SLICE),
            "created": Long(map(encode, tree.created), _SLICE),
            "cycles": tree.cycles,
            "truncated": tree.truncated,
        }
    )


def tree_lines(tree: Tree) -> Iterator[str]:
    """Who awaits whom and who started whom, indented; a task that stands there already is only mentioned."""
    nodes = {node.id: node for node in tree.nodes}
    awaits: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    created: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for task, other, via in tree.awaits:
        awaits[task].append((other, via))
    for creator, task in tree.created:
        created[creator].append((task, ""))
    yield from (f"deadlock: {_path(cycle, nodes)}" for cycle in tree.cycles)
    yield from ("Who awaits whom", "===============")
    yield from _drawn(nodes, awaits)
    yield from ("", "Who started whom", "================")
    yield from _drawn(nodes, created)
    if tree.truncated:
        yield f"and {tree.truncated} tasks more"


def _path(cycle: Sequence[int], nodes: Mapping[int, Node]) -> str:
    return " → ".join(_title(nodes[task]) if task in nodes else str(task) for task in (*cycle, cycle[0]))


def _drawn(nodes: Mapping[int, Node], below: Mapping[int, Sequence[tuple[int, str]]]) -> Iterator[str]:
    """Draw each task once, under the first that leads to it; the roots are those that none leads to."""
    led_to = {task for tasks in below.values() for task, _ in tasks}
    drawn: set[int] = set()
    # Whatever is in a cycle, or below one, has no root: it comes last.
    for root in sorted(nodes, key=lambda task: (task in led_to, task not in below, task)):
        if root not in drawn:
            yield from _branch(root, nodes, below, drawn)


def _branch(
    root: int,
    nodes: Mapping[int, Node],
    below: Mapping[int, Sequence[tuple[int, str]]],
    drawn: set[int],
) -> Iterator[str]:
    # A stack of its own: a chain of tasks may be longer than Python's.
    waiting = [(root, "", 0)]
    while waiting:
        task, via, depth = waiting.pop()
        indent = "  " * min(depth, 40) + (f"[{via}] " if via else "")
        if task in drawn:
            yield f"{indent}{_title(nodes[task])}, see above"
            continue
        drawn.add(task)
        yield f"{indent}{_title(nodes[task])}{_facts(nodes[task])}"
        waiting += [(other, through, depth + 1) for other, through in reversed(below.get(task, ()))]


def _title(node: Node) -> str:
    name = "".join(sign if sign.isprintable() else "?" for sign in node.name)
    return f"{name} (task {node.id})"


def _facts(node: Node) -> str:
    age = "" if node.age_seconds is None else f", {node.age_seconds:.1f} s old"
    place = "" if node.frame is None else f" at {node.frame.short}"
    return f" {node.coro}: {node.wait or node.state}{place}{age}"
