"""The context managers in whose ``async with`` block a suspended coroutine or generator is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import AsyncGeneratorType, MethodType
from typing import Any

from .chain import held_by

__all__ = ["EXIT_IS_APART", "entered_by", "managers_in"]

EXIT_IS_APART = sys.version_info >= (3, 14)
"""Whether ``__aexit__`` and its object lie on the evaluation stack apart, not as a bound method."""


def managers_in(held: Sequence[Any]) -> list[Any]:
    """The context managers whose ``__aexit__`` a suspended frame holds, to call it later; outermost first."""
    found = []
    for index, each in enumerate(held):
        if type(each) is MethodType:
            if each.__name__ == "__aexit__":
                found.append(each.__self__)
        elif EXIT_IS_APART and getattr(each, "__name__", None) == "__aexit__":
            manager = held[index + 1] if index + 1 < len(held) else None
            if getattr(type(manager), "__aexit__", None) is each:
                found.append(manager)
    return found


def entered_by(awaitable: Any, apart: Sequence[Any] = (), depth: int = 8) -> list[Any]:
    """The context managers in whose ``async with`` blocks a suspended awaitable is, outermost first.

    A suspended frame keeps the ``__aexit__`` of each on its evaluation stack: see `managers_in`.  Those
    entered on its behalf count as well: by an ``AsyncExitStack``, by an async context manager
    written as a generator, and by an async generator it iterates over; ``depth`` levels of them.
    Generators that are ``apart`` are asked for themselves: they may be about to enter one.
    """
    managers = []
    held = held_by(awaitable)
    for manager in managers_in(held):
        managers.append(manager)
        managers += _entered_for(manager, apart, depth)
    for each in held:
        if type(each) is AsyncGeneratorType and depth and each not in apart:
            managers += entered_by(each, apart, depth - 1)
    return managers


def _entered_for(manager: Any, apart: Sequence[Any], depth: int) -> list[Any]:
    if not depth:
        return []
    if isinstance(manager, AsyncExitStack):
        within = [getattr(leave, "__self__", None) for _, leave in list(manager._exit_callbacks)]  # type: ignore[attr-defined]
        return [each for it in within for each in (it, *_entered_for(it, apart, depth - 1))]
    gen = getattr(manager, "gen", None)
    return entered_by(gen, apart, depth - 1) if type(gen) is AsyncGeneratorType and gen not in apart else []
