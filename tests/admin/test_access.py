"""Who may look at the admin pages: every door tried, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, Metrics, setup_observability
from tests.real import require
from tests.service import free_port

TOKEN = "correct horse battery staple"
SECRET = "the-secret-handler"
BEARER = {"Authorization": f"Bearer {TOKEN}"}

Serve = Callable[..., Awaitable[TestClient[web.Request, web.Application]]]


def application(admin: Admin, *, require_token: bool = False) -> web.Application:
    app = web.Application()
    metrics = Metrics(registry=CollectorRegistry(), require_token=require_token)
    setup_observability(app, admin=admin, metrics=metrics)

    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    handler.__qualname__ = SECRET
    app.router.add_get(f"/{SECRET}", handler)
    return app


@asynccontextmanager
async def client_of(app: web.Application) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.fixture
async def open_to_this_machine() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with client_of(application(Admin())) as client:
        yield client


@pytest.fixture
async def behind_a_token() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with client_of(application(Admin(token=TOKEN))) as client:
        yield client


async def raw(port: int, request: str) -> str:
    """What comes back for exactly these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.replace("\n", "\r\n").encode())
    try:
        return (await asyncio.wait_for(reader.read(), 5)).decode()
    finally:
        writer.close()


async def refused(response: aiohttp.ClientResponse, status: int) -> None:
    text = await response.text()
    assert response.status == status
    assert SECRET not in text
    assert "taken_at" not in text


async def test_without_a_token_this_machine_may_look(
    open_to_this_machine: TestClient[web.Request, web.Application],
) -> None:
    response = await open_to_this_machine.get("/_tasks")
    assert response.status == 200
    assert (await response.json())["process"]["pid"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1", "127.1.2.3:1", "[::1]:80", "LOCALHOST"]
)
async def test_without_a_token_the_host_may_be_a_loopback_name(
    host: str, open_to_this_machine: TestClient[web.Request, web.Application]
) -> None:
    response = await open_to_this_machine.get("/_tasks", headers={"Host": host})
    assert response.status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "10.0.0.1",
        "[::2]",
        "localhost:80:80",
        "",
    ],
)
async def test_without_a_token_no_other_host_is_answered(
    host: str, open_to_this_machine: TestClient[web.Request, web.Application]
) -> None:
    await refused(await open_to_this_machine.get("/_tasks", headers={"Host": host}), 403)


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For",
        "x-forwarded-for",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded",
        "Forwarded",
        "Via",
        "X-Real-IP",
        "X-Client-IP",
        "CF-Connecting-IP",
    ],
)
@pytest.mark.parametrize("value", ["127.0.0.1", "", "for=127.0.0.1"])
async def test_without_a_token_nothing_forwarded_is_answered(
    header: str, value: str, open_to_this_machine: TestClient[web.Request, web.Application]
) -> None:
    await refused(await open_to_this_machine.get("/_tasks", headers={header: value}), 403)


@pytest.mark.parametrize(
    "request_", ["GET /_tasks HTTP/1.0\n\n", "GET /_tasks HTTP/1.1\nHost: localhost\nHost: evil.example\n\n"]
)
async def test_without_a_token_there_must_be_one_host(
    request_: str, open_to_this_machine: TestClient[web.Request, web.Application]
) -> None:
    answer = await raw(open_to_this_machine.port or 0, request_.replace("\n\n", "\nConnection: close\n\n"))
    assert answer.split()[1] in ("400", "403")
    assert "taken_at" not in answer


async def test_with_a_token_it_opens_from_anywhere(
    behind_a_token: TestClient[web.Request, web.Application],
) -> None:
    headers = {**BEARER, "Host": "service.example", "X-Forwarded-For": "203.0.113.9"}
    assert (await behind_a_token.get("/_tasks", headers=headers)).status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer wrong",
        "Bearer ",
        "Bearer",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \xff",
    ],
)
@pytest.mark.parametrize(
    "path", ["/_tasks", "/_tasks/1", "/_tasks/static/page.js", "/_tasks/nowhere", "/_tasks/resources"]
)
async def test_with_a_token_a_wrong_one_opens_nothing(
    authorization: str, path: str, behind_a_token: TestClient[web.Request, web.Application]
) -> None:
    response = await behind_a_token.get(path, headers={"Authorization": authorization})
    await refused(response, 401)
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_with_a_token_being_local_opens_nothing(
    behind_a_token: TestClient[web.Request, web.Application],
) -> None:
    await refused(await behind_a_token.get("/_tasks"), 401)


@pytest.mark.parametrize(
    "query", [f"token={TOKEN}", f"access_token={TOKEN}", f"Authorization=Bearer {TOKEN}"]
)
async def test_a_token_in_the_url_is_no_token(
    query: str, behind_a_token: TestClient[web.Request, web.Application]
) -> None:
    await refused(await behind_a_token.get(f"/_tasks?{query}"), 401)


