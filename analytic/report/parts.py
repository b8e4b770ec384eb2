"""What a report is made of, however it is shown: words, tables and figures, as data alone."""

from dataclasses import dataclass
from typing import Literal

from analytic.quantity import Basis
from analytic.report import Status as Status
from analytic.report.table import Table as Table
from analytic.waterfall import Step as Step


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Sentences below each other."""

    title: str
    lines: tuple[str, ...]
    kind: Literal["words", "warnings", "code"] = "words"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What every figure says of itself, whatever it draws."""

    name: str
    """Of its file."""
    title: str
    assumptions: str
    """The line of what was assumed: model, precision, engine, workload, GPU."""
    basis: tuple[tuple[str, Basis], ...]
    """What stands on which ground."""
    description: str
    """What it shows, for who cannot see it."""
    data: Table | None = None
    """Its figures as a table; None where the report has that table beside it."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a bar."""

    label: str
    bytes: int
    basis: Basis


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One GPU, or one way to serve: parts on top of each other."""

    label: str
    segments: tuple[Segment, ...]
    low_bytes: int
    """Of the sum."""
    high_bytes: int


@dataclass(frozen=True, kw_only=True)
class StackedBars(Figure):
    """Ledgers against a capacity."""

    bars: tuple[Bar, ...]
    capacity_bytes: int | None
    capacity_label: str = ""


@dataclass(frozen=True, kw_only=True)
class Waterfall(Figure):
    """From one figure to another, change by change."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class HeatMap(Figure):
    """Context × concurrency: what fits."""

    contexts: tuple[int, ...]
    """Tokens of a sequence; a row each."""
    concurrencies: tuple[int, ...]
    cells: tuple[tuple[Status, ...], ...]
    asked: tuple[int, int] | None = None
    """Context and concurrency that were asked for."""


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A cell of a map."""

    status: Status
    text: str


@dataclass(frozen=True, kw_only=True)
class FormatMap(Figure):
    """GPU × format: the best deployment of each."""

    gpus: tuple[str, ...]
    formats: tuple[str, ...]
    spots: tuple[tuple[Spot | None, ...], ...]
    """A row a GPU; None was not possible."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity over time."""

    label: str
    points: tuple[tuple[float, int], ...]
    """Place on the time axis, and bytes."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A phase of a run."""

    label: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Timeline(Figure):
    """Memory over the phases of a run, with its peak."""

    unit: str
    """Of the time axis."""
    lines: tuple[Line, ...]
    spans: tuple[Span, ...]
    peak: tuple[float, int] | None
    peak_label: str
    """What held it."""
    capacity_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured figure and its prediction."""

    series: str
    """Component or total."""
    label: str
    """Of the measurement."""
    measured_bytes: int
    predicted_bytes: int
    low_bytes: int
    high_bytes: int


@dataclass(frozen=True, kw_only=True)
class Predicted(Figure):
    """Predicted against measured, and the residuals."""

    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A constant with its interval."""

    label: str
    value: float
    low: float
    high: float
    text: str
    """As it is read, with its unit."""


@dataclass(frozen=True, kw_only=True)
class Intervals(Figure):
    """Constants of one unit, with their intervals."""

    unit: str
    intervals: tuple[Interval, ...]
    reference: float | None = None
    """Where no effect would be."""


Block = Table | Lines | Figure


@dataclass(frozen=True, kw_only=True)
class Report:
    """An answer, from its verdict down."""

    title: str
    assumptions: str
    headline: str
    """The verdict, in a sentence."""
    status: Status | None
    blocks: tuple[Block, ...]
    command: str | None = None
    """That gives the same answer."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Those among the blocks."""
        return tuple(block for block in self.blocks if isinstance(block, Figure))
