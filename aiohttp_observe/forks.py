"""Forks of the process: what is done before one, and what the child begins anew.

What `os.register_at_fork` is given stays for ever; here it may go as anything else.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Protocol
from weakref import WeakSet

__all__ = ["heed_forks"]


class Forked(Protocol):
    """What goes on in the parent, and begins anew in the child."""

    def before_fork(self) -> None: ...

    def begin_anew(self) -> None:
        """In the child: its threads, locks and what they were about are the parent's."""


_heeding: WeakSet[Forked] = WeakSet()


def heed_forks(thing: Forked) -> None:
    """Have ``thing`` hear of every fork as long as it lives."""
    _register()
    _heeding.add(thing)


@cache
def _register() -> None:
    os.register_at_fork(before=_before, after_in_child=_in_child)


def _before() -> None:
    for thing in list(_heeding):
        thing.before_fork()


def _in_child() -> None:
    for thing in list(_heeding):
        thing.begin_anew()
