"""The soak (tests/soak.py), as short as it can be."""

from __future__ import annotations

import sys

import pytest

from tests.soak import soak


@pytest.mark.skipif(sys.platform != "linux", reason="it reads memory and descriptors from /proc")
def test_a_short_soak_loses_nothing_and_leaves_nothing() -> None:
    assert soak(2000)
