"""Whole layers placed on equal GPUs."""

from collections.abc import Sequence

Span = tuple[int, int]
"""The first layer of a GPU and one past its last."""


def balance(sizes: Sequence[int], *, gpus: int) -> tuple[Span, ...]:
    """Cut the layers into ``gpus`` spans, none empty, so that the fullest is as small as can be.

    Args:
        sizes: bytes of each layer, what only the ends hold included.
        gpus: at most as many as layers.
    """
    room = max(*sizes, -(-sum(sizes) // gpus))
    spans, more = _fill(sizes, room, gpus)
    while len(spans) > gpus:
        spans, more = _fill(sizes, more, gpus)
    return tuple(spans)


def _fill(sizes: Sequence[int], room: int, gpus: int) -> tuple[list[Span], int]:
    """Fill one GPU after the other, which needs the fewest, with a layer left for each of ``gpus``.

    Returns:
        the spans, and the least room that would move some cut.
    """
    spans: list[Span] = []
    start, used, more = 0, 0, sum(sizes)
    for index, size in enumerate(sizes):
        used += size
        if used > room:
            more = min(more, used)
        if used > room or len(sizes) - index < gpus - len(spans):
            spans.append((start, index))
            start, used = index, size
    return [*spans, (start, len(sizes))], more
