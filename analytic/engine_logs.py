"""What an engine printed when it started, beside the estimate of the same start."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from analytic.deployment import Deployment
from analytic.engines.llamacpp import held as llamacpp_held
from analytic.engines.vllm import Stage, stages
from analytic.errors import UllageError
from analytic.estimator import deploy, split_flags
from analytic.formats.table import itemsize
from analytic.hardware import Gpu
from analytic.logs import EngineRun, Fact
from analytic.models.model import Model
from analytic.models.resolve import resolve
from analytic.quantity import Quantity, bounded, exact
from analytic.state import sequence_state_bytes_per_token

GRAPHS_COUNTED_SINCE = (0, 21)
"""Version of vLLM from which CUDA graphs come out of the budget, and are part of the printed activation peak."""

_KERNELS = {"awq_marlin": "awq", "gptq_marlin": "gptq"}
"""What vLLM's log calls a format by its kernel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure of a log, and what the estimate says of it."""

    component: str
    place: str
    """Rank or device, as printed; empty: the engine."""
    line: int
    printed: float
    """Bytes, or a count."""
    printed_low: float
    """Least that is printed so."""
    printed_high: float
    estimated: float
    low: float
    high: float
    is_count: bool = False

    @property
    def error(self) -> float | None:
        """Of the estimate, relative to what was printed, as far as the printed digits tell; None beside 0."""
        nearest = min(max(self.estimated, self.printed_low), self.printed_high)
        return (self.estimated - nearest) / self.printed if self.printed else None

    @property
    def is_within(self) -> bool:
        """Whether the bounds hold what was printed."""
        return self.low <= self.printed_high and self.printed_low <= self.high


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A start, laid beside its estimate."""

    source: str
    """File."""
    run: EngineRun
    model: Model
    asked: Deployment | None
    """What was estimated; None of an engine that ullage does not model."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """What is partial, and what was assumed."""


def beside(
    run: EngineRun, *, source: str, model: str | None = None, gpu: Gpu | None = None, given: Mapping[str, Any]
) -> Beside:
    """Estimate the start that a log tells of.

    Args:
        run: read from a log.
        source: the file, for messages.
        model: what the log calls otherwise, or not at all.
        gpu: on which it ran, where the log does not say.
        given: flags as fields of `Request` and `Flags`, which stand in for what the log does not say.

    Raises:
        UllageError: the model or its format is not known from the log alone.
    """
    name = model or run.model
    if name is None:
        raise UllageError(f"{source}: the log does not say which model was loaded", hint="add --model NAME")
    try:
        resolved = resolve(name)
    except UllageError as unknown:
        raise UllageError(f"{source}: {unknown.message}", hint="say which model it is: --model NAME") from unknown
    asked, rows, notes = _READERS[run.engine](run, resolved, gpu, given)
    return Beside(source=source, run=run, model=resolved, asked=asked, rows=tuple(rows), notes=(*run.notes, *notes))


Read = tuple[Deployment | None, list[Row], list[str]]


def _vllm(run: EngineRun, model: Model, gpu: Gpu | None, given: Mapping[str, Any]) -> Read:
    notes: list[str] = []
    request, flags = split_flags({**_vllm_flags(run, model, notes), **given, "engine": "vllm"})
    total = _median(run, "total_gpu_memory")
    if gpu is not None and total is not None:
        gpu = replace(gpu, total_bytes=total, kept_low_bytes=0, kept_bytes=0, kept_high_bytes=0)
    asked = deploy(model, request, flags=flags, gpu=gpu)
    counted = _counts_graphs(run.version)
    rows: list[Row] = []
    for stage in stages(asked):
        rows += _vllm_rows(run, asked, stage, counted, several=asked.degrees.pipeline > 1)
        if asked.degrees.pipeline > 1:
            notes.append("pipeline stages: only the first is laid beside the log")
            break
    return asked, rows, notes


def _counts_graphs(version: str | None) -> bool:
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return match is None or (int(match[1]), int(match[2])) >= GRAPHS_COUNTED_SINCE


def _vllm_flags(run: EngineRun, model: Model, notes: list[str]) -> dict[str, Any]:
    settings = run.settings
    flags: dict[str, Any] = {}
    dtype = str(settings.get("dtype") or "").removeprefix("torch.")
    if dtype in ("float16", "bfloat16", "float32"):
        flags["dtype"] = dtype
    quantization = settings.get("quantization")
    if quantization is not None and model.native_format is None:
        flags["quantization"] = _KERNELS.get(str(quantization), str(quantization))
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size"):
        if isinstance(value := settings.get(name), int) and not isinstance(value, bool) and value > 0:
            flags[name] = value
        elif name != "block_size":
            notes.append(f"{name} is not printed: vLLM's default is taken")
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        if isinstance(value := settings.get(name), int) and value > 1:
            flags[name] = value
    for name in ("enforce_eager", "enable_prefix_caching", "enable_expert_parallel"):
        if isinstance(value := settings.get(name), bool):
            flags[name] = value
    if isinstance(share := settings.get("gpu_memory_utilization"), int | float) and 0 < share <= 1:
        flags["gpu_memory_utilization"] = float(share)
    cache = settings.get("kv_cache_dtype")
    if isinstance(cache, str) and cache != "auto":
        flags["kv_cache_dtype"] = cache
    longest = flags.get("max_model_len") or model.geometry.max_position_embeddings or 2
    flags["max_model_len"] = longest
    return flags | {"prompt_tokens": max(1, longest - 1), "output_tokens": 1}


def _vllm_rows(run: EngineRun, asked: Deployment, stage: Stage, counted: bool, *, several: bool) -> Iterator[Row]:
    peak = stage.activations + stage.graphs if counted and run.of("cuda_graphs_estimate") else stage.activations
    fixed = stage.fixed if counted else exact(stage.weights_bytes) + stage.activations + stage.non_torch
    compared: tuple[tuple[str, str, Quantity], ...] = (
        ("weights", "weights", exact(stage.weights_bytes)),
        ("activations", "peak_activation", peak),
        ("libraries", "non_torch", stage.non_torch),
        ("graphs", "cuda_graphs", stage.graphs),
    )
    for component, name, estimated in compared:
        facts = run.of(name)
        yield from (_row(component, fact, estimated) for fact in (facts[:1] if several else facts))
    budget = _budget(run, asked)
    if budget is not None:
        left = bounded(
            max(0, budget - fixed.high_bytes), max(0, budget - fixed.bytes), max(0, budget - fixed.low_bytes), "fitted"
        )
        yield from (_row("KV cache", fact, left) for fact in run.of("kv_cache_memory"))
    yield from _vllm_blocks(run, asked, stage)


def _budget(run: EngineRun, asked: Deployment) -> int | None:
    if (printed := _median(run, "budget")) is not None:
        return printed
    total = _median(run, "total_gpu_memory") or (asked.gpu.cuda_bytes if asked.gpu else None)
    share = asked.request.gpu_memory_utilization
    return None if total is None or share is None else round(total * share)


def _vllm_blocks(run: EngineRun, asked: Deployment, stage: Stage) -> Iterator[Row]:
    """Blocks and tokens that follow from the bytes of KV cache as printed: arithmetic on the cache alone."""
    held, longest = stage.pool, asked.flags.max_model_len or 1
    for memory in run.of("kv_cache_memory")[:1]:
        if memory.low_bytes is None or memory.bytes is None or memory.high_bytes is None:
            continue
        sizes = memory.low_bytes, memory.bytes, memory.high_bytes
        for component, name, count in (
            ("blocks", "gpu_blocks", held.blocks_in),
            ("tokens", "kv_cache_tokens", lambda size: held.capacity_tokens(size, longest)),
        ):
            low, middle, high = (float(count(size)) for size in sizes)
            for fact in run.of(name)[:1]:
                if fact.count is not None:
                    yield _counted(component, fact, low, middle, high)


def _llamacpp(run: EngineRun, model: Model, gpu: Gpu | None, given: Mapping[str, Any]) -> Read:
    notes: list[str] = []
    request, flags = split_flags({**_llamacpp_flags(run, notes), **given, "engine": "llamacpp"})
    devices = sorted({fact.place for fact in run.of("model_buffer") if re.fullmatch(r"CUDA\d+", fact.place)})
    asked = deploy(model, request, flags=flags, gpu=gpu, gpus=max(1, len(devices)))
    weights, state, buffers, _ = llamacpp_held(asked)
    rows: list[Row] = []
    for index, device in enumerate(devices):
        place = "GPU" if len(devices) == 1 else f"GPU{index}"
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
                rows.append(_summed(component, facts, estimated))
            else:
                rows += [_row(component, fact, estimated) for fact in facts[:1]]
    if not devices:
        notes.append("no CUDA buffer is printed: nothing on a GPU to compare")
    return asked, rows, notes


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


def _sglang(run: EngineRun, model: Model, gpu: Gpu | None, given: Mapping[str, Any]) -> Read:
    """SGLang is not modelled: its weights are laid beside vLLM's, its cache beside the geometry's."""
    notes = ["SGLang's engine is not modelled: its weights are laid beside vLLM's, its cache beside bytes a token"]
    facts = {name: value for name, value in _vllm_flags(run, model, []).items() if name != "max_model_len"}
    request, flags = split_flags({**facts, "prompt_tokens": 1, **given, "engine": "vllm"})
    asked = deploy(model, request, flags=flags, gpu=gpu)
    rows = [_row("weights", fact, exact(stages(asked)[0].weights_bytes)) for fact in run.of("weights")]
    rows += _sglang_cache(run, asked)
    return None, rows, notes


def _sglang_cache(run: EngineRun, asked: Deployment) -> Iterator[Row]:
    size = 1 if str(run.settings.get("kv_cache_dtype", "")).startswith(("fp8", "float8")) else itemsize(asked.dtype)
    each = sequence_state_bytes_per_token(asked.model.geometry, tokens=2, itemsize=size) / asked.degrees.tensor
    for tokens in run.of("kv_cache_tokens")[:1]:
        halves = (*run.of("kv_cache_k", tokens.place)[:1], *run.of("kv_cache_v", tokens.place)[:1])
        if tokens.count is not None and (facts := halves or run.of("kv_cache", tokens.place)[:1]):
            held = round(tokens.count * each)
            yield _summed("KV cache", facts, exact(held))


_READERS: Mapping[str, Callable[[EngineRun, Model, Gpu | None, Mapping[str, Any]], Read]] = {
    "vllm": _vllm,
    "llamacpp": _llamacpp,
    "sglang": _sglang,
}


def _median(run: EngineRun, name: str) -> int | None:
    sizes = sorted(fact.bytes for fact in run.of(name) if fact.bytes is not None)
    return sizes[len(sizes) // 2] if sizes else None


def _row(component: str, fact: Fact, estimated: Quantity) -> Row:
    return _summed(component, (fact,), estimated)


def _summed(component: str, facts: tuple[Fact, ...], estimated: Quantity) -> Row:
    return Row(
        component=component,
        place=facts[0].place,
        line=facts[0].line,
        printed=sum(fact.bytes or 0 for fact in facts),
        printed_low=sum(fact.low_bytes or 0 for fact in facts),
        printed_high=sum(fact.high_bytes or 0 for fact in facts),
        estimated=estimated.bytes,
        low=estimated.low_bytes,
        high=estimated.high_bytes,
    )


def _counted(component: str, fact: Fact, low: float, middle: float, high: float) -> Row:
    count = float(fact.count or 0)
    return Row(
        component=component,
        place=fact.place,
        line=fact.line,
        printed=count,
        printed_low=count,
        printed_high=count,
        estimated=middle,
        low=low,
        high=high,
        is_count=True,
    )
