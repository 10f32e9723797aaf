"""What every test may ask for."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from aiohttp.web_app import _cached_build_middleware
from prometheus_client import CollectorRegistry


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own, so that no test sees another one's numbers."""
    return CollectorRegistry()


@pytest.fixture(autouse=True)
def _no_application_outlives_its_test() -> Iterator[None]:
    """aiohttp keeps the last thousand pairs of a handler and its applications.

    That is all that two thousand tests have made, for each garbage collection to walk.
    """
    yield
    _cached_build_middleware.cache_clear()


@pytest.fixture
def short_collections() -> Iterator[None]:
    """Garbage is collected of the test alone: to walk the whole suite's objects blocks a loop itself."""
    gc.freeze()
    yield
    gc.unfreeze()
