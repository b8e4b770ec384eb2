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


def waterfall(
    answer: Estimate, seen_bytes: int | None = None, *, label: str = "measured", basis: Basis = "measured"
) -> tuple[Step, ...]:
    """The rule's figure, with its quantisation step put right, then component by component to the estimate.

    Args:
        answer: an estimate; its components are summed over its GPUs, as the rule knows only a sum.
        seen_bytes: what a device, real or simulated, was charged for the same request, all GPUs together.
        label: how that was seen.
        basis: on which ground it stands.
    """
    steps = (*_from_the_rule(answer), *_components(answer), _estimate(answer))
    if seen_bytes is None:
        return steps
    return (*steps, _change("missed", seen_bytes - steps[-1].bytes, basis), _level(label, seen_bytes, basis))


def _from_the_rule(answer: Estimate) -> Iterator[Step]:
    rule = answer.rule_of_thumb
    overhead = rule.total_bytes - rule.quantized_bytes
    yield _level(f"parameters × {rule.bits} bits", rule.quantized_bytes)
    yield _change(f"flat {rule.overhead_fraction:.0%}".replace("%", " %"), overhead)
    yield _level("rule of thumb", rule.total_bytes)
    yield _change("flat overhead taken back", -overhead)


def _components(answer: Estimate) -> Iterator[Step]:
    for name in COMPONENTS:
        held = total([row.components[name] for row in answer.ledgers])
        if name == "weights":
            yield _change("weights as stored", held.bytes - answer.rule_of_thumb.quantized_bytes, held.basis)
        else:
            yield _change(name.replace("_", " "), held.bytes, held.basis)


def _estimate(answer: Estimate) -> Step:
    device = total([row.device for row in answer.ledgers])
    return Step(
        label="estimate",
        bytes=device.bytes,
        is_level=True,
        basis=device.basis,
        low_bytes=device.low_bytes,
        high_bytes=device.high_bytes,
    )


def _level(label: str, count: int, basis: Basis = "assumed") -> Step:
    return Step(label=label, bytes=count, is_level=True, basis=basis)


def _change(label: str, count: int, basis: Basis = "assumed") -> Step:
    return Step(label=label, bytes=count, is_level=False, basis=basis)
