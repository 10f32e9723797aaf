"""``/_tasks`` and below."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cache
from html import escape
from importlib.resources import files

from aiohttp import hdrs, web

from .access import ASK_FROM_HERE, Gate, is_same_site
from .cancelling import Cancelling
from .console import Console
from .problem import problem
from .profiling import Profiling
from .query import MOST_FRAMES, check_known, chosen
from .stream import Streams

__all__ = ["Routes"]

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send the login form with Origin: null
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_FORGOTTEN = "nothing but this task refers to what it waits for: nobody is left to wake it, most likely"
_WHICH_TOKEN = "It is the service's Admin(token=…), or AIOHTTP_OBSERVE_ADMIN_TOKEN."
_WRONG_TOKEN = f"<strong>That isn't the token.</strong> {_WHICH_TOKEN}"
_LONGEST_ACCEPT = 1000
_MOST_KINDS = 20
"""Of what is said to be liked, as far as it is read: anybody may say it; browsers take 150 characters."""
_LONGEST_ADDRESS = 260
_TYPES = {".css": "text/css", ".js": "text/javascript"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Routes:
    """What is served under the admin path; all of it behind the gate."""

    def __init__(self, path: str, gate: Gate, console: Console, *, allow_cancel: bool) -> None:
        self._path = path
        self._home: web.AbstractResource | None = None
        self._gate = gate
        self._console = console
        self._streams = Streams(console, HEADERS, may_cancel=allow_cancel and gate.has_login)
        self._profiling = Profiling(console)
        self._cancelling = Cancelling(console, allowed=allow_cancel and gate.has_login)

    def add_to(self, app: web.Application) -> None:
        """Add the routes; what whoever may not look must not learn is there comes last."""
        for path, handler in (
            ("", self.tasks),
            (r"/{id:\d{1,18}}", self.task),
            ("/groups", self.groups),
            ("/tree", self.tree),
            ("/resources", self.resources),
            ("/incidents", self.incidents),
            ("/requests", self.requests),
            ("/requests/{request_id}", self.request),
        ):
            route = app.router.add_get(self._path + path, self._guarded(self._page_or(_checked(handler))))
            self._home = self._home or route.resource
        app.router.add_get(self._path + "/stream", self._guarded(_checked(self._streams.serve)))
        app.router.add_get(self._path + "/profile", self._guarded(_checked(self._profiling.serve)))
        app.router.add_get(self._path + "/bundles", self._guarded(_checked(self.bundles)))
        app.router.add_post(self._path + "/bundles", self._guarded(_checked(self.make_bundle)))
        app.router.add_get(self._path + r"/bundles/{id:\d{1,18}}", self._guarded(_checked(self.bundle)))
        app.router.add_get(self._path + "/static/{name}", self._guarded(self.static))
        one, many = _checked(self._cancelling.one), _checked(self._cancelling.many)
        app.router.add_post(self._path + r"/{id:\d{1,18}}/cancel", self._guarded(one))
        app.router.add_post(self._path + "/cancel", self._guarded(many))
        if self._gate.has_login:
            app.router.add_post(self._path + "/login", self.login)
            app.router.add_get(self._path + "/login.css", self.login_style)
        app.router.add_route("*", self._path, self._guarded(self.not_allowed))
        app.router.add_route("*", self._path + "/{rest:.*}", self._guarded(self.nothing))
        app.on_shutdown.extend([self._streams.close, self._profiling.close])

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            refusal = self._gate.check(request)
            if refusal is not None:
                response: web.StreamResponse = self._with_login(request, refusal)
            else:
                response = await handler(request)
            if not response.prepared:
                response.headers.update(HEADERS)
            return response

        return guarded

    def _page_or(self, handler: Handler) -> Handler:
        """The page for a browser, which asks it for the document."""

        async def page_or_document(request: web.Request) -> web.StreamResponse:
            return self._page("page.html", request) if _wants_html(request) else await handler(request)

        return page_or_document

    def _with_login(self, request: web.Request, refusal: web.Response) -> web.Response:
        if self._gate.has_login and _wants_html(request):
            return self._page("login.html", request, status=refusal.status)
        return refusal

    async def tasks(self, request: web.Request) -> web.Response:
        return _document(await self._console.tasks(**chosen(request.query)))

    async def task(self, request: web.Request) -> web.Response:
        check_known(request.query, ["referrers"])
        number, looks_further = int(request.match_info["id"]), request.query.get("referrers") == "1"
        if looks_further and not is_same_site(request):
            return problem(403, ASK_FROM_HERE)
        found = json.loads(await self._console.tasks(id=number, frames=MOST_FRAMES))["tasks"]
        if not found:
            return problem(404, "no such task: it has ended")
        if looks_further and await self._console.is_forgotten(number):
            found[0]["warnings"].append(_FORGOTTEN)
        return web.json_response(found[0])

    async def groups(self, request: web.Request) -> web.Response:
        return _document(await self._console.groups(**chosen(request.query)))

    async def tree(self, request: web.Request) -> web.Response:
        check_known(request.query, [], "text")
        if request.query.get("format") == "text":
            return web.Response(text=await self._console.tree_text())
        return _document(await self._console.tree())

    async def resources(self, request: web.Request) -> web.Response:
        check_known(request.query, [])
        return _document(await self._console.resources())

    async def incidents(self, request: web.Request) -> web.Response:
        check_known(request.query, [])
        return web.json_response(self._console.incidents())

    async def requests(self, request: web.Request) -> web.Response:
        check_known(request.query, [])
        return _document(await self._console.requests())

    async def request(self, request: web.Request) -> web.Response:
        check_known(request.query, [])
        found = self._console.request(request.match_info["request_id"])
        if found is None:
            return problem(404, "no such request: it is too long ago, or was never here")
        return web.json_response(found)

    async def bundles(self, request: web.Request) -> web.Response:
        check_known(request.query, [])
        return web.json_response({"bundles": self._console.bundles()})

    async def bundle(self, request: web.Request) -> web.Response:
        check_known(request.query, [])
        text = self._console.bundle(int(request.match_info["id"]))
        return problem(404, "it isn't kept any more") if text is None else _document(text)

    async def make_bundle(self, request: web.Request) -> web.Response:
        check_known(request.query, [])
        if not is_same_site(request):
            return problem(403, ASK_FROM_HERE)
        number = await self._console.make_bundle("asked for")
        if number is None:
            return problem(507, "there is too much to keep")
        return web.json_response({"id": number}, status=201)

    async def static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in _static():
            return problem(404, "there is nothing here")
        content_type = _TYPES[name[name.rindex(".") :]]
        return web.Response(text=_read(name), content_type=content_type, charset="utf-8")

    async def nothing(self, request: web.Request) -> web.Response:
        return problem(404, "there is nothing here")

    async def not_allowed(self, request: web.Request) -> web.Response:
        response = problem(405, "GET it")
        response.headers[hdrs.ALLOW] = "GET, HEAD"
        return response

    async def login(self, request: web.Request) -> web.Response:
        """Take the token from the login form, on a page of ours only."""
        if not is_same_site(request):
            note = _why_from_elsewhere(request)
            return self._page("login.html", request, status=403, headers=HEADERS, note=note)
        token = await _posted_token(request)
        if token is None or not self._gate.accepts(token):
            return self._page("login.html", request, status=401, headers=HEADERS, note=_WRONG_TOKEN)
        base = self._base()
        response = web.Response(status=303, headers={**HEADERS, "Location": base})
        self._gate.start_session(request, response, base)
        return response

    async def login_style(self, request: web.Request) -> web.Response:
        """The login page's style sheet; anybody may have it."""
        return web.Response(text=_read("page.css"), content_type="text/css", charset="utf-8", headers=HEADERS)

    def _page(
        self,
        name: str,
        request: web.Request,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        note: str = _WHICH_TOKEN,
    ) -> web.Response:
        text = _read(name).replace("{note}", note)
        text = text.replace("{base}", escape(self._base(), quote=True))
        return web.Response(text=text, content_type="text/html", status=status, headers=headers)

    def _base(self) -> str:
        """The admin path as clients see it: under a sub-application's prefix, if there is one."""
        return self._path if self._home is None else self._home.canonical


