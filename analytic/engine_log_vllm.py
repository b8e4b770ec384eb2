"""A start of vLLM beside its estimate: its settings, then weights, activations, libraries, graphs and KV cache."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from analytic.deployment import Deployment
from analytic.engine_constants import EngineCalibration
from analytic.engine_log_names import gpu_of
from analytic.engine_log_releases import (
    Peaks,
    Release,
    flags_of,
    graphs_of,
    is_whole_window,
    libraries_of,
    notes_of,
    peaks,
    release_of,
    tokens_in,
)
from analytic.engine_log_rows import Row, at, counted, median, once, row, summed, within
from analytic.engines.vllm import Stage, stages
from analytic.errors import UllageError
from analytic.estimator import deploy, split_flags
from analytic.hardware import Gpu
from analytic.loaded.vllm import ONLINE
from analytic.logs import EngineRun, Fact
from analytic.models.model import Model
from analytic.quantity import Quantity, bounded

_FORMATS = {"awq": "awq", "awq_marlin": "awq", "gptq": "gptq", "gptq_marlin": "gptq", **{name: name for name in ONLINE}}
"""vLLM's names of formats, some of which are a kernel's, that tell which format it is."""
_MIB = 2**20
_STAGE, _TENSOR, _WORKER = (re.compile(rf"\b{name} ?(\d{{1,5}})") for name in ("PP", "TP", "rank"))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stage:
    """A pipeline stage, and the figures of its ranks."""

    run: EngineRun
    stage: Stage
    peaks: Peaks
    release: Release
    libraries: Quantity
    graphs: Quantity
    index: int | None
    """Which stage's places are meant; None: there is one stage."""

    @property
    def counts_graphs(self) -> bool:
        """Whether graphs come out of the budget, and are part of the printed peak."""
        return self.release.counts_graphs

    def of(self, name: str) -> tuple[Fact, ...]:
        """The facts of a name, a rank each; without a named stage all are of the first."""
        facts = tuple(once(self.run.of(name)))
        if self.index is None:
            return facts
        named = [(fact, _STAGE.search(fact.place)) for fact in facts]
        if not any(match for _, match in named):
            return facts[:1] if self.index == 0 else ()
        return tuple(fact for fact, match in named if match and int(match[1]) == self.index)


def read_vllm(
    run: EngineRun, model: Model, gpu: Gpu | None, given: Mapping[str, Any], constants: EngineCalibration | None
) -> tuple[Deployment, list[Row], list[str]]:
    """What was estimated, its rows, and notes.

    Raises:
        UllageError: a format that the log does not tell, or something that vLLM's model does not know.
    """
    gpu, said = gpu_of(run, gpu)
    release = release_of(run)
    notes = [*said, *notes_of(release, run)]
    request, flags = split_flags({**flags_of_run(run, model, release, given, notes), **given, "engine": "vllm"})
    total = median(run, "total_gpu_memory")
    if gpu is None:
        notes.append(
            "which GPU it ran on is not known: kernels and defaults that depend on it are those of none (--gpu)"
        )
    elif total is not None:
        gpu = replace(gpu, total_bytes=total, kept_low_bytes=0, kept_bytes=0, kept_high_bytes=0)
    asked = deploy(model, request, flags=flags, gpu=gpu, constants=constants)
    found = stages(asked)
    rows: list[Row] = []
    for index, stage in enumerate(found):
        of = _Stage(
            run=run,
            stage=stage,
            peaks=peaks(asked, stage, index, release),
            release=release,
            libraries=libraries_of(release, stage, gpu),
            graphs=graphs_of(release, stage),
            index=index if len(found) > 1 else None,
        )
        rows += _rows(of, asked)
    if len(found) > 1 and not any(_STAGE.search(fact.place) for fact in run.facts):
        notes.append("no line names its pipeline stage: the first figures are laid beside the first stage")
    return asked, rows, [*notes, *_figures_notes(run, rows)]


def _figures_notes(run: EngineRun, rows: list[Row]) -> Iterator[str]:
    for negative in rows:
        if negative.component == "graphs" and negative.printed_high <= 0:
            where = f" at {negative.place}" if negative.place else ""
            yield f"CUDA graphs took less than nothing{where} (line {negative.line}): others freed memory meanwhile"
    if not rows:
        yield "no line has a figure that is estimated: give the log of the whole start"
    elif not run.of("kv_cache_memory") and run.of("gpu_blocks") + run.of("kv_cache_tokens"):
        yield "the KV cache is printed in blocks or tokens alone, which are laid beside nothing: its bytes are missing"


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


