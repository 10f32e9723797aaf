"""Who may look."""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
import time
from copy import copy
from ipaddress import ip_address

from aiohttp import HttpVersion11, hdrs, web

__all__ = ["ASK_FROM_HERE", "Gate", "check_token", "is_disconnected", "is_same_site"]

ASK_FROM_HERE = "ask from the page itself, or at the address of this"
"""Said to other sites' pages, and who follows their links, where to look costs the service something."""
_SESSION_SECONDS = 12 * 3600
_FORWARDING = {
    "cdn-loop",
    "front-end-https",
    "via",
    "x-cloud-trace-context",
    "x-host",
    "x-http-host-override",
    "x-rewrite-url",
    "x-scheme",
    "x-varnish",
}
_FORWARDING_PREFIXES = (
    "akamai-", "cf-", "fastly-", "fly-", "x-amz", "x-appengine-", "x-arr-", "x-azure-", "x-envoy-", "x-nf-",
    "x-origin", "x-vercel-",
)  # fmt: skip
_FORWARDING_WORDS = ("-via", "forward", "proxy")
_FORWARDING_NAMES = ("clientip", "connectingip", "realip", "remoteaddr", "remoteip", "remoteuser", "realhost")
"""Written with hyphens or without."""
_OCTET = r"\.(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_loopback_host = re.compile(
    rf"(?:localhost|127(?:{_OCTET}){{3}}|\[::1\])(?::\d{{1,5}})?", re.IGNORECASE | re.ASCII
).fullmatch


class Gate:
    """The rule for everything private.

    With a token: ``Authorization: Bearer <token>``, compared in constant time, or the session
    cookie that the login page gives; the cookie is a signed expiry time, not the token, and
    good for our own page only.

    Without one: a peer on the loopback interface, whose ``Host`` is a loopback name (so that
    no other site's name can be bound to us) and whose request carries no forwarding header
    (so that a reverse proxy on the same machine doesn't open the door to everybody), and
    which isn't made by another site's page in this machine's browser, that a generous CORS
    set-up of the service would let read the answer.  A proxy that hides itself completely
    can't be told from a local client: behind one, set a token.
    """

    def __init__(self, token: str | None) -> None:
        self._trusts_unix_peers = False
        self._token = None if token is None else token.strip().encode()
        # From the token, slowly: the workers of a service must take each other's cookies.
        self._key = b"" if token is None else _stretched(token.strip().encode())

    def for_private_socket(self) -> Gate:
        """A gate for a Unix socket that nobody but the service's own user can connect to."""
        gate = copy(self)
        gate._trusts_unix_peers = True
        return gate

    @property
    def has_login(self) -> bool:
        """Whether there is a token to log in with."""
        return self._token is not None

    def check(self, request: web.Request) -> web.Response | None:
        """The refusal, or ``None`` for those who may look.  A refusal tells nothing of the service."""
        if self._token is None:
            return None if self._is_local(request) else _refusal_without_token()
        if self._has_token(request) or (self._has_session(request) and not _is_foreign(request)):
            return None
        return web.Response(
            status=401,
            text="401: present the admin token as 'Authorization: Bearer <token>'\n",
            headers={"WWW-Authenticate": 'Bearer realm="aiohttp_observe"'},
        )

    def _is_local(self, request: web.Request) -> bool:
        hosts = request.headers.getall("Host", [])
        return (
            (_is_loopback_peer(request) or (self._trusts_unix_peers and _is_unix_peer(request)))
            and request.version >= HttpVersion11  # what nginx speaks to a service unless told otherwise
            and len(hosts) == 1
            and _loopback_host(hosts[0]) is not None
            and request.raw_path.startswith("/")  # else it was meant for a proxy, and may name another host
            and not any(_forwards(name.lower().replace("_", "-")) for name in request.headers)
            and not _is_foreign(request)
        )

    def accepts(self, token: str) -> bool:
        """Whether ``token`` is the right one."""
        # Not "replace": a byte that isn't UTF-8, which aiohttp hands on as a surrogate, would pass for "?".
        given = token.encode(errors="surrogatepass")
        return self._token is not None and hmac.compare_digest(given, self._token)

    def start_session(self, request: web.Request, response: web.StreamResponse, path: str) -> None:
        """Give the browser a cookie in place of the token it has shown."""
        until = str(int(time.time()) + _SESSION_SECONDS)
        response.set_cookie(
            _cookie_name(request),
            f"{until}.{self._sign(until)}",
            max_age=_SESSION_SECONDS,
            path=path,
            httponly=True,
            samesite="Strict",
            secure=request.secure or request.headers.get(hdrs.ORIGIN, "").startswith("https://"),
        )

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.accepts(token.strip())

    def _has_session(self, request: web.Request) -> bool:
        until, _, signature = request.cookies.get(_cookie_name(request), "").partition(".")
        if not until.isascii() or not until.isdigit() or len(until) > 12:
            return False
        signed = hmac.compare_digest(signature.encode(errors="replace"), self._sign(until).encode())
        return signed and int(until) > time.time()

    def _sign(self, until: str) -> str:
        return hmac.digest(self._key, until.encode(), "sha256").hex()


