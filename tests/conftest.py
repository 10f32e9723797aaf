"""What every test may ask for."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own, so that no test sees another one's numbers."""
    return CollectorRegistry()
