"""What single tasks are suspended for, and a coroutine that is driven by hand was, when it goes on.

By then what it awaited has been done, but it still stands where it did.  So nothing has to
be worked out for the many waits that are too short to tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from .chain import Chain, held_by
from .edges import awaited
from .stacks import Stack, Stacks, kind_at, read_wait
from .waits import forget_when_rules_change

__all__ = ["outbound_call", "stack_of_chain", "suspended_for", "waits_for", "whereabouts"]

_MOST_STACKS = 1000
_CALLS = ("ClientRequest", "ClientResponse")
_stacks = Stacks(depth=1)
forget_when_rules_change(_stacks.forget)


def suspended_for(coro: Any, future: Any, callbacks: Sequence[Any] | None) -> str:
    """The wait kind of ``coro``, which awaited ``future``; ``future`` if nothing better is known.

    ``callbacks`` are those the future had when the wait began: an executor's is known by
    them, and loses them when it is done.  Never raises.
    """
    try:
        chain = Chain(coro, future)
        return kind_at(chain, stack_of_chain(chain)) or awaited(future, callbacks).kind
    except Exception:  # an awaitable that is like no other
        return "future"


def waits_for(task: asyncio.Task[Any]) -> tuple[str, str] | None:
    """Kind and detail of what ``task`` waits for, as a snapshot has them, if it waits.  Never raises."""
    try:
        chain = Chain.of(task)
        reading = read_wait(chain, stack_of_chain(chain)) if chain.waits else None
        return None if reading is None else (reading.kind, reading.detail)
    except Exception:  # an awaitable that is like no other
        return None


def outbound_call(task: asyncio.Task[Any]) -> str | None:
    """The request of aiohttp's client that ``task`` waits in, if any: ``GET inventory``.  Never raises."""
    try:
        for awaitable in reversed(Chain.of(task).awaitables):
            for held in held_by(awaitable):
                if type(held).__name__ in _CALLS and type(held).__module__.startswith("aiohttp."):
                    return f"{held.method} {held.url.host}"
    except Exception:  # another aiohttp than we know
        return None
    return None


def whereabouts(task: asyncio.Task[Any]) -> str:
    """What ``task`` waits for, and the service's own line that does, in words.  Never raises."""
    try:
        chain = Chain.of(task)
        stack = stack_of_chain(chain)
        doing = f"waits for {read_wait(chain, stack).detail}" if chain.waits else "about to run"
        line = stack.line
    except Exception:  # an awaitable that is like no other
        return "nobody knows where"
    return doing if line is None else f"{doing} at {line.whole}"


def stack_of_chain(chain: Chain) -> Stack:
    """The stack of ``chain``, from a memory of those met lately."""
    if len(_stacks) > _MOST_STACKS:
        _stacks.forget()
    return _stacks.of(chain)
