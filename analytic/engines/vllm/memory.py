"""What vLLM 0.33 allocates beside weights and KV cache: its runner's buffers, and the peak of a profiling pass.

At start a worker loads the weights, takes one pass over ``max_num_batched_tokens`` tokens without a KV cache and then
samples for ``max_num_seqs`` requests (``v1/worker/gpu/model_runner.py``, profile_run). The KV cache gets what is left
of ``gpu_memory_utilization`` of the device: less what the device lost since before the runner was made (weights,
buffers, workspaces that stay, libraries), less the peak of the pass above what stays, less an estimate of the CUDA
graphs (``v1/worker/gpu_worker.py``, determine_available_memory).

What moved since 0.6: V0 sampled 256 requests with sorted copies of the logits; V1 (0.8 on) samples 1,024 on large GPUs,
until 0.16 with sorted copies, 38 bytes a logit, from 0.17 on with a Triton kernel, 14 to 15 bytes; 0.21 counts the
graphs in the budget; the V2 runner (the only default in 0.33) counts penalties on the device, 4 bytes a logit more.
"""

from analytic.engines.vllm.defaults import defaults as defaults
from analytic.engines.vllm.defaults import sizes
from analytic.engines.vllm.graphs import graphs, libraries
from analytic.engines.vllm.profiling import VllmRun as VllmRun
from analytic.engines.vllm.profiling import batch_bytes, family, moments
from analytic.formats.table import itemsize
from analytic.hardware import Gpu
from analytic.loaded.vllm_shards import VOCABULARY_ROWS
from analytic.models.geometry import MixtureOfExperts
from analytic.models.model import Model
from analytic.quantity import Quantity, bounded, exact, round_up

MIB = 2**20
PER_REQUEST_ELEMENTS = 4 * 1024 + 129 + 2 * 128
"""Int32 a request: allowed tokens, biased ones and their biases, bad words with offsets, stop tokens, asked logprobs
(v1/worker/gpu/sample/logit_bias.py, bad_words.py, logprob.py)."""
STATE_BYTES = 36
"""A request: lengths, computed and last tokens (v1/worker/gpu/states.py, input_batch.py)."""
TOKEN_BYTES = 4 + 8 + 1
"""A token of a batch: its id, position, and whether it is padding (v1/worker/gpu/input_batch.py)."""
FUSED_FRACTION, UNFUSED_FRACTION = 0.3, 0.05
"""By how much a compiled pass may need less, or more, than an eager one, where only the eager one was recorded."""
UNSPLIT_FRACTION = 0.065
"""By how much the allocator's own count may exceed the tensors': no block over 20 MiB is split while vLLM profiles, so
that a smaller tensor takes a larger one's block whole, and experts' inputs may be quantised beside them. Most in the
recorded runs: 6.0 %."""


def activation_peak(model: Model, run: VllmRun) -> tuple[Quantity, str]:
    """Bytes above the weights at the profiling pass's peak on the fullest stage, and the moment of it.

    The runner's buffers and the workspaces that stay are part of it, so that weights, this, libraries and graphs are
    all that is not KV cache. A compiled run counts as a first start, which tunes kernels on a copy of the embedding;
    the low end is one that finds its graphs on disk.

    Raises:
        UllageError: a model type that was never recorded.
    """
    held, warm = runner_bytes(model, run), moments(model.geometry, run)
    peaks = warm if run.enforce_eager else {**warm, "compile": compile_bytes(model, run)}
    name = max(peaks, key=peaks.__getitem__)
    known = family(model.geometry)
    is_recorded = run.enforce_eager or known.compiled is not None
    less, more = (0.0, known.tuning_fraction) if is_recorded else (FUSED_FRACTION, UNFUSED_FRACTION)
    least = [size if moment == "sampler" else int(size * (1 - less)) for moment, size in warm.items()]
    low = max(least) if run.pipeline_parallel_size == 1 else min(least)
    high = int(peaks[name] * (1 + more + UNSPLIT_FRACTION)) + _tower_bytes(model, run)
    return bounded(held + low, held + peaks[name], held + high, "traced"), name


TOWER_STREAMS, TOWER_BYTES = 4, 256 * MIB
"""At most what profiling a vision tower adds: the embeddings of a batch, held and made, those of images, and what the
tower itself keeps. 0.2 GiB in logs of Gemma 3; its own pass is not modelled."""


def _tower_bytes(model: Model, run: VllmRun) -> int:
    if "vision_config" not in model.config:
        return 0
    stream = run.max_num_batched_tokens * model.geometry.hidden_size * itemsize(run.dtype)
    return TOWER_STREAMS * stream + TOWER_BYTES


def capture_sizes(run: VllmRun, model_type: str | None = None) -> tuple[int, ...]:
    """Batches that CUDA graphs are captured for, of a type of model that has sizes of its own if one is given."""
    if run.enforce_eager:
        return ()
    return sizes(
        max_num_batched_tokens=run.max_num_batched_tokens,
        max_num_seqs=run.max_num_seqs,
        capability=run.capability,
        model_type=model_type,
    )


def cuda_graph_bytes(model: Model, run: VllmRun) -> Quantity:
    """Of all captured batches on the fullest stage: in pieces between attention, and whole ones of decoding."""
    captured = capture_sizes(run, model.geometry.model_type)
    if not captured:
        return exact(0)
    whole = sum(size <= run.max_num_seqs for size in captured)
    layers = -(-len(model.geometry.layers) // run.pipeline_parallel_size)
    routed = any(isinstance(layer.feed_forward, MixtureOfExperts) for layer in model.geometry.layers)
    return graphs(layers, len(captured) + whole, routed=routed)


def non_torch_bytes(run: VllmRun, gpu: Gpu | None) -> Quantity:
    """What the device loses to libraries within vLLM's budget: code of kernels, buffers of NCCL at their first use.

    vLLM's own figure starts once CUDA's context and NCCL's communicators are there: those the device holds beside it
    (``hardware.context_range``), out of what ``gpu_memory_utilization`` leaves.
    """
    return libraries(run.tensor_parallel_size, gpu.capability if gpu else run.capability)


def runner_bytes(model: Model, run: VllmRun) -> int:
    """Buffers that the model runner holds on the device: of requests, of penalties and of masks over the vocabulary.

    Token ids of all requests are in pinned host memory, but on WSL, where they are not.
    """
    vocabulary, requests = model.geometry.vocab_size, run.max_num_seqs
    masks = 2 * 4 * -(-vocabulary // 32)  # of prompts, and of grammars: a bit a token
    a_request = 4 * vocabulary + masks + 4 * PER_REQUEST_ELEMENTS + STATE_BYTES
    return requests * a_request + TOKEN_BYTES * run.max_num_batched_tokens + 4


def compile_bytes(model: Model, run: VllmRun) -> int:
    """Peak of compiling: a copy of the embedding, as the first kernel is tuned to gather it, ids and what it makes.

    Where the first layer norms its input the same kernel does: a second stream, and the norm's weight.
    """
    geometry, item = model.geometry, itemsize(run.dtype)
    rows = round_up(geometry.vocab_size, VOCABULARY_ROWS) // run.tensor_parallel_size
    row = geometry.hidden_size * item
    made = row * run.max_num_batched_tokens
    normed = made + row if family(geometry).norms_embedding else 0
    return rows * row + made + normed + 4 * run.max_num_batched_tokens + batch_bytes(run)
