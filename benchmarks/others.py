"""How other tools observe the same application, each as its own documentation has it."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider

__all__ = ["ddtrace", "elastic", "opentelemetry", "prometheus_exporter", "recipe", "sentry"]

Setup = Callable[[web.Application], None]


def opentelemetry(provider: Callable[[], TracerProvider]) -> Setup:
    """The official aiohttp-server instrumentation alone, traces and metrics, stable conventions."""

    def setup(app: web.Application) -> None:
        from opentelemetry import metrics
        from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
        from opentelemetry.instrumentation.aiohttp_server import (
            AioHttpServerInstrumentor,
            create_aiohttp_middleware,
        )
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        logging.disable(logging.INFO)
        os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
        metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
        traces = provider()
        AioHttpServerInstrumentor().instrument()
        AioHttpClientInstrumentor().instrument(tracer_provider=traces)
        app.middlewares.insert(0, create_aiohttp_middleware(tracer_provider=traces))

    return setup


def recipe(provider: Callable[[], TracerProvider]) -> Setup:
    """What teams wire by hand: OpenTelemetry, prometheus-async, a request id, a JSON access line."""

    def setup(app: web.Application) -> None:
        from prometheus_async.aio import time
        from prometheus_client import Counter, Histogram
        from pythonjsonlogger.json import JsonFormatter

        opentelemetry(provider)(app)
        logging.disable(logging.NOTSET)
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
        access = logging.getLogger("access")
        seconds = Histogram("request_seconds", "Duration of requests", ["route"])
        total = Counter("requests", "Requests", ["method", "route", "status"])
        request_id: ContextVar[str] = ContextVar("request_id")

        @web.middleware
        async def observe(request: web.Request, handler: Any) -> web.StreamResponse:
            resource = request.match_info.route.resource
            route = "unmatched" if resource is None else resource.canonical
            token = request_id.set(request.headers.get("X-Request-ID") or str(uuid.uuid4()))
            try:
                response: web.StreamResponse = await time(seconds.labels(route), handler(request))
                response.headers["X-Request-ID"] = request_id.get()
                total.labels(request.method, route, str(response.status)).inc()
                told = {"request_id": request_id.get(), "route": route, "status": response.status}
                access.info("%s %s", request.method, request.path, extra=told)
                return response
            finally:
                request_id.reset(token)

        app.middlewares.append(observe)

    return setup


def sentry(ratio: float) -> Setup:
    def setup(app: web.Application) -> None:
        import sentry_sdk
        from sentry_sdk.integrations.aiohttp import AioHttpIntegration
        from sentry_sdk.transport import Transport

        discard = type("Discard", (Transport,), {"capture_envelope": lambda self, envelope: None})
        logging.disable(logging.INFO)
        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1",
            transport=discard,
            traces_sample_rate=ratio,
            integrations=[AioHttpIntegration()],
        )

    return setup


def elastic(app: web.Application) -> None:
    from elasticapm.contrib.aiohttp import ElasticAPM

    logging.disable(logging.INFO)
    app["ELASTIC_APM"] = {"SERVICE_NAME": "bench", "DISABLE_SEND": True, "CENTRAL_CONFIG": False}
    ElasticAPM(app)


def ddtrace(app: web.Application) -> None:
    os.environ["DD_TRACE_ENABLED"] = "true"
    os.environ["DD_INSTRUMENTATION_TELEMETRY_ENABLED"] = "false"
    os.environ["DD_TRACE_AGENT_URL"] = "http://127.0.0.1:9"
    from ddtrace import config
    from ddtrace.contrib.internal.aiohttp.middlewares import trace_app
    from ddtrace.trace import tracer

    logging.disable(logging.CRITICAL)  # there is no agent, which it says again and again
    # As its own aiohttp integration does, which is loaded by ddtrace-run only.
    config._add("aiohttp", {"disable_stream_timing_for_mem_leak": False, "distributed_tracing": True})
    trace_app(app, tracer, service="bench")


def prometheus_exporter(app: web.Application) -> None:
    from aiohttp_prometheus_exporter.middleware import prometheus_middleware_factory

    logging.disable(logging.INFO)
    app.middlewares.append(prometheus_middleware_factory())
