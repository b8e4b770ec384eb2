"""A start of vLLM beside its estimate: its settings, then weights, activations, libraries, graphs and KV cache."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from analytic.deployment import Deployment
from analytic.engine_constants import EngineCalibration
from analytic.engines.vllm.stages import Stage, stages
from analytic.estimator import deploy, split_flags
from analytic.hardware import Gpu
from analytic.logs import EngineRun, Fact
from analytic.models.model import Model
from analytic.quantity import Quantity, bounded
from analytic.starts.names import gpu_of
from analytic.starts.releases import (
    Peaks,
    Release,
    graphs_of,
    is_whole_window,
    libraries_of,
    notes_of,
    peaks,
    release_of,
    tokens_in,
)
from analytic.starts.rows import Row, at, counted, median, once, row, summed, within
from analytic.starts.settings import flags_of_run, notes_of_settings

_MIB = 2**20
_STAGE = re.compile(r"\bPP ?(\d{1,5})")


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
    notes = [*said, *notes_of(release, run), *notes_of_settings(run)]
    request, flags = split_flags({**flags_of_run(run, model, release, given, notes), **given, "engine": "vllm"})
    total = median(run, "total_gpu_memory")
    if gpu is None:
        notes.append(
            "which GPU it ran on is not known: kernels and defaults that depend on it are those of none (--gpu)"
        )
    elif total is not None:
        gpu = replace(gpu, total_bytes=total, kept_low_bytes=0, kept_bytes=0, kept_high_bytes=0)
    # what was printed did run, whatever 0.33 refuses
    asked = deploy(model, replace(request, dtype="auto"), flags=flags, gpu=gpu, constants=constants)
    if request.dtype != "auto":
        asked = replace(asked, dtype=request.dtype)
    found = stages(asked)
    rows: list[Row] = []
    for index, stage in enumerate(found):
        of = _Stage(
            run=run,
            stage=stage,
            peaks=peaks(asked, stage, index, release),
            release=release,
            libraries=libraries_of(release, asked, stage),
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
    if budget is not None and asked.flags.kv_cache_memory_bytes is None:
        graphs = (of.graphs,) if of.counts_graphs else ()
        fixed = sum((of.peaks.activations, of.libraries, *graphs), start=weights)
        left = within(budget - fixed.high_bytes, budget - fixed.bytes, budget - fixed.low_bytes)
        yield from (row("KV cache", fact, left) for fact in memory)
    if (
        of.index is None
        and not of.run.settings.get("num_gpu_blocks_override")
        and not is_whole_window(of.release, asked.model)
    ):
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
