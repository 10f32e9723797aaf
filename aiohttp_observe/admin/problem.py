"""How the console says that it doesn't do what is asked."""

from __future__ import annotations

from typing import Any

from aiohttp import web

__all__ = ["problem"]


def problem(status: int, text: str, **more: Any) -> web.Response:
    """A refusal as JSON: ``error`` says why, ``more`` is what a program may want to know."""
    return web.json_response({"error": text, **more}, status=status)
