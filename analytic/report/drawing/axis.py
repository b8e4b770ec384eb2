"""Hairlines at round values, and what they stand for."""

from collections.abc import Iterable, Sequence

from analytic.report.drawing.canvas import LINE, Canvas, width_of
from analytic.report.drawing.scale import Scale, Tick


def draw_across(canvas: Canvas, scale: Scale, ticks: Sequence[Tick], top: float, bottom: float) -> float:
    """Upright hairlines with labels below ``bottom``; returns where the labels end."""
    for value, _ in ticks:
        canvas.line([(scale(value), top), (scale(value), bottom)], stroke="rule")
    label_across(canvas, scale, ticks, bottom)
    return bottom + LINE


def label_across(canvas: Canvas, scale: Scale, ticks: Iterable[Tick], bottom: float) -> None:
    """Labels below ``bottom``, the first ones first, without those for which there is then no room."""
    taken: list[tuple[float, float]] = []
    for value, words in ticks:
        half = width_of(words) / 2
        x = max(scale(value), half + 2)
        if all(abs(x - other) > half + others + 8 for other, others in taken):
            canvas.text(x, bottom + 13, words, anchor="middle", colour="muted")
            taken.append((x, half))


def draw_up(canvas: Canvas, scale: Scale, ticks: Sequence[Tick], left: float, right: float) -> None:
    """Level hairlines with labels left of ``left``, from the bottom up, without those for which there is no room."""
    taken = float("inf")
    for value, words in ticks:
        y = scale(value)
        canvas.line([(left, y), (right, y)], stroke="rule")
        if y < taken - LINE:
            canvas.text(left - 6, y + 4, words, anchor="end", colour="muted")
            taken = y
