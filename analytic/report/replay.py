"""A memory snapshot replayed under other allocator settings: the answer, as a document and for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from analytic.quantity import GiB
from analytic.report import SCHEMA_VERSION
from analytic.report.table import Table
from analytic.report.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

DEFAULTS = "PyTorch's defaults"


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfMemory:
    """The first request that could not be served, where a replay ends."""

    event: int | None
    """Its place in the snapshot's trace, from 0; None for an allocation that precedes the trace."""
    asked_bytes: int
    """What the program asked for …"""
    segment_bytes: int
    """… and the allocator, for it, from the device."""
    free_bytes: int
    """What the device had left, the cache emptied."""
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the events need under one configuration; as far as the memory lasts."""

    alloc_conf: str
    """As in PYTORCH_ALLOC_CONF; empty: PyTorch's defaults."""
    is_recorded: bool
    """Whether it is the configuration that the snapshot was recorded under."""
    max_allocated_bytes: int
    max_requested_bytes: int
    max_reserved_bytes: int
    reserved_bytes: int
    """After the last event."""
    max_num_segments: int
    """Of cudaMalloc; expandable segments are not counted."""
    num_alloc_retries: int
    """Times that the cache was emptied to serve a request."""
    out_of_memory: OutOfMemory | None
    """None: every request was served."""

    @property
    def slack_bytes(self) -> int:
        """Peak of what was reserved less peak of what was in use: rounding, remainders, cached blocks."""
        return self.max_reserved_bytes - self.max_allocated_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """A snapshot, and what its events need under each configuration; the recorded one comes first."""

    snapshot: str
    """The file."""
    device: int
    capacity_bytes: int | None
    """What PyTorch may reserve; None: no limit."""
    context_bytes: int | None
    """Assumed for the CUDA context and already taken off the capacity; None where a capacity was given as such."""
    num_events: int
    """Entries of the device's trace."""
    num_preceding: int
    """Allocations that are older than the trace; replayed before it, in the order of their addresses."""
    preceding_bytes: int
    failed_events: tuple[int, ...]
    """Entries of requests that had no memory in the recording; made again, and freed at once."""
    num_emptied: int
    """Times that the program emptied the cache; done again."""
    num_retries: int
    """Times that the cache was given back, it may be for want of memory; done again only without a limit."""
    num_streams: int
    recorded_reserved_bytes: int
    """Sum of the snapshot's segments."""
    recorded_max_reserved_bytes: int
    """The most that its segments held during the trace."""
    outcomes: tuple[Outcome, ...]
    warnings: tuple[str, ...]

    @property
    def fits(self) -> bool | None:
        """Whether a configuration that was asked for (without one, the recorded) serves all; None without a limit."""
        if self.capacity_bytes is None:
            return None
        asked = [outcome for outcome in self.outcomes if not outcome.is_recorded] or self.outcomes
        return any(outcome.out_of_memory is None for outcome in asked)


def document(answer: Replay) -> dict[str, Any]:
    """``ullage replay --json``."""
    told = asdict(answer)
    outcomes = [asdict(outcome) | {"slack_bytes": outcome.slack_bytes} for outcome in answer.outcomes]
    return {"schema_version": SCHEMA_VERSION, "kind": "replay", **told, "outcomes": outcomes, "fits": answer.fits}


def text(answer: Replay, console: Console) -> None:
    """The events, what they need under each configuration, and how far the recording agrees."""
    console.print(f"{escape(answer.snapshot)}:", soft_wrap=True)
    for line in _events(answer):
        console.print(line)
    console.print(_limit(answer))
    console.print()
    print_table(_table(answer), console)
    for number, outcome in enumerate(answer.outcomes, 1):
        console.print(f"[dim]{number}[/] {_name(outcome)}", soft_wrap=True)
        if outcome.out_of_memory is not None:
            console.print(_out_of_memory(outcome.out_of_memory))
    console.print()
    console.print(_agreement(answer))
    for warning in answer.warnings:
        console.print(f"[yellow]warning[/] {escape(warning)}")


