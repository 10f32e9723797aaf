"""Where spans go: the provider in use, or one built from the ``OTEL_*`` variables."""

from __future__ import annotations

import importlib.util
import os
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.trace import ProxyTracerProvider, SpanContext

from ..exchange import Meter

__all__ = [
    "CARRIED",
    "LINK",
    "Batches",
    "Linker",
    "OwnProvider",
    "check_exporters",
    "get_tracer",
    "global_provider",
]

_SCHEMA = "https://opentelemetry.io/schemas/1.27.0"
_BATCHES = {
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": 512,
    "OTEL_BSP_SCHEDULE_DELAY": 5000,
    "OTEL_BSP_MAX_QUEUE_SIZE": 2048,
}
"""Variables and their defaults."""
_EXPORT_SECONDS = 5.0
_ABORT_SECONDS = 1.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

LINK: ContextVar[SpanContext | None] = ContextVar("aiohttp_observe_link", default=None)
"""Where a detached task came from: what the first span of each trace it starts links to."""

CARRIED: ContextVar[Mapping[str, str] | None] = ContextVar("aiohttp_observe_carried", default=None)
"""The baggage that every span made in this context shows."""


def check_exporters() -> list[str]:
    """The names in ``OTEL_TRACES_EXPORTER``; ``otlp`` if only an endpoint is set, else none.

    Raises ``ValueError`` or ``RuntimeError`` for what can't be honoured.
    """
    named = os.environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not named:
        named = "otlp" if any(os.environ.get(name) for name in _ENDPOINTS) else "none"
    exporters = [name.strip() for name in named.split(",")]
    for name in exporters:
        if name not in ("otlp", "console", "none"):
            raise ValueError(f"OTEL_TRACES_EXPORTER takes otlp, console or none, got {name!r}")
    if "otlp" in exporters:
        _check_otlp()
    if exporters != ["none"]:
        _check_batches()
    return exporters


def _check_batches() -> None:
    """The SDK would log what is no number, and fail at start-up for one that can't be."""
    size, _, queue = (_positive(name, default) for name, default in _BATCHES.items())
    if size > queue:
        batch_size, _, queue_size = _BATCHES
        raise ValueError(f"{batch_size} takes at most {queue_size}, which is {queue}, got {size}")


def _positive(name: str, default: int) -> int:
    value = os.environ.get(name, "").strip() or str(default)
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ValueError(f"{name} takes a whole number above 0, got {value!r}")
    return int(value)


def _check_otlp() -> None:
    protocol = os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    )
    if protocol != "http/protobuf":
        raise ValueError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} isn't built in: use http/protobuf, "
            "or pass a provider of your own with Tracing(provider=...)"
        )
    for name in _ENDPOINTS:
        endpoint = os.environ.get(name, "")
        if endpoint and not endpoint.lower().startswith(("http://", "https://")):
            raise ValueError(f"{name} takes a URL such as 'http://localhost:4318', got {endpoint!r}")
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise RuntimeError(
            "the OTLP exporter isn't installed: pip install 'aiohttp-observe[otlp]', "
            "or set OTEL_TRACES_EXPORTER=none"
        )


class OwnProvider(TracerProvider):
    """A provider as the ``OTEL_*`` variables describe it, but for an explicit service name."""

    def __init__(self, meter: Meter, service_name: str | None) -> None:
        named = {} if service_name is None else {"service.name": service_name}
        try:
            resource = Resource.create(named)
        except RuntimeError:  # it takes threads, and the process may have no more of them
            resource = Resource(named)
        super().__init__(resource=resource)
        for name in check_exporters():
            if name != "none":
                self.add_span_processor(Batches(_Counted(_exporter(name), meter), meter))


class Batches(BatchSpanProcessor):
    """The SDK's, but what it drops is counted, and its end is bounded."""

    def __init__(self, exporter: _Counted, meter: Meter) -> None:
        super().__init__(exporter)
        self._counted = exporter
        self._meter = meter
        self._taking = threading.RLock()  # a finalizer may end a span in the midst of it

    def on_end(self, span: ReadableSpan) -> None:
        if span.context and span.context.trace_flags.sampled:
            self.take(span)

    def take(self, span: ReadableSpan) -> None:
        """Queue a sampled span for export."""
        batches = self._batch_processor
        with self._taking:  # spans end in any thread
            has_room = len(batches._queue) < batches._max_queue_size and not batches._shutdown
            if has_room:
                batches.emit(span)
        if not has_room:
            self._meter.dropped("spans")

    def shutdown(self) -> None:
        """Export what is queued, within six seconds: the interpreter, too, waits for this at its end.

        A collector that is down would have the exporter retry; then what is left is lost, and counted,
        and so is what a collector that hangs has been sent without an answer.
        """
        batches = self._batch_processor
        batches.shutdown(int(_EXPORT_SECONDS * 1000))
        batches._worker_thread.join(_ABORT_SECONDS)
        left = len(batches._queue) + self._counted.give_up()
        if left:
            batches._queue.clear()
            self._meter.dropped("spans", left)


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class _Counted(SpanExporter):
    """An exporter whose losses are counted."""

    def __init__(self, exporter: SpanExporter, meter: Meter) -> None:
        self._exporter = exporter
        self._meter = meter
        self._sending: list[int] = []
        self._shut_down = False

    def export(self, spans: Any) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        self._sending.append(len(spans))
        try:
            if not self._shut_down:
                result = self._exporter.export(spans)
        finally:
            with suppress(IndexError):  # given up, and counted, meanwhile
                sent = self._sending.pop()
                if result is not SpanExportResult.SUCCESS:
                    self._meter.dropped("spans", sent)
        return result

    def give_up(self) -> int:
        """No longer wait for the answer to what is being sent; returns how many spans that is."""
        with suppress(IndexError):
            return self._sending.pop()
        return 0

    def shutdown(self) -> None:
        if not self._shut_down:
            self._shut_down = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class Linker(SpanProcessor):
    """Puts on a span what belongs there from where it starts: chosen baggage, and a link.

    The first span of each trace started in a detached task links to where the task came from.
    """

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        carried = CARRIED.get()
        if carried is not None:
            span.set_attributes(carried)
        origin = LINK.get()
        if origin is not None and span.parent is None:
            span.add_link(origin)

    def on_end(self, span: ReadableSpan) -> None:
        pass


_linker = Linker()


def _add_linker(provider: trace.TracerProvider) -> None:
    """Add the one linker, once: a provider may serve many applications, and takes nothing back."""
    if not isinstance(provider, TracerProvider):
        return
    known = getattr(provider, "_aiohttp_observe_linked", False)
    if not known:
        provider._aiohttp_observe_linked = True  # type: ignore[attr-defined]
        provider.add_span_processor(_linker)


def get_tracer(provider: trace.TracerProvider) -> trace.Tracer:
    """Our tracer of ``provider``, which also gets the linker."""
    _add_linker(provider)
    filters = warnings.filters[:]
    try:
        return provider.get_tracer("aiohttp_observe", schema_url=_SCHEMA)
    finally:  # the SDK adds a warnings filter on each call
        warnings.filters[:] = filters  # type: ignore[index]


def global_provider() -> trace.TracerProvider | None:
    """The provider the service has set for the process, if it has."""
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, ProxyTracerProvider) else provider
