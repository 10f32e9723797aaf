"""Whatever is logged stays one line, and what is secret in it isn't told."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from aiohttp_observe import JsonFormatter, Logs, Metrics, bind, bound, log_context
from tests.service import serving
from tests.test_logs import Output, application, written_by

shop = logging.getLogger("shop")
NASTY = {
    "line breaks": "a\nb\rc\r\nd\x0be\x0cf\x1cg\x85h\u2028i\u2029j",
    "terminal commands": "\x1b[2J\x1b]0;title\x07\x9b31m\x00\x08\x7f",
    "a lone surrogate": "a\ud800b\udfff",
    "text that turns around": "\u202egnp.exe\u2066",
    "a megabyte": "x" * 1_000_000,
    "json": '"}\n{"level":"ERROR"',
}
BREAKS = "\r\x0b\x0c\x1b\x1c\x1d\x1e\x00\x07\x08\x85\x9b\u2028\u2029"


async def log_everywhere(text: str) -> None:
    """Into each part of a line that can hold a text."""

    def within() -> None:
        asyncio.current_task().set_name(text)  # type: ignore[union-attr]
        shop.info("a task's name")

    async def named() -> None:
        within()

    await asyncio.create_task(named())
    logging.getLogger(f"shop.{text}").info("a logger's name")
    with bound(**{text: text}):
        shop.info("names of bound fields")
    shop.info("names of fields", extra={text: text, "nested": {text: [text]}})
    kind = text.encode(errors="ignore").decode().replace("\0", "")  # what the name of a type can have
    shop.error("of an exception", exc_info=type(f"Lost{kind}", (Exception,), {})(text))
    shop.info("with a stack", stack_info=True)
    shop.log(35, "%s", text)
    logging.addLevelName(35, text)
    shop.log(35, text)
    logging._levelToName.pop(35)
    logging._nameToLevel.pop(text)


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
async def test_whatever_holds_it_a_text_stays_within_its_json_line(text: str) -> None:
    output = await written_by(lambda: log_everywhere(text))
    written = output.getvalue()
    lines = [json.loads(line) for line in written.removesuffix("\n").split("\n")]
    assert len([line for line in lines if line["logger"].startswith("shop")]) == 8
    assert not set(written) & set(BREAKS)
    assert len(written) < 600_000
    assert "characters cut]" in written or len(text) < 100_000


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
async def test_whatever_holds_it_a_text_stays_within_its_text_line(text: str) -> None:
    output = await written_by(lambda: log_everywhere(text), format="text")
    written = output.getvalue()
    own = [line for line in written.removesuffix("\n").split("\n") if not line.startswith("  | ")]
    assert len([line for line in own if " shop" in line]) == 8
    assert not set(written) & set(BREAKS)
    assert "\u202e" not in written
    assert len(written) < 600_000


@pytest.mark.parametrize("agent", ["\x1b[31m", "\u2028", "\u202e", "a\tb", "\udcff\udcfe", "x" * 8000])
async def test_a_clients_header_stays_within_its_line(agent: str) -> None:
    output = Output()
    app = application(
        lambda: None,
        logs=Logs(stream=output, replace=True),
        metrics=Metrics(registry=CollectorRegistry()),
    )
    async with serving(app) as service:
        head = f"GET /work HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: {agent}\r\n\r\n"
        await service.exchange_bytes(head.encode("utf-8", "surrogateescape"))
    (line,) = [
        json.loads(line) for line in output.getvalue().removesuffix("\n").split("\n") if "polls" in line
    ]
    assert line["logger"] == "aiohttp_observe.access"
    assert not set(output.getvalue()) & set(BREAKS)


async def test_a_stack_that_was_asked_for_is_in_the_line() -> None:
    def work() -> None:
        shop.info("here", stack_info=True)

    (line,) = (await written_by(work)).of("shop")
    assert line["stack_info"].startswith("Stack (most recent call last)")
    assert "in work" in line["stack_info"]
    text = (await written_by(work, format="text")).getvalue()
    assert "\n  | Stack (most recent call last):\n" in text


async def test_the_real_ids_are_not_hidden_by_bound_fields_of_their_names() -> None:
    def work() -> None:
        bind(request_id="bound", trace_id="bound", span_id="bound")
        shop.info("here")
        assert log_context()["request_id"] == "mine"

    output = await written_by(work)
    for line in output.of("shop") + output.of("aiohttp_observe.access"):
        assert line["request_id"] == "mine"
        assert "bound" not in (line["trace_id"], line["span_id"])
        assert line["request_id_"] == line["trace_id_"] == "bound"


async def test_outside_of_requests_a_bound_id_is_the_only_one() -> None:
    lines = Output()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    app = application(lambda: None, metrics=Metrics(registry=CollectorRegistry()))
    shop.addHandler(handler)
    try:
        async with serving(app):
            with bound(request_id="of a message"):
                shop.warning("here")
    finally:
        shop.removeHandler(handler)
    assert lines.lines[0]["request_id"] == "of a message"


async def test_a_field_whose_name_is_no_text_costs_no_line() -> None:
    class Unspeakable:
        def __str__(self) -> str:
            raise LookupError

    fields: Any = {1: 2, Unspeakable(): 3}
    output = await written_by(lambda: shop.info("here", extra=fields))
    (line,) = output.of("shop")
    assert line["1"] == 2
    assert line["<Unspeakable: str() raised LookupError>"] == 3


TOO_MUCH: dict[str, Any] = {
    "texts": [["y" * 16_000] * 256] * 256,
    "numbers": [[[0] * 256] * 256] * 256,
    "empty lists": [[[[]] * 256] * 256] * 256,
    "keys": {f"{number}" + "k" * 250: [{"v" * 250: None}] * 256 for number in range(256)},
}


@pytest.mark.parametrize("value", TOO_MUCH.values(), ids=TOO_MUCH)
async def test_a_field_without_end_is_cut_with_a_mark(value: Any) -> None:
    def work() -> None:
        bind(bound=value)
        shop.info("here", extra={"extra": value, "last": 1})

    (line,) = (await written_by(work)).of("shop")
    assert len(json.dumps(line)) < 600_000
    assert line["last"] == 1
    assert "items cut]" in str(line["extra"])
    assert "items cut]" in str(line["bound"])


async def test_a_long_list_says_that_it_is_cut() -> None:
    fields = {"list": list(range(1000)), "mapping": {str(number): 1 for number in range(1000)}}
    (line,) = (await written_by(lambda: shop.info("here", extra=fields))).of("shop")
    assert line["list"][255:] == [255, "… [744 items cut]"]
    assert line["mapping"]["…"] == "… [744 items cut]"


async def test_a_lone_surrogate_is_written_out_for_readers_who_take_none() -> None:
    def work() -> None:
        shop.info("\ud800\u2028 🫖", extra={"\udfff": "\udc80"})

    text = (await written_by(work)).getvalue().splitlines()[0]
    line = msgspec.json.decode(text)
    assert line["message"] == "\\ud800\u2028 🫖"
    assert line["\\udfff"] == "\\udc80"


class Markup(str):
    """A text of the service's own class, whatever is done to it."""

    __slots__ = ()

    def __str__(self) -> str:
        return self