def check_token(option: str, token: str) -> None:
    """Raise ``ValueError``, which doesn't show it, unless ``token`` fits into a request's header."""
    secret = token.strip()
    if not secret:
        raise ValueError(f"{option} takes a secret, got an empty one: leave it out or set one")
    if not (secret.isascii() and secret.isprintable()):
        raise ValueError(
            f"{option} takes printable ASCII characters, as not every client can put others into a header: "
            'make one with python -c "import secrets; print(secrets.token_urlsafe())"'
        )


def _stretched(token: bytes) -> bytes:
    return hashlib.scrypt(token, salt=b"aiohttp_observe session", n=2**13, r=8, p=1, dklen=32)


def _cookie_name(request: web.Request) -> str:
    """One for each port: browsers share the cookies of a host's ports, which may be several services."""
    socket = request.transport.get_extra_info("sockname") if request.transport is not None else None
    port = socket[1] if isinstance(socket, tuple) else "unix"
    return f"aiohttp_observe_session_{port}"


def _refusal_without_token() -> web.Response:
    return web.Response(
        status=403,
        text="403: only direct requests from this machine are answered here; "
        "give the service an AIOHTTP_OBSERVE_ADMIN_TOKEN to look from elsewhere\n",
    )


def _forwards(header: str) -> bool:
    return (
        header in _FORWARDING
        or header.startswith(_FORWARDING_PREFIXES)
        or any(word in header for word in _FORWARDING_WORDS)
        or any(name in header.replace("-", "") for name in _FORWARDING_NAMES)
    )


def is_same_site(request: web.Request) -> bool:
    """Browsers say where a form was sent from; what says nothing is no browser and has no cookie to steal."""
    fetched = request.headers.get("Sec-Fetch-Site")
    if fetched == "same-origin":  # which no page can forge, whatever a proxy makes of the Host
        return True
    origin = request.headers.get(hdrs.ORIGIN)
    host = request.headers.get(hdrs.HOST, "")
    return fetched in (None, "none") and (origin is None or origin.partition("://")[2] == host)


def is_disconnected(request: web.Request) -> bool:
    """Whether nobody waits for the answer any more.  aiohttp cancels no handler for it unless told to."""
    return request.transport is None or request.transport.is_closing()


def _is_foreign(request: web.Request) -> bool:
    """Whether a page of another site asks; not so a link to us, whose answer that page can't read.

    Somebody has to follow it, whereas any number of frames load without anybody's doing.
    """
    follows_link = (
        request.method in ("GET", "HEAD")
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest", "document") == "document"
    )
    return not follows_link and not is_same_site(request)


def _is_unix_peer(request: web.Request) -> bool:
    sock = request.transport.get_extra_info("socket") if request.transport is not None else None
    return sock is not None and sock.family == getattr(socket, "AF_UNIX", None)


def _is_loopback_peer(request: web.Request) -> bool:
    """Whether the peer is this machine, by the transport: a middleware can change ``request.remote``."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    if not isinstance(peer, tuple):  # a Unix socket's peer is a proxy, usually
        return False
    try:
        address = ip_address(peer[0].partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
