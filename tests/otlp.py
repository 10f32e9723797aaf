"""A real OTLP/HTTP receiver: what a collector would have got, for a test to look at."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["ReceivedSpan", "Receiver", "receiving", "receiving_in_thread"]

_PATIENCE = 20.0
_PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came over the wire; ids are hexadecimal, a root's ``parent_id`` is empty."""

    name: str
    kind: str
    status: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: tuple[str, ...]
    event_attributes: tuple[dict[str, Any], ...]


class Receiver:
    """Keeps the spans it is sent.

    ``status``    what it answers; anything but 200 also throws the spans away, default 200
    ``answers``   whether it does at all, or hangs; an event, by default set
    ``requests``  how often it was called
    ``headers``   those of the latest call
    """

    def __init__(self) -> None:
        self.status = 200
        self.requests = 0
        self.spans: list[ReceivedSpan] = []
        self.headers: dict[str, str] = {}
        self.answers = asyncio.Event()
        self.answers.set()
        self._port = 0

    @property
    def endpoint(self) -> str:
        """For ``OTEL_EXPORTER_OTLP_ENDPOINT``, to which exporters add ``/v1/traces``."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> web.AppRunner:
        """Listen on a free port; clean the runner up to stop."""
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/traces", self._receive)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]
        return runner

    async def _receive(self, request: web.Request) -> web.Response:
        self.requests += 1
        await self.answers.wait()
        self.headers = dict(request.headers)
        assert request.content_type == _PROTOBUF
        sent = ExportTraceServiceRequest.FromString(await request.read())
        if self.status != 200:
            return web.Response(status=self.status)
        self.spans.extend(_received(sent))
        return web.Response(body=ExportTraceServiceResponse().SerializeToString(), content_type=_PROTOBUF)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on the running loop."""
    receiver = Receiver()
    runner = await receiver.start()
    try:
        yield receiver
    finally:
        await runner.cleanup()


@contextmanager
def receiving_in_thread() -> Iterator[Receiver]:
    """A receiver with a loop and a thread of its own, for tests whose own loop is busy or missing."""
    receiver, ready, loop = Receiver(), threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        runner = await receiver.start()
        ready.set()
        await over.wait()
        await runner.cleanup()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(_PATIENCE)
    try:
        yield receiver
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(_PATIENCE)


def _received(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for batch in request.resource_spans:
        resource = _plain(batch.resource.attributes)
        for scope in batch.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    name=span.name,
                    kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    status=span.status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    attributes=_plain(span.attributes),
                    resource=resource,
                    events=tuple(event.name for event in span.events),
                    event_attributes=tuple(_plain(event.attributes) for event in span.events),
                )


def _plain(attributes: Iterable[Any]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
