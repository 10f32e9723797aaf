"""What a scrape of many series takes, and how long it holds the loop."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from statistics import median

from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from .rounds import child, interleaved, note
from .table import Table
from .ticker import ticking

__all__ = ["tables"]

_SCRAPES = 5
_TICK = 0.0005
_SERIES = (100, 1_000, 10_000)
_SERVERS = ("ours", "prometheus-async")
_SCRAPER = """
import sys, time, urllib.request
for _ in sys.stdin:
    begun = time.perf_counter()
    urllib.request.urlopen(sys.argv[1]).read()
    print(time.perf_counter() - begun, flush=True)
"""


def tables(rounds: int) -> list[Table]:
    """Ours against prometheus-async's own handler."""
    cases = {f"{server}, {series:,}": (server, series) for series in _SERIES for server in _SERVERS}
    found, failed = interleaved(cases, rounds, lambda case: child("scrape", *case), median)
    rows = tuple((name, *figures) for name, figures in found.items())
    columns = ("handler, series", "ms", "longest stretch on the loop, ms")
    return [Table("GET /metrics", columns, rows, note(failed))]


# In a process of its own


async def _scrape(server: str, series: int) -> tuple[float, float]:
    """Milliseconds of a scrape, the best of a few, and the longest that nothing else could run."""
    gauge = Gauge("many", "Many", ["number"])
    for number in range(series):
        gauge.labels(str(number)).set(number)
    runner = web.AppRunner(_application(server))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    scraper = await _scraper(runner.addresses[0][1])
    await _scraped(scraper, 2)
    async with ticking(_TICK) as ticker:
        took = await _scraped(scraper, _SCRAPES)
    scraper.terminate()
    await scraper.wait()
    await runner.cleanup()
    return min(took) * 1e3, (ticker.worst - _TICK) * 1e3


async def _scraper(port: int) -> asyncio.subprocess.Process:
    """Another process, which scrapes once a line; to begin one would hold the loop."""
    return await asyncio.create_subprocess_exec(
        *("taskset", "-c", "1", sys.executable, "-c", _SCRAPER),
        f"http://127.0.0.1:{port}/metrics",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


async def _scraped(scraper: asyncio.subprocess.Process, times: int) -> list[float]:
    assert scraper.stdin is not None
    assert scraper.stdout is not None
    took = []
    for _ in range(times):
        scraper.stdin.write(b"\n")
        took.append(float(await scraper.stdout.readline()))
    return took


def _application(server: str) -> web.Application:
    app = web.Application()
    if server == "ours":
        from aiohttp_observe import Logs, Metrics, setup_observability

        # A registry of its own for what it measures: the same number of series for both.
        setup_observability(app, metrics=Metrics(path="/ours", registry=CollectorRegistry()), logs=Logs())
        _serve_default_registry(app)
    else:
        from prometheus_async.aio.web import server_stats

        app.router.add_get("/metrics", server_stats)
    return app


def _serve_default_registry(app: web.Application) -> None:
    from aiohttp_observe.metrics import MetricsPage

    page = MetricsPage(REGISTRY, None)
    app.router.add_get("/metrics", page.get)


def main(server: str, series: str) -> None:
    os.sched_setaffinity(0, {0})
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    result = asyncio.run(_scrape(server, int(series)))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
