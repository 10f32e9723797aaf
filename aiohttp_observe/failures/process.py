"""Failures outside of any loop: coroutines never awaited, threads, and where nothing can be raised."""

from __future__ import annotations

import re
import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType, FunctionType
from typing import Any

from ..exchange import Exchange, current_exchange
from ..tasks import place_of, raised_in
from ..texts import qualified_name
from .line import log_never_awaited, log_raised, made_at
from .listener import FailureListener, concerned

__all__ = ["Hook", "never_awaited", "raised_in_threads", "unraisable"]

_function = re.compile(r"<function ([\w.<>]+) at 0x[0-9a-f]+>")
"""As Python 3.14 has it in the message."""

Tell = Callable[[Any, "Exchange | None", FailureListener], None]


class Hook:
    """Hears of what the interpreter calls a function of a module with, while an application runs.

    The function that was there is called as before, unless it is ``silenced``, the default
    that prints to standard error.  Of several applications the one that the running request
    belongs to is told, else the latest.
    """

    def __init__(self, module: Any, name: str, tell: Tell, silenced: Any = None) -> None:
        self._module = module
        self._name = name
        self._tell = tell
        self._silenced = silenced
        self._lock = threading.Lock()
        self._hearing: _Hearing | None = None

    def enter(self, listener: FailureListener) -> None:
        with self._lock:
            if self._hearing is None:
                original = getattr(self._module, self._name, None)
                if original is None:
                    return
                self._hearing = _Hearing(self._tell, original, original is not self._silenced)
                setattr(self._module, self._name, self._hearing)
            self._hearing.listeners.append(listener)

    def leave(self, listener: FailureListener) -> None:
        with self._lock:
            hearing = self._hearing
            if hearing is None:
                return
            hearing.listeners.remove(listener)
            if not hearing.listeners:
                self._hearing = None
                hearing.calls_original = True
                if getattr(self._module, self._name) is hearing:
                    setattr(self._module, self._name, hearing.original)


class _Hearing:
    """What stands in the function's place.  One that somebody else has gone before stays, and passes on."""

    def __init__(self, tell: Tell, original: Callable[[Any], Any], calls_original: bool) -> None:
        self.listeners: list[FailureListener] = []
        self.original = original
        self.calls_original = calls_original
        self._tell = tell
        self._pass_on = _one_frame_deeper(original) if _warns(original) else original

    def __call__(self, told: Any) -> None:
        listeners = list(self.listeners)
        if listeners:
            listener = listeners[-1]
            try:
                exchange = current_exchange()
                listener = concerned(exchange, listeners, listener)
                self._tell(told, exchange, listener)
            except Exception:
                listener.meter.internal_error("failures")
        if self.calls_original:
            self._pass_on(told)


def _warns(original: Any) -> bool:
    """Whether it is Python's own way to warn of a coroutine, in the name of whoever has called it."""
    plain = isinstance(original, FunctionType) and original.__closure__ is None
    return plain and original.__module__ == "warnings"


def _one_frame_deeper(original: Any) -> Callable[[Any], Any]:
    """``original``, warning in the name of its caller's caller: filters of warnings go by the file."""

    def warn(message: str, category: type[Warning], stacklevel: int, source: Any) -> None:
        warnings.warn(message, category, stacklevel + 2, source)

    return FunctionType(original.__code__, {**original.__globals__, "warn": warn})


def _tell_never_awaited(coro: Any, exchange: Exchange | None, listener: FailureListener) -> None:
    listener.meter.unhandled("never_awaited")
    dropped_in: FrameType = sys._getframe(2)
    log_never_awaited(coro, dropped_in, exchange)
    frame = made_at(coro) or place_of(dropped_in.f_code, dropped_in.f_lasti)
    listener.incidents.unhandled("never_awaited", coro=qualified_name(coro), frame=frame, exchange=exchange)


def _tell_thread(args: Any, exchange: Exchange | None, listener: FailureListener) -> None:
    if args.exc_type is SystemExit:  # the thread's own way to end
        return
    name = getattr(args.thread, "name", None) or "unknown"
    _tell_raised(f"Exception in thread {name}", args.exc_value, exchange, listener)


def _tell_unraisable(args: Any, exchange: Exchange | None, listener: FailureListener) -> None:
    exc = args.exc_value
    if isinstance(exc, RuntimeWarning) and str(exc).partition("\n")[0].endswith("was never awaited"):
        return  # told as such; where its maker is remembered, that is in further lines
    what = _function.sub(r"\1", str(args.err_msg or "Exception ignored in"))
    message = what if args.object is None else f"{what.removesuffix(' in')} in {qualified_name(args.object)}"
    _tell_raised(message, exc, exchange, listener)


def _tell_raised(
    message: str, exc: BaseException | None, exchange: Exchange | None, listener: FailureListener
) -> None:
    listener.meter.unhandled("other")
    log_raised(message, exc, exchange)
    exception = None if exc is None else type(exc).__qualname__
    listener.incidents.unhandled("other", exception=exception, frame=raised_in(exc), exchange=exchange)


never_awaited = Hook(warnings, "_warn_unawaited_coroutine", _tell_never_awaited)
"""The interpreter calls it before any filter or once-per-line registry, and the warning stays as it was."""

raised_in_threads = Hook(threading, "excepthook", _tell_thread, threading.__excepthook__)
unraisable = Hook(sys, "unraisablehook", _tell_unraisable, sys.__unraisablehook__)
"""For exceptions in ``__del__``, in weak references' callbacks and the like."""
