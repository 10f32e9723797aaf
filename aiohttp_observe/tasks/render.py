"""A snapshot as JSON: the document of ``/_tasks``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from .model import Snapshot, TaskInfo

__all__ = ["json_pieces", "to_dict", "to_json"]

_SLICE = 100
"""Tasks in one piece of text: about a millisecond's work."""

_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
_quote = json.encoder.encode_basestring_ascii


def to_dict(snapshot: Snapshot) -> dict[str, Any]:
    """The document as dictionaries, lists and tuples, ready for any JSON encoder."""
    return {
        "taken_at": snapshot.taken_at,
        "process": asdict(snapshot.process),
        "loop": asdict(snapshot.loop),
        "summary": asdict(snapshot.summary),
        "tasks": [asdict(task) for task in snapshot.tasks],
        "resources": [asdict(resource) for resource in snapshot.resources],
        "deadlocks": snapshot.deadlocks,
        "verdict": snapshot.verdict,
        "truncated": snapshot.truncated,
    }


def to_json(snapshot: Snapshot) -> str:
    """The document as text."""
    return "".join(json_pieces(snapshot))


def json_pieces(snapshot: Snapshot) -> Iterator[str]:
    """The document as text in pieces, after each of which a loop can have a turn."""
    before, after = _encode(to_dict(replace(snapshot, tasks=()))).split('"tasks":[]', 1)
    yield f'{before}"tasks":['
    shared = _Shared()
    for start in range(0, len(snapshot.tasks), _SLICE):
        tasks = snapshot.tasks[start : start + _SLICE]
        piece = ",".join([_task_text(task, shared.text) for task in tasks])
        yield f",{piece}" if start else piece
    yield f"]{after}"


class _Shared:
    """JSON of what many tasks share, by identity; the snapshot keeps those objects alive."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def text(self, value: Any) -> str:
        """``value`` as JSON: a dataclass, or a tuple of frames."""
        if value is None:
            return "null"
        text = self._known.get(id(value))
        if text is None:
            plain = [asdict(item) for item in value] if isinstance(value, tuple) else asdict(value)
            text = self._known[id(value)] = _encode(plain)
        return text


def _task_text(task: TaskInfo, shared: Callable[[Any], str]) -> str:
    """As the general encoder does, in a third of the time."""
    age = "null" if task.age_seconds is None else task.age_seconds
    return (
        f'{{"id":{task.id},"name":{_quote(task.name)},"coro":{_quote(task.coro)},"state":"{task.state}",'
        f'"wait":{shared(task.wait)},"frames":{shared(task.frames)},"age_seconds":{age},'
        f'"created_at_frame":{shared(task.created_at_frame)},"created_by":{task.created_by or "null"},'
        f'"operation":{_encode(task.operation)},"request":{shared(task.request)},'
        f'"trace_id":{_encode(task.trace_id)},"orphan":{"true" if task.orphan else "false"},'
        f'"warnings":{_encode(task.warnings) if task.warnings else "[]"}}}'
    )
