"""The task console in a terminal: ``aiohttp-observe ps | top | tree | dump | profile``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from math import isfinite
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp

__all__ = ["main"]

_DEFAULT_PORT = "8080"
_DOCUMENTS = ("", "/resources", "/tree", "/incidents", "/requests")
_PARTS = {"process", "loop", "summary", "tasks", "verdict", "truncated"}
_NO_CONSOLE = (
    "this is no task console: point --url or AIOHTTP_OBSERVE_URL at one, whose path is /_tasks unless the "
    "service has another"
)
_OF_ANOTHER_SHAPE = (AttributeError, LookupError, RecursionError, TypeError)
"""What is raised by a document of whoever else answers there, or of another version."""
_CLEAR = "\x1b[H\x1b[2J"
_in_library = re.compile(
    r"[/\\](site-packages|dist-packages|python3\.\d+|asyncio|aiohttp_observe)[/\\]|\\Lib\\|^<frozen"
).search
"""Guessed from the path, as on the page: only the service knows where its Python is."""
_separator = re.compile(r"[/\\]")
_LONGEST_LINE = 2**26
_WIDEST = 44
_NARROWEST = 8
"""Characters of a table's columns; those that give way, where room is short, don't go below."""
_BUT_CONNECTIONS = "!RequestHandler.start"
"""What aiohttp's server runs for every connection would be in front of the others, being the oldest."""

Command = Callable[["Remote", argparse.Namespace], Awaitable[None]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status: 0, or 1 if the console can't be read."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # its encoding may lack our arrows: that of Windows' files does
            stream.reconfigure(errors="replace")
    try:
        asyncio.run(_run(options))
        sys.stdout.flush()  # here, where a reader that has left is no trouble, and not at exit
    except BrokenPipeError:  # whoever read it has seen enough; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError, *_OF_ANOTHER_SHAPE) as exc:
        by_socket = options.unix_socket is not None
        where = options.unix_socket if by_socket else options.url
        print(f"aiohttp-observe: {_plain(f'{where}: {_told(exc, by_socket)}')}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aiohttp-observe", description="What an aiohttp service is doing.", parents=[_place()]
    )
    where = _place()
    parser.set_defaults(url=_default_url(), unix_socket=None)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_ in (
        ("ps", "the verdict and the tasks, oldest first"),
        ("top", "the same, live, grouped by what they wait for"),
    ):
        command = commands.add_parser(name, help=help_, parents=[where])
        command.add_argument("--state")
        command.add_argument("--wait", help="a wait kind")
        command.add_argument("--coro", help="part of a coroutine's name; with ! before it, all but those")
        command.add_argument(
            "--connections", action="store_true", help="aiohttp's own task of each connection too"
        )
        command.add_argument("--limit", type=int, default=50, help="tasks to show; default 50")
    commands.add_parser("tree", help="who awaits whom, and who started whom", parents=[where])
    commands.add_parser(
        "dump", help="tasks, resources, tree, incidents and requests, as JSON", parents=[where]
    )
    profile = commands.add_parser(
        "profile", help="collapsed stacks of the loop's thread, for flame graphs", parents=[where]
    )
    profile.add_argument("seconds", nargs="?", type=_seconds, default=5.0)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not isfinite(seconds):
        raise ValueError(text)
    return seconds


_seconds.__name__ = "number of seconds"  # argparse's message tells it


def _place() -> argparse.ArgumentParser:
    """Options that may stand before the command or after it, and there don't undo those before."""
    where = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where.add_argument(
        "--url",
        help="of the console; default AIOHTTP_OBSERVE_URL, else that on this machine at the port "
        f"AIOHTTP_OBSERVE_ADMIN_PORT, else {_DEFAULT_PORT}",
    )
    where.add_argument("--unix-socket", metavar="PATH", help="of Admin(unix_socket=...), in place of TCP")
    return where


def _default_url() -> str:
    """The service's own variable names the port of its console; 0 there is a port that nobody knows."""
    port = os.environ.get("AIOHTTP_OBSERVE_ADMIN_PORT", "").strip().lstrip("0") or _DEFAULT_PORT
    return os.environ.get("AIOHTTP_OBSERVE_URL", "").strip() or f"http://127.0.0.1:{port}/_tasks"


async def _run(options: argparse.Namespace) -> None:
    _let_it_be_interrupted()
    commands: dict[str, Command] = {"ps": _ps, "top": _top, "tree": _tree, "dump": _dump, "profile": _profile}
    connector = None if options.unix_socket is None else aiohttp.UnixConnector(options.unix_socket)
    token = os.environ.get("AIOHTTP_OBSERVE_ADMIN_TOKEN", "").strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, read_bufsize=_LONGEST_LINE
    ) as session:
        await commands[options.command](Remote(session, _console(options.url)), options)


