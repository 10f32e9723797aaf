"""The manual: autodoc reads the docstrings, so what is documented is what the code says."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from sphinx.application import Sphinx

project = "aiohttp_observe"
author = "the aiohttp_observe contributors"
release = metadata.version("aiohttp-observe")
extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
default_role = "code"
html_theme = "furo"
html_title = f"aiohttp_observe {release}"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"

ENTRY = re.compile(r"(``.+?``(?:, ``.+?``)*) {2,}(\S.*)")
"""A line of the aligned lists that docstrings use: names, at least two spaces, the meaning."""


def as_definitions(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make a definition list of each aligned list of a docstring; a real table stays one."""
    if any(line.startswith("===") for line in lines):
        return
    inside = False
    made: list[str] = []
    for line in lines:
        entry = ENTRY.fullmatch(line)
        inside = bool(entry) or (inside and line.startswith("  "))
        if entry:
            made += ["", entry[1], f"    {entry[2]}"]
        else:
            made.append(f"    {line.strip()}" if inside else line)
    lines[:] = made


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", as_definitions)
