"""Outbound calls where it gets rough: span, metric, phases and the request's steps tell the same truth."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp_retry import ExponentialRetry, RetryClient
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from aiohttp_observe import client_session, operation, request_id, take_snapshot
from aiohttp_observe.client import _Call
from tests.calls import DURATION, PHASES, Pair, call_once, fetch, serving_pair
from tests.service import PATIENCE, free_port, run_python, serving, until
from tests.spans import Spans, attributes, ids
from tests.tls import Tls, make_tls


class Balance(SpanProcessor):
    """How many spans have begun, and not ended."""

    def __init__(self) -> None:
        self.unfinished = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.unfinished += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.unfinished -= 1


@pytest.fixture
def pair(registry: CollectorRegistry) -> Iterator[Pair]:
    """A pair of which no span is left unfinished when the test is over."""
    spans, balance = Spans(), Balance()
    spans.provider.add_span_processor(balance)
    yield Pair(registry, spans)
    assert balance.unfinished == 0


@dataclass(frozen=True, order=True)
class Told:
    """What one signal tells of a call: where to, what came of it."""

    method: str
    host: str
    port: int
    status: str
    error: str


async def told_of(pair: Pair, calls: int = 1) -> list[Told]:
    """What is told of so many calls, once they have ended: spans, metric and steps tell the same."""
    await until(lambda: len(pair.spans.clients) >= calls, f"{calls} client spans")
    by_spans = sorted(_told_by(span) for span in pair.spans.clients)
    assert sorted(_told_by_metric(pair)) == by_spans
    steps = [
        step for exchange in pair.exchanges if exchange for step in exchange.steps if step.kind == "client"
    ]
    assert sorted(step.error or "" for step in steps) == sorted(told.error for told in by_spans)
    assert all(step.seconds is not None for step in steps)
    return by_spans


def _told_by(span: ReadableSpan) -> Told:
    said = attributes(span)
    error = str(said.get("error.type", ""))
    assert (span.status.status_code is StatusCode.ERROR) == bool(error)
    return Told(
        said["http.request.method"],
        said["server.address"],
        said["server.port"],
        str(said.get("http.response.status_code", "")),
        error,
    )


def _told_by_metric(pair: Pair) -> Iterator[Told]:
    for family in pair.registry.collect():
        for sample in family.samples:
            if sample.name == f"{DURATION}_count":
                labels = sample.labels
                told = Told(
                    labels["http_request_method"],
                    labels["server_address"],
                    int(labels["server_port"]),
                    labels["http_response_status_code"],
                    labels["error_type"],
                )
                yield from [told] * int(sample.value)


async def outcome_of(pair: Pair) -> tuple[str, str]:
    """Status and error of the only call."""
    (told,) = await told_of(pair)
    return told.status, told.error


def port_of(pair: Pair) -> int:
    return int(pair.target.rpartition(":")[2])


# Redirects


def redirect_to(pair: Pair, location: Callable[[], str]) -> None:
    async def redirect(request: web.Request) -> web.Response:
        pair.heard.append(dict(request.headers))
        return web.Response(status=302, headers={"Location": location()})

    pair.back.router.add_get("/away", redirect)


async def test_a_redirect_to_another_host_is_told_where_each_part_was(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        headers = {"Authorization": "hush"}
        async with session.get(f"{pair.target}/away", headers=headers) as response:
            assert await response.text() == "body"

    redirect_to(pair, lambda: pair.target.replace("127.0.0.1", "localhost") + "/status/200")
    await call_once(pair, call)
    assert await told_of(pair) == [Told("GET", "127.0.0.1", port_of(pair), "200", "")]
    (span,) = pair.spans.clients
    assert attributes(span)["url.full"] == f"{pair.target}/away"
    assert attributes(span)["http.request.resend_count"] == 1
    for host in ("127.0.0.1", "_other"):
        assert pair.sample(f"{PHASES}_count", phase="first_byte", server_address=host) == 1
    first, second = pair.heard
    assert first["traceparent"] == second["traceparent"]
    assert first["X-Request-ID"] == second["X-Request-ID"]
    assert "Authorization" not in second


async def test_a_redirect_to_a_host_that_the_service_calls_itself_is_told_there(pair: Pair) -> None:
    def elsewhere() -> str:
        return pair.target.replace("127.0.0.1", "localhost") + "/status/200"

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        await (await session.get(elsewhere())).text()
        await (await session.get(f"{pair.target}/away")).text()

    redirect_to(pair, elsewhere)
    await call_once(pair, call)
    assert pair.sample(f"{PHASES}_count", phase="first_byte", server_address="localhost") == 2


async def test_a_call_that_is_sent_once_has_no_count_of_resends(pair: Pair) -> None:
    await call_once(pair, fetch)
    assert "http.request.resend_count" not in attributes(await pair.the_span())


async def test_a_redirect_into_the_void_tells_what_came_last(pair: Pair) -> None:
    port = free_port()

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"{pair.target}/away")

    redirect_to(pair, lambda: f"http://localhost:{port}/")
    await call_once(pair, call)
    assert await outcome_of(pair) == ("302", "ClientConnectorError")
    assert pair.sample(f"{PHASES}_count", phase="connect", server_address="_other") == 1


async def test_redirects_without_end_have_the_status_of_the_last(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.TooManyRedirects):
            await session.get(f"{pair.target}/redirect/9", max_redirects=2)

    await call_once(pair, call)
    assert await outcome_of(pair) == ("302", "TooManyRedirects")


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("ftp://127.0.0.1/?sig=hush", "NonHttpUrlRedirectClientError"),
        ("http://user:hush@:80:80/?sig=hush", "InvalidUrlRedirectClientError"),
    ],
)
async def test_a_redirect_to_nowhere_is_told_without_its_secrets(
    location: str, error: str, pair: Pair
) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientError, match="hush"):
            await session.get(f"{pair.target}/away")

    redirect_to(pair, lambda: location)
    await call_once(pair, call)
    assert await outcome_of(pair) == ("302", error)
    assert "hush" not in (await pair.the_span()).to_json()


# Retries


def fail_at_first(pair: Pair, times: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        pair.heard.append(dict(request.headers))
        return web.Response(status=503 if len(pair.heard) <= times else 200, text="body")

    pair.back.router.add_get("/unsteady", answer)


async def test_each_attempt_of_aiohttp_retry_is_a_call(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        options = ExponentialRetry(attempts=3, start_timeout=0.001, statuses={503})
        async with RetryClient(session, retry_options=options).get(f"{pair.target}/unsteady") as response:
            assert await response.text() == "body"

    fail_at_first(pair, 2)
    await call_once(pair, call)
    outcomes = [(told.status, told.error) for told in await told_of(pair, 3)]
    assert outcomes == [("200", ""), ("503", "503"), ("503", "503")]
    (server,) = pair.spans.servers
    assert all(span.parent == ids(server) for span in pair.spans.clients)
    assert len({sent["traceparent"] for sent in pair.heard}) == 3
    assert len({sent["X-Request-ID"] for sent in pair.heard}) == 1


async def try_thrice(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """A client middleware: up to three attempts."""
    for _ in range(2):
        response = await handler(request)
        if response.ok:
            return response
        await response.read()
    return await handler(request)


async def test_a_middleware_that_retries_makes_one_call_that_says_how_often_it_was_sent(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        url = f"{pair.target}/unsteady"
        async with session.get(url, middlewares=(try_thrice,)) as response:
            assert await response.text() == "body"

    fail_at_first(pair, 2)
    await call_once(pair, call)
    assert await outcome_of(pair) == ("200", "")
    assert attributes(await pair.the_span())["http.request.resend_count"] == 2
    assert len({(sent["traceparent"], sent["X-Request-ID"]) for sent in pair.heard}) == 1
    assert len(pair.heard) == 3


async def test_what_a_middleware_calls_itself_is_a_call_within_the_call(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async def sign_in(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            with operation("sign in"):
                request.headers["X-Token"] = await fetch(pair, session)
            return await handler(request)

        url = f"{pair.target}/status/404"
        async with session.get(url, middlewares=(sign_in,)) as response:
            await response.read()

    await call_once(pair, call)
    assert [told.status for told in await told_of(pair, 2)] == ["200", "404"]
    inner, outer = pair.spans.clients
    signing = pair.spans.named("sign in")
    assert (inner.parent, signing.parent) == (ids(signing), ids(outer))
    assert pair.heard[1]["X-Token"] == "body"


async def test_what_a_middleware_raises_is_told(pair: Pair) -> None:
    async def refuse(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        await (await handler(request)).read()
        raise PermissionError("not this one")

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientOSError):
            await session.get(f"{pair.target}/status/200", middlewares=(refuse,))

    await call_once(pair, call)
    assert await outcome_of(pair) == ("", "ClientOSError")


async def test_a_kept_connection_that_turns_out_closed_costs_a_resend(pair: Pair) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
    served = Counter[int]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One answer a connection; closed only when it is asked again."""
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await reader.readuntil(b"\r\n\r\n")
        served[id(writer)] += 1
        writer.close()

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        for _ in range(2):
            async with session.get(f"http://127.0.0.1:{port}/") as response:
                assert await response.text() == "body"

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await call_once(pair, call)
    assert [told.status for told in await told_of(pair, 2)] == ["200", "200"]
    assert [attributes(span).get("http.request.resend_count") for span in pair.spans.clients] == [None, 1]
    assert pair.phases() == {"connect": 2, "first_byte": 2}


