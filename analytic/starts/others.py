"""Starts of llama.cpp and SGLang beside their estimates."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from analytic.deployment import Deployment
from analytic.engine_constants import EngineCalibration
from analytic.engines.llamacpp.engine import held as llamacpp_held
from analytic.engines.llamacpp.graph import compute_buffers
from analytic.engines.vllm.stages import stages
from analytic.estimator import deploy, split_flags
from analytic.formats.registry import find_preset
from analytic.formats.table import itemsize
from analytic.hardware import Gpu
from analytic.loaded import ALL_LAYERS
from analytic.logs import EngineRun
from analytic.models.model import Model
from analytic.quantity import Quantity, bounded, exact
from analytic.starts.releases import release_of
from analytic.starts.rows import Row, once, row, summed
from analytic.starts.settings import flags_of_run
from analytic.state import sequence_state_bytes_per_token

Read = tuple[Deployment | None, list[Row], list[str]]


def read_llamacpp(
    run: EngineRun, model: Model, gpu: Gpu | None, given: Mapping[str, Any], constants: EngineCalibration | None
) -> Read:
    """Buffers of each GPU. Nothing of them is fitted, so that ``constants`` change nothing.

    Raises:
        UllageError: a model that llama.cpp's graphs are not known of, or a type of file.
    """
    del constants
    notes: list[str] = []
    request, flags = split_flags({**_llamacpp_flags(run, model, given, notes), **given, "engine": "llamacpp"})
    buffers = [fact for name in _BUFFERS for fact in run.of(name)]
    devices = sorted({fact.place for fact in buffers if re.fullmatch(r"CUDA\d{1,4}", fact.place)})
    asked = deploy(model, request, flags=flags, gpu=gpu, gpus=max(1, len(devices)))
    rows = [made for index, device in enumerate(devices) for made in _device(run, asked, index, device, len(devices))]
    if not devices:
        notes.append("no CUDA buffer is printed: nothing on a GPU to compare")
    return asked, rows, notes


def _device(run: EngineRun, asked: Deployment, index: int, device: str, devices: int) -> Iterator[Row]:
    weights, state, _, _ = llamacpp_held(asked)
    place = "GPU" if devices == 1 else f"GPU{index}"
    held = exact(sum(row.bytes for row in weights if row.place == place))
    yield from (row("weights", fact, held) for fact in run.of("model_buffer", device)[:1])
    if asked.flags.ctx_size is None:
        return
    for component, name, is_recurrent in (
        ("KV cache", "kv_buffer", False),
        ("recurrent state", "recurrent_buffer", True),
    ):
        if facts := run.of(name, device):
            size = sum(row.bytes for row in state[index] if (row.kind == "recurrent") == is_recurrent)
            yield summed(component, facts, exact(size))
    compute = run.of("compute_buffer", device)[:1]
    yield from (row("compute buffer", fact, _compute(run, asked, f"GPU{index}")) for fact in compute)


def _compute(run: EngineRun, asked: Deployment, place: str) -> Quantity:
    """A compute buffer; builds that do not print ``n_outputs_max`` reserve logits of a batch, or of each slot."""
    printed = run.settings.get("n_outputs_max")
    wanted = (printed,) if isinstance(printed, int) and printed > 0 else (asked.flags.logical_batch_size, None)
    flags, request = asked.flags, asked.request
    found = [
        compute_buffers(
            asked.model,
            dtype=asked.dtype,
            quantization=request.weight_format,
            ctx_size=flags.ctx_size or 1,
            parallel=request.batch_size,
            kv_unified=bool(flags.kv_unified),
            batch_size=flags.logical_batch_size or 1,
            ubatch_size=flags.ubatch_size or 1,
            flash_attention=flags.flash_attn is not False,
            cache_type_k=flags.cache_type_k or "f16",
            cache_type_v=flags.cache_type_v or "f16",
            gpu_layers=ALL_LAYERS if flags.n_gpu_layers is None else flags.n_gpu_layers,
            cpu_moe_layers=flags.n_cpu_moe or 0,
            swa_full=bool(flags.swa_full),
            tensor_split=flags.tensor_split or (1.0,),
            split_mode=flags.split_mode or "layer",
            main_gpu=flags.main_gpu or 0,
            max_outputs=outputs,
        )
        for outputs in wanted
    ]
    own = [[buffer for buffer in buffers if buffer.place == place] for buffers in found]
    low = min(sum(buffer.low for buffer in buffers) for buffers in own)
    high = max(sum(buffer.high for buffer in buffers) for buffers in own)
    return bounded(low, sum(buffer.bytes for buffer in own[0]), high, "traced")


_BUFFERS = ("model_buffer", "kv_buffer", "recurrent_buffer", "compute_buffer")
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "all F32": "float32"}
_SIZES = {" - Small": "_S", " - Medium": "_M", " - Large": "_L"}
"""How llama.cpp prints mixtures (llama-model-loader.cpp, llama_model_ftype_name)."""


def _format(run: EngineRun, model: Model, given: Mapping[str, Any]) -> dict[str, str]:
    """What the file's type is called here, where the model is not the file itself."""
    printed = run.settings.get("file_type")
    if "quantization" in given or model.source == "gguf" or not isinstance(printed, str):
        return {}
    if printed in _PLAIN:
        return {"dtype": _PLAIN[printed]}
    for words, size in _SIZES.items():
        printed = printed.replace(words, size)
    find_preset(printed)
    return {"quantization": printed}


def _llamacpp_flags(run: EngineRun, model: Model, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    settings = run.settings
    flags: dict[str, Any] = {**_format(run, model, given)}
    if "quantization" not in given and not flags and model.source != "gguf":
        notes.append("the file's type is not printed: the model's own is taken (--quantization)")
    names = {"n_ctx": "ctx_size", "n_batch": "logical_batch_size", "n_ubatch": "ubatch_size"}
    for printed, name in names.items():
        if isinstance(value := settings.get(printed), int) and value > 0:
            flags[name] = value
        elif name in given:
            continue
        elif name == "ctx_size":
            notes.append("n_ctx is not printed: cache and compute buffers are not compared (--ctx-size)")
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
