"""A flood of one kind of line: let through now and then, counted in between."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from time import perf_counter
from typing import Any

__all__ = ["OTHERS", "Flood", "more_like_it"]

OTHERS = ("others",)
"""Stands for all kinds beyond those told apart."""

_MOST = 10
_SECONDS = 10.0
_MOST_KINDS = 500


def more_like_it(left_out: int) -> str:
    """What a line says at its end of those that were left out before it."""
    return f"; {left_out} more like it were only counted" if left_out else ""


class Flood:
    """Lets through ten of a kind in ten seconds, and knows how many were left out.

    Called from finalizers too, in the middle of anything: it takes no lock.
    """

    def __init__(self) -> None:
        self._kinds: dict[Hashable, list[float]] = {}  # when the ten seconds began, seen, left out

    def admit(self, kind: Hashable) -> int | None:
        """Count one of ``kind``: how many were left out before it, ``None`` if it is to be left out, too."""
        now = perf_counter()
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind = OTHERS
        window = self._kinds.get(kind)
        if window is None or now - window[0] >= _SECONDS:
            self._kinds[kind] = [now, 1, 0]
            return 0 if window is None else int(window[2])
        window[1] += 1
        if window[1] <= _MOST:
            return 0
        window[2] += 1
        return None

    def subsided(self, *, at_once: bool = False) -> Iterator[tuple[Any, int]]:
        """The kinds, and how many of each were left out, of which none came since to say so.

        That is after the ten seconds, or ``at_once``.
        """
        now = perf_counter()
        for kind, (began, _, _) in list(self._kinds.items()):
            if at_once or now - began >= _SECONDS:
                window = self._kinds.pop(kind, None)  # several threads may be at it
                if window is not None and window[2]:
                    yield kind, int(window[2])
