"""What a task remembers of its birth: when, where, by whom, and for which request.

Kept as attributes of the task itself, so they die with it.  This runs for every task made on
the loop, so it keeps a plain tuple, which is read into a `Birth` only when somebody asks.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from time import perf_counter
from types import CodeType, FrameType
from typing import Any
from weakref import WeakKeyDictionary, ref

from ..exchange import CURRENT, Exchange
from ..texts import qualified_name, title
from .model import Frame
from .places import is_library, place_of

__all__ = [
    "Birth",
    "TaskTracker",
    "Tasks",
    "age_of",
    "birth_of",
    "coro_of",
    "coroutine_of",
    "exchange_of",
    "is_made_by_wait_for",
    "is_request_task",
    "mark_request_task",
    "name_operation",
    "number_of",
    "operation_of",
    "running_task",
    "title_of",
]

TaskFactory = Callable[..., Any]

_WAIT_FOR = asyncio.wait_for.__code__
_RUNS_THE_LOOP = (asyncio.events.__file__, asyncio.runners.__file__)
"""Files between the code that made a task and the code that started the loop."""

_SERVER = ("aiohttp", "web_protocol.py")
_MOST_FILES = 10_000

_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Has every task remember when, where and by whom it was created.  It takes no options."""

    def install(self, loop: asyncio.AbstractEventLoop) -> TaskTracker:
        """Track the tasks of ``loop`` until the tracker's ``uninstall``; call either in the loop's thread."""
        return TaskTracker(loop)


@dataclass(frozen=True, slots=True)
class Birth:
    """How a task came about: ``created`` in `time.perf_counter` seconds, ``creator`` while it lives."""

    created: float
    place: Frame
    creator: asyncio.Task[Any] | None
    exchange: Exchange | None

    @property
    def age(self) -> float:
        """Seconds since the task was created."""
        return perf_counter() - self.created


class TaskTracker:
    """Tracks the tasks of one loop through its task factory, in front of the one that is set.

    Any number of trackers share a loop at the cost of one.  The last ``uninstall`` sets the
    previous factory again; if somebody has put another one in front of ours meanwhile, ours
    stays behind it and only passes on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: asyncio.AbstractEventLoop | None = loop
        trackers, stop = _tracked.get(loop) or (0, _track(loop))
        _tracked[loop] = trackers + 1, stop

    def uninstall(self) -> None:
        """Stop tracking, unless another tracker of this loop goes on; a second call has no effect."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        trackers, stop = _tracked.pop(loop)
        if trackers > 1:
            _tracked[loop] = trackers - 1, stop
        else:
            stop(loop)


_Stop = Callable[[asyncio.AbstractEventLoop], None]

_tracked: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[int, _Stop]] = WeakKeyDictionary()
"""The number of trackers of each loop, and how to stop."""


def _track(loop: asyncio.AbstractEventLoop) -> _Stop:
    """Set a task factory that tracks in front of the one that is set; returns how to undo that.

    It takes any arguments: aiohttp on Python 3.14 passes ``eager_start``.  Nothing here keeps the
    loop alive, as that would keep itself tracked.
    """
    previous = loop.get_task_factory()
    tracking = True
    packages: dict[str, bool] = {}
    inside, create_task = _files_inside(), asyncio.create_task.__code__
    # Where loop.create_task is written in Python it is the caller, and needn't be looked at.
    nearest = 2 if isinstance(loop, asyncio.BaseEventLoop) else 1
    get_frame, now, current, current_exchange = sys._getframe, perf_counter, _current_task, CURRENT.get
    new_task, chained = _Task, previous is not None
    make: TaskFactory = previous or _make_task

    def create(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        if not tracking:
            return make(loop, coro, **kwargs)
        frame: Any = get_frame(nearest)
        code = via = frame.f_code
        if code is create_task:  # nearly always, and then from outside
            frame = frame.f_back
            code = frame.f_code
        else:
            while code.co_filename in inside and frame.f_back is not None:
                via = code
                frame = frame.f_back
                code = frame.f_code
        try:
            installed = packages[code.co_filename]
        except KeyError:
            installed = _note_file(packages, code.co_filename)
        if installed:
            frame = _beyond_packages(frame)
            code = frame.f_code
        creator = current(loop)
        context = kwargs.get("context") if kwargs else None
        exchange = current_exchange() if context is None else context.get(CURRENT)
        born = (now(), code, frame.f_lasti, via, creator and ref(creator), exchange)
        task: Any = make(loop, coro, **kwargs) if kwargs or chained else new_task(coro, loop=loop)
        try:  # noqa: SIM105 - suppress() costs as much as all of this
            task._observe_birth = born
        except AttributeError:  # a task class of somebody's own that takes no attributes
            pass
        return task

    def stop(loop: asyncio.AbstractEventLoop) -> None:
        nonlocal tracking
        tracking = False
        if loop.get_task_factory() is create:
            loop.set_task_factory(previous)

    loop.set_task_factory(create)
    return stop


def _note_file(packages: dict[str, bool], file: str) -> bool:
    """Whether tasks made in ``file`` are made on behalf of who called it, as in an installed package.

    Not so aiohttp's server, which nobody has called.
    """
    is_servers = file in _RUNS_THE_LOOP or PurePath(file).parts[-2:] == _SERVER
    installed = is_library(file) and not is_servers
    if len(packages) < _MOST_FILES:
        packages[file] = installed
    return installed


def _beyond_packages(frame: FrameType) -> FrameType:
    """The nearest caller that is the service's own code; ``frame`` itself if none is."""
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_filename not in _RUNS_THE_LOOP:
        if not is_library(caller.f_code.co_filename):
            return caller
        caller = caller.f_back
    return frame


def _task_class() -> type[asyncio.Task[Any]]:
    if not (3, 13) <= sys.version_info < (3, 13, 3):
        return asyncio.Task

    class Named(asyncio.Task[Any]):
        """Keeps its name where ``create_task`` calls every factory's unnamed task "None".

        See https://github.com/python/cpython/issues/130033.
        """

        __slots__ = ()

        def set_name(self, value: object) -> None:
            if value is not None:
                super().set_name(value)

    Named.__name__ = "Task"  # asyncio's messages tell it
    return Named


_Task = _task_class()


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
    return _Task(coro, loop=loop, **kwargs)


if sys.version_info >= (3, 12):
    _current_task = asyncio.current_task
else:  # the same, without the checks it makes in Python
    _current_task = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]


