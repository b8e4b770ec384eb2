"""A calibration for people: its environment, each constant with its interval, its errors, and what it lacks."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analytic.calibrate import suggested_sweep
from analytic.calibration import Calibration, Overhead, Term
from analytic.calibration import calibration_document as document
from analytic.quantity import GiB

__all__ = ("document", "text")

_MIB = 2**20


def text(calibration: Calibration, console: Console) -> None:
    """Everything that the record holds."""
    told = calibration.environment
    console.print(
        f"{told.gpu}, driver {told.driver}, CUDA {told.cuda}, torch {told.torch}, transformers {told.transformers}, "
        f"bitsandbytes {told.bitsandbytes}; {', '.join(calibration.attention)}: "
        f"{len(calibration.measurements)} measurements."
    )
    console.print()
    _print_terms(calibration, console)
    _print_errors(calibration, console)
    for row in calibration.overheads:
        console.print(_sentence(row))
    if calibration.lacking:
        console.print("\nNot fitted:")
        for line in calibration.lacking:
            console.print(f"  {escape(line)}")
        console.print("This matrix, measured with ullage sweep, would add them:\n")
        console.print(escape(suggested_sweep(calibration)), soft_wrap=True)


def _print_terms(calibration: Calibration, console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("component", "term", "value", "95 %", "n"):
        table.add_column(name, justify="left" if name in ("component", "term") else "right", no_wrap=True)
    for term in calibration.terms:
        interval = f"{_value(term, term.low)} … {_value(term, term.high)}"
        table.add_row(term.component, term.feature, _value(term, term.value), interval, str(term.measurements))
    console.print(table)


_INDICATORS = ("fixed", "bnb-4bit", "bnb-int8", "moe", "eager")


def _value(term: Term, value: float) -> str:
    return f"{value / _MIB:,.1f} MiB" if term.feature in _INDICATORS else f"{value:.4f}"


def _print_errors(calibration: Calibration, console: Console) -> None:
    console.print()
    for row in calibration.left_out:
        which = "held out" if row.held_out else "each model left out in turn"
        console.print(
            f"{row.figure}: off by {_percent(row.median_fraction)} (median), {_percent(row.max_fraction)} (maximum); "
            f"{which}."
        )
    for residual in calibration.residuals:
        low, high = residual.low_bytes / GiB, residual.high_bytes / GiB
        console.print(f"[dim]{residual.component}: measured less predicted from {low:+.3f} to {high:+.3f} GiB[/]")
    console.print()


def _sentence(row: Overhead) -> str:
    low, high = _percent(row.low_fraction), _percent(row.high_fraction)
    return (
        f"{row.precision}: the rule's overhead is {_percent(row.median_fraction)} in the median ({low} … {high}, "
        f"n = {row.measurements}), {_percent(row.min_fraction)} at {row.min_at}, "
        f"{_percent(row.max_fraction)} at {row.max_at}."
    )


def _percent(fraction: float) -> str:
    return f"{fraction:.1%}".replace("%", " %")
