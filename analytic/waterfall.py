"""From the rule of thumb to the estimate, and to what was measured: change by change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analytic.ledger import COMPONENTS
from analytic.quantity import Basis, total

if TYPE_CHECKING:
    from analytic.estimator import Estimate


@dataclass(frozen=True, kw_only=True)
class Step:
    """Of a waterfall: a level, or the change from one level to the next."""

    label: str
    bytes: int
    """Of a level; or the change, which can be negative."""
    is_level: bool
    basis: Basis
    low_bytes: int | None = None
    """Of a level that is not certain."""
    high_bytes: int | None = None


def waterfall(answer: Estimate, measured_bytes: int | None = None) -> tuple[Step, ...]:
    """The rule's figure, with its quantisation step put right, then component by component to the estimate.

    Args:
        answer: an estimate; its components are summed over its GPUs, as the rule knows only a sum.
        measured_bytes: what a device was seen to be charged for the same request, all GPUs together.
    """
    return tuple(_steps(answer, measured_bytes))


def _steps(answer: Estimate, measured_bytes: int | None) -> Iterator[Step]:
    rule = answer.rule_of_thumb
    yield _level(f"parameters × {rule.bits} bits", rule.quantized_bytes)
    overhead = rule.total_bytes - rule.quantized_bytes
    yield _change(f"flat {rule.overhead_fraction:.0%}".replace("%", " %"), overhead)
    yield _level("rule of thumb", rule.total_bytes)
    yield _change("flat overhead taken back", -overhead)
    for name in COMPONENTS:
        held = total([row.components[name] for row in answer.ledgers])
        less = rule.quantized_bytes if name == "weights" else 0
        label = "weights as stored" if less else name.replace("_", " ")
        yield _change(label, held.bytes - less, held.basis)
    device = total([row.device for row in answer.ledgers])
    yield Step(
        label="estimate",
        bytes=device.bytes,
        is_level=True,
        basis=device.basis,
        low_bytes=device.low_bytes,
        high_bytes=device.high_bytes,
    )
    if measured_bytes is not None:
        yield _change("missed", measured_bytes - device.bytes, "measured")
        yield _level("measured", measured_bytes, "measured")


def _level(label: str, count: int, basis: Basis = "assumed") -> Step:
    return Step(label=label, bytes=count, is_level=True, basis=basis)


def _change(label: str, count: int, basis: Basis = "assumed") -> Step:
    return Step(label=label, bytes=count, is_level=False, basis=basis)
