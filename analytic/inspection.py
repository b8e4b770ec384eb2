"""What a model is made of: tensors by role, format and layer, what is packed, what engines load of it, its cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from analytic.errors import UsageError
from analytic.formats.table import itemsize
from analytic.holding import Asked, EngineFlags, Holding, Loading, holdings, loadings
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model
from analytic.request import LARGEST, Request, serving_dtype
from analytic.state.by_kind import CacheRow, cache_rows
from analytic.weights import ServedGroup, Weights, weigh


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """A matrix that stays in the serving dtype beside packed ones."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A model's tensors and what its context costs."""

    model: Model
    dtype: str
    quantization: str | None
    tokens: int
    sequences: int
    loadings: tuple[Loading, ...]
    holders: tuple[Holding, ...]

    @cached_property
    def weights(self) -> Weights:
        """All tensors in the formats that they are served in."""
        return weigh(self.model, dtype=self.dtype, quantization=self.quantization)

    @cached_property
    def tensors(self) -> tuple[ServedGroup, ...]:
        """Those that a checkpoint holds, largest first."""
        kept = (served for served in self.weights.served if served.group.persistent)
        return tuple(sorted(kept, key=lambda served: (-served.bytes, served.group.name)))

    @cached_property
    def by_layer(self) -> tuple[tuple[str, int], ...]:
        """Bytes of each layer of the decoder, and of what stands before, after and beside them."""
        sums: dict[str, int] = {}
        for served in self.tensors:
            for place in _places(self.model, served.group):
                sums[place] = sums.get(place, 0) + served.each_bytes * served.group.copies
        return tuple(sorted(sums.items(), key=lambda item: _order(item[0])))

    @cached_property
    def left(self) -> tuple[Unpacked, ...]:
        """Matrices that are not packed, where others are."""
        if not any(is_packed(served) for served in self.tensors):
            return ()
        return tuple(
            Unpacked(name=served.group.name, bytes=served.bytes, why=_why(served.group, self.quantization))
            for served in self.tensors
            if not is_packed(served) and len(served.group.shape) > 1 and served.group.role not in ("norm", "buffer")
        )

    @cached_property
    def cache(self) -> tuple[CacheRow, ...]:
        """The sequence state by layer kind."""
        return tuple(cache_rows(self.model.geometry, self.tokens, self.sequences, itemsize(self.dtype)))


def inspect(
    model: Model,
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    tokens: int = 4096,
    sequences: int = 1,
    flags: EngineFlags | None = None,
) -> Inspection:
    """Look into a model.

    Raises:
        UllageError: a dtype or a format that cannot be, by name.
    """
    if not 0 < sequences <= LARGEST["batch_size"]:
        raise UsageError(f"--sequences: {sequences} must lie between 1 and {LARGEST['batch_size']:,}")
    request = Request(dtype=dtype, quantization=quantization, prompt_tokens=tokens, batch_size=sequences)
    served = serving_dtype(model, request)
    asked = Asked(
        model=model,
        dtype=served,
        quantization=request.weight_format,
        tokens=tokens,
        sequences=sequences,
        flags=flags or EngineFlags(),
    )
    return Inspection(
        model=model,
        dtype=served,
        quantization=request.weight_format,
        tokens=tokens,
        sequences=sequences,
        loadings=tuple(loadings(asked)),
        holders=tuple(holdings(asked)),
    )


def is_packed(served: ServedGroup) -> bool:
    """Whether a group is held in a format of less than 16 bits an element."""
    return served.group.role != "buffer" and 2 * served.bytes < 3 * served.group.elements * served.group.count


_WHY_BY_ROLE = {
    "embedding": "an embedding: rows are looked up, not multiplied",
    "output": "the output head, which quantisers leave out",
    "router": "a router, which quantisers leave out",
}


def _why(group: TensorGroup, quantization: str | None) -> str:
    if quantization is None:
        return "stored so: the checkpoint's quantisation leaves it out"
    if group.role == "expert" and len(group.shape) == 3:
        return "stacked experts are one plain parameter, which the quantiser does not see"
    if group.role in _WHY_BY_ROLE:
        return _WHY_BY_ROLE[group.role]
    return f"no linear layer that {quantization} converts ({group.module or 'a plain parameter'})"


def _places(model: Model, group: TensorGroup) -> Iterator[str]:
    if group.layers is None:
        yield "after the layers" if model.is_after_layers(group) else "before the layers"
    elif model.is_decoder(group):
        yield from map(str, group.layers)
    else:
        yield from ("beside the decoder" for _ in group.layers)


def _order(place: str) -> tuple[int, int, str]:
    fixed = {"before the layers": 0, "after the layers": 2, "beside the decoder": 3}
    return (1, int(place), "") if place.isdigit() else (fixed[place], 0, place)