def _checked(handler: Handler) -> Handler:
    """A parameter that can't be is a 400."""

    async def checked(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ValueError as exc:
            return problem(400, str(exc))

    return checked


def _document(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")


def _wants_html(request: web.Request) -> bool:
    format_ = request.query.get("format")
    if format_ is not None:
        return format_ == "html"
    return _prefers_html(request.headers.get(hdrs.ACCEPT, ""))


def _prefers_html(accept: str) -> bool:
    """Whether the page is asked for by name, as browsers do, and JSON isn't liked better."""
    liked: dict[str, float] = {}
    for each in accept[:_LONGEST_ACCEPT].lower().split(",", _MOST_KINDS)[:_MOST_KINDS]:
        kind, *parameters = each.split(";")
        liked.setdefault(kind.strip(), _quality(parameters))
    html = liked.get("text/html", 0.0)
    json_ = next((liked[kind] for kind in ("application/json", "application/*", "*/*") if kind in liked), 0.0)
    return html > 0 and html >= json_


def _quality(parameters: Iterable[str]) -> float:
    """How much something is liked: 1 unless told; what can't be read isn't liked."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _why_from_elsewhere(request: web.Request) -> str:
    """Why a login form isn't taken for our own, as HTML; who runs a proxy can do something about it."""
    origin = request.headers.get(hdrs.ORIGIN, "")[:_LONGEST_ADDRESS]
    host = request.headers.get(hdrs.HOST, "")[:_LONGEST_ADDRESS]
    if not origin or origin.partition("://")[2] == host:
        return "<strong>Log in from this page itself.</strong>"
    return (
        f"<strong>This page was at {escape(origin)}, but the service is asked as {escape(host)}.</strong> "
        "If a proxy stands between, it has to pass on the Host that it got: "
        "<code>proxy_set_header Host $http_host;</code> in nginx."
    )


async def _posted_token(request: web.Request) -> str | None:
    """The token that a login form holds; ``None`` for anything that isn't one."""
    # Strangers may send it: a body of untold length isn't read at all, nor one that would unpack to more.
    length = request.content_length
    if request.content_type != "application/x-www-form-urlencoded" or length is None or length > 4096:
        return None
    if hdrs.CONTENT_ENCODING in request.headers:
        return None
    try:
        token = (await request.post()).get("token")
    except (LookupError, ValueError, web.RequestPayloadError, web.HTTPException):
        return None
    return token if isinstance(token, str) else None


@cache
def _static() -> frozenset[str]:
    """The files of the page; the HTML ones are served as pages only."""
    names = (entry.name for entry in (files(__package__) / "static").iterdir())
    return frozenset(name for name in names if name.endswith(tuple(_TYPES)))


@cache
def _read(name: str) -> str:
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")
