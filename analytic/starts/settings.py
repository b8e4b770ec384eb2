"""What a log of vLLM tells of how it was started, as fields of a request, and what stands in for the rest."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from analytic.errors import UllageError
from analytic.loaded.vllm import ONLINE
from analytic.logs import EngineRun
from analytic.models.model import Model
from analytic.starts.releases import Release, flags_of

_FORMATS = {"awq": "awq", "awq_marlin": "awq", "gptq": "gptq", "gptq_marlin": "gptq", **{name: name for name in ONLINE}}
"""vLLM's names of formats, some of which are a kernel's, that tell which format it is."""
_TENSOR, _WORKER = (re.compile(rf"\b{name} ?(\d{{1,5}})") for name in ("TP", "rank"))
_NOT_MODELLED = {
    "enable_lora": "LoRA adapters are not modelled: their buffers are in the printed weights",
    "speculative_config": "speculative decoding is not modelled: a draft's weights and cache are in what is printed",
    "cpu_offload_gb": "offloading is not modelled: part of the weights is in the host's memory",
    "num_gpu_blocks_override": "the number of blocks was given: they do not follow from the bytes",
}
"""By setting, where it is on."""


def notes_of_settings(run: EngineRun) -> Iterator[str]:
    """What was asked for that the estimate does not have."""
    for name, note in _NOT_MODELLED.items():
        if run.settings.get(name) not in (None, False, 0, "None", ""):
            yield note


def flags_of_run(
    run: EngineRun, model: Model, release: Release, given: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Fields of `Request` and `Flags` that the log tells, and what stands in for those that it does not."""
    settings = run.settings
    flags: dict[str, Any] = {}
    dtype = str(settings.get("dtype") or "").removeprefix("torch.").replace("half", "float16")
    if dtype in ("float16", "bfloat16", "float32"):
        flags["dtype"] = dtype
    elif "dtype" not in given:
        notes.append("dtype is not printed: the model's own is taken")
    if "quantization" not in given:
        flags |= _quantization(settings.get("quantization"), model, notes)
    flags |= _parallel(run, given, notes)
    for name in ("enforce_eager", "enable_prefix_caching", "enable_expert_parallel"):
        if isinstance(value := settings.get(name), bool):
            flags[name] = value
    share = settings.get("gpu_memory_utilization")
    if isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1:
        flags["gpu_memory_utilization"] = float(share)
    elif "gpu_memory_utilization" not in given and not run.of("budget"):
        notes.append("gpu_memory_utilization is not printed: vLLM's default is taken")
    cache = settings.get("kv_cache_dtype")
    if isinstance(cache, str) and cache != "auto":
        flags["kv_cache_dtype"] = cache
    longest = given.get("max_model_len") or _count(settings.get("max_model_len"))
    if longest is None:
        longest = model.geometry.max_position_embeddings or 2
        notes.append(f"max_model_len is not printed: the model's own is taken, {longest:,}")
    flags |= {"max_model_len": longest, "prompt_tokens": max(1, longest - 1), "output_tokens": 1}
    return flags | _batch(run, release, longest, given, notes)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _batch(
    run: EngineRun, release: Release, longest: int, given: Mapping[str, Any], notes: list[str]
) -> dict[str, int]:
    chunked = run.settings.get("enable_chunked_prefill") in (True, "True")
    found = flags_of(release, longest, chunked=chunked)
    if value := _count(run.settings.get("kv_cache_memory_bytes")):
        notes.append("the KV cache's bytes were given: they are not what the budget leaves")
        found["kv_cache_memory_bytes"] = value
    for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
        value = _count(run.settings.get(name))
        if value is not None:
            found[name] = value
        elif name not in given and name != "block_size":
            notes.append(f"{name} is not printed: vLLM's default is taken")
    return found


def _quantization(printed: object, model: Model, notes: list[str]) -> dict[str, str]:
    if printed is None or model.native_format is not None:
        return {}
    if printed not in _FORMATS:
        raise UllageError(
            f"the log says quantization={printed}, which does not tell the format, and {model.id} is not quantised",
            hint="say which it is: --quantization NAME (ullage formats lists all), or --model with the quantised one",
        )
    if printed in ONLINE:
        notes.append(
            f"quantization={printed} is taken for what vLLM makes while it loads: else say --quantization NAME"
        )
    return {"quantization": _FORMATS[str(printed)]}


def _parallel(run: EngineRun, given: Mapping[str, Any], notes: list[str]) -> dict[str, int]:
    """Degrees as printed, else as many as there are ranks that say what they loaded."""
    names = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    found = {name: value for name in names if (value := _count(run.settings.get(name))) is not None and value > 1}
    if "tensor_parallel_size" in run.settings or "tensor_parallel_size" in given:
        return found
    places = {fact.place for fact in run.facts}
    for kind in (_TENSOR, _WORKER):
        ranks = {int(match[1]) for place in places if (match := kind.search(place))}
        if ranks and max(ranks) > 0 and ranks == set(range(max(ranks) + 1)):
            notes.append(f"tensor_parallel_size is not printed: {len(ranks)} ranks are seen, and taken for it")
            return {**found, "tensor_parallel_size": len(ranks)}
    notes.append("tensor_parallel_size is not printed: 1 is taken")
    return found
