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
from opentelemetry.trace import StatusCode

from aiohttp_observe import Tracing, setup_observability
from tests.service import serving, until

ABSENT = None

DIFFERENCES: dict[str, tuple[Any, Any, str]] = {
    # attribute: our value, the oracle's, and why
    "client.address": ("127.0.0.1", ABSENT, "recommended by the conventions; the oracle leaves it out"),
    "http.route": (ABSENT, "", "the oracle gives an empty route where none matched; the conventions, none"),
    "http.response.status_code": (
        500,
        ABSENT,
        "what a crash is answered with; the oracle misses it",
    ),
    "(status)": (
        (StatusCode.ERROR, None),
        (StatusCode.ERROR, "Non-integer HTTP status: LookupError"),
        "of a crash: the oracle takes the exception's name for a status; it is in error.type",
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
HOSTS = {
    "a port": "shop.example:8080",
    "no port": "shop.example",
    "capitals": "Shop.Example:8080",
    "an address": "[::1]:8080",
    "an address without a port": "[::1]",
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


async def spans(method: str, path: str, host: str = "shop.example:8080") -> tuple[ReadableSpan, ReadableSpan]:
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
                "Host": host,
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


def differences(ours: ReadableSpan, theirs: ReadableSpan) -> dict[str, tuple[Any, Any]]:
    """What each of the two says where they don't say the same."""
    said, expected = _told(ours), _told(theirs)
    names = said.keys() | expected.keys()
    return {
        name: (said.get(name), expected.get(name)) for name in names if said.get(name) != expected.get(name)
    }


def _told(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span, and all else that it says of its request."""
    facts = span.attributes or {}
    return {
        # Where the time went is ours alone, and only with waits that are long enough to tell.
        **{name: value for name, value in facts.items() if not name.startswith("async.")},
        "(name)": span.name,
        "(kind)": span.kind,
        "(parent)": span.parent,
        "(status)": (span.status.status_code, span.status.description),
        "(events)": [
            (event.name, {**(event.attributes or {}), "exception.stacktrace": ...}) for event in span.events
        ],
    }


LISTED = {name: (ours, theirs) for name, (ours, theirs, _) in DIFFERENCES.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("oracle")
async def test_the_span_differs_from_the_oracles_only_as_listed(case: str) -> None:
    found = differences(*await spans(*CASES[case]))
    assert found == {name: LISTED.get(name, "nothing") for name in found}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
@pytest.mark.usefixtures("oracle")
async def test_the_host_is_told_as_the_oracle_tells_it(host: str) -> None:
    found = differences(*await spans("GET", "/orders/7", host))
    assert found == {"client.address": LISTED["client.address"]}


@pytest.mark.usefixtures("oracle")
async def test_every_listed_difference_is_real() -> None:
    found: set[str] = set()
    for method, path in CASES.values():
        found |= differences(*await spans(method, path)).keys()
    assert found == DIFFERENCES.keys()


@pytest.mark.parametrize("host", ["x:99999", "x:no", "x:\u0663", "::::", "]", "", "@", "\xff:1"])
async def test_a_host_that_is_none_costs_neither_request_nor_span(host: str) -> None:
    """The oracle answers some of these with 500."""
    provider, exporter = recording()
    app = application()
    _ours(app, provider)
    async with serving(app) as service:
        assert (await service.get("/orders/7", headers={"Host": host})).status == 200
    (span,) = exporter.get_finished_spans()
    assert "server.port" not in (span.attributes or {}) or (span.attributes or {})["server.port"] in (1, 80)
