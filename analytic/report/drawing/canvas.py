"""A sheet to draw on, measured in pixels from its top left corner; matplotlib draws it."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from analytic.errors import UllageError
from analytic.quantity import Basis
from analytic.report.drawing.palette import HATCHES, light

if TYPE_CHECKING:
    from matplotlib.text import Text

SIZE = 12
"""Height of text, in pixels."""

LINE = 16
"""From one line of text to the next."""

_FONT = "DejaVu Sans"
"""That comes with matplotlib, and is wider than what browsers take for ``system-ui``: what fits in it fits."""

_DENSITY = 144
"""Dots per inch of a PNG; a pixel of a sheet is a 72nd of an inch."""

_BREAKS = " /-_,:"

Anchor = Literal["start", "middle", "end"]
_ALIGNED: dict[Anchor, Literal["left", "center", "right"]] = {"start": "left", "middle": "center", "end": "right"}

MARK = "mark:"
"""Before the name of a drawn thing, in the ids that matplotlib writes."""


@contextmanager
def settings(salt: str) -> Iterator[None]:
    """Within this, matplotlib draws the same bytes whatever the user's own settings are.

    Raises:
        UllageError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UllageError("figures need matplotlib", hint="pip install --force-reinstall ullage") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": salt,
                "path.simplify": False,
                "hatch.linewidth": 1.1,
                "font.family": _FONT,
            }
        )
        yield


class Canvas:
    """What is drawn on it last lies on top. Colours are names of the palette; ``of`` names a thing for who reads it."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self._figure = Figure(dpi=72, frameon=False)
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._drawn = 0

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str | None = None,
        stroke: str | None = None,
        basis: Basis = "exact",
        of: str | None = None,
    ) -> None:
        """A surface, hatched as its basis is, or an outline."""
        from matplotlib.patches import Rectangle

        patch = Rectangle(
            (x, y),
            width,
            height,
            facecolor=light(fill) if fill else "none",
            edgecolor=light(stroke) if stroke else "none",
            hatch=HATCHES[basis],
            hatchcolor=light("paper"),
            **self._shared(of),
        )
        self._axes.add_artist(patch)

    def line(
        self,
        points: Sequence[tuple[float, float]],
        *,
        stroke: str = "ink",
        width: float = 1,
        dashes: tuple[float, ...] = (),
        of: str | None = None,
    ) -> None:
        """A line from point to point; NaN interrupts it."""
        from matplotlib.lines import Line2D

        xs, ys = zip(*points, strict=True)
        style: Any = (0, dashes) if dashes else "solid"
        drawn = Line2D(xs, ys, color=light(stroke), linewidth=width, linestyle=style, **self._shared(of))
        drawn.set_solid_capstyle("butt")
        self._axes.add_artist(drawn)

    def bracket(self, start: float, end: float, y: float, *, of: str | None = None) -> None:
        """The bounds of a figure, legible on any surface: a line with an end at either side."""
        for stroke, width in (("paper", 4), ("ink", 1.5)):
            self.line([(start, y), (end, y)], stroke=stroke, width=width, of=of if stroke == "ink" else None)
            for x in (start, end):
                self.line([(x, y - 4), (x, y + 4)], stroke=stroke, width=width)

    def marks(
        self,
        points: Sequence[tuple[float, float]],
        *,
        shape: str,
        colour: str = "ink",
        size: float = 6,
        filled: bool = True,
        half: bool = False,
        of: str | None = None,
    ) -> None:
        """The same mark at every point; ``shape`` as matplotlib names markers."""
        from matplotlib.lines import Line2D

        xs, ys = zip(*points, strict=True)
        look: dict[str, Any] = {"markersize": size, "markeredgecolor": light(colour), "markeredgewidth": 1}
        look |= {"markerfacecolor": light(colour if filled else "paper"), "markerfacecoloralt": light("paper")}
        look |= {"fillstyle": "left"} if half else {}
        self._axes.add_artist(Line2D(xs, ys, linestyle="none", marker=shape, **look, **self._shared(of)))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: Anchor = "start",
        colour: str = "ink",
        bold: bool = False,
        size: float = SIZE,
    ) -> "Text":
        """Words on one line; ``y`` is that on which letters stand."""
        return self._axes.text(
            x,
            y,
            words,
            horizontalalignment=_ALIGNED[anchor],
            verticalalignment="baseline",
            color=light(colour),
            fontweight="bold" if bold else "normal",
            fontsize=size,
            parse_math=False,
            **self._shared(None),
        )

    def paragraph(
        self,
        x: float,
        y: float,
        words: str,
        width: float,
        *,
        anchor: Anchor = "start",
        colour: str = "ink",
        bold: bool = False,
        size: float = SIZE,
    ) -> float:
        """Words on as many lines as ``width`` asks for, the first at ``y``; returns where the next one would be."""
        leading = LINE * size / SIZE
        for line in wrapped(words, width, bold=bold, size=size):
            self.text(x, y, line, anchor=anchor, colour=colour, bold=bold, size=size)
            y += leading
        return y

    def crop(self, left: float, top: float, right: float, bottom: float) -> None:
        """Make the sheet as large as this."""
        self._figure.set_size_inches((right - left) / 72, (bottom - top) / 72)
        self._axes.set_xlim(left, right)
        self._axes.set_ylim(bottom, top)

    def _shared(self, of: str | None) -> dict[str, Any]:
        self._drawn += 1
        return {"clip_on": False, "zorder": self._drawn, "gid": MARK + of if of else None}

    def svg(self) -> str:
        """As matplotlib writes it."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        FigureCanvasSVG(self._figure)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self._figure.savefig(stream, format="svg", dpi=72, metadata=nothing)
        return stream.getvalue()

    def png(self) -> bytes:
        """Two dots a pixel, on paper."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        FigureCanvasAgg(self._figure)
        stream = io.BytesIO()
        self._figure.savefig(stream, format="png", dpi=_DENSITY, facecolor=light("paper"), metadata={"Software": None})
        return stream.getvalue()


@lru_cache(maxsize=16_384)
def width_of(words: str, *, bold: bool = False, size: float = SIZE) -> float:
    """Pixels that words take on one line."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family=_FONT, weight="bold" if bold else "normal", size=size)
    return TextToPath().get_text_width_height_descent(words, font, ismath=False)[0]


def wrapped(words: str, width: float, *, bold: bool = False, size: float = SIZE) -> list[str]:
    """Lines no wider than ``width``: broken after spaces, hyphens and the like, a longer word anywhere."""

    def fits(line: str) -> bool:
        return width_of(line.strip(), bold=bold, size=size) <= width

    lines = [""]
    for piece in _pieces(words):
        if fits(lines[-1] + piece):
            lines[-1] += piece
        else:
            lines += [piece] if fits(piece) else _chopped(piece, fits)
    return [line.strip() for line in lines if line.strip()]


def _pieces(words: str) -> Iterator[str]:
    ends = [place + 1 for place, letter in enumerate(words) if letter in _BREAKS]
    yield from (words[start:end] for start, end in pairwise(sorted({0, *ends, len(words)})))


def _chopped(piece: str, fits: Callable[[str], bool]) -> list[str]:
    lines = [""]
    for letter in piece:
        if lines[-1] and not fits(lines[-1] + letter):
            lines.append("")
        lines[-1] += letter
    return lines
