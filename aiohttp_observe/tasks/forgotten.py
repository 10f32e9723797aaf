"""A future that nothing but its waiter refers to: nobody is left to complete it."""

from __future__ import annotations

import asyncio
import gc
from types import FrameType
from typing import Any

from .chain import Chain
from .drive import drive

__all__ = ["is_forgotten"]


def is_forgotten(task: asyncio.Task[Any]) -> bool | None:
    """Whether nothing but ``task`` itself refers to the future it waits for; ``None`` if it waits for none.

    The loop's own timers and sockets count as somebody.  All objects of the process are gone
    through, which takes a millisecond for some ten thousand: for one suspect, on demand.
    """
    chain = Chain.of(task)
    future = chain.leaf
    if not chain.waits or future is None:
        return None
    own = {id(task), id(chain), id(chain.awaitables), id(chain.frames)}
    own.update(map(id, chain.awaitables))
    own.update(map(id, chain.frames))
    for each in gc.get_referrers(future):  # a generator expression would refer to it, by a cell
        if id(each) not in own and not _is_passing(each, future):
            return False
    return True


def _is_passing(referrer: Any, future: Any) -> bool:
    """Whether ``referrer`` has the future only because that is awaited, or looked at just now."""
    if isinstance(referrer, FrameType):
        return referrer.f_code in (is_forgotten.__code__, drive.__code__)
    return type(referrer).__name__ == "FutureIter" or (
        type(referrer) is tuple and len(referrer) == 1 and referrer[0] is future
    )
