"""A calibration for people: its environment, each constant with its interval, its errors, and what it lacks."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

from analytic.calibrate import suggested_sweep
from analytic.calibration import Calibration, LeftOut, Overhead, Term
from analytic.calibration import calibration_document as document
from analytic.quantity import Basis, GiB
from analytic.report.parts import Block, Interval, Intervals, Lines, Report, Table
from analytic.report.terminal import print_table
from analytic.rule import DEFAULT_OVERHEAD

__all__ = ("document", "report", "text")

_MIB = 2**20

_LISTED = 40
"""Measurements in a report."""

_INDICATORS = ("fixed", "bnb-4bit", "bnb-int8", "moe", "eager")
"""Features that a request has or has not: their terms are bytes, the others' are bytes for each byte."""


def report(calibration: Calibration) -> Report:
    """The errors first; then the constants, a figure a unit, and the rule's overhead as it was seen."""
    blocks: tuple[Block, ...] = (
        _errors(calibration),
        *_constants(calibration),
        _terms(calibration),
        *_overhead(calibration),
        _residuals(calibration),
        *_lacking(calibration),
        Lines(title="Fitted to", lines=tuple(_fitted_to(calibration))),
    )
    return Report(
        title=f"Constants of {calibration.environment.gpu}",
        assumptions=_environment(calibration),
        headline=_headline(calibration),
        status=None,
        blocks=blocks,
    )


def _environment(calibration: Calibration) -> str:
    told = calibration.environment
    known = {"driver": told.driver, "CUDA": told.cuda, "torch": told.torch, "transformers": told.transformers}
    known |= {"bitsandbytes": told.bitsandbytes, "allocator": told.alloc_conf}
    versions = ", ".join([told.gpu, *(f"{name} {version}" for name, version in known.items() if version)])
    return f"{versions}; {', '.join(calibration.attention)}: {len(calibration.measurements)} measurements."


def _headline(calibration: Calibration) -> str:
    if not calibration.left_out:
        return "No total to predict was measured."
    row = min(calibration.left_out, key=lambda row: (not row.held_out, row.figure != "device"))
    return f"The {_error_words(row)}"


def _error_words(row: LeftOut) -> str:
    which = "held out" if row.held_out else "each model left out in turn"
    return (
        f"{row.figure} total is off by {_percent(row.median_fraction)} (median), {_percent(row.max_fraction)} "
        f"(maximum); {which}."
    )


def _errors(calibration: Calibration) -> Table:
    return Table(
        title="Errors on what the fit had not seen",
        columns=("total", "seen", "median", "maximum"),
        rows=tuple(
            (
                row.figure,
                "held out" if row.held_out else "each model left out in turn",
                _percent(row.median_fraction),
                _percent(row.max_fraction),
            )
            for row in calibration.left_out
        ),
        words=2,
    )


def _constants(calibration: Calibration) -> Iterator[Intervals]:
    """A figure of the constants in MiB, one of the ratios."""
    for name, title, unit, is_bytes in (
        ("constants", "Constants in bytes", "MiB", True),
        ("ratios", "Constants that grow with the request, in bytes for each byte", "ratio", False),
    ):
        terms = [term for term in calibration.terms if (term.feature in _INDICATORS) is is_bytes]
        if terms:
            yield Intervals(
                name=name,
                title=title,
                assumptions=_environment(calibration),
                basis=(("values and 95 % bootstrap intervals", "fitted"),),
                description=f"{len(terms)} constants with their 95 % intervals, which are in the table below.",
                unit=unit,
                intervals=tuple(map(_interval, terms)),
            )


def _interval(term: Term) -> Interval:
    scale = _MIB if term.feature in _INDICATORS else 1
    return Interval(
        label=f"{term.component.replace('_', ' ')}: {term.feature}",
        value=term.value / scale,
        low=term.low / scale,
        high=term.high / scale,
        text=f"{_value(term, term.value)} ({_span(term)})",
    )


def _terms(calibration: Calibration) -> Table:
    return Table(
        title="Constants",
        columns=("component", "term", "value", "95 %", "n"),
        rows=tuple(
            (
                term.component.replace("_", " "),
                term.feature,
                _value(term, term.value),
                _span(term),
                str(term.measurements),
            )
            for term in calibration.terms
        ),
        words=2,
    )


def _value(term: Term, value: float) -> str:
    return f"{value / _MIB:,.1f} MiB" if term.feature in _INDICATORS else f"{value:.4f}"


