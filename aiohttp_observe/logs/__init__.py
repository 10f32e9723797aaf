"""Logs: every line carries the ids of its request, and writing one never blocks the loop.

``context``  bound fields and ids, and how records come by them
``lines``    records as plain data, JSON and text
``writer``   the bounded queue and its thread
``access``   the one line a request
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase, RawIOBase
from typing import Any, TextIO

from aiohttp import web

from ..exchange import Meter
from ..options import check_choice, check_flag, check_positive_int, check_texts, environment
from ..redaction import SECRETS, secret_names
from .access import AccessLines, AccessLogger, Answered, bound_to
from .context import RecordFactory, bind, bound, log_context
from .lines import JsonFormatter, to_json, to_text
from .writer import Writer, WriterHandler

__all__ = ["AccessLogger", "JsonFormatter", "Logs", "bind", "bound", "log_context"]

logger = logging.getLogger("aiohttp_observe")

_FORMATS = ("json", "text")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_FLUSH_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Logs:
    """How log lines are written.

    ``stream``      where lines go, default standard output as it is at start-up
    ``level``       of the root logger, default ``AIOHTTP_OBSERVE_LOG_LEVEL`` or ``INFO``
    ``format``      ``json`` or ``text``, default ``AIOHTTP_OBSERVE_LOG_FORMAT`` or ``json``
    ``access``      whether to write the access line, in aiohttp's place, default ``True``
    ``replace``     whether to take over from handlers the service has put on the root logger;
                    by default those stay as they are and their records gain the ids
    ``queue_size``  lines that may wait to be written before some are dropped, default 10,000
    ``redact``      names of fields whose values are written as ``REDACTED``, bound, ``extra`` or
                    nested in one: whatever their case, ``-`` and ``_`` being the same, alone or
                    as the last words of a longer name: ``token`` is ``access_token``, too.
                    Default: see the manual.  ``(*Logs().redact, "iban")`` adds one.

    Logging belongs to the process: of several applications the first one's options hold until
    the last has been cleaned up.
    """

    stream: TextIO | None = None
    level: str | None = None
    format: str | None = None
    access: bool = True
    replace: bool = False
    queue_size: int = 10_000
    redact: Collection[str] = SECRETS

    def __post_init__(self) -> None:
        stream: Any = self.stream
        is_binary = isinstance(stream, (RawIOBase, BufferedIOBase))
        if stream is not None and (is_binary or not hasattr(stream, "write")):
            raise TypeError(f"Logs(stream=...) takes a text stream such as sys.stderr, got {stream!r}")
        if self.level is not None:
            _chosen("Logs(level=...)", self.level, _LEVELS)
        if self.format is not None:
            _chosen("Logs(format=...)", self.format, _FORMATS)
        check_flag("Logs(access=...)", self.access)
        check_flag("Logs(replace=...)", self.replace)
        check_positive_int("Logs(queue_size=...)", self.queue_size, "lines")
        check_texts("Logs(redact=...)", self.redact)

    def install(self, app: web.Application, meter: Meter, answered: Answered) -> ServerLogs:
        """Prepare ``app``: the running thing takes hold of logging when opened, not before."""
        level = self.level or environment("LOG_LEVEL") or "INFO"
        level = _chosen("AIOHTTP_OBSERVE_LOG_LEVEL", level, _LEVELS)
        format_ = self.format or environment("LOG_FORMAT") or "json"
        format_ = _chosen("AIOHTTP_OBSERVE_LOG_FORMAT", format_, _FORMATS)
        if self.access:
            _take_over_access_log(app, answered)
        return ServerLogs(self, level, format_, meter)


def _chosen(option: str, text: str, choices: tuple[str, ...]) -> str:
    """The choice that ``text`` is, in whatever case.  Raises ``ValueError`` if it is none."""
    in_lower_case = {choice.lower(): choice for choice in choices}
    chosen = in_lower_case.get(str(text).lower(), text)
    check_choice(option, chosen, choices)
    return chosen


def _take_over_access_log(app: web.Application, answered: Answered) -> None:
    """Make ours the access logger of whatever server will run ``app``.

    aiohttp reads an application's handler arguments when it makes the server, over those of
    the runner.  That silences its own line for this application alone, at no cost a request,
    and the access logger is the one place that sees requests the parser refused.
    """
    app._handler_args = {
        **(app._handler_args or {}),
        "access_log": logging.getLogger("aiohttp_observe.access"),
        "access_log_class": bound_to(answered),
    }


class ServerLogs:
    """The log pillar of one application: open between start-up and clean-up."""

    def __init__(self, options: Logs, level: str, format_: str, meter: Meter) -> None:
        self._options = options
        self._level = level
        self._format = format_
        self._meter = meter
        self.lines = AccessLines(_direct_handler) if options.access else None

    def open(self) -> None:
        _enable_own_loggers()
        _process.enter(self._make)

    async def close(self) -> None:
        """Undo, and have what is waiting written: off the loop, since the sink may be stuck."""
        handler = _process.leave()
        if handler is not None:
            await handler.writer.close(_FLUSH_SECONDS)
            handler.close()

    def backlog(self) -> tuple[float, int]:
        """For how many seconds the log's stream has been taking nothing, and how many lines wait for it."""
        installed = _process.installed
        handler = None if installed is None else installed.handler
        return (0.0, 0) if handler is None else handler.writer.backlog()

    def _make(self) -> _Installed:
        root = logging.getLogger()
        if root.handlers and not self._options.replace:
            self._warn_of_idle_options()
            return _Installed(None)
        stream = self._options.stream or sys.stdout
        render = _renderer(self._format, stream)
        dropped = partial(self._meter.dropped, "log_lines")
        writer = Writer(stream, render, self._options.queue_size, dropped)
        handler = WriterHandler(writer, secret_names(self._options.redact))
        return _Installed(handler, self._level)

    def _warn_of_idle_options(self) -> None:
        options = self._options
        idle = [name for name in ("stream", "level", "format") if getattr(options, name) is not None]
        if idle:
            logger.warning(
                "Logs(%s=...) has no effect: the root logger has handlers already, be it by "
                "logging.basicConfig() or the first logging.info(); Logs(replace=True) takes over from them",
                "=..., ".join(idle),
            )


