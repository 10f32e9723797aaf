"""How things are compared: each once a round, in turn, so that a noisy moment hits all alike."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["NotMeasuredError", "child", "interleaved", "note", "turns"]

K = TypeVar("K")
_PATIENCE = 120.0


class NotMeasuredError(Exception):
    """A contender that isn't installed, or doesn't run here: the message says why."""


def interleaved(
    cases: Mapping[str, K],
    rounds: int,
    measure: Callable[[K], Any],
    over_rounds: Callable[[Sequence[float]], float] = min,
) -> tuple[dict[str, Any], dict[str, str]]:
    """A figure for each case, or a tuple of them; and why the others have none.

    Of a cost it is the least, since whatever else goes on on a machine only ever adds.  What is
    the worst of a round already needs another ``over_rounds``, or one lucky round would hide it.
    """
    found: dict[str, list[Any]] = {name: [] for name in cases}
    failed: dict[str, str] = {}
    for name in turns(cases, rounds):
        if name not in failed:
            try:
                found[name].append(measure(cases[name]))
            except NotMeasuredError as exc:
                failed[name] = str(exc)
    return {name: _figure(each, over_rounds) for name, each in found.items() if each}, failed


def _figure(values: list[Any], over_rounds: Callable[[Sequence[float]], float]) -> Any:
    if isinstance(values[0], (tuple, list)):
        return tuple(over_rounds(column) for column in zip(*values, strict=True))
    return over_rounds(values)


def turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Each name once a round; the progress on a terminal."""
    for number in range(1, rounds + 1):
        for name in names:
            _show(f"round {number}/{rounds}: {name}")
            yield name
    _show("")


def _show(progress: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{progress}", end="", file=sys.stderr, flush=True)


def note(failed: Mapping[str, str], told: str = "") -> str:
    """What a table says of how it was measured, and of those that weren't."""
    return "\n".join(
        [*([told] if told else []), *(f"{name} did not run here: {why}" for name, why in failed.items())]
    )


def child(module: str, *arguments: object) -> Any:
    """What ``python -m benchmarks.<module> <arguments>`` prints last, a line of JSON."""
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    if done.returncode:
        raise NotMeasuredError((done.stderr.strip().splitlines() or ["it ended"])[-1][:100])
    return json.loads(done.stdout.splitlines()[-1])
