"""From a position in a code object to file, line and function."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import PurePath
from types import CodeType

from .model import Frame

__all__ = ["Places", "is_library", "own_line", "place_of"]

_INSIDE = tuple(
    f"{path}/"
    for path in (
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
        PurePath(__file__).parent.parent,
    )
)


def place_of(code: CodeType, lasti: int) -> Frame:
    """The line of the instruction at offset ``lasti``; the definition's if it hasn't started."""
    line = code.co_firstlineno
    if lasti >= 0:
        for start, end, at in code.co_lines():
            if start <= lasti < end:
                line = at or line
                break
    return Frame(code.co_filename, line, code.co_name)


class Places:
    """`place_of` with a memory, as long as it lives, for many tasks that share a few places."""

    def __init__(self) -> None:
        # The code is kept too: its id is only its own as long as it lives.
        self._known: dict[tuple[int, int], tuple[Frame, CodeType]] = {}

    def of(self, code: CodeType, lasti: int) -> Frame:
        """The place of the instruction at offset ``lasti``."""
        known = self._known.get((id(code), lasti))
        if known is None:
            known = self._known[id(code), lasti] = place_of(code, lasti), code
        return known[0]


def own_line(stack: Iterable[Frame]) -> Frame | None:
    """The innermost of the service's own lines, of a stack that is innermost first."""
    return next((frame for frame in stack if not is_library(frame.file)), None)


def is_library(file: str) -> bool:
    """Whether code isn't the service's own: the standard library's, an installed package's or ours."""
    return file.startswith(("<frozen ", *_INSIDE)) or "/site-packages/" in file or "/dist-packages/" in file
