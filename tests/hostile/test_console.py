"""The task console attacked: at the service's own port, at its own port, at its Unix socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, Metrics, setup_observability
from aiohttp_observe.admin import stream
from tests.hostile.wire import Reply, ask, request
from tests.service import PATIENCE, free_port, serving, until

TOKEN = "correct horse battery staple"
BEARER = f"Authorization: Bearer {TOKEN}"
SECRET = b"the_secret_work"
JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"


async def the_secret_work() -> None:
    await asyncio.sleep(600)


class Doors:
    """The three ways in, and the application behind them."""

    def __init__(self, own: int, apart: int, private: Path) -> None:
        self.all: tuple[int | Path, ...] = (own, apart, private)
        self.own, self.apart = own, apart

    async def answers(self, sent: bytes) -> list[Reply]:
        """What each door answers; none of it may be a crash, or tell of one."""
        replies = [await ask(door, sent) for door in self.all]
        for reply in replies:
            assert reply.status != 500, sent
            assert b"Traceback" not in reply.received, sent
            assert b'File "' not in reply.received, sent
        return replies

    async def statuses(self, sent: bytes) -> set[int]:
        return {reply.status for reply in await self.answers(sent)}

    async def are_shut(self, sent: bytes) -> None:
        """No door answers with anything of the service."""
        for reply in await self.answers(sent):
            assert reply.status in (400, 401, 403, 404, 405), sent
            assert SECRET not in reply.received, sent
            assert b"taken_at" not in reply.received, sent

    async def are_open(self, sent: bytes) -> None:
        for reply in await self.answers(sent):
            assert reply.status == 200, sent
            assert SECRET in reply.body, sent


@asynccontextmanager
async def doors(tmp_path: Path, token: str | None) -> AsyncIterator[Doors]:
    app, port, path = web.Application(), free_port(), tmp_path / "console"
    admin = Admin(token=token, port=port, unix_socket=str(path), allow_cancel=True)
    setup_observability(app, logs=None, admin=admin, metrics=Metrics(registry=CollectorRegistry()))
    async with serving(app, shutdown_timeout=0.1) as service:
        work = asyncio.ensure_future(the_secret_work())
        try:
            yield Doors(service.port, port, path)
        finally:
            work.cancel()


@pytest.fixture
async def unlocked(tmp_path: Path) -> AsyncIterator[Doors]:
    """Open to this machine."""
    async with doors(tmp_path, None) as found:
        yield found


@pytest.fixture
async def locked(tmp_path: Path) -> AsyncIterator[Doors]:
    """Behind a token."""
    async with doors(tmp_path, TOKEN) as found:
        yield found


DOCUMENT = "/_tasks?format=json"


async def test_a_request_from_this_machine_is_answered_at_every_door(unlocked: Doors) -> None:
    await unlocked.are_open(request(DOCUMENT))
    await unlocked.are_open(request(DOCUMENT, host="LocalHost:8080"))


@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "localhost.", "localhost.evil.com", "127.0.0.1.nip.io", "127.1", "0x7f.1", "2130706433",
        "127.999.1.1", "127.0.0.256", "[::ffff:127.0.0.1]", "0.0.0.0", "127.0.0.1:", "127.0.0.1:123456",
        "localhost@evil.com", "evil.com@localhost", "localhost evil.com", "127.0.0.1, evil.com",
        "localhost#evil", "localhost/evil", "localhost\x00", "", None, "l\u00f6calhost", "\u246027.0.0.1",
        "\u0661\u0662\u0667.0.0.1", "127.0.0.1\udcff", "evil.com\r\n 127.0.0.1",
        "127.0.0.1\r\nHost: evil.com",
        "127.0.0.1\r\nHost: 127.0.0.1",
    ],
)  # fmt: skip
async def test_no_other_host_goes_through(unlocked: Doors, host: str | None) -> None:
    await unlocked.are_shut(request(DOCUMENT, host=host))


@pytest.mark.parametrize(
    "target", ["http://evil.com/_tasks", "http://127.0.0.1/_tasks", "HTTPS://127.0.0.1/_tasks?format=json"]
)
async def test_a_request_meant_for_a_proxy_is_not_answered(unlocked: Doors, target: str) -> None:
    await unlocked.are_shut(request(target))


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For: 127.0.0.1", "x_forwarded_for: 127.0.0.1", "X_Forwarded_Host: localhost",
        "X-Forwarded:", "Forwarded:", "FORWARDED: for=127.0.0.1", "Forwarded-For: 127.0.0.1", "X-Real-IP:",
        "X_REAL_IP: 127.0.0.1", "X-Client-IP: ::1", "CF-Connecting-IP: ::1", "CF_Ray: 1",
        "DO-Connecting-IP: ::1", "Via: 1.1 proxy",
        "X-BlueCoat-Via: 1", "X-Cluster-Client-IP: ::1", "Fastly-Client-IP: ::1", "X-ProxyUser-Ip: ::1",
        "X-Originating-IP: ::1", "X-Remote-IP: ::1", "X-Remote-Addr: ::1", "X-Host: localhost",
        "X-HTTP-Host-Override: localhost", "X-Scheme: http",
        "Proxy-Connection: keep-alive", "X-NginX-Proxy: 1",
        "Front-End-Https: on", "Max-Forwards: 1", "Ali-CDN-Real-IP: ::1", "X-Varnish: 1", "X-Original-URL: /",
        "X-Sucuri-ClientIP: ::1", "X-RealIP: ::1", "X-Rewrite-URL: /", "X-Remote-User: me", "Remote_User: me",
        "X-Real-Host: localhost", "X-Cloud-Trace-Context: 1", "X-Vercel-Id: 1", "X-NF-Request-ID: 1",
        "Akamai-Origin-Hop: 1", "Fastly-FF: 1", "Fly-Region: fra",
        "X-Amzn-Trace-Id: 1", "X-ARR-LOG-ID: 1",
        "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1", "X: a\r\n X-Forwarded-For: 127.0.0.1",
    ],
)  # fmt: skip
async def test_nothing_forwarded_goes_through_in_whatever_spelling(unlocked: Doors, header: str) -> None:
    await unlocked.are_shut(request(DOCUMENT, header))


@pytest.mark.parametrize(
    "headers",
    [
        ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors"],
        ["Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"],
        ["Sec-Fetch-Site: cross-site"],
        ["Origin: https://evil.com"],
        ["Origin: http://127.0.0.1:3000"],
        ["Origin: null"],
    ],
)
async def test_the_page_of_another_site_reads_nothing_whatever_cors_allows(
    unlocked: Doors, headers: list[str]
) -> None:
    await unlocked.are_shut(request(DOCUMENT, *headers))


LINK = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"]


@pytest.mark.parametrize("more", [[], ["Sec-Fetch-Dest: document", "Sec-Fetch-User: ?1"]])
async def test_a_link_to_the_console_works(unlocked: Doors, more: list[str]) -> None:
    await unlocked.are_open(request(DOCUMENT, *LINK, *more))


@pytest.mark.parametrize("place", ["iframe", "frame", "embed", "object", "empty"])
async def test_a_frame_in_another_sites_page_makes_no_work(unlocked: Doors, place: str) -> None:
    await unlocked.are_shut(request(DOCUMENT, *LINK, f"Sec-Fetch-Dest: {place}"))


@pytest.mark.parametrize("target", ["/_tasks/profile?seconds=0.1", "/_tasks/1?referrers=1"])
async def test_what_costs_the_service_something_is_not_done_for_a_link(unlocked: Doors, target: str) -> None:
    assert await unlocked.statuses(request(target, *LINK, "Sec-Fetch-Dest: document")) == {403}
    assert 403 not in await unlocked.statuses(request(target, "Sec-Fetch-Site: none"))


@pytest.mark.parametrize(
    "target",
    [
        "//_tasks", "///_tasks", "/x/../_tasks", "/_tasks/../_tasks", "/./_tasks", "/_tasks/..", "/_tasks/",
        "/_tasks//", "/%5ftasks", "/%5Ftasks?format=json", "/_tasks%2f12", "/_tasks/%2e%2e/_tasks",
        "/_tasks;a=b", "/_tasks/;x", "/_tasks#x", "/_tasks?token=correct+horse+battery+staple",
        "/_tasks?access_token=correct+horse+battery+staple", "/_tasks\\x", "/[_tasks", "//evil:99999/_tasks",
        "/_tasks/static/page.html", "/_tasks/static/..%2f..%2faccess.py", "/_tasks/stream", "/_tasks/profile",
        "/_tasks/bundles", "/_tasks/requests/1", "/_tasks/1", "/_tasks/login", "http://127.0.0.1/_tasks",
    ],
)  # fmt: skip
async def test_no_path_leads_around_the_token(locked: Doors, target: str) -> None:
    await locked.are_shut(request(target))


@pytest.mark.parametrize(
    "method", ["HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "DELETE", "PATCH", "PROPFIND"]
)
async def test_no_method_leads_around_the_token(locked: Doors, method: str) -> None:
    for target in ("/_tasks", "/_tasks/stream", "/_tasks/1/cancel", "/_tasks/bundles"):
        await locked.are_shut(request(target, method=method))


@pytest.mark.parametrize("target", ["/_tasks", "/_tasks/stream", "/_tasks/profile?seconds=0.1"])
async def test_a_websocket_leads_nowhere(locked: Doors, target: str) -> None:
    upgrade = [
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    await locked.are_shut(request(target, *upgrade, "Connection: Upgrade"))


@pytest.mark.parametrize(
    "credentials",
    [
        "Authorization: Bearer", "Authorization: Bearer ", f"Authorization: {TOKEN}",
        f"Authorization: Basic {TOKEN}", f"Authorization: Bearer {TOKEN} x",
        f"Authorization: Bearer {TOKEN[:-1]}",
        f"Authorization: Bearer\u00a0{TOKEN}", "Authorization: Bearer \udcff",
        f"Authorization: Bearer {'a' * 7000}",
        f"Authorization: Bearer no\r\n{BEARER}", f"authorization_: Bearer {TOKEN}",
        *(
            f"Cookie: aiohttp_observe_session_{{port}}={value}"
            for value in ("", ".", "..", "9999999999.", "9999999999.abc", "9999999999.\udcff",
            "-1.a", "1e9.a",
                          "\u0662999999999.a", "9" * 5000, TOKEN, "9999999999.\u00e9")
        ),
    ],
)  # fmt: skip
async def test_nothing_forged_opens(locked: Doors, credentials: str) -> None:
    for port in (str(locked.own), str(locked.apart), "unix"):
        await locked.are_shut(request(DOCUMENT, credentials.replace("{port}", port)))


async def test_a_byte_that_is_no_text_passes_for_no_other(tmp_path: Path) -> None:
    async with doors(tmp_path, "who?") as locked:
        await locked.are_open(request(DOCUMENT, "Authorization: Bearer who?"))
        await locked.are_shut(request(DOCUMENT, "Authorization: Bearer who\udcff"))


async def test_a_session_is_good_for_no_page_but_ours(locked: Doors) -> None:
    form = request("/_tasks/login", FORM, method="POST", body=f"token={TOKEN.replace(' ', '+')}")
    head = (await ask(locked.own, form)).received.decode()
    cookie = next(line for line in head.splitlines() if line.startswith("Set-Cookie: ")).split()[1]

    own = request(DOCUMENT, f"Cookie: {cookie}")
    foreign = request(DOCUMENT, f"Cookie: {cookie}", "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors")
    assert (await ask(locked.own, own)).status == 200
    assert (await ask(locked.own, foreign)).status == 401


async def test_a_session_is_not_taken_over_from_who_brings_it(locked: Doors) -> None:
    """Fixation: a login gives a cookie of its own, never the one that was sent."""
    form = request(
        "/_tasks/login",
        FORM,
        f"Cookie: aiohttp_observe_session_{locked.own}=9999999999.chosen",
        method="POST",
        body=f"token={TOKEN.replace(' ', '+')}",
    )
    assert b"chosen" not in (await ask(locked.own, form)).received


async def test_who_guesses_on_and_on_gets_nowhere_and_holds_up_nobody(locked: Doors) -> None:
    guesses = (request("/_tasks/login", FORM, method="POST", body=f"token={n}") for n in range(100))
    replies = await asyncio.gather(*(ask(locked.own, guess) for guess in guesses))
    assert {reply.status for reply in replies} == {401}
    await locked.are_open(request(DOCUMENT, BEARER))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", "token=%ff"),
        ("application/x-www-form-urlencoded", "token=\udcff"),
        ("application/x-www-form-urlencoded", "token=%ED%A0%80&token=a"),
        ("application/x-www-form-urlencoded", "&" * 4000),
        ("application/x-www-form-urlencoded", "token=" + "a" * 10_000),
        *(
            (f"application/x-www-form-urlencoded; charset={charset}", "token=a")
            for charset in ("nope", "utf-16", "base64", "undefined", "rot13", "zlib", "idna")
        ),
        ("multipart/form-data; boundary=x", "token=a"),
        ("multipart/form-data", "token=a"),
        ("text/plain", "token=a"),
    ],
)
async def test_a_login_that_is_odd_is_refused(locked: Doors, content_type: str, body: str) -> None:
    await locked.are_shut(request("/_tasks/login", f"Content-Type: {content_type}", method="POST", body=body))


async def test_a_strangers_body_of_untold_length_is_not_waited_for(locked: Doors) -> None:
    endless = request("/_tasks/login", FORM, "Transfer-Encoding: chunked", method="POST")
    reader, writer = await asyncio.open_connection("127.0.0.1", locked.own)
    writer.write(endless + b"10000\r\n" + b"a" * 100)
    assert (await asyncio.wait_for(reader.readline(), PATIENCE)).startswith(b"HTTP/1.1 401")
    writer.close()


@pytest.mark.parametrize(
    "smuggled",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer_Encoding: chunked", "Content-Length: +5"],
        ["Content-Length: 0x5"],
        [" Content-Length: 5"],
    ],
)
async def test_no_second_request_is_smuggled_in(locked: Doors, smuggled: list[str]) -> None:
    hidden = request(DOCUMENT, BEARER)
    sent = request("/_tasks/cancel", *smuggled, method="POST") + b"0\r\n\r\n" + hidden
    await locked.are_shut(sent)


QUERIES = [
    *(f"frames={value}" for value in ("-1", "0", "101", "1e3", "9" * 5000, "%00", "", "%FF", "1&frames=x")),
    *(f"limit={value}" for value in ("-1", "0", "100001", "1_0", "%D9%A1", "9" * 4299,
    "-" + "9" * 4299, "%00")),
    *(f"min_age={value}" for value in ("nan", "inf", "-inf", "1e999", "-1", "0x1", "%00", "1" * 5000)),
    *(f"{name}={value}" for name in ("sort", "state", "wait", "coro", "request_id", "format")
      for value in ("%FF", "%00", "x", "", "%ED%A0%80", "%F0%9F%92%A9", "a" * 5000, "<script>")),
    "sort=age&sort=coro", "state=running&state=x", "a=b;c=d", "&&&===", "wait[]=1", "%", "%zz", "a" * 7000,
    "id=1", "loop=1", "loop_state=1", "allow_cancel=1", "self=1", "limit=1" + "&x=1" * 1000, "referrers=1",
]  # fmt: skip


async def test_no_query_makes_it_fail(locked: Doors) -> None:
    for path in (
        "/_tasks",
        "/_tasks/groups",
        "/_tasks/tree",
        "/_tasks/resources",
        "/_tasks/1",
        "/_tasks/requests",
    ):
        for query in QUERIES:
            reply = await ask(locked.own, request(f"{path}?{query}", BEARER))
            assert reply.status in (200, 400, 404), (path, query)
            assert b"Traceback" not in reply.body
            if reply.status != 200:
                assert set(json.loads(reply.body)) == {"error"}


@pytest.mark.parametrize(
    "seconds", ["nan", "inf", "-1", "0", "1e999", "60.1", "", "%00", "%FF", "0x1", "9" * 5000]
)
async def test_no_profile_takes_for_ever(locked: Doors, seconds: str) -> None:
    assert await locked.statuses(request(f"/_tasks/profile?seconds={seconds}", BEARER)) == {400}


async def test_one_profile_at_a_time_is_taken(locked: Doors) -> None:
    asked = (ask(locked.own, request("/_tasks/profile?seconds=0.5", BEARER)) for _ in range(20))
    statuses = [reply.status for reply in await asyncio.gather(*asked)]
    assert sorted(statuses) == [200, *[409] * 19]


@pytest.mark.parametrize(
    "number",
    ["-1", "0", "+1", "1e5", "0x10", "1_0", "%D9%A1%D9%A2", "%00", "9" * 18, "9" * 19, "9" * 5000, "1%00"],
)
async def test_no_number_makes_it_fail(locked: Doors, number: str) -> None:
    for target in (f"/_tasks/{number}", f"/_tasks/bundles/{number}", f"/_tasks/requests/{number}"):
        assert await locked.statuses(request(target, BEARER)) == {404}
    agreed = request(f"/_tasks/{number}/cancel", BEARER, JSON, method="POST", body='{"confirm": 1}')
    assert await locked.statuses(agreed) <= {404, 405, 409}


@pytest.mark.parametrize(
    "body",
    [
        "", "null", "[]", '"confirm"', "{}", '{"confirm": true}', '{"confirm": 0}', '{"confirm": -1}',
        '{"confirm": 1.0}', '{"confirm": NaN}', '{"confirm": 1e400}', '{"confirm": "1"}', "[" * 999, "\udcff",
        '{"confirm": 1}' + " " * 2000, "{" * 500, '"\\ud800"', '{"confirm": [1]}',
    ],
)  # fmt: skip
async def test_no_odd_agreement_cancels(locked: Doors, body: str) -> None:
    agreed = request("/_tasks/cancel?coro=the_secret_work", BEARER, JSON, method="POST", body=body)
    assert await locked.statuses(agreed) == {400}


async def test_of_several_who_cancel_the_same_task_at_once_none_fails(locked: Doors) -> None:
    agreed = request(
        "/_tasks/cancel?coro=the_secret_work", BEARER, JSON, method="POST", body='{"confirm": 1}'
    )
    replies = await asyncio.gather(*(ask(door, agreed) for door in locked.all * 10))
    statuses = {reply.status for reply in replies}
    assert 200 in statuses
    assert statuses <= {200, 409}


async def test_half_requests_starve_nobody(locked: Doors) -> None:
    slow = [await asyncio.open_connection("127.0.0.1", locked.apart) for _ in range(100)]
    for _, writer in slow:
        writer.write(b"GET /_tasks HTTP/1.1\r\nHost: 127.0")
    await locked.are_open(request(DOCUMENT, BEARER))
    for _, writer in slow:
        writer.close()


async def test_pages_that_never_read_are_let_go(unlocked: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_SEND_SECONDS", 0.2)
    monkeypatch.setattr(stream, "_INTERVAL", 0.01)
    monkeypatch.setattr(stream, "_SHARE", 0.5)
    crowd = [asyncio.ensure_future(asyncio.sleep(600), loop=asyncio.get_running_loop()) for _ in range(1000)]
    deaf = [await _deaf_page(unlocked.own) for _ in range(12)]
    await until(lambda: _feeds() == 8, "the first eight pages")
    await until(lambda: _feeds() == 0, "the pages to be let go")
    for page in deaf:
        page.close()
    for task in crowd:
        task.cancel()


def _feeds() -> int:
    return sum("EventSourceResponse._ping" in repr(task) for task in asyncio.all_tasks())


async def _deaf_page(port: int) -> socket.socket:
    loop, page = asyncio.get_running_loop(), socket.socket()
    page.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    page.setblocking(False)
    await loop.sock_connect(page, ("127.0.0.1", port))
    await loop.sock_sendall(page, request("/_tasks/stream?limit=1000"))
    return page
