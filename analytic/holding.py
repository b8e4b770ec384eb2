"""What engines would hold of a model, each asked in its own terms: its weights once loaded, and its sequence state."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from analytic.errors import UllageError, UsageError
from analytic.formats.table import itemsize
from analytic.loaded import ALL_LAYERS, Loaded
from analytic.models.geometry import Geometry, LatentAttention
from analytic.models.model import Model
from analytic.state import caches, require_static
from analytic.state.by_kind import cache_rows, decoded_state
from analytic.state.held import Held
from analytic.weights import weigh

LARGEST_BLOCK = 1_000_000
"""The most tokens that a block or a batch may be asked to have."""


VLLM_BLOCK, VLLM_LATENT_BLOCK = 16, 64
"""Tokens of a block by default, and of latent attention's kernels (FlashMLA)."""


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
    version: str
    """That is modelled."""
    rows: tuple[Loaded, ...]
    refused: str = ""
    """Why it is not known."""
    hint: str = ""
    """What would help then."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What an engine is asked."""

    model: Model
    dtype: str
    quantization: str | None
    tokens: int
    sequences: int
    flags: EngineFlags

    @property
    def geometry(self) -> Geometry:
        """Of the model."""
        return self.model.geometry


def _by_transformers(asked: Asked) -> tuple[Loaded, ...]:
    weights = weigh(asked.model, dtype=asked.dtype, quantization=asked.quantization)
    return (Loaded(place="GPU", bytes=weights.bytes),)


def _by_vllm(asked: Asked) -> tuple[Loaded, ...]:
    from analytic.loaded.vllm import vllm_weights

    return vllm_weights(
        asked.model, dtype=asked.dtype, quantization=asked.quantization, capability=asked.flags.capability
    )


def _by_llamacpp(asked: Asked) -> tuple[Loaded, ...]:
    from analytic.loaded.llamacpp import llamacpp_weights

    return llamacpp_weights(
        asked.model,
        dtype=asked.dtype,
        quantization=asked.quantization,
        gpu_layers=asked.flags.gpu_layers,
        cpu_moe_layers=asked.flags.cpu_moe_layers,
    )


LOADERS: tuple[tuple[str, str, Callable[[Asked], tuple[Loaded, ...]]], ...] = (
    ("transformers", "5.23", _by_transformers),
    ("vLLM", "0.33", _by_vllm),
    ("llama.cpp", "0.5", _by_llamacpp),
)
"""Who can load the weights, the version that is modelled, and what each then holds."""


def loadings(asked: Asked) -> Iterator[Loading]:
    """What each engine holds of the weights, or why that is not known."""
    for engine, version, load in LOADERS:
        try:
            yield Loading(engine=engine, version=version, rows=load(asked))
        except UllageError as refusal:
            yield Loading(engine=engine, version=version, rows=(), refused=refusal.message, hint=refusal.hint)


def _dynamic(asked: Asked) -> tuple[Held, ...]:
    return tuple(
        Held(kind=row.kind, layers=row.layers, bytes=row.bytes, bytes_per_token=row.bytes_per_token, note=row.heads)
        for row in cache_rows(asked.geometry, asked.tokens, asked.sequences, itemsize(asked.dtype))
    )


def _static(asked: Asked) -> tuple[Held, ...]:
    require_static(asked.geometry)
    held = decoded_state(asked.geometry, asked.tokens, asked.sequences, itemsize(asked.dtype), room=asked.tokens)
    layers = sum(count for layer, count in asked.geometry.groups if caches(layer))
    return (Held(kind="all layers", layers=layers, bytes=held, bytes_per_token=0, note="all its room"),)


def _quantized(asked: Asked) -> tuple[Held, ...]:
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


def _paged(asked: Asked) -> tuple[Held, ...]:
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


def _in_cells(asked: Asked) -> tuple[Held, ...]:
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


HOLDERS: dict[str, Callable[[Asked], tuple[Held, ...]]] = {
    "transformers, dynamic cache": _dynamic,
    "transformers, static cache": _static,
    "transformers, quantized cache": _quantized,
    "vLLM, paged": _paged,
    "llama.cpp": _in_cells,
}
"""Who can hold the state, and how it allocates it."""


def holdings(asked: Asked) -> Iterator[Holding]:
    """What each holder allocates for the sequence state, or why that is not known."""
    for holder, allocate in HOLDERS.items():
        try:
            yield Holding(holder=holder, rows=allocate(asked))
        except UllageError as refusal:
            yield Holding(holder=holder, rows=(), refused=refusal.message)
