"""A trace on the caching allocator: what ``torch.cuda.memory_stats`` would tell, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from analytic.measurement import PhaseName
from profiler.telling import reached
from profiler.virtual.allocator import CachingAllocator, DeviceOutOfMemoryError
from profiler.virtual.blocks import ROUND_LARGE, SMALL_SIZE, Block
from profiler.virtual.recorder import Trace
from profiler.virtual.steps import Decode, Step, Unit
from profiler.virtual.target import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What a run allocates, whatever the allocator."""

    trace: Trace
    load_end: int
    """Events of loading."""
    starts: tuple[int, ...]
    """Events before each forward pass that was traced; the first is the prefill's."""
    decode: Decode | None
    """The steps that were not traced."""

    @property
    def prefill_end(self) -> int:
        """Events before decoding."""
        return self.starts[1] if len(self.starts) > 1 else len(self.trace.events)


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseMemory:
    """What stands when a phase ends, and its peaks."""

    name: PhaseName
    allocated_bytes: int
    max_allocated_bytes: int
    reserved_bytes: int
    max_reserved_bytes: int
    requested_bytes: int
    max_requested_bytes: int
    num_segments: int
    num_alloc_retries: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfMemory:
    """Where a run ends early."""

    phase: PhaseName
    token: int
    """Tokens that each sequence had generated."""
    birth: int
    """Number of the birth in the trace, or of the same one in the step that was extrapolated."""
    asked_bytes: int
    free_bytes: int
    reserved_bytes: int
    allocated_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """A run on an allocator."""

    phases: tuple[PhaseMemory, ...]
    failure: OutOfMemory | None
    retained_bytes: int | None
    """Allocated once the request's tensors are released; None of a run that ended early."""
    timeline: tuple[tuple[int, int, int], ...]
    """Events so far, allocated and reserved bytes."""


def simulate(
    program: Program, *, capacity_bytes: int, alloc_conf: str | None = None, total_bytes: int | None = None
) -> Simulation:
    """Run ``program`` on a device of ``total_bytes`` that can give ``capacity_bytes``.

    Raises:
        UsageError: ``alloc_conf`` is not understood.
    """
    return _Run(program, CachingAllocator(capacity_bytes, alloc_conf, total_bytes=total_bytes)).run()


def simulated(program: Program, target: Target, *, alloc_conf: str | None = None) -> Simulation:
    """Run ``program`` on ``target``, under other settings than its own if they are given."""
    total_bytes = target.gpu.total_bytes
    return simulate(
        program,
        capacity_bytes=total_bytes - target.context_bytes,
        alloc_conf=alloc_conf or target.alloc_conf,
        total_bytes=total_bytes,
    )


_PERIODS = (1, 2)
"""Layers after which the small pool may be as it was: the residual stream often swaps between two blocks."""

_SAMPLES = 400
"""Points of a timeline, about."""


class _Gap:
    """Bytes of a unit's small blocks, since it began, between two operations on large ones: at the end, and at most."""

    __slots__ = ("after", "allocated", "max_allocated", "max_requested", "requested")

    def __init__(self, after: int = 0, allocated: int = 0, requested: int = 0) -> None:
        self.after = after
        """The operation on a large block that it follows, by its place in the unit."""
        self.allocated = self.max_allocated = allocated
        self.requested = self.max_requested = requested

    def add(self, allocated: int, requested: int) -> None:
        self.allocated += allocated
        self.requested += requested
        self.max_allocated = max(self.max_allocated, self.allocated)
        self.max_requested = max(self.max_requested, self.requested)


