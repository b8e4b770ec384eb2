"""PyTorch's CUDA caching allocator, simulated to the byte: one device, two pools a stream.

Source: c10/cuda/CUDACachingAllocator.cpp of torch 2.11 to 2.13 (``DeviceCachingAllocator``); a docstring names the C++
function that a method follows. Not simulated: the private pools of CUDA graphs and of ``torch.cuda.MemPool``, sharing
between processes, and frees that wait for another stream. The device hands out addresses that only grow, so that best
fit takes, of equal blocks, the one reserved first.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from profiler.virtual.alloc_conf import AllocConf
from profiler.virtual.blocks import (
    MIN_BLOCK,
    MIN_LARGE,
    ROUND_LARGE,
    SMALL_SEGMENT,
    SMALL_SIZE,
    UNLIMITED,
    Block,
    Pool,
    cut,
    least_growable,
    merge,
    until_used,
)

if TYPE_CHECKING:
    pass

MOST_BYTES = 2**60
"""PyTorch refuses more without asking the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocatorStats:
    """What ``torch.cuda.memory_stats`` tells of all pools together."""

    allocated_bytes: int
    """Blocks in use, with what they were rounded up by."""
    requested_bytes: int
    """What was asked for in the blocks in use."""
    reserved_bytes: int
    """What the device has given."""
    inactive_split_bytes: int
    """Free blocks of segments that are partly in use; without expandable segments."""
    max_allocated_bytes: int
    max_requested_bytes: int
    max_reserved_bytes: int
    max_inactive_split_bytes: int
    num_segments: int
    """Segments of cudaMalloc; expandable ones are not counted."""
    max_num_segments: int
    num_alloc_retries: int
    """Times that the whole cache was given back to serve a request."""
    num_ooms: int
    num_device_alloc: int
    """Segments, or runs of pages, that the device gave …"""
    num_device_free: int
    """… and that it was given back."""


class DeviceOutOfMemoryError(Exception):
    """The device cannot give a segment although the cache was emptied (torch.OutOfMemoryError)."""

    def __init__(
        self, *, asked_bytes: int, segment_bytes: int, free_bytes: int, allocated_bytes: int, reserved_bytes: int
    ) -> None:
        super().__init__(f"{segment_bytes} bytes of {free_bytes} that are free on the device")
        self.asked_bytes = asked_bytes
        self.segment_bytes = segment_bytes
        """The segment that ``asked_bytes`` need, which PyTorch's message says it tried to allocate."""
        self.free_bytes = free_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes


