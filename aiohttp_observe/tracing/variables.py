"""What the standard variables ask of spans: the headers they show, and the URLs that have none."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from opentelemetry.util.http import (
    OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS,
    ExcludeList,
    SanitizeValue,
    get_custom_headers,
    get_excluded_urls,
)

from ..texts import valid

__all__ = ["HeaderCapture", "excluded_urls"]


def excluded_urls(kind: str) -> ExcludeList | None:
    """The URLs that get no span of ``kind``, ``AIOHTTP_SERVER`` or ``AIOHTTP_CLIENT``; ``None`` if all do.

    Raises ``ValueError`` for what is no regular expression.
    """
    names = (f"OTEL_PYTHON_{kind}_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS")
    if not any(os.environ.get(name) for name in names):
        return None
    try:
        return get_excluded_urls(kind)
    except re.error as exc:
        raise ValueError(
            f"{' and '.join(names)} take regular expressions, with commas between: {exc}"
        ) from exc


class HeaderCapture:
    """The headers a standard variable asks for, as span attributes; compiled once."""

    def __init__(self, variable: str, normalise: Callable[[str], str]) -> None:
        self.wanted = get_custom_headers(variable)
        self._normalise = normalise
        sensitive = OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS
        try:
            self._sanitize = SanitizeValue(get_custom_headers(sensitive))
            self._sanitized({})
        except re.error as exc:
            raise ValueError(
                f"{variable} and {sensitive} take names of headers, or regular expressions for them: {exc}"
            ) from exc

    def of(self, headers: Any) -> dict[str, list[str]]:
        return self._sanitized({name: list(map(valid, headers.getall(name))) for name in headers})

    def _sanitized(self, values: dict[str, list[str]]) -> dict[str, list[str]]:
        return self._sanitize.sanitize_header_values(values, self.wanted, self._normalise)
