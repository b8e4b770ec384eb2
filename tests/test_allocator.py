"""The simulated caching allocator equals PyTorch's own, and a second one that scans everything."""

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytic.errors import UsageError
from profiler.virtual.alloc_conf import AllocConf
from profiler.virtual.allocator import CachingAllocator, DeviceOutOfMemoryError
from profiler.virtual.blocks import Block

KIB, MIB, GIB = 2**10, 2**20, 2**30
TRACES = sorted((Path(__file__).parent / "data" / "allocator").glob("*.jsonl.gz"))


def told(allocator: CachingAllocator, oom: dict[str, int] | None) -> dict[str, Any]:
    """Every figure that recordings have."""
    stats = {name: getattr(allocator.stats, name) for name in type(allocator.stats).__dataclass_fields__}
    return stats | {
        "active_bytes": stats["allocated_bytes"],  # on one stream no free waits
        "max_active_bytes": stats["max_allocated_bytes"],
        "num_segments_made": 0 if allocator.conf.expandable_segments else stats["num_device_alloc"],
        "oom": oom,
    }


def play(header: dict[str, Any], events: list[list[Any]]) -> dict[str, Any]:
    conf = AllocConf.parse(header["alloc_conf"])
    allocator = CachingAllocator(
        header["capacity_bytes"], replace(conf, memory_fraction=header.get("memory_fraction", conf.memory_fraction))
    )
    live: dict[int, Block] = {}
    for number, event in enumerate(events):
        match event:
            case ["a", name, nbytes]:
                try:
                    live[name] = allocator.malloc(nbytes)
                except DeviceOutOfMemoryError as error:
                    return told(allocator, out_of_memory(number, error))
            case ["f", name]:
                allocator.free(live.pop(name))
            case ["e"]:
                allocator.empty_cache()
            case _:
                raise AssertionError(event)
    return told(allocator, None)


def out_of_memory(number: int, error: DeviceOutOfMemoryError) -> dict[str, int]:
    return {
        "event": number,
        "asked_bytes": error.asked_bytes,
        "rounded_bytes": error.segment_bytes,
        "free_bytes": error.free_bytes,
    }


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_every_figure_of_pytorchs_own_allocator(path: Path) -> None:
    with gzip.open(path, "rt") as lines:
        header, *events = map(json.loads, lines)
    got = play(header, events)
    assert {name: got[name] for name in header["expected"]} == header["expected"]


# What the statistics say after a few allocations, by hand.


def test_a_block_is_rounded_to_512_bytes_and_split_off_a_two_mebibyte_segment() -> None:
    allocator = CachingAllocator(GIB)
    allocator.malloc(1)
    allocator.malloc(MIB)
    stats = allocator.stats
    assert (stats.allocated_bytes, stats.requested_bytes) == (512 + MIB, 1 + MIB)
    assert (stats.reserved_bytes, stats.num_segments) == (2 * MIB, 1)
    assert stats.inactive_split_bytes == 2 * MIB - MIB - 512


def test_up_to_a_mebibyte_of_a_large_segment_stays_with_the_block() -> None:
    allocator = CachingAllocator(GIB)
    allocator.malloc(19 * MIB)  # a segment of 20 MiB: 1 MiB is left, not more
    assert (allocator.allocated_bytes, allocator.requested_bytes) == (20 * MIB, 19 * MIB)


def test_a_freed_block_serves_the_next_request_and_neighbours_become_one() -> None:
    allocator = CachingAllocator(GIB)
    blocks = [allocator.malloc(6 * MIB) for _ in range(3)]  # 18 of 20 MiB
    for block in blocks:
        allocator.free(block)
    allocator.malloc(20 * MIB)
    assert (allocator.num_segments, allocator.reserved_bytes) == (1, 20 * MIB)