def _span(term: Term) -> str:
    return f"{_value(term, term.low).removesuffix(' MiB')} to {_value(term, term.high)}"


def _overhead(calibration: Calibration) -> Iterator[Block]:
    """The guide's percentage where it was measured: its median with the interval, and how far the runs spread."""
    rows = calibration.overheads
    if not rows:
        return
    ground: Basis = "traced" if calibration.environment.kind == "virtual" else "measured"
    flat = f"{float(DEFAULT_OVERHEAD):.0%}".replace("%", " %")
    yield Intervals(
        name="overhead",
        title=f"The rule of thumb's overhead as it was seen, beside the flat {flat}",
        assumptions=f"{_environment(calibration)} What the device was charged, over parameters × bits / 8, less one.",
        basis=(("median and its 95 % bootstrap interval", ground), (f"the guide's {flat}", "assumed")),
        description=f"Medians with intervals beside {flat}: {'; '.join(f'{r.precision} {_spread(r)}' for r in rows)}.",
        unit="%",
        intervals=tuple(
            Interval(
                label=row.precision,
                value=100 * row.median_fraction,
                low=100 * row.low_fraction,
                high=100 * row.high_fraction,
                text=_spread(row),
            )
            for row in rows
        ),
        reference=100 * float(DEFAULT_OVERHEAD),
    )
    yield Table(
        title="Overhead by precision",
        columns=("precision", "least at", "most at", "median", "95 %", "least", "most", "n"),
        rows=tuple(map(_overhead_cells, rows)),
        words=3,
    )


def _spread(row: Overhead) -> str:
    return f"{_percent(row.median_fraction)} ({_overhead_span(row)})"


def _overhead_span(row: Overhead) -> str:
    return f"{_percent(row.low_fraction).removesuffix(' %')} to {_percent(row.high_fraction)}"


def _overhead_cells(row: Overhead) -> tuple[str, ...]:
    shares = (_percent(row.min_fraction), _percent(row.max_fraction))
    return (
        row.precision,
        row.min_at,
        row.max_at,
        _percent(row.median_fraction),
        _overhead_span(row),
        *shares,
        str(row.measurements),
    )


def _residuals(calibration: Calibration) -> Table:
    return Table(
        title="Measured less predicted, of models that the fit had not seen",
        columns=("component", "from GiB", "to GiB"),
        rows=tuple(
            (row.component.replace("_", " "), f"{row.low_bytes / GiB:+.3f}", f"{row.high_bytes / GiB:+.3f}")
            for row in calibration.residuals
        ),
        note="The bounds of an estimate with these constants.",
    )


def _lacking(calibration: Calibration) -> Iterator[Lines]:
    if calibration.lacking:
        yield Lines(title="Not fitted", lines=calibration.lacking, kind="warnings")
        matrix = tuple(suggested_sweep(calibration).splitlines())
        yield Lines(title="This matrix, measured with ullage sweep, would add them", lines=matrix, kind="code")


def _fitted_to(calibration: Calibration) -> Iterator[str]:
    yield from calibration.measurements[:_LISTED]
    if len(calibration.measurements) > _LISTED:
        yield f"… and {len(calibration.measurements) - _LISTED:,} more: the JSON has all."


def text(calibration: Calibration, console: Console) -> None:
    """Everything that the record holds."""
    console.print(_environment(calibration))
    console.print()
    print_table(_terms(calibration), console)
    console.print()
    for row in calibration.left_out:
        console.print(_error_words(row))
    print_table(_residuals(calibration), console)
    console.print()
    for overhead in calibration.overheads:
        console.print(_sentence(overhead))
    if calibration.lacking:
        console.print("\nNot fitted:")
        for line in calibration.lacking:
            console.print(f"  {escape(line)}")
        console.print("This matrix, measured with ullage sweep, would add them:\n")
        console.print(escape(suggested_sweep(calibration)), soft_wrap=True)


def _sentence(row: Overhead) -> str:
    return (
        f"{row.precision}: the rule's overhead is {_percent(row.median_fraction)} in the median "
        f"({_overhead_span(row)}, n = {row.measurements}), {_percent(row.min_fraction)} at {row.min_at}, "
        f"{_percent(row.max_fraction)} at {row.max_at}."
    )


def _percent(fraction: float) -> str:
    return f"{fraction:.1%}".replace("%", " %")
