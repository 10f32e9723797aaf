"""Who is told of failures: the applications that run."""

from __future__ import annotations

from typing import NamedTuple

from ..exchange import Exchange, Meter
from ..incidents import Incidents

__all__ = ["Listener", "concerned"]


class Listener(NamedTuple):
    """What one application counts and keeps failures with."""

    meter: Meter
    incidents: Incidents


def concerned(exchange: Exchange | None, listeners: list[Listener], otherwise: Listener) -> Listener:
    """The application that a request belongs to, ``otherwise`` if it belongs to none."""
    if exchange is None:
        return otherwise
    meter = exchange.scope.meter
    return next((each for each in listeners if each.meter is meter), Listener(meter, Incidents()))
