"""The servers that are compared: one application, observed in different ways."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp
from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased

from . import others
from .floor import floor

__all__ = ["OTHERS", "PARTS", "STACKS"]

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
    logging.disable(logging.INFO)  # no access log


def access_log(app: web.Application) -> None:
    """aiohttp's own plain access log, to where the others write too."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")


def ours(ratio: float, **pillars: Any) -> Setup:
    def setup(app: web.Application) -> None:
        from aiohttp_observe import Tracing, setup_observability

        tracing = Tracing(provider=provider(ratio))
        setup_observability(app, **{"tracing": tracing, **pillars})

    return setup


_PILLARS = ("metrics", "logs", "tracing", "failures", "tasks", "loop_watch", "client", "admin")
_OFF = dict.fromkeys(_PILLARS)


def only(name: str) -> Setup:
    def setup(app: web.Application) -> None:
        import aiohttp_observe

        if name != "logs":
            logging.disable(logging.INFO)
        kind = getattr(aiohttp_observe, name.title().replace("_", ""))
        pillar = kind(provider=provider(1.0)) if name == "tracing" else kind()
        ours(1.0, **{**_OFF, name: pillar})(app)

    return setup


def no_pillar(app: web.Application) -> None:
    """The request recorder alone."""
    logging.disable(logging.INFO)
    ours(1.0, **_OFF)(app)


def idle_middleware(app: web.Application) -> None:
    """What aiohttp itself does for any middleware and any signal: the floor of everybody here."""
    bare(app)

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        return response

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        pass

    app.middlewares.append(middleware)
    app.on_response_prepare.append(prepare)


STACKS: dict[str, Setup] = {
    "bare": bare,
    "aiohttp access log": access_log,
    "all": ours(1.0),
    "all at 1 %": ours(0.01),
    "OpenTelemetry": others.opentelemetry(lambda: provider(1.0)),
    "OpenTelemetry at 1 %": others.opentelemetry(lambda: provider(0.01)),
}
"""What the bars of the design are about."""

PARTS: dict[str, Setup] = {
    "bare again": bare,
    "idle middleware": idle_middleware,
    "floor, none sampled": floor,
    "no pillar": no_pillar,
    **{f"only {name}": only(name) for name in _PILLARS},
}
"""Where our time goes."""

OTHERS: dict[str, Setup] = {
    "hand-wired recipe": others.recipe(lambda: provider(1.0)),
    "hand-wired at 1 %": others.recipe(lambda: provider(0.01)),
    "sentry-sdk": others.sentry(1.0),
    "sentry-sdk at 1 %": others.sentry(0.01),
    "elastic-apm": others.elastic,
    "ddtrace": others.ddtrace,
    "prometheus exporter": others.prometheus_exporter,
}
"""What else there is."""


async def json_handler(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


async def awaits_handler(request: web.Request) -> web.Response:
    for _ in range(3):
        await asyncio.sleep(0)
    logging.getLogger("bench").info("three awaits done")
    return web.json_response({"ok": True})


async def outbound_handler(request: web.Request) -> web.Response:
    async with request.app[SESSION].get(os.environ["BENCH_UPSTREAM"]) as response:
        return web.Response(body=await response.read())


async def websocket_handler(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


SESSION = web.AppKey("SESSION", aiohttp.ClientSession)
HANDLERS: dict[str, Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]] = {
    "json": json_handler,
    "awaits": awaits_handler,
    "outbound": outbound_handler,
    "websocket": websocket_handler,
}


async def session(app: web.Application) -> AsyncIterator[None]:
    from aiohttp_observe import CLIENT_SESSION

    if CLIENT_SESSION in app:
        app[SESSION] = app[CLIENT_SESSION]
        yield
        return
    async with aiohttp.ClientSession() as made:
        app[SESSION] = made
        yield


def application(stack: str) -> web.Application:
    app = web.Application()
    {**STACKS, **PARTS, **OTHERS}[stack](app)
    app.cleanup_ctx.append(session)
    for name, handler in HANDLERS.items():
        app.router.add_get(f"/{name}/{{id}}", handler)
    return app


async def serve(stack: str) -> None:
    runner = web.AppRunner(application(stack))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"port {runner.addresses[0][1]}", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


def main(stack: str, core: int, loop: str) -> None:
    os.sched_setaffinity(0, {core})
    if loop == "uvloop":
        import uvloop

        uvloop.run(serve(stack))
    else:
        asyncio.run(serve(stack))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
