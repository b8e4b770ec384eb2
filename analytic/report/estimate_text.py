"""An estimate on a terminal: the verdict first, then where the bytes go."""

from itertools import accumulate

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from analytic.estimator import Estimate
from analytic.ledger import COMPONENTS
from analytic.report.sentences import assumptions, cells, gib, lever_words, most, split_cells, verdict
from analytic.report.table import Table
from analytic.report.terminal import print_table

_BAR_COLUMNS = 22

_BAR_WIDTH = 72
"""Columns of a terminal from which bars are shown."""


def print_estimate(answer: Estimate, console: Console) -> None:
    """Assumptions and verdict, the ledger of the fullest GPU, then what would help and what to know."""
    console.print(Text.assemble(f"{assumptions(answer)}: ", (verdict(answer), _colour(answer))), soft_wrap=False)
    console.print()
    _print_ledger(answer, console)
    if answer.gpus > 1:
        _print_split(answer, console)
    _print_notes(answer, console)


def _colour(answer: Estimate) -> str:
    if answer.fits is None:
        return "bold"
    return "bold yellow" if not answer.is_certain else "bold green" if answer.fits else "bold red"


def _print_ledger(answer: Estimate, console: Console) -> None:
    row = answer.fullest
    several = f"fullest of {answer.gpus} GPUs, " if answer.gpus > 1 else ""
    parts = {name.replace("_", " "): (row.components[name], "") for name in COMPONENTS}
    sums = {f"= {name}": (getattr(row, name), "bold") for name in ("allocated", "reserved", "device")}
    shown = parts | sums | {"load peak": (row.load_peak, "dim")}
    starts = [*accumulate((row.components[name].bytes for name in COMPONENTS[:-1]), initial=0), 0, 0, 0, 0]
    rows = []
    for (name, (quantity, _)), start in zip(shown.items(), starts, strict=True):
        middle, low, high, basis = cells(quantity)
        rows.append((name, basis, middle, low, high, *_bar(start, quantity.bytes, answer, console)))
    table = Table(
        title=f"{several}peak in {row.peak.name} ({row.peak.moment})",
        columns=("", "basis", "GiB", "low", "high", *_bar_heading(console)),
        rows=tuple(rows),
        words=2,
    )
    print_table(table, console, styles=[style for _, style in shown.values()])


def _bar_heading(console: Console) -> tuple[str, ...]:
    """None on a narrow terminal."""
    return ("",) if console.width >= _BAR_WIDTH else ()


def _bar(start: int, size: int, answer: Estimate, console: Console) -> tuple[str, ...]:
    """A bar from ``start``, ``size`` long, of what a GPU has; none on a narrow terminal."""
    scale = max(answer.capacity_bytes or 0, answer.fullest.device.bytes)
    first = round(_BAR_COLUMNS * start / scale)
    length = max(round(_BAR_COLUMNS * (start + size) / scale) - first, 1 if size else 0)
    first = min(first, _BAR_COLUMNS - length)
    bar = "·" * first + "█" * length + "·" * (_BAR_COLUMNS - first - length)
    return (bar,) * len(_bar_heading(console))


def _print_split(answer: Estimate, console: Console) -> None:
    rows = tuple(
        (str(index), *split_cells(row), *_bar(0, row.device.bytes, answer, console))
        for index, row in enumerate(answer.ledgers)
    )
    columns = ("GPU", "layers", "weights", "device GiB", *_bar_heading(console))
    print_table(Table(title="by GPU", columns=columns, rows=rows), console)


def _print_notes(answer: Estimate, console: Console) -> None:
    console.print()
    for line in answer.engine.lines(answer.asked, answer.ledgers):
        console.print(escape(line), highlight=False)
    if answer.fits is False:
        for lever in answer.levers:
            console.print(f"  {escape(lever_words(lever))}")
    elif answer.gpu is not None:
        console.print(most(answer))
    rule = answer.rule_of_thumb
    console.print(f"[dim]The rule of thumb says {rule.total_bytes / 1e9:,.1f} GB ({gib(rule.total_bytes)} GiB).[/]")
    if answer.calibrated_with is not None:
        console.print(f"[dim]Calibrated with {escape(answer.calibrated_with)}.[/]", soft_wrap=True)
    if answer.ignored:
        console.print(f"[dim]Without effect on memory: {escape(' '.join(answer.ignored))}[/]", highlight=False)
    for warning in answer.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
