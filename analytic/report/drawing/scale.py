"""Where values stand on paper, and where an axis says what they are."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from analytic.quantity import GiB

_TOGETHER = "\u00a0"
"""A space at which no line is broken."""

Tick = tuple[float, str]
"""A value, and how it is read."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    """Pixel of ``low``."""
    end: float
    """Pixel of ``high``."""
    warp: Callable[[float], float] = float
    """What is drawn evenly: the value, its logarithm, …"""

    def __call__(self, value: float) -> float:
        """The pixel of ``value``."""
        low, high = self.warp(self.low), self.warp(self.high)
        return self.start + (self.warp(value) - low) / ((high - low) or 1) * (self.end - self.start)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Of bytes on an axis."""

    name: str
    bytes: int
    digits: int
    """After the point."""

    def amount(self, count: int) -> str:
        """``count`` bytes as a number of this unit."""
        return f"{count / self.bytes:,.{self.digits}f}".replace("-", "−")

    def named(self, count: int) -> str:
        """``count`` bytes with the unit."""
        return f"{self.amount(count)}{_TOGETHER}{self.name}"


_UNITS = (
    Unit(name="GiB", bytes=GiB, digits=2),
    Unit(name="MiB", bytes=2**20, digits=2),
    Unit(name="KiB", bytes=2**10, digits=1),
)
_BYTES = Unit(name="bytes", bytes=1, digits=0)


def unit_of(counts: Iterable[int]) -> Unit:
    """The one in which the largest of ``counts`` bytes has two digits to read: GiB down to a tenth of one."""
    largest = max((abs(count) for count in counts), default=0)
    return next((unit for unit in _UNITS if largest >= unit.bytes / 10), _BYTES)


def number(value: float) -> str:
    """A tick's label: as few digits as tell it."""
    return f"{value:,.10g}".replace("-", "−")


def even_values(low: float, high: float, most: int = 6) -> list[float]:
    """Round values from ``low`` to ``high``, at most about ``most``: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or 1
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * most >= span * 0.999)
    return [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def byte_ticks(low: float, high: float, unit: Unit) -> list[Tick]:
    """Even ticks from ``low`` to ``high`` bytes; the first names the unit."""
    values = even_values(low / unit.bytes, high / unit.bytes)
    return [(v * unit.bytes, number(v) + f"{_TOGETHER}{unit.name}" * (place == 0)) for place, v in enumerate(values)]


def decades(low: float, high: float, unit: Unit) -> list[Tick]:
    """Powers of ten of the unit from ``low`` to ``high`` bytes; even ticks where there is not even a factor of ten."""
    first, last = (math.log10(bound / unit.bytes) for bound in (low, high))
    factors = (1,) if last - first > 2 else (1, 2, 5)
    powers = range(math.floor(first), math.ceil(last) + 1)
    values = [v for power in powers for factor in factors if low <= (v := factor * 10.0**power) * unit.bytes <= high]
    if last - first < 1:
        values = even_values(low / unit.bytes, high / unit.bytes, most=4)
    return [(value * unit.bytes, number(value)) for value in values]


def signed_decades(reach: float) -> list[float]:
    """0, then ± powers of ten from the largest within ``reach`` down to 1."""
    powers = [10.0**power for power in reversed(range(math.floor(math.log10(max(reach, 1))) + 1))]
    return [0.0, *(sign * power for power in powers for sign in (-1, 1))]
