"""What has gone wrong, by place: lines that blocked the loop, and failures that nobody handled.

Kept for ``/_tasks/incidents``, bounded, as plain values.  Messages of exceptions are left to
the log: they may say what isn't everybody's business.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter, time
from typing import Any, Generic, TypeVar

from .exchange import Exchange, taken
from .tasks import Frame
from .texts import timestamp, timestamp_of

__all__ = ["LONG_BLOCK_SECONDS", "Block", "Cause", "Incidents", "SpanPlace"]

_MOST = 200
"""Lines, and kinds of failure, that are kept."""
_MOST_VICTIMS = 20
_MOST_LATEST = 600
LONG_BLOCK_SECONDS = 1.0
"""Of a block of which a bundle is kept, and that the verdict tells for `_RECENT_SECONDS` after its end."""
_RECENT_SECONDS = 300.0

_Culprit = Frame | str | None
"""A line, or where nobody saw it the request it worked for."""
_Kind = tuple[str, "str | None", "str | None", "Frame | None"]
"""A kind of failure: kind, exception's name, coroutine function's name, line."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why the loop was held.

    ``kind``        ``cpu``, ``blocking_call``, ``gc``, ``gil``, ``throttled`` or ``unknown``
    ``confidence``  ``low``, ``medium`` or ``high``
    ``evidence``    what was measured, a sentence
    """

    kind: str
    confidence: str
    evidence: str


@dataclass(frozen=True, slots=True)
class SpanPlace:
    """The server span of the request that blocked: it may have ended, so only its ids, and when it began."""

    trace_id: int
    span_id: int
    sampled: bool
    started: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A stretch for which the loop didn't turn, and who is to blame.  Plain values only.

    ``started``  when, `time.perf_counter` seconds, right to half a beat of the loop watch
    ``seconds``  how long, right to half a beat
    ``frame``    the line seen there most often, the innermost of the service's own; ``None`` if nobody
                 could look: a call that kept the interpreter lock
    ``stack``    as it was seen there, innermost first
    ``task``     number of the task, ``None`` for a bare callback, or without a frame
    ``request``  method and route of the request that the task works for
    ``scope``    `id` of the `Scope` that the request belongs to: applications may share a loop
    """

    started: float
    seconds: float
    frame: Frame | None
    stack: tuple[Frame, ...]
    task: int | None
    task_name: str | None
    request: str | None
    request_id: str | None
    trace_id: str | None
    span: SpanPlace | None
    scope: int | None
    cause: Cause

    @property
    def ended(self) -> float:
        """When, `time.perf_counter` seconds."""
        return self.started + self.seconds

    @property
    def culprit(self) -> str | None:
        """The request, task or thread that held the loop, in words; ``None`` if nobody knows."""
        if self.request is not None or self.task_name is not None:
            return self.request or f"task {self.task_name}"
        if self.frame is None and self.cause.kind == "gil":
            return "another thread, which kept the interpreter lock"
        return None

    @property
    def place(self) -> dict[str, str | int]:
        """The line by OpenTelemetry's names for source code; empty without a frame."""
        if self.frame is None:
            return {}
        return {
            "code.function.name": self.frame.function,
            "code.file.path": self.frame.file,
            "code.line.number": self.frame.line,
        }