class _Run:
    def __init__(self, program: Program, allocator: CachingAllocator) -> None:
        self._program = program
        self._allocator = allocator
        self._sizes = [birth.bytes for birth in program.trace.births]
        self._blocks: dict[int, Block] = {}
        """In use, by the number of the birth in the trace."""
        self._steps: list[list[Block | None]] = []
        """The births of the last steps, the latest first."""
        self._phase: PhaseName = "load"
        self._birth = 0
        self._extrapolated = 0
        """Steps that were run and not traced."""
        self._events = 0
        self._timeline: list[tuple[int, int, int]] = []
        self._interval = max(1, len(program.trace.events) // _SAMPLES)
        steps = 0 if program.decode is None else program.decode.extra * len(program.decode.regular.operations)
        self._expected = len(program.trace.events) + steps
        """Events in all, about."""

    def run(self) -> Simulation:
        phases = []
        try:
            for name, part in self._parts():
                self._phase = name
                self._allocator.reset_peak()
                for _ in part:
                    self._sample()
                    reached(self._events, self._expected, "events")
                phases.append(self._ended(name))
        except DeviceOutOfMemoryError as error:
            failure = OutOfMemory(
                phase=self._phase,
                token=self._token(),
                birth=self._birth,
                asked_bytes=error.asked_bytes,
                free_bytes=error.free_bytes,
                reserved_bytes=error.reserved_bytes,
                allocated_bytes=error.allocated_bytes,
            )
            return Simulation(
                phases=(*phases, self._ended(self._phase)),
                failure=failure,
                retained_bytes=None,
                timeline=tuple(self._timeline),
            )
        return Simulation(
            phases=tuple(phases), failure=None, retained_bytes=self._retained(), timeline=tuple(self._timeline)
        )

    def _parts(self) -> Iterator[tuple[PhaseName, Iterator[None]]]:
        program, decode = self._program, self._program.decode
        yield "load", self._events_of(0, program.load_end)
        yield "prefill", self._events_of(program.load_end, program.prefill_end)
        if program.prefill_end < len(program.trace.events):
            end = len(program.trace.events) if decode is None else decode.begin
            yield "decode", self._decode(program.prefill_end, end)

    def _events_of(self, begin: int, end: int) -> Iterator[None]:
        malloc, free, blocks, sizes = self._allocator.malloc, self._allocator.free, self._blocks, self._sizes
        events = self._program.trace.events
        for start in range(begin, end, self._interval):
            stop = min(end, start + self._interval)
            for event in events[start:stop]:
                if event >= 0:
                    self._birth = event
                    blocks[event] = malloc(sizes[event])
                else:
                    free(blocks.pop(~event))
            self._events += stop - start
            yield

    def _decode(self, begin: int, end: int) -> Iterator[None]:
        yield from self._events_of(begin, end)
        decode = self._program.decode
        if decode is None:
            return
        for age in range(decode.regular.ages - 1):
            first = decode.regular.first_birth - age * decode.regular.width
            self._steps.append([self._blocks.pop(first + i, None) for i in range(decode.regular.width)])
        for step in range(1, decode.extra + 1):
            self._extrapolated += 1
            self._begin_step(decode.regular)
            sizes = decode.regular.sizes_after(step)
            if self._has_room(decode.regular, sizes):
                self._layers(decode, sizes)
            else:
                self._run_all(decode.regular, 0, len(decode.regular.operations), sizes)
            self._events += len(decode.regular.operations)
            yield
        self._extrapolated = decode.extra
        self._begin_step(decode.last)
        self._run_all(decode.last, 0, len(decode.last.operations), decode.last.sizes_after(decode.extra))
        yield

    def _begin_step(self, step: Step) -> None:
        self._steps.insert(0, [None] * step.width)
        del self._steps[step.ages :]

    def _run_all(self, step: Step, begin: int, end: int, sizes: list[int]) -> None:
        malloc, free, steps, width = self._allocator.malloc, self._allocator.free, self._steps, step.width
        here, oldest = steps[0], width * step.ages
        for operation in step.operations[begin:end]:
            if operation >= 0:
                self._birth = step.first_birth + operation
                here[operation] = malloc(sizes[operation])
            elif ~operation < oldest:
                age, birth = divmod(~operation, width)
                block = steps[age][birth]
                steps[age][birth] = None
                free(block)  # type: ignore[arg-type]
            else:
                free(self._blocks.pop(~operation - oldest))

    def _has_room(self, step: Step, sizes: list[int]) -> bool:
        """Whether no allocation of the step can make the allocator give cached blocks back."""
        segments = sum(
            max(size, self._allocator.conf.large_segment_bytes) + ROUND_LARGE
            for size in sizes
            if size > SMALL_SIZE // 2
        )
        return self._allocator.reserved_bytes + segments <= self._allocator.limit_bytes

    def _layers(self, decode: Decode, sizes: list[int]) -> None:
        """A step, but for the small blocks of layers that find the small pool as an earlier one did.

        They leave it as that one did, so that only their bytes are to be followed; the large pool knows nothing of it.
        """
        for units in decode.alike:
            self._run_alike(decode.regular, units, sizes)

    def _run_alike(self, step: Step, units: Sequence[Unit], sizes: list[int]) -> None:
        states: list[object] = []
        gaps: list[list[_Gap]] = []
        is_closed = len(units) > _PERIODS[-1] and all(self._outgrown_are_large(unit) for unit in units)
        while len(gaps) < len(units):
            at = len(gaps)
            states.append(self._small_state(units[at - 1]) if at and is_closed else None)
            left = len(units) - at
            settled = (p for p in _PERIODS if is_closed and p < at and p <= left and states[-1] == states[-1 - p])
            if (period := next(settled, None)) is not None:
                end = at + left // period * period
                for unit in range(at, end):
                    gaps.append(gaps[unit - period])
                    self._follow(step, units[unit], gaps[unit], sizes)
                self._hand_over(units[at - 1], units[end - 1])
                is_closed = False
            else:
                gaps.append(self._run_counted(step, units[at], sizes))

    def _small_state(self, unit: Unit) -> object:
        """All that the small pool's answers depend on: its free blocks, and what ``unit`` left in use."""
        here = self._steps[0][unit.first_birth : unit.first_birth + unit.births]
        left = tuple(block.address if block and block.pool.small else None for block in here)
        return left, self._allocator.small_state()

    def _outgrown_are_large(self, unit: Unit) -> bool:
        """Whether the unit frees no small block of another step."""
        for age, birth in unit.outgrown:
            block = self._steps[age][birth]
            if block is None or block.pool.small:
                return False
        return True

    def _run_counted(self, step: Step, unit: Unit, sizes: list[int]) -> list[_Gap]:
        """Run a unit; the bytes of small blocks between its operations on large ones."""
        allocator = self._allocator
        gaps = [_Gap()]
        allocated, requested = allocator.allocated_bytes, allocator.requested_bytes
        for at in range(unit.begin, unit.end):
            operation = step.operations[at]
            small = allocator.is_small(sizes[operation]) if operation >= 0 else self._is_small_death(step, operation)
            if not small:
                gaps.append(_Gap(at - unit.begin, gaps[-1].allocated, gaps[-1].requested))
            self._run_all(step, at, at + 1, sizes)
            if small:
                gaps[-1].add(allocator.allocated_bytes - allocated, allocator.requested_bytes - requested)
            allocated, requested = allocator.allocated_bytes, allocator.requested_bytes
        return gaps

    def _is_small_death(self, step: Step, operation: int) -> bool:
        oldest = step.width * step.ages
        if ~operation >= oldest:
            return self._blocks[~operation - oldest].pool.small
        age, birth = divmod(~operation, step.width)
        block = self._steps[age][birth]
        return block is not None and block.pool.small

    def _follow(self, step: Step, unit: Unit, gaps: list[_Gap], sizes: list[int]) -> None:
        """Run a unit's operations on large blocks, and count the small ones as an earlier unit's ``gaps`` tell."""
        counted = _Gap()
        for gap in gaps:
            if gap is not gaps[0]:
                at = unit.begin + gap.after
                self._run_all(step, at, at + 1, sizes)
            counted = self._count(gap, counted)

    def _hand_over(self, unit: Unit, heir: Unit) -> None:
        """The small blocks that ``unit`` left in use are those that ``heir`` would have."""
        here = self._steps[0]
        for place in range(unit.births):
            block = here[unit.first_birth + place]
            if block is not None and block.pool.small:
                here[heir.first_birth + place] = block
                here[unit.first_birth + place] = None

    def _count(self, gap: _Gap, before: _Gap) -> _Gap:
        """Count the bytes of small blocks since the gap ``before``."""
        told = self._allocator
        allocated, requested = told.allocated_bytes - before.allocated, told.requested_bytes - before.requested
        told.max_allocated_bytes = max(told.max_allocated_bytes, allocated + gap.max_allocated)
        told.max_requested_bytes = max(told.max_requested_bytes, requested + gap.max_requested)
        told.allocated_bytes, told.requested_bytes = allocated + gap.allocated, requested + gap.requested
        return gap

    def _token(self) -> int:
        """Forward passes before the one that asked last."""
        program = self._program
        asked = program.trace.events.index(self._birth)
        return sum(start <= asked for start in program.starts[1:]) + self._extrapolated

    def _sample(self) -> None:
        self._timeline.append((self._events, self._allocator.allocated_bytes, self._allocator.reserved_bytes))

    def _ended(self, name: PhaseName) -> PhaseMemory:
        told = self._allocator
        return PhaseMemory(
            name=name,
            allocated_bytes=told.allocated_bytes,
            max_allocated_bytes=told.max_allocated_bytes,
            reserved_bytes=told.reserved_bytes,
            max_reserved_bytes=told.max_reserved_bytes,
            requested_bytes=told.requested_bytes,
            max_requested_bytes=told.max_requested_bytes,
            num_segments=told.num_segments,
            num_alloc_retries=told.num_alloc_retries,
        )

    def _retained(self) -> int:
        """What was loaded and stays, and the libraries' workspaces."""
        births, loaded = self._program.trace.births, self._program.load_end
        first = sum(event >= 0 for event in self._program.trace.events[:loaded])
        return sum(b.size for n, b in self._blocks.items() if n < first or births[n].purpose == "library")
