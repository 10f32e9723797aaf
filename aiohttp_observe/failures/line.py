"""The log lines about failures that nobody handled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from itertools import islice
from types import FrameType
from typing import Any

from ..exchange import Exchange
from ..flood import OTHERS, Flood, more_like_it
from ..records import log
from ..tasks import Frame, coro_of, line_to_name, raised_in
from ..texts import qualified_name
from .context import birthplace, kind_of, task_of

__all__ = ["log_failure", "log_never_awaited", "log_raised", "made_at", "tell_left_out"]

logger = logging.getLogger("aiohttp_observe.failures")

_MOST_LEAVES = 20
_MOST_COUNTED = 10_000

_flood = Flood()


def log_failure(context: dict[str, Any], exchange: Exchange | None) -> None:
    """Log what a loop's exception handler was told."""
    task, exc = task_of(context), context.get("exception")
    fields: dict[str, Any] = {"kind": kind_of(context), **_ids(exchange)}
    coro = None if task is None else coro_of(task)
    if not _admit(fields, exc, raised_in(exc), coro):
        return
    message = str(context.get("message") or "Unhandled failure in the event loop")
    if task is not None:
        fields.update(_origin_of(task))
        message = f"{message}: {task.get_name()}{_created(fields)}"
    elif "handle" in context:
        message = message.partition(" <")[0]
    _log(message, exc, fields)


def log_raised(message: str, exc: BaseException | None, exchange: Exchange | None) -> None:
    """An exception in a thread, or where none can be raised."""
    fields: dict[str, Any] = {"kind": "other", **_ids(exchange)}
    if _admit(fields, exc, raised_in(exc), None):
        _log(message, exc, fields)


def log_never_awaited(coro: Any, dropped_in: FrameType, exchange: Exchange | None) -> None:
    """``dropped_in`` is the frame that let go of the coroutine: for a forgotten ``await``, the culprit."""
    name, made = qualified_name(coro), made_at(coro)
    fields: dict[str, Any] = {
        "kind": "never_awaited",
        "coro": name,
        "dropped_at": _place(dropped_in),
        **_ids(exchange),
    }
    if not _admit(fields, None, made or fields["dropped_at"], name):
        return
    if made is not None:
        fields["created_at"] = _in_words(made)
    code = getattr(coro, "cr_code", None)
    if code is not None:
        fields["defined_at"] = f"{code.co_filename}:{code.co_firstlineno}"
    _log(
        f"coroutine {name} was never awaited{_created(fields) or ', dropped at ' + fields['dropped_at']}",
        None,
        fields,
    )


def made_at(coro: Any) -> Frame | None:
    """The line that made a coroutine, if `sys.set_coroutine_origin_tracking_depth` had it remembered."""
    origin = [Frame(*place) for place in getattr(coro, "cr_origin", None) or ()]
    return line_to_name(origin)


def tell_left_out(*, at_once: bool = False) -> None:
    """Log how many lines were left out of a flood that is over; ``at_once`` even if it isn't."""
    for kind, left_out in _flood.subsided(at_once=at_once):
        if kind is OTHERS:
            kind = ("other", "failures of many kinds", None, None)
        what = " ".join(str(part) for part in (kind[1], kind[3]) if part)
        place = "" if kind[2] is None else f" in {_in_words(kind[2])}"
        fields = {"kind": kind[0], "left_out": left_out}
        _log(f"{kind[0]} {what}{place}", None, fields)


def _log(message: str, exc: BaseException | None, fields: dict[str, Any]) -> None:
    leaves = list(islice(_leaves_of(exc), _MOST_COUNTED)) if hasattr(exc, "exceptions") else []
    if leaves:
        fields["leaves"] = [_leaf(leaf) for leaf in leaves[:_MOST_LEAVES]]
        fields["leaves_left_out"] = len(leaves) - len(fields["leaves"])
    # Finished, as who gathers failures by the template would take all of them for one.
    message += more_like_it(fields.get("left_out", 0))
    log(logger, logging.ERROR, message, fields=fields, exc=exc)


def _leaves_of(exc: BaseException | None) -> Iterator[BaseException]:
    """The exceptions that an ``ExceptionGroup`` is made of, at any depth."""
    waiting: list[Any] = [exc]
    while waiting:
        each = waiting.pop()
        within = getattr(each, "exceptions", None)
        if isinstance(within, tuple):
            waiting.extend(reversed(within))
        elif isinstance(each, BaseException):
            yield each


def _leaf(exc: BaseException) -> str:
    place = raised_in(exc)
    return type(exc).__qualname__ if place is None else f"{type(exc).__qualname__} at {_in_words(place)}"


def _admit(fields: dict[str, Any], exc: Any, place: Any, coro: str | None) -> bool:
    """Whether a line is written; ``fields`` then says how many like it were left out before."""
    raised = None if exc is None else type(exc).__qualname__
    left_out = _flood.admit((fields["kind"], raised, place, coro))
    if left_out:
        fields["left_out"] = left_out
    return left_out is not None


def _in_words(place: Any) -> str:
    return place.whole if isinstance(place, Frame) else str(place)


def _origin_of(task: asyncio.Task[Any]) -> dict[str, str]:
    fields = {"task": task.get_name(), "coro": coro_of(task)}
    place = birthplace(task)
    if place is not None:
        fields["created_at"] = _in_words(place)
    return fields


def _created(fields: dict[str, Any]) -> str:
    return f", created at {fields['created_at']}" if "created_at" in fields else ""


def _ids(exchange: Exchange | None) -> dict[str, str]:
    return {} if exchange is None else exchange.ids


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
