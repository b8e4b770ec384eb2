"""Groups of layers that share blocks, and the pool that they draw from (vLLM 0.33.0, ``kv_cache_planning.py``)."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from analytic.errors import UllageError
from analytic.state.vllm_specs import Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Layers with one block table (``KVCacheGroupSpec``)."""

    specs: tuple[Spec, ...]
    """One a layer."""

    @property
    def kind(self) -> str:
        """In the field's words."""
        return self.specs[0].kind

    @property
    def block_tokens(self) -> int | None:
        """Tokens that a block of this group stands for; None where one block serves a whole sequence."""
        return self.specs[0].span_tokens

    @property
    def page_bytes(self) -> int:
        """Bytes of a block that this group's layers lay out, their own padding included."""
        return sum(spec.page_bytes for spec in self.specs)

    @property
    def content_bytes(self) -> int:
        """Bytes of a block that this group's layers use."""
        return sum(spec.content_bytes for spec in self.specs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The blocks of one rank, and what requests take of them."""

    groups: tuple[Group, ...]
    in_flight_tokens: int
    """Tokens that are scheduled and not yet settled, whose blocks a window cannot free (``max_in_flight_tokens``)."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers: those of the widest group (``_get_kv_cache_bytes_per_block``)."""
        return max(group.page_bytes for group in self.groups)

    @property
    def layers_per_group(self) -> tuple[int, ...]:
        """Layers of each group; a group with fewer than the widest wastes the rest of its blocks."""
        return tuple(len(group.specs) for group in self.groups)

    def group_blocks_for(self, tokens: int) -> tuple[int, ...]:
        """Blocks of each group that vLLM plans for a request of up to ``tokens`` tokens."""
        return tuple(
            max(spec.blocks_for(tokens, self.in_flight_tokens) for spec in group.specs) for group in self.groups
        )

    def blocks_for(self, tokens: int) -> int:
        """Blocks that vLLM plans for a request of up to ``tokens`` tokens."""
        return sum(self.group_blocks_for(tokens))

    def blocks_held(self, tokens: int) -> int:
        """Blocks of a sequence that decodes its ``tokens``-th token; a prefill may hold more, up to ``blocks_for``."""
        return sum(max(spec.blocks_held(tokens) for spec in group.specs) for group in self.groups)

    def bytes_per_token(self, tokens: int) -> float:
        """What a token adds to a request of ``tokens`` tokens, on average: blocks of those groups that grow."""
        grown = 0.0
        for group in self.groups:
            span, now = group.block_tokens, max(spec.blocks_for(tokens, self.in_flight_tokens) for spec in group.specs)
            later = max(spec.blocks_for(tokens + (span or 0), self.in_flight_tokens) for spec in group.specs)
            grown += self.block_bytes / span if span and later > now else 0.0
        return grown

    def blocks_in(self, budget_bytes: int) -> int:
        """Blocks that a budget buys (``num_blocks``); one of them is the null block, which no request gets."""
        return budget_bytes // self.block_bytes

    def max_concurrency(self, budget_bytes: int, tokens: int) -> float:
        """Requests of ``tokens`` tokens at once, as vLLM prints it (``get_max_concurrency_for_kv_cache_config``)."""
        return self.blocks_in(budget_bytes) / self.blocks_for(tokens)

    def capacity_tokens(self, budget_bytes: int, tokens: int) -> int:
        """The tokens that vLLM prints for a ``--max-model-len`` of ``tokens`` (``get_kv_cache_capacity``)."""
        return int(self.max_concurrency(budget_bytes, tokens) * tokens)

    def fits(self, budget_bytes: int, tokens: int) -> bool:
        """Whether vLLM starts with a ``--max-model-len`` of ``tokens`` (``_check_enough_kv_cache_memory``)."""
        return (self.blocks_for(tokens) + 1) * self.block_bytes <= budget_bytes


def groups_of(specs: list[Spec]) -> Iterable[Group]:
    """``get_kv_cache_groups``: one group where all layers need the same blocks, else equal shares of each kind."""
    if not specs:
        raise UllageError("no layer of this model stores state", hint="vLLM needs no KV cache for it")
    if len({spec.type_key for spec in specs}) == 1:
        return [Group(specs=tuple(specs))]
    page_bytes = max(spec.page_bytes for spec in specs)
    buckets: dict[Spec, int] = {}
    for spec in specs:
        same_page = spec if spec.page_bytes == page_bytes else spec.with_page(page_bytes)
        buckets[same_page] = buckets.get(same_page, 0) + 1
    return list(_shares(buckets))


def _shares(buckets: Mapping[Spec, int]) -> Iterator[Group]:
    """``_get_kv_cache_groups_uniform_page_size``: as many layers a group as the rarest kind has, or the commonest
    where that is less than half as many again."""
    least, most = min(buckets.values()), max(buckets.values())
    size = most if most < least * 1.5 else least
    for spec, layers in buckets.items():
        groups = math.ceil(layers / size)
        for index in range(groups):
            yield Group(specs=(spec,) * len(range(index, layers, groups)))
