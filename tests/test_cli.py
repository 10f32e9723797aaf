"""The console in a terminal."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, Metrics, setup_observability
from aiohttp_observe.cli import main

from .service import PATIENCE, ROOT, Service, serving


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
    assert "all is well" in output
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
        assert "401: present the admin token" in capsys.readouterr().err
        monkeypatch.setenv("AIOHTTP_OBSERVE_ADMIN_TOKEN", "secret")
        await said(served, "ps")
        assert "refresh-cache" in capsys.readouterr().out


async def test_it_reads_a_unix_socket_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    async with service(unix_socket=str(path)):
        arguments = ["--unix-socket", str(path), "--url", "http://localhost/_tasks", "ps"]
        assert await asyncio.to_thread(main, arguments) == 0
    assert "refresh-cache" in capsys.readouterr().out


def test_a_service_that_is_not_there_is_said_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:9/_tasks", "ps"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("aiohttp-observe: http://127.0.0.1:9/_tasks: ")


async def test_a_reader_that_has_seen_enough_is_no_trouble() -> None:
    async with service() as served:
        command = f"{sys.executable} -m aiohttp_observe.cli --url {served.url('/_tasks')} dump | head -c 10"
        process = await asyncio.create_subprocess_shell(command, stderr=subprocess.PIPE, cwd=ROOT)
        _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert errors == b""
