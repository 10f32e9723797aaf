"""What must not be shown: values whose names say that they are secret, and secrets in texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from urllib.parse import quote, unquote_plus

__all__ = [
    "LONGEST_STACK",
    "LONGEST_TEXT",
    "MARK",
    "SECRETS",
    "SecretNames",
    "in_query",
    "in_text",
    "in_url",
    "is_secret",
    "secret_names",
    "shown",
]

LONGEST_TEXT = 16_384
"""Characters of a text that are shown."""
LONGEST_STACK = 65_536
"""Characters of a stack that are."""
MARK = "REDACTED"
"""Stands where a secret stood; the word of OpenTelemetry's conventions."""

SECRETS = (
    "password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets", "token", "jwt",
    "authorization", "cookie", "cookies", "api_key", "api_keys", "apikey", "access_key", "secret_key",
    "private_key", "credential", "credentials", "session_id", "sessionid",
    # What OpenTelemetry redacts in URLs.
    "awsaccess_key_id", "awsaccesskeyid", "signature", "sig",
)  # fmt: skip
"""The names that are secret unless a service says otherwise."""

_HINTS = (
    "pass",
    "pwd",
    "secret",
    "token",
    "jwt",
    "authorization",
    "cookie",
    "key",
    "credential",
    "session",
    "sig",
)
"""In lower case, what each of these names has in it: most texts have none, and needn't be read closely."""

SecretNames = Callable[[str], bool]
"""Whether a name is that of a secret."""

_LONGEST_NAME = 256
_AND_SO_ON = re.compile(r"(_(header|headers|hash|value))+$")
_SEPARATOR = re.compile(r"[-._\s\[\]'\"]+|(?<=[a-z0-9])(?=[A-Z])")


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
    if "=" not in query:
        return query
    if ";" in query:  # which some take for an ampersand
        told = "".join(map(_redacted, _between_parameters.split(query)))
    else:
        told = "&".join(map(_redacted, query.split("&")))
    return in_text(told) if "://" in told else told  # a URL within the URL


def in_url(url: str) -> str:
    """A whole URL without credentials and the values of secrets."""
    rest, hash_, fragment = url.partition("#")
    place, question, query = rest.partition("?")
    return _userinfo.sub(f"{MARK}:{MARK}@", place) + question + in_query(query) + hash_ + in_query(fragment)


def _redacted(part: str) -> str:
    name, equals, value = part.partition("=")
    if not equals:
        return part
    if is_secret(unquote_plus(name).rpartition("?")[2]):
        return f"{name}={MARK}"
    if "%" in value:  # a URL, or JSON, within the URL
        decoded = unquote_plus(value)
        told = in_text(decoded)
        if told != decoded:
            return f"{name}={quote(told, safe='/:?')}"
    return part


