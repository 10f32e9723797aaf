"""The console on a thread and loop of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import Admin, Metrics, setup_observability
from aiohttp_observe.admin.server import OwnServer
from tests.service import PATIENCE, Service, free_port, run_python, serving, until

Fetched = tuple[int, str]


def get(port: int, path: str, timeout: float = 10, **headers: str) -> Fetched:
    """A request that needs no loop, for while the loop is blocked."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        return _ask(connection, path, f"127.0.0.1:{port}", headers)


def get_by_unix_socket(path: Path, target: str, **headers: str) -> Fetched:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        return _ask(connection, target, "localhost", headers)


def _ask(connection: socket.socket, path: str, host: str, headers: dict[str, str]) -> Fetched:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    received = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    head, _, body = received.partition("\r\n\r\n")
    return int(head.split()[1]), body


def application(admin: Admin) -> web.Application:
    app = web.Application()

    async def block(request: web.Request) -> web.Response:
        time.sleep(float(request.query["seconds"]))  # noqa: ASYNC251 - to block the loop is the point
        return web.Response()

    app.router.add_get("/block", block)
    setup_observability(app, admin=admin, metrics=Metrics(registry=CollectorRegistry()))
    return app


@asynccontextmanager
async def apart(**options: Any) -> AsyncIterator[tuple[Service, int]]:
    """A service, and the port at which its console is served apart."""
    port = free_port()
    async with serving(application(Admin(port=port, **options))) as service:
        yield service, port


class Meanwhile(threading.Thread):
    """Fetches one page after another while the loop is blocked."""

    def __init__(self, port: int, *paths: str) -> None:
        super().__init__()
        self._port, self._paths = port, paths
        self.fetched: list[Fetched] = []
        self.took = 0.0

    def run(self) -> None:
        time.sleep(0.6)
        begun = time.perf_counter()
        self.fetched = [get(self._port, path) for path in self._paths]
        self.took = time.perf_counter() - begun


async def test_it_answers_while_the_loop_is_blocked_and_says_by_what() -> None:
    async with apart() as (service, port):
        meanwhile = Meanwhile(port, "/_tasks", "/metrics", "/_tasks/requests", "/_tasks/profile?seconds=0.2")
        meanwhile.start()
        answer = await service.get("/block?seconds=3", headers={"X-Request-ID": "the-culprit"})
        assert answer.status == 200
        meanwhile.join()
        assert meanwhile.took < 2.4
    (status, text), metrics, requests, profile = meanwhile.fetched
    assert status == metrics[0] == requests[0] == profile[0] == 200
    document = json.loads(text)
    blocked_now = document["loop"]["blocked_now"]
    assert blocked_now["request_id"] == "the-culprit"
    assert 0.4 < blocked_now["seconds"] <= document["loop"]["lag_seconds"] < 3
    assert blocked_now["stack"][0]["function"] == "block"
    assert document["verdict"][0].startswith("the loop has been blocked for ")
    assert 'http_server_active_requests{http_request_method="GET"} 1.0' in metrics[1]
    assert "the-culprit" in {each["request_id"] for each in json.loads(requests[1])["in_flight"]}
    assert "block (test_server.py:" in profile[1]


async def test_the_same_rule_says_who_may_look() -> None:
    async with apart(token="secret") as (_, port):
        look = asyncio.to_thread
        assert (await look(get, port, "/_tasks"))[0] == 401
        assert (await look(get, port, "/_tasks", Authorization="Bearer secret"))[0] == 200
        assert (await look(get, port, "/metrics"))[0] == 200
    async with apart() as (_, port):
        assert (await look(get, port, "/_tasks"))[0] == 200
        assert (await look(get, port, "/_tasks", X_Forwarded_For="10.0.0.1"))[0] == 403


async def test_a_unix_socket_is_for_the_services_own_user_only(tmp_path: Path) -> None:
    path = tmp_path / "console-{pid}.sock"
    made = tmp_path / f"console-{os.getpid()}.sock"
    async with serving(application(Admin(unix_socket=str(path)))):
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        look = asyncio.to_thread
        assert (await look(get_by_unix_socket, made, "/_tasks"))[0] == 200
        assert (await look(get_by_unix_socket, made, "/metrics"))[0] == 200
        assert (await look(get_by_unix_socket, made, "/_tasks", Via="1.1 proxy"))[0] == 403
    assert not made.exists()


async def test_what_a_process_that_is_gone_has_left_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serving(application(Admin(unix_socket=str(path)))):
        assert (await asyncio.to_thread(get_by_unix_socket, path, "/_tasks"))[0] == 200


async def test_a_socket_of_another_sort_that_lives_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "console.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as living:
        living.bind(str(path))
        async with serving(application(Admin(unix_socket=str(path)))) as service:
            assert (await service.get("/_tasks")).status == 200
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"alive", str(path))
        assert living.recv(5) == b"alive"
    assert any(record.levelno == logging.ERROR for record in caplog.records)


