"""A server in a thread and on a loop of its own, which answers while the application's loop is blocked."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from aiohttp import web

from ..daemonthread import until_ended

__all__ = ["OwnServer", "TakenError"]

logger = logging.getLogger("aiohttp_observe")

_NO_THREAD = "this process can't start any more threads: raise its limit of pids or memory"
_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_RETRY_SECONDS = 2.0
_SHUTDOWN_SECONDS = 0.5
"""How long the pages that are being sent may go on when the service ends."""


class TakenError(OSError):
    """Somebody else has the port, which is tried again until it is free."""


class OwnServer:
    """Serves an application at ``address``, host and port or the path of a Unix socket.

    The socket is made for the service's own user only.  ``{pid}`` in its path is the process id.
    ``path`` is the console's, in the application.
    """

    def __init__(self, app: Callable[[], web.Application], address: tuple[str, int] | str, path: str) -> None:
        self._app = app
        self._path = path
        self._address = address.replace("{pid}", str(os.getpid())) if isinstance(address, str) else address
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=self._run, name="aiohttp-observe-admin", daemon=True)

    async def start(self) -> str:
        """Start it; returns the console's URL, or the path of its socket.

        Raises ``OSError`` if it can't listen there, or no thread is to be had.  Where somebody else
        listens, as the worker that this one takes over from, it goes on trying, and logs the URL when
        that has left.
        """
        try:
            self._thread.start()
        except RuntimeError as exc:
            raise OSError(_NO_THREAD) from exc
        return await asyncio.wait_for(asyncio.wrap_future(self._started), _START_SECONDS)

    async def stop(self) -> None:
        """Stop serving, and wait for the thread's end, 5 s at most."""
        if not self._thread.is_alive():
            return
        if self._loop is not None:
            with suppress(RuntimeError):  # its loop is closed: it has ended by itself
                self._loop.call_soon_threadsafe(self._stopping.set)
        await until_ended(self._thread, _STOP_SECONDS)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        try:
            await runner.setup()
            if not await self._listen(runner):
                return
            await self._stopping.wait()
        except Exception as exc:
            self._tell(_explained(exc, self._address))
            return
        finally:
            await runner.cleanup()
        if isinstance(self._address, str):
            with suppress(OSError):
                os.unlink(self._address)

    async def _listen(self, runner: web.AppRunner) -> bool:
        """Whether it listens, and isn't to stop before it can."""
        while not self._stopping.is_set():
            try:
                listening = _listening(self._address)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
                if not self._started.done():
                    self._tell(_explained(exc, self._address))
            else:
                await web.SockSite(runner, listening).start()
                self._tell(_name_of(listening, self._path))
                return True
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _RETRY_SECONDS)
        return False

    def _tell(self, outcome: str | Exception) -> None:
        """Tell `start`, or the log if that has heard of an earlier one, or has given up waiting."""
        try:
            if isinstance(outcome, Exception):
                self._started.set_exception(outcome)
            else:
                self._started.set_result(outcome)
        except InvalidStateError:
            if isinstance(outcome, Exception):
                logger.error("the task console isn't served apart: %s", outcome)
            else:
                logger.info("task console at %s after all", outcome)


def _explained(exc: Exception, address: tuple[str, int] | str) -> Exception:
    if not isinstance(exc, OSError):
        return exc
    if isinstance(address, str):
        return OSError(
            f"{address} can't be made ({exc}): with {{pid}} in Admin(unix_socket=...) each worker has its own"
        )
    advice = "choose another with Admin(port=...), or Admin(unix_socket=...) for several workers"
    if exc.errno == errno.EADDRINUSE:
        return TakenError(f"port {address[1]} is taken, and tried again until it is free: {advice}")
    return OSError(f"port {address[1]} can't be listened on ({exc}): {advice}")


def _listening(address: tuple[str, int] | str) -> socket.socket:
    if isinstance(address, str):
        return _private_socket(address)
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _private_socket(path: str) -> socket.socket:
    """A Unix socket that only its own user may connect to."""
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("Python has no Unix sockets on this system: use Admin(port=...)")
    made = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        made.bind(path)
        os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
        made.listen()  # until when nobody can connect
    except OSError:
        made.close()
        raise
    return made


def _remove_stale(path: str) -> None:
    """Remove the socket of a process that is gone."""
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(path) == errno.ECONNREFUSED:  # else somebody has it
            os.unlink(path)


def _name_of(listening: socket.socket, path: str) -> str:
    name = listening.getsockname()
    if isinstance(name, str):
        return name
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}{path}"
