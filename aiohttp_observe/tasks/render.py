"""A snapshot as JSON: the document of ``/_tasks``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from .model import Frame, Snapshot, TaskInfo

__all__ = ["json_pieces", "to_dict", "to_json"]

_SLICE = 100
"""Tasks in one piece of text: about a millisecond's work."""

_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def to_dict(snapshot: Snapshot) -> dict[str, Any]:
    """The document as dictionaries, lists and tuples, ready for any JSON encoder."""
    return {
        "taken_at": snapshot.taken_at,
        "process": asdict(snapshot.process),
        "loop": asdict(snapshot.loop),
        "summary": asdict(snapshot.summary),
        "tasks": _tasks(snapshot.tasks),
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
    for start in range(0, len(snapshot.tasks), _SLICE):
        text = _encode(_tasks(snapshot.tasks[start : start + _SLICE]))
        yield f",{text[1:-1]}" if start else text[1:-1]
    yield f"]{after}"


def _tasks(tasks: tuple[TaskInfo, ...]) -> list[dict[str, Any]]:
    places: dict[int, dict[str, Any]] = {}  # many tasks share a few places
    return [_task(task, places) for task in tasks]


def _task(task: TaskInfo, places: dict[int, dict[str, Any]]) -> dict[str, Any]:
    wait, request, created_at = task.wait, task.request, task.created_at_frame
    return {
        "id": task.id,
        "name": task.name,
        "coro": task.coro,
        "state": task.state,
        "wait": wait and {"kind": wait.kind, "detail": wait.detail, "on": wait.on, "resource": wait.resource},
        "frames": [_frame(frame, places) for frame in task.frames],
        "age_seconds": task.age_seconds,
        "created_at_frame": created_at and _frame(created_at, places),
        "created_by": task.created_by,
        "operation": task.operation,
        "request": request and {"id": request.id, "method": request.method, "route": request.route},
        "trace_id": task.trace_id,
        "orphan": task.orphan,
        "warnings": task.warnings,
    }


def _frame(frame: Frame, places: dict[int, dict[str, Any]]) -> dict[str, Any]:
    place = places.get(id(frame))
    if place is None:
        place = places[id(frame)] = {"file": frame.file, "line": frame.line, "function": frame.function}
    return place
