"""What must not be shown: values whose names say that they are secret, and secrets in URLs."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable
from functools import lru_cache
from urllib.parse import unquote_plus

__all__ = [
    "MARK",
    "SECRETS",
    "SecretNames",
    "exception_event",
    "in_query",
    "in_text",
    "is_secret",
    "secret_names",
]

MARK = "REDACTED"
"""Stands where a secret stood; the word of OpenTelemetry's conventions."""

SECRETS = (
    "password", "passwd", "passphrase", "pwd", "secret", "token", "jwt", "authorization", "cookie",
    "api_key", "apikey", "access_key", "secret_key", "private_key", "credential", "credentials",
    "session_id", "sessionid",
    # What OpenTelemetry redacts in URLs.
    "awsaccess_key_id", "awsaccesskeyid", "signature", "sig",
)  # fmt: skip
"""The names that are secret unless a service says otherwise."""

SecretNames = Callable[[str], bool]
"""Whether a name is that of a secret."""

_LONGEST_NAME = 256
_AND_SO_ON = re.compile(r"(_(header|headers|hash|value))+$")
_SEPARATOR = re.compile(r"[-._\s\[\]]+|(?<=[a-z0-9])(?=[A-Z])")


def secret_names(names: Iterable[str]) -> SecretNames:
    """Whether a name is one of ``names``, or ends with one.

    ``token`` is ``access_token``, ``Access-Token`` and ``accessToken``, too, and ``token_hash``.
    """
    ends = tuple(_words(name) for name in names)

    @lru_cache(maxsize=1024)
    def is_secret(name: str) -> bool:
        return _words(name).endswith(ends) or _words(name.lower()).endswith(ends)

    return is_secret


def _words(name: str) -> str:
    words = "_" + _SEPARATOR.sub("_", name[-_LONGEST_NAME:]).lower().strip("_")
    return _AND_SO_ON.sub("", words)


is_secret = secret_names(SECRETS)


def in_query(query: str) -> str:
    """A URL's query without the values of secrets."""
    return "&".join(map(_redacted, query.split("&"))) if "=" in query else query


def _redacted(part: str) -> str:
    name, equals, _ = part.partition("=")
    return f"{name}={MARK}" if equals and is_secret(unquote_plus(name)) else part


# Bounded: a text without end must take no more than linear time.
_credentials = re.compile(r"(?<=://)[^\s/?#'\"<>]{1,1024}@")
_parameter = re.compile(r"([?&;#])([\w.%\[\]-]{1,64})=([^\s&;#'\"<>)\\]+)")


def in_text(text: str) -> str:
    """A text without what is secret in the URLs it has: credentials, and values of parameters."""
    if "://" in text and "@" in text:
        text = _credentials.sub(f"{MARK}@", text)
    if "=" in text and ("?" in text or "#" in text):
        text = _parameter.sub(_without_value, text)
    return text


def exception_event(exc: BaseException) -> dict[str, str]:
    """The attributes of a span's ``exception`` event, without what is secret in URLs; never raises."""
    kind = type(exc)
    builtin = kind.__module__ == "builtins"
    return {
        "exception.type": kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}",
        "exception.message": in_text(_rendered(lambda: str(exc))),
        "exception.stacktrace": in_text(_rendered(lambda: "".join(traceback.format_exception(exc)))),
        "exception.escaped": "False",
    }


def _rendered(render: Callable[[], str]) -> str:
    try:
        return render()
    except Exception as exc:  # a repr or __str__ of the service's that raises
        return f"[not rendered: {type(exc).__name__}]"


def _without_value(found: re.Match[str]) -> str:
    before, name, _ = found.groups()
    return f"{before}{name}={MARK}" if is_secret(unquote_plus(name)) else found.group()
