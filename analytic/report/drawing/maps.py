"""Cells that fit, perhaps fit or do not: context × concurrency, and GPU × format."""

from collections.abc import Iterator, Sequence
from itertools import product

from analytic.report.drawing.canvas import LINE, Canvas, width_of, wrapped
from analytic.report.drawing.key import Item, draw_key, mark, status_mark, statuses
from analytic.report.parts import FormatMap, HeatMap, Spot, Status

_HEIGHT = 26
_NARROW = 40
_LEAST = 400
"""Width of a sheet, however few cells there are."""

_ROWS = "tokens"
"""What the rows of a heat map count."""

Cells = Sequence[Sequence[Status | None]]


def draw_heat(figure: HeatMap, canvas: Canvas) -> tuple[float, float]:
    """Draw it; returns width and height."""
    rows = [f"{count:,}" for count in figure.contexts]
    columns = [f"{count:,}" for count in figure.concurrencies]
    left = max(map(width_of, (*rows, _ROWS))) + 14
    wide = max(_NARROW, max(map(width_of, columns)) + 12)
    width = max(left + wide * len(columns) + 4, _LEAST)
    y = draw_key(canvas, [*statuses(cell for row in figure.cells for cell in row), *_asked(figure)], 2, 0, width - 4)
    y = canvas.paragraph(left, y + 14, "sequences at once", width - left, colour="muted")
    canvas.text(left - 8, y, _ROWS, anchor="end", colour="muted")
    for place, words in enumerate(columns):
        canvas.text(left + wide * (place + 0.5), y, words, anchor="middle")
    top = y + 8
    _draw_cells(canvas, figure.cells, left, top, wide)
    _draw_border(canvas, figure.cells, left, top, wide)
    for place, words in enumerate(rows):
        canvas.text(left - 8, top + _HEIGHT * (place + 0.5) + 4, words, anchor="end")
    if figure.asked is not None and _is_on(figure):
        row, column = figure.contexts.index(figure.asked[0]), figure.concurrencies.index(figure.asked[1])
        canvas.rectangle(
            left + wide * column + 3, top + _HEIGHT * row + 3, wide - 6, _HEIGHT - 6, stroke="ink", of="asked"
        )
    return width, top + _HEIGHT * len(rows) + 4


def _is_on(figure: HeatMap) -> bool:
    asked = figure.asked
    return asked is not None and asked[0] in figure.contexts and asked[1] in figure.concurrencies


def _asked(figure: HeatMap) -> Iterator[Item]:
    if figure.asked is not None:
        tokens, sequences = figure.asked
        where = "" if _is_on(figure) else ", not on this map"
        yield mark(
            f"asked for: {tokens:,} tokens × {sequences:,}{where}",
            lambda canvas, x, y: canvas.rectangle(x - 6, y - 5, 12, 10, stroke="ink"),
        )


def draw_formats(figure: FormatMap, canvas: Canvas) -> tuple[float, float]:
    """Draw it; returns width and height."""
    left = min(max(map(width_of, figure.gpus)) + 14, 260)
    wides = [_column(figure, place) for place in range(len(figure.formats))]
    width = max(left + sum(wides) + 4, _LEAST)
    spots = [spot for row in figure.spots for spot in row if spot is not None]
    y = draw_key(canvas, statuses(spot.status for spot in spots), 2, 0, width - 4)
    heads = [wrapped(name, wide - 10) for name, wide in zip(figure.formats, wides, strict=True)]
    y += 14 + LINE * max(map(len, heads))
    x = left
    for lines, wide in zip(heads, wides, strict=True):
        for place, words in enumerate(reversed(lines)):
            canvas.text(x + 5, y - LINE * (place + 1), words)
        x += wide
    for row, (name, across) in enumerate(zip(figure.gpus, figure.spots, strict=True)):
        y = _draw_gpu(canvas, row, wrapped(name, left - 14), across, left, y - 8, wides) + 8
    return width, y - 4


def _column(figure: FormatMap, place: int) -> float:
    texts = [row[place].text for row in figure.spots if row[place] is not None]  # type: ignore[union-attr]
    words = max((width_of(text) + 30 for text in texts), default=0)
    parts = max(map(width_of, figure.formats[place].replace("-", " ").split()), default=0) + 20
    return max(_NARROW, words, min(parts, 140))


def _draw_gpu(
    canvas: Canvas,
    row: int,
    names: list[str],
    spots: tuple[Spot | None, ...],
    left: float,
    top: float,
    wides: list[float],
) -> float:
    tall = max(_HEIGHT, LINE * len(names) + 10)
    for place, words in enumerate(names):
        canvas.text(2, top + tall / 2 + 4 - LINE * (len(names) - 1) / 2 + LINE * place, words)
    x = left
    for column, (spot, wide) in enumerate(zip(spots, wides, strict=True)):
        if spot is not None:
            canvas.rectangle(x, top, wide - 2, tall - 2, fill=spot.status, of=f"spot-{row}-{column}-{spot.status}")
            status_mark(spot.status, canvas, x + 12, top + tall / 2 - 1)
            canvas.text(x + 22, top + tall / 2 + 3, spot.text)
        x += wide
    return top + tall


def _draw_cells(canvas: Canvas, cells: Cells, left: float, top: float, wide: float) -> None:
    for row, column in product(range(len(cells)), range(len(cells[0]))):
        status = cells[row][column]
        assert status is not None
        x, y = left + wide * column, top + _HEIGHT * row
        canvas.rectangle(x, y, wide, _HEIGHT, fill=status, of=f"cell-{row}-{column}-{status}")
        status_mark(status, canvas, x + wide / 2, y + _HEIGHT / 2)


def _draw_border(canvas: Canvas, cells: Cells, left: float, top: float, wide: float) -> None:
    """A line wherever two neighbours differ."""
    nan = (float("nan"), float("nan"))
    points = [
        point
        for (x, y), (to_x, to_y) in _edges(cells)
        for point in ((left + wide * x, top + _HEIGHT * y), (left + wide * to_x, top + _HEIGHT * to_y), nan)
    ]
    if points:
        canvas.line(points, width=2, of="border")


def _edges(cells: Cells) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for row, column in product(range(len(cells)), range(len(cells[0]))):
        if column and cells[row][column - 1] != cells[row][column]:
            yield (column, row), (column, row + 1)
        if row and cells[row - 1][column] != cells[row][column]:
            yield (column, row), (column + 1, row)
