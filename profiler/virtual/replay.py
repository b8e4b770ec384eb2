"""What a sequence of allocations and frees needs under given settings of PyTorch's caching allocator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analytic.errors import UsageError
from analytic.hardware import context_range, custom_gpu, find_gpu
from analytic.progress import showing
from analytic.quantity import parse_bytes
from analytic.report.replay import Outcome, OutOfMemory, Replay
from profiler.virtual.alloc_conf import AllocConf
from profiler.virtual.allocator import AllocatorStats, CachingAllocator, DeviceOutOfMemoryError
from profiler.virtual.blocks import Block

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from profiler.virtual.snapshot import Event, Snapshot

NO_LIMIT_BYTES = 2**50
"""Capacity of a device without a limit: more than any trace reserves, and addresses for expandable segments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """The allocator after the events, or at the first that it had no memory for."""

    stats: AllocatorStats
    failed_at: int | None = None
    """Index of the event that there was no memory for; None: all were played."""
    error: DeviceOutOfMemoryError | None = None


def play(
    events: Iterable[Event], conf: AllocConf, *, capacity_bytes: int | None, total_bytes: int | None = None
) -> Played:
    """Play events on a fresh device until they end or its memory does.

    Args:
        events: allocations and frees.
        conf: settings.
        capacity_bytes: what the device can give; None: any amount.
        total_bytes: the device's memory, where the capacity is not all of it.
    """
    allocator = CachingAllocator(
        NO_LIMIT_BYTES if capacity_bytes is None else capacity_bytes, conf, total_bytes=total_bytes
    )
    live: dict[int, Block] = {}
    for number, event in enumerate(events):
        try:
            _play(event, allocator, live)
        except DeviceOutOfMemoryError as error:
            return Played(stats=allocator.stats, failed_at=number, error=error)
    return Played(stats=allocator.stats)


def _play(event: Event, allocator: CachingAllocator, live: dict[int, Block]) -> None:
    match event:
        case ("f", name):
            allocator.free(live.pop(name))
        case ("a", name, nbytes):
            live[name] = allocator.malloc(nbytes)
        case ("a", name, nbytes, stream):
            live[name] = allocator.malloc(nbytes, stream=stream)
        case ("e",):
            allocator.empty_cache()
        case ("r",):
            if allocator.capacity_bytes == NO_LIMIT_BYTES:
                allocator.empty_cache()
        case _:
            raise AssertionError(f"no event: {event!r}")


def replay(
    events: Sequence[Event], confs: Sequence[AllocConf], *, capacity_bytes: int | None, total_bytes: int | None = None
) -> list[Played]:
    """Play the same events once for each configuration.

    Raises:
        UsageError: a share of the device's memory is to be kept to, but there is no limit to take it of.
    """
    if capacity_bytes is None and any(conf.memory_fraction < 1 for conf in confs):
        raise UsageError(
            "per_process_memory_fraction is a share of a device's memory, and none is given",
            hint="give --gpu or --gpu-memory",
        )
    with showing("replay", unit="settings") as task:
        return [play(events, conf, capacity_bytes=capacity_bytes, total_bytes=total_bytes) for conf in task.over(confs)]


def capacity(*, gpu: str | None, gpu_memory: str | None) -> tuple[int | None, int | None]:
    """What PyTorch may reserve, and what was assumed for the context and taken off; of a GPU or a given size.

    Args:
        gpu: a name of the GPU table.
        gpu_memory: a size that PyTorch may reserve all of: 20GiB.
    """
    if gpu is not None and gpu_memory is not None:
        raise UsageError("--gpu and --gpu-memory contradict each other", hint="give one of them")
    if gpu_memory is not None:
        return custom_gpu(parse_bytes(gpu_memory, what="--gpu-memory")).total_bytes, None
    if gpu is None:
        return None, None
    found = find_gpu(gpu)
    context_bytes = context_range(found).bytes
    return found.total_bytes - context_bytes, context_bytes


def replay_snapshot(
    snapshot: Snapshot,
    alloc_confs: Sequence[str],
    *,
    capacity_bytes: int | None = None,
    context_bytes: int | None = None,
) -> Replay:
    """What a snapshot's events need under its own settings, and under each of ``alloc_confs``."""
    confs = [snapshot.conf, *map(AllocConf.parse, alloc_confs)]
    total_bytes = None if capacity_bytes is None else capacity_bytes + (context_bytes or 0)
    played = replay(snapshot.events, confs, capacity_bytes=capacity_bytes, total_bytes=total_bytes)
    names = [snapshot.alloc_conf, *alloc_confs]
    return Replay(
        snapshot=snapshot.path,
        device=snapshot.device,
        capacity_bytes=capacity_bytes,
        context_bytes=context_bytes,
        num_events=snapshot.num_events,
        num_preceding=snapshot.num_preceding,
        preceding_bytes=snapshot.preceding_bytes,
        failed_events=snapshot.failed_rows,
        num_emptied=snapshot.num_emptied,
        num_retries=snapshot.num_retries,
        num_streams=snapshot.num_streams,
        recorded_reserved_bytes=snapshot.reserved_bytes,
        recorded_max_reserved_bytes=snapshot.max_reserved_bytes,
        outcomes=tuple(
            _outcome(one, name, snapshot, is_recorded=number == 0)
            for number, (one, name) in enumerate(zip(played, names, strict=True))
        ),
        warnings=(*snapshot.warnings, *_without_effect(confs, names)),
    )


def _without_effect(confs: Sequence[AllocConf], names: Sequence[str]) -> list[str]:
    """PyTorch collects garbage only where the memory that it may reserve is limited (malloc)."""
    return [
        f"{name}: garbage_collection_threshold has no effect without per_process_memory_fraction below 1"
        for conf, name in zip(confs, names, strict=True)
        if conf.garbage_collection_fraction and conf.memory_fraction == 1
    ]


def _outcome(played: Played, name: str, snapshot: Snapshot, *, is_recorded: bool) -> Outcome:
    stats = played.stats
    return Outcome(
        alloc_conf=name,
        is_recorded=is_recorded,
        max_allocated_bytes=stats.max_allocated_bytes,
        max_requested_bytes=stats.max_requested_bytes,
        max_reserved_bytes=stats.max_reserved_bytes,
        reserved_bytes=stats.reserved_bytes,
        max_num_segments=stats.max_num_segments,
        num_alloc_retries=stats.num_alloc_retries,
        out_of_memory=_out_of_memory(played, snapshot),
    )


def _out_of_memory(played: Played, snapshot: Snapshot) -> OutOfMemory | None:
    if played.error is None or played.failed_at is None:
        return None
    return OutOfMemory(
        event=snapshot.rows[played.failed_at],
        asked_bytes=played.error.asked_bytes,
        segment_bytes=played.error.segment_bytes,
        free_bytes=played.error.free_bytes,
        allocated_bytes=played.error.allocated_bytes,
        reserved_bytes=played.error.reserved_bytes,
    )
