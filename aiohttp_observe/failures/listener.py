"""Who is told of failures: the applications that run."""

from __future__ import annotations

from typing import NamedTuple

from ..exchange import Exchange, Meter, Scope
from ..incidents import Incidents

__all__ = ["FailureListener", "concerned"]


class FailureListener(NamedTuple):
    """What one application counts and keeps failures with."""

    scope: Scope
    incidents: Incidents

    @property
    def meter(self) -> Meter:
        return self.scope.meter


def concerned(
    exchange: Exchange | None, listeners: list[FailureListener], otherwise: FailureListener
) -> FailureListener:
    """The application that a request belongs to, ``otherwise`` if it belongs to none."""
    if exchange is None:
        return otherwise
    scope = exchange.scope
    return next((each for each in listeners if each.scope is scope), FailureListener(scope, Incidents()))
