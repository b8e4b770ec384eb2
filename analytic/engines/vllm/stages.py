"""Everything of vLLM's pipeline stages that does not hang on the sequences: what the budget pays before the cache."""

from dataclasses import dataclass, replace
from functools import lru_cache

from analytic.deployment import Deployment
from analytic.engine_constants import Constant, EngineCalibration
from analytic.engines.vllm.memory import VllmRun, activation_peak, cuda_graph_bytes, non_torch_bytes
from analytic.flags import Flags
from analytic.formats.table import itemsize
from analytic.hardware import Gpu
from analytic.loaded.vllm import pipeline_spans, vllm_weights
from analytic.models.model import Model
from analytic.parallel import Degrees
from analytic.placement import Span
from analytic.quantity import Quantity, exact
from analytic.state.vllm import pool
from analytic.state.vllm_pool import Pool

BEFORE_BLACKWELL, BLACKWELL = (9, 0), (10, 0)
"""Compute capabilities that tell kernels of plain weights apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Everything of a pipeline stage that does not hang on the sequences."""

    span: Span
    weights_bytes: int
    activations: Quantity
    moment: str
    graphs: Quantity
    non_torch: Quantity
    """What libraries take within the budget."""
    pool: Pool

    @property
    def fixed(self) -> Quantity:
        """What the budget pays before the KV cache."""
        return exact(self.weights_bytes) + self.activations + self.graphs + self.non_torch


def stages(asked: Deployment) -> tuple[Stage, ...]:
    """One a pipeline stage."""
    return tuple(stage_of(asked, stage) for stage in range(asked.degrees.pipeline))


def stage_of(asked: Deployment, stage: int) -> Stage:
    """One of them, by its pipeline rank."""
    return _stage(
        asked.model,
        asked.dtype,
        asked.request.weight_format,
        asked.request.kv_cache_dtype,
        asked.gpu,
        asked.degrees,
        asked.flags,
        asked.constants,
        stage,
    )


@lru_cache(maxsize=4096)
def _stage(
    model: Model,
    dtype: str,
    quantization: str | None,
    kv_cache_dtype: str,
    gpu: Gpu | None,
    degrees: Degrees,
    flags: Flags,
    constants: EngineCalibration | None,
    stage: int,
) -> Stage:
    assert flags.max_num_batched_tokens is not None
    assert flags.block_size is not None
    run = _run(dtype, quantization, gpu, degrees, flags)
    beside = _beside(model, run, gpu, constants)
    span = pipeline_spans(len(model.geometry.layers), degrees.pipeline)[stage]
    capability = _kernels(run, model)
    return Stage(
        span=span,
        weights_bytes=_weights(model, dtype, quantization, capability, degrees, run.enable_expert_parallel, stage),
        activations=beside.activations,
        moment=beside.moment,
        graphs=beside.graphs,
        non_torch=beside.non_torch,
        pool=_pool(
            model,
            span,
            dtype,
            kv_cache_dtype,
            flags.block_size,
            degrees.tensor,
            flags.max_num_batched_tokens,
            flags.enable_prefix_caching,
        ),
    )


def _run(dtype: str, quantization: str | None, gpu: Gpu | None, degrees: Degrees, flags: Flags) -> VllmRun:
    assert flags.max_num_batched_tokens is not None
    assert flags.max_num_seqs is not None
    assert flags.max_model_len is not None
    return VllmRun(
        dtype=dtype,
        tensor_parallel_size=degrees.tensor,
        pipeline_parallel_size=degrees.pipeline,
        enable_expert_parallel=bool(flags.enable_expert_parallel),
        data_parallel_size=degrees.data,
        max_num_batched_tokens=flags.max_num_batched_tokens,
        max_num_seqs=flags.max_num_seqs,
        max_model_len=flags.max_model_len,
        enforce_eager=bool(flags.enforce_eager),
        quantization=quantization,
        capability=gpu.capability if gpu else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Beside:
    """What is beside weights and cache, alike on all stages."""

    activations: Quantity
    moment: str
    graphs: Quantity
    non_torch: Quantity


@lru_cache(maxsize=4096)
def _beside(model: Model, run: VllmRun, gpu: Gpu | None, constants: EngineCalibration | None) -> _Beside:
    activations, moment = activation_peak(model, run)
    graphs = cuda_graph_bytes(model, run)
    non_torch = non_torch_bytes(run, gpu)
    if constants is not None:
        activations = constants.applied("activations", activations)
        graphs = constants.applied("graphs", graphs)
        libraries: Constant = "libraries" if run.tensor_parallel_size == 1 else "libraries-several"
        non_torch = constants.applied(libraries, non_torch)
    return _Beside(activations=activations, moment=moment, graphs=graphs, non_torch=non_torch)


def _kernels(run: VllmRun, model: Model) -> tuple[int, int] | None:
    """The compute capability as far as weights depend on it: where nothing is packed, whether it is Blackwell's."""
    if run.capability is None or run.quantization not in (None, "none") or model.native_format is not None:
        return run.capability
    return max(min(run.capability, BLACKWELL), BEFORE_BLACKWELL)


@lru_cache(maxsize=16384)
def _weights(
    model: Model,
    dtype: str,
    quantization: str | None,
    capability: tuple[int, int] | None,
    degrees: Degrees,
    enable_expert_parallel: bool,
    stage: int,
) -> int:
    (loaded,) = vllm_weights(
        model,
        dtype=dtype,
        quantization=quantization,
        capability=capability,
        tensor_parallel_size=degrees.tensor,
        pipeline_parallel_size=degrees.pipeline,
        pipeline_rank=stage,
        enable_expert_parallel=enable_expert_parallel,
        data_parallel_size=degrees.data,
    )
    return loaded.bytes


@lru_cache(maxsize=16384)
def _pool(
    model: Model,
    span: Span,
    dtype: str,
    kv_cache_dtype: str,
    block_size: int,
    tensor: int,
    batched_tokens: int,
    enable_prefix_caching: bool | None,
) -> Pool:
    return pool(
        replace(model.geometry, layers=model.geometry.layers[slice(*span)]),
        itemsize=itemsize(dtype),
        kv_cache_dtype=kv_cache_dtype,
        block_size=block_size,
        tensor_parallel_size=tensor,
        max_num_batched_tokens=batched_tokens,
        enable_prefix_caching=enable_prefix_caching,
    )
