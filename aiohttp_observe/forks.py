"""Forks of the process: what goes on in the parent begins anew in the child.

What `os.register_at_fork` is given stays for ever; here it may go as anything else.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Protocol
from weakref import WeakSet

__all__ = ["reset_after_fork"]


class Forked(Protocol):
    """What has threads, locks, or work that is waiting: in a child they are the parent's."""

    def reset_in_child(self) -> None: ...


_registered: WeakSet[Forked] = WeakSet()


def reset_after_fork(thing: Forked) -> None:
    """Have ``thing`` begin anew in every forked child, as long as it lives."""
    _register()
    _registered.add(thing)


@cache
def _register() -> None:
    if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
        os.register_at_fork(after_in_child=_begin_all_anew)


def _begin_all_anew() -> None:
    for thing in list(_registered):
        thing.reset_in_child()
