"""Whatever a client sends, nothing of ours fails, every line is one, and the series stay few."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.target import TOKEN, Connection, Target, target

# The server runs in another thread of this process, and draws its ids from `random` while a
# strategy draws here, which hypothesis takes for the strategy's doing.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

quick = settings(
    max_examples=250,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def served() -> Iterator[Target]:
    with target() as found:
        connection = Connection(found.port)
        for head in ("GET /", "GET /items/1", "GET /nothing", "GET /fail", "FOO /", "GET /_tasks"):
            connection.send(f"{head} HTTP/1.1\nHost: a\nAuthorization: Bearer {TOKEN}")
        connection.close()
        yield found


@pytest.fixture
def connection(served: Target) -> Iterator[Connection]:
    """What is sent over it leaves no trace but sound log lines and a few series."""
    opened = Connection(served.port)
    yield opened
    status, _ = opened.send("GET / HTTP/1.1\nHost: a")
    if not status:  # the last one has closed it
        status, _ = opened.send("GET / HTTP/1.1\nHost: a")
    opened.close()
    assert status == 200
    assert served.internal_errors() == 0
    assert served.series() < 5000  # a few routes and statuses of ten methods
    for line in served.log.take():
        assert isinstance(json.loads(line), dict)


def printable(*more: str) -> st.SearchStrategy[str]:
    """What a header's value can have on the wire: bytes beyond ASCII as lone surrogates."""
    texts = st.text(
        st.characters(min_codepoint=0x20, max_codepoint=0x7E)
        | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF),
        max_size=80,
    )
    return texts | st.sampled_from(more) if more else texts


HEX = "0123456789abcdef"
hexes = st.text(HEX + "ABCDEFg-", max_size=40)
traceparents = st.builds("-".join, st.lists(hexes, max_size=6)) | st.builds(
    "{}-{}-{}-{}".format,
    st.sampled_from(["00", "01", "ff", "cc"]),
    st.text(HEX, min_size=31, max_size=33),
    st.text(HEX, min_size=15, max_size=17),
    st.sampled_from(["00", "01", "ff", "0", "xx", "01-more"]),
)
members = st.builds("{}={}".format, printable(), printable())
lists = st.builds(",".join, st.lists(members | printable(), max_size=40))


@quick
@given(parent=traceparents | printable(), state=lists, baggage=lists, twice=st.booleans())
def test_a_trace_context_may_be_anything(
    connection: Connection, parent: str, state: str, baggage: str, twice: bool
) -> None:
    head = f"GET / HTTP/1.1\nHost: a\ntraceparent: {parent}\ntracestate: {state}\nbaggage: {baggage}"
    status, _ = connection.send(head + f"\ntraceparent: {parent}" * twice)
    assert status == 200


ADDRESSES = ("for=127.0.0.1", 'for="[::1]:80";proto=https', "unknown", "1.2.3.4, 5.6.7.8", "localhost", "")


@quick
@given(
    request_id=printable("a" * 128, "a" * 129),
    host=printable("localhost", "[::1]", "a:b:c", "a:99999", "[::1", "\udcff"),
    forwarded=printable(*ADDRESSES),
    name=st.sampled_from(
        ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"]
    ),
)
def test_what_tells_of_the_client_may_be_anything(
    connection: Connection, request_id: str, host: str, forwarded: str, name: str
) -> None:
    head = (
        f"GET / HTTP/1.1\nHost: {host}\nX-Request-ID: {request_id}\n{name}: {forwarded}\nUser-Agent: {host}"
    )
    status, _ = connection.send(head)
    assert status == 200


visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60)
escapes = st.builds("%{:02x}".format, st.integers(0, 255)) | st.sampled_from(
    ["%", "%0", "%zz", "%u0041", "..", "//", ";"]
)
paths = st.builds("/{}".format, st.builds("".join, st.lists(visible | escapes, max_size=8)))
prefixes = st.sampled_from(
    ["", "", "/items", "/_tasks", "/metrics", "/fail", "http://a", "//a", "http://[::1"]
)


@quick
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "FOO", "PROPFIND", "get", "M-SEARCH", "TRACE", "CONNECT"])
    | st.text("ABCXYZ-_!", min_size=1, max_size=20),
    prefix=prefixes,
    path=paths,
)
def test_a_request_line_may_be_anything(connection: Connection, method: str, prefix: str, path: str) -> None:
    status, body = connection.send(f"{method} {prefix}{path} HTTP/1.1\nHost: a")
    assert status != 500 or prefix == "/fail" or path.startswith("/fail")
    assert b"Traceback" not in body


@quick
@given(headers=st.lists(st.tuples(st.text("ABCabc-_", min_size=1, max_size=10), printable()), max_size=120))
def test_headers_may_be_many(connection: Connection, headers: list[tuple[str, str]]) -> None:
    flood = "".join(f"\nX-{name}: {value}" for name, value in headers)
    status, _ = connection.send(f"GET /items/1 HTTP/1.1\nHost: a{flood}")
    assert status in (200, 400)


PARAMETERS = [
    "frames",
    "limit",
    "min_age",
    "sort",
    "state",
    "wait",
    "coro",
    "request_id",
    "format",
    "referrers",
]
numbers = st.builds(str, st.integers() | st.floats() | st.integers(-(10**400), 10**400))
values = numbers | visible | st.builds("".join, st.lists(escapes, max_size=10))


@quick
@given(
    page=st.sampled_from(["", "/groups", "/tree", "/resources", "/requests", "/1", "/bundles", "/incidents"]),
    query=st.lists(st.tuples(st.sampled_from(PARAMETERS), values), max_size=6),
)
def test_the_consoles_parameters_may_be_anything(
    connection: Connection, page: str, query: list[tuple[str, str]]
) -> None:
    asked = "&".join(f"{name}={value}" for name, value in query)
    status, body = connection.send(
        f"GET /_tasks{page}?{asked} HTTP/1.1\nHost: a\nAuthorization: Bearer {TOKEN}"
    )
    assert status in (200, 400, 404)
    assert b"Traceback" not in body


@quick
@given(
    token=printable(TOKEN + "x", TOKEN[:-1], TOKEN.upper()),
    scheme=printable("Bearer", "Basic"),
)
def test_no_token_but_the_right_one_opens(connection: Connection, token: str, scheme: str) -> None:
    status, body = connection.send(f"GET /_tasks HTTP/1.1\nHost: 127.0.0.1\nAuthorization: {scheme} {token}")
    assert status == 401
    assert b"taken_at" not in body
