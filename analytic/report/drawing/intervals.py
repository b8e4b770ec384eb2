"""Constants of one unit with their intervals, a row each."""

from analytic.report.drawing.axis import draw_across
from analytic.report.drawing.canvas import LINE, SIZE, Canvas, width_of, wrapped
from analytic.report.drawing.scale import Scale, even_values, number
from analytic.report.parts import Intervals

WIDTH = 560
_LABELS = 180
_TEXTS = 160


def draw(figure: Intervals, canvas: Canvas) -> tuple[float, float]:
    """Draw it; returns width and height."""
    rows = figure.intervals
    reached = [bound for row in rows for bound in (row.low, row.value, row.high)]
    reached += [] if figure.reference is None else [figure.reference]
    texts = [wrapped(row.text, _TEXTS) for row in rows]
    taken = max(width_of(line) for lines in texts for line in lines)
    labels = [wrapped(row.label, _LABELS) for row in rows]
    left = max(width_of(line) for lines in labels for line in lines) + 24
    scale = Scale(low=min(reached), high=max(reached), start=left, end=WIDTH - taken - 18)
    heights = [LINE * max(len(a), len(b)) + 10 for a, b in zip(labels, texts, strict=True)]
    ticks = [(value, number(value)) for value in even_values(scale.low, scale.high)]
    bottom = draw_across(canvas, scale, ticks, 4, 4 + sum(heights))
    canvas.text(2, bottom - 3, figure.unit, colour="muted")
    if figure.reference is not None:
        x = scale(figure.reference)
        canvas.line([(x, 4), (x, bottom - LINE)], stroke="muted", dashes=(4, 3), of="reference")
    y = 4.0
    for place, (row, height) in enumerate(zip(rows, heights, strict=True)):
        middle = y + height / 2
        canvas.bracket(scale(row.low), scale(row.high), middle, of=f"interval-{place}")
        canvas.marks([(scale(row.value), middle)], shape="o", colour="blue", size=7, of=f"value-{place}")
        _draw_words(canvas, labels[place], 2, middle)
        _draw_words(canvas, texts[place], WIDTH - taken - 4, middle)
        y += height
    return WIDTH, bottom + 4


def _draw_words(canvas: Canvas, lines: list[str], x: float, middle: float) -> None:
    y = middle - LINE * len(lines) / 2 + SIZE
    for line in lines:
        canvas.text(x, y, line)
        y += LINE
