"""What a model is made of: tensors by role, format and layer, what is packed, what engines load of it, its cache."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from analytic.errors import UllageError, UsageError
from analytic.formats.table import itemsize
from analytic.loaded import ALL_LAYERS, Loaded
from analytic.models.geometry import Attention, Geometry, LatentAttention, Layer, Recurrent
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model
from analytic.request import LARGEST, Request, serving_dtype
from analytic.state import caches, require_static, sequence_state_bytes
from analytic.state.held import Held
from analytic.weights import ServedGroup, Weights, weigh


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """A matrix that stays in the serving dtype beside packed ones."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRow:
    """Layers that keep the same of a token, as transformers' dynamic cache does."""

    kind: str
    layers: int
    heads: str
    """Heads and sizes, in words."""
    bytes_per_token: int
    """That one more token adds to a sequence of ``tokens``, over all these layers."""
    bytes: int
    """Of ``sequences`` sequences of ``tokens``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """All sequence state, as one holder allocates it."""

    holder: str
    rows: tuple[Held, ...]
    refused: str = ""
    """Why it is not known."""

    @property
    def bytes(self) -> int | None:
        """Of all rows; None where it is not known."""
        return None if self.refused else sum(row.bytes for row in self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """The weights, as one engine holds them once they are loaded."""

    engine: str
    rows: tuple[Loaded, ...]
    refused: str = ""
    """Why it is not known."""
    hint: str = ""
    """What would help then."""


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
        return tuple(_cache_rows(self.model.geometry, self.tokens, self.sequences, itemsize(self.dtype)))


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFlags:
    """How engines are asked to hold weights and state, by their own names."""

    capability: tuple[int, int] | None = None
    """CUDA compute capability of the GPU, by which vLLM chooses kernels; None where it is not said."""
    gpu_layers: int = ALL_LAYERS
    """Layers that llama.cpp offloads, the output head among them."""
    cpu_moe_layers: int = 0
    """First layers whose experts llama.cpp keeps on the host."""
    quantized_cache: str = "int4"
    """Format of transformers' quantised cache."""
    kv_cache_dtype: str = "auto"
    block_size: int | None = None
    """Tokens of a block of vLLM's; None: what its backends take."""
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    ubatch_size: int = 512
    swa_full: bool = False

    def __post_init__(self) -> None:
        """Refuse what no engine has, and sizes that cannot be."""
        from analytic.state.llamacpp import CACHE_TYPES
        from analytic.state.quantized import FORMATS
        from analytic.state.vllm_specs import CACHE_DTYPES

        named = (
            ("quantized-cache", self.quantized_cache, FORMATS),
            ("kv-cache-dtype", self.kv_cache_dtype, tuple(CACHE_DTYPES)),
            ("cache-type-k", self.cache_type_k, CACHE_TYPES),
            ("cache-type-v", self.cache_type_v, CACHE_TYPES),
        )
        for flag, value, known in named:
            if value not in known:
                raise UsageError(f"--{flag}: {value!r} is not known", hint=f"one of {', '.join(known)}")
        for flag, size in (("block-size", self.block_size), ("ubatch-size", self.ubatch_size)):
            if size is not None and not 0 < size <= LARGEST_BLOCK:
                raise UsageError(f"--{flag}: {size} must lie between 1 and {LARGEST_BLOCK:,}")
        for flag, count in (("n-gpu-layers", self.gpu_layers), ("n-cpu-moe", self.cpu_moe_layers)):
            if count < 0:
                raise UsageError(f"--{flag}: {count} must be 0 or more")


LARGEST_BLOCK = 1_000_000
"""The most tokens that a block or a batch may be asked to have."""


