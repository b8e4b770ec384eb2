"""What vLLM's earlier releases allocate otherwise than 0.33, of which `analytic.engines` is the model.

Three runners have profiled memory (the file that printed a figure tells which, and its version): V0 (``worker.py``) up
to 0.10, V1 (``v1/worker/gpu_model_runner.py``) from 0.8 on, V2 (``v1/worker/gpu/model_runner.py``), the only default in
0.33. V0 and V1 hold no counts of penalties on the device. Both sorted the logits to sample, V1 until 0.16; then one of
Triton's kernels masked them, with a row of float32 a multiprocessor, until FlashInfer did. Their profile counts the
workspace of cuBLAS. ``tests/test_vllm_logs.py`` and ``tests/test_starts.py`` hold each against public logs.
"""

from dataclasses import dataclass, replace
from typing import Literal

from analytic.deployment import Deployment
from analytic.engines.vllm.engine import VERSION
from analytic.engines.vllm.graphs import libraries
from analytic.engines.vllm.memory import VllmRun, compile_bytes, runner_bytes
from analytic.engines.vllm.profiling import FLASHINFER_BYTES, moments, workspace_bytes
from analytic.engines.vllm.stages import Stage
from analytic.formats.table import itemsize
from analytic.hardware import context_range
from analytic.logs import EngineRun
from analytic.models.geometry import Attention, MixtureOfExperts
from analytic.models.model import Model
from analytic.quantity import Quantity, bounded
from analytic.starts.rows import version_of, within
from analytic.state.vllm_pool import Pool

Runner = Literal["v0", "v1", "v2"]

V1_SINCE, V0_UNTIL, SORTED_UNTIL, V2_FROM, V2_ONLY = (0, 8), (0, 10), (0, 16), (0, 20), (0, 33)
"""Versions: of V1 by default, the last with V0, the last that sorts, the first with V2 seen in a log, and V2 alone."""
GRAPHS_COUNTED_SINCE = (0, 21)
"""From here on CUDA graphs come out of the budget, and are part of the printed activation peak."""
TOKENS_SHARED_UNTIL = (0, 20)
"""Until here the printed tokens of a KV cache are its blocks', shared evenly by the groups of layers; since, what the
concurrency at the longest length comes to (``v1/core/kv_cache_utils.py``)."""
GRAPHS_FITTED_FROM = (0, 17)
EARLIER_GRAPHS, EARLIER_GRAPHS_BYTES, EARLIER_GRAPH_BYTES = 67, 2**30, 700 * 2**10
"""Of V1 before: batches of 1, 2, 4 and each 8 up to 512; and at most, a constant and bytes a layer of each (logs of 0.8
have 650 KiB beside 1 GiB)."""
SORTED_BYTES = 38
"""A logit: in bfloat16, in float32, sorted with their places, and as sorting copies (topk_topp_sampler.py)."""
CUBLAS_BYTES, CUBLAS_HOPPER_BYTES = 8_519_680, 32 * 2**20
"""Workspace of a cuBLAS handle, within PyTorch's allocator."""
MULTIPROCESSORS = 132
"""Of an H100, where the GPU's are not known."""
V0_SEQUENCES, V0_TOKENS = 256, 2048
"""V0's ``max_num_seqs``, and the least ``max_num_batched_tokens`` (config.py, SchedulerConfig)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """What a log shows of the vLLM that wrote it."""

    version: tuple[int, int] | None
    runner: Runner | None
    """None: the log does not show it."""

    @property
    def counts_graphs(self) -> bool:
        """Whether the graphs' estimate comes out of the budget."""
        return self.runner != "v0" and (self.version is None or self.version >= GRAPHS_COUNTED_SINCE)

    @property
    def is_modelled(self) -> bool:
        """Whether it is the one that is modelled."""
        return self.version is not None and self.version >= V2_ONLY and self.runner in (None, "v2")


def release_of(run: EngineRun) -> Release:
    """The version, and which runner printed the figures."""
    version = version_of(run)
    return Release(version=version, runner=_runner(run, version))


