"""Bundles: everything the console knew at a moment worth looking back at, kept for later."""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass
from itertools import count
from time import time
from typing import Any

from .texts import timestamp

__all__ = ["Bundles"]

_MOST = 10
_MOST_BYTES = 8_000_000
"""Length of a bundle's text; it is kept compressed."""


@dataclass(frozen=True, slots=True)
class _Bundle:
    id: int
    at: str
    reason: str
    size: int
    compressed: bytes


class Bundles:
    """The latest ten bundles, as JSON text; works from any thread."""

    def __init__(self) -> None:
        self._kept: deque[_Bundle] = deque(maxlen=_MOST)
        self._ids = count(1)

    def keep(self, reason: str, text: str) -> int | None:
        """Keep ``text`` as a bundle; returns its id, or ``None`` if it is too large."""
        raw = text.encode("utf-8", "replace")
        if len(raw) > _MOST_BYTES:
            return None
        at = timestamp(time())
        bundle = _Bundle(next(self._ids), at, reason, len(raw), zlib.compress(raw, 1))
        self._kept.append(bundle)
        return bundle.id

    def listed(self) -> list[dict[str, Any]]:
        """Id, time, reason and size of each bundle, the latest first."""
        return [
            {"id": bundle.id, "at": bundle.at, "reason": bundle.reason, "bytes": bundle.size}
            for bundle in reversed(list(self._kept))
        ]

    def text(self, number: int) -> str | None:
        """The text of a bundle; ``None`` if it isn't kept any more."""
        found = next((bundle for bundle in list(self._kept) if bundle.id == number), None)
        return None if found is None else zlib.decompress(found.compressed).decode()
