"""Parts of the caching allocator's segments, and the free ones of a stream and class of sizes (Block, BlockPool)."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from profiler.virtual.alloc_conf import MIB, AllocConf

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_BLOCK = 512
SMALL_SIZE = MIB
"""Largest block of the small pool."""
SMALL_SEGMENT = 2 * MIB
"""Segment of the small pool, and page of its expandable segments."""
MIN_LARGE = 10 * MIB
"""Smaller blocks of the large pool share a segment; others get one of their own …"""
ROUND_LARGE = 2 * MIB
"""… of their size rounded up to this."""
UNLIMITED = 2**62


class Block:
    """A part of a segment, linked with the parts beside it: in use, free, or addresses without memory."""

    __slots__ = ("address", "allocated", "born", "mapped", "next", "pool", "previous", "requested", "size")

    def __init__(self, pool: Pool, address: int, size: int) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.requested = 0
        self.previous: Block | None = None
        self.next: Block | None = None
        self.allocated = False
        self.mapped = True
        self.born = 0
        """Searches that there had been when it was cached (gc_count_base)."""

    @property
    def is_split(self) -> bool:
        """Whether there are other blocks in its segment."""
        return self.previous is not None or self.next is not None


class Pool:
    """The free blocks of one stream and one class of sizes (BlockPool)."""

    __slots__ = ("free", "least_remainder", "owner", "page_bytes", "small", "unmapped", "unsplit_from")

    def __init__(self, owner: object, conf: AllocConf, *, small: bool) -> None:
        eager = small or conf.expandable_segments
        self.owner = owner
        """The allocator whose it is."""
        self.small = small
        self.free: list[tuple[int, int, Block]] = []
        """(size, address, block), the smallest first."""
        self.unmapped: list[tuple[int, Block]] = []
        """(address, block) of addresses without memory, the lowest first."""
        self.page_bytes = SMALL_SEGMENT if small else conf.large_segment_bytes
        self.least_remainder = MIN_BLOCK if eager else SMALL_SIZE + 1
        """A block is split if at least this is left of it …"""
        self.unsplit_from = UNLIMITED if eager or conf.max_split_bytes is None else conf.max_split_bytes
        """… and the request is smaller than this (should_split)."""

    def keep(self, block: Block, born: int) -> None:
        """Cache a block after so many searches (insert_into_blocks)."""
        block.born = born
        insort(self.free, (block.size, block.address, block))

    def drop(self, block: Block) -> None:
        """Take a block out of its list."""
        if block.mapped:
            del self.free[bisect_left(self.free, (block.size, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (block.address,))]

    def keep_unmapped(self, block: Block) -> None:
        """Keep addresses without memory."""
        block.mapped = False
        insort(self.unmapped, (block.address, block))


def cut(block: Block, size: int) -> Block:
    """Shorten a block to ``size``, and give what is left of it, linked after it."""
    rest = Block(block.pool, block.address + size, block.size - size)
    rest.previous, rest.next = block, block.next
    if rest.next is not None:
        rest.next.previous = rest
    block.next = rest
    block.size = size
    return rest


def merge(block: Block, other: Block | None) -> int:
    """Make the block beside it part of ``block`` if neither is in use; how many bytes that was (try_merge_blocks)."""
    if other is None or other.allocated or other.mapped is not block.mapped:
        return 0
    other.pool.drop(other)
    block.size += other.size
    if block.previous is other:
        block.address = other.address
        block.previous = other.previous
        if block.previous is not None:
            block.previous.next = block
    else:
        block.next = other.next
        if block.next is not None:
            block.next.previous = block
    return other.size


def until_used(block: Block | None) -> Iterator[Block]:
    """A block and those after it, up to the first in use."""
    while block is not None and not block.allocated:
        yield block
        block = block.next


def least_growable(free: list[tuple[int, int, Block]], at: int) -> int:
    """Best fit by what blocks can grow to: on to larger ones for as long as that falls (get_free_block)."""
    reach = _reach(free[at][2])
    while at + 1 < len(free) and (following := _reach(free[at + 1][2])) < reach:
        at, reach = at + 1, following
    return at


def _reach(block: Block) -> int:
    after = block.next
    return block.size if after is None or after.mapped else block.size + after.size
