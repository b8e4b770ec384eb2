"""PyTorch's memory snapshots (``torch.cuda.memory._snapshot``) as events to replay; files are not trusted.

A snapshot is JSON, or the pickle of ``_dump_snapshot``; either may be gzipped. Of a pickle only what builds plain
containers and scalars is executed. Source of the format: torch/cuda/memory.py (``_snapshot``) and
torch/csrc/cuda/memory_snapshot.cpp of torch 2.11 to 2.13.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from analytic.errors import UllageError, UsageError
from profiler.virtual.alloc_conf import AllocConf
from profiler.virtual.plain_data import (
    MalformedError,
    count_in,
    each_row,
    flag_in,
    fraction_in,
    read_plain,
    row_of,
    rows_in,
    size_in,
    text_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


Event: TypeAlias = "tuple[str, int, int] | tuple[str, int, int, int] | tuple[str, int] | tuple[str]"
"""``("a", id, bytes)``, or with a stream: an allocation; ``("f", id)``: its end; ``("e",)``: ``empty_cache``.

``("r",)``: here a recording gave its cache back, it may be for want of memory; done again only without a limit.
"""

MOST_ROWS = 2**24
"""Entries of a trace and blocks of segments, together."""
_RECORD = (
    "call torch.cuda.memory._record_memory_history() before the model is loaded, and "
    "torch.cuda.memory._dump_snapshot('snapshot.pickle') at the end"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """One device's part of a snapshot."""

    path: str
    device: int
    alloc_conf: str
    """The settings, as they were last given to PyTorch; empty: the defaults."""
    conf: AllocConf
    """The settings that held at the end."""
    events: tuple[Event, ...]
    """Allocations that precede the trace, then what the trace tells."""
    rows: tuple[int | None, ...]
    """Of each event, its entry in the trace; None for those that precede it."""
    num_events: int
    """Entries of the trace."""
    num_preceding: int
    """Allocations whose beginning the trace does not tell: it is a ring, and recording may begin late."""
    preceding_bytes: int
    failed_rows: tuple[int, ...]
    """Entries of requests that there was no memory for."""
    num_emptied: int
    """Times that the program emptied the cache."""
    num_retries: int
    """Times that the cache was given back, it may be for want of memory."""
    num_streams: int
    reserved_bytes: int
    """Sum of the segments when the snapshot was taken."""
    max_reserved_bytes: int
    """The most that they were during the trace."""
    warnings: tuple[str, ...] = ()


def read_snapshot(path: Path, *, device: int | None = None) -> Snapshot:
    """Read a snapshot; of one with events of several devices, the device's.

    Raises:
        UllageError: the file cannot be read, holds more than plain data, or is not a snapshot.
        UsageError: several devices have events and none is named.
    """
    try:
        return _snapshot(path, read_plain(path), device)
    except MalformedError as error:
        raise UllageError(f"{path}: not a memory snapshot that can be replayed: {error}", hint=_RECORD) from error


def _without_pool(row: dict[str, Any], name: str) -> None:
    if row.get(name, (0, 0)) not in ((0, 0), [0, 0]):
        raise MalformedError("a private pool (CUDA graphs, torch.cuda.MemPool) is not simulated")


def _snapshot(path: Path, document: Any, device: int | None) -> Snapshot:
    top = row_of(document)
    traces, segments = rows_in(top, "device_traces"), rows_in(top, "segments")
    if any(not isinstance(trace, list | tuple) for trace in traces):
        raise MalformedError("'device_traces' does not hold a list a device")
    device = _device(traces, device)
    rows = traces[device]
    if len(rows) > MOST_ROWS:
        raise MalformedError(f"more than {MOST_ROWS:,} entries")
    net, peak = _reserved(rows)
    trace = _Trace(peak)
    each_row(rows, f"entry of device {device}'s trace", trace.follow)
    trace.end_releases(None)
    held = _Segments(trace, device)
    each_row(segments, "segment", held.add)
    text, conf = _settings(top)
    before = sorted(trace.before)
    return Snapshot(
        path=str(path),
        device=device,
        alloc_conf=text,
        conf=conf,
        events=(*(event for _, event in before), *trace.events),
        rows=(*(None for _ in before), *trace.rows),
        num_events=len(rows),
        num_preceding=len(before),
        preceding_bytes=sum(event[2] for _, event in before),
        failed_rows=tuple(trace.failed_rows),
        num_emptied=trace.num_emptied,
        num_retries=trace.num_retries,
        num_streams=len(trace.streams),
        reserved_bytes=held.reserved_bytes,
        max_reserved_bytes=held.reserved_bytes - net + peak,
        warnings=tuple(_warnings(trace, held)),
    )