def test_the_cache_is_given_back_before_memory_runs_out() -> None:
    allocator = CachingAllocator(100 * MIB)
    allocator.free(allocator.malloc(60 * MIB))
    allocator.malloc(80 * MIB)
    assert (allocator.num_alloc_retries, allocator.reserved_bytes) == (1, 80 * MIB)
    with pytest.raises(DeviceOutOfMemoryError) as caught:
        allocator.malloc(30 * MIB + 1)
    assert (caught.value.asked_bytes, caught.value.segment_bytes) == (30 * MIB + 1, 32 * MIB)
    assert (caught.value.free_bytes, caught.value.allocated_bytes) == (20 * MIB, 80 * MIB)
    assert (allocator.num_alloc_retries, allocator.num_ooms) == (2, 1)


def test_an_expandable_segment_grows_where_segments_would_leave_holes() -> None:
    grown = {}
    for conf in (None, "expandable_segments:True"):
        allocator = CachingAllocator(GIB, conf)
        cache = allocator.malloc(40 * MIB)
        for mebibytes in range(42, 62, 2):
            longer = allocator.malloc(mebibytes * MIB)
            allocator.free(cache)
            cache = longer
        grown[conf] = allocator.max_reserved_bytes
    assert grown["expandable_segments:True"] < grown[None] / 2


def test_peaks_can_be_reset() -> None:
    allocator = CachingAllocator(GIB)
    allocator.free(allocator.malloc(40 * MIB))
    allocator.reset_peak()
    stats = allocator.stats
    assert (stats.max_allocated_bytes, stats.max_requested_bytes, stats.max_reserved_bytes) == (0, 0, 40 * MIB)


def test_blocks_of_another_stream_are_not_reused() -> None:
    allocator = CachingAllocator(GIB)
    allocator.free(allocator.malloc(40 * MIB, stream=1))
    allocator.malloc(40 * MIB, stream=2)
    assert allocator.reserved_bytes == 80 * MIB
    allocator.malloc(40 * MIB, stream=1)
    assert allocator.reserved_bytes == 80 * MIB


def test_no_bytes_need_no_memory() -> None:
    allocator = CachingAllocator(0)
    block = allocator.malloc(0)
    allocator.free(block)
    with pytest.raises(ValueError):
        allocator.free(block)
    assert allocator.reserved_bytes == allocator.allocated_bytes == 0
    with pytest.raises(ValueError):
        allocator.malloc(-1)


def test_an_exabyte_is_refused_and_the_cache_kept() -> None:
    allocator = CachingAllocator(GIB)
    allocator.free(allocator.malloc(40 * MIB))
    with pytest.raises(DeviceOutOfMemoryError):
        allocator.malloc(2**60 + 1)
    assert (allocator.reserved_bytes, allocator.num_ooms) == (40 * MIB, 0)


@pytest.mark.parametrize("nbytes", [1, 5 * MIB, 40 * MIB])
def test_a_block_is_freed_once_by_the_allocator_that_gave_it(nbytes: int) -> None:
    allocator, other = CachingAllocator(GIB), CachingAllocator(GIB)
    block = allocator.malloc(nbytes)
    with pytest.raises(ValueError):
        other.free(block)
    allocator.free(block)
    with pytest.raises(ValueError):
        allocator.free(block)


# A second allocator, which keeps nothing but what is used and what is mapped, and looks at all of it every time.


COUNTS = ("num_alloc_retries", "num_ooms", "num_device_alloc", "num_device_free")


@dataclass
class Segment:
    start: int
    size: int
    small: bool
    stream: int
    page: int
    mapped: set[int]
    """Numbers of the pages that have memory; a cudaMalloc is one page."""

    def parts(self, used: dict[int, tuple[int, int]]) -> list[tuple[str, int, int]]:
        """(used, free or unmapped; start; end), in order, without two free or two unmapped ones in a row."""
        found: list[tuple[str, int, int]] = []
        at, end = self.start, self.start + self.size
        while at < end:
            page = (at - self.start) // self.page
            if at in used:
                kind, stop = "used", at + used[at][0]
            elif page in self.mapped:
                kind = "free"
                stop = min([a for a in used if a > at] + [self.start + (page + 1) * self.page])
            else:
                kind, stop = "unmapped", self.start + (page + 1) * self.page
            if found and kind != "used" and found[-1][0] == kind:
                found[-1] = (kind, found[-1][1], stop)
            else:
                found.append((kind, at, stop))
            at = stop
        return found


