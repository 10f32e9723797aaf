"""What an outbound request costs the service that makes it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from time import process_time

import aiohttp
from aiohttp import web

from .request import upstream
from .rounds import child, interleaved, note
from .stacks import provider
from .table import Table

__all__ = ["tables"]

_SLICES, _SLICE = 12, 256
_AT_ONCE = 8
"""Calls in flight: with one the client sleeps between any two, and what it costs to be woken varies most."""
_CASES = ("none", "idle", "official", "ours", "official at 1 %", "ours at 1 %")


def tables(rounds: int) -> list[Table]:
    """Ours against the official instrumentation alone and against none."""
    with upstream() as port:
        url = f"http://127.0.0.1:{port}/json/1"
        found, failed = interleaved(
            {name: name for name in _CASES}, rounds, lambda name: child("client", name, url)
        )
    over = {name: value - found["none"] for name, value in found.items()}
    rows = tuple((name, value, over[name], over[name] / over["official"]) for name, value in found.items())
    columns = ("instrumentation", "µs", "over none", "x official")
    told = "client CPU of a request, eight at once; idle: a trace configuration without a receiver"
    return [Table("an outbound request", columns, rows, note(failed, told))]


# In a process of its own


async def _session(name: str, stack: AsyncExitStack) -> aiohttp.ClientSession:
    """An open session, instrumented as ``name`` has it."""
    ratio = 0.01 if name.endswith("1 %") else 1.0
    if name in ("none", "idle"):
        configs = [aiohttp.TraceConfig()] if name == "idle" else []
        return await stack.enter_async_context(aiohttp.ClientSession(trace_configs=configs))
    if name.startswith("official"):
        os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
        from opentelemetry.instrumentation.aiohttp_client import create_trace_config

        config = create_trace_config(tracer_provider=provider(ratio))
        return await stack.enter_async_context(aiohttp.ClientSession(trace_configs=[config]))
    from aiohttp_observe import CLIENT_SESSION, Logs, Tracing, setup_observability

    app = web.Application()
    setup_observability(app, tracing=Tracing(provider=provider(ratio)), logs=Logs(level="ERROR"))
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return app[CLIENT_SESSION]


async def _measure(name: str, url: str) -> float:
    """Microseconds of CPU for each of many requests, in the best of several slices."""
    async with AsyncExitStack() as stack:
        session = await _session(name, stack)
        await _slice(session, url)
        return min([await _slice(session, url) for _ in range(_SLICES)])


async def _slice(session: aiohttp.ClientSession, url: str) -> float:
    begun = process_time()
    await asyncio.gather(*(_call(session, url) for _ in range(_AT_ONCE)))
    return (process_time() - begun) / _SLICE * 1e6


async def _call(session: aiohttp.ClientSession, url: str) -> None:
    for _ in range(_SLICE // _AT_ONCE):
        async with session.get(url) as response:
            await response.read()


def main(name: str, url: str) -> None:
    os.sched_setaffinity(0, {0})
    print("\n" + json.dumps(asyncio.run(_measure(name, url))))


if __name__ == "__main__":
    main(*sys.argv[1:])
