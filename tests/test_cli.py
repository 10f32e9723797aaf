"""The console in a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import OBSERVABILITY, Admin, Metrics, setup_observability
from aiohttp_observe.cli import _PARTS, _default_url, _where, main

from .service import PATIENCE, ROOT, Service, free_port, serving, until


async def sleeper() -> None:
    await asyncio.sleep(60)


@asynccontextmanager
async def service(name: str = "refresh-cache", **options: Any) -> AsyncIterator[Service]:
    """A service with one sleeping task of this name."""
    app = web.Application()
    setup_observability(app, admin=Admin(**options), metrics=Metrics(registry=CollectorRegistry()))
    async with serving(app) as served:
        task = asyncio.create_task(sleeper(), name=name)
        yield served
        task.cancel()


async def said(served: Service, *arguments: str, status: int = 0) -> None:
    """Run the command."""
    url = served.url("/_tasks")
    assert await asyncio.to_thread(main, ["--url", url, *arguments]) == status


async def test_ps_shows_what_every_task_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    async with service() as served:
        await said(served, "ps")
    output = capsys.readouterr().out
    assert "Nothing stands out." in output
    (line,) = [line for line in output.splitlines() if "refresh-cache" in line]
    assert "sleep" in line
    assert " sleeper" in line
    assert "test_cli.py:" in line


async def test_the_host_and_the_port_say_enough(capsys: pytest.CaptureFixture[str]) -> None:
    async with service() as served:
        for where in (served.url(""), served.url("/").removeprefix("http://")):
            assert await asyncio.to_thread(main, ["ps", "--url", where]) == 0
            assert "refresh-cache" in capsys.readouterr().out


async def test_its_filters_are_those_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    async with service() as served:
        await said(served, "ps", "--coro", "sleeper", "--wait", "sleep", "--limit", "1")
        assert "refresh-cache" in capsys.readouterr().out
        await said(served, "ps", "--wait", "lock")
        assert "refresh-cache" not in capsys.readouterr().out


async def test_what_no_task_waits_for_is_said_and_what_they_wait_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with service() as served:
        await said(served, "ps", "--wait", "\x1bnonsense")
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("No task waits for '\\x1bnonsense'; the kinds waited for are ")
        assert "sleep" in last.partition(" are ")[2].rstrip(".").split(", ")
        await said(served, "ps", "--wait", "sleep", "--coro", "nobody")
        assert capsys.readouterr().out.splitlines()[-1] == "No task passes the filter."


async def test_what_only_serves_connections_is_left_out_unless_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with service() as served:
        await said(served, "ps")
        assert "web_protocol.py" not in capsys.readouterr().out
        await said(served, "ps", "--connections")
        assert "web_protocol.py" in capsys.readouterr().out


async def test_a_refusal_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    async with service() as served:
        await said(served, "profile", "0", status=1)
        error = capsys.readouterr().err
        assert "400: seconds takes a number above 0, 60 at most" in error
        assert "{" not in error


@pytest.mark.parametrize("command", ["ps", "top"])
@pytest.mark.parametrize(("option", "value"), [("state", "asleep"), ("limit", "0")])
async def test_a_filter_that_cannot_be_is_told_in_words(
    capsys: pytest.CaptureFixture[str], command: str, option: str, value: str
) -> None:
    """The feed has begun when it is found, which then says so instead of a status."""
    async with service() as served:
        await said(served, command, f"--{option}", value, status=1)
    told = capsys.readouterr()
    assert told.out == ""
    assert re.search(rf"{option} takes .*, got '?{value}'?\n$", told.err)


@pytest.mark.parametrize("seconds", ["inf", "nan", "soon"])
def test_a_time_that_cannot_be_is_told_in_words(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    with pytest.raises(SystemExit):
        main(["profile", seconds])
    assert capsys.readouterr().err.endswith(
        f"argument seconds: invalid number of seconds value: '{seconds}'\n"
    )


async def test_no_name_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    async with service("\x1b[2J\x07evil\n\u2028\u202eline") as served:
        await said(served, "ps")
    assert "?[2J?evil???line" in capsys.readouterr().out


async def test_lines_fit_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    async with service("n" * 500) as served:
        await said(served, "ps")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


async def test_a_request_has_its_room_before_wait_chains_and_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    app = web.Application()
    never = asyncio.Event()

    async def handler_with_a_long_name(request: web.Request) -> web.Response:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("the-task-of-the-order-" * 3)
        await asyncio.wait_for(asyncio.shield(never.wait()), 60)
        return web.Response()

    app.router.add_get("/shops/{shop}/orders/{order}", handler_with_a_long_name)
    setup_observability(app, metrics=Metrics(registry=CollectorRegistry()))
    async with serving(app) as served:
        asking = asyncio.ensure_future(served.get("/shops/1/orders/2"))
        await until(lambda: app[OBSERVABILITY].recorder.in_flight, "the request")
        await said(served, "ps")
        never.set()
        await asking
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    (line,) = [line for line in lines if "wait_for → " in line]
    assert "…" in line
    assert line.endswith("GET /shops/{shop}/orders/{order}")


async def test_dump_is_everything_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    async with service() as served:
        await said(served, "dump")
    dumped = json.loads(capsys.readouterr().out)
    assert dumped.keys() == {"tasks", "resources", "tree", "incidents", "requests"}
    assert "refresh-cache" in {task["name"] for task in dumped["tasks"]["tasks"]}


async def test_tree_and_profile_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    async with service() as served:
        await said(served, "tree")
        assert "refresh-cache" in capsys.readouterr().out
        await said(served, "profile", "0.3")
        assert "select" in capsys.readouterr().out


async def test_top_goes_on_until_it_is_interrupted() -> None:
    async with service() as served:
        command = [sys.executable, "-m", "aiohttp_observe.cli", "--url", served.url("/_tasks"), "top"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        shown = b""
        while b"refresh-cache" not in shown:
            shown += await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        process.send_signal(2)
        await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == 0


async def test_it_takes_the_token_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(token="secret") as served:
        await said(served, "ps", status=1)
        error = capsys.readouterr().err
        assert error.endswith(": 401: set AIOHTTP_OBSERVE_ADMIN_TOKEN to the service's admin token\n")
        monkeypatch.setenv("AIOHTTP_OBSERVE_ADMIN_TOKEN", "another")
        await said(served, "ps", status=1)
        error = capsys.readouterr().err
        assert error.endswith(": 401: AIOHTTP_OBSERVE_ADMIN_TOKEN isn't this service's admin token\n")
        monkeypatch.setenv("AIOHTTP_OBSERVE_ADMIN_TOKEN", "secret")
        await said(served, "ps")
        assert "refresh-cache" in capsys.readouterr().out


async def test_it_reads_a_unix_socket_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    async with service(unix_socket=str(path)):
        arguments = ["--unix-socket", str(path), "--url", "http://localhost/_tasks", "ps"]
        assert await asyncio.to_thread(main, arguments) == 0
    assert "refresh-cache" in capsys.readouterr().out


async def test_what_is_odd_about_a_task_stands_below_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, left = web.Application(), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        left.set()
        await sleeper()
        return web.Response()

    app.router.add_get("/slow", handler)
    setup_observability(app, metrics=Metrics(registry=CollectorRegistry()))
    async with serving(app, shutdown_timeout=0.1) as served:
        _, writer = await served.connect()
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await left.wait()
        writer.close()
        await until(lambda: any(task.warnings for task in app[OBSERVABILITY].snapshot().tasks), "the warning")
        for columns in (100, 20):
            monkeypatch.setenv("COLUMNS", str(columns))
            await said(served, "ps", "--connections")
            lines = capsys.readouterr().out.splitlines()
            (at,) = [number for number, line in enumerate(lines) if "⚠" in line]
            assert lines[at].startswith("    ⚠ its client left"[: columns - 1])
            assert len(lines[at]) <= columns
            # As much of "sleep" as there is room for, beside the task's number, which may be long.
            assert re.match(r"\d+ +[\d.]+m?s +sl", lines[at - 1])


@pytest.mark.parametrize("command", ["ps", "top", "dump"])
@pytest.mark.parametrize("answer", ['{"hello": 1}', "[1]", "<!doctype html>", '{"tasks": []}', ""])
async def test_what_is_no_console_is_said_to_be_none(
    capsys: pytest.CaptureFixture[str], command: str, answer: str
) -> None:
    async def anything(request: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/json")

    app = web.Application()
    app.router.add_get("/{path:.*}", anything)
    async with serving(app) as served:
        await said(served, command, status=1)
    assert "/_tasks: this is no task console: point --url or" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    ["[" * 100_000, json.dumps(dict.fromkeys(_PARTS, 1)), json.dumps({key: {} for key in _PARTS})],
    ids=["deep", "numbers", "empty"],
)
async def test_nor_is_what_answers_in_another_shape(capsys: pytest.CaptureFixture[str], answer: str) -> None:
    async def anything(request: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/json")

    app = web.Application()
    app.router.add_get("/{path:.*}", anything)
    async with serving(app) as served:
        await said(served, "ps", status=1)
    told = capsys.readouterr()
    assert "/_tasks: this is no task console: point --url or" in told.err
    assert (told.out, told.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("command", ["ps", "top"])
async def test_a_status_is_told_once(capsys: pytest.CaptureFixture[str], command: str) -> None:
    async with serving(web.Application()) as served:
        await said(served, command, status=1)
    assert capsys.readouterr().err.endswith(f"{served.port}/_tasks: 404: Not Found\n")


def test_a_service_that_is_not_there_is_said_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/_tasks"
    assert main(["--url", url, "ps"]) == 1
    assert capsys.readouterr().err == (
        f"aiohttp-observe: {url}: nothing listens there: point --url or AIOHTTP_OBSERVE_URL at the service, "
        "or at its Admin(port=...) if it has one\n"
    )


def test_what_is_no_url_is_said_to_be_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:http/_tasks", "ps"]) == 1
    assert capsys.readouterr().err == "aiohttp-observe: http://127.0.0.1:http/_tasks: this is no URL\n"


def test_a_socket_whose_process_is_gone_is_told_from_one_that_never_was(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "console.sock"
    assert main(["--unix-socket", str(path), "ps"]) == 1
    assert f"{path}: there is no such socket: Admin(unix_socket=...) makes it" in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert main(["--unix-socket", str(path), "ps"]) == 1
    assert capsys.readouterr().err == (
        f"aiohttp-observe: {path}: the process that served this socket is gone\n"
    )


async def test_the_services_own_port_is_where_it_looks_unless_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.delenv("AIOHTTP_OBSERVE_URL", raising=False)
    monkeypatch.setenv("AIOHTTP_OBSERVE_ADMIN_PORT", str(port))
    async with service() as served:
        assert await asyncio.to_thread(main, ["ps"]) == 0
        assert "refresh-cache" in capsys.readouterr().out
        monkeypatch.setenv("AIOHTTP_OBSERVE_ADMIN_PORT", str(free_port()))
        assert await asyncio.to_thread(main, ["ps"]) == 1
        monkeypatch.setenv("AIOHTTP_OBSERVE_URL", served.url(""))
        assert await asyncio.to_thread(main, ["ps"]) == 0


@pytest.mark.parametrize(
    "library",
    [
        "/usr/local/lib/python3.11/contextlib.py",
        "/usr/lib64/python3.13/asyncio/locks.py",
        "/srv/venv/lib/python3.11/site-packages/asyncpg/pool.py",
        "/usr/lib/python3/dist-packages/redis/client.py",
        "C:\\Python312\\Lib\\asyncio\\tasks.py",
        "C:\\Python312\\Lib\\contextlib.py",
        "<frozen importlib._bootstrap>",
    ],
)
def test_a_line_of_the_service_is_named_before_any_of_a_library(library: str) -> None:
    frames = [
        {"file": library, "line": 210, "function": "inner"},
        {"file": "/srv/shop/db.py", "line": 31, "function": "load"},
    ]
    assert _where(frames) == "db.py:31 load"
    name = re.split(r"[/\\]", library)[-1]
    assert _where(frames[:1]) == f"{name}:210 inner"


def test_a_port_that_only_the_service_knows_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIOHTTP_OBSERVE_URL", raising=False)
    monkeypatch.setenv("AIOHTTP_OBSERVE_ADMIN_PORT", "0")
    assert _default_url() == "http://127.0.0.1:8080/_tasks"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
async def test_a_terminal_that_lacks_our_arrows_gets_the_rest(encoding: str) -> None:
    async with service() as served:
        command = [sys.executable, "-m", "aiohttp_observe.cli", "--url", served.url("/_tasks"), "tree"]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        pipe = subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdout=pipe, stderr=pipe, cwd=ROOT, env=environment
        )
        told, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert (process.returncode, errors) == (0, b"")
    assert b"refresh-cache" in told


async def test_a_reader_that_has_seen_enough_is_no_trouble() -> None:
    async with service() as served:
        command = f"{sys.executable} -m aiohttp_observe.cli --url {served.url('/_tasks')} dump | head -c 10"
        process = await asyncio.create_subprocess_shell(command, stderr=subprocess.PIPE, cwd=ROOT)
        _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert errors == b""