async def test_a_text_of_a_class_of_its_own_is_a_text() -> None:
    def work() -> None:
        bind(bound=Markup("<b>"))
        shop.info(Markup("here"), extra={"extra": [Markup("<i>\udfff")]})

    (line,) = (await written_by(work)).of("shop")
    assert line["message"] == "here"
    assert line["bound"] == "<b>"
    assert line["extra"] == ["<i>\\udfff"]


# Secrets


SECRET = "hunter2"


class User(NamedTuple):
    name: str
    password: str


HIDDEN: list[dict[str, Any]] = [
    {"password": SECRET},
    {"PassWord": SECRET},
    {"db_password": SECRET},
    {"db.password": SECRET},
    {"userPassword": SECRET},
    {"headers": {"Authorization": SECRET, "Set-Cookie": SECRET, "X-API-Key": SECRET, "apiKey": SECRET}},
    {"deep": [{"er": [{"access_token": SECRET}]}]},
    {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"password": SECRET}}}}}}}},
    {"a": [[[[[[[{"password": SECRET}]]]]]]]},
    {"password": {"value": SECRET}},
    {"token": [SECRET]},
    {"authorization_header": SECRET, "Cookie-Headers": SECRET, "passwordHash": SECRET},
    {"url": f"https://user:{SECRET}@host/path"},
    {"url": f"https://host/path?a=b&Signature={SECRET}&c=d"},
    {"url": f"https://host/path?access_token={SECRET}#x"},
    {"user": User("bob", SECRET)},
    {"users": [User("bob", SECRET)]},
    {"user": SimpleNamespace(name="bob", password=SECRET)},
    {"headers": {b"Authorization": SECRET}},
    {"headers": [("Authorization", SECRET), ("Host", "a")]},
    {"headers": ((b"Authorization", SECRET.encode()),)},
]


