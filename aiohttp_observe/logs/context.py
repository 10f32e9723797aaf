"""What a log line knows of its request: bound fields, ids, and how records come by them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ..exchange import CURRENT, FIELDS, current_scope
from ..tasks import running_task

__all__ = [
    "Context",
    "RecordFactory",
    "bind",
    "bound",
    "capture",
    "context_of",
    "ids_of",
    "log_context",
    "own_message",
]

_NO_FIELDS: Mapping[str, Any] = {}

Context = tuple["str | None", int, int, "str | None", Mapping[str, Any]]
"""Request id, trace id, span id (0 for none), task name, bound fields.

A plain tuple of plain values, since log handlers pickle records for machines and processes
that don't have this package.
"""

IDS = ("request_id", "trace_id", "span_id")


def bind(**fields: Any) -> None:
    """Add ``fields`` to every log line of this context from here on.

    In a handler that is the rest of the request, its access line and the tasks it starts
    from now on.  In a task of its own it is that task and what it starts: as with any
    context variable, the parent doesn't see it.
    """
    FIELDS.set({**(FIELDS.get() or _NO_FIELDS), **fields})


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Add ``fields`` to every log line written within the ``with`` block."""
    token = FIELDS.set({**(FIELDS.get() or _NO_FIELDS), **fields})
    try:
        yield
    finally:
        # An async generator may be finalised in another context, say by another request: that has its own.
        with suppress(ValueError):
            FIELDS.reset(token)


def log_context() -> dict[str, Any]:
    """The ids and bound fields that a log line written here would carry.

    For loggers that build their lines themselves: a structlog processor or a loguru patcher
    merges it into each event.
    """
    context = capture()
    return {**context[4], **ids_of(context)}


def capture() -> Context:
    """The context of the code that calls."""
    exchange = CURRENT.get()
    scope = current_scope()
    span = None if scope is None or scope.tracer is None else scope.tracer.current()
    return (
        None if exchange is None else exchange.request_id,
        0 if span is None else span.trace_id,
        0 if span is None else span.span_id,
        _task_name(),
        FIELDS.get() or _NO_FIELDS,
    )


def _task_name() -> str | None:
    task = running_task()
    return None if task is None else task.get_name()


def ids_of(context: Context) -> dict[str, str]:
    """``request_id``, ``trace_id`` and ``span_id``, those that there are."""
    request_id, trace_id, span_id, _, _ = context
    ids = {}
    if request_id is not None:
        ids["request_id"] = request_id
    if trace_id:
        # A third faster than with format specifiers.
        ids["trace_id"] = "%032x" % trace_id  # noqa: UP031
        ids["span_id"] = "%016x" % span_id  # noqa: UP031
    return ids


def own_message(record: logging.LogRecord) -> str:
    """The record's message, without what `_Contextual` does for formatters of others."""
    if not isinstance(record, _Contextual):
        return record.getMessage()
    message: str = super(_Contextual, record).getMessage()  # type: ignore[misc]
    return message


def context_of(record: logging.LogRecord) -> Context:
    """What surrounded the call that made ``record``; empty if it was made while logs were off."""
    context: Context | None = getattr(record, "_observe_context", None)
    return (None, 0, 0, None, _NO_FIELDS) if context is None else context


class _Id:
    """An id of the record's context, for those who read attributes; an ``extra`` of that name wins."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, record: logging.LogRecord | None, owner: type) -> str | None:
        return None if record is None else ids_of(context_of(record)).get(self._name)


class _Contextual:
    """Mixed into the class of every record made while logs are on.

    The ids are attributes of the class, not of the instance: `logging.Logger.makeRecord`
    refuses an ``extra`` that would overwrite an instance's attribute, and a service's own
    ``extra={"request_id": ...}`` must neither fail nor be overwritten.  Formatters that read
    the instance's ``__dict__`` find the ids there too, because each calls `getMessage` first.
    """

    request_id = _Id("request_id")
    trace_id = _Id("trace_id")
    span_id = _Id("span_id")
    _observe_context: Context

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        own = self.__dict__
        ids = ids_of(self._observe_context)
        for name in IDS:
            own.setdefault(name, ids.get(name))
        for name, value in self._observe_context[4].items():
            own.setdefault(name, value)
        return super().getMessage()  # type: ignore[misc,no-any-return]

    def __reduce__(self) -> Any:
        return logging.makeLogRecord, (self.__dict__.copy(),)


_contextual: dict[type, type] = {}


class RecordFactory:
    """A log record factory that adds the context, on top of the one it finds."""

    def __init__(self) -> None:
        self._previous = logging.getLogRecordFactory()
        self._installed = True
        logging.setLogRecordFactory(self)

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._previous(*args, **kwargs)
        if self._installed:
            kind = type(record)
            record.__class__ = _contextual.get(kind) or _make_contextual(kind)
            record._observe_context = capture()
        return record

    def uninstall(self) -> None:
        """Put the previous factory back; only step aside if another was set on top since."""
        self._installed = False
        if logging.getLogRecordFactory() is self:
            logging.setLogRecordFactory(self._previous)


def _make_contextual(kind: type) -> type:
    _contextual[kind] = type(kind.__name__, (_Contextual, kind), {})
    return _contextual[kind]
