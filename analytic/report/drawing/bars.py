"""Ledgers as stacked bars against a capacity: the room that is left is what stays empty in the outline."""

from collections.abc import Iterator
from dataclasses import dataclass

from analytic.report.drawing.axis import label_across
from analytic.report.drawing.canvas import LINE, Canvas, width_of, wrapped
from analytic.report.drawing.key import BOUNDS, Item, draw_key, grounds, surface
from analytic.report.drawing.palette import colours_of
from analytic.report.drawing.scale import Scale, Tick, Unit, byte_ticks, unit_of
from analytic.report.parts import Bar, Segment, StackedBars

WIDTH = 560
_LEFT, _RIGHT = 2, WIDTH - 22
_THICK = 22
_GAP = 14


@dataclass(frozen=True, kw_only=True)
class _Plot:
    scale: Scale
    unit: Unit
    ticks: list[Tick]
    colours: dict[str, str]
    """Of a part's label."""


def draw(figure: StackedBars, canvas: Canvas) -> tuple[float, float]:
    """Draw it; returns width and height."""
    plot = _plot(figure)
    y = draw_key(canvas, [*_items(figure, plot.colours)], _LEFT, 0, WIDTH)
    if figure.capacity_bytes is not None:
        y = _draw_capacity(canvas, plot, figure.capacity_bytes, figure.capacity_label, y)
    for place, bar in enumerate(figure.bars):
        y = _draw_label(canvas, bar, y)
        _draw_bar(canvas, plot, bar, place, y)
        if figure.capacity_bytes is not None:
            _draw_outline(canvas, plot.scale(figure.capacity_bytes), place, y)
        _draw_bounds(canvas, plot, bar, place, y)
        y = _draw_amounts(canvas, plot, bar, y + _THICK) + _GAP
    label_across(canvas, plot.scale, plot.ticks, y - 6)
    return WIDTH, y + LINE


def _plot(figure: StackedBars) -> _Plot:
    largest = max((figure.capacity_bytes or 0, *(max(bar.high_bytes, _sum(bar)) for bar in figure.bars)))
    unit = unit_of([largest])
    scale = Scale(low=0, high=largest or 1, start=_LEFT, end=_RIGHT)
    labels = dict.fromkeys(segment.label for bar in figure.bars for segment in bar.segments)
    return _Plot(scale=scale, unit=unit, ticks=byte_ticks(0, scale.high, unit), colours=colours_of(tuple(labels)))


def _sum(bar: Bar) -> int:
    return sum(segment.bytes for segment in bar.segments)


def _items(figure: StackedBars, colours: dict[str, str]) -> Iterator[Item]:
    if len(figure.bars) == 1:
        for segment in figure.bars[0].segments:
            yield surface(
                f"{segment.label} {unit_of([segment.bytes]).named(segment.bytes)}",
                colours[segment.label],
                segment.basis,
            )
    else:
        yield from (surface(label, colour) for label, colour in colours.items())
    yield from grounds(s.basis for bar in figure.bars for s in bar.segments if s.bytes)
    if any(bar.low_bytes < bar.high_bytes for bar in figure.bars):
        yield BOUNDS


def _draw_capacity(canvas: Canvas, plot: _Plot, count: int, label: str, top: float) -> float:
    """Words whose nearer end stands at the capacity; it is marked at every bar."""
    x, words = plot.scale(count), f"{label or 'capacity'} {plot.unit.named(count)}"
    is_right = x > (_LEFT + _RIGHT) / 2
    room = x - _LEFT if is_right else _RIGHT - x
    return canvas.paragraph(x, top + 22, words, room, anchor="end" if is_right else "start", bold=True) - 6


def _draw_label(canvas: Canvas, bar: Bar, top: float) -> float:
    unit = unit_of([_sum(bar)])
    total = unit.named(_sum(bar))
    bounds = f"  {unit.amount(bar.low_bytes)}–{unit.amount(bar.high_bytes)}" if bar.low_bytes < bar.high_bytes else ""
    taken = width_of(total, bold=True) + width_of(bounds + "0") + 16
    lines = wrapped(bar.label, _RIGHT - _LEFT - taken)
    end = top + 13
    for line in lines:
        canvas.text(_LEFT, end, line)
        end += LINE
    last = max(end - LINE, top + 13)
    canvas.text(_RIGHT - (width_of(bounds + "0") if bounds else 0), last, total, anchor="end", bold=True)
    if bounds:
        canvas.text(_RIGHT, last, bounds.strip(), anchor="end", colour="muted")
    return last + 7


def _draw_bar(canvas: Canvas, plot: _Plot, bar: Bar, place: int, top: float) -> None:
    for value, _ in plot.ticks:
        x = plot.scale(value)
        canvas.line([(x, top), (x, top + _THICK)], stroke="rule")
    for part, (segment, x, end) in enumerate(_placed(bar, plot.scale)):
        fill, of = plot.colours[segment.label], f"bar-{place}-{part}"
        canvas.rectangle(x, top, end - x, _THICK, fill=fill, basis=segment.basis, of=of)


def _placed(bar: Bar, scale: Scale) -> Iterator[tuple[Segment, float, float]]:
    """Each part with where it starts and ends."""
    start = 0
    for segment in bar.segments:
        yield segment, scale(start), scale(start + segment.bytes)
        start += segment.bytes


def _draw_outline(canvas: Canvas, x: float, place: int, top: float) -> None:
    canvas.rectangle(_LEFT, top, x - _LEFT, _THICK, stroke="muted")
    canvas.line([(x, top - 4), (x, top + _THICK + 4)], width=2, of=f"capacity-{place}")


def _draw_bounds(canvas: Canvas, plot: _Plot, bar: Bar, place: int, top: float) -> None:
    if bar.low_bytes < bar.high_bytes:
        low, high = plot.scale(bar.low_bytes), plot.scale(bar.high_bytes)
        canvas.bracket(low, high, top + _THICK / 2, of=f"bounds-{place}")


def _draw_amounts(canvas: Canvas, plot: _Plot, bar: Bar, top: float) -> float:
    """What a part is and how much, below it where there is room."""
    for segment, x, end in _placed(bar, plot.scale):
        words = _widest(segment, plot.unit, end - x - 8)
        if words:
            canvas.text((x + end) / 2, top + 14, words, anchor="middle", colour="muted")
    return top + LINE


def _widest(segment: Segment, unit: Unit, room: float) -> str:
    amount = unit.amount(segment.bytes)
    return next((words for words in (f"{segment.label} {amount}", amount) if width_of(words) <= room), "")
