"""Starts of llama.cpp and SGLang beside their estimates."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from analytic.deployment import Deployment
from analytic.engine_constants import EngineCalibration
from analytic.engine_log_releases import release_of
from analytic.engine_log_rows import Row, once, row, summed
from analytic.engine_log_vllm import flags_of_run
from analytic.engines.llamacpp import held as llamacpp_held
from analytic.engines.vllm import stages
from analytic.estimator import deploy, split_flags
from analytic.formats.table import itemsize
from analytic.hardware import Gpu
from analytic.logs import EngineRun
from analytic.models.model import Model
from analytic.quantity import Quantity, bounded, exact
from analytic.state import sequence_state_bytes_per_token

Read = tuple[Deployment | None, list[Row], list[str]]


def read_llamacpp(
    run: EngineRun, model: Model, gpu: Gpu | None, given: Mapping[str, Any], constants: EngineCalibration | None
) -> Read:
    """Buffers of each GPU. Nothing of them is fitted, so that ``constants`` change nothing.

    Raises:
        UllageError: a model that llama.cpp's graphs are not known of.
    """
    del constants
    notes: list[str] = []
    request, flags = split_flags({**_llamacpp_flags(run, notes), **given, "engine": "llamacpp"})
    devices = sorted({fact.place for fact in run.of("model_buffer") if re.fullmatch(r"CUDA\d{1,4}", fact.place)})
    asked = deploy(model, request, flags=flags, gpu=gpu, gpus=max(1, len(devices)))
    rows = [made for index, device in enumerate(devices) for made in _device(run, asked, index, device, len(devices))]
    if not devices:
        notes.append("no CUDA buffer is printed: nothing on a GPU to compare")
    return asked, rows, notes


def _device(run: EngineRun, asked: Deployment, index: int, device: str, devices: int) -> Iterator[Row]:
    weights, state, buffers, _ = llamacpp_held(asked)
    place = "GPU" if devices == 1 else f"GPU{index}"
    compute = [buffer for buffer in buffers if buffer.place == f"GPU{index}"]
    size = sum(buffer.bytes for buffer in compute)
    low, high = sum(buffer.low for buffer in compute), sum(buffer.high for buffer in compute)
    sums: tuple[tuple[str, str, Quantity], ...] = (
        ("weights", "model_buffer", exact(sum(row.bytes for row in weights if row.place == place))),
        ("KV cache", "kv_buffer", exact(sum(row.bytes for row in state[index] if row.kind != "recurrent"))),
        ("recurrent state", "recurrent_buffer", exact(sum(r.bytes for r in state[index] if r.kind == "recurrent"))),
        ("compute buffer", "compute_buffer", bounded(low, size, high, "traced")),
    )
    for component, name, estimated in sums:
        facts = run.of(name, device)
        if facts and component in ("KV cache", "recurrent state"):
            yield summed(component, facts, estimated)
        else:
            yield from (row(component, fact, estimated) for fact in facts[:1])


def _llamacpp_flags(run: EngineRun, notes: list[str]) -> dict[str, Any]:
    settings = run.settings
    flags: dict[str, Any] = {}
    names = {"n_ctx": "ctx_size", "n_batch": "logical_batch_size", "n_ubatch": "ubatch_size"}
    for printed, name in names.items():
        if isinstance(value := settings.get(printed), int) and value > 0:
            flags[name] = value
        else:
            notes.append(f"{printed} is not printed: llama.cpp's default is taken")
    slots = settings.get("n_seq_max")
    flags["batch_size"] = slots if isinstance(slots, int) and slots > 0 else 1
    for printed, name in (("type_k", "cache_type_k"), ("type_v", "cache_type_v")):
        if isinstance(kind := settings.get(printed), str):
            flags[name] = kind
    flash = str(settings.get("flash_attn", "")).lower()
    if flash in ("0", "false", "disabled", "1", "true", "enabled"):
        flags["flash_attn"] = flash in ("1", "true", "enabled")
    unified = str(settings.get("kv_unified", "")).lower()
    if unified in ("true", "false"):
        flags["kv_unified"] = unified == "true"
    offloaded, layers = run.of("offloaded_layers"), run.of("layers")
    if offloaded and layers and offloaded[0].count is not None:
        flags["n_gpu_layers"] = int(offloaded[0].count)
    return flags | {"prompt_tokens": 1, "output_tokens": 1}


def read_sglang(
    run: EngineRun, model: Model, gpu: Gpu | None, given: Mapping[str, Any], constants: EngineCalibration | None
) -> Read:
    """SGLang is not modelled: its weights are laid beside vLLM's, its cache beside the geometry's.

    Raises:
        UllageError: a model that vLLM's weights are not known of.
    """
    del constants
    notes = ["SGLang's engine is not modelled: its weights are laid beside vLLM's, its cache beside bytes a token"]
    facts = flags_of_run(run, model, release_of(run), given, [])
    facts = {name: facts[name] for name in _SHARED if name in facts}
    request, flags = split_flags({**facts, "prompt_tokens": 1, **given, "engine": "vllm"})
    asked = deploy(model, request, flags=flags, gpu=gpu)
    rows = [row("weights", fact, exact(stages(asked)[0].weights_bytes)) for fact in once(run.of("weights"))]
    rows += _sglang_cache(run, asked)
    return None, rows, notes


_SHARED = ("dtype", "quantization", "tensor_parallel_size", "pipeline_parallel_size")
"""Settings that mean the same in SGLang."""


def _sglang_cache(run: EngineRun, asked: Deployment) -> Iterator[Row]:
    size = 1 if str(run.settings.get("kv_cache_dtype", "")).startswith(("fp8", "float8")) else itemsize(asked.dtype)
    each = sequence_state_bytes_per_token(asked.model.geometry, tokens=2, itemsize=size) / asked.degrees.tensor
    for tokens in run.of("kv_cache_tokens")[:1]:
        halves = (*run.of("kv_cache_k", tokens.place)[:1], *run.of("kv_cache_v", tokens.place)[:1])
        if tokens.count is not None and (facts := halves or run.of("kv_cache", tokens.place)[:1]):
            held = round(tokens.count * each)
            yield summed("KV cache", facts, exact(held))
