"""Tasks, live: what every task of a loop does, what it waits for, and where it came from.

Works without aiohttp, on a loop of asyncio or uvloop, and from another thread while that
loop is blocked.

==============  ==================================================================
``model``       the picture: `Snapshot` and what it is made of
``snapshot``    `take_snapshot`, `snapshot_without_blocking`, `count_tasks`, `find_tasks`
``selection``   the filters
``seen``        one task, examined
``chain``       the await chain: coroutines down to the innermost
``managers``    the context managers whose ``async with`` block it is in
``stacks``      what tasks at the same places have in common
``waits``       the kinds of waiting, `register_wait_kind`
``edges``       who waits for whom
``resources``   locks, queues, ...: holders and waiters
``deadlock``    cycles
``timers``      what a timer may still end
``holding``     for how long a lock has been held
``groups``      tasks by where they stand
``growth``      crowds that grow: leaks
``unretrieved`` failed tasks whose outcome nobody has asked for
``verdict``     what stands out, in sentences
``warnings``    what is odd about single tasks
``forgotten``   whether anybody can still wake a task
``tree``        who awaits whom, and who started whom
``rows``        a task as the documents show it
``render``      JSON
``readers``     who could still take from a full queue, or give back a permit
``cancelling``  cancels tasks, and those they wait for
``places``      from code to lines, and whose code it is
``threads``     frames of other threads
``tracker``     `Tasks`: when, where, by whom and for which request a task was created
``drive``       drives a request's coroutine by hand, timing it
``suspension``  what single tasks are, or were, suspended for
==============  ==================================================================
"""

from .cancelling import cancel
from .drive import drive
from .forgotten import is_forgotten
from .holding import note_contention
from .model import (
    Blocked,
    CoroCount,
    Finding,
    Frame,
    Group,
    LoopState,
    ProcessInfo,
    Resource,
    Served,
    Snapshot,
    Summary,
    TaskInfo,
    Wait,
)
from .places import count_as_own, is_library, line_to_name, place_of, raised_in
from .render import findings_to_dict, json_pieces, resource_pieces, to_dict
from .snapshot import count_tasks, find_tasks, matching_tasks, snapshot_without_blocking, take_snapshot
from .suspension import suspended_for, waits_for, whereabouts
from .threads import caller_of, innermost_frames
from .tracker import (
    Birth,
    Tasks,
    TaskTracker,
    birth_of,
    coro_of,
    coroutine_of,
    exchange_of,
    mark_request_task,
    name_operation,
    number_of,
    running_task,
    title_of,
)
from .tree import Tree, tree_lines, tree_of, tree_pieces
from .verdict import was_blocked
from .waits import register_wait_kind

__all__ = [
    "Birth",
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
    "TaskTracker",
    "Tasks",
    "Tree",
    "Wait",
    "birth_of",
    "caller_of",
    "cancel",
    "coro_of",
    "coroutine_of",
    "count_as_own",
    "count_tasks",
    "drive",
    "exchange_of",
    "find_tasks",
    "findings_to_dict",
    "innermost_frames",
    "is_forgotten",
    "is_library",
    "json_pieces",
    "line_to_name",
    "mark_request_task",
    "matching_tasks",
    "name_operation",
    "note_contention",
    "number_of",
    "place_of",
    "raised_in",
    "register_wait_kind",
    "resource_pieces",
    "running_task",
    "snapshot_without_blocking",
    "suspended_for",
    "take_snapshot",
    "title_of",
    "to_dict",
    "tree_lines",
    "tree_of",
    "tree_pieces",
    "waits_for",
    "was_blocked",
    "whereabouts",
]
