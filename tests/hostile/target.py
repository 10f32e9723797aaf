"""A service with everything on, in a thread of its own, to be attacked from this one."""

from __future__ import annotations

import asyncio
import http.client
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, Logs, Metrics, Tracing, setup_observability

__all__ = ["TOKEN", "Connection", "Target", "target"]

TOKEN = "correct horse battery staple"


class _Lines(io.StringIO):
    """Keeps what is written until it is taken."""

    def take(self) -> list[str]:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text.splitlines()


@dataclass
class Target:
    """The service's port, its numbers and its log lines."""

    port: int = 0
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    log: _Lines = field(default_factory=_Lines)

    def series(self) -> int:
        return sum(len(family.samples) for family in self.registry.collect())

    def internal_errors(self) -> float:
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "aiohttp_observe_internal_errors_total"
        )


class Connection:
    """A connection that is kept alive for as long as the server lets it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def send(self, head: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request line and headers as they are; status and body, status 0 for no answer."""
        sent = head.replace("\n", "\r\n").encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body
        try:
            return self._sent(sent, head)
        except (OSError, http.client.HTTPException):
            self.close()
            return 0, b""

    def _sent(self, sent: bytes, head: str) -> tuple[int, bytes]:
        if self._connection.sock is None:
            self._connection.connect()
        self._connection.sock.sendall(sent)
        response = http.client.HTTPResponse(self._connection.sock, method=head.partition(" ")[0])
        try:
            response.begin()
            if response.getheader("Content-Type", "").startswith("text/event-stream"):
                self.close()
                return response.status, b""
            read = response.read()
            if response.will_close:
                self.close()
            return response.status, read
        finally:
            response.close()

    def close(self) -> None:
        self._connection.close()


class _Encoded(SpanProcessor):
    """Encodes each span as an exporter does; one that can't be is one of our internal errors."""

    def on_end(self, span: ReadableSpan) -> None:
        encode_spans([span]).SerializeToString()
        "".join(map(str, (span.attributes or {}).values())).encode()  # the encoder only logs what it can't


def application(found: Target) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"{len(request.query)} {request.match_info.get('name', '')}")

    async def fail(request: web.Request) -> web.Response:
        raise LookupError(request.path_qs)

    app = web.Application()
    app.router.add_route("*", "/", answer)
    app.router.add_get("/items/{name}", answer)
    app.router.add_get("/fail", fail)
    provider = TracerProvider()
    provider.add_span_processor(_Encoded())
    setup_observability(
        app,
        metrics=Metrics(registry=found.registry),
        logs=Logs(stream=found.log, replace=True),
        tracing=Tracing(provider=provider),
        admin=Admin(token=TOKEN, allow_cancel=True),
    )
    return app


@contextmanager
def target() -> Iterator[Target]:
    """Serve it until the block is left."""
    found, ready = Target(), threading.Event()
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def serve() -> None:
        runner = web.AppRunner(application(found), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.port = runner.addresses[0][1]
        ready.set()
        await stopping.wait()
        await runner.cleanup()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(20)
