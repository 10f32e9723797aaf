"""Tasks, live: what every task of a loop does, what it waits for, and where it came from.

Works without aiohttp, on a loop of asyncio or uvloop, and from another thread while that
loop is blocked.

==============  ==================================================================
``model``       the picture: `Snapshot` and what it is made of
``snapshot``    `take_snapshot`, `snapshot_without_blocking`, `count_tasks`, `find_tasks`
``selection``   the filters
``seen``        one task, examined
``chain``       the await chain: coroutines down to the innermost
``stacks``      what tasks at the same places have in common
``waits``       the kinds of waiting, `register_wait_kind`
``edges``       who waits for whom
``resources``   locks, queues, ...: holders and waiters
``deadlock``    cycles
``verdict``     what stands out, in sentences
``render``      JSON
``tracker``     `Tasks`: when, where, by whom and for which request a task was created
``drive``       drives a request's coroutine by hand, timing it
``suspension``  what single tasks are, or were, suspended for
==============  ==================================================================
"""

from .drive import SHORT, drive
from .model import (
    Blocked,
    CoroCount,
    Frame,
    LoopState,
    ProcessInfo,
    Resource,
    Served,
    Snapshot,
    Summary,
    TaskInfo,
    Wait,
)
from .places import stack_of
from .render import json_pieces, to_dict, to_json
from .snapshot import count_tasks, find_task, find_tasks, snapshot_without_blocking, take_snapshot
from .suspension import suspended_for, waits_for
from .tracker import (
    Birth,
    Tasks,
    TaskTracker,
    adopt,
    birth_of,
    exchange_of,
    name_operation,
    number_of,
)
from .waits import register_wait_kind

__all__ = [
    "SHORT",
    "Birth",
    "Blocked",
    "CoroCount",
    "Frame",
    "LoopState",
    "ProcessInfo",
    "Resource",
    "Served",
    "Snapshot",
    "Summary",
    "TaskInfo",
    "TaskTracker",
    "Tasks",
    "Wait",
    "adopt",
    "birth_of",
    "count_tasks",
    "drive",
    "exchange_of",
    "find_task",
    "find_tasks",
    "json_pieces",
    "name_operation",
    "number_of",
    "register_wait_kind",
    "snapshot_without_blocking",
    "stack_of",
    "suspended_for",
    "take_snapshot",
    "to_dict",
    "to_json",
    "waits_for",
]