def _events(answer: Replay) -> Iterator[str]:
    yield f"{answer.num_events:,} events of device {answer.device}"
    if answer.num_streams > 1:
        yield f"{answer.num_streams} streams, with pools of their own"
    if answer.num_preceding:
        yield f"{answer.num_preceding:,} older allocations ({_gib(answer.preceding_bytes)} GiB) first"
    if answer.num_emptied:
        yield f"emptyings of the cache: {answer.num_emptied:,}"
    if answer.failed_events:
        yield f"failed requests, made again: {len(answer.failed_events):,}"


def _limit(answer: Replay) -> str:
    if answer.capacity_bytes is None:
        return "Device memory without a limit; give one with --gpu or --gpu-memory."
    context = "" if answer.context_bytes is None else f", {_gib(answer.context_bytes)} GiB of context taken off"
    verdict = "fits" if answer.fits else "does not fit"
    return f"[bold]{verdict}[/] in {_gib(answer.capacity_bytes)} GiB for PyTorch{context}."


_COLUMNS = ("", "allocated GiB", "reserved GiB", "slack GiB", "segments", "retries", "fits")


def _table(answer: Replay) -> Table:
    return Table(
        title="",
        columns=_COLUMNS,
        rows=tuple(
            (
                str(number),
                _gib(outcome.max_allocated_bytes),
                _gib(outcome.max_reserved_bytes),
                _gib(outcome.slack_bytes),
                f"{outcome.max_num_segments:,}",
                str(outcome.num_alloc_retries),
                "–" if answer.capacity_bytes is None else "yes" if outcome.out_of_memory is None else "no",
            )
            for number, outcome in enumerate(answer.outcomes, 1)
        ),
    )


def _name(outcome: Outcome) -> str:
    return escape(outcome.alloc_conf or DEFAULTS) + (" [dim](as recorded)[/]" if outcome.is_recorded else "")


def _out_of_memory(end: OutOfMemory) -> str:
    where = "before the trace" if end.event is None else f"at event {end.event:,}"
    return (
        f"Out of memory {where}: {_gib(end.segment_bytes)} GiB wanted for a request of {end.asked_bytes:,} bytes, "
        f"{_gib(end.free_bytes)} GiB left; {_gib(end.reserved_bytes)} reserved, {_gib(end.allocated_bytes)} in use"
    )


def _agreement(answer: Replay) -> str:
    """The replay of the recorded settings beside what the snapshot shows."""
    recorded = answer.outcomes[0]
    if recorded.out_of_memory is not None:
        if recorded.out_of_memory.event in answer.failed_events[:1]:
            return "Replayed as recorded, memory runs out at the event where it did."
        return "Replayed as recorded, memory runs out where it did not in the recording."
    ends = recorded.reserved_bytes - answer.recorded_reserved_bytes
    peaks = recorded.max_reserved_bytes - answer.recorded_max_reserved_bytes
    if not ends and not peaks:
        return "Replayed as recorded, what is reserved at the end and at the peak is the snapshot's to the byte."
    return (
        f"Replayed as recorded, {_gib(recorded.reserved_bytes)} GiB are reserved at the end; the snapshot says "
        f"{_gib(answer.recorded_reserved_bytes)} ({ends:+,} bytes). At the peak: {_gib(recorded.max_reserved_bytes)} "
        f"and {_gib(answer.recorded_max_reserved_bytes)} ({peaks:+,} bytes){_reasons(answer)}."
    )


def _reasons(answer: Replay) -> str:
    reasons = {
        "the cache before the trace is not known": answer.num_preceding,
        "what failed is made again": len(answer.failed_events),
        "the recording was short of memory": answer.num_retries,
    }
    told = [reason for reason, count in reasons.items() if count]
    return f": {'; '.join(told)}" if told else ""


def _gib(count: int) -> str:
    return f"{count / GiB:,.3f}"
