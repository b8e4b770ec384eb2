"""Tables on a terminal: aligned where they fit, else a line a cell. Words may fold; a number is never cut."""

from collections.abc import Iterator, Sequence

from rich import table as rich_table
from rich.cells import cell_len
from rich.console import Console, Group
from rich.text import Text

from analytic.report.parts import Table

_GAP = 2
"""Columns of a terminal between two of the table."""

_NARROWEST = 12
"""Columns of a terminal that words are folded to at most."""


def print_table(table: Table, console: Console, *, styles: Sequence[str] = ()) -> None:
    """Print ``table``; ``styles`` are of its rows, from the first."""
    if table.title:
        console.print(Text(table.title, style="dim"))
    widths = _widths(table, console.width)
    console.print(_records(table, styles) if widths is None else _grid(table, widths, styles))
    if table.note:
        console.print(Text(table.note, style="dim"))


def _words(table: Table) -> int:
    return len(table.columns) if table.words < 0 else table.words


def _widths(table: Table, room: int) -> list[int] | None:
    """Of each column; None where the numbers and folded words need more than ``room``."""
    longest = [max(map(cell_len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
    widths = [_least(place, table) for place in range(len(longest))]
    spare = room - sum(widths) - _GAP * len(widths)
    if spare < 0:
        return None
    wanting = sorted(range(len(widths)), key=lambda place: longest[place] - widths[place])
    for left, place in enumerate(wanting):
        given = min(longest[place] - widths[place], spare // (len(wanting) - left))
        widths[place] += given
        spare -= given
    return widths


def _least(place: int, table: Table) -> int:
    """Words fold; of numbers only the heading does."""
    heading = table.columns[place]
    cells = [row[place] for row in table.rows]
    if place < _words(table):
        return min(max(map(cell_len, (heading, *cells))), _NARROWEST)
    return max(map(cell_len, (*heading.split(), *cells)), default=0)


def _grid(table: Table, widths: list[int], styles: Sequence[str]) -> rich_table.Table:
    grid = rich_table.Table(box=None, padding=(0, _GAP, 0, 0))
    for place, (heading, width) in enumerate(zip(table.columns, widths, strict=True)):
        grid.add_column(
            Text(heading), justify="left" if place < _words(table) else "right", width=width, overflow="fold"
        )
    for row, style in _styled(table, styles):
        grid.add_row(*map(Text, row), style=style)
    return grid


def _records(table: Table, styles: Sequence[str]) -> Group:
    """Each row as its first cell and, below it, the others by their headings."""
    lines: list[Text] = []
    for row, style in _styled(table, styles):
        lines.append(Text(row[0], style=f"bold {style}".strip()))
        told = zip(table.columns[1:], row[1:], strict=True)
        lines += [Text(f"  {heading}: {cell}".replace("  : ", "  "), style=style) for heading, cell in told if cell]
    return Group(*lines)


def _styled(table: Table, styles: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    for place, row in enumerate(table.rows):
        yield row, styles[place] if place < len(styles) else ""
