"""The admin pages: who may look, and what they see.

``access``  the rule, and logging in
``routes``  ``/_tasks`` and below
``static``  the page
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from ..options import check_instance, check_path, environment
from .access import Gate
from .routes import Routes, Snapshots

__all__ = ["Admin", "Gate", "Snapshots"]


@dataclass(frozen=True, kw_only=True)
class Admin:
    """Where the task console is, and who may look.

    ``path``   default ``/_tasks``
    ``token``  what to present as ``Authorization: Bearer`` or at the login page; default
               ``AIOHTTP_OBSERVE_ADMIN_TOKEN``.  Without one only direct peers on the loopback
               interface may look: see `Gate`.
    """

    path: str = "/_tasks"
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_path("Admin(path=...)", self.path)
        check_instance("Admin(token=...)", self.token, (str, type(None)))
        if self.token is not None and not self.token.strip():
            raise ValueError("Admin(token=...) takes a secret, got an empty one: leave it out or set one")

    def install(self, app: web.Application, snapshots: Snapshots) -> Gate:
        """Add the routes to ``app``; returns the rule, for others who serve something as private."""
        gate = Gate(self.token or environment("ADMIN_TOKEN"))
        Routes(self.path, gate, snapshots).add_to(app)
        return gate
