"""Sums with unknown summands: which rows tell all others, and what the summands are. Exact, in fractions."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

Name = TypeVar("Name")


def independent(rows: Iterable[tuple[Name, list[int]]]) -> Iterator[tuple[Name, list[int]]]:
    """Those, in their order, that are no sum of multiples of others before; each that is left out is one."""
    reduced: list[list[Fraction]] = []
    for name, row in rows:
        rest = _less(row, reduced)
        if any(rest):
            reduced.append(rest)
            yield name, row
        if len(reduced) == len(row):
            return


def solved(rows: Sequence[Sequence[int]], values: Sequence[int]) -> list[int]:
    """Factors, whole ones, with which each of some independent rows sums up to its value."""
    reduced: list[list[Fraction]] = []
    for row, value in zip(rows, values, strict=True):
        reduced.append(_less([*row, value], reduced))
    factors = [Fraction(0)] * len(rows[0])
    for *parts, total in reversed(reduced):
        known = sum((a * b for a, b in zip(parts, factors, strict=True)), start=Fraction(0))
        factors[_pivot(parts)] = (total - known) / parts[_pivot(parts)]
    assert all(factor.denominator == 1 for factor in factors), factors
    return [int(factor) for factor in factors]


def _less(row: Sequence[int], reduced: Iterable[list[Fraction]]) -> list[Fraction]:
    """Without the part that is a sum of multiples of others."""
    rest = [Fraction(value) for value in row]
    for other in reduced:
        pivot = _pivot(other)
        if rest[pivot]:
            factor = rest[pivot] / other[pivot]
            rest = [a - factor * b for a, b in zip(rest, other, strict=True)]
    return rest


def _pivot(row: Sequence[Fraction]) -> int:
    return next(at for at, value in enumerate(row) if value)
