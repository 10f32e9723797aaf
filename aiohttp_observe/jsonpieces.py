"""JSON as text, long lists in pieces between which a loop can have a turn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice

__all__ = ["encode", "listed"]

encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
"""Of plain data, without a space."""


def listed(items: Iterable[str], most: int) -> Iterator[str]:
    """What stands between a list's brackets, ``most`` of its ``items``, which are JSON, in a piece."""
    texts, separator = iter(items), ""
    while some := list(islice(texts, most)):
        yield separator + ",".join(some)
        separator = ","