@pytest.mark.parametrize("fields", HIDDEN, ids=range(len(HIDDEN)))
@pytest.mark.parametrize("format_", ["json", "text"])
async def test_a_field_that_is_named_like_a_secret_is_not_told(fields: dict[str, Any], format_: str) -> None:
    def work() -> None:
        shop.info("as extra", extra=fields)
        bind(**fields)
        shop.info("bound")

    written = (await written_by(work, format=format_)).getvalue()
    assert SECRET not in written
    assert "REDACTED" in written or "too deep" in written


@pytest.mark.parametrize(
    "name", ["token_count", "tokens", "author", "passwords_changed", "secretary", "design"]
)
async def test_a_field_that_is_named_otherwise_is_told(name: str) -> None:
    output = await written_by(lambda: shop.info("here", extra={name: "told"}))
    assert output.of("shop")[0][name] == "told"


async def test_which_fields_are_secret_is_the_services_choice() -> None:
    fields = {"iban": SECRET, "customer": {"home-iban": SECRET}, "password": "told"}
    output = await written_by(lambda: shop.info("here", extra=fields), redact=("IBAN",))
    assert SECRET not in output.getvalue()
    assert output.of("shop")[0]["iban"] == "REDACTED"
    assert output.of("shop")[0]["password"] == "told"
    assert Logs(redact=()).redact == ()


async def test_our_formatter_hides_them_as_well() -> None:
    record = logging.makeLogRecord({"msg": "here", "password": SECRET, "iban": SECRET})
    line = json.loads(JsonFormatter(redact=(*Logs().redact, "iban")).format(record))
    assert (line["password"], line["iban"]) == ("REDACTED", "REDACTED")


@pytest.mark.parametrize("redact", ["password", 1, [1], {"password": 1}])
def test_names_that_cannot_be_are_refused(redact: Any) -> None:
    with pytest.raises(TypeError, match="redact"):
        Logs(redact=redact)


@pytest.mark.parametrize(
    "text",
    [
        f"cannot connect to postgresql://app:{SECRET}@db:5432/shop?sslmode=require",
        f"GET /file?X-Goog-Signature={SECRET}&a=b failed",
        f"404, message='Not Found', url='https://host/a?AWSAccessKeyId={SECRET}'",
        f"https://host/?sig={SECRET}&X-Amz-Security-Token={SECRET}",
        f"https://host/?a=b&%53ignature={SECRET}",
        f"https://{SECRET}@host/",
        f"https://user:p@{SECRET}@host/",
        f"https://user:it's{SECRET}@host/",
        f"https://host/?token=it's)!{SECRET}",
        f"https://host/?a=b;token={SECRET}",
        "x" * 16_365 + f"https://user:{SECRET}@host/",
        f"host=db user=app password={SECRET} dbname=shop",
        f"headers: {{'Authorization': 'Bearer {SECRET}', 'Host': 'a'}}",
        f"headers: [('Cookie', 'a={SECRET}')] ((b'Cookie', b'{SECRET}'),)",
        f'{{"password": "{SECRET}", "user": {{"token":"{SECRET}"}}}}',
        f"Authorization: Bearer {SECRET}",
        f"Set-Cookie: a=b; session={SECRET}; HttpOnly",
        f"refused Bearer {SECRET}",
    ],
)
async def test_a_secret_in_a_url_is_told_neither_by_message_nor_by_exception(text: str) -> None:
    def work() -> None:
        shop.info(text)
        shop.info("%s", text)
        try:
            raise LookupError(text)
        except LookupError as exc:
            try:
                raise ValueError("because of that") from exc
            except ValueError:
                shop.exception("failed")

    written = (await written_by(work)).getvalue()
    assert SECRET not in written.replace("raise LookupError(text)", "")
    assert written.count("REDACTED") >= 3


@pytest.mark.parametrize(
    "text",
    [
        "write to me@example.com, see https://example.com/a@b?page=2&sort=name or a?b=c",
        "unexpected token: }",
        "if token == other: token = other",
        "token_count=5, author=me, {'a': 'token', 'b': 1}",
        "Basic authentication failed; no Bearer scheme",
    ],
)
async def test_what_only_looks_like_a_secret_is_left_alone(text: str) -> None:
    assert (await written_by(lambda: shop.info(text))).of("shop")[0]["message"] == text


async def test_a_text_without_end_is_searched_quickly() -> None:
    text = "://" + "a" * 100_000 + "?" + "=&" * 100_000
    begun = asyncio.get_running_loop().time()
    await written_by(lambda: shop.info(text))
    assert asyncio.get_running_loop().time() - begun < 5