@pytest.mark.parametrize(
    "path",
    ["//_tasks", "/_tasks/", "/%5ftasks", "/x/../_tasks", "/_TASKS", "/_tasks/../_tasks", "/_tasks%2f1"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "TRACE"])
async def test_no_path_or_method_goes_around_the_gate(
    path: str, method: str, behind_a_token: TestClient[web.Request, web.Application]
) -> None:
    answer = await raw(
        behind_a_token.port or 0, f"{method} {path} HTTP/1.1\nHost: localhost\nConnection: close\n\n"
    )
    assert answer.split()[1] in ("401", "403", "404", "405")
    assert "taken_at" not in answer


async def test_the_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOHTTP_OBSERVE_ADMIN_TOKEN", TOKEN)
    async with client_of(application(Admin())) as client:
        await refused(await client.get("/_tasks"), 401)
        assert (await client.get("/_tasks", headers=BEARER)).status == 200
    async with client_of(application(Admin(token="another"))) as client:
        await refused(await client.get("/_tasks", headers=BEARER), 401)


async def test_the_metrics_can_require_the_token() -> None:
    async with client_of(application(Admin(token=TOKEN), require_token=True)) as client:
        await refused(await client.get("/metrics"), 401)
        assert (await client.get("/metrics", headers=BEARER)).status == 200


def test_a_description_does_not_show_its_token() -> None:
    assert TOKEN not in repr(Admin(token=TOKEN))


@pytest.mark.parametrize("token", ["", "  "])
def test_an_empty_token_is_refused_at_set_up(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Admin(token=token)


UNFIT = ["a\nb", "a\x00b", "a\tb", "\u00e9", "a\u2028b", "\U0001f511", "a\x7f"]


@pytest.mark.parametrize("token", UNFIT)
def test_a_token_that_not_every_header_can_carry_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(
        ValueError, match=r"Admin\(token=\.\.\.\) takes printable ASCII .*token_urlsafe"
    ) as told:
        Admin(token=token)
    assert token not in str(told.value)


def test_so_is_one_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOHTTP_OBSERVE_ADMIN_TOKEN", "ne\u00e9")
    with pytest.raises(ValueError, match="AIOHTTP_OBSERVE_ADMIN_TOKEN takes printable ASCII"):
        application(Admin())
    application(Admin(token=TOKEN))  # which wins


async def test_a_browser_logs_in_without_the_token_in_a_url(
    behind_a_token: TestClient[web.Request, web.Application],
) -> None:
    form = await behind_a_token.get("/_tasks", headers={"Accept": "text/html"})
    assert form.status == 401
    assert 'type="password"' in await form.text()
    page = await behind_a_token.post("/_tasks/login", data={"token": TOKEN}, headers={"Accept": "text/html"})
    assert page.status == 200
    assert [(step.status, step.headers["Location"]) for step in page.history] == [(303, "/_tasks")]
    cookie = page.history[0].headers["Set-Cookie"]
    assert TOKEN not in cookie
    assert {"HttpOnly", "SameSite=Strict", "Path=/_tasks"} <= set(cookie.split("; "))
    assert (await (await behind_a_token.get("/_tasks?format=json")).json())["tasks"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
    ],
)
async def test_another_site_cannot_log_a_browser_in(
    headers: dict[str, str], behind_a_token: TestClient[web.Request, web.Application]
) -> None:
    response = await behind_a_token.post("/_tasks/login", data={"token": TOKEN}, headers=headers)
    await refused(response, 403)
    assert "Set-Cookie" not in response.headers


async def test_a_wrong_token_does_not_log_in(
    behind_a_token: TestClient[web.Request, web.Application],
) -> None:
    response = await behind_a_token.post("/_tasks/login", data={"token": "wrong"})
    await refused(response, 401)
    assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize(
    "cookie", ["", ".", "99999999999.", "99999999999.00", f"{TOKEN}", "9" * 5000, "²." + "0" * 64]
)
async def test_a_forged_session_opens_nothing(
    cookie: str, behind_a_token: TestClient[web.Request, web.Application]
) -> None:
    headers = {"Cookie": f"aiohttp_observe_session_{behind_a_token.port}={cookie}"}
    await refused(await behind_a_token.get("/_tasks", headers=headers), 401)


@pytest.mark.parametrize(("token", "status"), [(TOKEN, 200), ("another", 401)])
async def test_a_session_is_good_wherever_its_token_is(
    behind_a_token: TestClient[web.Request, web.Application], token: str, status: int
) -> None:
    """In all workers of a service, that is, and in no other service."""
    page = await behind_a_token.post("/_tasks/login", data={"token": TOKEN}, allow_redirects=False)
    cookie = page.cookies[f"aiohttp_observe_session_{behind_a_token.port}"].value
    again = {"Cookie": f"aiohttp_observe_session_{behind_a_token.port}={cookie}"}
    assert (await behind_a_token.get("/_tasks", headers=again)).status == 200
    async with client_of(application(Admin(token=token))) as other:
        headers = {"Cookie": f"aiohttp_observe_session_{other.port}={cookie}"}
        assert (await other.get("/_tasks", headers=headers)).status == status


