"""Manual spans around costly awaits."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable
from time import perf_counter, time_ns
from types import TracebackType
from typing import Any, TypeVar

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import Span

from ..exchange import Meter, current_exchange, current_scope
from ..options import check_instance
from ..redaction import MARK, in_text, is_secret
from ..tasks import name_operation, running_task
from ..texts import qualified_name, title, valid
from .span import fail

__all__ = ["operation"]

logger = logging.getLogger("aiohttp_observe")

F = TypeVar("F", bound=Callable[..., Any])


class operation:  # noqa: N801 - reads as a statement: ``with operation("price lookup"):``
    """A named stretch of work: a span, a duration and a name in ``/_tasks``.

    A context manager, with or without ``async``, and a decorator for functions and coroutine
    functions.  ``name`` should be one of few (it labels a metric); what varies goes into
    ``attributes``, which become the span's.  The span has ``async.operation=name``, is
    current within, and the ``with`` gives it.  An exception is recorded and passes through.
    What is secret in ``attributes``, by its name or form, is redacted as in log fields.

    Durations are observed in ``async_operation_duration_seconds{operation, outcome}`` with
    ``ok``, ``error`` or ``cancelled``.

    Each ``with`` takes an ``operation`` of its own.  Raises ``TypeError`` for a name that is
    no text.
    """

    def __init__(self, name: str, /, **attributes: Any) -> None:
        check_instance("operation(name)", name, str)
        self._name = valid(title(name))
        self._attributes = {key: _redacted(key, value) for key, value in attributes.items()}

    def __enter__(self) -> Span:
        self._scope = scope = current_scope()
        self._meter = Meter() if scope is None else scope.meter
        self._span = self._started_span()
        self._around = context_api.get_current()
        context_api.attach(trace.set_span_in_context(self._span))
        self._task = running_task()
        if self._task is not None:
            self._outer = name_operation(self._task, self._name)
        self._at, self._started = time_ns(), perf_counter()
        exchange = current_exchange()
        self._step = None if exchange is None else exchange.begin_step("operation", self._name, self._started)
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seconds = perf_counter() - self._started
        if self._task is not None:
            name_operation(self._task, self._outer)
        # Not a token's detach: an async generator may be finalised in another context.
        if trace.get_current_span() is self._span:
            context_api.attach(self._around)
        if self._step is not None:
            self._step.end(seconds, None if exc is None else type(exc).__qualname__)
        self._meter.operation(self._name, _outcome_of(exc), seconds)
        try:
            _mark(self._span, exc)
            self._span.end(self._at + int(seconds * 1e9))  # the wall clock may have been set meanwhile
        except Exception:  # of a span processor of the service's
            self._meter.internal_error("operation")

    def _started_span(self) -> Span:
        scope, attributes = self._scope, {"async.operation": self._name, **self._attributes}
        try:
            if scope is not None and scope.tracer is not None:
                span: Span = scope.tracer.start(self._name, attributes)
                return span
            return trace.get_tracer("aiohttp_observe").start_span(self._name, attributes=attributes)
        except Exception:  # of a sampler or span processor of the service's
            self._meter.internal_error("operation")
            return trace.INVALID_SPAN

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, traceback)

    def __call__(self, function: F) -> F:
        """Decorate: every call is an operation of its own."""
        name, attributes = self._name, self._attributes

        if _is_async(function):

            @functools.wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                with operation(name, **attributes):
                    return await function(*args, **kwargs)

            return call_async  # type: ignore[return-value]

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"@operation({name!r}) takes a function or coroutine function, got the generator "
                f"{function!r}: write 'with operation(...)' inside it"
            )

        is_known = False

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_known
            with operation(name, **attributes):
                result = function(*args, **kwargs)
            if inspect.iscoroutine(result) and not is_known:
                is_known = True
                logger.warning(
                    "operation %r has ended before the coroutine that %s has made began: "
                    "decorate the 'async def' itself, beneath other decorators",
                    name,
                    qualified_name(function),
                )
            return result

        return call  # type: ignore[return-value]


def _is_async(function: Any) -> bool:
    """Whether it is a coroutine function, or an object that is called as one."""
    return inspect.iscoroutinefunction(function) or (
        not isinstance(function, type) and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    )


def _redacted(name: str, value: Any) -> Any:
    if is_secret(name):
        return MARK
    if type(value) in (list, tuple):
        return [in_text(item) if isinstance(item, str) else item for item in value]
    return in_text(value) if isinstance(value, str) else value


def _outcome_of(exc: BaseException | None) -> str:
    if exc is None:
        return "ok"
    return "cancelled" if isinstance(exc, (asyncio.CancelledError, GeneratorExit)) else "error"


def _mark(span: Span, exc: BaseException | None) -> None:
    """Have the span say how the operation went."""
    if isinstance(exc, (asyncio.CancelledError, GeneratorExit)):
        span.set_attribute("error.type", "cancelled")
    elif exc is not None:
        fail(span, exc)
