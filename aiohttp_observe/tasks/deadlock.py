"""Cycles of tasks that wait for each other and that nothing else can wake."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

__all__ = ["Need", "cycles"]

_SLICE = 2000


class Need(NamedTuple):
    """The tasks that a task waits for, by id: for any one of them, or for all."""

    tasks: Sequence[int]
    any_of: bool


def cycles(needs: Mapping[int, Need]) -> Generator[None, None, list[tuple[int, ...]]]:
    """Find the cycles, each in the order of waiting, one for each group of tasks that is stuck; in slices.

    A task without a need can go on by itself, and so can, in turn, those that wait for it.
    """
    stuck = yield from _stuck(needs)
    following = {task: next(other for other in needs[task].tasks if other in stuck) for task in stuck}
    return _cycles_along(following)


def _stuck(needs: Mapping[int, Need]) -> Generator[None, None, set[int]]:
    waiting_for: defaultdict[int, list[int]] = defaultdict(list)
    unmet = {}
    for count, (task, need) in enumerate(needs.items(), 1):
        if count % _SLICE == 0:
            yield
        for other in need.tasks:
            waiting_for[other].append(task)
        # A wait for all is hopeless as long as one of them is: so it ends when none is left.
        unmet[task] = 1 if need.any_of else len(need.tasks)
    stuck = {task for task in needs if unmet[task]}
    free = [task for task in waiting_for if task not in stuck]
    count = 0
    while free:
        count += 1
        if count % _SLICE == 0:
            yield
        for task in waiting_for[free.pop()]:
            unmet[task] -= 1
            if unmet[task] == 0:
                stuck.discard(task)
                free.append(task)
    return stuck


def _cycles_along(following: Mapping[int, int]) -> list[tuple[int, ...]]:
    found = []
    done: set[int] = set()
    for start in sorted(following):
        path: dict[int, None] = {}
        task = start
        while task not in done and task not in path:
            path[task] = None
            task = following[task]
        if task in path:
            order = list(path)
            found.append(tuple(order[order.index(task) :]))
        done.update(path)
    return found
