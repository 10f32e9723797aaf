"""JSON as text, long lists in pieces between which a loop can have a turn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

__all__ = ["Long", "encode", "listed", "pieces"]

encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
"""JSON of plain data, without a space."""


def listed(items: Iterable[str], most: int) -> Iterator[str]:
    """What stands between a list's brackets, ``most`` of its ``items``, which are JSON, in a piece."""
    texts, separator = iter(items), ""
    while some := list(islice(texts, most)):
        yield separator + ",".join(some)
        separator = ","


class Long(NamedTuple):
    """A long list within an object that `pieces` makes, its ``items`` JSON, ``most`` of them in a piece.

    With ``brackets="{}"`` it is a long object, whose items are its members.
    """

    items: Iterable[str]
    most: int
    brackets: str = "[]"


def pieces(members: Mapping[str, Any]) -> Iterator[str]:
    """An object as JSON; what is `Long` of it comes in pieces of its own."""
    text, separator = "{", ""
    for name, value in members.items():
        text += f"{separator}{encode(name)}:"
        separator = ","
        if isinstance(value, Long):
            yield text + value.brackets[0]
            yield from listed(value.items, value.most)
            text = value.brackets[1]
        else:
            text += encode(value)
    yield f"{text}}}"