def _console(url: str) -> str:
    """The console's URL, made whole if only a host and port are given."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/_tasks"))


def _told(trouble: Exception, by_socket: bool) -> str:
    """The words for a failure: what is wrong, and what to do about it."""
    if isinstance(trouble, aiohttp.ClientConnectorError) and not isinstance(trouble, aiohttp.ClientSSLError):
        return (_unreached_socket if by_socket else _unreached_port)(trouble.os_error)
    if isinstance(trouble, aiohttp.InvalidURL):
        return "this is no URL"
    if isinstance(trouble, _OF_ANOTHER_SHAPE):
        return f"{_NO_CONSOLE} ({type(trouble).__name__}: {trouble})"
    return str(trouble) or type(trouble).__name__


def _unreached_port(error: OSError) -> str:
    refused = isinstance(error, ConnectionRefusedError)
    return (
        f"{'nothing listens there' if refused else error.strerror or error}: point --url or "
        "AIOHTTP_OBSERVE_URL at the service, or at its Admin(port=...) if it has one"
    )


def _unreached_socket(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "the process that served this socket is gone"
    if isinstance(error, FileNotFoundError):
        return "there is no such socket: Admin(unix_socket=...) makes it, with the process id for {pid}"
    return error.strerror or str(error)


def _let_it_be_interrupted() -> None:
    """Up to Python 3.10 the interrupt is raised wherever the loop is just then, and may be lost there."""
    task = asyncio.current_task()
    if task is not None and threading.current_thread() is threading.main_thread():
        with suppress(NotImplementedError):  # on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)


class Remote:
    """The console of a service somewhere."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def text(self, path: str, **query: Any) -> str:
        """A document.  Raises ``ValueError`` with the service's own words if it refuses."""
        asked = {name: str(value) for name, value in query.items() if value is not None}
        timeout = aiohttp.ClientTimeout(total=60 + float(asked.get("seconds", 0)))
        async with self._session.get(self._base + path, params=asked, timeout=timeout) as response:
            await self._check(response)
            return await response.text()

    async def pictures(self, **query: Any) -> AsyncIterator[dict[str, Any]]:
        """The live feed.  Raises ``ValueError`` with the service's own words if it refuses."""
        asked = {name: str(value) for name, value in query.items() if value is not None}
        timeout = aiohttp.ClientTimeout(sock_read=60)
        async with self._session.get(f"{self._base}/stream", params=asked, timeout=timeout) as response:
            await self._check(response)
            if response.content_type != "text/event-stream":
                raise ValueError(_NO_CONSOLE)
            event = b""
            async for line in response.content:
                if line.startswith(b"event:"):
                    event = line[6:].strip()
                elif line.startswith(b"data:") and event == b"picture":
                    yield json.loads(line[5:])
                elif line.startswith(b"data:") and event == b"refused":
                    raise ValueError(_refusal(line[5:].decode()))

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status == 401 and "Authorization" in self._session.headers:
            raise ValueError("401: AIOHTTP_OBSERVE_ADMIN_TOKEN isn't this service's admin token")
        if status == 401:
            raise ValueError("401: set AIOHTTP_OBSERVE_ADMIN_TOKEN to the service's admin token")
        if status >= 400:
            raise ValueError(f"{status}: {_refusal(await response.text()).removeprefix(f'{status}: ')}")


def _document(text: str) -> dict[str, Any]:
    """The picture of the tasks.  Raises ``ValueError`` for what some other service answers there."""
    try:
        picture = json.loads(text)
    except ValueError:
        raise ValueError(_NO_CONSOLE) from None
    if not isinstance(picture, dict) or not picture.keys() >= _PARTS:
        raise ValueError(_NO_CONSOLE)
    return picture


def _refusal(text: str) -> str:
    """In words: the console's own are JSON, those of whatever else answers are taken as they are."""
    try:
        told = json.loads(text)["error"]
    except (ValueError, LookupError, TypeError):
        told = text
    return str(told).strip()[:500]


async def _ps(remote: Remote, options: argparse.Namespace) -> None:
    picture = _document(await remote.text("", format="json", **_filters(options)))
    found = _task_lines(picture) if picture["summary"]["total"] else [await _none(remote, options)]
    print("\n".join([*_head(picture), "", *found]))


async def _none(remote: Remote, options: argparse.Namespace) -> str:
    """Said in place of tasks.  A service may have wait kinds of its own, so that none is wrong."""
    waiting = _document(await remote.text("", format="json", limit=1))["summary"]["waiting"]
    if options.wait is None or options.wait in waiting:
        return "No task passes the filter."
    others = f"; the kinds waited for are {', '.join(waiting)}" if waiting else ""
    return _plain(f"No task waits for {options.wait!r}{others}.")


async def _top(remote: Remote, options: argparse.Namespace) -> None:
    async for picture in remote.pictures(**_filters(options)):
        height = shutil.get_terminal_size().lines
        lines = [*_head(picture), "", *_group_lines(picture), "", *_task_lines(picture)]
        print(_CLEAR + "\n".join(lines[: height - 1]), flush=True)


