"""What is secret in a text by its form, however it is spelt there."""

from __future__ import annotations

import json
from time import thread_time

import pytest

from aiohttp_observe.redaction import MARK, in_text, is_secret, shown

S = "hunter2secretvalue"


def nested(document: object, levels: int) -> str:
    """JSON within JSON, as the body of a request within the body of another is."""
    text = json.dumps(document)
    return text if not levels else json.dumps({"body": nested(document, levels - 1)})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"Authorization=Bearer {S} sent", f"Authorization={MARK} sent"),
        (f"token=bearer {S}, x=1", f"token={MARK}, x=1"),
        (f"authorization=Basic {S}==", f"authorization={MARK}"),
        (f"token=Bearer{S}", f"token={MARK}"),
        (f'{{ "token" : "{S}" }}', f'{{ "token" : {MARK} }}'),
        (f'{{"token":\n  "{S}", "a": 1}}', f'{{"token":\n  {MARK}, "a": 1}}'),
        (f"{{'token':\t'{S}'}}", f"{{'token':\t{MARK}}}"),
        ('{"pin_token" : 1234}', f'{{"pin_token" : {MARK}}}'),
        (f"{{'token': {{'value': '{S}'}}, 'a': 1}}", f"{{'token': {MARK}, 'a': 1}}"),
        (f"{{'token': {{'v': ['}}', ('{S}',)]}}}} failed", f"{{'token': {MARK}}} failed"),
        (f"{{'tokens_of': 1, 'token': ['{S}', '{S}']}}", f"{{'tokens_of': 1, 'token': {MARK}}}"),
        (f'{{"token": {{\n  "value": "{S}"\n}}, "a": 1}}', f'{{"token": {MARK}, "a": 1}}'),
        (f"token={{'value': '{S}'\nnext line", f"token={MARK}\nnext line"),
        (f"password=({S}) or else", f"password={MARK} or else"),
        (f"log {{\\'token\\': \\'{S}\\', \\'a\\': 1}}", f"log {{\\'token\\': {MARK}, \\'a\\': 1}}"),
        (f"Authorization: 'Bearer {S}' refused", f"Authorization: {MARK} refused"),
        (f"Authorization: b'Bearer {S}'", f"Authorization: {MARK}"),
        (f"X-Api-Key: \"it's {S}\", 'x'", f"X-Api-Key: {MARK}, 'x'"),
        (f"Cookie: 'sid={S}", f"Cookie: {MARK}"),
        (f"Cookie: a=\"{S}\"; b='{S}'", f"Cookie: {MARK}"),
        (f"'Cookie: sid={S}', 'x'", f"'Cookie: {MARK}', 'x'"),
        (f'log Authorization: \\"Bearer {S}\\", x', f'log Authorization: {MARK}", x'),
        (
            f"curl -H 'Authorization: Basic {S}==' 'https://x/?page=2'",
            f"curl -H 'Authorization: {MARK}' 'https://x/?page=2'",
        ),
        (f"['Authorization: Basic {S}==', 'Host: x']", f"['Authorization: {MARK}', 'Host: x']"),
        (f"Authorization: Basic {S}== 'and' more", f"Authorization: {MARK}'and' more"),
    ],
)
def test_a_secret_goes_and_all_else_stays(text: str, told: str) -> None:
    assert in_text(text) == told


@pytest.mark.parametrize("name", ["cookies", "passwords", "client_secrets", "API-Keys", "access_token"])
def test_names_of_several_secrets_are_secret_too(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["prompt_tokens", "token_count", "cookie_count", "keys"])
def test_names_of_numbers_are_not(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("value", [S, f'a"{S}', f"it's {S}\\", {"value": S}, [S, [S]]])
def test_json_within_json_tells_no_secret_and_stays_readable(value: object, levels: int) -> None:
    told = in_text(nested({"before": 1, "token": value, "after": 2}, levels))
    assert S not in told
    assert MARK in told
    assert "before" in told
    assert "after" in told


@pytest.mark.parametrize(
    "text",
    [
        "the token is of no use: ask for another (or two)",
        'no "token" : that is all there is to say',
        "'password':\n  this line stands for itself",
        "got 'token', then nothing; password rules [a-z] {1,8} apply",
        "Bearer of news; a Basic course, token-wise",
        'File "auth.py", line 3, in check_token\n    raise Denied(token)\n',
        "== token == {x} == secret ==",
        "expected 'Authorization:' but the upstream orders-3 answered 502",
        '{"header": "Cookie:", "order": 17, "status": 502}',
        'if line.startswith("Set-Cookie:"): raise ValueError(f"bad line {number}")',
    ],
)
def test_prose_stays_as_it_is(text: str) -> None:
    assert in_text(text) == text


@pytest.mark.parametrize(
    "unit",
    [
        "token={", "token={\n", '"token":[', "'token' : {'", '{"token":\\"', '\\"token\\":\\\\\\"',
        "token=Bearer ", '"token"' + " " * 64, "token='\"", "\\", '\\"',
        "token={'\\", "[\ntoken={1", "{\\'token\\': [",
        "cookie: '", "cookie: =\"cookie: ='", "x-key", "cookie: =",
    ],
)  # fmt: skip
def test_no_text_takes_long_to_read(unit: str) -> None:
    text = (unit * 16_384)[:16_384]
    begun = thread_time()
    shown(text + "token=")
    assert thread_time() - begun < 0.3  # a quadratic one takes seconds
