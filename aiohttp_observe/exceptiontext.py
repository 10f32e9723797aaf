"""An exception as it is shown in log lines and spans: bounded, and without secrets."""

from __future__ import annotations

import traceback
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
    kind = type(exc)
    builtin = kind.__module__ == "builtins"
    return ExceptionText(
        kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}",
        shown(_message(exc)),
        shown(_stack(exc, stack), LONGEST_STACK),
    )


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as failure:
        return _not_rendered(failure)


def _stack(exc: BaseException, stack: TracebackType | None) -> str:
    try:
        return "".join(traceback.format_exception(type(exc), exc, stack))
    except Exception as failure:
        return "".join(traceback.format_tb(stack)) + _not_rendered(failure)


def _not_rendered(failure: Exception) -> str:
    return f"[not rendered: {type(failure).__name__}]"
