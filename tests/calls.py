"""A front service that calls a back service, and what is told of the calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
from aiohttp import web
from opentelemetry.sdk.trace import ReadableSpan
from prometheus_client import CollectorRegistry

from aiohttp_observe import CLIENT_SESSION, Exchange, Metrics, Tracing, current_exchange, setup_observability
from tests.service import Service, serving, until
from tests.spans import Spans

__all__ = ["DURATION", "PHASES", "Call", "Pair", "call_once", "fetch", "serving_pair"]

DURATION = "http_client_request_duration_seconds"
PHASES = "http_client_phase_seconds"

Call = Callable[["Pair", aiohttp.ClientSession], Awaitable[object]]


class Pair:
    """A front service that calls a back service.  Both are observed, each on its own."""

    def __init__(self, registry: CollectorRegistry, spans: Spans) -> None:
        self.registry = registry
        self.spans = spans
        self.back_spans = Spans()
        self.heard: list[dict[str, str]] = []
        self.exchanges: list[Exchange | None] = []
        self.goes_on = asyncio.Event()
        self.front = web.Application()
        self.back = self._made_back()
        self._observe(self.front, registry, spans)
        self._observe(self.back, CollectorRegistry(), self.back_spans)
        self.target = ""

    def _observe(self, app: web.Application, registry: CollectorRegistry, spans: Spans) -> None:
        setup_observability(
            app, metrics=Metrics(registry=registry), logs=None, tracing=Tracing(provider=spans.provider)
        )

    def _made_back(self) -> web.Application:
        back = web.Application()
        back.router.add_get("/status/{status}", self._answer)
        back.router.add_get("/two-parts", self._answer_in_two_parts)
        back.router.add_get("/never", self._never_answer)
        back.router.add_get("/endless", self._answer_without_end)
        back.router.add_get("/redirect/{times}", self._redirect)
        back.router.add_get("/cut", self._break_off)
        back.router.add_get("/socket", self._echo)
        return back

    async def _answer(self, request: web.Request) -> web.Response:
        self.heard.append(dict(request.headers))
        return web.Response(status=int(request.match_info["status"]), text="body")

    async def _answer_in_two_parts(self, request: web.Request) -> web.StreamResponse:
        """The second part comes when the test lets it."""
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        with suppress(ConnectionError):
            await self.goes_on.wait()
            await response.write(b"last")
        return response

    async def _never_answer(self, request: web.Request) -> web.Response:
        await until(lambda: request.transport is None, "the client to leave")
        return web.Response()

    async def _answer_without_end(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await until(lambda: request.transport is None, "the client to leave")
        return response

    async def _redirect(self, request: web.Request) -> web.Response:
        self.heard.append(dict(request.headers))
        times = int(request.match_info["times"])
        raise web.HTTPFound(f"/redirect/{times - 1}" if times > 1 else "/status/200")

    async def _break_off(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"first")
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def the_span(self) -> ReadableSpan:
        await until(lambda: self.spans.clients, "a client span")
        (span,) = self.spans.clients
        return span

    def counted(self, **labels: str) -> float:
        """How many calls with these labels have ended."""
        return self.sample(f"{DURATION}_count", **labels)

    def sample(self, name: str, **labels: str) -> float:
        """The sum over the series that have these labels."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def phases(self) -> dict[str, float]:
        """How often each phase was seen."""
        return {
            sample.labels["phase"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"{PHASES}_count"
        }


@asynccontextmanager
async def serving_pair(pair: Pair, call: Call) -> AsyncIterator[Service]:
    """Each ``GET /`` of the front service runs ``call(pair, session)`` and answers what it returns."""

    async def front(request: web.Request) -> web.Response:
        pair.exchanges.append(current_exchange())
        return web.Response(text=str(await call(pair, request.app[CLIENT_SESSION])))

    pair.front.router.add_get("/", front)
    async with serving(pair.back, shutdown_timeout=0.1) as back, serving(pair.front) as service:
        pair.target = back.url("")
        yield service


async def call_once(pair: Pair, call: Call) -> None:
    """Make the front service ``call`` in a request, and see that nothing failed there."""
    async with serving_pair(pair, call) as service:
        assert (await service.get("/")).status == 200


async def fetch(pair: Pair, session: aiohttp.ClientSession) -> str:
    async with session.get(f"{pair.target}/status/200") as response:
        return await response.text()
