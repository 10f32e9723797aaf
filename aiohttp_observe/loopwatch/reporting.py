"""Who is told of a block: the log, meters and listeners."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from ..exchange import Meter
from ..incidents import Block
from ..records import log
from ..tasks import Frame
from .samples import Samples

__all__ = ["BlockListener", "inform", "log_block", "logger", "report"]

logger = logging.getLogger("aiohttp_observe.loopwatch")

_NOT_OF_THE_LINE = ("throttled", "gc", "gil")
"""Causes by which any line would have blocked that happened to run."""

T = TypeVar("T")


class BlockListener(Protocol):
    """Who hears of blocks, as they end.  What it raises is counted, and harms nobody."""

    def suspected(self) -> None:
        """The loop is late, and may be for ever: called in the watchdog's thread."""

    def stalled(self, started: float, seconds: float, culprit: str | None) -> None:
        """The loop turns again: called on it, before the watchdog has made a `Block` of it.

        ``started`` is the block's, ``culprit`` the id of the request that it worked for.
        """

    def blocked(self, block: Block) -> None:
        """Called in the watchdog's thread, once for each block."""


def report(meters: Iterable[Meter], call: Callable[[Meter], None]) -> None:
    """``call`` for each meter; one that raises, against its contract, harms nobody."""
    for meter in meters:
        try:
            call(meter)
        except Exception:
            with suppress(Exception):
                meter.internal_error("loopwatch")


def inform(listeners: Iterable[T], call: Callable[[T], None], meters: Iterable[Meter]) -> None:
    """``call`` for each listener; errors are reported to ``meters``."""
    for listener in listeners:
        try:
            call(listener)
        except Exception:
            report(meters, lambda meter: meter.internal_error("loopwatch"))


def log_block(block: Block, seen: Samples, *, still: bool) -> None:
    """Log it, in the watchdog's thread: the loop is blocked, or has just got going again."""
    log(
        logger,
        logging.WARNING,
        "event loop %s %.2f s %s",
        "still blocked after" if still else "blocked for",
        block.seconds,
        _unseen(block) if block.frame is None else _seen(block, block.frame, seen),
        fields=_fields(block, still),
    )


def _seen(block: Block, frame: Frame, seen: Samples) -> str:
    if block.task_name is not None:
        by = f"task {block.task_name}"
    else:
        by = "many tasks" if seen.by_many else "a callback"
    request = "" if block.request is None else f", {block.request}"
    share = f", seen there for {seen.there:.2f} of {seen.seconds:.2f} s" if seen.there < seen.seconds else ""
    why = f": {block.cause.evidence}" if block.cause.kind in _NOT_OF_THE_LINE else ""
    return f"in {frame.named} by {by}{request}{share}{why}"


def _unseen(block: Block) -> str:
    by = "" if block.culprit is None else f"by {block.culprit}"
    if by and block.request is None:
        return by
    return f"{by and f'{by}, '}in a line that nobody saw: it let no thread look"


def _fields(block: Block, still: bool) -> dict[str, Any]:
    """The ``extra`` of the log line: those that there are."""
    cause = block.cause
    fields = {
        "blocked_ms": round(block.seconds * 1000, 1),
        "cause": cause.kind,
        "cause_confidence": cause.confidence,
        "cause_evidence": cause.evidence,
        **block.place,
        "still_blocked": still or None,
        "task": block.task_name,
        "request_id": block.request_id,
        "trace_id": block.trace_id,
    }
    return {name: value for name, value in fields.items() if value is not None}
