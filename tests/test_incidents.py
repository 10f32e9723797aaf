"""What has gone wrong is kept by place: counted, with an example, and never more than fits."""

from __future__ import annotations

import gc
import json
import re
import threading
from dataclasses import replace
from datetime import datetime, timezone
from time import perf_counter
from typing import Any

import pytest

from aiohttp_observe.exchange import Exchange, Scope
from aiohttp_observe.incidents import Block, Cause, Incidents
from aiohttp_observe.tasks import Frame, line_to_name

LINE = Frame("/srv/report.py", 88, "render")
CAUSE = Cause("cpu", "high", "the loop's thread was on a CPU for 0.20 of 0.20 s")


def block(line: Frame = LINE, seconds: float = 0.2, **facts: Any) -> Block:
    made = Block(
        started=perf_counter() - seconds,
        seconds=seconds,
        frame=line,
        stack=(Frame("/usr/lib/python3/json/encoder.py", 1, "encode"), line),
        task=7,
        task_name="Task-7",
        request="GET /report",
        request_id="culprit",
        trace_id="0" * 31 + "1",
        span=None,
        scope=None,
        cause=CAUSE,
    )
    return replace(made, **facts)


@pytest.fixture
def incidents() -> Incidents:
    return Incidents()


def test_there_is_nothing_at_first(incidents: Incidents) -> None:
    assert incidents.to_dict() == {"blocked": [], "unhandled": [], "left_out": 0}


def ended(ago: float, seconds: float) -> Block:
    return block(seconds=seconds, started=perf_counter() - ago - seconds)


