"""An estimate as a report: the verdict first, then where the bytes go."""

from collections.abc import Iterator

from analytic.estimator import NOT_MODELED, Estimate
from analytic.ledger import COMPONENTS, Ledger
from analytic.report.blocks import budget, ledger_bars, way_from_the_rule
from analytic.report.command import command_of
from analytic.report.parts import Lines, Report, Table
from analytic.report.sentences import (
    assumptions,
    cells,
    gib,
    lever_words,
    most,
    sentence,
    split_cells,
    status_of,
    verdict,
)


def report_of(answer: Estimate) -> Report:
    """The verdict, the ledger against the capacity, what else would fit, and the way from the rule of thumb."""
    blocks = (
        ledger_bars(answer),
        *_tables(answer),
        *((fitting,) if (fitting := budget(answer)) else ()),
        *_help(answer),
        way_from_the_rule(answer),
        Lines(title="Not modelled", lines=(*NOT_MODELED, *answer.engine.NOT_MODELED)),
    )
    return Report(
        title=f"{answer.model.id}: GPU memory",
        assumptions=f"{assumptions(answer)}.",
        headline=sentence(verdict(answer)),
        status=None if answer.fits is None else status_of(answer),
        blocks=blocks,
        command=command_of(answer),
    )


def _tables(answer: Estimate) -> Iterator[Table]:
    row = answer.fullest
    yield Table(
        title="Bytes of the GPU that decides" if answer.gpus > 1 else "Bytes",
        columns=("", "GiB", "low", "high", "bytes", "basis"),
        rows=tuple(_ledger_rows(row)),
        note=f"Peak in {row.peak.name} ({row.peak.moment}).",
    )
    if answer.gpus > 1:
        yield Table(
            title="By GPU",
            columns=("GPU", "layers", "weights GiB", "device GiB"),
            rows=tuple((str(index), *split_cells(row)) for index, row in enumerate(answer.ledgers)),
        )
    if row.parts:
        yield Table(
            title="Named parts",
            columns=("component", "part", "why", "MiB"),
            rows=tuple(
                (p.component.replace("_", " "), p.name, p.note, f"{p.bytes / 2**20:,.2f}") for p in row.parts if p.bytes
            ),
            words=3,
        )
    yield Table(
        title="Weights by format",
        columns=("format", "GiB"),
        rows=tuple((name, gib(size)) for name, size in answer.weights.by_format.items()),
    )


def _ledger_rows(row: Ledger) -> Iterator[tuple[str, ...]]:
    named = {name.replace("_", " "): row.components[name] for name in COMPONENTS}
    named |= {"= allocated": row.allocated, "= reserved": row.reserved, "= device": row.device}
    for name, quantity in (named | {"load peak": row.load_peak}).items():
        middle, low, high, basis = cells(quantity)
        yield name, middle, low, high, f"{quantity.bytes:,}", basis


def _help(answer: Estimate) -> Iterator[Lines]:
    if engine := tuple(answer.engine.lines(answer.asked, answer.ledgers)):
        yield Lines(title=f"In the terms of {answer.engine.NAME}", lines=engine)
    if answer.fits is False:
        yield Lines(title="What would help", lines=tuple(map(lever_words, answer.levers)))
    elif answer.gpu is not None:
        yield Lines(title="How far it goes", lines=(most(answer),))
    if answer.warnings:
        yield Lines(title="Warnings", lines=answer.warnings, kind="warnings")
