"""A provider whose spans can be read, and a service that is traced with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import SpanContext, SpanKind

from aiohttp_observe import Tracing, setup_observability
from tests.service import Service, Witness, serving, until

__all__ = ["Deciding", "Handler", "Spans", "attributes", "ids", "ok", "traced"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Spans:
    """The spans that ``provider`` has ended; ``options`` are those of `TracerProvider`."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @property
    def servers(self) -> list[ReadableSpan]:
        return [span for span in self.all if span.kind is SpanKind.SERVER]

    @property
    def clients(self) -> list[ReadableSpan]:
        return [span for span in self.all if span.kind is SpanKind.CLIENT]

    def named(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.all if span.name == name)
        return span

    async def until(self, count: int) -> tuple[ReadableSpan, ...]:
        """All spans, once there are ``count``."""
        await until(lambda: len(self.all) >= count, f"{count} spans")
        return self.all


class Deciding(Sampler):
    """Samples as ``decide`` does, given name, kind and attributes of a span."""

    def __init__(self, decide: Callable[[str, SpanKind | None, Any], SamplingResult]) -> None:
        self._decide = decide

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> SamplingResult:
        return self._decide(name, kind, attributes)

    def get_description(self) -> str:
        return "Deciding"


def ids(span: ReadableSpan) -> SpanContext:
    """Where ``span`` stands in its trace."""
    context: SpanContext | None = span.get_span_context()
    assert context is not None
    return context


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of ``span``, to look into."""
    return dict(span.attributes or {})


async def ok(request: web.Request) -> web.StreamResponse:
    """Answers 200."""
    return web.Response()


@asynccontextmanager
async def traced(
    spans: Spans, handler: Handler = ok, *, app: web.Application | None = None, **runner: Any
) -> AsyncIterator[tuple[Service, Witness]]:
    """A service that answers ``GET /`` with ``handler``, and a witness of its requests' ends."""
    app = web.Application() if app is None else app
    app.router.add_get("/", handler)
    witness = Witness()
    tracing = Tracing(provider=spans.provider)
    setup_observability(app, tracing=tracing, metrics=None, logs=None, observers=[witness])
    async with serving(app, **runner) as service:
        yield service, witness