class TestWorstBlock:
    def test_is_the_longest_of_the_last_five_minutes(self, incidents: Incidents) -> None:
        for ago, seconds in ((400, 9.0), (200, 2.0), (100, 5.0), (50, 3.0), (0, 1.5)):
            incidents.blocked(ended(ago, seconds))
        worst = incidents.worst_block()
        assert worst is not None
        assert worst.seconds == 5.0

    def test_makes_room_for_the_next_one_when_it_is_too_old(
        self, incidents: Incidents, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for ago, seconds in ((100, 5.0), (50, 2.0), (0, 3.0)):
            incidents.blocked(ended(ago, seconds))
        monkeypatch.setattr("aiohttp_observe.incidents._RECENT_SECONDS", 70.0)
        worst = incidents.worst_block()
        assert worst is not None
        assert worst.seconds == 3.0
        monkeypatch.setattr("aiohttp_observe.incidents._RECENT_SECONDS", -1.0)
        assert incidents.worst_block() is None

    def test_is_none_of_less_than_a_second(self, incidents: Incidents) -> None:
        incidents.blocked(ended(1, 0.9))
        assert incidents.worst_block() is None


def test_blocks_of_a_line_are_added_up_and_the_longest_is_the_example(incidents: Incidents) -> None:
    incidents.blocked(block(seconds=0.2), ["a"], 1)
    incidents.blocked(block(seconds=0.5, request_id="longest"), ["b", "c"], 2)
    incidents.blocked(block(seconds=0.3), ["d"], 1)
    (row,) = incidents.to_dict()["blocked"]
    assert row["frame"] == {"file": "/srv/report.py", "line": 88, "function": "render"}
    assert (row["count"], row["longest_seconds"]) == (3, 0.5)
    assert row["total_seconds"] == pytest.approx(1.0)
    assert row["cause"] == {"kind": "cpu", "confidence": "high", "evidence": CAUSE.evidence}
    example = row["example"]
    assert (example["request_id"], example["victims"], example["victims_total"]) == ("longest", ["b", "c"], 2)
    assert (example["seconds"], example["task"], example["request"]) == (0.5, "Task-7", "GET /report")
    assert [frame["function"] for frame in example["stack"]] == ["encode", "render"]


def test_times_are_utc_with_milliseconds(incidents: Incidents) -> None:
    incidents.blocked(block())
    (row,) = incidents.to_dict()["blocked"]
    for at in (row["first_at"], row["last_at"], row["example"]["at"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", at)
        age = datetime.now(timezone.utc) - datetime.fromisoformat(at.replace("Z", "+00:00"))
        assert -1 < age.total_seconds() < 60
    assert row["example"]["at"] < row["first_at"]


def test_what_held_the_loop_longest_in_total_comes_first(incidents: Incidents) -> None:
    often, once = replace(LINE, line=1), replace(LINE, line=2)
    incidents.blocked(block(once, 0.3))
    for _ in range(3):
        incidents.blocked(block(often, 0.2))
    assert [row["frame"]["line"] for row in incidents.to_dict()["blocked"]] == [1, 2]


def test_failures_of_a_kind_are_counted_and_the_latest_is_the_example(incidents: Incidents) -> None:
    for request_id in ("first", "latest"):
        incidents.unhandled(
            "task_exception",
            exception="LookupError",
            coro="refresh",
            frame=LINE,
            task="refresher",
            exchange=Exchange(Scope(), request_id, "GET", "/", "/", None, None, 0.0),
        )
    incidents.unhandled("other")
    row, other = incidents.to_dict()["unhandled"]
    assert (row["kind"], row["exception"], row["coro"], row["count"]) == (
        "task_exception",
        "LookupError",
        "refresh",
        2,
    )
    assert row["frame"]["line"] == 88
    example = row["example"]
    assert (example["task"], example["request_id"], example["trace_id"]) == ("refresher", "latest", None)
    assert row["first_at"] <= row["last_at"] == example["at"]
    assert (other["exception"], other["frame"]) == (None, None)


def test_what_was_seen_longest_ago_makes_room(incidents: Incidents) -> None:
    for number in range(200):
        incidents.blocked(block(replace(LINE, line=number)))
        incidents.unhandled(f"kind-{number}")
    incidents.blocked(block(replace(LINE, line=0)))  # again, so it stays
    for number in range(200, 203):
        incidents.blocked(block(replace(LINE, line=number)))
        incidents.unhandled(f"kind-{number}")
    document = incidents.to_dict()
    lines = {row["frame"]["line"] for row in document["blocked"]}
    assert len(lines) == len(document["unhandled"]) == 200
    assert lines == {0, *range(4, 203)}
    assert document["left_out"] == 6


def test_at_most_twenty_victims_are_named(incidents: Incidents) -> None:
    incidents.blocked(block(), [str(number) for number in range(30)], 30)
    example = incidents.to_dict()["blocked"][0]["example"]
    assert (len(example["victims"]), example["victims_total"]) == (20, 30)


def test_the_document_is_json(incidents: Incidents) -> None:
    incidents.blocked(block(), ["a"], 1)
    incidents.unhandled("callback", frame=LINE)
    document = incidents.to_dict()
    assert json.loads(json.dumps(document)) == document


def test_many_threads_may_tell_at_once(incidents: Incidents) -> None:
    def tell() -> None:
        for number in range(500):
            incidents.unhandled("other", coro=str(number % 3))
            incidents.to_dict()

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(row["count"] for row in incidents.to_dict()["unhandled"]) == 2000


def test_a_finalizer_may_tell_in_the_middle_of_it(incidents: Incidents) -> None:
    class Lost:
        def __del__(self) -> None:
            incidents.unhandled("task_destroyed_pending")

    def lose(phase: str, info: dict[str, int]) -> None:
        Lost()

    thresholds = gc.get_threshold()
    gc.callbacks.append(lose)
    gc.set_threshold(1)
    try:
        for number in range(300):
            incidents.unhandled("other", coro=str(number))
            incidents.to_dict()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(lose)
    assert any(row["kind"] == "task_destroyed_pending" for row in incidents.to_dict()["unhandled"])


def test_the_services_own_line_is_not_a_librarys() -> None:
    stack = [Frame(json.__file__, 1, "dumps"), Frame(pytest.__file__, 2, "raises"), LINE]
    assert line_to_name(stack) == LINE
    assert line_to_name(stack[:2]) == stack[0]
    assert line_to_name(()) is None
