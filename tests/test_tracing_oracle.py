"""Our server span next to the official instrumentation's, on the same requests.

The official middleware is the oracle: wherever our span says something else, that difference
stands in `DIFFERENCES` with its reason, and any other fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability as Stability
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor, create_aiohttp_middleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aiohttp_observe import Tracing, setup_observability
from tests.service import serving, until

ABSENT = None

DIFFERENCES: dict[str, tuple[Any, Any, str]] = {
    # attribute: our value, the oracle's (... for any), and why
    "client.address": ("127.0.0.1", ABSENT, "recommended by the conventions; the oracle leaves it out"),
    "http.route": (ABSENT, "", "the oracle gives an empty route where none matched; the conventions, none"),
    "http.response.status_code": (
        500,
        ABSENT,
        "what a crash is answered with; the oracle misses it",
    ),
    "url.path": (
        "/orders/%C3%A9",
        "/orders/é",
        "a path is sent, and searched for, encoded",
    ),
}
HEADERS = {"X-Asked": "why", "X-Session": "secret", "Host": "shop.example:8080", "User-Agent": "test"}
CASES = {
    "a route": ("GET", "/orders/7"),
    "a query": ("GET", "/orders/7?page=2&sort=up"),
    "a secret in the query": ("GET", "/orders/7?Signature=hush&page=2"),
    "an encoded path": ("GET", "/orders/%C3%A9"),
    "no route": ("GET", "/nowhere"),
    "no such method": ("DELETE", "/orders/7"),
    "an unknown method": ("PROPFIND", "/orders/7"),
    "a refusal": ("GET", "/refuse"),
    "a server error": ("GET", "/unavailable"),
    "a crash": ("GET", "/crash"),
}


def application() -> web.Application:
    async def order(request: web.Request) -> web.Response:
        return web.json_response({}, headers={"X-Answer": "42", "X-Session": "secret"})

    async def crash(request: web.Request) -> web.Response:
        raise LookupError("no such order")

    async def refuse(request: web.Request) -> web.Response:
        raise web.HTTPForbidden

    async def unavailable(request: web.Request) -> web.Response:
        raise web.HTTPServiceUnavailable

    app = web.Application()
    app.router.add_get("/orders/{id}", order)
    app.router.add_get("/crash", crash)
    app.router.add_get("/refuse", refuse)
    app.router.add_get("/unavailable", unavailable)
    return app


def recording() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The official middleware in its stable conventions, capturing headers as ours does."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "x-asked,x-session")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE", "x-answer,x-session")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", ".*session.*")
    monkeypatch.setattr(Stability, "_initialized", False)
    with warnings.catch_warnings():  # aiohttp warns of the subclass that the instrumentor makes
        warnings.simplefilter("ignore", DeprecationWarning)
        AioHttpServerInstrumentor().instrument()
    AioHttpServerInstrumentor().uninstrument()
    yield
    Stability._initialized = False


async def spans(method: str, path: str) -> tuple[ReadableSpan, ReadableSpan]:
    """Our span and the oracle's of the same request."""
    made = []
    for observe in (_ours, _the_oracles):
        provider, exporter = recording()
        app = application()
        observe(app, provider)
        async with serving(app) as service:
            headers = {
                "X-Asked": "why",
                "X-Session": "secret",
                "Host": "shop.example:8080",
                "User-Agent": "test",
            }
            await service.request(method, path, headers=headers)
            await until(exporter.get_finished_spans, "the span")
        (span,) = exporter.get_finished_spans()
        made.append(span)
    return made[0], made[1]


def _ours(app: web.Application, provider: TracerProvider) -> None:
    setup_observability(app, tracing=Tracing(provider=provider), metrics=None, logs=None)


def _the_oracles(app: web.Application, provider: TracerProvider) -> None:
    app.middlewares.append(create_aiohttp_middleware(tracer_provider=provider))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("oracle")
async def test_the_span_differs_from_the_oracles_only_as_listed(case: str) -> None:
    ours, theirs = await spans(*CASES[case])
    assert (ours.name, ours.kind) == (theirs.name, theirs.kind)
    assert ours.status.status_code == theirs.status.status_code
    assert [event.name for event in ours.events] == [event.name for event in theirs.events]
    said, expected = dict(ours.attributes or {}), dict(theirs.attributes or {})
    for name in sorted(said.keys() | expected.keys()):
        if said.get(name) != expected.get(name):
            our_value, their_value, _ = DIFFERENCES[name]
            assert (said.get(name), expected.get(name)) == (our_value, their_value), name


@pytest.mark.usefixtures("oracle")
async def test_every_listed_difference_is_real() -> None:
    found = set()
    for method, path in CASES.values():
        ours, theirs = await spans(method, path)
        said, expected = dict(ours.attributes or {}), dict(theirs.attributes or {})
        found |= {name for name in said.keys() | expected.keys() if said.get(name) != expected.get(name)}
    assert found == DIFFERENCES.keys()