def _runner(run: EngineRun, version: tuple[int, int] | None) -> Runner | None:
    texts = [fact.text for fact in run.facts]
    if any("gpu_model_runner.py" in text or "v1/" in text for text in texts):
        return "v1"
    if run.of("cpu_blocks") or any("model weights take" in text for text in texts):
        return "v0"
    if version is None:
        return None
    if version >= V2_ONLY or (version >= V2_FROM and any("model_runner.py" in text for text in texts)):
        return "v2"
    return "v0" if version < V1_SINCE else "v1"


def flags_of(release: Release, longest: int, *, chunked: bool) -> dict[str, int]:
    """Defaults that V0 had otherwise."""
    if release.runner != "v0":
        return {}
    return {"max_num_seqs": V0_SEQUENCES, "max_num_batched_tokens": V0_TOKENS if chunked else max(longest, V0_TOKENS)}


def notes_of(release: Release, run: EngineRun) -> tuple[str, ...]:
    """What the reader should know of the difference."""
    if release.is_modelled:
        return ()
    if release.version is None:
        printed = "a version that is not printed" if run.version is None else run.version
        return (f"the log is of vLLM {printed}; modelled is {VERSION}: the bounds hold what earlier ones allocate too",)
    runner = {"v0": "its V0 runner", "v1": "its V1 runner", "v2": "the runner of 0.33", None: "0.33"}[release.runner]
    said = f"the log is of vLLM {run.version}; modelled is {VERSION}: activations are those of {runner}"
    return (said, *_V0_NOTES) if release.runner == "v0" else (said,)


_V0_NOTES = (
    "V0 counts as libraries what the device had before it, CUDA's context too: more than 0.33 does",
    "V0 caches every layer whole: where layers have windows, blocks and tokens are not compared",
)


def is_whole_window(release: Release, model: Model) -> bool:
    """Whether layers with windows have a cache of every token, other than in 0.33."""
    return release.runner == "v0" and any(
        isinstance(layer.mixer, Attention) and layer.mixer.window_tokens is not None for layer in model.geometry.layers
    )


LIBRARIES_FITTED_FROM = (0, 19)
"""First release of those that Hopper's libraries were fitted to."""


def libraries_of(release: Release, asked: Deployment, stage: Stage) -> Quantity:
    """What is outside of PyTorch: in V0's figure the context may be, and ranks may not have made NCCL's buffers yet."""
    found, gpu = stage.non_torch, asked.gpu
    if release.is_modelled or release.runner == "v2":
        return found
    if asked.constants is None and release.version is not None and release.version < LIBRARIES_FITTED_FROM:
        found = libraries(asked.degrees.tensor)
    own = bounded(min(found.low_bytes, libraries(1).low_bytes), found.bytes, found.high_bytes, found.basis)
    return own if release.runner == "v1" else own + bounded(0, 0, context_range(gpu).high_bytes, "assumed")


def graphs_of(release: Release, stage: Stage) -> Quantity:
    """CUDA graphs, whose high end is another where releases are older than those it was fitted to."""
    found = stage.graphs
    if not found.high_bytes or (release.version is not None and release.version >= GRAPHS_FITTED_FROM):
        return found
    first, end = stage.span
    high = max(found.high_bytes, EARLIER_GRAPHS_BYTES + EARLIER_GRAPHS * EARLIER_GRAPH_BYTES * (end - first))
    return bounded(found.low_bytes, found.bytes, high, found.basis)


def tokens_in(release: Release, held: Pool, size: int, longest: int) -> int:
    """Tokens that are printed of ``size`` bytes of KV cache."""
    block = held.groups[0].block_tokens
    if release.version is None or release.version > TOKENS_SHARED_UNTIL or block is None:
        return held.capacity_tokens(size, longest)
    return held.blocks_in(size) // len(held.groups) * block


@dataclass(frozen=True, kw_only=True, slots=True)
class Peaks:
    """What profiling finds on one rank."""

    activations: Quantity
    """Above the weights."""
    held: Quantity
    """Of it, what stays: the runner's buffers, and workspaces."""


