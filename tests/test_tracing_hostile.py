"""Whatever strangers send as context, nothing is logged of it, and what is good of it is taken."""

from __future__ import annotations

import logging
from time import thread_time

import pytest
from aiohttp import web
from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator

from aiohttp_observe.tracing.server import _well_formed
from tests.spans import Spans, traced

PRINTABLE = [chr(number) for number in range(33, 127)]


async def received(*values: str) -> list[dict[str, object]]:
    """The baggage of a request with such headers."""
    seen: list[dict[str, object]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(dict(baggage.get_all()))
        return web.Response()

    async with traced(Spans(), handler) as (service, _):
        await service.get("/", headers=[("baggage", value) for value in values])
    return seen


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("a," * 200, {}),
        ("tenant=acme," + "a," * 200, {"tenant": "acme"}),
        (
            "tenant = acme ; secret ; ttl = 5 , plan=a%20b=c",
            {"tenant": "acme;secret;ttl=5", "plan": "a b=c"},
        ),
        ("tenant=two words,plan=gold", {"plan": "gold"}),
        ("=;=;,;==%00%0d%0aX-Injected: 1", {}),
        (",".join(f"k{number}=v" for number in range(300)), {f"k{number}": "v" for number in range(180)}),
        ("a=" + "b" * 5000 + ",tenant=acme", {"tenant": "acme"}),
        ('tenant="acme"', {}),
        (",,", {}),
    ],
)
async def test_baggage_is_taken_as_far_as_it_is_some_and_nothing_logged(
    value: str, taken: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "opentelemetry"):
        assert await received(value) == [taken]
    assert [record.getMessage()[:80] for record in caplog.records if "opentelemetry" in record.name] == []


@pytest.mark.parametrize("form", ["k{}y=v", "key={}", "key=v{}v", "key=v;p{}p", "key=v;p=q{}q", "key=v;{}"])
def test_what_is_some_is_what_the_propagator_takes(form: str, caplog: pytest.LogCaptureFixture) -> None:
    for sign in [*PRINTABLE, " ", "\t", "", "==", ";;", "\x7f"]:
        member = form.format(sign)
        if "," not in member:
            caplog.clear()
            ours = W3CBaggagePropagator().extract({"baggage": _well_formed(member)})
            assert not caplog.records, member
            taken = W3CBaggagePropagator().extract({"baggage": member})
            if not caplog.records:  # older ones dislike some blanks
                assert baggage.get_all(ours) == baggage.get_all(taken), member


def test_more_than_a_header_holds_is_none() -> None:
    """As aiohttp takes longer ones where a service tells it to."""
    assert _well_formed("tenant=acme," * 800) == ""


@pytest.mark.parametrize("unit", ["a", "a ", "a=", "; c= ", "a=b;", "a=b; ", " \t", "a=b ", ",", "a=b;c=d;"])
def test_no_baggage_takes_long_to_read(unit: str) -> None:
    begun = thread_time()
    for text in ((unit * 8192)[:8192], f'a={(unit * 4000)[:4000]}"'):
        _well_formed(text)
    assert thread_time() - begun < 0.2
