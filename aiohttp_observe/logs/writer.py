"""Write log lines without ever blocking the thread that logs: a bounded queue and one thread."""

from __future__ import annotations

import codecs
import json
import logging
import os
import selectors
import sys
import threading
from _thread import LockType
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic, sleep
from typing import Any, TextIO

from ..daemonthread import until_ended
from ..forks import reset_after_fork
from ..redaction import SecretNames
from .lines import line_of

__all__ = ["Writer", "WriterHandler"]

_BATCH_DELAY = 0.02
"""Seconds a first line waits for company: one wake-up and one write for many lines."""
_BATCH = 500
_CHILD_FLUSH_SECONDS = 2.0


def _flush_at_end_of_child(writer: Writer) -> None:
    """A process of multiprocessing ends without what `logging` does at the interpreter's exit."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and sys.modules["multiprocessing.process"].parent_process() is not None:
        util.Finalize(None, writer.flush, (_CHILD_FLUSH_SECONDS,), exitpriority=0)


Render = Callable[[Sequence[Any]], list[bytes]]
"""Lines as plain data, in UTF-8 and with their ends."""


def _take(waiting: SimpleQueue[Any], most: int) -> list[Any]:
    """Take what waits, ``most`` items at most."""
    items: list[Any] = []
    with suppress(Empty):
        while len(items) < most:
            items.append(waiting.get_nowait())
    return items


class Writer:
    """Writes the lines put in, in order, on a thread of its own.

    ``put`` never blocks: beyond ``limit`` lines waiting, or once the stream has failed, a
    line is dropped and reported to ``dropped(count)``.  It takes no lock of Python's: a log
    call may come from the garbage collector, in the middle of another one.  The thread starts
    with the first item, so a writer made before a fork works after it.
    """

    def __init__(self, stream: TextIO, render: Render, limit: int, dropped: Callable[[int], None]) -> None:
        self._stream = stream
        self._render = render
        self.dropped = dropped
        self._limit = limit
        self.reset_in_child()
        reset_after_fork(self)

    def reset_in_child(self) -> None:
        """In a forked child: the thread, and what it was to write, are the parent's."""
        # A lock among the lines is released once all before it is written.
        self._waiting: SimpleQueue[Any] = SimpleQueue()
        self._torn = b""
        self._closed = False
        self._thread: threading.Thread | None = None
        self._starting = Lock()
        self._writing: tuple[float, int] | None = None

    def put(self, lines: Sequence[Any]) -> None:
        """Render and queue the plain data of lines; drop those for which the queue has no room.

        Not in the thread: it would take the interpreter from the loop for that, in the midst of anything.
        """
        lines = self._rendered(lines)
        room = 0 if self._closed else max(0, self._limit - self._waiting.qsize())
        for line in lines[:room]:
            self._waiting.put(line)
        if len(lines) > room:
            self.dropped(len(lines) - room)
        if self._thread is None and room:
            self._start()

    def backlog(self) -> tuple[float, int]:
        """For how many seconds the stream hasn't taken what it is given, and how many lines wait."""
        since, lines = self._writing or (monotonic(), 0)
        return monotonic() - since, lines + self._waiting.qsize()

    def flush(self, timeout: float) -> bool:
        """Wait until all that was put in is written, ``timeout`` seconds at most."""
        if self._closed or not self._is_writing():
            return not self._waiting.qsize()
        mark = Lock()
        mark.acquire()
        self._waiting.put(mark)
        return mark.acquire(timeout=timeout)

    async def close(self, timeout: float) -> None:
        """Write what is waiting, ``timeout`` seconds at most, and stop; what is left is dropped."""
        self._closed = True
        self._waiting.put(Lock())
        if self._thread is not None:
            await until_ended(self._thread, timeout)
        left = len(_lines_of(_take(self._waiting, self._waiting.qsize()))) + bool(self._torn)
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
                    _flush_at_end_of_child(self)
            except RuntimeError:  # the process may have no more threads: the next line tries again
                pass
            finally:
                self._starting.release()

    def _run(self) -> None:
        while True:
            first = self._waiting.get()
            if not self._closed and type(first) is not LockType and self._waiting.qsize() < _BATCH:
                sleep(_BATCH_DELAY)
            batch = [first, *_take(self._waiting, _BATCH)]
            lines = _lines_of(batch)
            if lines:
                self._writing = monotonic(), len(lines)
                self._write(lines)
                self._writing = None
            if len(lines) < len(batch):
                for item in batch:
                    if type(item) is LockType and item.locked():
                        item.release()
            if self._closed and not self._waiting.qsize():
                return

    def _rendered(self, lines: Sequence[Any]) -> list[bytes]:
        try:
            return self._render(lines)
        except Exception:
            if len(lines) == 1:
                self.dropped(1)
                return []
        # It costs no other line.
        return [rendered for line in lines for rendered in self._rendered([line])]

    def _write(self, lines: list[bytes]) -> None:
        try:
            data = self._torn + _encoded(self._stream, b"".join(lines))
        except Exception:  # what the stream says of its encoding is no use
            self.dropped(len(lines))
            return
        self._torn = b""
        left = _unwritten(self._stream, data)
        if left:
            self._give_up(lines, left)

    def _give_up(self, lines: list[bytes], left: bytes) -> None:
        """Drop the lines of which nothing is written; one that is torn is completed before the next."""
        size, dropped = len(left), 0
        for line in reversed(lines):
            of_line = len(_encoded(self._stream, line))
            if of_line > size:
                break
            size -= of_line
            dropped += 1
        self._torn = left[:size]
        self.dropped(dropped)


