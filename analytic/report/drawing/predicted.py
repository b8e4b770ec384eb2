"""Predicted against measured, and the errors of each series in a row of its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from analytic.report.drawing.axis import draw_across, draw_up
from analytic.report.drawing.canvas import LINE, Canvas, wrapped
from analytic.report.drawing.key import draw_key, mark
from analytic.report.drawing.palette import colours_of
from analytic.report.drawing.scale import Scale, decades, number, signed_decades, unit_of
from analytic.report.parts import Point, Predicted

WIDTH = 720
_SQUARE = 290
_LEFT = 62
_ROWS = 376
_NAMES = 116
_SHAPES = "osD^vPX*<>"
_SCATTER = 9
"""Pixels by which points of a row are moved apart, up and down."""


@dataclass(frozen=True, kw_only=True)
class _Look:
    colour: str
    shape: str


def draw(figure: Predicted, canvas: Canvas) -> tuple[float, float]:
    """Draw it; returns width and height."""
    series = tuple(dict.fromkeys(point.series for point in figure.points))
    colours = colours_of(series)
    looks = {s: _Look(colour=colours[s], shape=_SHAPES[place % len(_SHAPES)]) for place, s in enumerate(series)}
    top = draw_key(canvas, [_OUTSIDE], 2, 0, WIDTH) if any(map(_is_outside, figure.points)) else 0
    top += LINE + 6
    bottom = max(_draw_square(canvas, figure.points, looks, top), _draw_rows(canvas, figure.points, looks, top))
    without = sum(not point.measured_bytes for point in figure.points)
    if without:
        words = f"{without:,} measured as 0: on the left edge, without a relative error."
        bottom = canvas.paragraph(2, bottom + 16, words, WIDTH - 4, colour="muted") - 8
    return WIDTH, bottom + 4


def _is_outside(point: Point) -> bool:
    return not point.low_bytes <= point.measured_bytes <= point.high_bytes


def _ring(canvas: Canvas, x: float, y: float) -> None:
    canvas.marks([(x, y)], shape="o", size=5, filled=False)


_OUTSIDE = mark("hollow: measured outside the predicted bounds", _ring)


def _draw_square(canvas: Canvas, points: tuple[Point, ...], looks: dict[str, _Look], top: float) -> float:
    counts = [count for p in points for count in (p.measured_bytes, p.predicted_bytes, p.low_bytes, p.high_bytes)]
    unit = unit_of(counts)
    low, high = _reach(counts)
    across = Scale(low=low, high=high, start=_LEFT, end=_LEFT + _SQUARE, warp=math.log10)
    up = Scale(low=low, high=high, start=top + _SQUARE, end=top, warp=math.log10)
    ticks = decades(low, high, unit)
    canvas.text(2, top - 10, f"predicted, {unit.name}", bold=True)
    draw_up(canvas, up, ticks, _LEFT, _LEFT + _SQUARE)
    bottom = draw_across(canvas, across, ticks, top, top + _SQUARE)
    canvas.line([(across(low), up(low)), (across(high), up(high))], stroke="muted", width=0.8)
    for place, point in enumerate(points):
        look = looks[point.series]
        x = across(max(point.measured_bytes, low))
        ends = [(x, up(max(count, low))) for count in (point.low_bytes, point.high_bytes)]
        if point.low_bytes < point.high_bytes:
            canvas.line(ends, stroke=look.colour, width=0.8)
        y = up(max(point.predicted_bytes, low))
        _draw_point(canvas, x, y, point, look, f"point-{place}")
    return (
        canvas.paragraph(_LEFT + _SQUARE, bottom + 14, f"measured, {unit.name}", _SQUARE, anchor="end", bold=True) - 8
    )


def _reach(counts: list[int]) -> tuple[float, float]:
    """The decades in which they lie; what is 0 stands on the lower edge."""
    positive = [count for count in counts if count > 0] or [1]
    return min(positive) / 1.3, max(positive) * 1.3


def _draw_point(canvas: Canvas, x: float, y: float, point: Point, look: _Look, of: str) -> None:
    canvas.marks([(x, y)], shape=look.shape, colour=look.colour, size=5, filled=not _is_outside(point), of=of)


def _draw_rows(canvas: Canvas, points: tuple[Point, ...], looks: dict[str, _Look], top: float) -> float:
    errors = [(place, _error(point)) for place, point in enumerate(points) if point.measured_bytes]
    reach = max((abs(error) for _, error in errors), default=1) * 1.1
    scale = Scale(low=-max(reach, 1), high=max(reach, 1), start=_ROWS + _NAMES + 24, end=WIDTH - 18, warp=math.asinh)
    names = {s: wrapped(s, _NAMES) for s in looks}
    tops = list(_tops(names, top))
    ticks = [(v, number(v)) for v in signed_decades(scale.high)]
    canvas.text(WIDTH - 2, top - 10, "(predicted − measured) / measured, %", anchor="end", bold=True)
    draw_across(canvas, scale, ticks, top, tops[-1])
    middles = {s: (a + b) / 2 for s, a, b in zip(looks, tops, tops[1:], strict=False)}
    for s, y in middles.items():
        canvas.marks([(_ROWS + 6, y)], shape=looks[s].shape, colour=looks[s].colour, size=7)
        for place, words in enumerate(names[s]):
            canvas.text(_ROWS + 18, y + 4 - LINE * (len(names[s]) - 1) / 2 + LINE * place, words)
    for place, error in errors:
        point = points[place]
        aside = (place * 7 % 11 / 5 - 1) * _SCATTER
        _draw_point(canvas, scale(error), middles[point.series] + aside, point, looks[point.series], f"error-{place}")
    return tops[-1] + LINE


def _tops(names: dict[str, list[str]], top: float) -> Iterator[float]:
    yield top
    spare = max((_SQUARE - sum(_tall(lines) for lines in names.values())) / max(len(names), 1), 0)
    for lines in names.values():
        top += _tall(lines) + min(spare, 20)
        yield top


def _tall(lines: list[str]) -> float:
    return max(LINE * len(lines), 2 * _SCATTER) + 8


def _error(point: Point) -> float:
    return 100 * (point.predicted_bytes - point.measured_bytes) / point.measured_bytes
