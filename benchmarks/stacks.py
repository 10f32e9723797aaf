"""The servers that are compared: one application, observed in different ways."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased

__all__ = ["HANDLERS", "STACKS"]

Setup = Callable[[web.Application], None]


class Discard(SpanExporter):
    """Takes every batch, as a collector next door would."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def provider(ratio: float) -> TracerProvider:
    sampler = ALWAYS_ON if ratio >= 1 else ParentBased(TraceIdRatioBased(ratio))
    made = TracerProvider(sampler=sampler)
    made.add_span_processor(BatchSpanProcessor(Discard()))
    return made


def bare(app: web.Application) -> None:
    pass


def access_log(app: web.Application) -> None:
    """aiohttp's own plain access log, to where the others write too."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")


def ours(ratio: float, **pillars: Any) -> Setup:
    def setup(app: web.Application) -> None:
        from aiohttp_observe import Tracing, setup_observability

        tracing = Tracing(provider=provider(ratio))
        setup_observability(app, **{"tracing": tracing, **pillars})

    return setup


_OFF = dict.fromkeys(("metrics", "logs", "tracing", "failures", "tasks", "loop_watch", "client", "admin"))


def only(name: str) -> Setup:
    def setup(app: web.Application) -> None:
        import aiohttp_observe

        kind = getattr(aiohttp_observe, name.title().replace("_", ""))
        pillar = kind(provider=provider(1.0)) if name == "tracing" else kind()
        ours(1.0, **{**_OFF, name: pillar})(app)

    return setup


def opentelemetry(ratio: float) -> Setup:
    """The official aiohttp-server instrumentation alone, traces and metrics, stable conventions."""

    def setup(app: web.Application) -> None:
        from opentelemetry import metrics
        from opentelemetry.instrumentation.aiohttp_server import (
            AioHttpServerInstrumentor,
            create_aiohttp_middleware,
        )
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
        metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
        AioHttpServerInstrumentor().instrument()
        app.middlewares.insert(0, create_aiohttp_middleware(tracer_provider=provider(ratio)))

    return setup


STACKS: dict[str, Setup] = {
    "bare": bare,
    "bare again": bare,
    "aiohttp access log": access_log,
    "all": ours(1.0),
    "all at 1 %": ours(0.01),
    "OpenTelemetry": opentelemetry(1.0),
    "OpenTelemetry at 1 %": opentelemetry(0.01),
    "no pillar": ours(1.0, **_OFF),
    **{
        f"only {name}": only(name)
        for name in ("metrics", "logs", "tracing", "failures", "tasks", "loop_watch", "client", "admin")
    },
}


async def json_handler(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


async def awaits_handler(request: web.Request) -> web.Response:
    for _ in range(3):
        await asyncio.sleep(0)
    logging.getLogger("bench").info("three awaits done")
    return web.json_response({"ok": True})


HANDLERS = {"json": json_handler, "awaits": awaits_handler}


def application(stack: str) -> web.Application:
    app = web.Application()
    STACKS[stack](app)
    for name, handler in HANDLERS.items():
        app.router.add_get(f"/{name}/{{id}}", handler)
    return app


def main(stack: str, core: int) -> None:
    os.sched_setaffinity(0, {core})
    if stack.startswith(("bare", "OpenTelemetry")):
        logging.disable(logging.INFO)  # no access log

    async def run() -> None:
        runner = web.AppRunner(application(stack))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(f"port {runner.addresses[0][1]}", file=sys.stderr, flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
