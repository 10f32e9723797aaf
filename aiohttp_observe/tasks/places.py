"""From a position in a code object to file, line and function."""

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
from collections.abc import Sequence
from itertools import accumulate
from pathlib import PurePath
from traceback import walk_tb
from types import CodeType

from .model import Frame

__all__ = ["Places", "count_as_own", "is_library", "line_to_name", "place_of", "raised_in"]

_INSIDE = (
    "<frozen ",
    *(
        os.path.join(os.path.normcase(folder), "")
        for folder in (
            sysconfig.get_path("stdlib"),
            sysconfig.get_path("platstdlib"),
            PurePath(asyncio.__file__).parent.parent,  # where the way to those is by a link
            PurePath(__file__).parent.parent,
        )
    ),
)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_NOBODYS_OWN = ("aiohttp", __name__.partition(".")[0])
_own: set[str] = set()
"""Folders of installed packages, and files of installed modules, that are the service's."""


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


def line_to_name(stack: Sequence[Frame]) -> Frame | None:
    """The innermost of the service's own lines, else of all, of a stack that is innermost first."""
    own = (frame for frame in stack if not is_library(frame.file))
    return next(own, None) or next(iter(stack), None)


def raised_in(exc: BaseException | None) -> Frame | None:
    """The innermost of the service's own lines that an exception came through, else where it was raised."""
    if exc is None:
        return None
    stack = [
        Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in walk_tb(exc.__traceback__)
    ]
    return line_to_name(stack[::-1])


def is_library(file: str) -> bool:
    """Whether code isn't the service's own: the standard library's, an installed package's or ours."""
    if file[:1] not in "/<":
        file = os.path.normcase(_file_of_compiled(file))
    is_installed = file.startswith(_INSIDE) or any(folder in file for folder in _INSTALLED)
    return is_installed and not file.startswith(tuple(_own))


def _file_of_compiled(file: str) -> str:
    """What Cython has compiled names its source from the folder in which the package lies."""
    package = sys.modules.get(file.partition("/")[0])
    return getattr(package, "__file__", None) or file


def count_as_own(module: str) -> None:
    """Take the installed package that ``module`` is in for the service's own: images install that, too."""
    parts = module.split(".")
    if parts[0] in _NOBODYS_OWN:
        return
    names = accumulate(parts, "{}.{}".format)  # a namespace's own has no file
    files = (getattr(sys.modules.get(name), "__file__", None) for name in names)
    file = next(filter(None, files), "")
    if any(folder in os.path.normcase(file) for folder in _INSTALLED):
        _own.add(os.path.normcase(file.removesuffix("__init__.py")))
