"""What a benchmark prints and writes: a titled table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """Rows of a name and figures under their columns; ``note`` says what was measured, and how."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""

    def text(self) -> str:
        """For a terminal: the first column to the left, figures to the right."""
        lines = [self.columns, *(tuple(_shown(value) for value in row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        shown = [
            "  ".join(
                value.ljust(width) if column == 0 else value.rjust(width)
                for column, (value, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, "-" * len(self.title), *shown, *([self.note] if self.note else [])])

    def plain(self) -> dict[str, Any]:
        """For JSON: each row with its columns' names."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "note": self.note, "rows": rows}


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)
