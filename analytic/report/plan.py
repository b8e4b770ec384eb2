"""A plan as text, as JSON and as a report."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from analytic.engines.engine import find_engine
from analytic.plans.options import Cell, Option, Plan
from analytic.plans.question import formats_of
from analytic.quantity import Basis
from analytic.report import SCHEMA_VERSION, Status
from analytic.report.blocks import heat_map, ledger_bars
from analytic.report.command import command_of
from analytic.report.parts import Block, FormatMap, Lines, Report, Spot, Table
from analytic.report.sentences import gib, sentence
from analytic.report.terminal import print_table

SHOWN = 15
"""Options of the short list in a table."""

LISTED = 50
"""Options of the short list of which JSON has the matrix, the largest sizes and the notes; the smallest and the
cheapest have them too."""

_MARKS: dict[Cell, str] = {"fits": "●", "tight": "◐", "no": "·"}


def document(found: Plan) -> dict[str, Any]:
    """``ullage plan --json``. Every option has its frontier: how many concurrencies fit at each context, and how many
    may within the bounds. The matrix in words, the largest sizes and the notes are those of the short list; else null.
    """
    engine = find_engine(found.engine)
    best = (option for option in (found.smallest, found.cheapest) if option is not None)
    listed = {id(option) for option in (*found.shortlist[:LISTED], *best)}
    places = {id(option): index for index, option in enumerate(found.options)}

    def index(option: Option | None) -> int | None:
        return None if option is None else places[id(option)]

    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"id": found.model.id, "source": found.model.source, "parameters": found.model.parameters},
        "engine": {"name": engine.NAME, "version": engine.VERSION},
        "question": asdict(found.question),
        "options": [_option(option, found, id(option) in listed) for option in found.options],
        "smallest": index(found.smallest),
        "cheapest": index(found.cheapest),
        "refused": [asdict(row) for row in found.refused],
    }


def _option(option: Option, found: Plan, is_listed: bool) -> dict[str, Any]:
    return {
        "gpu": option.gpu.name,
        "gpus": option.degrees.gpus,
        "tensor_parallel_size": option.degrees.tensor,
        "pipeline_parallel_size": option.degrees.pipeline,
        "data_parallel_size": option.degrees.data,
        "enable_expert_parallel": option.is_expert_parallel,
        "quantization": option.quantization,
        "fits": option.fits,
        "certain": option.is_certain,
        "used_bytes": option.used_bytes,
        "capacity_bytes": option.room.capacity_bytes,
        "headroom_bytes": option.headroom_bytes,
        "frontier": option.frontier,
        "matrix": option.matrix(len(found.question.concurrencies)) if is_listed else None,
        "largest_context": option.largest_context if is_listed else None,
        "largest_concurrency": option.largest_concurrency if is_listed else None,
        "price_per_hour": option.price_per_hour,
        "notes": list(option.notes) if is_listed else None,
    }


def text(found: Plan, console: Console) -> None:
    """The target and the answer, the short list, and what the best of it can hold."""
    console.print(escape(_headline(found)))
    for line in _answers(found):
        console.print(f"[bold green]{escape(line)}[/]")
    console.print()
    shortlist = found.shortlist[:SHOWN]
    print_table(_shortlist(found), console, styles=["" if o.is_certain else "yellow" for o in shortlist])
    best = found.best
    if best is not None:
        console.print()
        print_table(_grid(best, found), console)
        for note in best.notes:
            console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
    _print_refused(found, console)


def report(found: Plan) -> Report:
    """The answer, the map of GPU × format, the short list, and what the best of it can hold."""
    best = found.best
    return Report(
        title=f"{found.model.id}: which GPUs hold it",
        assumptions=f"{_asked(found)}.",
        headline=sentence("; ".join(_answers(found))) + ".",
        status=_status(best or max(found.options, key=lambda option: option.headroom_bytes)),
        blocks=(_map(found), _shortlist(found), *(_best(best, found) if best else ()), *_impossible(found)),
        command=None if best is None else command_of(best.answer),
    )


def _map(found: Plan) -> FormatMap:
    gpus = tuple(dict.fromkeys(option.gpu.name for option in sorted(found.options, key=lambda o: o.gpu.total_bytes)))
    tried = {option.quantization for option in found.options}
    named = (name for name in formats_of(found.model, found.engine, found.question) if name in tried)
    formats = {name: name or found.model.native_format or "as published" for name in named}
    closest = found.closest
    spots = tuple(
        tuple(_spot(closest[gpu, name]) if (gpu, name) in closest else None for name in formats) for gpu in gpus
    )
    rows = ((gpu, *("–" if spot is None else spot.text for spot in row)) for gpu, row in zip(gpus, spots, strict=True))
    return FormatMap(
        name="gpus-and-formats",
        title="The best of each kind of GPU and format: how many, and how they share the work",
        assumptions=f"{_asked(found)}.",
        basis=(("what the fullest GPU is charged, against what may be used of it", _weakest(found)),),
        description=f"{len(gpus)} kinds of GPU and {len(formats)} formats; the cells are in the table.",
        data=Table(
            title="Kind of GPU, and format",
            columns=("GPU", *formats.values()),
            rows=tuple(rows),
            words=-1,
        ),
        gpus=gpus,
        formats=tuple(formats.values()),
        spots=spots,
    )


def _weakest(found: Plan) -> Basis:
    return (found.best or found.options[0]).answer.fullest.device.basis


def _spot(option: Option) -> Spot:
    room = f"{gib(abs(option.headroom_bytes))} GiB {'left' if option.fits else 'short'}"
    return Spot(status=_status(option), text=f"{_short(option)}: {room}")


def _status(option: Option) -> Status:
    return "tight" if not option.is_certain else "fits" if option.fits else "no"


def _short(option: Option) -> str:
    return f"{option.degrees.gpus} ({_split(option)})" if option.degrees.gpus > 1 else "1"


def _shortlist(found: Plan) -> Table:
    more = len(found.shortlist) - SHOWN
    return Table(
        title="The best of each kind of GPU and format",
        columns=_columns(found),
        rows=tuple(_cells(option, found) for option in found.shortlist[:SHOWN]),
        words=3,
        note=f"{more} more are in --json." if more > 0 else "",
    )


def _best(best: Option, found: Plan) -> Iterator[Block]:
    asked, answer = found.question, best.answer
    cells = best.matrix(len(asked.concurrencies))
    target = (asked.target_context, asked.target_concurrency)
    yield heat_map(asked.contexts, asked.concurrencies, cells, target, answer)
    yield ledger_bars(answer)
    if best.notes:
        yield Lines(title=f"Of {_named(best)}", lines=best.notes)


def _impossible(found: Plan) -> Iterator[Lines]:
    reasons = Counter(row.reason for row in found.refused)
    if reasons:
        lines = tuple(f"{count:,} × {reason}" for reason, count in reasons.most_common())
        yield Lines(title="Not possible", lines=lines)


def _asked(found: Plan) -> str:
    asked, engine = found.question, find_engine(found.engine)
    several = "s" * (asked.target_concurrency > 1)
    return (
        f"{found.model.id} with {engine.NAME} {engine.VERSION}: {asked.target_concurrency:,} sequence{several} of "
        f"{asked.target_context:,} tokens, {min(asked.output_tokens, asked.target_context - 1):,} of them output"
    )


def _headline(found: Plan) -> str:
    return f"{_asked(found)}; {len(found.fitting):,} of {len(found.options):,} deployments hold it."


def _answers(found: Plan) -> Iterator[str]:
    if found.smallest is None:
        closest = max(found.options, key=lambda option: option.headroom_bytes)
        yield f"nothing tried holds it; closest is {_named(closest)}, {gib(-closest.headroom_bytes)} GiB short"
        return
    yield f"smallest: {_named(found.smallest)}, {gib(found.smallest.headroom_bytes)} GiB to spare a GPU"
    if found.cheapest is not None:
        yield f"cheapest: {_named(found.cheapest)}, {found.cheapest.price_per_hour:,.2f} an hour"


def _named(option: Option) -> str:
    split = f" ({_split(option)})" if option.degrees.gpus > 1 else ""
    return f"{option.degrees.gpus} × {option.gpu.name}{split}, {_format(option)}"


def _format(option: Option) -> str:
    if option.quantization is not None:
        return option.quantization
    return option.asked.model.native_format or option.asked.dtype


def _split(option: Option) -> str:
    if option.degrees.gpus == 1:
        return ""
    return f"{option.degrees}" + " ep" * option.is_expert_parallel


def _columns(found: Plan) -> tuple[str, ...]:
    price = ("an hour",) if any(option.price_per_hour is not None for option in found.fitting) else ()
    return ("GPUs", "split", "format", "GiB used", "left", "tokens", "sequences", *price)


def _cells(option: Option, found: Plan) -> tuple[str, ...]:
    price = "" if option.price_per_hour is None else f"{option.price_per_hour:,.2f}"
    cells = (
        f"{option.degrees.gpus} × {option.gpu.name}",
        _split(option),
        _format(option),
        gib(option.used_bytes),
        gib(option.headroom_bytes),
        f"{option.largest_context:,}",
        f"{option.largest_concurrency:,}",
        price,
    )
    return cells[: len(_columns(found))]


def _grid(option: Option, found: Plan) -> Table:
    concurrencies = found.question.concurrencies
    cells = zip(found.question.contexts, option.matrix(len(concurrencies)), strict=True)
    return Table(
        title=f"{_named(option)}: tokens of each sequence, and sequences at once",
        columns=("", *(f"{concurrency:,}" for concurrency in concurrencies)),
        rows=tuple((f"{tokens:,}", *(_MARKS[cell] for cell in row)) for tokens, row in cells),
        words=0,
        note=f"{_MARKS['fits']} fits  {_MARKS['tight']} within the bounds of error  {_MARKS['no']} too much",
    )


def _print_refused(found: Plan, console: Console) -> None:
    reasons = dict.fromkeys(row.reason for row in found.refused)
    for reason in list(reasons)[:3]:
        count = sum(row.reason == reason for row in found.refused)
        console.print(f"[dim]{count:,} not possible: {escape(reason)}[/]", highlight=False)
    if len(reasons) > 3:
        console.print(f"[dim]… and for {len(reasons) - 3} other reasons, all of them in --json[/]")
