"""The time for which a container was kept from its CPUs: its share was used up (CFS bandwidth).

Control groups v2 tell it as ``throttled_usec`` in ``cpu.stat``, v1 as ``throttled_time`` (ns).
https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

__all__ = ["Throttling"]

_OURS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


class Throttling:
    """How long the nearest of our control groups with a CPU limit has been throttled.

    Without one, as on most machines that aren't containers, nothing is read.
    """

    def __init__(self) -> None:
        self._stat = next(_limited(), None)

    def seconds(self) -> float:
        """Summed over the group's CPUs: it may grow faster than time.  0 where nothing tells."""
        if self._stat is None:
            return 0.0
        try:
            return _throttled(self._stat.read_text())
        except (OSError, ValueError):
            return 0.0


def _throttled(stat: str) -> float:
    for line in stat.splitlines():
        name, _, value = line.partition(" ")
        if name == "throttled_usec":
            return int(value) / 1e6
        if name == "throttled_time":
            return int(value) / 1e9
    return 0.0


def _limited() -> Iterator[Path]:
    """The ``cpu.stat`` of our groups that have a limit, innermost first."""
    for group in _groups():
        with suppress(OSError, ValueError):
            if _has_limit(group):
                yield group / "cpu.stat"


def _groups() -> Iterator[Path]:
    """Our control groups for CPU time, innermost first; in a container the root is often our own."""
    try:
        lines = _OURS.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers or "cpu" in controllers.split(","):
            root = _GROUPS / controllers
            inner = PurePosixPath(path.lstrip("/"))
            yield from (root / each for each in (inner, *inner.parents))


def _has_limit(group: Path) -> bool:
    if (group / "cpu.max").exists():
        return not (group / "cpu.max").read_text().startswith("max")
    return int((group / "cpu.cfs_quota_us").read_text()) > 0