def _enable_own_loggers() -> None:
    """`logging.config` disables all loggers that it doesn't name, unless told otherwise."""
    for name, own in list(logging.root.manager.loggerDict.items()):
        if isinstance(own, logging.Logger) and (name == logger.name or name.startswith(f"{logger.name}.")):
            own.disabled = False


def _renderer(format_: str, stream: TextIO) -> Callable[[Sequence[Any]], list[bytes]]:
    if format_ == "json":
        return to_json
    return partial(to_text, color=getattr(stream, "isatty", bool)())


class _Installed:
    """What was changed in the process's logging, and how it was before."""

    def __init__(self, handler: WriterHandler | None, level: str = "INFO") -> None:
        self.handler = handler
        self._factory = RecordFactory()
        root = logging.getLogger()
        self._handlers_before = root.handlers[:]
        self._level_before = root.level
        if handler is not None:
            root.handlers[:] = [handler]
            root.setLevel(level)

    def undo(self) -> None:
        self._factory.uninstall()
        if self.handler is None:
            return
        root = logging.getLogger()
        added = [handler for handler in root.handlers if handler is not self.handler]
        root.handlers[:] = [*(h for h in self._handlers_before if h not in added), *added]
        root.setLevel(self._level_before)


class _Process:
    """Logging as the process's applications share it: the first to open sets it up, the last undoes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self.installed: _Installed | None = None

    def enter(self, make: Callable[[], _Installed]) -> None:
        with self._lock:
            if self.installed is None:
                self.installed = make()
            self._users += 1

    def leave(self) -> WriterHandler | None:
        """The handler to close, if this was the last."""
        with self._lock:
            self._users -= 1
            if self._users or self.installed is None:
                return None
            installed, self.installed = self.installed, None
            installed.undo()
            return installed.handler


_process = _Process()
_access_logger = logging.getLogger("aiohttp_observe.access")


def _direct_handler() -> WriterHandler | None:
    """Our handler, if a record of the access logger would reach it and nothing else.

    Then a request's access line needs no `logging.LogRecord`: that is most of its cost.
    """
    installed = _process.installed
    handler = None if installed is None else installed.handler
    if handler is None or _access_logger.filters:
        return None
    log: logging.Logger | None = _access_logger
    while log is not None and log.parent is not None:
        if log.handlers or not log.propagate:
            return None
        log = log.parent
    if logging.root.handlers != [handler] or handler.filters or handler.level > logging.INFO:
        return None
    return handler
