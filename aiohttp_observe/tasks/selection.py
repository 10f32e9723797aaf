"""Which tasks a snapshot shows, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..options import check_choice, check_instance, check_positive_int
from .seen import Seen
from .tracker import number_of, operation_of

__all__ = ["SORTS", "STATES", "Selection"]

STATES = ("running", "scheduled", "waiting")
SORTS = ("age", "coro", "state", "wait")
_NEVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The filters of `take_snapshot`, which documents them; checked when built."""

    id: int | None = None
    search: str | None = None
    state: str | None = None
    wait: str | None = None
    coro: str | None = None
    request_id: str | None = None
    min_age: float | None = None
    sort: str = "age"
    limit: int = 1000
    frames: int = 3

    def __post_init__(self) -> None:
        if self.state is not None:
            check_choice("state", self.state, STATES)
        check_choice("sort", self.sort, SORTS)
        for name in ("wait", "coro", "request_id", "search"):
            check_instance(name, getattr(self, name), (str, type(None)))
        check_instance("id", self.id, (int, type(None)))
        check_instance("min_age", self.min_age, (int, float, type(None)))
        check_positive_int("limit", self.limit, "tasks")
        check_positive_int("frames", self.frames, "frames")

    @property
    def filters(self) -> bool:
        """Whether any task may be left out but by the limit."""
        wanted = (self.id, self.state, self.wait, self.coro, self.request_id, self.min_age, self.search)
        return any(value is not None for value in wanted)

    def takes(self, seen: Seen) -> bool:
        """Whether a task passes the filters."""
        return (
            (self.state is None or seen.state == self.state)
            and (self.wait is None or (seen.reading is not None and seen.reading.kind == self.wait))
            and (self.min_age is None or (seen.age is not None and seen.age >= self.min_age))
            and (self.request_id is None or _works_for(seen, self.request_id))
            and (self.coro is None or _matches(seen.coro, self.coro))
            and (self.id is None or number_of(seen.task) == self.id)
            and (self.search is None or _says(seen, self.search.lower().split()))
        )

    def key(self, seen: Seen) -> Any:
        """What to sort by; the oldest first among equals, those of unknown age last."""
        age = _NEVER if seen.age is None else -seen.age
        if self.sort == "age":
            return age
        if self.sort == "coro":
            return (seen.coro, age)
        if self.sort == "state":
            return (STATES.index(seen.state), age)
        return (seen.reading is None, "" if seen.reading is None else seen.reading.kind, age)


def _works_for(seen: Seen, request_id: str) -> bool:
    return seen.exchange is not None and seen.exchange.request_id == request_id


def _says(seen: Seen, words: Sequence[str]) -> bool:
    """Whether all the words are in what the console shows of a task."""
    text = " ".join(_shown(seen)).lower()
    return all(word in text for word in words)


def _shown(seen: Seen) -> Iterator[str]:
    yield from (str(number_of(seen.task)), seen.task.get_name(), seen.coro, operation_of(seen.task) or "")
    yield seen.state if seen.reading is None else f"{seen.reading.kind} {seen.reading.detail}"
    line = seen.line or next(iter(seen.frames), None)
    if line is not None:
        yield f"{line.file}:{line.line} {line.function}"
    if seen.exchange is not None:
        yield f"{seen.exchange.method} {seen.exchange.route} {seen.exchange.request_id}"
        yield seen.exchange.trace_id or ""


def _matches(coro: str, wanted: str) -> bool:
    """Whether ``wanted`` is part of the name or a glob pattern for all of it; after a ``!`` the contrary."""
    if wanted.startswith("!"):
        return not _matches(coro, wanted[1:])
    return fnmatchcase(coro, wanted) if any(mark in wanted for mark in "*?[") else wanted in coro
