"""A sweep: the cases of a matrix one after another, each recorded the moment it is measured, so that it can resume."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from analytic.errors import UllageError, UsageError
from analytic.measurement import Measurement, read_measurement, write_measurement
from analytic.models import catalog
from analytic.models.twin import twin
from analytic.progress import Task, say, showing, span
from analytic.quantity import GiB
from profiler.case import Case
from profiler.run import profile

Measure = Callable[..., Measurement]
"""`profiler.run.profile`, or what stands in for it: ``(case, *, device, timeout_s)``."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What became of every case, by id; each is in one of the four."""

    out: str
    """Folder of the records."""
    done: tuple[str, ...]
    """Measured now; running out of memory is a measurement."""
    skipped: tuple[str, ...]
    """Recorded before."""
    left_out: tuple[str, ...]
    """Not begun, or stopped, for lack of time or by an interrupt."""
    failed: Mapping[str, str]
    """Could not be measured or ended in an error, with the message."""
    interrupted: bool
    """Whether the user stopped it."""

    @property
    def total(self) -> int:
        """Cases of the matrix."""
        return len(self.done) + len(self.skipped) + len(self.left_out) + len(self.failed)


class Progress:
    """Whoever shows how a sweep goes; this one shows nothing."""

    def begin(self, *, cases: int, recorded: int) -> None:
        """So many cases, of which so many were recorded before."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def start(self, case: Case, *, expected_s: float | None) -> None:
        """A case is begun; from here to the end it takes about so long, where that can be told."""

    def finish(self, case: Case, outcome: str, *, elapsed_s: float) -> None:
        """It has ended, so long after the sweep began."""


def sweep(
    cases: Sequence[Case],
    *,
    device: str,
    out: Path,
    budget_s: float | None = None,
    timeout_s: float | None = None,
    measure: Measure = profile,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress | None = None,
) -> SweepResult:
    """Measure every case that ``out`` does not hold yet, in order, and write each record the moment it is there.

    With ``budget_s`` it leaves out every case that is not expected to end in time (see `_Pace`), and one that takes
    longer than expected is stopped at the end of the budget and left out. With ``timeout_s`` a case that takes longer
    than that has failed, and the next one is begun.

    Raises:
        UllageError: ``out`` cannot be written.
    """
    for flag, seconds in (("--budget-s", budget_s), ("--timeout-s", timeout_s)):
        if seconds is not None and not seconds > 0:
            raise UsageError(f"{flag}: {seconds} must be more than 0")
    shown = progress or Progress()
    started = clock()
    _make(out)
    recorded = {case.id: _recorded(out / f"{case.id}.json", case, shown) for case in cases}
    shown.begin(cases=len(recorded), recorded=sum(recorded.values()))
    state = _Sweep(
        device=device,
        out=out,
        budget_s=budget_s,
        timeout_s=timeout_s,
        measure=measure,
        clock=clock,
        shown=shown,
        start=started,
    )
    interrupted = False
    todo = {case.id: case for case in cases if not recorded[case.id]}
    try:
        state.run([*todo.values()])
    except KeyboardInterrupt:
        interrupted = True
    return SweepResult(
        out=str(out),
        done=tuple(state.done),
        skipped=tuple(name for name, before in recorded.items() if before),
        left_out=tuple(name for name in todo if name not in state.done and name not in state.failed),
        failed=state.failed,
        interrupted=interrupted,
    )


@dataclass(kw_only=True)
class _Sweep:
    """A sweep under way."""

    device: str
    out: Path
    budget_s: float | None
    timeout_s: float | None
    measure: Measure
    clock: Callable[[], float]
    shown: Progress
    start: float
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    pace: "_Pace" = field(default_factory=lambda: _Pace())

    def left_s(self) -> float | None:
        """Seconds of the budget."""
        return None if self.budget_s is None else self.budget_s - (self.clock() - self.start)

    def run(self, cases: Sequence[Case]) -> None:
        """Measure those of ``cases`` that there is time for."""
        for number, case in enumerate(cases):
            left = self.left_s()
            if left is None or left > self.pace.expected_s(case):
                self.shown.start(case, expected_s=self._expected_s(cases[number:], left))
                self._go(case, left)

    def _expected_s(self, cases: Sequence[Case], left_s: float | None) -> float | None:
        """Seconds that ``cases`` are expected to take, or the budget has; None before the first has ended."""
        if not self.pace.taken:
            return None
        seconds = sum(map(self.pace.expected_s, cases))
        return seconds if left_s is None else min(seconds, left_s)

    def _go(self, case: Case, left: float | None) -> None:
        """Measure and record ``case``."""
        began = self.clock()
        limit = min((seconds for seconds in (left, self.timeout_s) if seconds is not None), default=None)
        try:
            measured = self.measure(case, device=self.device, timeout_s=limit)
        except UllageError as error:
            self.failed[case.id] = error.message
            self._finish(case, f"failed  {error.message}")
            return
        if measured.status == "error" and (now_left := self.left_s()) is not None and now_left <= 0:
            self._finish(case, "stopped  the time was over")
            return
        write_measurement(measured, self.out / f"{case.id}.json")
        self.pace.learn(case, self.clock() - began)
        if measured.status == "error":
            self.failed[case.id] = measured.failure.message if measured.failure else "ended in an error"
        else:
            self.done.append(case.id)
        self._finish(case, outcome(measured))

    def _finish(self, case: Case, text: str) -> None:
        self.shown.finish(case, text, elapsed_s=self.clock() - self.start)


@dataclass
class _Pace:
    """How long a case is expected to take, from those that this sweep has finished.

    As long as the finished case whose model is nearest in parameters (the slowest of several), and longer in
    proportion if this model is larger; never shorter if it is smaller, since starting the libraries takes its
    time whatever the model. Where a size is not known: as long as the slowest. Nothing is known before the first.
    """

    taken: list[tuple[int | None, float]] = field(default_factory=list)
    """Parameters and seconds."""

    def learn(self, case: Case, seconds: float) -> None:
        """``case`` took so long."""
        self.taken.append((_parameters(case), seconds))

    def expected_s(self, case: Case) -> float:
        """Seconds that ``case`` is expected to take."""
        parameters = _parameters(case)
        known = [(size, seconds) for size, seconds in self.taken if size is not None]
        if parameters is None or not known:
            return max((seconds for _, seconds in self.taken), default=0.0)
        size, seconds = min(known, key=lambda row: (abs(math.log(row[0] / parameters)), -row[1]))
        return seconds * max(1.0, parameters / size)


@lru_cache(maxsize=1024)
def _parameters(case: Case) -> int | None:
    """Parameters of a model of the catalogue, or of its twin."""
    name = catalog.find(case.model)
    if name is None:
        return None
    model = catalog.load(name)
    try:
        return (model if case.twin_layers is None else twin(model, layers=case.twin_layers)).parameters
    except UllageError:  # measuring it says what is wrong
        return None


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UllageError(f"{out}: cannot be made: {error.strerror}", hint="name another folder with -o") from error
    if not os.access(out, os.W_OK):
        raise UllageError(f"{out}: cannot be written", hint="name another folder with -o")


def _recorded(file: Path, case: Case, shown: Progress) -> bool:
    """Whether ``file`` holds the measurement of ``case``. What is no such measurement is put beside it, not lost."""
    if not file.exists():
        return False
    try:
        found = read_measurement(file)
        reason = None if found.id == case.id else f"{file}: holds {found.id}"
    except UllageError as error:
        reason = error.message
    if reason is None:
        return found.status != "error"
    kept = _put_aside(file)
    shown.note(f"{reason}; measured again, what was there is kept as {kept.name}")
    return False


def _put_aside(file: Path) -> Path:
    """Rename to the first ``.damaged`` name that is free."""
    names = (file.with_name(f"{file.name}.damaged{f'-{n}' if n > 1 else ''}") for n in range(1, 1_000_000))
    kept = next(name for name in names if not name.exists())
    try:
        file.rename(kept)
    except OSError as error:
        raise UllageError(f"{file}: cannot be put aside: {error.strerror}", hint="move it away") from error
    return kept


def outcome(measured: Measurement) -> str:
    """How a measurement ended, in a line."""
    failure, totals = measured.failure, measured.totals
    if failure is not None:
        return f"{measured.status}  {failure.phase}: {' '.join(failure.message.split())[:160]}"
    peaks = {"allocated": totals.allocated, "reserved": totals.reserved}
    known = [f"{count / GiB:.1f} GiB {name}" for name, count in peaks.items() if count is not None]
    return f"{measured.status}  peak {', '.join(known)}" if known else measured.status


def sweep_with_progress(
    cases: Sequence[Case],
    *,
    device: str,
    out: Path,
    budget_s: float | None = None,
    timeout_s: float | None = None,
    measure: Measure = profile,
) -> SweepResult:
    """`sweep`, shown on standard error: a line for each finished case, below them a bar on a terminal.

    Raises:
        UllageError: ``out`` cannot be written.
        KeyboardInterrupt: the user stopped it; what is done has been said.
    """
    with _shown(budget_s) as progress:
        result = sweep(
            cases,
            device=device,
            out=out,
            budget_s=budget_s,
            timeout_s=timeout_s,
            measure=measure,
            progress=progress,
        )
    for line in closing_lines(result):
        say(line)
    if result.interrupted:
        raise _interrupt(result)
    return result


def closing_lines(result: SweepResult) -> Iterator[str]:
    """What was not done, and how to go on."""
    if result.left_out and not result.interrupted:
        yield (
            f"no time for {len(result.left_out)} of {result.total}, {result.left_out[0]} the first of them; "
            "the same command goes on from there"
        )
    if result.failed:
        yield f"{len(result.failed)} of {result.total} failed, as said above"


def _interrupt(result: SweepResult) -> KeyboardInterrupt:
    """With the hint how to go on."""
    recorded = len(result.done) + len(result.skipped)
    stopped = KeyboardInterrupt()
    stopped.add_note(f"the same command goes on from there: {recorded} of {result.total} are recorded in {result.out}")
    return stopped


@contextmanager
def _shown(budget_s: float | None) -> Iterator[Progress]:
    began = time.monotonic()

    def budget() -> str:
        return "" if budget_s is None else f"budget {span(budget_s - (time.monotonic() - began))}"

    with showing("sweep", unit="cases", note=budget, after_s=0) as task:
        yield Lines(task)


class Lines(Progress):
    """A line for each finished case, and the count of all."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._cases = self._number = 0
        task.left_s = self._left_s
        self._ends_at: float | None = None

    def _left_s(self) -> float | None:
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    def begin(self, *, cases: int, recorded: int) -> None:
        """Start where the last sweep ended."""
        self._cases, self._number = cases, recorded
        self._task.turn_to("sweep", total=cases, unit="cases", done=recorded)
        if recorded:
            self.note(f"{recorded} of {cases} recorded before")

    def note(self, text: str) -> None:
        """A line, above the bar."""
        say(text)

    def start(self, case: Case, *, expected_s: float | None) -> None:
        """Name the case."""
        self._task.of = case.id
        self._ends_at = None if expected_s is None else time.monotonic() + expected_s

    def finish(self, case: Case, outcome: str, *, elapsed_s: float) -> None:
        """``3/62  41s  <id>  ok  peak …``."""
        self._number += 1
        self._task.done = self._number
        self.note(f"{self._number:3d}/{self._cases}  {elapsed_s:.0f}s  {case.id}  {outcome}")
