"""Secrets planted wherever a request can carry them: none shows up in any signal."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from yarl import URL

from aiohttp_observe import (
    CLIENT_SESSION,
    Admin,
    Logs,
    Metrics,
    Tracing,
    bind,
    operation,
    setup_observability,
    spawn,
)
from aiohttp_observe.redaction import MARK, SECRETS, in_text
from tests.service import PATIENCE, Service, serving
from tests.test_logs import Output

TOKEN = "hunter2-admin"
HEADERS = {
    "Authorization": "Basic " + base64.b64encode(b"user:hunter2-basic").decode(),
    "Proxy-Authorization": "hunter2-proxy",
    "Cookie": "session=hunter2-cookie",
    "X-API-Key": "hunter2-key",
    "Referer": "https://user:hunter2-referrer@host/?sig=hunter2-sig",
    "baggage": "password=hunter2-baggage",
}
QUERY = "&".join(
    f"{name}=hunter2-{name.lower()}"
    for name in (
        "AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature", "X-Amz-Signature", "X-Amz-Security-Token",
        "access_token", "token", "password", "client_secret", "api_key", "apiKey", "%70assword",
    )
)  # fmt: skip
PAGES = (
    "", "/groups", "/tree", "/tree?format=text", "/resources", "/incidents", "/requests", "/bundles",
    "/bundles/1", "/profile?seconds=0.2",
)  # fmt: skip
ENCODED = base64.b64encode(b"user:hunter2-basic").decode()


class Planted:
    """A service that handles secrets as services do, and all that it tells of itself."""

    def __init__(self) -> None:
        self.output = Output()
        self.spans = InMemorySpanExporter()
        self.registry = CollectorRegistry()
        self.waiting = asyncio.Event()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.app = web.Application()
        self.app.router.add_post("/{name}", self.handle)
        self.app.router.add_get("/upstream", self.refuse)
        setup_observability(
            self.app,
            logs=Logs(stream=self.output, replace=True),
            metrics=Metrics(registry=self.registry),
            tracing=Tracing(provider=provider),
            admin=Admin(token=TOKEN),
        )

    async def refuse(self, request: web.Request) -> web.Response:
        raise web.HTTPForbidden

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        headers = {name: value for name, value in request.headers.items() if name != "baggage"}
        bind(user={"password": body["password"]}, headers=headers)
        if request.match_info["name"] == "wait":
            await self.wait(body["password"], request.headers["Authorization"])
        spawn(self.lose(body["password"]), name="loser")
        with operation("flush"):
            url = request.url.with_path("/upstream").with_query(request.query)
            url = url.with_user("user").with_password("hunter2-url")
            await self.call(url)
        return web.Response()

    async def wait(self, password: str, authorization: str) -> None:
        self.waiting.set()
        await asyncio.sleep(60)

    async def lose(self, password: str) -> None:
        await self.call(
            URL(f"http://user:hunter2-lost@127.0.0.1:1/?{QUERY}#access_token=hunter2-fragment", encoded=True)
        )

    async def call(self, url: URL) -> None:
        async with self.app[CLIENT_SESSION].get(url, raise_for_status=True):
            pass

    async def attend(self, service: Service) -> list[str]:
        """What the console and the metrics say while and after requests with secrets are served."""
        left = asyncio.ensure_future(self.send(service, "wait"))
        await asyncio.wait_for(self.waiting.wait(), PATIENCE)
        assert await self.send(service, "crash") == 500
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        await service.request("POST", "/_tasks/bundles", headers=bearer)
        told = [(await service.get(f"/_tasks{page}", headers=bearer)).text for page in PAGES]
        told.append((await service.get("/metrics")).text)
        requests = json.loads(told[PAGES.index("/requests")])
        ids = set(_values(requests, "request_id")) | set(_values(requests, "id"))
        told += [(await service.get(f"/_tasks/requests/{each}", headers=bearer)).text for each in ids]
        tasks = _values(json.loads(told[0])["tasks"], "id")
        told += [(await service.get(f"/_tasks/{each}", headers=bearer)).text for each in tasks]
        left.cancel()
        return told

    async def send(self, service: Service, name: str) -> int:
        url = URL(service.url(f"/{name}?{QUERY}"), encoded=True)
        async with service.session.post(url, headers=HEADERS, json={"password": "hunter2-body"}) as response:
            return response.status


def _values(document: Any, key: str) -> list[Any]:
    """The plain values of ``key``, however deep."""
    if isinstance(document, list):
        return [found for each in document for found in _values(each, key)]
    if not isinstance(document, dict):
        return []
    own = [document[key]] if isinstance(document.get(key), (str, int)) else []
    return own + _values(list(document.values()), key)


async def test_no_secret_of_a_request_shows_up_anywhere() -> None:
    planted = Planted()
    async with serving(planted.app, shutdown_timeout=0.1) as service:
        told = await planted.attend(service)
    told.append(planted.output.getvalue())
    spans = planted.spans.get_finished_spans()
    told += [span.to_json() for span in spans]
    whole = "\n".join(told)

    found = {whole[at - 60 : at + 40] for at in _places(whole, "hunter2") + _places(whole, ENCODED)}
    assert not found
    assert {"POST /{name}", "GET /upstream", "GET"} <= {span.name for span in spans}
    assert len([span for span in spans if span.events]) >= 3
    assert "REDACTED" in whole


def _places(text: str, part: str) -> list[int]:
    places, at = [], text.find(part)
    while at >= 0:
        places.append(at)
        at = text.find(part, at + 1)
    return places


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_name_is_looked_for(name: str) -> None:
    assert in_text(f"sent {name}=hush, {name.upper()}='hush'") == f"sent {name}={MARK}, {name.upper()}={MARK}"
