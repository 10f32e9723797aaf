"""``/_tasks`` and below."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from html import escape
from importlib.resources import files
from math import isfinite
from typing import Any, Protocol

from aiohttp import web

from .access import Gate

__all__ = ["Routes", "Snapshots"]

_HEADERS = {
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
_STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
_MOST_TASKS = 100_000
_MOST_FRAMES = 100


class Snapshots(Protocol):
    """Where pictures of the tasks come from."""

    async def snapshot_json(self, **filters: Any) -> str:
        """The document of ``/_tasks``; raises ``ValueError`` or ``TypeError`` for a filter that can't be."""
        ...


class Routes:
    """What is served under the admin path; all of it behind the gate."""

    def __init__(self, path: str, gate: Gate, snapshots: Snapshots) -> None:
        self._path = path
        self._gate = gate
        self._snapshots = snapshots

    def add_to(self, app: web.Application) -> None:
        add = app.router.add_get
        add(self._path, self._guarded(self.tasks))
        add(self._path + r"/{id:\d{1,18}}", self._guarded(self.task))
        add(self._path + "/static/{name}", self._guarded(self.static))
        if self._gate.has_login:
            app.router.add_post(self._path + "/login", self.login)
        app.router.add_route("*", self._path, self._guarded(self.not_allowed))
        # Last: whoever may not look must not learn what there is.
        app.router.add_route("*", self._path + "/{rest:.*}", self._guarded(self.nothing))

    def _guarded(self, handler: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
        async def guarded(request: web.Request) -> web.StreamResponse:
            refusal = self._gate.check(request)
            if refusal is not None:
                response: web.StreamResponse = self._with_login(request, refusal)
            else:
                response = await handler(request)
            response.headers.update(_HEADERS)
            return response

        return guarded

    def _with_login(self, request: web.Request, refusal: web.Response) -> web.Response:
        if self._gate.has_login and _wants_html(request):
            return self._page("login.html", request, status=refusal.status)
        return refusal

    async def tasks(self, request: web.Request) -> web.Response:
        if _wants_html(request):
            return self._page("page.html", request)
        try:
            filters = _filters(request.query)
            text = await self._snapshots.snapshot_json(**filters)
        except (TypeError, ValueError) as exc:
            return web.json_response({"error": str(exc)}, status=400)
        return web.Response(text=text, content_type="application/json")

    async def task(self, request: web.Request) -> web.Response:
        if _wants_html(request):
            return self._page("page.html", request)
        text = await self._snapshots.snapshot_json(id=int(request.match_info["id"]), frames=_MOST_FRAMES)
        found = json.loads(text)["tasks"]
        if not found:
            return web.json_response({"error": "no such task: it has ended"}, status=404)
        return web.json_response(found[0])

    async def static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in _STATIC:
            raise web.HTTPNotFound
        return web.Response(text=_read(name), content_type=_STATIC[name], charset="utf-8")

    async def nothing(self, request: web.Request) -> web.Response:
        return web.json_response({"error": "there is nothing here"}, status=404)

    async def not_allowed(self, request: web.Request) -> web.Response:
        return web.json_response({"error": "GET it"}, status=405, headers={"Allow": "GET, HEAD"})

    async def login(self, request: web.Request) -> web.Response:
        """Take the token from the login form, on a page of ours only."""
        if not _is_same_site(request):
            return web.Response(status=403, text="403: log in from the page itself\n", headers=_HEADERS)
        token = await _posted_token(request)
        if token is None or not self._gate.accepts(token):
            return self._page("login.html", request, status=401, headers=_HEADERS)
        base = self._base(request)
        response = web.Response(status=303, headers={**_HEADERS, "Location": base})
        self._gate.start_session(request, response, base)
        return response

    def _page(
        self, name: str, request: web.Request, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        text = _read(name).replace("{base}", escape(self._base(request), quote=True))
        return web.Response(text=text, content_type="text/html", status=status, headers=headers)

    def _base(self, request: web.Request) -> str:
        """The admin path as the client sees it: under a sub-application's prefix, if there is one."""
        resource = request.match_info.route.resource
        path = self._path if resource is None else resource.canonical
        return path[: path.index(self._path) + len(self._path)]


def _wants_html(request: web.Request) -> bool:
    format_ = request.query.get("format")
    if format_ in ("html", "json"):
        return format_ == "html"
    return "text/html" in request.headers.get("Accept", "")


async def _posted_token(request: web.Request) -> str | None:
    """What a login form holds; ``None`` for anything that isn't one."""
    if request.content_type != "application/x-www-form-urlencoded" or (request.content_length or 0) > 4096:
        return None
    try:
        token = (await request.post()).get("token")
    except (LookupError, ValueError, web.RequestPayloadError, web.HTTPException):
        return None
    return token if isinstance(token, str) else None


def _is_same_site(request: web.Request) -> bool:
    """Browsers say where a form was sent from; what says nothing is no browser and has no cookie to steal."""
    fetched = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin")
    host = request.headers.get("Host", "")
    return fetched in ("same-origin", "none") and (origin is None or origin.partition("://")[2] == host)


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError
    return number


def _filters(query: Mapping[str, str]) -> dict[str, Any]:
    """The query's filters; raises ``ValueError`` naming the one that can't be."""
    filters: dict[str, Any] = {}
    for name, convert, takes in (
        ("state", str, "a state"),
        ("wait", str, "a wait kind"),
        ("coro", str, "part of a name"),
        ("request_id", str, "a request id"),
        ("min_age", _finite, "a number of seconds"),
        ("limit", int, "a whole number"),
        ("frames", int, "a whole number"),
        ("sort", str, "an order"),
    ):
        if name in query:
            try:
                filters[name] = convert(query[name])
            except ValueError:
                raise ValueError(f"{name} takes {takes}") from None
    if filters.get("frames", 0) > _MOST_FRAMES or filters.get("limit", 0) > _MOST_TASKS:
        raise ValueError(f"at most {_MOST_FRAMES} frames of {_MOST_TASKS} tasks")
    return filters


@cache
def _read(name: str) -> str:
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")
