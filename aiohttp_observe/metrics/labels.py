"""Label values, whose number is bounded whatever a client sends."""

from __future__ import annotations

from ..exchange import OTHER
from ..texts import title, valid

__all__ = ["MOST_HOSTS", "MOST_NAMES", "MOST_ROUTES", "Bounded", "bounded_outcome", "label"]

# Until an application says otherwise.
MOST_ROUTES = 500
MOST_HOSTS = 100
MOST_NAMES = 200


class Bounded:
    """Lets ``ours``, and the first ``limit`` different others, through; every later one becomes ``_other``.

    So does one that is new and not to be admitted.  One that isn't valid Unicode would cost the
    scraper the whole page.
    """

    def __init__(self, limit: int, *ours: str) -> None:
        self.limit = limit
        self._ours = len(ours)
        self._known = {value: value for value in ours}

    def __call__(self, value: str, *, admit: bool = True) -> str:
        known = self._known.get(value)
        if known is not None:
            return known
        if not admit or len(self._known) - self._ours >= self.limit:
            return OTHER
        return self._known.setdefault(value, valid(title(value)))


def _bounded_status(status: int | str | None) -> int | str | None:
    """Statuses as HTTP has them (RFC 9110, 15): aiohttp sends any number, and a client may choose it."""
    return status if status is None or (isinstance(status, int) and 100 <= status <= 599) else OTHER


def bounded_outcome(
    status: int | str | None, error: str | None, bounded_error: Bounded
) -> tuple[int | str | None, str | None]:
    """Status and error: where the error is no more than the status, it is bounded with it."""
    code = _bounded_status(status)
    if error is None:
        return code, None
    return code, str(code) if error == str(status) else bounded_error(error)


def label(value: object) -> str:
    return "" if value is None else str(value)