@pytest.mark.parametrize(
    "path", ["/_tasks", "/_tasks?format=json", "/_tasks/static/page.js", "/_tasks/nothing", "/_tasks/999999"]
)
async def test_every_answer_keeps_to_itself(
    path: str, open_to_this_machine: TestClient[web.Request, web.Application]
) -> None:
    response = await open_to_this_machine.get(path)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in response.headers


async def plain_proxy(target: int) -> web.Application:
    """A reverse proxy that tells nothing of itself but leaves the Host as its client sent it."""
    app = web.Application()

    async def forward(request: web.Request) -> web.Response:
        headers = {"Host": request.headers["Host"]}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{target}{request.path_qs}", headers=headers) as response,
        ):
            return web.Response(status=response.status, body=await response.read())

    app.router.add_get("/{path:.*}", forward)
    return app


async def test_a_silent_proxy_on_this_machine_opens_nothing(
    open_to_this_machine: TestClient[web.Request, web.Application],
) -> None:
    async with client_of(await plain_proxy(open_to_this_machine.port or 0)) as proxy:
        await refused(await proxy.get("/_tasks", headers={"Host": "www.service.example"}), 403)


NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr crit;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{target};
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""


async def test_nginx_on_this_machine_opens_nothing(
    tmp_path: Path, open_to_this_machine: TestClient[web.Request, web.Application]
) -> None:
    nginx = require("nginx")
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(folder=tmp_path, port=port, target=open_to_this_machine.port))
    process = await asyncio.create_subprocess_exec(nginx, "-c", config, "-p", tmp_path)
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/_tasks"
            await answering(session, f"http://127.0.0.1:{port}/metrics")
            await refused(await session.get(url), 403)
            await refused(await session.get(url, headers={"Host": "localhost"}), 403)
    finally:
        process.terminate()
        await process.wait()


async def answering(session: aiohttp.ClientSession, url: str) -> None:
    for _ in range(100):
        try:
            async with session.get(url):
                return
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0.05)
    pytest.fail(f"{url} does not answer")


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=x", "limit"),
        ("limit=-1", "limit"),
        ("limit=٣", "limit"),
        ("limit=1_0", "limit"),
        ("min_age=-1", "min_age"),
        ("min_age=1_0", "min_age"),
        ("frames=1e9", "frames"),
        ("min_age=soon", "min_age"),
        ("state=odd", "state"),
        ("sort=beauty", "sort"),
        ("limit=99999999999999", "frames"),
    ],
)
async def test_a_filter_that_cannot_be_is_named(
    query: str, named: str, open_to_this_machine: TestClient[web.Request, web.Application]
) -> None:
    response = await open_to_this_machine.get(f"/_tasks?{query}")
    assert response.status == 400
    assert named in (await response.json())["error"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("text/html, */*", "text/html"),
        ("TEXT/HTML; level=1; Q=0.5", "text/html"),
        ("application/json;q=0.5, text/html", "text/html"),
        ("text/html;q=0", "application/json"),
        ("application/json, text/html;q=0.1", "application/json"),
        ("*/*, text/html;q=0.1", "application/json"),
        ("text/html;q=soon", "application/json"),
        ("text/html;q=nan", "application/json"),
        ("text/html+soap", "application/json"),
        ("*/*", "application/json"),
        (";,;q", "application/json"),
    ],
)
async def test_a_client_gets_what_it_likes_better(
    accept: str, content_type: str, open_to_this_machine: TestClient[web.Request, web.Application]
) -> None:
    response = await open_to_this_machine.get("/_tasks", headers={"Accept": accept})
    assert (response.status, response.content_type) == (200, content_type)


async def test_one_task_is_shown_by_its_number(
    open_to_this_machine: TestClient[web.Request, web.Application],
) -> None:
    tasks = (await (await open_to_this_machine.get("/_tasks")).json())["tasks"]
    response = await open_to_this_machine.get(f"/_tasks/{tasks[0]['id']}")
    assert json.loads(await response.text())["id"] == tasks[0]["id"]
    assert (await open_to_this_machine.get("/_tasks/999999")).status == 404