def _files_inside() -> frozenset[str]:
    """The source files that are nobody's idea of where a task was created: asyncio's and ours."""
    ours = __name__.partition(".")[0]
    return frozenset(
        file
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in ("asyncio", ours)
        and (file := getattr(module, "__file__", None)) not in (None, *_RUNS_THE_LOOP)
    )


def birth_of(
    task: asyncio.Future[Any], place_of: Callable[[CodeType, int], Frame] = place_of
) -> Birth | None:
    """How ``task`` came about, ``None`` if it was made while its loop was not tracked.

    ``place_of`` may remember places, for who asks about many tasks.
    """
    born = getattr(task, "_observe_birth", None)
    if born is None:
        return None
    created, code, lasti, via, creator, exchange = born
    if code.co_filename in _RUNS_THE_LOOP:  # a callback of asyncio's own made it
        code, lasti = via, -1
    return Birth(created, place_of(code, lasti), creator and creator(), exchange)


def age_of(task: asyncio.Future[Any], now: float | None = None) -> float | None:
    """Seconds from when ``task`` was made to ``now``, if it was tracked or is a request's own."""
    if now is None:
        now = perf_counter()
    born = getattr(task, "_observe_birth", None)
    if born is not None:
        return now - float(born[0])
    own: Exchange | None = getattr(task, "_observe_exchange", None)
    return None if own is None else now - own.started


def is_made_by_wait_for(task: asyncio.Task[Any]) -> bool:
    """Whether ``asyncio.wait_for`` made ``task``, as far as is known: it does up to Python 3.11."""
    born = getattr(task, "_observe_birth", None)
    return born is None or born[3] is _WAIT_FOR


def running_task() -> asyncio.Task[Any] | None:
    """The task that runs here; ``None`` elsewhere than on a loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def mark_request_task(task: asyncio.Future[Any], exchange: Exchange) -> None:
    """Mark ``task`` as the own task of the request ``exchange``."""
    try:  # noqa: SIM105 - suppress() costs ten times as much
        task._observe_exchange = exchange  # type: ignore[attr-defined]
    except AttributeError:  # a task class of somebody's own that takes no attributes
        pass


def is_request_task(task: asyncio.Future[Any]) -> bool:
    """Whether ``task`` is a request's own."""
    return hasattr(task, "_observe_exchange")


def exchange_of(task: asyncio.Future[Any]) -> Exchange | None:
    """The request that ``task`` works for: its own, or the one it was created in."""
    own: Exchange | None = getattr(task, "_observe_exchange", None)
    if own is not None:
        return own
    born = getattr(task, "_observe_birth", None)
    if born is not None:
        inherited: Exchange | None = born[-1]
        return inherited
    get_context = getattr(task, "get_context", None)  # from Python 3.12
    return None if get_context is None else get_context().get(CURRENT)


def name_operation(task: asyncio.Future[Any], name: str | None) -> str | None:
    """Show ``task`` as being in the operation ``name``; returns the name shown before."""
    previous = operation_of(task)
    with suppress(AttributeError):  # a task class of somebody's own that takes no attributes
        task._observe_operation = name  # type: ignore[attr-defined]
    return previous


def operation_of(task: asyncio.Future[Any]) -> str | None:
    """The name of the operation that ``task`` is in."""
    name: str | None = getattr(task, "_observe_operation", None)
    return name


def title_of(task: asyncio.Task[Any]) -> str:
    """A task's name as it is shown."""
    return title(task.get_name())


def _coroutine_at_hand(task: asyncio.Task[Any]) -> Any:
    return getattr(task, "_coro", None)


# Python 3.12's crashes for a task that has ended as it was started, eagerly.
# See https://github.com/python/cpython/issues/122332.
coroutine_of: Callable[[asyncio.Task[Any]], Any] = (
    _coroutine_at_hand if sys.version_info[:2] == (3, 12) else operator.methodcaller("get_coro")
)
"""The coroutine of a task."""


def coro_of(task: asyncio.Task[Any]) -> str:
    """The qualified name of a task's coroutine."""
    return qualified_name(coroutine_of(task))


def number_of(thing: Any) -> int:
    """The small number that stands for a task or resource as long as it lives, given at first sight."""
    number: int = getattr(thing, "_observe_number", 0)
    if type(number) is not int or not number:  # what stands in for another may have any attribute
        number = next(_numbers)
        try:
            thing._observe_number = number
        except Exception:  # of a class that takes no attributes: unique all the same
            return id(thing)
    return number
