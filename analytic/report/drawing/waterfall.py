"""From one figure to another, a row a change."""

from collections.abc import Iterator
from dataclasses import dataclass

from analytic.report.drawing.axis import draw_across
from analytic.report.drawing.canvas import LINE, SIZE, Canvas, width_of, wrapped
from analytic.report.drawing.key import BOUNDS, Item, draw_key, grounds, surface
from analytic.report.drawing.scale import Scale, Unit, byte_ticks, unit_of
from analytic.report.parts import Step, Waterfall

WIDTH = 560
_LABELS = 190
_THICK = 16


@dataclass(frozen=True, kw_only=True)
class _Row:
    step: Step
    start: int
    end: int

    @property
    def colour(self) -> str:
        return "blue" if self.step.is_level else "vermilion" if self.step.bytes > 0 else "green"


def draw(figure: Waterfall, canvas: Canvas) -> tuple[float, float]:
    """Draw it; returns width and height."""
    rows = list(_rows(figure.steps))
    reached = [0, *(row.start for row in rows), *(row.end for row in rows)]
    reached += [bound for step in figure.steps for bound in (step.low_bytes, step.high_bytes) if bound is not None]
    unit = unit_of(reached)
    amounts = [_amount(row.step, unit) for row in rows]
    zone = WIDTH - max((width_of(words, bold=True) for words in amounts), default=0) - 16
    scale = Scale(low=min(reached), high=max(max(reached), min(reached) + 1), start=_LABELS + 16, end=zone)
    ticks = byte_ticks(scale.low, scale.high, unit)
    top = draw_key(canvas, _items(rows), 2, 0, WIDTH - 4) + 4
    labels = [wrapped(row.step.label, _LABELS, bold=row.step.is_level) for row in rows]
    heights = [max(_THICK, LINE * len(lines)) + 10 for lines in labels]
    bottom = draw_across(canvas, scale, ticks, top, top + sum(heights))
    y = top
    for place, (row, lines, height, words) in enumerate(zip(rows, labels, heights, amounts, strict=True)):
        middle = y + height / 2
        _draw_bar(canvas, row, place, scale, middle)
        _draw_words(canvas, row, lines, words, middle)
        if place + 1 < len(rows):
            x, after = scale(row.end), y + height + heights[place + 1] / 2
            canvas.line([(x, middle + _THICK / 2), (x, after - _THICK / 2)], stroke="muted", width=0.8)
        y += height
    return WIDTH, bottom + 4


def _rows(steps: tuple[Step, ...]) -> Iterator[_Row]:
    level = 0
    for step in steps:
        start, level = (0, step.bytes) if step.is_level else (level, level + step.bytes)
        yield _Row(step=step, start=start, end=level)


def _amount(step: Step, unit: Unit) -> str:
    return f"{'' if step.is_level or step.bytes <= 0 else '+'}{unit.amount(step.bytes)}"


def _items(rows: list[_Row]) -> list[Item]:
    names = {"blue": "a level", "vermilion": "more", "green": "less"}
    found = {row.colour for row in rows if row.step.bytes or row.step.is_level}
    kinds = [surface(words, colour) for colour, words in names.items() if colour in found]
    bounds = [BOUNDS] if any(row.step.low_bytes is not None for row in rows) else []
    return [*kinds, *grounds(row.step.basis for row in rows), *bounds]


def _draw_bar(canvas: Canvas, row: _Row, place: int, scale: Scale, middle: float) -> None:
    left, right = sorted((scale(row.start), scale(row.end)))
    top, step = middle - _THICK / 2, row.step
    canvas.rectangle(left, top, right - left, _THICK, fill=row.colour, basis=step.basis, of=f"step-{place}")
    if step.low_bytes is not None and step.high_bytes is not None:
        canvas.bracket(scale(step.low_bytes), scale(step.high_bytes), middle, of=f"bounds-{place}")


def _draw_words(canvas: Canvas, row: _Row, lines: list[str], amount: str, middle: float) -> None:
    y = middle - LINE * len(lines) / 2 + SIZE
    for line in lines:
        canvas.text(2, y, line, bold=row.step.is_level)
        y += LINE
    canvas.text(WIDTH - 2, middle + 4, amount, anchor="end", bold=row.step.is_level)