@pytest.mark.parametrize("path", ["/%5ftasks", "/%5Ftasks/1"])
async def test_an_escaped_path_is_no_way_around(
    path: str, behind_a_token: TestClient[web.Request, web.Application]
) -> None:
    answer = await raw(
        behind_a_token.port or 0, f"GET {path} HTTP/1.1\nHost: x\nAccept: text/html\nConnection: close\n\n"
    )
    assert answer.startswith("HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"token=\xff\xfe"),
        ("application/x-www-form-urlencoded; charset=foo", b"token=x"),
        ("application/x-www-form-urlencoded", b"token=" + b"x" * 10_000),
        ("multipart/form-data", b"token=x"),
        ("text/plain", b"token=x"),
    ],
)
async def test_a_login_that_is_no_form_is_refused(
    content_type: str, body: bytes, behind_a_token: TestClient[web.Request, web.Application]
) -> None:
    headers = {"Content-Type": content_type}
    await refused(await behind_a_token.post("/_tasks/login", data=body, headers=headers), 401)


@pytest.mark.parametrize("encoding", ["deflate", "gzip"])
async def test_a_login_that_would_unpack_to_more_is_refused(
    encoding: str, behind_a_token: TestClient[web.Request, web.Application]
) -> None:
    """Though it is the right token: a kilobyte may unpack to a form that takes the loop to read."""
    form = f"token={TOKEN.replace(' ', '+')}".encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    sent = [({**headers, "Content-Encoding": encoding}, packed(encoding, form)), (headers, form)]
    answers = [
        await behind_a_token.post("/_tasks/login", data=body, headers=headers, allow_redirects=False)
        for headers, body in sent
    ]
    assert [answer.status for answer in answers] == [401, 303]


def packed(encoding: str, body: bytes) -> bytes:
    return zlib.compress(body) if encoding == "deflate" else gzip.compress(body)


async def test_a_login_that_a_proxy_made_look_foreign_is_told_why(
    behind_a_token: TestClient[web.Request, web.Application],
) -> None:
    """As with nginx's ``proxy_set_header Host $host``, which loses the port."""
    headers = {"Origin": "http://inside.example:8443<b>", "Host": "inside.example"}
    answer = await behind_a_token.post("/_tasks/login", data={"token": TOKEN}, headers=headers)
    assert (answer.status, answer.content_type) == (403, "text/html")
    text = await answer.text()
    assert "at http://inside.example:8443&lt;b&gt;, but the service is asked as inside.example." in text
    assert "proxy_set_header Host $http_host;" in text
    assert 'type="password"' in text


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_browsers_word_that_a_login_is_our_own_is_enough(
    scheme: str, behind_a_token: TestClient[web.Request, web.Application]
) -> None:
    """Whatever a proxy made of the Host; the cookie is for the scheme that the browser speaks."""
    origin = {"Origin": f"{scheme}://inside.example:8443", "Host": "inside.example"}
    answer = await behind_a_token.post(
        "/_tasks/login",
        data={"token": TOKEN},
        headers={**origin, "Sec-Fetch-Site": "same-origin"},
        allow_redirects=False,
    )
    assert answer.status == 303
    assert ("Secure" in answer.headers["Set-Cookie"].split("; ")) == (scheme == "https")


async def test_what_a_client_likes_is_read_as_far_as_a_browser_would_say_it(
    open_to_this_machine: TestClient[web.Request, web.Application],
) -> None:
    """All of a hundred long headers would take the loop, whoever sends them."""
    page = "text/html"
    for accept in (f"{'a/b,' * 30}{page}", f"{'a' * 1000},{page}"):
        response = await open_to_this_machine.get("/_tasks", headers={"Accept": accept})
        assert response.content_type == "application/json"
    headers = CIMultiDict([("Accept", "*/*"), ("Accept", page)])
    response = await open_to_this_machine.get("/_tasks", headers=headers)
    assert response.content_type == "application/json"


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "DELETE"])
async def test_whoever_may_not_look_does_not_learn_what_is_allowed(
    method: str, behind_a_token: TestClient[web.Request, web.Application]
) -> None:
    await refused(await behind_a_token.request(method, "/_tasks"), 401)


async def test_a_token_from_a_file_may_end_with_a_line_break() -> None:
    async with client_of(application(Admin(token=f"{TOKEN}\n"))) as client:
        assert (await client.get("/_tasks", headers=BEARER)).status == 200


async def test_an_old_protocol_is_no_local_client(
    open_to_this_machine: TestClient[web.Request, web.Application],
) -> None:
    """It is what nginx speaks to a service, with the service's own name as Host, unless told otherwise."""
    port = open_to_this_machine.port or 0
    answer = await raw(port, f"GET /_tasks HTTP/1.0\nHost: 127.0.0.1:{port}\n\n")
    assert answer.startswith("HTTP/1.0 403 ")


async def test_not_a_number_is_no_age(
    open_to_this_machine: TestClient[web.Request, web.Application],
) -> None:
    assert (await open_to_this_machine.get("/_tasks?min_age=nan")).status == 400
