"""Whole layers placed on equal GPUs: what comes before them on the first, what comes after on the last."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """A model as a chain of layers that can be cut between any two of them."""

    first_bytes: int
    """What stands before the layers: the embedding, and the head where it is tied to it."""
    layer_bytes: tuple[int, ...]
    last_bytes: int
    """What stands after the layers: final norm and output head."""
    fixed_bytes: int = 0
    """What every GPU needs besides (activations, workspace, context)."""

    def span_bytes(self, first: int, end: int) -> int:
        """Bytes of a GPU that holds the layers ``first`` to ``end`` (exclusive)."""
        ends = self.first_bytes * (first == 0) + self.last_bytes * (end == len(self.layer_bytes))
        return self.fixed_bytes + ends + sum(self.layer_bytes[first:end])


def fewest_gpus(chain: Chain, *, capacity_bytes: int) -> int | None:
    """The fewest equal GPUs that hold the chain; None if some layer (or end) fits on none."""
    spans = _fill(chain, capacity_bytes)
    return None if spans is None else len(spans)


def balance(chain: Chain, *, gpus: int) -> tuple[tuple[int, int], ...]:
    """Cut the chain into at most ``gpus`` spans so that the fullest is as small as can be.

    Returns:
        (first layer, one past the last layer) of each GPU; empty spans where layers are fewer than GPUs.
    """
    low, high = 0, chain.span_bytes(0, len(chain.layer_bytes))
    while low < high:
        middle = (low + high) // 2
        spans = _fill(chain, middle)
        low, high = (low, middle) if spans is not None and len(spans) <= gpus else (middle + 1, high)
    spans = _fill(chain, low)
    assert spans is not None
    end = len(chain.layer_bytes)
    return (*spans, *([(end, end)] * (gpus - len(spans))))


def _fill(chain: Chain, capacity_bytes: int) -> list[tuple[int, int]] | None:
    """Fill one GPU after the other; filling greedily from the front needs the fewest."""
    weights = _with_ends(chain)
    spans, start, used = [], 0, chain.fixed_bytes
    for index, size in enumerate(weights):
        if chain.fixed_bytes + size > capacity_bytes:
            return None
        if used + size > capacity_bytes:
            spans.append((start, index))
            start, used = index, chain.fixed_bytes
        used += size
    return [*spans, (start, len(weights))]


def _with_ends(chain: Chain) -> Sequence[int]:
    """Layer sizes with both ends folded into the layers that they stay with."""
    sizes = list(chain.layer_bytes)
    sizes[0] += chain.first_bytes
    sizes[-1] += chain.last_bytes
    return sizes