def _device(traces: Sequence[Sequence[Any]], asked: int | None) -> int:
    recorded = [number for number, trace in enumerate(traces) if trace]
    if asked is not None and asked not in recorded:
        raise UsageError(f"device {asked} has no events in this snapshot", hint=f"devices with events: {recorded}")
    if not recorded:
        raise MalformedError("no allocation was recorded")
    if asked is None and len(recorded) > 1:
        raise UsageError(f"devices {recorded} have events", hint="say which: --device 0")
    return recorded[0] if asked is None else asked


_GROWTH = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}


def _reserved(rows: Sequence[Any]) -> tuple[int, int]:
    """What the trace adds to the segments in all, and at most until then."""
    now = peak = 0

    def grow(_: int, row: dict[str, Any]) -> None:
        nonlocal now, peak
        if sign := _GROWTH.get(text_in(row, "action")):
            now += sign * size_in(row, "size")
            peak = max(peak, now)

    each_row(rows, "entry", grow)
    return now, peak


class _Trace:
    """Follows the entries of a trace and writes them down as events.

    Args:
        peak: the most that the trace adds to the segments, in bytes.
    """

    def __init__(self, peak: int) -> None:
        self.events: list[Event] = []
        self.rows: list[int] = []
        self.before: list[tuple[int, tuple[str, int, int, int]]] = []
        """(address, allocation) of what precedes the trace."""
        self.live: dict[int, int] = {}
        """Size asked for, of each address in use."""
        self.seen: set[int] = set()
        """Addresses that the trace tells of."""
        self.streams: dict[int, int] = {}
        """Number of each stream, as events have it."""
        self.failed_rows: list[int] = []
        self.num_emptied = self.num_retries = self.num_delayed = 0
        self._number = 0
        self._names: dict[int, int] = {}
        self._made = 0
        self._peak = peak
        self._reserved = 0
        self._releasing_from: int | None = None
        self._requested: int | None = None

    def follow(self, number: int, row: dict[str, Any]) -> None:
        """One entry."""
        self._number = number
        action = text_in(row, "action")
        if action not in _ACTIONS:
            raise MalformedError(f"unknown action {action[:40]!r}")
        _without_pool(row, "pool_id")
        if action not in ("segment_free", "segment_unmap"):
            self.end_releases(row if action in ("segment_alloc", "segment_map", "oom") else None)
        if (act := _ACTIONS[action]) is not None:
            act(self, row)

    def precede(self, address: int, size: int, stream: int) -> int:
        """An allocation that the trace does not tell of."""
        name = self._name()
        self.before.append((address, ("a", name, size, self._stream(stream))))
        return name

    def end_releases(self, row: dict[str, Any] | None) -> None:
        """Note that segments were given back: by ``empty_cache``, or, as this entry may show, for want of memory.

        Then the segment that there was no room for comes next, and with it there would have been more than there ever
        was; or the request fails.
        """
        before, self._releasing_from = self._releasing_from, None
        if before is None:
            return
        if row is not None and (row["action"] == "oom" or before + size_in(row, "size") > self._peak):
            self.num_retries += 1
            self._note(("r",))
        else:
            self.num_emptied += 1
            self._note(("e",))

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self.rows.append(self._number)

    def _name(self) -> int:
        self._made += 1
        return self._made

    def _stream(self, stream: int) -> int:
        return self.streams.setdefault(stream, len(self.streams))

    def _alloc(self, row: dict[str, Any]) -> None:
        address, size = size_in(row, "addr"), size_in(row, "size")
        if address in self.live:
            raise MalformedError("an address is allocated that is in use; was it recorded with skip_actions?")
        self.seen.add(address)
        self.live[address] = size
        name = self._names[address] = self._name()
        self._note(("a", name, size, self._stream(count_in(row, "stream"))))

    def _free_requested(self, row: dict[str, Any]) -> None:
        self._requested = size_in(row, "addr")

    def _free_completed(self, row: dict[str, Any]) -> None:
        address = size_in(row, "addr")
        self.num_delayed += address != self._requested
        if self.live.pop(address, None) is not None:
            name = self._names.pop(address)
        elif address not in self.seen:
            name = self.precede(address, size_in(row, "size"), count_in(row, "stream"))
        else:
            raise MalformedError("an address is freed that is not in use")
        self.seen.add(address)
        self._note(("f", name))

    def _segment(self, row: dict[str, Any]) -> None:
        growth = _GROWTH[row["action"]] * size_in(row, "size")
        if growth < 0 and self._releasing_from is None:
            self._releasing_from = self._reserved
        self._reserved += growth

    def _oom(self, row: dict[str, Any]) -> None:
        name = self._name()
        self.failed_rows.append(self._number)
        self._note(("a", name, size_in(row, "size"), self._stream(count_in(row, "stream"))))
        self._note(("f", name))


