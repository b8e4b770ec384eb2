"""Figures on paper and on pages: what a figure holds is placed, nothing is computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from analytic.quantity import BASES
from analytic.report.drawing import bars, intervals, maps, predicted, timeline, waterfall
from analytic.report.drawing.canvas import LINE, Canvas, settings, wrapped
from analytic.report.drawing.markup import inline, standalone
from analytic.report.parts import (
    Figure,
    FormatMap,
    HeatMap,
    Intervals,
    Predicted,
    StackedBars,
    Timeline,
    Waterfall,
)
from analytic.writing import write_bytes

_MARGIN = 16
_TITLE = 15
_TITLE_LINE = 20

_HANDS: dict[type[Figure], Callable[[Any, Canvas], tuple[float, float]]] = {
    StackedBars: bars.draw,
    Waterfall: waterfall.draw,
    HeatMap: maps.draw_heat,
    FormatMap: maps.draw_formats,
    Timeline: timeline.draw,
    Predicted: predicted.draw,
    Intervals: intervals.draw,
}
"""What draws a kind of figure, from (0, 0) on; it returns width and height."""


def svg(figure: Figure) -> str:
    """A figure as SVG for a page, without its title and its lines of words, which the page has beside it.

    Raises:
        UllageError: matplotlib is not installed.
    """
    with settings(figure.name):
        canvas = Canvas()
        width, height = _HANDS[type(figure)](figure, canvas)
        canvas.crop(0, 0, width, height)
        return inline(canvas.svg(), figure)


def save(figure: Figure, folder: Path) -> tuple[Path, ...]:
    """Write NAME.svg and NAME.png, with title, assumptions and basis, into ``folder``, which is made.

    Raises:
        UllageError: matplotlib is not installed, or a file cannot be written.
    """
    with settings(figure.name):
        canvas = Canvas()
        width, height = _HANDS[type(figure)](figure, canvas)
        _draw_words(canvas, figure, width, height)
        files = {"svg": standalone(canvas.svg(), figure).encode(), "png": canvas.png()}
    for suffix, content in files.items():
        write_bytes(folder / f"{figure.name}.{suffix}", content, make_folder=True)
    return tuple(folder / f"{figure.name}.{suffix}" for suffix in files)


def _draw_words(canvas: Canvas, figure: Figure, width: float, height: float) -> None:
    """Title and assumptions above the figure, its basis below."""
    room = width - 4
    title = wrapped(figure.title, room, bold=True, size=_TITLE)
    assumptions = wrapped(figure.assumptions, room)
    top = -LINE * len(assumptions) - _TITLE_LINE * len(title) - 8
    y = top + _TITLE
    for words in title:
        canvas.text(2, y, words, bold=True, size=_TITLE)
        y += _TITLE_LINE
    for words in assumptions:
        canvas.text(2, y, words, colour="muted")
        y += LINE
    bottom = canvas.paragraph(2, height + 18, basis_line(figure), room, colour="muted") - LINE
    canvas.crop(-_MARGIN, top - _MARGIN, width + _MARGIN, bottom + _MARGIN)


def basis_line(figure: Figure) -> str:
    """What stands on which ground, from the firmest on: ``exact: weights; assumed: workspace``."""
    grounds = {basis: [what for what, ground in figure.basis if ground == basis] for basis in BASES}
    return "; ".join(f"{basis}: {', '.join(what)}" for basis, what in grounds.items() if what)
