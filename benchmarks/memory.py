"""What is kept, and what it takes to be there: memory, import and start-up."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from aiohttp import web

from .load import Traffic, closed_loop
from .request import Case, serving
from .rounds import child, interleaved, note
from .table import Table

__all__ = ["tables"]

_TASKS = 20_000
_REQUESTS = 2_000
_SERVED = 200_000
_STEP = 20_000


def tables(rounds: int) -> list[Table]:
    """Each in a process of its own; growth over many requests from outside the server."""
    kept = ("a waiting task", "a request in flight")
    return [
        _compared("memory, bytes each", ("what", "bare", "ours", "more"), kept, rounds),
        _compared("to be there, ms", ("what", "aiohttp", "with us", "more"), ("import", "start-up"), rounds),
        _growth(_SERVED),
    ]


def _compared(title: str, columns: tuple[str, str, str, str], whats: tuple[str, str], rounds: int) -> Table:
    """With us and without."""
    cases = {f"{what}, {whose}": (what, whose) for what in whats for whose in ("bare", "ours")}
    found, failed = interleaved(cases, rounds, lambda case: child("memory", *case))
    rows = []
    for what in whats:
        bare, ours = found[f"{what}, bare"], found[f"{what}, ours"]
        rows.append((what, bare, ours, ours - bare))
    return Table(title, columns, tuple(rows), note(failed))


def _growth(requests: int) -> Table:
    """Resident memory of a server with everything on, while it serves; a third of the requests is 404."""
    rows, served = [], 0
    with serving(Case("all")) as (pid, port):
        while served < requests:
            wanted = served + _STEP
            while served < wanted:
                served += len(asyncio.run(closed_loop(port, Traffic("/json/{}"), 16, 0.4)))
                served += len(asyncio.run(closed_loop(port, Traffic("/nowhere/{}"), 16, 0.2)))
            rows.append((f"{served:,}", resident(pid)))
    title = f"resident memory over {requests:,} requests, MB"
    return Table(title, ("requests served", "MB"), (rows[0], *rows[1:-1:3], rows[-1]))


def resident(pid: int | str = "self") -> float:
    """Megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# In a process of its own


def _import(whose: str) -> float:
    """Milliseconds to import aiohttp, or us, who import it."""
    module = {"bare": "aiohttp.web", "ours": "aiohttp_observe"}[whose]
    code = f"from time import perf_counter as now; t = now(); import {module}; print((now() - t) * 1e3)"
    return float(subprocess.check_output([sys.executable, "-c", code]))


def _application(whose: str) -> web.Application:
    app = web.Application()
    if whose == "ours":
        from aiohttp_observe import setup_observability

        setup_observability(app)
    return app


async def _start(whose: str) -> float:
    _application(whose)  # imports what it needs
    begun = perf_counter()
    runner = web.AppRunner(_application(whose))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    took = perf_counter() - begun
    await runner.cleanup()
    return took * 1e3


async def _task(whose: str) -> float:
    from aiohttp_observe import Tasks

    tracker = Tasks().install(asyncio.get_running_loop()) if whose == "ours" else None
    event = asyncio.Event()

    async def wait() -> None:
        await event.wait()

    before = resident()
    made = [asyncio.create_task(wait()) for _ in range(_TASKS)]
    await asyncio.sleep(0)
    each = (resident() - before) * 1e6 / _TASKS
    event.set()
    await asyncio.gather(*made)
    if tracker is not None:
        tracker.uninstall()
    return each


async def _in_flight(whose: str) -> float:
    event, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(request: web.Request) -> web.Response:
        begun.release()
        await event.wait()
        return web.Response()

    app = _application(whose)
    app.router.add_get("/", wait)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=_REQUESTS).start()
    port = runner.addresses[0][1]
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(_REQUESTS)]
    await asyncio.sleep(0.2)
    before = resident()
    for _, writer in opened:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    for _ in opened:
        await begun.acquire()
    each = (resident() - before) * 1e6 / _REQUESTS
    event.set()
    for _, writer in opened:
        writer.close()
    await runner.cleanup()
    return each


def _soak(requests: str) -> None:
    print(_growth(int(requests)).text())


def main(what: str, argument: str) -> None:
    if what == "soak":
        _soak(argument)
        return
    os.sched_setaffinity(0, {0})
    measure: dict[str, Any] = {
        "import": _import,
        "start-up": lambda whose: asyncio.run(_start(whose)),
        "a waiting task": lambda whose: asyncio.run(_task(whose)),
        "a request in flight": lambda whose: asyncio.run(_in_flight(whose)),
    }
    print("\n" + json.dumps(measure[what](argument)))


if __name__ == "__main__":
    main(*sys.argv[1:])
