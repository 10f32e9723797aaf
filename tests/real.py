"""The real programs that tests run beside the package: found, or the test says what it lacks."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

__all__ = ["require"]

_PLACES = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"))
"""The environment's own scripts first: gunicorn must be the one of this Python.  nginx is in sbin."""


def require(component: str) -> Path:
    """The executable ``component``: ``prometheus``, ``promtool``, ``chromium``, ``nginx``, ``gunicorn``,
    ``openssl``.

    Without it the test is skipped, or fails where ``AIOHTTP_OBSERVE_REQUIRE_REAL=1`` promises
    that it is there, as ``.ci/run`` does.
    """
    found = shutil.which(component, path=_PLACES)
    if found is not None:
        return Path(found)
    reason = f"{component} is not installed: see CONTRIBUTING.rst"
    if os.environ.get("AIOHTTP_OBSERVE_REQUIRE_REAL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
