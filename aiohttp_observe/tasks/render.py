"""A snapshot as JSON: the documents of ``/_tasks`` and ``/_tasks/resources``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from ..jsonpieces import Long, encode, pieces
from .model import LoopState, Resource, Snapshot, TaskInfo, Wait
from .places import line_to_name

__all__ = ["findings_to_dict", "json_pieces", "resource_pieces", "to_dict"]

_NAMED_WAITERS = 50
_SLICE = 100
"""Tasks or resources in one piece of text: about a millisecond's work."""

_quote = json.encoder.encode_basestring_ascii


def to_dict(snapshot: Snapshot) -> dict[str, Any]:
    """The document of ``/_tasks`` as dictionaries, lists and tuples, ready for any JSON encoder."""
    return {
        "taken_at": snapshot.taken_at,
        "process": asdict(snapshot.process),
        "loop": _loop(snapshot.loop),
        "summary": asdict(snapshot.summary),
        "tasks": [asdict(task) for task in snapshot.tasks],
        "resources": [_resource(resource) for resource in snapshot.resources],
        "deadlocks": snapshot.deadlocks,
        "verdict": snapshot.verdict,
        "truncated": snapshot.truncated,
    }


def findings_to_dict(snapshot: Snapshot) -> dict[str, Any]:
    """What the live page gets besides: the evidence of the verdict, and the tasks by where they wait."""
    return {
        "findings": [asdict(finding) for finding in snapshot.findings],
        "groups": [asdict(group) for group in snapshot.groups],
    }


def resource_pieces(snapshot: Snapshot) -> Iterator[str]:
    """The document of ``/_tasks/resources`` as text in pieces, after each of which a loop can have a turn.

    Of each resource all that hold it and 50 of the tasks that wait are described.
    """
    named = {
        number
        for resource in snapshot.resources
        for number in (*resource.holders, *resource.waiters[:_NAMED_WAITERS])
    }
    tasks = (task for task in snapshot.tasks + snapshot.stuck if task.id in named)
    return pieces(
        {
            "taken_at": snapshot.taken_at,
            "resources": Long((encode(_whole(resource)) for resource in snapshot.resources), _SLICE),
            "deadlocks": snapshot.deadlocks,
            "tasks": Long((f'"{task.id}":{encode(_named(task))}' for task in tasks), _SLICE, "{}"),
        }
    )


def _whole(resource: Resource) -> dict[str, Any]:
    return {
        **_resource(resource),
        "state": resource.state,
        "held_seconds": resource.held_seconds,
        "frame": None if resource.frame is None else asdict(resource.frame),
    }


def _named(task: TaskInfo) -> dict[str, Any]:
    frame = line_to_name(task.frames)
    return {
        "name": task.name,
        "coro": task.coro,
        "frame": None if frame is None else asdict(frame),
        "request": None if task.request is None else asdict(task.request),
    }


def _resource(resource: Resource) -> dict[str, Any]:
    """What ``/_tasks`` tells of a resource; ``/_tasks/resources`` has all of it."""
    return {name: getattr(resource, name) for name in ("id", "type", "detail", "holders", "waiters")}


def _loop(loop: LoopState) -> dict[str, Any]:
    plain = asdict(loop)
    if loop.blocked_now is not None:
        del plain["blocked_now"]["frame"]
    return plain


def json_pieces(snapshot: Snapshot, more: Mapping[str, Any] | None = None) -> Iterator[str]:
    """The document of ``/_tasks`` as text in pieces, after each of which a loop can have a turn.

    ``more`` are keys to add.
    """
    document = {**to_dict(replace(snapshot, tasks=(), resources=())), **(more or {})}
    shared = _Shared()
    document["tasks"] = Long((_task_text(task, shared.text) for task in snapshot.tasks), _SLICE)
    document["resources"] = Long((encode(_resource(each)) for each in snapshot.resources), _SLICE)
    return pieces(document)


class _Shared:
    """The JSON of what many tasks share, by identity; the snapshot keeps those objects alive."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def text(self, value: Any) -> str:
        """``value`` as JSON: a dataclass, or a tuple of them."""
        known = self._known.get(id(value))
        if known is None:
            plain = [asdict(item) for item in value] if isinstance(value, tuple) else asdict(value)
            known = self._known[id(value)] = encode(plain)
        return known


def _task_text(task: TaskInfo, shared: Callable[[Any], str]) -> str:
    """``task`` as JSON: as `encode` has it, in a fraction of the time."""
    return (
        f'{{"id":{task.id},"name":{_quote(task.name)},"coro":{_quote(task.coro)},"state":"{task.state}",'
        f'"wait":{_wait_text(task.wait)},"frames":{shared(task.frames)},'
        f'"age_seconds":{_or_null(task.age_seconds)},'
        f'"created_at_frame":{"null" if task.created_at_frame is None else shared(task.created_at_frame)},'
        f'"created_by":{_or_null(task.created_by)},"operation":{_quoted_or_null(task.operation)},'
        f'"request":{"null" if task.request is None else shared(task.request)},'
        f'"trace_id":{_quoted_or_null(task.trace_id)},"orphan":{"true" if task.orphan else "false"},'
        f'"warnings":{encode(task.warnings) if task.warnings else "[]"}}}'
    )


def _wait_text(wait: Wait | None) -> str:
    if wait is None:
        return "null"
    on = ",".join(map(str, wait.on))
    return (
        f'{{"kind":"{wait.kind}","detail":{_quote(wait.detail)},"on":[{on}],'
        f'"resource":{_or_null(wait.resource)}}}'
    )


def _or_null(number: float | None) -> str:
    return "null" if number is None else str(number)


def _quoted_or_null(text: str | None) -> str:
    return "null" if text is None else _quote(text)
