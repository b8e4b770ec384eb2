"""A table, whatever shows it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as they are read."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    """Columns from the left that hold words; the others hold numbers. -1: all hold words."""
    note: str = ""
