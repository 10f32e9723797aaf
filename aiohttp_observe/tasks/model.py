"""The picture of a loop's tasks, as plain dataclasses.

Field for field the JSON of ``/_tasks``; `aiohttp_observe.tasks.render` turns one into the other.
Nothing here refers to a task, frame or request.  All are frozen but those made for every task,
which take six times as long to make if they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

__all__ = [
    "Blocked",
    "CoroCount",
    "Finding",
    "Frame",
    "Group",
    "LoopState",
    "ProcessInfo",
    "Resource",
    "Served",
    "Snapshot",
    "Summary",
    "TaskInfo",
    "Wait",
]


@dataclass(frozen=True, slots=True)
class Frame:
    """A place in the code: ``function`` is the code's plain name, as tracebacks show it."""

    file: str
    line: int
    function: str

    @property
    def short(self) -> str:
        """The place in short: ``db.py:31``."""
        return f"{PurePath(self.file).name}:{self.line}"

    @property
    def whole(self) -> str:
        """All of it: ``/srv/report.py:88 in render``."""
        return f"{self.file}:{self.line} in {self.function}"

    @property
    def named(self) -> str:
        """The place in words: ``render (report.py:88)``."""
        return f"{self.function} ({self.short})"


@dataclass(slots=True)
class Wait:
    """What a waiting task waits for.

    ``kind``      the outermost thing the task's own code asked for, a metric label
    ``detail``    the chain from there down to the innermost: ``wait_for → Event.wait``
    ``on``        ids of the tasks it waits for
    ``resource``  id of the lock, queue, ... it waits at, one of `Snapshot.resources`
    """

    kind: str
    detail: str
    on: tuple[int, ...] = ()
    resource: int | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """The request that a task works for."""

    id: str
    method: str
    route: str


@dataclass(slots=True)
class TaskInfo:
    """One task.

    ``state``             ``running``, ``scheduled`` (ready, not yet run) or ``waiting``
    ``frames``            the await chain, innermost first, cut to the number asked for
    ``age_seconds``       since creation, ``None`` for a task made before tracking began
    ``created_at_frame``  the place outside asyncio that created it
    ``created_by``        id of the task that created it, while that one is alive
    ``operation``         name of the `operation` it is in
    ``orphan``            its request has finished and nothing supervises it
    ``warnings``          what is odd about it, each with its evidence
    """

    id: int
    name: str
    coro: str
    state: str
    wait: Wait | None
    frames: tuple[Frame, ...]
    age_seconds: float | None
    created_at_frame: Frame | None
    created_by: int | None
    operation: str | None
    request: Served | None
    trace_id: str | None
    orphan: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CoroCount:
    """How many tasks run the same coroutine function, and the age of the oldest."""

    coro: str
    count: int
    oldest_seconds: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts over every task that passed the filters, those left out by the limit included."""

    total: int
    by_state: dict[str, int]
    waiting: dict[str, int]
    by_coro: tuple[CoroCount, ...]


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that tasks wait at: ids of those inside its ``async with`` and of those waiting.

    ``state``         whether it is open: ``locked``, ``2 free of 5``, ``3 of 10``
    ``frame``         a line at which it is waited for
    ``held_seconds``  for how long it has been held by the same task, at least; ``None`` if unknown
    """

    id: int
    type: str
    detail: str
    holders: tuple[int, ...]
    waiters: tuple[int, ...]
    state: str
    frame: Frame | None
    held_seconds: float | None


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks that stand at the same line.

    ``frame``    the innermost of the service's own lines, else the innermost of all
    ``wait``     the kind of waiting, ``None`` if they don't wait
    ``example``  the id of one of them, the oldest
    """

    frame: Frame | None
    coro: str
    wait: str | None
    detail: str
    count: int
    oldest_seconds: float | None
    example: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence of the verdict, and its evidence: tasks, a resource, a line.

    ``kind`` is ``blocked``, ``deadlock``, ``held``, ``executor``, ``crowd``, ``failed`` or ``leak``; the
    documents of an application add ``worker``, ``failing``, ``abandoned``, ``busy``, ``log``, and ``blocked``
    for what is over: see docs/warnings.rst.
    """

    sentence: str
    kind: str
    tasks: tuple[int, ...] = ()
    resource: int | None = None
    frame: Frame | None = None


@dataclass(frozen=True, slots=True)
class Blocked:
    """A stretch for which one task has been holding the loop; ``stack`` is innermost first.

    ``frame`` is the line to name, the innermost of the service's own; no part of the JSON.
    """

    seconds: float
    task: int | None
    request_id: str | None
    trace_id: str | None
    stack: tuple[Frame, ...]
    frame: Frame | None = None


@dataclass(frozen=True, slots=True)
class LoopState:
    """What a loop watch knows of the loop; all zero without one.

    ``utilization`` is the share of time the loop's thread was on a CPU, 0 to 1.
    """

    lag_seconds: float = 0.0
    utilization: float = 0.0
    blocked_now: Blocked | None = None


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """The process: ``loop`` is ``asyncio`` or ``uvloop``, uptime counts from the package's import."""

    pid: int
    python: str
    loop: str
    uptime_seconds: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The tasks of one loop at one moment, ``taken_at`` (RFC 3339, UTC).

    ``deadlocks`` are cycles of task ids, each waiting for the next and the last for the first.
    ``findings`` is what stands out, worst first; ``verdict`` are their sentences.
    ``groups`` are the tasks by where they wait, the largest first, at most 50.
    ``work`` counts all tasks, whatever the filters, but those that do nothing but serve a
    connection, of which there are ``connections``; ``stuck`` are those in a deadlock that the limit
    left out.  These three are no part of the JSON.
    ``truncated`` is the number of tasks that passed the filters and were left out by the limit.
    """

    taken_at: str
    process: ProcessInfo
    loop: LoopState
    summary: Summary
    tasks: tuple[TaskInfo, ...]
    resources: tuple[Resource, ...]
    deadlocks: tuple[tuple[int, ...], ...]
    findings: tuple[Finding, ...]
    groups: tuple[Group, ...]
    truncated: int
    work: Summary
    connections: int
    stuck: tuple[TaskInfo, ...]

    @property
    def verdict(self) -> tuple[str, ...]:
        """The sentences of the findings."""
        return tuple(finding.sentence for finding in self.findings)