# Connections that don't come about


async def test_a_refused_connection_was_in_its_phase(pair: Pair) -> None:
    port = free_port()

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://127.0.0.1:{port}/")

    await call_once(pair, call)
    assert await told_of(pair) == [Told("GET", "127.0.0.1", port, "", "ClientConnectorError")]
    assert [event.name for event in pair.spans.clients[0].events] == ["exception"]
    assert pair.phases() == {"connect": 1}


async def test_a_name_that_is_not_known_was_in_its_phase(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await session.get("http://nowhere.invalid/")

    await call_once(pair, call)
    assert await told_of(pair) == [Told("GET", "nowhere.invalid", 80, "", "ClientConnectorDNSError")]
    assert pair.phases() == {"dns": 1}


async def test_a_name_is_the_same_to_all_signals_in_whatever_script(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await session.get("http://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.invalid/")

    await call_once(pair, call)
    assert [told.host for told in await told_of(pair)] == ["xn--bcher-kva.invalid"]
    assert pair.sample(f"{PHASES}_count", phase="dns", server_address="xn--bcher-kva.invalid") == 1


async def test_bytes_that_are_no_response_have_no_status(pair: Pair) -> None:
    """aiohttp raises as if there had been a 400."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"lorem ipsum\r\n\r\n")
        await writer.drain()
        writer.close()

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            with pytest.raises(aiohttp.ClientResponseError):
                await session.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

    await call_once(pair, call)
    assert await outcome_of(pair) == ("", "ClientResponseError")


async def test_an_answer_before_the_request_was_sent_is_no_cancelled_call(pair: Pair) -> None:
    """aiohttp then cancels its own task that sends the rest."""

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"first")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nbody")
        await writer.drain()
        await reader.read()
        writer.close()

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            async with session.post(url, data=body()) as response:
                assert response.status == 413

    await call_once(pair, call)
    assert await outcome_of(pair) == ("413", "413")


async def test_a_handshake_that_takes_too_long_is_told_without_the_secrets_of_its_url(pair: Pair) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        url = f"https://user:hush@127.0.0.1:{port}/?X-Goog-Signature=hush&AWSAccessKeyId=hush&a=b"
        with pytest.raises(asyncio.TimeoutError, match="hush"):
            await session.get(url, timeout=aiohttp.ClientTimeout(sock_connect=0.1))

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await call_once(pair, call)
    assert await outcome_of(pair) == ("", "ConnectionTimeoutError")
    assert pair.phases() == {"connect": 1}
    span = await pair.the_span()
    assert "hush" not in span.to_json()
    assert "a=b" in attributes(span)["url.full"]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def serving_tls(app: web.Application, tls: Tls) -> AsyncIterator[int]:
    """Serve ``app`` over TLS; the port."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.serving).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_certificate_that_is_not_trusted_is_told(trusted: bool, tls: Tls, pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(
            f"https://127.0.0.1:{port}/", ssl=tls.trusting if trusted else True
        ) as response:
            assert response.status == 404

    async def call_in_vain(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await call(pair, session)

    async with serving_tls(web.Application(), tls) as port:
        await call_once(pair, call if trusted else call_in_vain)
    outcome = ("404", "404") if trusted else ("", "ClientConnectorCertificateError")
    assert await told_of(pair) == [Told("GET", "127.0.0.1", port, *outcome)]
    assert pair.phases() == {"connect": 1, **({"first_byte": 1} if trusted else {})}


# Waiting in vain


async def test_a_first_byte_that_does_not_come_was_waited_for_in_its_phase(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await session.get(f"{pair.target}/never", timeout=aiohttp.ClientTimeout(sock_read=0.1))

    await call_once(pair, call)
    assert await outcome_of(pair) == ("", "SocketTimeoutError")
    assert pair.phases() == {"connect": 1, "first_byte": 1}
    assert pair.sample(f"{PHASES}_sum", phase="first_byte") >= 0.09


async def test_an_exhausted_pool_is_seen_while_it_lasts_and_afterwards(pair: Pair) -> None:
    """Five tasks at one connection, one of them cancelled as it waits for it."""

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with client_session(pair.front, connector=aiohttp.TCPConnector(limit=1)) as narrow:
            response = await narrow.get(f"{pair.target}/two-parts")
            others = [asyncio.create_task(fetch(pair, narrow)) for _ in range(5)]
            while (waits := await waiting_for_pool()).count(WAITS) < 5:
                assert set(waits) <= {WAITS}
            others[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await others[0]
            pair.goes_on.set()
            await response.read()
            await asyncio.gather(*others[1:])

    async def waiting_for_pool() -> list[str]:
        answer = await service.get("/_tasks?format=json&wait=http_client")
        return [task["wait"]["detail"] for task in json.loads(answer.text)["tasks"]]

    async with serving_pair(pair, call) as service:
        assert (await service.get("/")).status == 200
    told = await told_of(pair, 6)
    assert Counter((each.status, each.error) for each in told) == {("", "CancelledError"): 1, ("200", ""): 5}
    assert pair.phases() == {"queue": 5, "connect": 1, "first_byte": 5}


WAITS = "ClientSession.request → waiting for a pooled connection to 127.0.0.1"


# Bodies and sessions


async def test_the_first_byte_is_told_before_the_last_has_come(pair: Pair) -> None:
    phases: list[dict[str, float]] = []

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{pair.target}/two-parts") as response:
            phases.append(pair.phases())
            assert pair.counted() == 0
            pair.goes_on.set()
            await response.read()

    await call_once(pair, call)
    assert phases == [{"connect": 1, "first_byte": 1}]
    assert await outcome_of(pair) == ("200", "")
    assert pair.sample(f"{PHASES}_sum") < pair.sample(f"{DURATION}_sum")


Waits = Callable[[Pair, aiohttp.ClientSession], Coroutine[object, object, None]]


async def wait_for_headers(pair: Pair, session: aiohttp.ClientSession) -> None:
    await session.get(f"{pair.target}/never")


async def wait_for_body(pair: Pair, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{pair.target}/endless") as response:
        await response.read()


async def wait_for_pieces(pair: Pair, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{pair.target}/endless") as response:
        async for _ in response.content.iter_any():
            pass


async def wait_for_message(pair: Pair, session: aiohttp.ClientSession) -> None:
    async with session.ws_connect(f"{pair.target}/socket") as socket:
        await socket.receive()


@pytest.mark.parametrize(
    ("wait", "status", "errors"),
    [
        (wait_for_headers, "", {"ClientConnectionError", "AssertionError"}),  # the latter: aiohttp 3.12.0
        (wait_for_body, "200", {"CancelledError"}),
        (wait_for_pieces, "200", {"CancelledError"}),
        (wait_for_message, "101", {""}),
    ],
)
async def test_a_session_that_is_closed_ends_what_is_in_flight(
    wait: Waits, status: str, errors: set[str], pair: Pair
) -> None:
    """As soon as aiohttp does it: who reads a body waits on until the time is up, or is cancelled."""

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with client_session(pair.front) as own:
            task = asyncio.create_task(wait(pair, own))
            await until(lambda: is_waiting(task), "the task to wait for the other side")
        await asyncio.wait([task], timeout=0.1)
        task.cancel()
        await asyncio.wait([task])
        assert pair.counted() == 1
        assert task.cancelled() or task.exception() is not None or wait is wait_for_message

    def is_waiting(task: asyncio.Task[None]) -> bool:
        (info,) = (info for info in take_snapshot().tasks if info.name == task.get_name())
        return info.wait is not None and WAITED_FOR[wait] in info.wait.detail

    await call_once(pair, call)
    told_status, error = await outcome_of(pair)
    assert told_status == status
    assert error in errors


WAITED_FOR: dict[Waits, str] = {
    wait_for_headers: "ClientResponse.start",
    wait_for_body: "ClientResponse.read",
    wait_for_pieces: "StreamReader.read",
    wait_for_message: "ClientWebSocketResponse.receive",
}


async def test_a_call_that_is_dropped_in_another_context_has_ended(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """As a task that is destroyed while it waits: its context isn't that of who destroys it."""

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        await fetch(pair, session)
        waiting = wait_for_headers(pair, session)
        contextvars.copy_context().run(waiting.send, None)
        waiting.close()
        gc.collect()

    await call_once(pair, call)
    assert [told.error for told in await told_of(pair, 2)] == ["GeneratorExit", ""]
    assert "Failed to detach" not in caplog.text


async def test_a_session_closed_before_the_call_makes_none(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with client_session(pair.front) as own:
            pass
        with pytest.raises(RuntimeError):
            await own.get(pair.target)

    await call_once(pair, call)
    assert (pair.spans.clients, pair.counted()) == ([], 0)


async def test_many_tasks_share_a_session_and_nothing_else(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> str:
        await asyncio.gather(fetch(pair, session), fetch(pair, session))
        return str(request_id())

    async with serving_pair(pair, call) as service:
        answers = await asyncio.gather(*(service.get("/") for _ in range(25)))
    assert await told_of(pair, 50) == [Told("GET", "127.0.0.1", port_of(pair), "200", "")] * 50
    sent = Counter(headers["X-Request-ID"] for headers in pair.heard)
    assert sent == {answer.text: 2 for answer in answers}
    parents = Counter(span.parent.span_id for span in pair.spans.clients if span.parent is not None)
    assert parents == {ids(server).span_id: 2 for server in pair.spans.servers}
    assert len({headers["traceparent"] for headers in pair.heard}) == 50


@pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")
async def test_calls_leave_nothing_behind_however_they_end(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        for _ in range(3):
            await fetch(pair, session)
            await session.get(f"{pair.target}/status/200")  # never read
            await session.get(f"{pair.target}/two-parts")  # which isn't even sent: aiohttp keeps it
            (await session.get(f"{pair.target}/endless")).close()
            with suppress(aiohttp.ClientError):
                await session.get(f"http://127.0.0.1:{port}/", trace_request_ctx={"of": "theirs"})
            with suppress(asyncio.TimeoutError):
                await session.get(f"{pair.target}/never", timeout=aiohttp.ClientTimeout(total=0.05))

    port = free_port()
    await call_once(pair, call)
    gc.collect()
    await told_of(pair, 18)
    assert not [each for each in gc.get_objects() if isinstance(each, _Call)]


# Websockets


async def test_a_websocket_that_is_refused_is_a_call_that_failed(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(f"{pair.target}/status/403")

    await call_once(pair, call)
    assert await outcome_of(pair) == ("403", "403")
    assert {"traceparent", "X-Request-ID"} <= pair.heard[0].keys()


async def test_a_websocket_whose_server_goes_away_has_ended(pair: Pair) -> None:
    async def drop(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        assert request.transport is not None
        request.transport.abort()
        return socket

    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(f"{pair.target}/drop") as socket:
            await socket.send_str("go")
            message = await socket.receive(PATIENCE)
            assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)

    pair.back.router.add_get("/drop", drop)
    await call_once(pair, call)
    (told,) = await told_of(pair)
    assert told.status == "101"


# Proxies


class Proxy:
    """A small proxy.  Whatever host is asked for, it connects to ``port`` on this machine."""

    def __init__(self) -> None:
        self.port = 0
        self.refusal = b""
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        self.heads.append(head.decode())
        if self.refusal:
            writer.write(self.refusal)
            writer.close()
            return
        await self._pass_on(head, reader, writer)

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beyond, there = await asyncio.open_connection("127.0.0.1", self.port)
        if head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            there.write(head)
        await asyncio.gather(_copy(reader, there), _copy(beyond, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while part := await reader.read(65536):
            writer.write(part)
    writer.close()


@asynccontextmanager
async def proxying() -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy that runs, and its URL."""
    proxy = Proxy()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield proxy, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_call_through_a_proxy_is_one_to_the_server(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        proxy.port = port_of(pair)
        through = url.replace("//", "//user:hush@")
        async with session.get("http://shop.test/status/200", proxy=through) as response:
            assert await response.text() == "body"

    async with proxying() as (proxy, url):
        await call_once(pair, call)
    assert await told_of(pair) == [Told("GET", "shop.test", 80, "200", "")]
    assert pair.sample(f"{PHASES}_count", server_address="shop.test") == 2
    assert "hush" not in (await pair.the_span()).to_json()
    assert proxy.heads[0].startswith("GET http://shop.test/status/200 ")
    assert {"traceparent", "X-Request-ID"} <= pair.heard[0].keys()


async def test_the_server_behind_a_tunnel_has_the_ids_and_the_proxy_has_not(tls: Tls, pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        async with session.get("https://shop.test/", proxy=url, ssl=tls.trusting) as response:
            assert await response.text() == "body"

    async def answer(request: web.Request) -> web.Response:
        pair.heard.append(dict(request.headers))
        return web.Response(text="body")

    shop = web.Application()
    shop.router.add_get("/", answer)
    async with serving_tls(shop, tls) as port, proxying() as (proxy, url):
        proxy.port = port
        await call_once(pair, call)
    assert await told_of(pair) == [Told("GET", "shop.test", 443, "200", "")]
    assert proxy.heads[0].startswith("CONNECT shop.test:443 ")
    assert not any(name in proxy.heads[0].lower() for name in ("traceparent", "x-request-id"))
    assert {"traceparent", "X-Request-ID"} <= pair.heard[0].keys()


async def test_a_proxy_that_refuses_the_tunnel_is_told(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientHttpProxyError):
            await session.get("https://shop.test/", proxy=url)

    async with proxying() as (proxy, url):
        proxy.refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
        await call_once(pair, call)
    assert await told_of(pair) == [Told("GET", "shop.test", 443, "407", "ClientHttpProxyError")]
    assert pair.phases() == {"connect": 1}


async def test_a_proxy_that_is_not_there_is_told(pair: Pair) -> None:
    async def call(pair: Pair, session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientProxyConnectionError):
            await session.get("http://shop.test/", proxy=f"http://127.0.0.1:{free_port()}")

    await call_once(pair, call)
    assert await told_of(pair) == [Told("GET", "shop.test", 80, "", "ClientProxyConnectionError")]


# Surroundings that fail


class Failing(SpanProcessor):
    """Fails at the end of each client span."""

    def on_end(self, span: ReadableSpan) -> None:
        if span.kind is SpanKind.CLIENT:
            raise ZeroDivisionError


async def test_a_span_processor_that_fails_costs_neither_call_nor_metric(pair: Pair) -> None:
    pair.spans.provider.add_span_processor(Failing())
    async with serving_pair(pair, fetch) as service:
        assert (await service.get("/")).text == "body"
    assert await outcome_of(pair) == ("200", "")
    assert pair.sample("aiohttp_observe_internal_errors_total", observer="client") == 1


# Before, during and after an application runs

CALLS = """
import asyncio, os, sys, warnings
from aiohttp import web
from aiohttp_observe import client_session, setup_observability

async def call(app, url):
    async with client_session(app) as session:
        for _ in range(3):
            async with session.get(url) as response:
                await response.read()

async def main(url, end):
    app = web.Application()
    setup_observability(app, logs=None)
    await call(app, url)
    runner = web.AppRunner(app)
    await runner.setup()
    await call(app, url)
    if end == "fork":
        warnings.simplefilter("ignore")  # threads are running
        if not os.fork():
            asyncio.run(call(app, url))
            os._exit(0)
        os.wait()
    if end != "after clean-up":
        sys.exit()
    await runner.cleanup()
    await call(app, url)
    os._exit(0)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(("end", "calls"), [("exit", 6), ("fork", 9), ("after clean-up", 9)])
async def test_files_of_several_processes_miss_no_call(
    end: str, calls: int, pair: Pair, tmp_path: Path
) -> None:
    """What others read from files can't wait for a scrape of this process."""
    async with serving(pair.back) as back:
        environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        done = await asyncio.to_thread(run_python, CALLS, back.url("/status/200"), end, **environment)
    assert (done.stdout, done.stderr) == ("", "")
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
    counts = [
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name in (f"{DURATION}_count", f"{PHASES}_count") and sample.labels.get("phase") != "connect"
    ]
    assert counts == [calls, calls]


# Outside of applications

OUTSIDE = """
import asyncio, sys, aiohttp
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from aiohttp_observe import client_session

async def main(url):
    async with client_session() as session:
        async with session.get(url + "/status/200") as response:
            await response.read()
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        for path in ("/status/200", "/cut"):
            try:
                async with session.get(url + path) as response:
                    await response.read()
            except aiohttp.ClientPayloadError:
                pass
    for span in exporter.get_finished_spans():
        said = span.attributes
        print(said["http.response.status_code"], said.get("error.type"), span.status.status_code.name)

asyncio.run(main(sys.argv[1]))
"""


async def test_outside_of_applications_spans_go_to_the_global_provider(pair: Pair) -> None:
    async with serving(pair.back) as back:
        done = await asyncio.to_thread(run_python, OUTSIDE, back.url(""))
    assert (done.stdout, done.stderr) == ("200 None UNSET\n200 ClientPayloadError ERROR\n", "")
    assert "traceparent" not in pair.heard[0]
    assert "traceparent" in pair.heard[1]
