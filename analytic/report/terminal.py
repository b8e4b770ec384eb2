"""Tables on a terminal: aligned where they fit, else a line a cell. Words may fold; a number is never cut."""

import re
from collections.abc import Iterator, Sequence

from rich import table as rich_table
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from analytic.report.table import Table

_GAPS = (2, 1)
"""Columns of a terminal between two of the table: one where the words would fold with two."""

_NARROWEST = 12
"""Columns of a terminal that words are folded to at most."""


_NUMBER = re.compile(r"(?<!\S)[-+]?\d[\d.,]*(?!\S)")


def print_table(table: Table, console: Console, *, styles: Sequence[str] = ()) -> None:
    """Print ``table``; ``styles`` are of its rows, from the first."""
    if table.title:
        console.print(Text(table.title, style="dim"))
    longest, least = _longest(table), _least(table)
    gap = next((gap for gap in _GAPS if sum(longest) + gap * len(longest) <= console.width), _GAPS[-1])
    spare = console.width - sum(least) - gap * len(least)
    console.print(
        _records(table, styles) if spare < 0 else _grid(table, _shared(longest, least, spare), gap=gap, styles=styles)
    )
    if table.note:
        console.print(Text(table.note, style="dim"))


def _words(table: Table) -> int:
    return len(table.columns) if table.words < 0 else table.words


def _longest(table: Table) -> list[int]:
    return [max(map(cell_len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]


def _least(table: Table) -> list[int]:
    """Words fold, but for the numbers in them; of numbers only the heading does."""
    least = []
    for place, (heading, *cells) in enumerate(zip(table.columns, *table.rows, strict=True)):
        if place < _words(table):
            numbers = (len(number) for cell in cells for number in _NUMBER.findall(cell))
            least.append(max(min(max(map(cell_len, (heading, *cells))), _NARROWEST), *numbers, 0))
        else:
            least.append(max(map(cell_len, (*heading.split(), *cells)), default=0))
    return least


def _shared(longest: list[int], least: list[int], spare: int) -> list[int]:
    """``spare`` columns of a terminal given to those that want more than the ``least``, as evenly as they want it."""
    widths = list(least)
    wanting = sorted(range(len(widths)), key=lambda place: longest[place] - least[place])
    for done, place in enumerate(wanting):
        given = min(longest[place] - least[place], spare // (len(wanting) - done))
        widths[place] += given
        spare -= given
    return widths


def _grid(table: Table, widths: list[int], *, gap: int, styles: Sequence[str]) -> rich_table.Table:
    grid = rich_table.Table(box=None, padding=(0, gap, 0, 0))
    for place, (heading, width) in enumerate(zip(table.columns, widths, strict=True)):
        grid.add_column(
            Text(heading), justify="left" if place < _words(table) else "right", width=width, overflow="fold"
        )
    for row, style in _styled(table, styles):
        grid.add_row(*map(Text, row), style=style)
    return grid


def _records(table: Table, styles: Sequence[str]) -> Group:
    """Each row as its first cell and, below it, the others by their headings."""
    lines: list[RenderableType] = []
    for row, style in _styled(table, styles):
        lines.append(Text(row[0], style=f"bold {style}".strip()))
        told = [f"{heading}: {cell}" for heading, cell in zip(table.columns[1:], row[1:], strict=True) if cell]
        lines += [Padding(Text(line, style=style), (0, 0, 0, 2)) for line in told]
    return Group(*lines)


def _styled(table: Table, styles: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    for place, row in enumerate(table.rows):
        yield row, styles[place] if place < len(styles) else ""
