"""Log records of our own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["log"]


def log(
    logger: logging.Logger,
    level: int,
    message: str,
    *args: object,
    fields: Mapping[str, Any],
    exc: BaseException | None = None,
) -> None:
    """Log as ``logger.log(level, message, *args, exc_info=exc, extra=fields)`` does.

    That raises where a record factory of the service's has set one of these names already.
    Here it keeps what it has set.
    """
    if not logger.isEnabledFor(level):
        return
    caller = sys._getframe(1)
    info = None if exc is None else (type(exc), exc, exc.__traceback__)
    file, line, function = caller.f_code.co_filename, caller.f_lineno, caller.f_code.co_name
    record = logger.makeRecord(logger.name, level, file, line, message, args, info, function)
    own = vars(record)
    for name, value in fields.items():
        own.setdefault(name, value)
    logger.handle(record)
