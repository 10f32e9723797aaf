"""Instructions that a request takes, counted by valgrind: figures that no neighbour changes.

CPU time on a shared machine comes out twice as long one minute as the next, and ratios of it
are little better.  Instructions come out the same within one in a hundred.  They aren't time,
since caches and branches are left out, but what adds a tenth of them adds about a tenth of it.

What is counted is the difference between a longer and a shorter run of the same server.  It is
some fifty times slower there, but its clock isn't: what ours does by time rather than by the
request is put off, or left out, else it would be counted fifty times too often.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp_observe import plugin
from aiohttp_observe.middleware import recorder

from .load import Traffic, open_loop
from .request import CONNECTIONS, compared, process
from .rounds import NotMeasuredError, turns
from .stacks import PARTS, STACKS, ours, serve
from .table import Table

__all__ = ["tables"]

_SHORT, _LONG = 800, 3200
"""Requests of the two runs."""
_AT_ONCE = 1e9
"""Requests a second that no server keeps up with."""
_NEVER = 1e6
_collected = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE).search


def tables(rounds: int) -> list[Table]:
    """One run of each, in ``rounds`` of any number: the next would count the same."""
    stacks = [name for name in (*STACKS, *PARTS) if name not in ("bare again", "only loop_watch")]
    with ThreadPoolExecutor(2) as at_once:
        counted = dict(zip(turns(stacks, 1), at_once.map(_per_request, stacks), strict=True))
    found = {stack: each for stack, each in counted.items() if isinstance(each, float)}
    failed = {stack: each for stack, each in counted.items() if isinstance(each, str)}
    told = "All but what the loop watch does, which doesn't depend on the requests."
    return [compared("instructions a request: trivial JSON", "thousands", found, failed, told)]


def _per_request(stack: str) -> float | str:
    """Thousands of instructions, or why they couldn't be counted."""
    try:
        return (_counted(stack, _LONG) - _counted(stack, _SHORT)) / (_LONG - _SHORT) / 1e3
    except NotMeasuredError as exc:
        return str(exc)


def _counted(stack: str, requests: int) -> int:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise NotMeasuredError("valgrind isn't installed")
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder, "counts")
        options = ("--tool=callgrind", f"--callgrind-out-file={counts}", "--log-file=/dev/null")
        # How many of a dict's keys collide is one in a hundred, else.
        under = ["env", "PYTHONHASHSEED=0", valgrind, *options]
        with process(["benchmarks.instructions", stack], under=under) as (_, port):
            asyncio.run(open_loop(port, Traffic("/json/1"), CONNECTIONS, requests / _AT_ONCE, _AT_ONCE))
        found = _collected(counts.read_text())
    if found is None:
        raise NotMeasuredError("valgrind has counted nothing")
    return int(found[1])


def _serve(stack: str) -> None:
    recorder._FLUSH_DELAY = plugin._TICK_INTERVAL = _NEVER
    STACKS.update({"all": ours(1.0, loop_watch=None), "all at 1 %": ours(0.01, loop_watch=None)})
    asyncio.run(serve(stack))


if __name__ == "__main__":
    _serve(sys.argv[1])
