"""What a scrape of many series takes, and how long it holds the loop."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

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
for _ in range(int(sys.argv[2])):
    begun = time.perf_counter()
    urllib.request.urlopen(sys.argv[1]).read()
    print(time.perf_counter() - begun)
"""


def tables(rounds: int) -> list[Table]:
    """Ours against prometheus-async's own handler."""
    cases = {f"{server}, {series:,}": (server, series) for series in _SERIES for server in _SERVERS}
    found, failed = interleaved(cases, rounds, lambda case: child("scrape", *case))
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
    async with ticking(_TICK) as ticker:
        await _scraped(runner.addresses[0][1], 2)
        ticker.worst = 0.0
        took = await _scraped(runner.addresses[0][1], _SCRAPES)
    await runner.cleanup()
    return min(took) * 1e3, (ticker.worst - _TICK) * 1e3


async def _scraped(port: int, times: int) -> list[float]:
    scraper = await asyncio.create_subprocess_exec(
        *("taskset", "-c", "1", sys.executable, "-c", _SCRAPER),
        *(f"http://127.0.0.1:{port}/metrics", str(times)),
        stdout=subprocess.PIPE,
    )
    output, _ = await scraper.communicate()
    return [float(line) for line in output.split()]


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
    app.on_cleanup.append(page.close)


def main(server: str, series: str) -> None:
    os.sched_setaffinity(0, {0})
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    result = asyncio.run(_scrape(server, int(series)))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
