"""What a type checker makes of the public API: this file's functions are checked, not run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

import aiohttp_observe
from aiohttp_observe import (
    CLIENT_SESSION,
    OBSERVABILITY,
    AccessLogger,
    Exchange,
    JsonFormatter,
    Observability,
    Observer,
    Worker,
    bind,
    bound,
    client_session,
    client_trace_config,
    current_exchange,
    operation,
    request_id,
    setup_observability,
    spawn,
    supervised,
    take_snapshot,
    timeit,
)
from tests.service import ROOT

if TYPE_CHECKING:
    from typing_extensions import assert_type

    from aiohttp_observe.tasks import Snapshot


class Finishes(Observer):
    """One hook is enough, also of a subclass."""

    def finished(self, exchange: Exchange) -> None:
        pass


async def number(text: str, *, base: int = 10) -> int:
    return int(text, base)


@timeit
async def timed(text: str, *, base: int = 10) -> int:
    return int(text, base)


@timeit(name="named")
async def timed_by_name(text: str) -> bytes:
    return text.encode()


@operation("decorated")
def decorated(text: str) -> bytes:
    return text.encode()


@operation("decorated")
async def decorated_coroutine(text: str) -> bytes:
    return text.encode()


class Complete:
    def started(self, exchange: Exchange) -> None: ...

    def finished(self, exchange: Exchange) -> None: ...


class Shop(web.View):
    @timeit
    async def get(self) -> web.Response:
        return web.Response()


async def everything(app: web.Application, request: web.Request) -> None:
    assert_type(setup_observability(app), Observability)
    assert_type(setup_observability(app, metrics=None, observers=[Complete()]), Observability)
    assert_type(app[OBSERVABILITY], Observability)
    assert_type(app[CLIENT_SESSION], aiohttp.ClientSession)
    assert_type(client_session(app, base_url="http://x"), aiohttp.ClientSession)
    assert_type(client_trace_config(), aiohttp.TraceConfig)
    assert_type(await timed("1", base=2), int)
    assert_type(await timed_by_name("1"), bytes)
    assert_type(await Shop(request).get(), web.Response)
    assert_type(decorated("x"), bytes)
    assert_type(await decorated_coroutine("x"), bytes)
    assert_type(spawn(number("1"), name="n", trace="child"), asyncio.Task[int])
    assert_type(spawn(decorated_coroutine("x"), restart="never"), asyncio.Task[bytes])
    assert_type(spawn(lambda: number("1"), restart="always", backoff=(1, 5)), asyncio.Task[int])
    assert_type(await assert_type(supervised(number("1"), name="n"), Coroutine[Any, Any, int]), int)
    assert_type(app[OBSERVABILITY].workers(), list[Worker])
    assert_type(bind(customer=1), None)
    with bound(customer=1) as nothing:
        assert_type(nothing, None)
    assert_type(request_id(), str | None)
    assert_type(current_exchange(), Exchange | None)
    assert_type(take_snapshot(), Snapshot)
    observer: Observer = Complete()
    observer = Finishes()
    formatter: JsonFormatter = JsonFormatter()
    await web._run_app(app, access_log_class=AccessLogger)
    async with operation("fetch", item=7) as span:
        span.set_attribute("more", "x")
    del observer, formatter


def mypy(path: Path) -> list[str]:
    """The errors that it finds in a file itself."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(path)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=ROOT,
        check=False,
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if path.name in line and ": error:" in line]


def test_the_types_of_the_public_api_are_as_promised() -> None:
    pytest.importorskip("mypy")
    assert mypy(Path(__file__)) == []


WRONG = {
    'setup_observability(app, metrics="yes")': "arg-type",
    "setup_observability(app, metric=None)": "call-arg",
    "LoopWatch(treshold=1)": "call-arg",
    'LoopWatch(threshold="1")': "arg-type",
    "timed(1)": "arg-type",
    'timed("1", bas=2)': "call-arg",
    "timeit(len)": "type-var",
    'spawn(coroutine(), trace="sideways")': "call-overload",
    "spawn(coroutine)": "call-overload",
    'spawn(coroutine(), restart="always")': "call-overload",
    "decorated(7)": "arg-type",
}


def test_wrong_uses_are_told_by_the_type_checker(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    head = (
        "from aiohttp import web\n"
        "from aiohttp_observe import LoopWatch, setup_observability, spawn, timeit\n"
        "from tests.test_typing import decorated, timed\n"
        "app = web.Application()\n"
        "async def coroutine() -> None: ...\n"
    )
    path = tmp_path / "wrong.py"
    path.write_text(head + "\n".join(WRONG) + "\n")
    told = mypy(path)
    first = head.count("\n") + 1
    codes = {(int(line.split(":")[1]), line.rpartition("[")[2].rstrip("]")) for line in told}
    missed = [use for offset, use in enumerate(WRONG) if (first + offset, WRONG[use]) not in codes]
    assert not missed


def test_everything_public_is_a_type_or_has_one() -> None:
    public: dict[str, Any] = {name: getattr(aiohttp_observe, name) for name in aiohttp_observe.__all__}
    untyped = [
        name
        for name, value in public.items()
        if not isinstance(value, (type, web.AppKey)) and not getattr(value, "__annotations__", None)
    ]
    assert untyped == []
