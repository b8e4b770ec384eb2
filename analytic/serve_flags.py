"""The flags of every command that asks how a model is served, by the names of vLLM, Hugging Face and llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from analytic.console import Flag, Whole

_COMMON = Group("Serving", sort_key=1)
_TRANSFORMERS = Group("transformers", sort_key=2)
_SEVERAL = Group("Several GPUs", sort_key=3)
_VLLM = Group("vLLM", sort_key=4)
_LLAMACPP = Group("llama.cpp", sort_key=5)

_TOKENS = ("prompt_tokens", "output_tokens", "max_model_len", "max_num_batched_tokens", "ctx_size")
"""Read as vLLM reads numbers: 32k is 32,000 and 32K 32,768."""


def _flag(group: Group, *alias: str) -> Parameter:
    return Parameter(group=group, alias=alias, show_default=False)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServeFlags:
    """How a model is served. None is: not given."""

    engine: Annotated[Literal["transformers", "vllm", "llamacpp"] | None, _flag(_COMMON)] = None
    """Serving engine (default: transformers)."""
    dtype: Annotated[Literal["auto", "float32", "float16", "bfloat16"] | None, _flag(_COMMON)] = None
    """Dtype of what is not quantised (default: auto, the publisher's)."""
    quantization: Annotated[str | None, _flag(_COMMON, "-q")] = None
    """bnb-nf4, bnb-int8, gptq, awq, w4a16, fp8, Q4_K_M … (`ullage formats`); none: dequantise a packed checkpoint."""
    kv_cache_dtype: Annotated[str | None, _flag(_COMMON)] = None
    """Dtype of the KV cache: vLLM takes fp8 and others, transformers keeps the model's."""
    batch_size: Annotated[Whole | None, _flag(_COMMON, "--parallel", "-np")] = None
    """Sequences at once (default: 1)."""
    prompt_tokens: Annotated[str | None, _flag(_COMMON)] = None
    """Prompt of each sequence: 2048, 32k (32,000) or 32K (32,768) (default: 2048)."""
    output_tokens: Annotated[str | None, _flag(_COMMON)] = None
    """New tokens of each sequence (default: 256)."""
    gpu_memory_utilization: Annotated[float | None, _flag(_COMMON)] = None
    """Share of the GPU's memory that may be used (default: 1, or vLLM's 0.92)."""

    attention: Annotated[Literal["sdpa", "eager"] | None, _flag(_TRANSFORMERS)] = None
    """Attention implementation (default: sdpa)."""
    cache_implementation: Annotated[Literal["dynamic", "static"] | None, _flag(_TRANSFORMERS)] = None
    """static: all the cache's room at once, without the compilation that generate would add (default: dynamic)."""
    padded: Annotated[Flag | None, _flag(_TRANSFORMERS)] = None
    """Sequences differ in length, so that the batch needs an attention mask."""
    double_quant: Annotated[Flag | None, _flag(_TRANSFORMERS)] = None
    """Quantise the 4-bit scales too (bnb_4bit_use_double_quant)."""
    compute_dtype: Annotated[Literal["float32", "float16", "bfloat16"] | None, _flag(_TRANSFORMERS)] = None
    """Dtype that 4-bit weights are multiplied in (default: the serving dtype)."""
    device_map: Annotated[Literal["auto", "balanced", "balanced_low_0", "sequential"] | None, _flag(_TRANSFORMERS)] = (
        None
    )
    """Place modules on several GPUs as accelerate does."""

    tensor_parallel_size: Annotated[Whole | None, _flag(_SEVERAL, "-tp")] = None
    """GPUs that share every layer (vLLM's default for --gpu NAME:N)."""
    pipeline_parallel_size: Annotated[Whole | None, _flag(_SEVERAL, "-pp")] = None
    """Stages of whole layers (transformers' default for --gpu NAME:N)."""
    data_parallel_size: Annotated[Whole | None, _flag(_SEVERAL, "-dp")] = None
    """Copies, each with its part of the sequences."""
    enable_expert_parallel: Annotated[Flag | None, _flag(_SEVERAL, "-ep")] = None
    """Divide whole experts among the GPUs instead of every expert (vLLM)."""

    max_model_len: Annotated[str | None, _flag(_VLLM)] = None
    """The longest sequence that vLLM must be able to hold (default: prompt and output)."""
    max_num_seqs: Annotated[Whole | None, _flag(_VLLM)] = None
    """The most sequences in a step (default: vLLM's, by GPU)."""
    max_num_batched_tokens: Annotated[str | None, _flag(_VLLM)] = None
    """The most tokens in a step (default: vLLM's, by GPU)."""
    enforce_eager: Annotated[Flag | None, _flag(_VLLM)] = None
    """No compilation and no CUDA graphs."""
    block_size: Annotated[Whole | None, _flag(_VLLM)] = None
    """Tokens of a block of the KV cache (default: 16, or 64 of latent attention)."""
    enable_prefix_caching: Annotated[bool | None, _flag(_VLLM)] = None
    """Keep blocks of finished requests (default: on, unless no layer attends)."""
    kv_cache_memory_bytes: Annotated[Whole | None, _flag(_VLLM)] = None
    """Bytes of KV cache, whatever the utilisation."""

    ctx_size: Annotated[str | None, _flag(_LLAMACPP, "-c")] = None
    """Cells of the cache over all slots (default: what the sequences need)."""
    logical_batch_size: Annotated[Whole | None, _flag(_LLAMACPP, "-b")] = None
    """Tokens of a logical batch (default: 2048)."""
    ubatch_size: Annotated[Whole | None, _flag(_LLAMACPP, "-ub")] = None
    """Tokens of a physical batch (default: 512)."""
    n_gpu_layers: Annotated[Whole | None, _flag(_LLAMACPP, "--gpu-layers", "-ngl")] = None
    """Last layers that are offloaded, the output head being one (default: all)."""
    n_cpu_moe: Annotated[Whole | None, _flag(_LLAMACPP, "-ncmoe")] = None
    """First layers whose experts stay on the host."""
    flash_attn: Annotated[Literal["on", "off", "auto"] | None, _flag(_LLAMACPP, "-fa")] = None
    """Flash attention (default: auto, which is on where the backend has it)."""
    cache_type_k: Annotated[str | None, _flag(_LLAMACPP, "-ctk")] = None
    """Type of cached keys: f16, f32, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1 (default: f16)."""
    cache_type_v: Annotated[str | None, _flag(_LLAMACPP, "-ctv")] = None
    """Type of cached values (default: f16)."""
    swa_full: Annotated[Flag | None, _flag(_LLAMACPP)] = None
    """Give sliding layers all cells."""
    kv_unified: Annotated[Flag | None, _flag(_LLAMACPP, "-kvu")] = None
    """All slots share the cells."""
    split_mode: Annotated[Literal["none", "layer", "row"] | None, _flag(_LLAMACPP, "-sm")] = None
    """How several GPUs share the model (default: layer)."""
    tensor_split: Annotated[str | None, _flag(_LLAMACPP, "-ts")] = None
    """Shares of the GPUs: 3,1."""
    main_gpu: Annotated[Whole | None, _flag(_LLAMACPP, "-mg")] = None
    """The GPU of --split-mode none."""

    def given(self) -> dict[str, Any]:
        """Those that were given, as fields of `Request` and `Flags`.

        Raises:
            UsageError: a number of tokens or shares that are none.
        """
        from analytic.quantity import parse_tokens

        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found = {name: value for name, value in found.items() if value is not None}
        for name in _TOKENS:
            if name in found:
                found[name] = parse_tokens(found[name], what="--" + name.replace("_", "-"))
        if "flash_attn" in found:
            found["flash_attn"] = {"on": True, "off": False, "auto": None}[found["flash_attn"]]
        if "tensor_split" in found:
            found["tensor_split"] = _shares(found["tensor_split"])
        return found


def _shares(text: str) -> tuple[float, ...]:
    from analytic.errors import UsageError

    parts = text.replace("/", ",").split(",")
    if not all(part.strip().replace(".", "", 1).isdecimal() for part in parts):
        raise UsageError(f"--tensor-split: {text!r} are no shares", hint="write it like 3,1")
    return tuple(float(part) for part in parts)
