"""Decode steps are alike: the same allocations and frees in the same order, of sizes that are affine in the length."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise

from profiler.virtual.recorder import Birth, Sized, Trace

REGULAR = 2
"""Steps whose sizes give a law; the last step, which ends otherwise, proves it."""

TRACED_TOKENS = REGULAR + 3
"""Tokens to generate for them: the prefill's, a first step that frees the prefill's tensors, and a last one."""

_AGES = 3
"""Steps that a birth may outlive, its own included."""

_LAYER = re.compile(r"\.(\d+)(?:\.|$)")


class IrregularStepsError(Exception):
    """Decode steps differ by more than their sizes."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The operations of one layer within a step, or those between layers."""

    begin: int
    """Its place among the step's operations; ``end`` likewise."""
    end: int
    first_birth: int
    births: int
    kind: int
    """Units of one kind have the same operations and sizes."""
    outgrown: tuple[tuple[int, int], ...]
    """(age, birth) of the deaths of other steps' births."""


@dataclass(frozen=True)
class Step:
    """A decode step as a pattern, births numbered from its beginning.

    An operation ``n`` is birth ``n``; ``~n`` the death of birth ``n % width`` of the step ``n // width`` before this
    one; and where ``n`` is ``width * ages`` or more, that of birth ``n - width * ages`` of the trace.
    """

    operations: tuple[int, ...]
    width: int
    """Births of a regular step."""
    ages: int
    """Steps that a birth may outlive, this one included."""
    sizes: tuple[int, ...]
    """Bytes of its births …"""
    slopes: tuple[int, ...]
    """… and what each step adds to them."""
    first_birth: int
    """Number in the trace of its first birth."""
    laws: tuple[tuple[int, Sized], ...] = ()
    """Births whose sizes are not affine."""

    def sizes_after(self, steps: int) -> list[int]:
        """Bytes of the births of the step that comes so many steps later."""
        sizes = [size + steps * slope for size, slope in zip(self.sizes, self.slopes, strict=True)]
        for birth, law in self.laws:
            sizes[birth] = law.after(steps)
        return sizes


@dataclass(frozen=True)
class Decode:
    """Steps that stand between the traced ones and the last."""

    begin: int
    """Events of the trace before the last step."""
    regular: Step
    last: Step
    extra: int
    """How many."""
    modules: list[str] = field(repr=False)
    """Of the regular step's births."""

    def bytes_at_end(self, birth: int, trace: Trace) -> int:
        """Bytes, when all steps have run, of what is birth number ``birth`` where only some were traced."""
        size, offset = trace.births[birth].bytes, birth - self.regular.first_birth
        is_regular = offset >= -self.regular.width
        return size + self.extra * self.regular.slopes[offset % self.regular.width] if is_regular else size

    @cached_property
    def alike(self) -> tuple[tuple[Unit, ...], ...]:
        """The regular step, layer by layer, those together that are alike and follow each other."""
        return tuple(tuple(units) for _, units in groupby(_units(self.regular, self.modules), key=lambda u: u.kind))


def extrapolate(trace: Trace, starts: list[int], *, extra: int) -> Decode:
    """The law of the decode steps of ``trace``.

    Args:
        trace: of a generation of `TRACED_TOKENS`, or more.
        starts: events before each forward pass, and at the end.
        extra: steps that were not traced.

    Raises:
        IrregularStepsError: the traced steps obey no such law.
    """
    born = births_before(trace, starts)
    last = len(starts) - 2
    regular = range(last - REGULAR, last)
    width = born[last] - born[last - 1]
    if any(born[i + 1] - born[i] != width for i in regular):
        raise IrregularStepsError("the number of allocations changes")
    ages = _AGES
    patterns = [_pattern(trace, starts, born, i, width, ages) for i in (*regular, last)]
    if any(pattern != patterns[0] for pattern in patterns[1:-1]):
        raise IrregularStepsError("the order of allocations changes")
    births = [trace.births[born[i] : born[i + 1]] for i in (*regular, last)]
    if len(births[-1]) > width:
        raise IrregularStepsError("the last step allocates more")
    slopes = tuple(_slope(*alike) for alike in zip(*births[:-1], strict=True))
    if not all(map(_follows, births[-2], births[-1], slopes)):
        raise IrregularStepsError("the last step allocates otherwise")
    steps = [
        Step(
            operations=patterns[at],
            width=width,
            ages=ages,
            sizes=tuple(birth.bytes for birth in births[at]),
            slopes=slopes[: len(births[at])],
            first_birth=born[last + 1 + at],
            laws=tuple(_laws(births[-3], births[at])),
        )
        for at in (-2, -1)
    ]
    modules = [birth.module for birth in births[-2]]
    return Decode(begin=starts[last], regular=steps[0], last=steps[1], extra=extra, modules=modules)