class CachingAllocator:
    """The caching allocator of one device; its statistics are attributes, and ``stats`` a copy of them.

    Args:
        capacity_bytes: what the device can give: less than its memory by the context and by other processes.
        alloc_conf: settings, parsed or as PYTORCH_ALLOC_CONF spells them.
        total_bytes: the device's memory, which per_process_memory_fraction is a share of (default: the capacity).
    """

    def __init__(
        self, capacity_bytes: int, alloc_conf: AllocConf | str | None = None, *, total_bytes: int | None = None
    ) -> None:
        conf = alloc_conf if isinstance(alloc_conf, AllocConf) else AllocConf.parse(alloc_conf)
        self.conf = conf
        self.capacity_bytes = capacity_bytes
        self.searches = 0
        """Searches of large pools, the clock of garbage collection (get_free_blocks_call_count)."""
        self._limited = conf.memory_fraction < 1
        self._total = capacity_bytes if total_bytes is None else total_bytes
        self._allowed = int(conf.memory_fraction * self._total)
        self._collects = self._limited and conf.garbage_collection_fraction > 0
        self._expands = conf.expandable_segments
        self._max_split = UNLIMITED if conf.max_split_bytes is None else conf.max_split_bytes
        self._rounds = any(divisions > 1 for divisions in conf.roundup_divisions)
        self._pools: dict[tuple[int, bool], Pool] = {}
        self._next_address = SMALL_SEGMENT
        self.allocated_bytes = self.requested_bytes = self.reserved_bytes = self.inactive_split_bytes = 0
        self.num_segments = self.num_alloc_retries = self.num_ooms = 0
        self.num_device_alloc = self.num_device_free = 0
        self.reset_peak()

    @property
    def stats(self) -> AllocatorStats:
        """The statistics of now."""
        return AllocatorStats(**{field.name: getattr(self, field.name) for field in fields(AllocatorStats)})

    def reset_peak(self) -> None:
        """Peaks start again from what is (resetPeakStats)."""
        self.max_allocated_bytes = self.allocated_bytes
        self.max_requested_bytes = self.requested_bytes
        self.max_reserved_bytes = self.reserved_bytes
        self.max_inactive_split_bytes = self.inactive_split_bytes
        self.max_num_segments = self.num_segments

    @property
    def limit_bytes(self) -> int:
        """What may be reserved."""
        return min(self.capacity_bytes, self._allowed) if self._limited else self.capacity_bytes

    def is_small(self, nbytes: int) -> bool:
        """Whether a request is served from the small pool."""
        return self._round(nbytes) <= SMALL_SIZE

    def small_state(self) -> object:
        """The free blocks of the small pool of stream 0: all that its answers depend on."""
        pool = self._open(0, small=True)
        return [row[:2] for row in pool.free], [address for address, _ in pool.unmapped]

    def malloc(self, nbytes: int, *, stream: int = 0) -> Block:
        """A block for ``nbytes``; for 0, one without memory, PyTorch's null pointer (malloc, alloc_found_block).

        Raises:
            DeviceOutOfMemoryError: the device cannot give the memory.
        """
        if not 0 < nbytes <= MOST_BYTES:
            return self._malloc_nothing(nbytes, stream)
        size = self._round(nbytes) if self._rounds else (nbytes + 511) & -512
        pool = self._pools.get((stream, size <= SMALL_SIZE)) or self._open(stream, small=size <= SMALL_SIZE)
        block = self._find(pool, size) or self._reserve(pool, size, nbytes)
        if not self._expands and block.is_split:
            self.inactive_split_bytes -= block.size
        if block.size - size >= pool.least_remainder and size < pool.unsplit_from:
            pool.keep(cut(block, size), self.searches)
            self._count_inactive(block.next)
        block.allocated = True
        block.requested = nbytes
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.max_allocated_bytes:
            self.max_allocated_bytes = self.allocated_bytes
        self.requested_bytes += nbytes
        if self.requested_bytes > self.max_requested_bytes:
            self.max_requested_bytes = self.requested_bytes
        return block

    def free(self, block: Block) -> None:
        """Cache a block, as one with the free blocks beside it (free, free_block).

        Raises:
            ValueError: it is not in use, or is another allocator's.
        """
        pool = block.pool
        if not block.allocated or pool.owner is not self:
            raise ValueError("a block was freed twice, or is another allocator's")
        block.allocated = False
        if not block.size:
            return
        self.allocated_bytes -= block.size
        self.requested_bytes -= block.requested
        merged = merge(block, block.previous) + merge(block, block.next)
        if not self._expands:
            self.inactive_split_bytes -= merged
            self._count_inactive(block)
        pool.keep(block, self.searches)

    def empty_cache(self) -> None:
        """Give back whatever no block in use is in (release_cached_blocks, release_blocks)."""
        for pool in self._pools.values():
            for _, _, block in list(pool.free):
                if self._expands:
                    self._unmap(block)
                elif not block.is_split:
                    self._release(block)

    def _malloc_nothing(self, nbytes: int, stream: int) -> Block:
        if nbytes < 0:
            raise ValueError(f"{nbytes} bytes cannot be allocated")
        if nbytes:
            raise self._out_of_memory(nbytes, nbytes)
        block = Block(self._open(stream, small=True), 0, 0)
        block.allocated = True
        return block

    def _open(self, stream: int, *, small: bool) -> Pool:
        return self._pools.setdefault((stream, small), Pool(self, self.conf, small=small))

    def _round(self, nbytes: int) -> int:
        """Up to 512 bytes, or to the next division of its power of two (round_size)."""
        floor = nbytes.bit_length() - 1
        table = self.conf.roundup_divisions
        divisions = table[min(max(floor - 20, 0), len(table) - 1)]
        step = 2**floor // divisions if divisions > 1 and nbytes > MIN_BLOCK * divisions else MIN_BLOCK
        return -(-nbytes // step) * step

    def _find(self, pool: Pool, size: int) -> Block | None:
        """The smallest free block that holds the request, at the lowest address (get_free_block)."""
        if self._collects and not pool.small:
            self.searches += 1
        free = pool.free
        at = bisect_left(free, (size,))
        if at == len(free):
            return None
        if self._expands:
            at = least_growable(free, at)
        if self._max_split < UNLIMITED:
            small = size < self._max_split
            if free[at][0] >= (self._max_split if small else size + self.conf.max_non_split_rounding_bytes):
                return None
        return free.pop(at)[2]

    def _reserve(self, pool: Pool, size: int, nbytes: int) -> Block:
        """A block from the device, if need be in exchange for what is cached (malloc)."""
        if self._collects:
            self._collect_garbage()
        segment = self._segment_bytes(size)
        block = self._ask(pool, size, segment)
        if block is None and self._release_oversize(pool, size):
            block = self._ask(pool, size, segment)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self._ask(pool, size, segment)
        if block is None:
            self.num_ooms += 1
            raise self._out_of_memory(nbytes, segment)
        return block

    def _segment_bytes(self, size: int) -> int:
        """What is asked of the device for a block (get_allocation_size)."""
        if size <= SMALL_SIZE:
            return SMALL_SEGMENT
        if size < MIN_LARGE:
            return self.conf.large_segment_bytes
        return -(-size // ROUND_LARGE) * ROUND_LARGE

    def _ask(self, pool: Pool, size: int, segment: int) -> Block | None:
        """A block from the device, or None (alloc_block)."""
        if self._limited and self.reserved_bytes + segment > self._allowed:
            return None
        if self._expands:
            return self._expand(pool, size)
        if not self._charge(segment):
            return None
        self.num_segments += 1
        self.max_num_segments = max(self.max_num_segments, self.num_segments)
        self._next_address += segment
        return Block(pool, self._next_address - segment, segment)

    def _charge(self, nbytes: int) -> bool:
        """Whether the device gives so much (cudaMalloc, cuMemCreate)."""
        if self.reserved_bytes + nbytes > self.capacity_bytes:
            return False
        self.num_device_alloc += 1
        self.reserved_bytes += nbytes
        self.max_reserved_bytes = max(self.max_reserved_bytes, self.reserved_bytes)
        return True

    def _discharge(self, nbytes: int) -> None:
        self.num_device_free += 1
        self.reserved_bytes -= nbytes

    def _release(self, block: Block) -> int:
        """Give a whole segment back (release_block)."""
        block.pool.drop(block)
        self._discharge(block.size)
        self.num_segments -= 1
        return block.size

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Give back segments that may not be split until they would hold it (release_available_cached_blocks)."""
        if self._max_split == UNLIMITED or self._expands:
            return False
        wanted, free = max(size, self._max_split), pool.free
        at = bisect_left(free, (wanted,))
        if at < len(free):
            return self._release(free[at][2]) > 0
        released = 0
        while released < wanted and free and free[-1][0] >= self._max_split:
            released += self._release(free[-1][2])
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Give back whole segments unused for longer than the average one (garbage_collect_cached_blocks)."""
        target = self.reserved_bytes - int(self.conf.garbage_collection_fraction * self._allowed)
        idle = [block for pool in self._pools.values() if not pool.small for _, _, block in pool.free]
        whole = [] if self._expands else [block for block in idle if not block.is_split]
        while target > 0 and whole:
            average = sum(self.searches - block.born for block in whole) / len(whole)
            for block in whole:
                if self.searches - block.born >= average:
                    target -= self._release(block)
            whole = [block for block in whole if self.searches - block.born < average]

    def _expand(self, pool: Pool, size: int) -> Block | None:
        """A block of an expandable segment, grown by pages (try_allocate_expandable_block)."""
        block = self._room(pool, size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            grown = block.next
            assert grown is not None, "there is room after a block that _room found"
            if not self._map(grown, min(size - block.size, grown.size)):
                return None
            block = grown
        pool.drop(block)
        return block

    def _room(self, pool: Pool, size: int) -> Block:
        """The lowest free or unmapped block that can grow to the request (find_expandable_block)."""
        for _, block in pool.unmapped:
            before = block.previous
            start = block if before is None or before.allocated else before
            if sum(part.size for part in until_used(start)) >= size:
                return start
        pages = -(-(self._total + self._total // 8) // pool.page_bytes)
        address = -(-self._next_address // pool.page_bytes) * pool.page_bytes
        self._next_address = address + pages * pool.page_bytes
        start = Block(pool, address, pages * pool.page_bytes)
        pool.keep_unmapped(start)
        return start

    def _map(self, block: Block, size: int) -> bool:
        """Put whole pages of memory under the start of unmapped addresses (map_block)."""
        pool = block.pool
        mapped = -(-size // pool.page_bytes) * pool.page_bytes
        if not self._charge(mapped):
            return False
        pool.drop(block)
        if mapped < block.size:
            pool.keep_unmapped(cut(block, mapped))
        block.mapped = True
        merge(block, block.previous)
        merge(block, block.next)
        pool.keep(block, self.searches)
        return True

    def _unmap(self, block: Block) -> None:
        """Give back the pages that lie wholly in a free block (unmap_block, release_expandable_segment)."""
        pool, end = block.pool, block.address + block.size
        first = -(-block.address // pool.page_bytes) * pool.page_bytes
        last = end // pool.page_bytes * pool.page_bytes
        if first >= last:
            return
        pool.drop(block)
        if last < end:
            pool.keep(cut(block, last - block.address), self.searches)
        if block.address < first:
            before, block = block, cut(block, first - block.address)
            pool.keep(before, self.searches)
        self._discharge(block.size)
        block.mapped = False
        merge(block, block.previous)
        merge(block, block.next)
        if block.is_split:
            pool.keep_unmapped(block)

    def _count_inactive(self, block: Block | None) -> None:
        """Count a block that is free from now on, if others of its segment may be in use."""
        if block is not None and not self._expands and block.is_split:
            self.inactive_split_bytes += block.size
            if self.inactive_split_bytes > self.max_inactive_split_bytes:
                self.max_inactive_split_bytes = self.inactive_split_bytes

    def _out_of_memory(self, nbytes: int, segment: int) -> DeviceOutOfMemoryError:
        return DeviceOutOfMemoryError(
            asked_bytes=nbytes,
            segment_bytes=segment,
            free_bytes=self.capacity_bytes - self.reserved_bytes,
            allocated_bytes=self.allocated_bytes,
            reserved_bytes=self.reserved_bytes,
        )