def _rows(of: _Stage, asked: Deployment) -> Iterator[Row]:
    weights = _weights(of.stage, asked.model)
    yield from (row("weights", fact, weights) for fact in of.of("weights"))
    consumed, held = of.of("consumed"), of.peaks.held
    libraries = of.libraries
    yield from (row("weights and libraries", fact, weights + held + libraries) for fact in consumed)
    yield from _activations(of, bool(consumed))
    yield from (row("libraries", fact, libraries) for fact in of.of("non_torch"))
    yield from (row("graphs", fact, of.graphs) for fact in of.of("cuda_graphs"))
    yield from _cache(of, asked, weights)


def _weights(stage: Stage, model: Model) -> Quantity:
    """A block of PyTorch's allocator that is not split may end up to 1 MiB after its tensor, and counts whole."""
    first, end = stage.span
    matrices = [group for group in model.tensors if len(group.shape) > 1]
    blocks = sum(1 if g.layers is None else sum(first <= layer < end for layer in g.layers) for g in matrices)
    return bounded(stage.weights_bytes, stage.weights_bytes, stage.weights_bytes + blocks * _MIB, "exact")


def _activations(of: _Stage, less_held: bool) -> Iterator[Row]:
    """The printed peak without the graphs' estimate that is part of it."""
    peak, held, estimates = of.peaks.activations, of.peaks.held, of.of("cuda_graphs_estimate")
    if less_held:
        low, high = peak.low_bytes - held.high_bytes, peak.high_bytes - held.low_bytes
        peak = within(low, peak.bytes - held.bytes, high)
    for fact in of.of("peak_activation"):
        away = at(estimates, fact.place) if of.counts_graphs else ()
        if of.counts_graphs and not away and of.graphs.high_bytes:
            both = peak + bounded(0, of.graphs.bytes, of.graphs.high_bytes, "fitted")
            yield row("activations and graphs", fact, both)
        else:
            yield summed("activations", (fact,), peak, away)


def _cache(of: _Stage, asked: Deployment, weights: Quantity) -> Iterator[Row]:
    budget = budget_of(of.run, asked)
    memory = of.of("kv_cache_memory")
    if budget is not None:
        graphs = (of.graphs,) if of.counts_graphs else ()
        fixed = sum((of.peaks.activations, of.libraries, *graphs), start=weights)
        left = within(budget - fixed.high_bytes, budget - fixed.bytes, budget - fixed.low_bytes)
        yield from (row("KV cache", fact, left) for fact in memory)
    if of.index is None and not is_whole_window(of.release, asked.model):
        yield from _blocks(of, asked, memory)


def budget_of(run: EngineRun, asked: Deployment) -> int | None:
    """What vLLM may use of a GPU, as printed or of the GPU; None where neither is known."""
    if (printed := median(run, "budget")) is not None:
        return printed
    total = median(run, "total_gpu_memory") or (asked.gpu.cuda_bytes if asked.gpu else None)
    share = asked.request.gpu_memory_utilization
    return None if total is None or share is None else round(total * share)


def _blocks(of: _Stage, asked: Deployment, memory: tuple[Fact, ...]) -> Iterator[Row]:
    """Blocks and tokens that follow from the bytes of KV cache as printed: arithmetic on the cache alone.

    The rank that has least decides (``v1/core/kv_cache_utils.py``, get_kv_cache_configs).
    """
    known = [fact for fact in memory if fact.bytes is not None]
    if not known:
        return
    least = min(known, key=lambda fact: fact.bytes or 0)
    held, longest = of.stage.pool, asked.flags.max_model_len or 1
    sizes = least.low_bytes or 0, least.bytes or 0, least.high_bytes or 0
    for component, name, count in (
        ("blocks", "gpu_blocks", held.blocks_in),
        ("tokens", "kv_cache_tokens", lambda size: tokens_in(of.release, held, size, longest)),
    ):
        low, middle, high = (float(count(max(0, size))) for size in sizes)
        for fact in of.run.of(name)[:1]:
            if fact.count is not None:
                yield counted(component, fact, low, middle, high)
