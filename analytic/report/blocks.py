"""Figures that more than one report has: ledgers, the budget map, the way from the rule of thumb."""

from collections.abc import Iterator

from analytic.estimator import Estimate
from analytic.ledger import COMPONENTS, Ledger
from analytic.plans.budget import budget_map
from analytic.quantity import Basis
from analytic.report.parts import Bar, HeatMap, Segment, StackedBars, Status, Table, Waterfall
from analytic.report.sentences import assumptions, gib, sentence, verdict
from analytic.rule import Rule, published_misprint
from analytic.waterfall import waterfall

_MOST_BARS = 8


def ledger_bars(answer: Estimate) -> StackedBars:
    """Every GPU's ledger against what may be used of it."""
    capacity = answer.capacity_bytes
    return StackedBars(
        name="ledger",
        title="The ledger of a GPU" if answer.gpus == 1 else "The ledger of each GPU",
        assumptions=f"{assumptions(answer)}.",
        basis=grounds(answer.fullest),
        description=f"{sentence(verdict(answer))} The parts are in the table below.",
        bars=tuple(ledger_bar(row, label) for label, row in _grouped(answer)),
        capacity_bytes=capacity,
        capacity_label="" if answer.gpu is None else f"usable of {answer.gpu.name}",
    )


def ledger_bar(row: Ledger, label: str) -> Bar:
    """A GPU's components on top of each other."""
    segments = tuple(
        Segment(label=name.replace("_", " "), bytes=row.components[name].bytes, basis=row.components[name].basis)
        for name in COMPONENTS
    )
    return Bar(label=label, segments=segments, low_bytes=row.device.low_bytes, high_bytes=row.device.high_bytes)


def grounds(row: Ledger) -> tuple[tuple[str, Basis], ...]:
    """Of each component."""
    return tuple((name.replace("_", " "), row.components[name].basis) for name in COMPONENTS)


def _grouped(answer: Estimate) -> Iterator[tuple[str, Ledger]]:
    """Neighbours that hold the same as one; of more than eight kinds those that hold most."""
    runs: list[tuple[int, int, Ledger]] = []
    for index, row in enumerate(answer.ledgers):
        if runs and runs[-1][2].components == row.components:
            runs[-1] = (runs[-1][0], index, row)
        else:
            runs.append((index, index, row))
    largest = sorted(sorted(runs, key=lambda run: -run[2].device.bytes)[:_MOST_BARS], key=lambda run: run[0])
    for first, last, row in largest:
        yield _numbered(first, last) if answer.gpus > 1 else "1 GPU", row


def _numbered(first: int, last: int) -> str:
    return f"GPU {first}" if first == last else f"GPUs {first}–{last}"


def budget(answer: Estimate) -> HeatMap | None:
    """Context × concurrency; None without a GPU."""
    found = budget_map(answer)
    if found is None:
        return None
    return heat_map(found.contexts, found.concurrencies, found.cells, found.asked, answer)


def heat_map(
    contexts: tuple[int, ...],
    concurrencies: tuple[int, ...],
    cells: tuple[tuple[Status, ...], ...],
    asked: tuple[int, int],
    answer: Estimate,
) -> HeatMap:
    """What fits where ``answer`` was asked for."""
    where = f"{answer.gpus} × {answer.gpu.name if answer.gpu else 'GPU'}"
    rows = tuple((f"{tokens:,}", *row) for tokens, row in zip(contexts, cells, strict=True))
    return HeatMap(
        name="budget",
        title="Context and concurrency that fit",
        assumptions=f"{assumptions(answer)}, but for the tokens and the sequences of each cell; on {where}.",
        basis=(("fits at the high bound, tight between the bounds, no at the low bound", answer.fullest.device.basis),),
        description=f"Which contexts, and how many sequences at once, fit on {where}. The cells are in the table.",
        data=Table(
            title="Tokens of each sequence, and sequences at once",
            columns=("tokens", *(f"{concurrency:,}" for concurrency in concurrencies)),
            rows=rows,
            words=-1,
        ),
        contexts=contexts,
        concurrencies=concurrencies,
        cells=cells,
        asked=asked,
    )


def way_from_the_rule(
    answer: Estimate, seen_bytes: int | None = None, *, label: str = "measured", basis: Basis = "measured"
) -> Waterfall:
    """From the rule's figure to the estimate, and to what was seen; what the guide prints is said in words."""
    steps = waterfall(answer, seen_bytes, label=label, basis=basis)
    estimated = next(step for step in steps if step.label == "estimate")
    rows = tuple((step.label, "" if step.is_level else "±", gib(step.bytes), step.basis) for step in steps)
    return Waterfall(
        name="waterfall",
        title=f"From the rule of thumb to what was {'estimated' if seen_bytes is None else label}",
        assumptions=f"{assumptions(answer)}.{_misprint(answer.rule_of_thumb)}",
        basis=(
            ("the rule", "assumed"),
            ("the estimate", estimated.basis),
            *(((f"what was {label}", basis),) if seen_bytes is not None else ()),
        ),
        description=f"From {gib(steps[0].bytes)} GiB to {gib(steps[-1].bytes)} GiB; the steps are in the table.",
        data=Table(
            title="From the rule of thumb, all GPUs together", columns=("", "", "GiB", "basis"), rows=rows, words=2
        ),
        steps=steps,
    )


def _misprint(rule: Rule) -> str:
    printed = published_misprint(rule.parameters, bits=rule.bits)
    return "" if printed == rule.quantized_bytes else f" As the guide prints step 4, it would be {gib(printed)} GiB."