class Incidents:
    """What one application has seen, at most 200 lines and 200 kinds of failure.

    The one that was seen longest ago makes room for a new one, and is counted.  All methods
    may be called from any thread.
    """

    def __init__(self) -> None:
        # Failures are also told by finalizers, which may run in the middle of anything here:
        # what can't be added at once is added with the next.
        self._lock = threading.Lock()
        self._told: deque[Callable[[], None]] = deque(maxlen=_MOST)
        self._blocked: _Recent[_Culprit, _BlockedLine] = _Recent(_BlockedLine)
        self._unhandled: _Recent[_Kind, _FailureKind] = _Recent(_FailureKind)
        self._long: deque[Block] = deque()  # each longer than those after it
        self._latest: deque[Block] = deque(maxlen=_MOST_LATEST)

    def blocked(self, block: Block, victims: Sequence[str] = (), victims_total: int = 0) -> None:
        """Add a block, with the ids of requests that it kept waiting (20 are kept) and their number."""
        example = _example(block, victims, victims_total)
        self._add(lambda: self._add_block(block, example))

    def unhandled(
        self,
        kind: str,
        *,
        exception: str | None = None,
        coro: str | None = None,
        frame: Frame | None = None,
        task: str | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        """Add a failure: its kind, as ``asyncio_unhandled_total`` has it, and whose it was."""
        now = time()
        example = {
            "at": timestamp(now),
            "task": task,
            "request_id": None if exchange is None else exchange.request_id,
            "trace_id": None if exchange is None else exchange.trace_id,
        }
        self._add(lambda: self._unhandled.use((kind, exception, coro, frame)).add(now, example))

    def to_dict(self) -> dict[str, Any]:
        """The document of ``/_tasks/incidents``: what blocked longest in total, what failed most, first."""
        with self._lock:
            self._flush()
            blocked = [line.to_dict(culprit) for culprit, line in self._blocked.items()]
            unhandled = [failure.to_dict(*kind) for kind, failure in self._unhandled.items()]
            left_out = self._blocked.left_out + self._unhandled.left_out
        blocked.sort(key=lambda row: row["total_seconds"], reverse=True)
        unhandled.sort(key=lambda row: row["count"], reverse=True)
        return {"blocked": blocked, "unhandled": unhandled, "left_out": left_out}

    def worst_block(self) -> Block | None:
        """The longest of a second or more in the last five minutes."""
        with self._lock:
            self._flush()
            self._forget_old(perf_counter())
            return self._long[0] if self._long else None

    def last_minute(self) -> list[Block]:
        """The blocks of the last minute, 600 at most."""
        since = perf_counter() - 60.0
        with self._lock:
            self._flush()
            return [block for block in self._latest if block.ended >= since]

    def _add_block(self, block: Block, example: dict[str, Any]) -> None:
        self._blocked.use(block.frame or block.request).add(block, example)
        self._latest.append(block)
        if block.seconds >= LONG_BLOCK_SECONDS:
            self._forget_old(perf_counter())
            while self._long and self._long[-1].seconds <= block.seconds:
                self._long.pop()
            self._long.append(block)

    def _forget_old(self, now: float) -> None:
        while self._long and now - self._long[0].ended > _RECENT_SECONDS:
            self._long.popleft()

    def _add(self, what: Callable[[], None]) -> None:
        self._told.append(what)
        if self._lock.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._lock.release()

    def _flush(self) -> None:
        for add in taken(self._told):
            add()


class _Recent(Generic[K, V]):
    """The values used last, in that order; ``left_out`` counts those that made room."""

    def __init__(self, make: Callable[[], V]) -> None:
        self.left_out = 0
        self._make = make
        self._values: OrderedDict[K, V] = OrderedDict()

    def use(self, key: K) -> V:
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = self._make()
        self._values.move_to_end(key)
        if len(self._values) > _MOST:
            self._values.popitem(last=False)
            self.left_out += 1
        return value

    def items(self) -> list[tuple[K, V]]:
        return list(self._values.items())


class _BlockedLine:
    """The blocks of one line; the longest is the example."""

    def __init__(self) -> None:
        self._count = 0
        self._total = self._longest = 0.0
        self._first_at = self._last_at = 0.0
        self._cause: Cause | None = None
        self._example: dict[str, Any] = {}

    def add(self, block: Block, example: dict[str, Any]) -> None:
        self._last_at = time()
        self._first_at = self._first_at or self._last_at
        self._count += 1
        self._total += block.seconds
        if block.seconds > self._longest:
            self._longest = block.seconds
            self._cause, self._example = block.cause, example

    def to_dict(self, culprit: _Culprit) -> dict[str, Any]:
        return {
            "frame": asdict(culprit) if isinstance(culprit, Frame) else None,
            "count": self._count,
            "total_seconds": self._total,
            "longest_seconds": self._longest,
            "first_at": timestamp(self._first_at),
            "last_at": timestamp(self._last_at),
            "cause": None if self._cause is None else asdict(self._cause),
            "example": self._example,
        }


class _FailureKind:
    """The failures of one kind at one place; the latest is the example."""

    def __init__(self) -> None:
        self._count = 0
        self._first_at = self._last_at = 0.0
        self._example: dict[str, Any] = {}

    def add(self, now: float, example: dict[str, Any]) -> None:
        self._count += 1
        self._first_at = self._first_at or now
        self._last_at = now
        self._example = example

    def to_dict(
        self, kind: str, exception: str | None, coro: str | None, frame: Frame | None
    ) -> dict[str, Any]:
        return {
            "kind": kind,
            "exception": exception,
            "coro": coro,
            "frame": None if frame is None else asdict(frame),
            "count": self._count,
            "first_at": timestamp(self._first_at),
            "last_at": timestamp(self._last_at),
            "example": self._example,
        }


def _example(block: Block, victims: Sequence[str], victims_total: int) -> dict[str, Any]:
    return {
        "at": timestamp_of(block.started),
        "seconds": block.seconds,
        "task": block.task_name,
        "request": block.request,
        "request_id": block.request_id,
        "trace_id": block.trace_id,
        "stack": [asdict(frame) for frame in block.stack],
        "victims": list(victims[:_MOST_VICTIMS]),
        "victims_total": victims_total,
    }
