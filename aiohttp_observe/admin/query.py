"""The query parameters of the console; what can't be raises ``ValueError`` naming it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any

__all__ = ["FILTERS", "MOST_FRAMES", "check_known", "chosen", "seconds_of"]

MOST_FRAMES = 100
_MOST_TASKS = 100_000
_MOST_SECONDS = 60.0
_MOST_OF_A_NAME = 40
_FORMATS = ("html", "json")


def _seconds(text: str) -> float:
    number = float(text)
    if not text.isascii() or "_" in text or not isfinite(number) or number < 0:
        raise ValueError
    return number


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():  # int() takes every script's digits, and underscores
        raise ValueError
    return int(text)


_TAKES: dict[str, tuple[Callable[[str], Any], str]] = {
    "state": (str, "a state"),
    "wait": (str, "a wait kind"),
    "coro": (str, "part of a name"),
    "request_id": (str, "a request id"),
    "search": (str, "words"),
    "min_age": (_seconds, "a number of seconds"),
    "limit": (_whole, "a whole number"),
    "frames": (_whole, "a whole number"),
    "sort": (str, "an order"),
}
FILTERS = ("state", "wait", "coro", "request_id", "search", "min_age")
"""Those that choose among the tasks; the others say how to show them."""


def chosen(query: Mapping[str, str]) -> dict[str, Any]:
    """The filters of `take_snapshot` that a query has."""
    check_known(query, _TAKES)
    filters = {name: _converted(name, query[name]) for name in _TAKES if name in query}
    if filters.get("frames", 0) > MOST_FRAMES or filters.get("limit", 0) > _MOST_TASKS:
        raise ValueError(f"at most {MOST_FRAMES} frames of {_MOST_TASKS} tasks")
    return filters


def check_known(query: Mapping[str, str], known: Iterable[str], *more_formats: str) -> None:
    """Nothing is asked for but what is ``known`` here, and the format: a typo must not show everything."""
    names = [*known, "format"]
    for name in query:
        if name not in names:
            raise ValueError(
                f"there is no parameter {name[:_MOST_OF_A_NAME]!r} here, but there are {', '.join(names)}"
            )
    formats = (*_FORMATS, *more_formats)
    if query.get("format", "json") not in formats:
        raise ValueError(f"format takes {', '.join(formats)}")


def _converted(name: str, value: str) -> Any:
    convert, takes = _TAKES[name]
    try:
        return convert(value)
    except ValueError:
        raise ValueError(f"{name} takes {takes}") from None


def seconds_of(query: Mapping[str, str]) -> float:
    """For how long to look; 5 unless told."""
    try:
        seconds = _seconds(query.get("seconds", "5"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise ValueError(f"seconds takes a number above 0, {_MOST_SECONDS:g} at most")
    return seconds
