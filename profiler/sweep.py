"""A sweep: the cases of a matrix one after another, each recorded the moment it is measured, so that it can resume."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from analytic.errors import UllageError, UsageError
from analytic.measurement import Measurement, read_measurement, write_measurement
from analytic.models import catalog
from analytic.models.twin import twin
from analytic.quantity import GiB
from profiler.case import Case
from profiler.run import profile

Measure = Callable[..., Measurement]
"""`profiler.run.profile`, or what stands in for it: ``(case, *, device, timeout_s, on_phase)``."""


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

    def start(self, case: Case) -> None:
        """A case is begun."""

    def phase(self, name: str) -> None:
        """It reached a phase."""

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
        for case in todo.values():
            state.go(case)
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

    def go(self, case: Case) -> None:
        """Measure and record ``case``, if there is time for it."""
        left, began = self.left_s(), self.clock()
        if left is not None and left <= self.pace.expected_s(case):
            return
        self.shown.start(case)
        limit = min((seconds for seconds in (left, self.timeout_s) if seconds is not None), default=None)
        try:
            measured = self.measure(case, device=self.device, timeout_s=limit, on_phase=self.shown.phase)
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
    """`sweep`, shown on standard error: a bar on a terminal, a line for each finished case elsewhere.

    Raises:
        UllageError: ``out`` cannot be written.
        KeyboardInterrupt: the user stopped it; what is done has been said.
    """
    with _shown(Console(stderr=True, highlight=False)) as progress:
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
        print(line, file=sys.stderr)
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def closing_lines(result: SweepResult) -> Iterator[str]:
    """What was not done, and how to go on."""
    recorded = len(result.done) + len(result.skipped)
    if result.interrupted:
        yield f"stopped: {recorded} of {result.total} recorded in {result.out}; the same command goes on from there"
    elif result.left_out:
        yield (
            f"no time for {len(result.left_out)} of {result.total}, {result.left_out[0]} the first of them; "
            "the same command goes on from there"
        )
    if result.failed:
        yield f"{len(result.failed)} of {result.total} failed, as said above"


@contextmanager
def _shown(console: Console) -> Iterator[Progress]:
    if not console.is_terminal:
        yield Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=3600) as bars:
        yield Bar(bars)


class Lines(Progress):
    """A plain line for each finished case, for logs."""

    def __init__(self) -> None:
        self._cases = self._number = 0

    def begin(self, *, cases: int, recorded: int) -> None:
        """Remember how many there are."""
        self._cases, self._number = cases, recorded
        if recorded:
            self.note(f"{recorded} of {cases} recorded before")

    def note(self, text: str) -> None:
        """A line."""
        print(text, file=sys.stderr, flush=True)

    def finish(self, case: Case, outcome: str, *, elapsed_s: float) -> None:
        """``3/62  41s  <id>  ok  peak …``."""
        self._number += 1
        self.note(f"{self._number:3d}/{self._cases}  {elapsed_s:.0f}s  {case.id}  {outcome}")


class Bar(Progress):
    """A bar with the current case and phase; finished cases above it."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars, self._task = bars, bars.add_task("", total=None)
        self._case = ""

    def begin(self, *, cases: int, recorded: int) -> None:
        """Start where the last sweep ended."""
        self._bars.reset(self._task, total=cases, completed=recorded)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._bars.console.print(escape(text))

    def start(self, case: Case) -> None:
        """Name the case."""
        self._case = case.id
        self.phase("checkpoint")

    def phase(self, name: str) -> None:
        """Name the phase."""
        self._bars.update(self._task, description=escape(f"{self._case}: {name}"))

    def finish(self, case: Case, outcome: str, *, elapsed_s: float) -> None:
        """A line above the bar, and one more done."""
        self._bars.advance(self._task)
        self.note(f"{elapsed_s:.0f}s  {case.id}  {outcome}")
