"""Write log lines without ever blocking the thread that logs: a bounded queue and one thread."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any, TextIO

from .lines import line_of

__all__ = ["Writer", "WriterHandler"]

_BATCH_DELAY = 0.02
"""Seconds a first line waits for company: one wake-up and one write for many lines."""
_BATCH = 500
_STRETCH = 16
"""Lines rendered before the other threads are let in."""


class Writer:
    """Writes what is put in, in order, on a thread of its own: texts as they are, the rest rendered.

    ``put`` never blocks: beyond ``limit`` items waiting, or once the stream has failed, an
    item is dropped and reported to ``dropped(count)``.  The thread starts with the first
    item, so a writer made before a fork works after it.
    """

    def __init__(
        self, stream: TextIO, render: Callable[[Any], str], limit: int, dropped: Callable[[int], None]
    ) -> None:
        self._stream = stream
        self.render = render
        self._limit = limit
        self._dropped = dropped
        self._waiting: deque[Any] = deque()
        self._wake = threading.Event()
        self._writing = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._pid = os.getpid()

    def put(self, item: Any) -> None:
        """Queue one item; drop it if the queue is full."""
        if len(self._waiting) >= self._limit:
            self._dropped(1)
            return
        self._waiting.append(item)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None or self._pid != os.getpid():
                self._start()

    def flush(self, timeout: float) -> bool:
        """Wait until all that was put in is written, ``timeout`` seconds at most."""
        deadline = monotonic() + timeout
        while self._waiting or self._writing:
            if monotonic() >= deadline:
                return False
            sleep(0.002)
        return True

    def close(self, timeout: float) -> None:
        """Write what is waiting, ``timeout`` seconds at most, and stop; what is left is dropped."""
        self._closed.set()
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        left = len(self._waiting)
        if left:
            self._waiting.clear()
            self._dropped(left)

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, name="aiohttp-observe-log", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._closed.wait(_BATCH_DELAY)
            self._wake.clear()
            self._drain()
            if self._closed.is_set() and not self._waiting:
                return

    def _drain(self) -> None:
        while self._waiting:
            self._writing = True
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
            lines = list(self._rendered_all(batch))
            if lines and not self._written("\n".join(lines) + "\n"):
                self._dropped(len(lines))
            self._writing = False

    def _rendered_all(self, batch: list[Any]) -> Iterator[str]:
        rendered = 0
        for item in batch:
            if type(item) is str:
                yield item
                continue
            try:
                yield self.render(item)
            except Exception:
                self._dropped(1)
            rendered += 1
            if rendered % _STRETCH == 0:
                sleep(0)  # let go of the GIL: the event loop waits up to 5 ms before it insists

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
    """Hands records to a `Writer` as plain data."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        self.writer.put(line_of(record))

    def flush(self) -> None:
        """Called by `logging.shutdown` at interpreter exit."""
        self.writer.flush(2.0)