@dataclass
class Reference:
    capacity: int
    conf: AllocConf
    used: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Address to (size, requested)."""
    segments: list[Segment] = field(default_factory=list)
    born: dict[tuple[int, int], int] = field(default_factory=dict)
    """Since which search each free part has been as it is."""
    clock: int = 0
    starts: Iterator[int] = field(default_factory=lambda: count(step=2**40))
    """Addresses of segments; none comes twice and none is beside another."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    peaks: dict[str, int] = field(default_factory=dict)

    @property
    def limit(self) -> int | None:
        return int(self.conf.memory_fraction * self.capacity) if self.conf.memory_fraction < 1 else None

    @property
    def collects(self) -> bool:
        return self.limit is not None and self.conf.garbage_collection_fraction > 0

    def reserved(self) -> int:
        return sum(len(s.mapped) * s.page for s in self.segments)

    def frees(self, small: bool, stream: int | None = None) -> Iterator[tuple[int, int, Segment]]:
        """(start, end, segment) of the free parts."""
        for segment in self.segments:
            if segment.small is small and stream in (None, segment.stream):
                for kind, start, end in segment.parts(self.used):
                    if kind == "free":
                        yield start, end, segment

    def note(self) -> dict[str, int]:
        """Ages of free parts and peaks of figures, brought up to date."""
        now = {(a, b) for small in (True, False) for a, b, _ in self.frees(small)}
        self.born = {part: self.born.get(part, self.clock) for part in now}
        figures = {
            "allocated_bytes": sum(size for size, _ in self.used.values()),
            "requested_bytes": sum(requested for _, requested in self.used.values()),
            "reserved_bytes": self.reserved(),
            "inactive_split_bytes": 0
            if self.conf.expandable_segments
            else sum(b - a for small in (True, False) for a, b, s in self.frees(small) if b - a < s.size),
            "num_segments": 0 if self.conf.expandable_segments else len(self.segments),
        }
        for name, value in figures.items():
            peak = name.replace("num", "max_num") if name.startswith("num") else f"max_{name}"
            self.peaks[peak] = max(self.peaks.get(peak, 0), value)
        return figures | self.peaks | self.counts

    def round(self, nbytes: int) -> int:
        power = 1
        while power * 2 <= nbytes:
            power *= 2
        interval = min(max((power // MIB).bit_length() - 1, 0), 15)
        divisions = self.conf.roundup_divisions[interval]
        step = power // divisions if divisions > 1 and nbytes > 512 * divisions else 512
        size = 0
        while size < nbytes:
            size += step * max((nbytes - size) // step, 1)
        return size

    def malloc(self, nbytes: int, stream: int) -> int:
        size = self.round(nbytes)
        small = size <= MIB
        place = self.search(size, small, stream)
        if place is None:
            self.collect()
            shared = 2 * MIB if small else self.conf.large_segment_bytes
            asked = shared if size < 10 * MIB else (size + 2 * MIB - 1) >> 21 << 21
            place = self.extend(size, small, stream, asked)
            if place is None and self.release_oversize(size, small, stream):
                place = self.extend(size, small, stream, asked)
            if place is None:
                self.empty_cache()
                self.counts["num_alloc_retries"] += 1
                place = self.extend(size, small, stream, asked)
            if place is None:
                self.counts["num_ooms"] += 1
                raise MemoryError
        start, end = place
        left = end - start - size
        if small or self.conf.expandable_segments:
            splits = left >= 512
        else:
            splits = left > MIB and size < (self.conf.max_split_bytes or 2**62)
        self.used[start] = (size if splits else end - start, nbytes)
        return start

    def search(self, size: int, small: bool, stream: int) -> tuple[int, int] | None:
        if not small and self.collects:
            self.clock += 1
        fits = sorted((b - a, a, segment.start) for a, b, segment in self.frees(small, stream) if b - a >= size)
        if not fits:
            return None
        chosen = 0
        if self.conf.expandable_segments:
            while chosen + 1 < len(fits) and self.reach(*fits[chosen + 1]) < self.reach(*fits[chosen]):
                chosen += 1
        found, start, _ = fits[chosen]
        if (most := self.conf.max_split_bytes) is not None:
            if size < most <= found:
                return None
            if size >= most and found >= size + self.conf.max_non_split_rounding_bytes:
                return None
        return start, start + found

    def reach(self, size: int, start: int, segment_start: int) -> int:
        parts = next(s for s in self.segments if s.start == segment_start).parts(self.used)
        return size + sum(b - a for kind, a, b in parts if kind == "unmapped" and a == start + size)

    def extend(self, size: int, small: bool, stream: int, asked: int) -> tuple[int, int] | None:
        if self.limit is not None and self.reserved() + asked > self.limit:
            return None
        if self.conf.expandable_segments:
            return self.expand(size, small, stream)
        if self.reserved() + asked > self.capacity:
            return None
        self.counts["num_device_alloc"] += 1
        start = next(self.starts)
        self.segments.append(Segment(start, asked, small, stream, asked, {0}))
        return start, start + asked

    def expand(self, size: int, small: bool, stream: int) -> tuple[int, int] | None:
        for segment in self.segments:
            if (segment.small, segment.stream) != (small, stream):
                continue
            parts = segment.parts(self.used)
            for i, (kind, at, _) in enumerate(parts):
                if kind != "unmapped":
                    continue
                start = parts[i - 1][1] if i and parts[i - 1][0] == "free" else at
                stop = next((a for k, a, _ in parts if k == "used" and a > start), segment.start + segment.size)
                if stop - start >= size:
                    return self.grow(segment, start, size)
        page = 2 * MIB if small else self.conf.large_segment_bytes
        room = (self.capacity + self.capacity // 8 + page - 1) // page * page
        start = next(self.starts)
        segment = Segment(start, room, small, stream, page, set())
        self.segments.append(segment)
        return self.grow(segment, start, size)

    def grow(self, segment: Segment, start: int, size: int) -> tuple[int, int] | None:
        """Map run after run of unmapped pages until the free part from ``start`` is large enough."""
        while True:
            parts = segment.parts(self.used)
            at = next(i for i, (_, a, _) in enumerate(parts) if a == start)
            kind, _, end = parts[at]
            if kind == "free" and end - start >= size:
                return start, end
            _, a, b = parts[at] if kind == "unmapped" else parts[at + 1]
            first = (a - segment.start) // segment.page
            wanted = min(b, start + size) - a
            pages = set(range(first, first + (wanted + segment.page - 1) // segment.page))
            if self.reserved() + len(pages) * segment.page > self.capacity:
                return None
            self.counts["num_device_alloc"] += 1
            segment.mapped |= pages
            self.note()  # the part that grew is a new one

    def release_oversize(self, size: int, small: bool, stream: int) -> bool:
        most = self.conf.max_split_bytes
        if most is None or self.conf.expandable_segments:
            return False
        oversize = sorted((b - a, a, s.start) for a, b, s in self.frees(small, stream) if b - a >= most)
        if fits := [part for part in oversize if part[0] >= max(size, most)]:
            self.give_back(fits[0][2])
            return True
        released = 0
        while oversize and released < max(size, most):
            released += oversize[-1][0]
            self.give_back(oversize.pop()[2])
        return released >= max(size, most)

    def give_back(self, start: int) -> None:
        self.counts["num_device_free"] += 1
        self.segments = [s for s in self.segments if s.start != start]

    def collect(self) -> None:
        if not self.collects:
            return
        assert self.limit is not None
        aim = self.reserved() - int(self.conf.garbage_collection_fraction * self.limit)
        got = 0
        while got < aim:
            whole = [(b - a, self.clock - self.born[a, b], s.start) for a, b, s in self.frees(False) if b - a == s.size]
            if self.conf.expandable_segments or not whole:
                return
            for size, age, start in whole:
                if age >= sum(age for _, age, _ in whole) / len(whole):
                    got += size
                    self.give_back(start)

    def empty_cache(self) -> None:
        for small in (True, False):
            for start, end, segment in list(self.frees(small)):
                first = -((segment.start - start) // segment.page)
                pages = set(range(first, (end - segment.start) // segment.page))
                if pages:
                    segment.mapped -= pages
                    self.counts["num_device_free"] += 1
        self.segments = [s for s in self.segments if s.mapped]

    def free(self, start: int) -> None:
        size, _ = self.used.pop(start)
        for part in [part for part in self.born if part[1] == start or part[0] == start + size]:
            del self.born[part]


CONFS = [
    None,
    "max_split_size_mb:20",
    "max_split_size_mb:32,max_non_split_rounding_mb:24",
    "max_split_size_mb:21,roundup_power2_divisions:2",
    "roundup_power2_divisions:[1:16,4:8,>:4]",
    "large_segment_size_mb:12",
    "per_process_memory_fraction:0.8",
    "per_process_memory_fraction:0.9,garbage_collection_threshold:0.5",
    "per_process_memory_fraction:0.9,garbage_collection_threshold:0.3,max_split_size_mb:24",
    "expandable_segments:True",
    "expandable_segments:True,roundup_power2_divisions:4",
    "expandable_segments:True,max_split_size_mb:32",
    "expandable_segments:True,per_process_memory_fraction:0.8,garbage_collection_threshold:0.5",
    "expandable_segments:True,large_segment_size_mb:30",
]

EDGES = [1, 512, MIB - 1, MIB, MIB + 1, 2 * MIB, 10 * MIB - 512, 10 * MIB, 19 * MIB, 20 * MIB, 21 * MIB, 24 * MIB]


def some_events(rng: random.Random, capacity: int) -> Iterator[tuple[Any, ...]]:
    """Allocations of a few usual and of many sizes, most of the time close to what the device has."""
    usual = [int(2 ** rng.uniform(9, 25)) for _ in range(3)]
    live: list[int] = []
    for _ in range(90):
        nbytes = rng.choice([rng.choice(EDGES), rng.choice(usual), int(2 ** rng.uniform(9, 25.3))])
        draw = rng.random()
        if draw < 0.015:
            yield ("e",)
        elif live and (draw < 0.42 or sum(live) + nbytes > capacity * 0.97):
            which = rng.randrange(len(live))
            live.pop(which)
            yield "f", which
        else:
            live.append(nbytes)
            yield "a", nbytes, rng.choice([0, 0, 0, 0, 7])


@given(conf=st.sampled_from(CONFS), capacity=st.integers(min_value=30, max_value=200), seed=st.integers(min_value=0))
@settings(max_examples=120, deadline=None)
def test_every_figure_after_every_event_is_that_of_a_second_allocator(
    conf: str | None, capacity: int, seed: int
) -> None:
    rng = random.Random(seed)
    allocator = CachingAllocator(capacity * MIB, conf)
    reference = Reference(capacity * MIB, AllocConf.parse(conf))
    live: list[tuple[Block | None, int]] = []
    for event in some_events(rng, capacity * MIB):
        match event:
            case ("a", nbytes, stream):
                try:
                    start = reference.malloc(nbytes, stream)
                except MemoryError:
                    with pytest.raises(DeviceOutOfMemoryError):
                        allocator.malloc(nbytes, stream=stream)
                    live.append((None, 0))
                else:
                    live.append((allocator.malloc(nbytes, stream=stream), start))
            case ("f", which):
                block, start = live.pop(which)
                if block is not None:
                    allocator.free(block)
                    reference.free(start)
            case _:
                allocator.empty_cache()
                reference.empty_cache()
        expected = reference.note()
        assert {name: getattr(allocator, name) for name in expected} == expected, event


# Settings.


def test_settings_are_read_as_pytorch_reads_them() -> None:
    conf = AllocConf.parse("max_split_size_mb:64 , expandable_segments:True,roundup_power2_divisions:[4:1,8:2,>:8],")
    assert conf.max_split_bytes == 64 * MIB
    assert conf.expandable_segments
    assert conf.roundup_divisions == (1,) * 3 + (2,) + (8,) * 12  # 1 to 4 MiB, 8 MiB, 16 MiB to 32 GiB
    assert AllocConf.parse(None) == AllocConf.parse("") == AllocConf()


def test_the_large_segment_is_also_the_rounding_allowed_of_what_is_not_split() -> None:
    assert AllocConf.parse("large_segment_size_mb:40").max_non_split_rounding_bytes == 40 * MIB


@pytest.mark.parametrize(
    "text",
    [
        "backend:native",
        "pinned_use_background_threads:True,pinned_num_register_threads:8",
        "pinned_reserve_segment_size_mb:16,pinned_free_catch_all:False,pinned_use_cuda_host_register:True",
        "release_lock_on_cudamalloc:True,graph_capture_record_stream_reuse:True,throw_on_cudamalloc_oom:False",
    ],
)
def test_settings_that_change_no_size_are_known(text: str) -> None:
    assert AllocConf.parse(text) == AllocConf()


REFUSED = [
    ("max_split_size_mb", "NAME:VALUE"),
    ("max_split_size_mb:", "NAME:VALUE"),
    ("max_split_size_mb:64;expandable_segments:True", "max_split_size_mb"),
    ("max_split_size_mb:abc", "not a whole number"),
    ("max_split_size_mb:19", "at least 20"),
    ("max_split_size_mb:30,large_segment_size_mb:40", "at least 40"),
    ("max_non_split_rounding_mb:10", "at least 20"),
    ("large_segment_size_mb:10", "more than 10"),
    ("expandable_segments:true", "neither True nor False"),
    ("garbage_collection_threshold:1.0", "between 0 and 1"),
    ("garbage_collection_threshold:0", "between 0 and 1"),
    ("roundup_power2_divisions:3", "power of two"),
    ("roundup_power2_divisions:0", "power of two"),
    ("roundup_power2_divisions:[3:8]", "power of two"),
    ("roundup_power2_divisions:[256:1,512:2", "NAME:VALUE"),
    ("roundup_power2_divisions:[256-1]", "not a whole number"),
    (",", "NAME:VALUE"),
]
REFUSED_HERE = [
    ("max_split:64", "max_split: not an allocator setting"),
    ("max_split_size_mb:64x", "not a whole number"),
    ("max_split_size_mb:-1", "not a whole number"),
    ("per_process_memory_fraction:1.5", "from 0 to 1"),
    ("per_process_memory_fraction:nan", "not a number"),
    ("backend:cudaMallocAsync", "only PyTorch's own allocator"),
    ("throw_on_cudamalloc_oom:True", "not simulated"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED + REFUSED_HERE)
def test_settings_that_cannot_be_meant_are_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        AllocConf.parse(text)
    assert message in caught.value.message
    assert caught.value.hint


def test_pytorchs_own_parser_takes_and_refuses_the_same_and_rounds_alike() -> None:
    import ctypes

    torch = pytest.importorskip("torch")
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    divisions = library._ZN3c1016CachingAllocator26AcceleratorAllocatorConfig24roundup_power2_divisionsEm
    divisions.restype, divisions.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
    try:
        for text in filter(None, [*CONFS, "roundup_power2_divisions:[131072:8,1:4]", "roundup_power2_divisions:[>:8]"]):
            torch._C._accelerator_setAllocatorSettings(f"large_segment_size_mb:20,{text}")
            assert tuple(divisions(2**i * MIB) for i in range(16)) == AllocConf.parse(text).roundup_divisions
        for text, _ in REFUSED:
            with pytest.raises((ValueError, RuntimeError)):
                torch._C._accelerator_setAllocatorSettings(text)
    finally:
        torch._C._accelerator_setAllocatorSettings("large_segment_size_mb:20,expandable_segments:False")
