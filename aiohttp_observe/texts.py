"""Texts as they are shown: names that are too long, bytes that aren't Unicode, moments."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from math import floor
from time import perf_counter, time
from typing import Any

__all__ = ["LONGEST_TITLE", "counted", "qualified_name", "timestamp", "timestamp_of", "title", "valid"]

LONGEST_TITLE = 256
"""Characters of the name of a task or operation that are shown."""
_MILLISECONDS = [f".{milliseconds:03d}Z" for milliseconds in range(1000)]


def title(name: str) -> str:
    """The name of a task or operation as it is shown: cut if it is long."""
    return name if len(name) <= LONGEST_TITLE else f"{name[:LONGEST_TITLE]}…"


def qualified_name(work: Any) -> str:
    """The name of a coroutine or function, within a ``partial`` too; else of the class of ``work``."""
    function = getattr(work, "func", work)
    return str(getattr(function, "__qualname__", None) or type(work).__qualname__)


def counted(number: int, what: str) -> str:
    """A number of things in words: ``1 task``, ``2 tasks``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def valid(text: str) -> str:
    """``text`` with question marks for what isn't Unicode: aiohttp keeps such bytes as lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def timestamp(moment: float) -> str:
    """A `time.time` as RFC 3339 in UTC, with milliseconds."""
    seconds = floor(moment)
    return _second(seconds) + _MILLISECONDS[floor((moment - seconds) * 1000)]


def timestamp_of(counter: float) -> str:
    """The timestamp of when `time.perf_counter` was at ``counter``, by the clock as it is set now."""
    return timestamp(time() - perf_counter() + counter)


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