async def test_a_service_whose_port_for_it_is_taken_runs_without(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        async with serving(application(Admin(port=port))) as service:
            assert (await service.get("/_tasks")).status == 200
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"port {port} is taken" in record.getMessage()
    assert "Admin(port=...)" in record.getMessage()


async def test_a_port_that_becomes_free_is_taken(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker takes over from one that still has it: gunicorn's reload starts the new one first."""
    monkeypatch.setattr("aiohttp_observe.admin.server._RETRY_SECONDS", 0.1)
    caplog.set_level(logging.INFO, "aiohttp_observe")
    old = application(Admin(port=(port := free_port())))
    async with AsyncExitStack() as stack:
        async with serving(old):
            await stack.enter_async_context(serving(application(Admin(port=port))))
            assert f"port {port} is taken" in caplog.text
        await until(lambda: f"task console at http://127.0.0.1:{port}/_tasks after all" in caplog.text, "it")
        assert (await asyncio.to_thread(get, port, "/_tasks"))[0] == 200


async def test_a_second_trouble_is_told_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket was another's, which is gone by the next try, and so is its folder."""
    monkeypatch.setattr("aiohttp_observe.admin.server._RETRY_SECONDS", 0.1)
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "console.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        server = OwnServer(web.Application, str(path), "/_tasks")
        with pytest.raises(OSError, match="Address already in use"):
            await server.start()
        folder.rename(tmp_path / "gone")
    await until(lambda: "No such file or directory" in caplog.text, "the second trouble")
    await server.stop()


async def test_one_that_takes_too_long_to_start_is_told_of_when_it_has(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_observe.admin.server._START_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "aiohttp_observe")
    go_on = threading.Event()

    def late() -> web.Application:
        go_on.wait(PATIENCE)
        return web.Application()

    server = OwnServer(late, ("127.0.0.1", 0), "/_tasks")
    with pytest.raises(asyncio.TimeoutError):
        await server.start()
    go_on.set()
    await until(lambda: "/_tasks after all" in caplog.text, "it")
    await server.stop()


async def test_a_service_that_can_start_no_thread_runs_without(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "aiohttp-observe-admin":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    async with serving(application(Admin(port=0))) as service:
        assert (await service.get("/_tasks")).status == 200
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == (
        "the task console isn't served apart: this process can't start any more threads: "
        "raise its limit of pids or memory"
    )


async def test_another_process_that_still_serves_keeps_its_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "console.sock"
    async with serving(application(Admin(unix_socket=str(path)))):
        async with serving(application(Admin(unix_socket=str(path)))):
            pass
        assert "Admin(unix_socket=...)" in caplog.text
        assert (await asyncio.to_thread(get_by_unix_socket, path, "/_tasks"))[0] == 200


async def test_the_port_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("AIOHTTP_OBSERVE_ADMIN_PORT", str(port))
    async with serving(application(Admin())):
        assert (await asyncio.to_thread(get, port, "/_tasks"))[0] == 200
    monkeypatch.setenv("AIOHTTP_OBSERVE_ADMIN_PORT", "http")
    with pytest.raises(ValueError, match="AIOHTTP_OBSERVE_ADMIN_PORT takes a port number, got 'http'"):
        application(Admin())


@pytest.mark.parametrize("port", [-1, 65536, True, "80"])
def test_a_port_that_cannot_be_is_refused(port: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"Admin\(port=\.\.\.\) takes"):
        Admin(port=port)


async def test_after_clean_up_neither_thread_nor_port_is_left() -> None:
    async with apart() as (_, port):
        assert "aiohttp-observe-admin" in {thread.name for thread in threading.enumerate()}
    assert "aiohttp-observe-admin" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConnectionRefusedError):
        get(port, "/_tasks")


async def test_an_open_page_does_not_hold_up_the_end() -> None:
    async with aiohttp.ClientSession() as session:
        async with apart() as (service, port):
            for base in (f"http://127.0.0.1:{port}", service.url("")):
                response = await session.get(f"{base}/_tasks/stream")
                assert await response.content.readline() == b"event: history\r\n"
            begun = time.perf_counter()
        assert time.perf_counter() - begun < 4


async def test_the_log_says_where_it_is_to_be_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aiohttp_observe")
    path = tmp_path / "console-{pid}.sock"
    async with serving(application(Admin(path="/debug/tasks", port=0, unix_socket=str(path)))) as service:
        told = [record.getMessage() for record in caplog.records if "task console" in record.getMessage()]
        url = told[0].removeprefix("task console at ")
        assert url.endswith("/debug/tasks")
        async with service.session.get(url) as response:
            assert "taken_at" in await response.json()
    assert told[1:] == [f"task console at {tmp_path}/console-{os.getpid()}.sock"]


def test_a_process_that_ends_without_clean_up_is_not_held_up() -> None:
    done = run_python(
        """
import asyncio
from aiohttp import web
from aiohttp_observe import Admin, setup_observability
async def main():
    app = web.Application()
    setup_observability(app, admin=Admin(port=0))
    await web.AppRunner(app).setup()
asyncio.run(main())
"""
    )
    assert "task console at http://127.0.0.1:" in done.stdout
    assert done.returncode == 0
