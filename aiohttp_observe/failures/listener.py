"""Who is told of failures: the applications that run."""

from __future__ import annotations

from typing import NamedTuple

from ..exchange import Exchange, Meter
from ..incidents import Incidents

__all__ = ["FailureListener", "concerned"]


class FailureListener(NamedTuple):
    """What one application counts and keeps failures with."""

    meter: Meter
    incidents: Incidents


def concerned(
    exchange: Exchange | None, listeners: list[FailureListener], otherwise: FailureListener
) -> FailureListener:
    """The application that a request belongs to, ``otherwise`` if it belongs to none."""
    if exchange is None:
        return otherwise
    meter = exchange.scope.meter
    return next((each for each in listeners if each.meter is meter), FailureListener(meter, Incidents()))
