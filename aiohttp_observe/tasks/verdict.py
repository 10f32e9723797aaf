"""What a colleague would say after a look at the tasks, worst first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath

from .model import Blocked, LoopState, Resource

__all__ = ["verdict"]

_CROWD = 10
"""Tasks waiting at one lock or semaphore that are worth a sentence."""


def verdict(
    loop: LoopState,
    resources: Sequence[Resource],
    deadlocks: Sequence[Sequence[int]],
    name_of: Callable[[int], str],
) -> tuple[str, ...]:
    """The sentences; ``name_of`` gives the name of a task that holds or waits, by id."""
    return (
        *_blocked(loop.blocked_now),
        *(_deadlock(cycle, name_of) for cycle in deadlocks),
        *(_crowd(resource, name_of) for resource in resources if _is_crowded(resource)),
    )


def _blocked(blocked: Blocked | None) -> Iterator[str]:
    if blocked is not None:
        place = next((f" in {PurePath(frame.file).name}:{frame.line}" for frame in blocked.stack), "")
        request = f" by request {blocked.request_id}" if blocked.request_id else ""
        yield f"the loop has been blocked for {blocked.seconds:.1f} s{place}{request}"


def _deadlock(cycle: Sequence[int], name_of: Callable[[int], str]) -> str:
    return "deadlock: " + " → ".join(name_of(task) for task in (*cycle, cycle[0]))


def _is_crowded(resource: Resource) -> bool:
    return resource.type in ("Lock", "Semaphore", "BoundedSemaphore") and len(resource.waiters) >= _CROWD


def _crowd(resource: Resource, name_of: Callable[[int], str]) -> str:
    holders = ", ".join(name_of(task) for task in resource.holders[:3])
    held = f", held by {holders}" if holders else ""
    return f"{len(resource.waiters)} tasks wait for {resource.type} ({resource.detail}){held}"
