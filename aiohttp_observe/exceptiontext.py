"""An exception as it is shown in log lines and spans: bounded, and without secrets."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from .redaction import LONGEST_STACK, shown

__all__ = ["ExceptionText", "text_of"]


class ExceptionText(NamedTuple):
    """The qualified name of an exception's type, its message and its stack."""

    type: str
    message: str
    stack: str


def text_of(exc: BaseException, stack: TracebackType | None) -> ExceptionText:
    """``exc`` with the ``stack`` on which it came; never raises, though its own code may."""
    return ExceptionText(
        _rendered(lambda: _name(type(exc))),
        shown(_rendered(lambda: f"{exc!s}")),
        shown(_rendered(lambda: _stack(exc, stack)), LONGEST_STACK),
    )


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _stack(exc: BaseException, stack: TracebackType | None) -> str:
    try:
        return "".join(traceback.format_exception(type(exc), exc, stack))
    except Exception as failure:  # of what it says of itself: where it came from is told all the same
        return "".join(traceback.format_tb(stack)) + _not_rendered(failure)


def _rendered(render: Callable[[], str]) -> str:
    try:
        return str.__str__(render())
    except Exception as failure:
        return _not_rendered(failure)


def _not_rendered(failure: Exception) -> str:
    return f"[not rendered: {type(failure).__name__}]"
