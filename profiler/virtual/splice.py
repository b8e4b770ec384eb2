"""Traces of one request from several prompts: a length at which steps change is reached without the steps before it."""

from collections.abc import Callable
from dataclasses import dataclass

from profiler.virtual.recorder import Birth, Trace
from profiler.virtual.steps import IrregularStepsError, births_before, extrapolate, shape_after

AGREED = 4
"""The forward pass from a later prompt that an extrapolated step has to equal: steps before it are regular."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traced:
    """A generation."""

    trace: Trace
    starts: list[int]
    """Events before each forward pass, and at the end."""
    cached: list[int]
    """Births of the cache's storages at the end."""


def splice(early: Traced, late: Traced, *, extra: int) -> Traced:
    """``early`` with ``extra`` more steps in place of its last one, then ``late`` after its pass number `AGREED`.

    That pass sees as many tokens as the last of ``early``'s, and has to allocate the same.

    Raises:
        IrregularStepsError: it does not, or the traces differ by more than their lengths.
    """
    longer = _lengthened(early, extra)
    born = births_before(late.trace, late.starts)
    width = born[AGREED + 1] - born[AGREED]
    here = len(longer.trace.births) - width
    _require_same_beginning(early, late, born[1])
    if _sizes(longer.trace.births[here:]) != _sizes(late.trace.births[born[AGREED] : born[AGREED + 1]]):
        raise IrregularStepsError("a step allocates otherwise than from a longer prompt")
    renumbered = _renumbering(born, here - born[AGREED])
    cut = late.starts[AGREED + 1]
    if longer.trace.alive(len(longer.trace.events)) != set(map(renumbered, late.trace.alive(cut))):
        raise IrregularStepsError("a step leaves other tensors than from a longer prompt")
    moved = len(longer.trace.events) - cut
    events = (renumbered(event) if event >= 0 else ~renumbered(~event) for event in late.trace.events[cut:])
    return Traced(
        trace=Trace(longer.trace.births + late.trace.births[born[AGREED + 1] :], [*longer.trace.events, *events]),
        starts=[*longer.starts[:-1], *(start + moved for start in late.starts[AGREED + 1 :])],
        cached=[renumbered(birth) for birth in late.cached],
    )


def _lengthened(traced: Traced, extra: int) -> Traced:
    """Its steps but the last, and ``extra`` that follow."""
    decode = extrapolate(traced.trace, traced.starts, extra=extra)
    step, width = decode.regular, decode.regular.width
    first = step.first_birth + width
    births, events = traced.trace.births[:first], traced.trace.events[: decode.begin]
    starts = traced.starts[:-2]
    earlier = births[-2 * width : -width]
    models = births[-width:]
    for number in range(1, extra + 1):
        starts.append(len(events))
        base = len(births)
        births.extend(map(_grown, earlier, models, step.sizes_after(number), [number] * width))
        for operation in step.operations:
            if operation >= 0:
                events.append(base + operation)
                continue
            age, birth = divmod(~operation, width)
            events.append(~(base - age * width + birth if age < step.ages else ~operation - width * step.ages))
    return Traced(trace=Trace(births, events), starts=[*starts, len(events)], cached=traced.cached)


def _grown(before: Birth, model: Birth, size: int, steps: int) -> Birth:
    """``model`` so many steps later."""
    if size == model.bytes:
        return model
    return model._replace(bytes=size, shape=shape_after(before, model, steps))


def _require_same_beginning(early: Traced, late: Traced, births: int) -> None:
    """Whatever lives on from the prefill has the same number in both."""
    if births_before(early.trace, early.starts)[1] != births or any(
        (one.op, one.module, one.dtype, one.purpose) != (other.op, other.module, other.dtype, other.purpose)
        for one, other in zip(early.trace.births[:births], late.trace.births[:births], strict=True)
    ):
        raise IrregularStepsError("a longer prompt is served otherwise")


def _renumbering(born: list[int], shift: int) -> Callable[[int], int]:
    def renumbered(birth: int) -> int:
        if birth < born[1]:
            return birth
        if birth < born[AGREED - 2]:
            raise IrregularStepsError("a tensor of an early step lives on")
        return birth + shift

    return renumbered


def _sizes(births: list[Birth]) -> list[int]:
    return [birth.bytes for birth in births]
