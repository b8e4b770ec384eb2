"""Memory over the phases of a run. A line keeps its height until the next point: memory changes in steps."""

from collections.abc import Iterator
from dataclasses import dataclass

from analytic.report.drawing.axis import draw_across, draw_up
from analytic.report.drawing.canvas import LINE, Canvas, width_of, wrapped
from analytic.report.drawing.key import draw_key, mark
from analytic.report.drawing.scale import Scale, Unit, byte_ticks, even_values, number, unit_of
from analytic.report.parts import Line, Span, Timeline

WIDTH = 560
_LABELS = 136
_TALL = 200
_LOOKS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("blue", ()),
    ("vermilion", (5, 2)),
    ("green", (2, 1.5)),
    ("purple", (7, 2, 2, 2)),
    ("muted", (1, 1)),
)
_SHARE = 0.25
"""Of the capacity: where the memory stays below this, the capacity is told in words, not drawn."""


@dataclass(frozen=True, kw_only=True)
class _Label:
    words: tuple[str, ...]
    y: float
    """Where its line ends."""
    colour: str


@dataclass(frozen=True, kw_only=True)
class _Plot:
    across: Scale
    up: Scale
    unit: Unit
    """Of ``up``."""


def draw(figure: Timeline, canvas: Canvas) -> tuple[float, float]:
    """Draw it; returns width and height."""
    capacity, largest = figure.capacity_bytes, max(count for _, count in _points(figure))
    has_capacity = capacity is not None and largest >= capacity * _SHARE
    highest = max(largest, capacity if capacity is not None and has_capacity else 1)
    unit = unit_of([highest])
    ticks = byte_ticks(0, highest, unit)
    left, right = max(width_of(words) for _, words in ticks) + 10, WIDTH - _LABELS
    across = _across(figure, left, right)
    top = _draw_phases(canvas, figure.spans, across)
    plot = _Plot(across=across, up=Scale(low=0, high=highest, start=top + _TALL, end=top), unit=unit)
    draw_up(canvas, plot.up, ticks, left, right)
    y = _draw_time(canvas, figure.unit, across, top + _TALL)
    labels = list(_draw_lines(canvas, figure, plot))
    if capacity is not None and has_capacity:
        labels.append(_draw_capacity(canvas, capacity, plot))
    y = max(y, _draw_labels(canvas, labels, right + 10, top)) + 6
    y = _draw_peak(canvas, figure, plot, y)
    if capacity is not None and not has_capacity:
        y = canvas.paragraph(2, y + 12, f"capacity {unit_of([capacity]).named(capacity)}: far above", WIDTH - 4) - 12
    return WIDTH, y + 4


def _points(figure: Timeline) -> list[tuple[float, int]]:
    return [point for line in figure.lines for point in line.points] + ([figure.peak] if figure.peak else [])


def _across(figure: Timeline, left: float, right: float) -> Scale:
    times = [time for time, _ in _points(figure)] + [edge for span in figure.spans for edge in (span.start, span.end)]
    return Scale(low=min(times), high=max(times), start=left, end=right)


def _draw_time(canvas: Canvas, unit: str, across: Scale, bottom: float) -> float:
    ticks = [(value, number(value)) for value in even_values(across.low, across.high)]
    end = draw_across(canvas, across, ticks, bottom, bottom + 3)
    return max(end, canvas.paragraph(across.end + 32, bottom + 16, unit, _LABELS - 34, colour="muted") - 12)


def _draw_capacity(canvas: Canvas, capacity: int, plot: _Plot) -> _Label:
    y = plot.up(capacity)
    canvas.line([(plot.across.start, y), (plot.across.end, y)], dashes=(6, 3), of="capacity")
    return _label(f"capacity {plot.unit.named(capacity)}", y, "ink")


def _draw_phases(canvas: Canvas, spans: tuple[Span, ...], across: Scale) -> float:
    """Bands with their names above, as many rows of them as keep names apart; returns where the plot begins."""
    rows: list[float] = []
    placed = []
    for span in spans:
        wide = width_of(span.label)
        x = min(max((across(span.start) + across(span.end) - wide) / 2, across.start), across.end - wide)
        row = next((row for row, taken in enumerate(rows) if x > taken + 10), len(rows))
        rows[row : row + 1] = [x + wide]
        placed.append((x, row, span))
    top = LINE * max(len(rows), 1) + 8
    for place, (x, row, span) in enumerate(placed):
        start, end = across(span.start), across(span.end)
        fill = "band" if place % 2 == 0 else None
        canvas.rectangle(start, top, end - start, _TALL, fill=fill, of=f"phase-{place}")
        canvas.line([(start, top - 3), (start, top + _TALL)], stroke="rule")
        canvas.text(x, LINE * (row + 1) - 2, span.label, colour="muted")
    return top


def _draw_lines(canvas: Canvas, figure: Timeline, plot: _Plot) -> Iterator[_Label]:
    for place, line in enumerate(figure.lines):
        colour, dashes = _LOOKS[place % len(_LOOKS)]
        path = list(_steps(line, plot))
        canvas.line(path, stroke=colour, width=1.6, dashes=dashes, of=f"line-{place}")
        yield _label(line.label, path[-1][1], colour)


def _steps(line: Line, plot: _Plot) -> Iterator[tuple[float, float]]:
    """Corners on paper: of all points within half a pixel the first, lowest, highest and last."""
    before: float | None = None
    columns: dict[float, list[float]] = {}
    for time, count in line.points:
        columns.setdefault(round(2 * plot.across(time)) / 2, []).append(plot.up(count))
    for x, heights in columns.items():
        if before is not None:
            yield x, before
        shown = heights if len(heights) < 4 else [heights[0], min(heights), max(heights), heights[-1]]
        yield from ((x, height) for height in shown)
        before = heights[-1]


def _label(words: str, y: float, colour: str) -> _Label:
    return _Label(words=tuple(wrapped(words, _LABELS - 32)), y=y, colour=colour)


def _draw_labels(canvas: Canvas, labels: list[_Label], left: float, top: float) -> float:
    """Each beside the end of its line, moved where another one is; returns where the last one ends."""
    y = top - LINE
    for label in sorted(labels, key=lambda label: label.y):
        y = max(y, min(label.y - LINE / 2, top + _TALL - LINE * len(label.words)))
        canvas.line([(left - 10, label.y), (left + 6, y + LINE / 2), (left + 14, y + LINE / 2)], stroke=label.colour)
        for words in label.words:
            canvas.text(left + 18, y + 12, words)
            y += LINE
    return y


def _draw_peak(canvas: Canvas, figure: Timeline, plot: _Plot, top: float) -> float:
    if figure.peak is None:
        return top
    time, count = figure.peak

    def ring(sheet: Canvas, x: float, y: float) -> None:
        sheet.marks([(x, y)], shape="o", size=8, filled=False)

    canvas.marks([(plot.across(time), plot.up(count))], shape="o", size=8, filled=False, of="peak")
    when = f"{number(round(time, 3))} {figure.unit}"
    return draw_key(
        canvas, [mark(f"peak {plot.unit.named(count)} at {when}: {figure.peak_label}", ring)], 2, top, WIDTH - 4
    )
