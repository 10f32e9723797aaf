"""Checks for the options of the descriptions: each raises with the value and what to do next."""

from __future__ import annotations

import os
import re
from typing import Any

__all__ = [
    "check_choice",
    "check_flag",
    "check_instance",
    "check_names",
    "check_path",
    "check_positive",
    "check_positive_int",
    "check_texts",
    "environment",
]


_plain_path = re.compile(r"[A-Za-z0-9._~/-]+").fullmatch


def environment(name: str) -> str | None:
    """The value of ``AIOHTTP_OBSERVE_<name>``, ``None`` when it is unset or blank."""
    return os.environ.get(f"AIOHTTP_OBSERVE_{name}", "").strip() or None


def check_instance(option: str, value: Any, kinds: type | tuple[type, ...]) -> None:
    """Raise ``TypeError`` unless ``value`` is of one of ``kinds``."""
    if isinstance(value, kinds):
        return
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in wanted)
    raise TypeError(f"{option} takes {names}, got {value!r} ({type(value).__name__})")


def check_flag(option: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is ``True`` or ``False``."""
    check_instance(option, value, bool)


def check_names(option: str, value: Any, example: str) -> None:
    """Raise ``TypeError`` unless ``value`` is a tuple of strings that aren't empty."""
    if not isinstance(value, tuple) or not all(isinstance(name, str) and name for name in value):
        raise TypeError(f"{option} takes a tuple of names such as {example}, got {value!r}")


def check_texts(option: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is a collection of strings, and not one itself."""
    check_instance(option, value, (tuple, list, set, frozenset))
    for text in value:
        check_instance(option, text, str)


def check_positive(option: str, value: Any, unit: str) -> None:
    """Raise unless ``value`` is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{option} takes a number of {unit}, got {value!r} ({type(value).__name__})")
    if not 0 < value < float("inf"):
        raise ValueError(f"{option} takes a number of {unit} above 0, got {value!r}")


def check_positive_int(option: str, value: Any, unit: str) -> None:
    """Raise unless ``value`` is a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{option} takes a whole number of {unit}, got {value!r} ({type(value).__name__})")
    if value <= 0:
        raise ValueError(f"{option} takes a whole number of {unit} above 0, got {value!r}")


def check_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{option} takes one of {', '.join(map(repr, choices))}, got {value!r}")


def check_path(option: str, value: Any) -> None:
    """Raise unless ``value`` is an absolute URL path without a trailing slash or parameters."""
    check_instance(option, value, str)
    if not value.startswith("/"):
        raise ValueError(f"{option} takes an absolute path, got {value!r}: write {'/' + value!r}")
    # A path that has to be percent-escaped is matched by some of aiohttp's routes and not by others.
    if value.endswith("/") or "//" in value or not _plain_path(value):
        raise ValueError(f"{option} takes a plain path such as '/metrics', got {value!r}")
