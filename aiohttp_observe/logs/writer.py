"""Write log lines without ever blocking the thread that logs: a bounded queue and one thread."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic, sleep
from typing import Any, TextIO
from weakref import WeakSet

from ..redaction import SecretNames
from .lines import line_of

__all__ = ["Writer", "WriterHandler"]

_BATCH_DELAY = 0.02
"""Seconds a first line waits for company: one wake-up and one write for many lines."""
_BATCH = 500

_writers: WeakSet[Writer] = WeakSet()


@cache
def _hear_of_forks() -> None:
    os.register_at_fork(after_in_child=_renew_all)


def _renew_all() -> None:
    for writer in _writers:
        writer._renew()


def _take(waiting: SimpleQueue[Any], most: int) -> Iterator[Any]:
    """What waits, ``most`` items of it."""
    with suppress(Empty):
        for _ in range(most):
            yield waiting.get_nowait()


class Writer:
    """Writes the lines put in, in order, on a thread of its own.

    ``put`` never blocks: beyond ``limit`` lines waiting, or once the stream has failed, a
    line is dropped and reported to ``dropped(count)``.  It takes no lock of Python's: a log
    call may come from the garbage collector, in the middle of another one.  The thread starts
    with the first item, so a writer made before a fork works after it.
    """

    def __init__(self, stream: TextIO, limit: int, dropped: Callable[[int], None]) -> None:
        self._stream = stream
        self.dropped = dropped
        self._limit = limit
        self._renew()
        _writers.add(self)
        _hear_of_forks()

    def _renew(self) -> None:
        """In a forked child: the thread, and what it was to write, are the parent's."""
        # A lock among the lines is released once all before it is written.
        self._waiting: SimpleQueue[Any] = SimpleQueue()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._starting = Lock()

    def put(self, line: str) -> None:
        """Queue one line; drop it if the queue is full."""
        if self._closed or self._waiting.qsize() >= self._limit:
            self.dropped(1)
            return
        self._waiting.put(line)
        if self._thread is None:
            self._start()

    def flush(self, timeout: float) -> bool:
        """Wait until all that was put in is written, ``timeout`` seconds at most."""
        if self._thread is None:
            return True
        mark = Lock()
        mark.acquire()
        self._waiting.put(mark)
        return mark.acquire(timeout=timeout)

    async def close(self, timeout: float) -> None:
        """Write what is waiting, ``timeout`` seconds at most, and stop; what is left is dropped."""
        self._closed = True
        self._waiting.put(Lock())
        deadline = monotonic() + timeout
        # A thread sets no event of asyncio's as it ends.
        while self._is_writing() and monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        left = sum(isinstance(item, str) for item in _take(self._waiting, self._waiting.qsize()))
        if left:
            self.dropped(left)

    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self) -> None:
        if self._starting.acquire(blocking=False):  # else somebody is at it
            try:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="aiohttp-observe-log", daemon=True)
                    thread.start()
                    self._thread = thread
            finally:
                self._starting.release()

    def _run(self) -> None:
        while True:
            first = self._waiting.get()
            if not self._closed and isinstance(first, str):
                sleep(_BATCH_DELAY)
            batch = [first, *_take(self._waiting, _BATCH)]
            self._write([item for item in batch if isinstance(item, str)])
            for mark in batch:
                if not isinstance(mark, str) and mark.locked():
                    mark.release()
            if self._closed and not self._waiting.qsize():
                return

    def _write(self, lines: list[str]) -> None:
        if lines and not self._written("\n".join(lines) + "\n"):
            self.dropped(len(lines))

    def _written(self, text: str) -> bool:
        try:
            _write_to(self._stream, text)
        except Exception:  # a closed pipe, a full disk: there is nobody left to tell but the counter
            return False
        return True


def _write_to(stream: TextIO, text: str) -> None:
    """Write to ``stream``, past its buffer if it has a descriptor.

    The buffer has a lock, and a thread that is stuck in a full pipe with that lock makes the
    interpreter abort when it flushes the stream at its end.  What the stream's encoding lacks
    is escaped.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    data = text.encode(encoding, "backslashreplace")
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError):  # in memory
        stream.write(data.decode(encoding))
        stream.flush()
    else:
        _write_all(descriptor, data)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # somebody has made the descriptor non-blocking
            select.select([], [descriptor], [], 1.0)


class WriterHandler(logging.Handler):
    """Renders records, and hands them to a `Writer`."""

    def __init__(
        self, writer: Writer, render: Callable[[dict[str, Any]], str], is_secret: SecretNames
    ) -> None:
        super().__init__()
        self.writer = writer
        self.is_secret = is_secret
        self._render = render

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.put(line_of(record, self.is_secret))
        except Exception:  # logging must not raise into what logs
            self.writer.dropped(1)

    def put(self, line: dict[str, Any]) -> None:
        """Render and write a line's plain data; uses ``line`` up."""
        self.writer.put(self._render(line))

    def flush(self) -> None:
        """Called by `logging.shutdown` at interpreter exit."""
        self.writer.flush(2.0)
