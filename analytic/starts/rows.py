"""Figures of an engine's log laid beside an estimate: rows, and how they are made of printed facts."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from analytic.logs import EngineRun, Fact
from analytic.quantity import Basis, Quantity, bounded


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure of a log, and what the estimate says of it."""

    component: str
    place: str
    """Rank or device, as printed; empty: the engine."""
    line: int
    printed: float
    """Bytes, or a count."""
    printed_low: float
    """Least that is printed so."""
    printed_high: float
    estimated: float
    low: float
    high: float
    basis: Basis
    """Of the estimate."""
    is_count: bool = False

    @property
    def error(self) -> float | None:
        """Of the estimate, relative to what was printed, as far as the printed digits tell; None beside 0 or less."""
        nearest = min(max(self.estimated, self.printed_low), self.printed_high)
        return (self.estimated - nearest) / self.printed if self.printed > 0 else None

    @property
    def is_within(self) -> bool:
        """Whether the bounds hold what was printed."""
        return self.low <= self.printed_high and self.printed_low <= self.high

    @property
    def bounds(self) -> tuple[float, float]:
        """Those of the estimate with what the printed digits leave open: `printed` lies in them if it is within."""
        return max(0.0, self.low - (self.printed_high - self.printed)), self.high + (self.printed - self.printed_low)


def row(component: str, fact: Fact, estimated: Quantity) -> Row:
    """One figure in bytes."""
    return summed(component, (fact,), estimated)


def summed(component: str, facts: tuple[Fact, ...], estimated: Quantity, less: Iterable[Fact] = ()) -> Row:
    """Several figures that the estimate has as one, ``less`` others that are printed within them."""
    away = tuple(less)
    return Row(
        component=component,
        place=facts[0].place,
        line=facts[0].line,
        printed=sum(fact.bytes or 0 for fact in facts) - sum(fact.bytes or 0 for fact in away),
        printed_low=sum(fact.low_bytes or 0 for fact in facts) - sum(fact.high_bytes or 0 for fact in away),
        printed_high=sum(fact.high_bytes or 0 for fact in facts) - sum(fact.low_bytes or 0 for fact in away),
        estimated=estimated.bytes,
        low=estimated.low_bytes,
        high=estimated.high_bytes,
        basis=estimated.basis,
    )


def counted(component: str, fact: Fact, low: float, middle: float, high: float) -> Row:
    """One count, which follows from what is printed by arithmetic alone."""
    count = float(fact.count or 0)
    return Row(
        component=component,
        place=fact.place,
        line=fact.line,
        printed=count,
        printed_low=count,
        printed_high=count,
        estimated=middle,
        low=low,
        high=high,
        basis="exact",
        is_count=True,
    )


def once(facts: Iterable[Fact]) -> Iterator[Fact]:
    """Of each place the first fact, in the most digits that it is printed with; a second model's are left out."""
    found: dict[str, Fact] = {}
    for fact in facts:
        known = found.get(fact.place)
        if known is None or (not fact.contradicts(known) and _spread(fact) < _spread(known)):
            found[fact.place] = fact
    yield from found.values()


def _spread(fact: Fact) -> float:
    return (fact.high_bytes or 0) - (fact.low_bytes or 0)


def at(facts: Iterable[Fact], place: str) -> tuple[Fact, ...]:
    """Those of one place."""
    return tuple(fact for fact in facts if fact.place == place)


def median(run: EngineRun, name: str) -> int | None:
    """Bytes that most ranks print."""
    sizes = sorted(fact.bytes for fact in run.of(name) if fact.bytes is not None)
    return sizes[len(sizes) // 2] if sizes else None


def within(low: int, middle: int, high: int) -> Quantity:
    """A fitted interval, of sizes that no GPU has less than nothing of."""
    low, middle, high = (max(0, size) for size in (low, middle, high))
    return bounded(min(low, middle), middle, max(middle, high), "fitted")


def version_of(run: EngineRun) -> tuple[int, int] | None:
    """The first two numbers of a release; None where it is not printed, or a build that says none (0.1.dev)."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d|\.?dev)", run.version or "")
    return (int(match[1]), int(match[2])) if match else None
