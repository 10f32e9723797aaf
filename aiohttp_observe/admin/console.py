"""What the console shows, as far as the pages need to know."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

__all__ = ["Console"]


class Console(Protocol):
    """Where the documents come from; all of it may be called on any loop and in any thread.

    Filters are those of `take_snapshot`; each raises ``TypeError`` or ``ValueError`` for one
    that can't be.  Coroutines give JSON text, unless said otherwise.
    """

    async def tasks(self, **filters: Any) -> str: ...

    async def picture(self, *, allow_cancel: bool, **filters: Any) -> str: ...

    async def groups(self, **filters: Any) -> str: ...

    async def tree(self) -> str: ...

    async def tree_text(self) -> str:
        """The tree of tasks, indented, as text."""
        ...

    async def resources(self) -> str: ...

    def bundles(self) -> list[dict[str, Any]]:
        """The bundles that are kept: id, time, reason, size."""
        ...

    def bundle(self, number: int) -> str | None: ...

    async def make_bundle(self, reason: str) -> int | None:
        """Keep everything there is to know now; returns its id, ``None`` if it is too large."""
        ...

    async def is_forgotten(self, number: int) -> bool | None:
        """Whether nobody is left to wake the task with this id; goes through all objects."""
        ...

    def incidents(self) -> dict[str, Any]: ...

    async def requests(self) -> str: ...

    def request(self, request_id: str) -> dict[str, Any] | None: ...

    def history(self) -> list[dict[str, Any]]: ...

    async def profile(self, seconds: float) -> str:
        """Collapsed stacks of the loop's thread, as text."""
        ...

    async def matching(self, **filters: Any) -> list[asyncio.Task[Any]]:
        """The live tasks that pass the filters."""
        ...

    def cancel(self, tasks: list[asyncio.Task[Any]]) -> list[int]:
        """Cancel them on their own loop; returns their ids."""
        ...
