"""Flags that only some engines have, by the engines' own names. None is: not given, the engine decides."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from analytic.errors import UsageError

LARGEST_COUNT = 100_000_000
"""The most tokens, sequences or blocks that a flag may ask for."""

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_SPLIT_MODES = ("none", "layer", "row")

_CHOICES: Mapping[str, tuple[str, ...]] = {"device_map": _MAPS, "split_mode": _SPLIT_MODES}

_LEAST: Mapping[str, int] = dict.fromkeys(("n_gpu_layers", "n_cpu_moe", "main_gpu", "kv_cache_memory_bytes"), 0)
"""Of the other counts the least is 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """What one engine is asked beside the request. Counts must be whole and in range."""

    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None
    enable_expert_parallel: bool | None = None
    device_map: str | None = None
    """transformers: how accelerate places modules on several GPUs."""
    max_model_len: int | None = None
    """vLLM: the longest sequence that it must be able to hold; None: the request's."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool | None = None
    block_size: int | None = None
    enable_prefix_caching: bool | None = None
    kv_cache_memory_bytes: int | None = None
    """vLLM: bytes of KV cache, whatever the utilisation."""
    ctx_size: int | None = None
    """llama.cpp: cells of all slots; None: what the request's sequences need."""
    logical_batch_size: int | None = None
    ubatch_size: int | None = None
    n_gpu_layers: int | None = None
    n_cpu_moe: int | None = None
    flash_attn: bool | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    swa_full: bool | None = None
    kv_unified: bool | None = None
    split_mode: str | None = None
    tensor_split: tuple[float, ...] | None = None
    """llama.cpp: shares of the devices, in any unit."""
    main_gpu: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, value in self.given().items():
            if name in _CHOICES and value not in _CHOICES[name]:
                raise UsageError(f"{flag(name)}: {value!r} is not known", hint=f"one of {', '.join(_CHOICES[name])}")
            if isinstance(value, int) and not isinstance(value, bool):
                _require_count(name, value)
        if self.tensor_split is not None and (min(self.tensor_split) < 0 or not sum(self.tensor_split) > 0):
            raise UsageError(f"--tensor-split: {self.tensor_split} are no shares", hint="write it like 3,1")

    def given(self) -> dict[str, object]:
        """Those that were given, by name."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}

    def require_of(self, engine: str) -> None:
        """Raise where a flag was given that ``engine`` does not have.

        Raises:
            UsageError: it is another engine's, by name.
        """
        for name in self.given():
            owners = [owner for owner, names in OF_ENGINE.items() if name in names]
            if engine not in owners:
                raise UsageError(
                    f"{flag(name)} is no option of --engine {engine}", hint=f"it is of --engine {' or '.join(owners)}"
                )


def _require_count(name: str, value: int) -> None:
    least = _LEAST.get(name, 1)
    largest = 2**63 if name == "kv_cache_memory_bytes" else LARGEST_COUNT
    if not least <= value <= largest:
        raise UsageError(f"{flag(name)}: {value} must lie between {least} and {largest:,}")


_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")

OF_ENGINE: Mapping[str, tuple[str, ...]] = {
    "transformers": (*_PARALLEL, "device_map"),
    "vllm": (
        *_PARALLEL,
        "enable_expert_parallel",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "enforce_eager",
        "block_size",
        "enable_prefix_caching",
        "kv_cache_memory_bytes",
    ),
    "llamacpp": (
        "ctx_size",
        "logical_batch_size",
        "ubatch_size",
        "n_gpu_layers",
        "n_cpu_moe",
        "flash_attn",
        "cache_type_k",
        "cache_type_v",
        "swa_full",
        "kv_unified",
        "split_mode",
        "tensor_split",
        "main_gpu",
    ),
}
"""Which engine has which flag."""


def flag(name: str) -> str:
    """A field as it is typed."""
    return "--" + name.replace("_", "-")
