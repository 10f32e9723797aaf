"""A profile ends with whoever asked for it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_observe import Metrics, setup_observability
from tests.service import Service, serving, until

USUAL = sys.getswitchinterval()


def application() -> web.Application:
    app = web.Application()
    setup_observability(app, metrics=Metrics(registry=CollectorRegistry()))
    return app


def one_is_taken() -> bool:
    """Threads take quick turns meanwhile."""
    return sys.getswitchinterval() != USUAL


async def asked(service: Service) -> asyncio.Task[Any]:
    """Somebody who waits for a long one, which has begun."""
    asking = asyncio.create_task(service.get("/_tasks/profile?seconds=60"))
    await until(one_is_taken, "the profile's begin")
    return asking


async def test_another_one_meanwhile_is_a_conflict() -> None:
    async with serving(application()) as service:
        first = await asked(service)
        second = await service.get("/_tasks/profile?seconds=0.1")
        assert second.status == 409
        assert json.loads(second.text) == {"error": "a profile is being taken: wait for its end"}
        assert one_is_taken()
        first.cancel()
        await until(lambda: not one_is_taken(), "the profile's end")


@pytest.mark.parametrize("cancelling", [True, False], ids=["cancelling handlers", "aiohttp's default"])
async def test_one_whose_client_has_left_ends(cancelling: bool) -> None:
    async with serving(application(), handler_cancellation=cancelling) as service:
        (await asked(service)).cancel()
        await until(lambda: not one_is_taken(), "the profile's end")
        assert (await service.get("/_tasks/profile?seconds=0.1")).status == 200


async def test_one_that_is_being_taken_does_not_hold_up_the_services_end() -> None:
    async with aiohttp.ClientSession() as session:
        async with serving(application()) as service:
            asking = await asked(Service(service.port, session))
            begun = time.perf_counter()
        assert time.perf_counter() - begun < 5
        answer = await asking
    assert answer.status == 200
    assert answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/bundles"), ("POST", "/bundles"), ("GET", "/bundles/1"), ("GET", "/profile")],
)
async def test_a_parameter_that_nobody_knows_is_named(method: str, path: str) -> None:
    async with serving(application()) as service:
        answer = await service.request(method, f"/_tasks{path}?second=1")
    assert answer.status == 400
    assert json.loads(answer.text)["error"].startswith("there is no parameter 'second' here")
