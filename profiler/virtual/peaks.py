"""What was live when most was asked for: the operation and the module that set a peak, and the largest tensors."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from analytic.measurement import LiveTensors, Peak, PhaseName
from profiler.virtual.recorder import Birth
from profiler.virtual.simulate import Program
from profiler.virtual.steps import Decode, Step, shape_after

_TOP = 10


@dataclass(frozen=True, slots=True)
class _Event:
    """A birth, or, without one, the death of the same ``key``."""

    key: object
    birth: Birth | None


def peaks(program: Program) -> Iterator[Peak]:
    """The peak of every phase, in bytes asked for; weights are live in all of them and not listed."""
    resident = {number for number in program.trace.events[: program.load_end] if number >= 0}
    live: dict[object, Birth] = {}
    for name, events in _phases(program):
        most, at = _most(events, live)
        at_peak = dict(live)
        _run(events[: at + 1], at_peak)
        _run(events, live)
        born = events[at].birth if at >= 0 else None
        transient = [birth for key, birth in at_peak.items() if key not in resident or name == "load"]
        yield Peak(
            phase=name,
            requested_bytes=most,
            op=born.op if born else None,
            module=born.module if born else None,
            tensors=tuple(_largest(transient if name != "load" else [])),
        )


def _phases(program: Program) -> Iterator[tuple[PhaseName, list[_Event]]]:
    end = len(program.trace.events)
    yield "load", _traced(program, 0, program.load_end)
    yield "prefill", _traced(program, program.load_end, program.prefill_end)
    if program.decode is not None:
        yield "decode", [*_traced(program, program.prefill_end, program.decode.begin), *_extrapolated(program)]
    elif program.prefill_end < end:
        yield "decode", _traced(program, program.prefill_end, end)


def _traced(program: Program, begin: int, end: int) -> list[_Event]:
    births = program.trace.births
    return [_Event(n, births[n]) if n >= 0 else _Event(~n, None) for n in program.trace.events[begin:end]]


def _extrapolated(program: Program) -> Iterator[_Event]:
    """The last two steps: sizes are affine, so that the most is asked for in the first or in the last."""
    decode = program.decode
    assert decode is not None, "only asked for extrapolated runs"
    regular, width = decode.regular, decode.regular.width
    births = program.trace.births
    alive = {number for number in program.trace.alive(decode.begin) if number >= regular.first_birth - width}
    for number in sorted(alive):  # the tensors that the step before the last regular one leaves
        offset = number - regular.first_birth
        yield _Event(number, None)
        yield _Event(
            (offset // width, offset % width), _grown(decode, program, offset % width, decode.extra - 1, births[number])
        )
    for age, step in ((1, regular), (2, decode.last)):
        sizes = step.sizes_after(decode.extra)
        for operation in step.operations:
            if operation >= 0:
                born = _grown(decode, program, operation, decode.extra + age - 1, births[step.first_birth + operation])
                yield _Event((age, operation), born._replace(bytes=sizes[operation]))
            else:
                yield _Event(_key(step, operation, age), None)


def _key(step: Step, operation: int, age: int) -> object:
    """The same keys as births have: steps are counted from the last traced one."""
    before, birth = divmod(~operation, step.width)
    return (age - before, birth) if before < step.ages else ~operation - step.width * step.ages


def _grown(decode: Decode, program: Program, birth: int, steps: int, born: Birth) -> Birth:
    """A birth of a traced step as it is so many steps after the last regular one."""
    regular = decode.regular
    last, before = (program.trace.births[regular.first_birth + birth - age * regular.width] for age in (0, 1))
    return born._replace(bytes=last.bytes + steps * regular.slopes[birth], shape=shape_after(before, last, steps))


def _most(events: list[_Event], live: dict[object, Birth]) -> tuple[int, int]:
    """The most bytes while ``events`` run, and at which of them; -1 before any."""
    sizes = {key: birth.bytes for key, birth in live.items()}
    now = most = sum(sizes.values())
    place = -1
    for at, event in enumerate(events):
        if event.birth is None:
            now -= sizes.pop(event.key, 0)
            continue
        sizes[event.key] = event.birth.bytes
        now += event.birth.bytes
        if now > most:
            most, place = now, at
    return most, place


def _run(events: list[_Event], live: dict[object, Birth]) -> None:
    for event in events:
        if event.birth is None:
            live.pop(event.key, None)
        else:
            live[event.key] = event.birth


def _largest(births: list[Birth]) -> Iterator[LiveTensors]:
    """Equal tensors of different layers together, largest sum first."""
    counts = Counter((b.shape, b.dtype, b.op, re.sub(r"\.\d+(?=\.|$)", ".{}", b.module), b.bytes) for b in births)
    ordered = sorted(counts.items(), key=lambda item: -item[0][-1] * item[1])
    for (shape, dtype, op, module, size), count in ordered[:_TOP]:
        yield LiveTensors(bytes=size * count, count=count, shape=shape, dtype=dtype, op=op, module=module)