# Bounded: a text without end must take no more than linear time.
_LONGEST_SECRET = 1100
_LONGEST_GROUP = 4096
_LONGEST_GROUP_AFTER = 64
"""Of brackets, once some in the text had no end."""
_between_parameters = re.compile(r"([&;])")
_userinfo = re.compile(r"(?<=://)[^/]*@")
_credentials = re.compile(r"(?<=://)(?:[^\s/?#'\"<>]|'(?=[\w%@:.-])){1,1024}@")
# The name of a parameter, or of a key as `repr` and JSON have it, or the first of a pair; and its value.
_name = re.compile(
    r"""(?<![\w.%\[\]-])([\w.%\[\]-]{1,64})(?:
        =(?!=)
        | \\{0,7}['"] (?: \s{0,64}:\s{0,64}(?=b?\\{0,7}['"]|[\d{\[]) | :[ ]? )
        | ['"],[ ](?=b?['"])
    )""",
    re.VERBOSE,
)
# As `repr` and JSON have it, within another text maybe, with as many backslashes at its end as at its begin.
_quoted = (
    r"""b?'(?:[^'\\]|\\.)*' | b?"(?:[^"\\]|\\.)*" | (?P<escaped>\\{1,7}['"])[\s\S]*?(?<!\\)(?P=escaped)"""
)
_value = re.compile(
    rf"""{_quoted} | (?:(?i:bearer|basic|digest|token)[ ]{{1,4}}(?=[\w+/=.~-]))?
    (?:[^\s&;\#'"<>)\]}},\\]|['"),]{{1,4}}(?=[\w%+/=!($*-]))+""",
    re.VERBOSE,
)
_part_of_group = re.compile(rf"{_quoted} | [\[{{()\]}}] | \\.", re.VERBOSE)
_header_name = r"((?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]{0,60}(?:key|token)):[ ]?"
# Its value, or one of a cookie's, may be in quotes, but where all of it is it ends with these.
_header = re.compile(
    rf"""(?<![\w'"-]){_header_name}(?:
        b?'(?=\S)[^'\r\n]*' | b?"(?=\S)[^"\r\n]*"
        | (?:b?\\{{0,7}}['"](?=\S))?
          (?:[^\r\n'"] | (?<==)(?:'[^'\r\n]*'|"[^"\r\n]*")(?=[\s;,]|$))+
    ) | (?<=['"]){_header_name}[^\r\n'"]+""",
    re.IGNORECASE | re.VERBOSE,
)
_scheme = re.compile(r"\b(Bearer|Basic) +(?=[\w.~+/-]*\d)[\w.~+/=-]{6,}")


def in_text(text: str) -> str:
    """A text without what is secret by its form.

    That is the credentials in URLs, the values of secrets as parameters, as mappings are shown
    and as HTTP has them in headers.
    """
    if "://" in text and "@" in text:
        text = _credentials.sub(f"{MARK}@", text)
    if ("=" in text or ":" in text or "'" in text or '"' in text) and _hints_at_secrets(text):
        text = _header.sub(lambda found: f"{found[1] or found[2]}: {MARK}", _without_values(text))
    if "Bearer " in text or "Basic " in text:
        text = _scheme.sub(rf"\1 {MARK}", text)
    return text


def _hints_at_secrets(text: str) -> bool:
    lower = text.lower()
    for hint in _HINTS:
        if hint in lower:
            return True
    return "%" in text  # a name may be spelt with escapes


def _without_values(text: str) -> str:
    parts, at, longest = [], 0, _LONGEST_GROUP
    for named in _name.finditer(text):
        if named.start() >= at and _is_named(named) and is_secret(unquote_plus(named[1])):
            begin = named.end()
            if text.startswith(("{", "[", "("), begin):
                end = _end_of_group(text, begin, longest)
                if end is None:
                    end, longest = _end_of_line(text, begin), _LONGEST_GROUP_AFTER
            else:
                value = _value.match(text, begin)
                end = begin if value is None else value.end()
            if end > begin:
                parts += [text[at:begin], MARK]
                at = end
    return "".join([*parts, text[at:]])


def _end_of_group(text: str, begin: int, longest: int) -> int | None:
    """Where the bracket at ``begin`` is closed; ``None`` if it isn't, so far."""
    depth = 0
    for part in _part_of_group.finditer(text, begin, begin + longest):
        depth += (part[0] in "[{(") - (part[0] in ")]}")
        if not depth:
            return part.end()
    return None


def _end_of_line(text: str, begin: int) -> int:
    end = text.find("\n", begin)
    return len(text) if end < 0 else end


def _is_named(named: re.Match[str]) -> bool:
    """Two texts with a comma between are a name and its value in a tuple only, as headers are kept."""
    return not named[0].endswith(", ") or "(" in named.string[max(named.start() - 3, 0) : named.start()]


def shown(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text without what is secret in its URLs, cut with a mark if it is longer than ``longest``."""
    if len(text) <= longest:
        return in_text(text)
    # A secret that the cut goes through is recognised by what follows.
    return f"{in_text(text[: longest + _LONGEST_SECRET])[:longest]}… [{len(text) - longest} characters cut]"