_ACTIONS: dict[str, Callable[[_Trace, dict[str, Any]], None] | None] = {
    "alloc": _Trace._alloc,
    "free_requested": _Trace._free_requested,
    "free_completed": _Trace._free_completed,
    "segment_alloc": _Trace._segment,
    "segment_map": _Trace._segment,
    "segment_free": _Trace._segment,
    "segment_unmap": _Trace._segment,
    "oom": _Trace._oom,
    "snapshot": None,
    "workspace_snapshot": None,
}

_IN_USE = {"inactive": False, "active_allocated": True, "active_pending_free": True, "active_awaiting_free": True}
"""States of blocks; those that wait for another stream are in use until their free completes."""


class _Segments:
    """Adds up a device's segments, and finds what was allocated before the trace and is still in use."""

    def __init__(self, trace: _Trace, device: int) -> None:
        self.reserved_bytes = 0
        self.num_later = 0
        """Blocks in use that the trace tells otherwise of."""
        self.num_known = 0
        self._trace = trace
        self._device = device
        self._num_blocks = 0
        self._stream = 0

    def add(self, _: int, segment: dict[str, Any]) -> None:
        """One segment."""
        if count_in(segment, "device") != self._device:
            return
        _without_pool(segment, "segment_pool_id")
        self.reserved_bytes += size_in(segment, "total_size")
        self._stream = count_in(segment, "stream")
        blocks = rows_in(segment, "blocks")
        self._num_blocks += len(blocks)
        if self._num_blocks > MOST_ROWS:
            raise MalformedError(f"more than {MOST_ROWS:,} blocks")
        each_row(blocks, "block", self._block)

    def _block(self, _: int, block: dict[str, Any]) -> None:
        state = text_in(block, "state")
        if state not in _IN_USE:
            raise MalformedError(f"unknown state {state[:40]!r}")
        if not _IN_USE[state]:
            return
        address, size = size_in(block, "address"), size_in(block, "requested_size")
        if address not in self._trace.seen:
            self._trace.precede(address, size, self._stream)
        elif self._trace.live.get(address) == size:
            self.num_known += 1
        else:
            self.num_later += 1


def _settings(top: dict[str, Any]) -> tuple[str, AllocConf]:
    """The settings as they were spelled, and as they were: those set at run time replace some, not all."""
    try:
        told = row_of(top.get("allocator_settings"))
        text = text_in(told, "PYTORCH_CUDA_ALLOC_CONF")
        most = count_in(told, "max_split_size")
        conf = replace(
            AllocConf.parse(text),
            max_split_bytes=None if most < 0 or most >= 2**63 - 1 else most,
            garbage_collection_fraction=fraction_in(told, "garbage_collection_threshold"),
            expandable_segments=flag_in(told, "expandable_segments"),
            roundup_divisions=_divisions(row_of(told.get("roundup_power2_divisions"))),
        )
    except (MalformedError, UsageError) as error:
        raise MalformedError(f"allocator_settings: {error}") from error
    return text, conf


def _divisions(row: dict[str, Any]) -> tuple[int, ...]:
    """Keyed by the MiB that the interval begins at."""
    found = tuple(size_in(row, str(2**power)) for power in range(len(AllocConf().roundup_divisions)))
    if any(divisions.bit_count() > 1 for divisions in found):
        raise MalformedError("'roundup_power2_divisions' has one that is not a power of two")
    return found


def _warnings(trace: _Trace, held: _Segments) -> Iterator[str]:
    if trace.num_delayed:
        yield f"{trace.num_delayed:,} frees waited for another stream; their memory counts as in use until then"
    gone = len(trace.live) - held.num_known
    if held.num_later or gone:
        yield (
            f"recording had ended when the snapshot was taken: {gone:,} allocations of the trace are not in its "
            f"segments, {held.num_later:,} there are not the trace's; what precedes the trace is uncertain"
        )