VLLM_BLOCK, VLLM_LATENT_BLOCK = 16, 64
"""Tokens of a block by default, and of latent attention's kernels (FlashMLA)."""


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
    asked = _Asked(
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
        loadings=tuple(_loading(engine, asked) for engine in LOADERS),
        holders=tuple(_holding(name, asked) for name in HOLDERS),
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


_RECURRENT = {
    "mamba": "Mamba",
    "mamba2": "Mamba 2",
    "gated_delta_net": "gated delta net",
    "kimi_delta": "Kimi delta attention",
    "lightning": "lightning attention",
    "short_conv": "short convolution",
}


def kind_of(mixer: Attention | LatentAttention | Recurrent) -> tuple[str, str]:
    """A mixer's name in the field's words, and what it keeps."""
    if isinstance(mixer, Recurrent):
        state = f"{mixer.state_elements:,} elements" if mixer.state_elements else "no state"
        convolution = f", convolution {mixer.conv_channels:,} x {mixer.conv_kernel}" if mixer.conv_kernel else ""
        return _RECURRENT.get(mixer.kind, mixer.kind), state + convolution
    if isinstance(mixer, LatentAttention):
        return "latent attention (MLA)", f"latent {mixer.kv_lora_rank} + rotary {mixer.qk_rope_head_dim}"
    heads = mixer.kv_heads if mixer.cached_heads is None else mixer.cached_heads
    kept = f"{heads} x ({mixer.head_dim} + {mixer.v_head_dim})"
    if mixer.cached_heads == 0:
        return "shared cache", "reads an earlier layer's"
    if mixer.window_tokens is not None:
        return f"{'chunked' if mixer.chunked else 'sliding'} window {mixer.window_tokens:,}", kept
    grouping = "MHA" if heads == mixer.heads else "MQA" if heads == 1 else "GQA"
    return f"full attention ({grouping})", kept


def _cache_rows(geometry: Geometry, tokens: int, sequences: int, size: int) -> Iterator[CacheRow]:
    rows: dict[tuple[str, str], CacheRow] = {}
    for layer, count in geometry.groups:
        for mixer in (layer.mixer, layer.recurrent):
            if mixer is None:
                continue
            alone = replace(geometry, layers=(Layer(mixer=mixer, feed_forward=None),))
            (kind, kept), own = kind_of(mixer), caches(alone.layers[0])
            row = CacheRow(
                kind=kind,
                layers=count,
                heads=kept,
                bytes_per_token=count * sum(cache.bytes_per_token(tokens=tokens, itemsize=size) for cache in own),
                bytes=count * _state(alone, tokens, sequences, size),
            )
            rows[kind, kept] = _added(rows.get((kind, kept)), row)
    yield from rows.values()


def _added(one: CacheRow | None, other: CacheRow) -> CacheRow:
    if one is None:
        return other
    return replace(
        one,
        layers=one.layers + other.layers,
        bytes_per_token=one.bytes_per_token + other.bytes_per_token,
        bytes=one.bytes + other.bytes,
    )


def _state(geometry: Geometry, tokens: int, sequences: int, size: int, room: int | None = None) -> int:
    """State of sequences that were decoded up to ``tokens``."""
    return sequence_state_bytes(
        geometry,
        prompt_tokens=max(tokens - 1, 1),
        total_tokens=tokens,
        sequences=sequences,
        itemsize=size,
        room_tokens=room,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What an engine is asked."""

    model: Model
    dtype: str
    quantization: str | None
    tokens: int
    sequences: int
    flags: EngineFlags

    @property
    def geometry(self) -> Geometry:
        return self.model.geometry


def _by_transformers(asked: _Asked) -> tuple[Loaded, ...]:
    weights = weigh(asked.model, dtype=asked.dtype, quantization=asked.quantization)
    return (Loaded(place="GPU", bytes=weights.bytes),)


def _by_vllm(asked: _Asked) -> tuple[Loaded, ...]:
    from analytic.loaded.vllm import vllm_weights

    return vllm_weights(
        asked.model, dtype=asked.dtype, quantization=asked.quantization, capability=asked.flags.capability
    )


def _by_llamacpp(asked: _Asked) -> tuple[Loaded, ...]:
    from analytic.loaded.llamacpp import llamacpp_weights

    return llamacpp_weights(
        asked.model,
        dtype=asked.dtype,
        quantization=asked.quantization,
        gpu_layers=asked.flags.gpu_layers,
        cpu_moe_layers=asked.flags.cpu_moe_layers,
    )


LOADERS: dict[str, Callable[[_Asked], tuple[Loaded, ...]]] = {
    "transformers": _by_transformers,
    "vLLM 0.33": _by_vllm,
    "llama.cpp 0.5": _by_llamacpp,
}
"""Who can load the weights, and what each then holds."""


def _loading(engine: str, asked: _Asked) -> Loading:
    try:
        return Loading(engine=engine, rows=LOADERS[engine](asked))
    except UllageError as refusal:
        return Loading(engine=engine, rows=(), refused=refusal.message, hint=refusal.hint)


def _dynamic(asked: _Asked) -> tuple[Held, ...]:
    return tuple(
        Held(kind=row.kind, layers=row.layers, bytes=row.bytes, bytes_per_token=row.bytes_per_token, note=row.heads)
        for row in _cache_rows(asked.geometry, asked.tokens, asked.sequences, itemsize(asked.dtype))
    )


def _static(asked: _Asked) -> tuple[Held, ...]:
    require_static(asked.geometry)
    held = _state(asked.geometry, asked.tokens, asked.sequences, itemsize(asked.dtype), room=asked.tokens)
    layers = sum(count for layer, count in asked.geometry.groups if caches(layer))
    return (Held(kind="all layers", layers=layers, bytes=held, bytes_per_token=0, note="all its room"),)


def _quantized(asked: _Asked) -> tuple[Held, ...]:
    from analytic.state.quantized import quantized_state_bytes

    held = quantized_state_bytes(
        asked.geometry,
        format=asked.flags.quantized_cache,
        prompt_tokens=asked.tokens,
        total_tokens=asked.tokens,
        sequences=asked.sequences,
        itemsize=itemsize(asked.dtype),
    )
    layers = sum(count for _, count in asked.geometry.groups)
    return (Held(kind="all layers", layers=layers, bytes=held, bytes_per_token=0, note=asked.flags.quantized_cache),)


def _paged(asked: _Asked) -> tuple[Held, ...]:
    from analytic.state.vllm import vllm_state

    is_latent = any(isinstance(layer.mixer, LatentAttention) for layer, _ in asked.geometry.groups)
    return vllm_state(
        asked.geometry,
        tokens=asked.tokens,
        sequences=asked.sequences,
        itemsize=itemsize(asked.dtype),
        kv_cache_dtype=asked.flags.kv_cache_dtype,
        block_size=asked.flags.block_size or (VLLM_LATENT_BLOCK if is_latent else VLLM_BLOCK),
    )


def _in_cells(asked: _Asked) -> tuple[Held, ...]:
    from analytic.state.llamacpp import llamacpp_state

    return llamacpp_state(
        asked.geometry,
        ctx_size=asked.tokens * asked.sequences,
        parallel=asked.sequences,
        ubatch_size=asked.flags.ubatch_size,
        cache_type_k=asked.flags.cache_type_k,
        cache_type_v=asked.flags.cache_type_v,
        swa_full=asked.flags.swa_full,
    )


HOLDERS: dict[str, Callable[[_Asked], tuple[Held, ...]]] = {
    "transformers, dynamic cache": _dynamic,
    "transformers, static cache": _static,
    "transformers, quantized cache": _quantized,
    "vLLM, paged": _paged,
    "llama.cpp": _in_cells,
}
"""Who can hold the state, and how it allocates it."""


def _holding(name: str, asked: _Asked) -> Holding:
    try:
        return Holding(holder=name, rows=HOLDERS[name](asked))
    except UllageError as refusal:
        return Holding(holder=name, rows=(), refused=refusal.message)