def _slope(*births: Birth) -> int:
    """What every step adds to a birth that has no law of its own."""
    slope = 0 if _has_law(births[0], births[1]) else births[1].bytes - births[0].bytes
    if not all(_follows(before, after, slope) for before, after in pairwise(births)):
        raise IrregularStepsError("sizes are not affine in the length")
    return slope


def _follows(before: Birth, after: Birth, slope: int) -> bool:
    if before.law is not None and _has_law(before, after):
        return after.bytes == before.law.after(1)
    return after.bytes == before.bytes + slope


def _laws(before: list[Birth], births: list[Birth]) -> Iterator[tuple[int, Sized]]:
    """The laws of the births that do grow: keys within a full sliding window do not."""
    for number, (earlier, birth) in enumerate(zip(before, births, strict=False)):
        if birth.law is not None and _has_law(earlier, birth):
            yield number, birth.law


def _has_law(before: Birth, after: Birth) -> bool:
    return before.law is not None and after.law is not None and before.law.key != after.law.key


def shape_after(before: Birth, last: Birth, steps: int) -> tuple[int, ...]:
    """The shape of ``last`` so many steps later, where ``before`` is the same birth a step earlier."""
    return tuple(now + steps * (now - then) for now, then in zip(last.shape, before.shape, strict=True))


def births_before(trace: Trace, starts: list[int]) -> list[int]:
    """Births of ``trace`` before each of ``starts``."""
    counts, births, at = [], 0, 0
    for start in starts:
        births += sum(event >= 0 for event in trace.events[at:start])
        at = start
        counts.append(births)
    return counts


def _pattern(trace: Trace, starts: list[int], born: list[int], step: int, width: int, ages: int) -> tuple[int, ...]:
    """The operations of a step, births numbered as `Step` says."""
    first = born[step]
    oldest = born[step - ages + 1]

    def number(event: int) -> int:
        if event >= 0:
            return event - first
        birth = ~event
        if birth >= first:
            return ~(birth - first)
        if birth < oldest:
            return ~(width * ages + birth)
        age = next(age for age in range(1, ages) if birth >= born[step - age])
        if birth - born[step - age] >= width:
            raise IrregularStepsError("a step frees what another step than the one before it allocated")
        return ~(width * age + birth - born[step - age])

    return tuple(number(event) for event in trace.events[starts[step] : starts[step + 1]])


def _units(step: Step, modules: list[str]) -> list[Unit]:
    """Cut before the first birth of every layer."""
    cuts, layer = [0], None
    firsts = [0]
    for at, operation in enumerate(step.operations):
        if operation < 0:
            continue
        told = _LAYER.search(modules[operation])
        if (told and told[1]) != layer:
            layer = told and told[1]
            cuts.append(at)
            firsts.append(operation)
    ends, widths = [*cuts[1:], len(step.operations)], [*firsts[1:], step.width]
    kinds: dict[object, int] = {}
    laws = {birth: law.key for birth, law in step.laws}
    units: list[Unit] = []
    for begin, end, first, next_first in zip(cuts, ends, firsts, widths, strict=True):
        births = slice(first, next_first)
        law = (
            tuple(_relative(operation, first, step.width) for operation in step.operations[begin:end]),
            step.sizes[births],
            step.slopes[births],
            tuple((birth - first, laws[birth]) for birth in range(first, next_first) if birth in laws),
        )
        deaths = [divmod(~operation, step.width) for operation in step.operations[begin:end] if operation < 0]
        outgrown = tuple((age, birth) for age, birth in deaths if age)
        since = units[-1].first_birth if units else 0
        is_closed = all(age or birth >= since for age, birth in deaths) and all(age < step.ages for age, _ in outgrown)
        kind = kinds.setdefault(law if is_closed else (begin,), len(kinds))
        units.append(Unit(begin, end, first, next_first - first, kind, outgrown))
    return units


def _relative(operation: int, first: int, width: int) -> int:
    """Numbered from the unit's beginning; a death of the same place a step before is the same in every unit."""
    if operation >= 0:
        return operation - first
    age, birth = divmod(~operation, width)
    return ~(age * 2 * width + birth - first + width)
