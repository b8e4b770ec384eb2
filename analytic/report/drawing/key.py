"""What colours, hatchings and marks of a figure mean, in lines of samples and words."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from analytic.quantity import BASES, Basis
from analytic.report.drawing.canvas import LINE, Canvas, width_of, wrapped
from analytic.report.drawing.palette import HATCHES
from analytic.report.parts import Status

_SAMPLE = 14
_GAP = 18

Sample = Callable[[Canvas, float, float], None]
"""Draws about the middle of a line of text that starts at (x, y)."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A sample and what it means."""

    words: str
    sample: Sample


def surface(words: str, fill: str, basis: Basis = "exact") -> Item:
    """A patch of colour."""
    return Item(words=words, sample=lambda canvas, x, y: canvas.rectangle(x, y - 10, 12, 12, fill=fill, basis=basis))


def mark(words: str, draw: Callable[[Canvas, float, float], None]) -> Item:
    """A mark, drawn about its middle."""
    return Item(words=words, sample=lambda canvas, x, y: draw(canvas, x + 6, y - 4))


BOUNDS = Item(words="low to high", sample=lambda canvas, x, y: canvas.bracket(x, x + 12, y - 4))


def grounds(bases: Iterable[Basis]) -> list[Item]:
    """The hatchings that occur; none where all is solid."""
    found = set(bases)
    firm = [basis for basis in BASES if basis in found and HATCHES[basis] is None]
    hatched = [basis for basis in BASES if basis in found and HATCHES[basis] is not None]
    if not hatched:
        return []
    solid = [surface(_either(firm), "muted")] if firm else []
    return [*solid, *(surface(basis, "muted", basis) for basis in hatched)]


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def status_mark(status: Status, canvas: Canvas, x: float, y: float) -> None:
    """A full circle, a half one, or a dot."""
    looks = {"fits": {"size": 9.0}, "tight": {"size": 9.0, "half": True}, "no": {"size": 2.5}}
    canvas.marks([(x, y)], shape="o", **looks[status])  # type: ignore[arg-type]


STATUS_WORDS: dict[Status, str] = {
    "fits": "fits",
    "tight": "within the bounds of error",
    "no": "does not fit",
}


def statuses(found: Iterable[Status]) -> list[Item]:
    """The marks of those that occur."""
    occurring = set(found)
    return [mark(words, partial(status_mark, name)) for name, words in STATUS_WORDS.items() if name in occurring]


def draw_key(canvas: Canvas, items: Sequence[Item], left: float, top: float, width: float) -> float:
    """Samples and words from left to right, on as many lines as it takes; returns where it ends."""
    x, y = left, top
    for item in items:
        lines = wrapped(item.words, width - _SAMPLE - 4)
        taken = _SAMPLE + 4 + max(map(width_of, lines), default=0)
        if x > left and x + taken > left + width:
            x, y = left, y + LINE + 2
        item.sample(canvas, x, y + 12)
        for line in lines[:-1]:
            canvas.text(x + _SAMPLE + 4, y + 12, line)
            y += LINE
        canvas.text(x + _SAMPLE + 4, y + 12, lines[-1] if lines else "")
        x += taken + _GAP
    return y + LINE + 2 if items else top