def peaks(asked: Deployment, stage: Stage, index: int, release: Release) -> Peaks:
    """The peak of the release's own profile, of the stage that comes ``index``-th."""
    run, model = _run(asked), asked.model
    modelled = stage.activations
    buffers, stays = runner_bytes(model, run), _workspace(model, run)
    if release.is_modelled or release.runner == "v2":
        return Peaks(activations=modelled, held=within(buffers, buffers, buffers + stays))
    own, least, most = _earlier(asked, run, index, release)
    unsplit = modelled.high_bytes - modelled.bytes
    if release.runner is None:
        least, most, own = min(least, modelled.low_bytes), max(most, modelled.bytes), max(own, modelled.bytes)
    found = within(least, own, most + unsplit)
    if asked.constants is not None:
        found = asked.constants.applied("activations", found)
    return Peaks(activations=found, held=within(0, 0, stays + (buffers if release.runner is None else 0)))


def _earlier(asked: Deployment, run: VllmRun, index: int, release: Release) -> tuple[int, int, int]:
    """The peak of V0 or V1, and the least and the most that it can be.

    What compiling fuses moves between releases: at most a pass needs what it needs eagerly.
    """
    model, gpu = asked.model, asked.gpu
    passes = moments(model.geometry, run)
    masked = passes.pop("sampler") - FLASHINFER_BYTES
    cublas = CUBLAS_HOPPER_BYTES if run.capability is None or run.capability[0] == 9 else CUBLAS_BYTES
    triton = 4 * ((gpu.sms if gpu else None) or MULTIPROCESSORS) * model.geometry.vocab_size
    sampler = masked + cublas + triton
    is_sorted = release.runner == "v0" or release.version is None or release.version <= SORTED_UNTIL
    most = _sorted(model, run) + cublas if is_sorted else sampler
    compiles = release.runner != "v0" and not run.enforce_eager
    first = max(passes.values())
    whole = max(first, compile_bytes(model, run)) if compiles else first
    eager = moments(model.geometry, replace(run, enforce_eager=True))
    unfused = max(whole, *(size for name, size in eager.items() if name != "sampler"))
    if index + 1 < asked.degrees.pipeline:
        return whole, first, unfused
    return max(whole, most), max(first, masked), max(unfused, most)


def _sorted(model: Model, run: VllmRun) -> int:
    """The dummy sampler where top-p sorts: the pass's output, the last states, and the copies of their logits."""
    requests = min(run.max_num_seqs, run.max_num_batched_tokens)
    states = (run.max_num_batched_tokens + requests) * model.geometry.hidden_size * itemsize(run.dtype)
    return states + requests * model.geometry.vocab_size * SORTED_BYTES


def _workspace(model: Model, run: VllmRun) -> int:
    """Of routed experts, which stays once a pass was taken."""
    mixtures = [
        layer.feed_forward for layer in model.geometry.layers if isinstance(layer.feed_forward, MixtureOfExperts)
    ]
    return max((workspace_bytes(model.geometry, mixture, run) for mixture in set(mixtures)), default=0)


def _run(asked: Deployment) -> VllmRun:
    flags, degrees = asked.flags, asked.degrees
    assert flags.max_num_batched_tokens is not None
    assert flags.max_num_seqs is not None
    assert flags.max_model_len is not None
    return VllmRun(
        dtype=asked.dtype,
        tensor_parallel_size=degrees.tensor,
        pipeline_parallel_size=degrees.pipeline,
        enable_expert_parallel=bool(flags.enable_expert_parallel),
        data_parallel_size=degrees.data,
        max_num_batched_tokens=flags.max_num_batched_tokens,
        max_num_seqs=flags.max_num_seqs,
        max_model_len=flags.max_model_len,
        enforce_eager=bool(flags.enforce_eager),
        quantization=asked.request.weight_format,
        capability=asked.gpu.capability if asked.gpu else None,
    )
