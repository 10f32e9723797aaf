"""Render log records: one JSON line for machines, one readable line for a terminal."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from itertools import islice
from math import isfinite
from typing import Any

from msgspec import to_builtins
from msgspec.json import Encoder

from ..exceptiontext import text_of
from ..options import check_texts
from ..redaction import LONGEST_STACK, LONGEST_TEXT, MARK, SECRETS, SecretNames, secret_names, shown
from ..texts import timestamp
from .context import IDS, context_of, ids_of, own_message

__all__ = ["JsonFormatter", "line_of", "named_apart", "plain", "to_json", "to_text"]

_LONGEST_KEY = 256
_LONGEST_FIELDS = 131_072
"""Characters of all bound, or all ``extra``, fields of a line."""
_ITEM = 16
"""Characters that each value counts besides its own."""
_DEEPEST = 6
_LEAST_INT, _GREATEST_INT = -(2**63), 2**64 - 1
_MOST_ITEMS = 256
_CONTAINERS = (Mapping, list, tuple, set, frozenset)
_RESERVED = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {
    "asctime",
    "message",
    "taskName",
    "color_message",
    "_observe_context",
}
_LINE_KEYS = frozenset(("timestamp", "level", "logger", "message", "exception", "stack_info"))
_COLORS = {"WARNING": "33", "ERROR": "31", "CRITICAL": "35", "DEBUG": "2"}
_JSON_ESCAPES = str.maketrans({chr(code): f"\\u{code:04x}" for code in (*range(0x80, 0xA0), 0x2028, 0x2029)})
"""What JSON allows raw in a text but some reader takes for a line's end or a terminal's command."""
_surrogate = re.compile("[\ud800-\udfff]")
_TOLD_BY_MESSAGE = frozenset(
    (
        "http.request.method",
        "http.response.status_code",
        "url.path",
        "client.address",
        "user_agent.original",
        "http.response.body.size",
        "polls",
        "longest_poll_ms",
        "span_id",
    )
)
"""Fields that a terminal is spared: an access line's message says most of them."""
_CONTROLS = str.maketrans(
    {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
    | {code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
    | {ord("\n"): "\\n", ord("\t"): "\\t", ord("\r"): "\\r"}
)


class _Fields:
    """Makes values plain data that any encoder takes, without secrets, bounded together; never raises."""

    def __init__(self, is_secret: SecretNames) -> None:
        self._is_secret = is_secret
        self._room = _LONGEST_FIELDS

    def named(self, name: str, value: Any, depth: int = 0) -> Any:
        """The value of a field or key as a line has it, ``REDACTED`` if its name is a secret's."""
        self._room -= len(name)
        return MARK if self._is_secret(name) else self._plain(value, depth)

    def _plain(self, value: Any, depth: int) -> Any:
        self._room -= _ITEM
        kind = type(value)
        if kind is str:
            return self._text(value)
        if kind is int:
            return value if _LEAST_INT <= value <= _GREATEST_INT else self._text(hex(value))
        if kind is float:
            return value if isfinite(value) else str(value)
        if value is None or kind is bool:
            return value
        if issubclass(kind, int):  # http.HTTPStatus, say
            return self._plain(int.__int__(value), depth)
        if issubclass(kind, float):
            return self._plain(float.__float__(value), depth)
        if depth < _DEEPEST:
            try:
                return self._container(value, depth)
            except Exception as exc:  # a lazy proxy, say, or a mapping that changes meanwhile
                return f"<{kind.__name__}: reading it raised {type(exc).__name__}>"
        # Too deep to look into: a secret may be in it.
        return f"<{kind.__name__}: too deep>" if isinstance(value, _CONTAINERS) else self._text(_text(value))

    def _text(self, text: str) -> str:
        told = shown(text, max(0, min(LONGEST_TEXT, self._room)))
        self._room -= len(told)
        return told

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, tuple) and value:
            if isinstance(getattr(value, "_fields", None), tuple):  # a named one
                return self._mapping(dict(zip(value._fields, value, strict=True)), depth)  # type: ignore[attr-defined]
            if len(value) == 2 and isinstance(value[0], (str, bytes)):  # a header, most likely
                name = _name(value[0])
                return [name, self.named(name, value[1], depth + 1)]
        if isinstance(value, (list, tuple, set, frozenset)):
            items = [self._plain(item, depth + 1) for item in self._while_there_is_room(value)]
            return items if len(items) == len(value) else [*items, _cut(len(value) - len(items))]
        return self._text(_text(value))

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        found, seen = {}, 0
        for key, item in self._while_there_is_room(value.items()):
            name = _name(key)
            found[name] = self.named(name, item, depth + 1)
            seen += 1
        if seen < len(value):
            found["…"] = _cut(len(value) - seen)
        return found

    def _while_there_is_room(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in islice(items, _MOST_ITEMS):
            if self._room <= 0:
                return
            yield item


def _cut(items: int) -> str:
    return f"… [{items} items cut]"


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception as exc:
        return f"<{type(value).__name__}: str() raised {type(exc).__name__}>"


def _exactly_text(value: Any) -> str:
    """The text of a subclass of ``str``, say, which the encoder doesn't take."""
    return str.__str__(value) if isinstance(value, str) else _text(value)


_encode_lines = Encoder(enc_hook=_exactly_text).encode_lines
plain = partial(to_builtins, enc_hook=_exactly_text)
"""A line's plain data as a mapping."""


def _name(name: Any) -> str:
    """The name of a level, logger, task or field as a line has it."""
    return name if type(name) is str and len(name) <= _LONGEST_KEY else _clip(_text(name), _LONGEST_KEY)


def _clip(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… [{len(text) - longest} characters cut]"


def to_json(lines: Sequence[Any]) -> list[bytes]:
    """The plain data of lines, each a mapping or a ``Struct``, as JSON in UTF-8.

    Each ends with a line break, and has no other whatever its reader takes for one.
    """
    try:
        data = _encode_lines(lines)
    except UnicodeEncodeError:  # a lone surrogate, which not every reader takes even as an escape
        data = b"".join(map(_without_surrogates, lines))
    if not data.isascii():
        data = data.decode().translate(_JSON_ESCAPES).encode()
    return BytesIO(data).readlines()  # a fourth of what splitting takes


def _without_surrogates(line: Any) -> bytes:
    text = json.dumps(plain(line), ensure_ascii=False)
    return _surrogate.sub(_written_out, text).encode() + b"\n"


def _written_out(found: re.Match[str]) -> str:
    return f"\\\\u{ord(found.group()):04x}"


def to_text(lines: Sequence[Any], *, color: bool = False) -> list[bytes]:
    """The lines for a terminal: time, level, logger, message, fields; then the traceback.

    Control characters are written out, since they drive terminals, and a traceback's lines have
    a mark before them, so that none looks like a line of its own.
    """
    return [f"{_one_text(line, color)}\n".encode("utf-8", "backslashreplace") for line in lines]


def _one_text(line: Any, color: bool) -> str:
    rest = {key: value for key, value in plain(line).items() if key not in _TOLD_BY_MESSAGE}
    moment, level = rest.pop("timestamp")[11:-1], rest.pop("level")
    head = f"{moment} {level:<7} {rest.pop('logger')}: {rest.pop('message')}"
    exception, stack_info = rest.pop("exception", None), rest.pop("stack_info", None)
    text = " ".join([head, *(f"{key}={_shown(value)}" for key, value in rest.items())])
    text = text.translate(_CONTROLS)
    if color and level in _COLORS:
        text = f"\x1b[{_COLORS[level]}m{text}\x1b[0m"
    stacks = [stack_info] if stack_info is not None else []
    if exception is not None:
        stacks.insert(0, exception["stacktrace"])
    parts = [part for stack in stacks for part in stack.rstrip("\n").split("\n")]
    return "\n".join([text, *(f"  | {part.translate(_CONTROLS)}" for part in parts)])


def _shown(value: Any) -> str:
    bare = isinstance(value, str) and value and value.isprintable() and not any(map(str.isspace, value))
    return value if bare else json.dumps(value, default=str)


def message_of(record: logging.LogRecord) -> str:
    """The record's message; what is wrong with it instead of an exception."""
    try:
        return shown(own_message(record))
    except Exception as exc:
        return f"{shown(_text(record.msg))} [arguments don't fit: {type(exc).__name__}]"


def exception_of(record: logging.LogRecord) -> dict[str, str] | None:
    """``type``, ``message`` and ``stacktrace`` of the record's exception."""
    info = record.exc_info
    if not info or not isinstance(info, tuple) or info[1] is None:
        return None
    text = text_of(info[1], info[2])
    return {
        "type": _clip(text.type, _LONGEST_KEY),
        "message": text.message,
        "stacktrace": text.stack,
    }


def _extras_of(record: logging.LogRecord, bound: Mapping[str, Any]) -> dict[str, Any]:
    """The record's ``extra`` fields; ``bound`` are those that `_Contextual` may have put there."""
    own = record.__dict__
    if _RESERVED.issuperset(own):
        return {}
    extras = {}
    for key in own:
        if key not in _RESERVED and _name(key)[:1] != "_":
            value = own[key]
            is_ours = key in IDS if value is None else key in bound and value is bound[key]
            if not is_ours:
                extras[key] = value
    return extras


def named_apart(
    fields: Mapping[str, Any], is_secret: SecretNames, used: Collection[str] = ()
) -> dict[str, Any]:
    """``fields`` as plain data without secrets.

    A name that the line uses itself, or that is ``used``, gets an underscore at its end.
    """
    named, all_fields = {}, _Fields(is_secret)
    for name, value in fields.items():
        key = _name(name)
        named[f"{key}_" if key in _LINE_KEYS or key in used else key] = all_fields.named(key, value)
    return named


def line_of(record: logging.LogRecord, is_secret: SecretNames) -> dict[str, Any]:
    """A record as plain data without secrets, independent of anything the service may still change."""
    context = context_of(record)
    _, _, _, task, bound = context
    ids = ids_of(context)
    line: dict[str, Any] = {
        "timestamp": timestamp(record.created),
        "level": _name(record.levelname),
        "logger": _name(record.name),
        "message": message_of(record),
        **ids,
    }
    if task is not None:
        line["task"] = _name(task)
    if bound:
        line |= named_apart(bound, is_secret, {*ids, "task"})
    extras = _extras_of(record, bound)
    if extras:
        line |= named_apart(extras, is_secret)
    if record.exc_info:
        exception = exception_of(record)
        if exception is not None:
            line["exception"] = exception
    if record.stack_info:
        line["stack_info"] = shown(record.stack_info, LONGEST_STACK)
    return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for `logging` configuration.

    ``{"timestamp": RFC 3339 UTC, "level", "logger", "message"}`` and, when there is one,
    ``request_id``, ``trace_id``, ``span_id``, ``task``, the bound fields, the ``extra``
    fields, ``exception`` (``type``, ``message``, ``stacktrace``) and ``stack_info``.  A field
    that would hide one of the line's own keys gets an underscore at its end, but an ``extra``
    one takes the place of the ids and ``task``.  Long texts are
    cut with a mark.  ``redact`` is that of `Logs`.  The other arguments are those that
    `logging.config` passes to every formatter: they are ignored.
    """

    def __init__(
        self,
        fmt: str | None = None,
        datefmt: str | None = None,
        style: str = "%",
        validate: bool = True,
        *,
        defaults: Mapping[str, Any] | None = None,
        redact: Collection[str] = SECRETS,
    ) -> None:
        super().__init__()
        check_texts("JsonFormatter(redact=...)", redact)
        self._is_secret = secret_names(redact)

    def format(self, record: logging.LogRecord) -> str:
        return to_json([line_of(record, self._is_secret)])[0].decode().rstrip("\n")
