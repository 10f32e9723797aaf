"""What a server span tells of its request, following the stable HTTP semantic conventions.

Taken down as a tuple of what is at hand when the request ends, and spelt out as attributes
when somebody reads them: that is the exporter, in a thread of its own, and nobody for spans
that are dropped from its queue.  A tuple of texts is nothing the garbage collector walks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from aiohttp import HttpVersion

from ..exchange import OTHER_METHOD, UNMATCHED, Exchange
from ..redaction import in_query
from ..texts import valid

__all__ = ["Facts", "attributes_of", "beyond_status", "is_our_error", "name_of", "outcome_of"]

Facts = tuple[
    str,  # method
    str,  # method as sent
    str,  # scheme
    str,  # path
    str,  # query
    HttpVersion,  # HTTP version
    str,  # route
    str,  # Host header
    "str | None",  # client's address
    "str | None",  # user agent
    "dict[str, list[str]] | None",  # captured headers
    "int | None",  # status
    "dict[str, Any] | None",  # what else there is of its outcome
]
"""What is taken down of a request."""

_DEFAULT_PORTS = {"http": "80", "https": "443"}
_HTTP_VERSIONS = {(1, 0): "1.0", (1, 1): "1.1"}


def name_of(method: str, route: str = UNMATCHED) -> str:
    """A server span's name by the semantic conventions; the official helper gives that only of late."""
    name = "HTTP" if method == OTHER_METHOD else method
    return name if route is UNMATCHED else f"{name} {route}"


def attributes_of(facts: Facts) -> dict[str, Any]:
    """The attributes of what is known; before the end that is nothing of the outcome."""
    method, sent, scheme, path, query, version, route, host_header = facts[:8]
    client, agent, headers, status, more = facts[8:]
    attributes: dict[str, Any] = {
        "http.request.method": method,
        "url.scheme": scheme,
        "url.path": path,
        "network.protocol.version": _HTTP_VERSIONS.get(version, "1.1"),
    }
    if method == OTHER_METHOD:
        attributes["http.request.method_original"] = sent
    if route is not UNMATCHED:
        attributes["http.route"] = route
    host, port = _host_and_port(host_header, scheme)
    if host:
        attributes["server.address"] = host
        if port is not None:
            attributes["server.port"] = port
    if client is not None:
        attributes["client.address"] = client
    if agent is not None:
        attributes["user_agent.original"] = agent
    if query:
        attributes["url.query"] = in_query(valid(query))
    if headers is not None:
        attributes.update(headers)
    if status is not None:
        attributes["http.response.status_code"] = status
    if more is not None:
        attributes.update(more)
    return attributes


@lru_cache(maxsize=256)
def _host_and_port(host: str, scheme: str) -> tuple[str, int | None]:
    """Split a ``Host`` header; its port is the scheme's if it has none, ``None`` if it is no port."""
    host = valid(host)
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):
        name, port = host, _DEFAULT_PORTS.get(scheme, "")
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    return name.strip("[]").lower(), number if 0 < number < 65536 else None


def outcome_of(exchange: Exchange) -> dict[str, Any]:
    """The attributes that are known only at the end."""
    outcome = beyond_status(exchange) or {}
    if exchange.status is not None:
        outcome["http.response.status_code"] = exchange.status
    return outcome


def beyond_status(exchange: Exchange) -> dict[str, Any] | None:
    """Attributes of an outcome besides the status, which most requests don't have."""
    outcome: dict[str, Any] = {}
    if exchange.error_type is not None:
        outcome["error.type"] = exchange.error_type
    if exchange.websocket is not None:
        outcome.update(exchange.websocket.attributes)
    if exchange.ready or exchange.waiting:
        _add_time_split(outcome, exchange)
    return outcome or None


def _add_time_split(outcome: dict[str, Any], exchange: Exchange) -> None:
    """Add where the time of a request went, if it waited for anything."""
    outcome["async.busy_seconds"] = round(exchange.busy, 6)
    outcome["async.ready_seconds"] = round(exchange.ready, 6)
    for kind, seconds in exchange.waiting.items():
        outcome[f"async.waiting_seconds.{kind}"] = round(seconds, 6)


def is_our_error(exchange: Exchange) -> bool:
    """Whether the service failed; a client that left, or erred (4xx), is no error of a server span."""
    return exchange.error_type is not None and exchange.status != 499
