"""Our client span next to the official instrumentation's, of the same calls.

As in `test_tracing_oracle`, wherever ours says something else, that stands in `DIFFERENCES`
with its reason.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.instrumentation._semconv import _StabilityMode
from opentelemetry.instrumentation.aiohttp_client import create_trace_config
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider

from aiohttp_observe import CLIENT_SESSION, Tracing, setup_observability
from tests.service import free_port, serving
from tests.spans import Spans

ABSENT = None
DIFFERENCES: dict[str, tuple[Any, Any, str]] = {
    # what is told: ours, the oracle's, and why
    "url.full": (
        "http://127.0.0.1:0/status/200?page=2&token=REDACTED",
        "http://127.0.0.1:0/status/200?page=2&token=hush",
        "the oracle knows four names of secrets",
    ),
    "http.request.resend_count": (1, ABSENT, "recommended by the conventions; the oracle leaves it out"),
    "http.response.status_code": (404, ABSENT, "of a status that is raised: the oracle misses it"),
    "exception.message": (
        "https://REDACTED@elsewhere/?token=REDACTED",
        "https://user:hush@elsewhere/?token=hush",
        "messages of exceptions have secrets in them, too",
    ),
}
LISTED = {name: (ours, theirs) for name, (ours, theirs, _) in DIFFERENCES.items()}

Call = Callable[[aiohttp.ClientSession, str], Awaitable[Any]]
"""Calls a server at an address."""


def request(method: str, path: str, **options: Any) -> Call:
    async def call(session: aiohttp.ClientSession, target: str) -> None:
        async with session.request(method, target + path, **options) as response:
            await response.read()

    return call


async def call_nobody(session: aiohttp.ClientSession, target: str) -> None:
    await session.get(f"http://127.0.0.1:{PORT}/")


async def fail_in_a_middleware(session: aiohttp.ClientSession, target: str) -> None:
    async def middleware(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        raise aiohttp.ClientError("https://user:hush@elsewhere/?token=hush")

    await session.get(f"{target}/status/200", middlewares=[middleware])


async def call_with_credentials(session: aiohttp.ClientSession, target: str) -> None:
    await request("GET", "/status/200")(session, target.replace("//", "//user:hush@"))


PORT = free_port()
CASES: dict[str, Call] = {
    "a call": request("GET", "/status/200"),
    "a body": request("POST", "/status/200", json={"a": 1}),
    "a query": request("GET", "/status/200?page=2&Signature=hush"),
    "a secret in the query": request("GET", "/status/200?page=2&token=hush"),
    "a fragment": request("GET", "/status/200#part"),
    "another script": request("GET", "/status/200?name=é"),
    "credentials": call_with_credentials,
    "an unknown method": request("PROPFIND", "/status/200"),
    "not found": request("GET", "/status/404"),
    "a server error": request("GET", "/status/503"),
    "a status that is raised": request("GET", "/status/404", raise_for_status=True),
    "a redirect": request("GET", "/away"),
    "nobody there": call_nobody,
    "a failure in a middleware": fail_in_a_middleware,
}


@asynccontextmanager
async def target() -> AsyncIterator[str]:
    """The address of a server."""

    async def answer(request: web.Request) -> web.Response:
        headers = {"X-Answer": "42", "X-Session": "secret"}
        return web.Response(status=int(request.match_info["status"]), text="body", headers=headers)

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound("/status/200")

    app = web.Application()
    app.router.add_route("*", "/status/{status}", answer)
    app.router.add_get("/away", redirect)
    async with serving(app) as service:
        yield service.url("")


@pytest.fixture(autouse=True)
def _captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST", "accept,x-session")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_RESPONSE", "x-answer,x-session")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", ".*session.*")


@asynccontextmanager
async def our_session(provider: TracerProvider) -> AsyncIterator[aiohttp.ClientSession]:
    app = web.Application()
    setup_observability(app, tracing=Tracing(provider=provider), metrics=None, logs=None)
    async with serving(app):
        yield app[CLIENT_SESSION]


@asynccontextmanager
async def the_oracles_session(provider: TracerProvider) -> AsyncIterator[aiohttp.ClientSession]:
    config = create_trace_config(
        tracer_provider=provider,
        sem_conv_opt_in_mode=_StabilityMode.HTTP,
        captured_request_headers=["accept", "x-session"],
        captured_response_headers=["x-answer", "x-session"],
        sensitive_headers=[".*session.*"],
    )
    async with aiohttp.ClientSession(trace_configs=[config]) as session:
        yield session


async def spans(call: Call, **ours: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What our span, of a provider with the options ``ours``, and the oracle's tell of the same call."""
    told = []
    for make, options in ((our_session, ours), (the_oracles_session, {})):
        made = Spans(**options)
        async with target() as address, make(made.provider) as session:
            session.headers["X-Session"] = "secret"
            with suppress(aiohttp.ClientError):
                await call(session, address)
        (span,) = made.clients
        told.append(_told(span, int(address.rpartition(":")[2])))
    return told[0], told[1]


def _told(span: ReadableSpan, port: int) -> dict[str, Any]:
    """The attributes of a span, and all else that it says of its call to a server at any ``port``."""
    facts: dict[str, Any] = {**(span.attributes or {})}
    for event in span.events:
        facts |= {**(event.attributes or {}), "exception.stacktrace": ...}
    facts = {name: _at_any(port, value) for name, value in facts.items()}
    return {
        **facts,
        "(name)": span.name,
        "(kind)": span.kind,
        "(parent)": span.parent,
        "(status)": (span.status.status_code, span.status.description),
        "(events)": [event.name for event in span.events],
    }


def _at_any(port: int, value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(f":{port}/", ":0/")
    return 0 if value == port else value


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What each of the two says where they don't say the same."""
    names = ours.keys() | theirs.keys()
    return {name: (ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)}


LIMITS = {"light": SpanLimits(), "the SDK's": SpanLimits(max_span_attribute_length=1000)}
"""A provider with such a limit has all its spans made by the SDK."""


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("case", CASES)
async def test_the_span_differs_from_the_oracles_only_as_listed(case: str, limits: SpanLimits) -> None:
    found = differences(*await spans(CASES[case], span_limits=limits))
    assert found == {name: LISTED.get(name, "nothing") for name in found}


async def test_every_listed_difference_is_real() -> None:
    found: set[str] = set()
    for call in CASES.values():
        found |= differences(*await spans(call)).keys()
    assert found == DIFFERENCES.keys()