def _lines_of(items: list[Any]) -> list[Any]:
    return [item for item in items if type(item) is not LockType]


def _encoded(stream: TextIO, data: bytes) -> bytes:
    """UTF-8 as the stream has it; where its encoding lacks some, escaped as in JSON."""
    encoding = _encoding(stream)
    if encoding == "utf-8":
        return data
    text = data.decode()
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:  # each by itself: a line is as long alone as it is among others
        return b"".join(_escaped(character, encoding) for character in text)


def _escaped(character: str, encoding: str) -> bytes:
    try:
        return character.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(character)[1:-1].encode(encoding)


def _encoding(stream: TextIO) -> str:
    """The stream's encoding as Python names it; UTF-8 if it has none, or one that Python doesn't know."""
    try:
        return codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name
    except LookupError:
        return "utf-8"


def _descriptor(stream: TextIO) -> int | None:
    """The file that ``stream`` encodes for and does nothing else with: gzip's has one too, and compresses."""
    if isinstance(stream, TextIOWrapper) and type(stream).write is TextIOWrapper.write:
        buffer: object = stream.buffer
    elif getattr(stream, "encode", None) is codecs.utf_8_encode:  # what codecs.getwriter("utf-8") makes
        buffer = getattr(stream, "stream", None)
    else:
        return None
    raw = buffer.raw if type(buffer) is BufferedWriter else buffer  # python -u has no buffer
    return raw.fileno() if type(raw) is FileIO else None


def _unwritten(stream: TextIO, data: bytes) -> bytes:
    """Write to ``stream``, past its buffer if it is a file; returns what couldn't be written.

    The buffer has a lock, and a thread that is stuck in a full pipe with that lock makes the
    interpreter abort when it flushes the stream at its end.
    """
    left = memoryview(data)
    try:
        descriptor = _descriptor(stream)
        if descriptor is None:
            stream.write(data.decode(_encoding(stream)))
            if hasattr(stream, "flush"):
                stream.flush()
            return b""
        while left:
            try:
                left = left[os.write(descriptor, left) :]
            except BlockingIOError:  # somebody has made the descriptor non-blocking
                _wait_until_writable(descriptor)
    except Exception:  # a closed pipe, a full disk: there is nobody left to tell but the counter
        pass
    return bytes(left)


def _wait_until_writable(descriptor: int) -> None:
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(descriptor, selectors.EVENT_WRITE)
        except OSError:  # a file, which is always ready
            return
        selector.select(1.0)


class WriterHandler(logging.Handler):
    """Makes records plain data, and hands them to a `Writer`."""

    def __init__(self, writer: Writer, is_secret: SecretNames) -> None:
        super().__init__()
        self.writer = writer
        self.is_secret = is_secret

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = line_of(record, self.is_secret)
        except Exception:  # logging must not raise into what logs
            self.writer.dropped(1)
        else:
            self.writer.put([line])

    def flush(self) -> None:
        """Called by `logging.shutdown` at interpreter exit."""
        self.writer.flush(2.0)