async def _tree(remote: Remote, options: argparse.Namespace) -> None:
    print(_plain(await remote.text("/tree", format="text"), keep="\n"), end="")


async def _dump(remote: Remote, options: argparse.Namespace) -> None:
    first = await remote.text("", format="json")
    _document(first)
    texts = [first, *[await remote.text(path, format="json") for path in _DOCUMENTS[1:]]]
    named = zip(_DOCUMENTS, texts, strict=True)
    json.dump({path.lstrip("/") or "tasks": json.loads(text) for path, text in named}, sys.stdout, indent=1)
    print()


async def _profile(remote: Remote, options: argparse.Namespace) -> None:
    print(f"looking for {options.seconds:g} s …", file=sys.stderr)
    print(_plain(await remote.text("/profile", seconds=options.seconds), keep="\n"), end="")


def _filters(options: argparse.Namespace) -> dict[str, Any]:
    filters = {name: getattr(options, name) for name in ("state", "wait", "coro", "limit")} | {"frames": 20}
    if options.coro is None and not options.connections:
        filters["coro"] = _BUT_CONNECTIONS
    return filters


def _head(picture: dict[str, Any]) -> list[str]:
    process, loop, summary = picture["process"], picture["loop"], picture["summary"]
    waiting = ", ".join(f"{count} {kind}" for kind, count in summary["waiting"].items())
    head = (
        f"pid {process['pid']} · Python {process['python']} · {process['loop']} · "
        f"up {_duration(process['uptime_seconds'])} · lag {_duration(loop['lag_seconds'])} · "
        f"{loop['utilization']:.0%} busy"
    )
    tasks = f"{summary['total']} tasks: {waiting or 'none waits'}"
    verdict = [f"!! {sentence}" for sentence in picture["verdict"]] or ["Nothing stands out."]
    return [_fitted(line) for line in (head, tasks)] + [_plain(line) for line in verdict]


def _group_lines(picture: dict[str, Any]) -> list[str]:
    rows = [
        (
            str(group["count"]),
            _duration(group["oldest_seconds"]),
            group["wait"] or "",
            _where([group["frame"]]),
        )
        for group in picture.get("groups", [])[:10]
    ]
    return _table(("tasks", "oldest", "waits for", "at"), rows, right=2)


def _task_lines(picture: dict[str, Any]) -> list[str]:
    rows = []
    for task in picture["tasks"]:
        wait = task["wait"]
        request = task["request"]
        rows.append(
            (
                str(task["id"]),
                _duration(task["age_seconds"]),
                wait["detail"] if wait else task["state"],
                task["operation"] or task["name"],
                _where(task["frames"]),
                f"{request['method']} {request['route']}" if request else "",
            )
        )
    head, *table = _table(("id", "age", "waits for", "task", "where", "request"), rows, right=2)
    lines = [head]
    for line, task in zip(table, picture["tasks"], strict=True):
        lines += [line, *(_fitted(f"    ⚠ {warning}") for warning in task["warnings"])]
    if picture["truncated"]:
        lines.append(f"and {picture['truncated']} more")
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: int) -> list[str]:
    """Columns as wide as they need, the first ``right`` of them aligned to the right; cut to the terminal."""
    lines = [tuple(head), *(tuple(map(_plain, row)) for row in rows)]
    widths = [min(max(map(len, column)), _WIDEST) for column in zip(*lines, strict=True)]
    _make_fit(widths, [index for index, name in enumerate(head) if index >= right and name != "request"])
    texts = []
    for line in lines:
        cells = [
            _cut(cell, width).rjust(width) if index < right else _cut(cell, width).ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append(_fitted("  ".join(cells)).rstrip())
    return texts


def _make_fit(widths: list[int], yielding: Sequence[int]) -> None:
    """Take from the widest of the columns that yield, so that numbers and requests keep their room."""
    excess = sum(widths) + 2 * len(widths) - 2 - _terminal_width()
    for _ in range(excess):
        widest = max(yielding, key=widths.__getitem__)
        widths[widest] -= widths[widest] > _NARROWEST


def _where(frames: Sequence[dict[str, Any] | None]) -> str:
    """The innermost place that is the service's own."""
    known = [frame for frame in frames if frame is not None]
    own = (frame for frame in known if not _in_library(frame["file"]))
    frame = next(own, known[0] if known else None)
    if frame is None:
        return ""
    return f"{_separator.split(frame['file'])[-1]}:{frame['line']} {frame['function']}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 90:
        return f"{seconds:.1f}s"
    return f"{seconds / 60:.0f}min" if seconds < 5400 else f"{seconds / 3600:.1f}h"


def _plain(text: str, keep: str = "") -> str:
    """Names come from the service, and its clients: none of them may steer the terminal."""
    return "".join(sign if sign.isprintable() or sign in keep else "?" for sign in text)


def _fitted(line: str) -> str:
    return _cut(_plain(line), _terminal_width())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _terminal_width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


if __name__ == "__main__":
    sys.exit(main())
