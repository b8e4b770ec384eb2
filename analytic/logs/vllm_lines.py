"""What vLLM prints when it starts, versions 0.6 to 0.33 (V0: worker/worker.py, worker/model_runner.py and
executor/executor_base.py; V1: v1/worker/gpu_worker.py, v1/worker/gpu_model_runner.py and v1/core/kv_cache_utils.py).

Up to 0.8.2 it printed "GB" for the weights and meant GiB (model_runner.py divides by ``2**30``); since 0.8.3 it says
GiB. Four digits follow the point up to 0.11; at the latest since 0.19 it is ``round(…, 2)`` (utils/mem_utils.py,
format_gib), which drops zeros: 48.5 GiB is 48.50.
"""

import re

from analytic.logs.figures import compiled

FIGURES = compiled(
    r"(?:Loading model weights|Model loading) took <weights__gib> ?Gi?B\b",
    r"\bmodel weights take\s+<weights__gib> ?GiB",
    r"\bnon_torch_memory(?: takes\s+|=|\s+)<non_torch__gib> ?GiB",
    r"PyTorch activation peak memory(?: takes)?\s+<peak_activation__gib> ?GiB",
    r"(?:reserved for KV Cache is|available_kv_cache_memory|Available KV cache memory:)\s+<kv_cache_memory__gib> ?GiB",
    r"\bkv_cache_size=<kv_cache_memory__gib>GiB",
    r"\btotal_gpu_memory(?: \(|=|\s+)<total_gpu_memory__gib>GiB",
    r"\bpeak_torch_memory=<peak_torch_memory__gib>GiB",
    r"\) = <budget__gib>GiB$",
    r"the current vLLM instance can use\s+<budget__gib>GiB",
    r"\b(?:GPU|CUDA|cuda|ROCM|rocm|HPU|hpu|XPU|xpu) blocks: <gpu_blocks__n>",
    r"# CPU blocks: <cpu_blocks__n>",
    r"\b[A-Z]{3,8}(?: \+ host)? KV cache size: <kv_cache_tokens__n> tokens",
    r"Maximum concurrency for <concurrency_tokens__n> tokens per request: <max_concurrency__x>x",
    r"Graph capturing finished in \d+ secs, took <cuda_graphs__gib> GiB",
    r"Estimated CUDA graph memory: <cuda_graphs_estimate__gib> GiB",
    r"CUDA graph pool memory: <cuda_graph_pool__gib> GiB \(actual\)",
    r"Free memory on device (?:\S{1,16} )?\(<free_on_startup__gib>/<total_gpu_memory__gib> GiB\) on startup",
    r"Initial free memory:? <free_on_startup__gib> GiB",
    r"Desired GPU memory utilization is \([\d.]{1,12}, <budget__gib> GiB\)",
    r"Actual usage is <weights__gib> GiB for weight",
    r"Actual usage is <consumed__gib> GiB for consumed memory",
    r"<peak_activation__gib> GiB for peak activation",
    r"<non_torch__gib> GiB for non-torch memory",
    r"<cuda_graphs__gib> GiB for CUDAGraph memory",
    r"kv-cache-memory=<kv_cache_memory_to_budget__bytes>`(?: \(-?[\d.]{1,12} GiB\))? to fit into requested",
    r"kv-cache-memory=<kv_cache_memory_to_device__bytes>`(?: \(-?[\d.]{1,12} GiB\))? to fully utilize",
    r"Current kv cache memory in use is <kv_cache_memory__gib> GiB",
    r"Current kv cache memory in use is <kv_cache_memory__bytes> bytes",
    r"reserved <kv_cache_memory__gib> GiB memory for KV Cache",
    r"Encoder cache will be initialized with a budget of <encoder_cache_tokens__n> tokens",
)
"""``peak_activation`` includes ``cuda_graphs_estimate`` since 0.21; ``consumed``, since 0.28, is the weights and
``non_torch`` in one; ``cuda_graphs`` and the pool are negative where other processes freed memory meanwhile."""

HINTS = (
    *(
        "GiB",
        " GB",
        "blocks:",
        "KV cache size",
        "oncurrency for",
        "LLM engine",
        "args: ",
        "version ",
        "cache memory in",
    ),
    *("Starting to load", "max_num_batched_tokens=", "max model len", "block size to", "backend", "device_name="),
    *("Encoder cache", "gpu_memory_utilization"),
)
"""Every line of interest has one of these."""

SETTINGS = tuple(
    re.compile(line)
    for line in (
        r"\bgpu_memory_utilization(?: \(|=|\s+)(?P<gpu_memory_utilization>\d\.\d{1,6})",
        r"Desired GPU memory utilization is \((?P<gpu_memory_utilization>\d(?:\.\d{1,6})?),",
        r"Chunked prefill is enabled with max_num_batched_tokens=(?P<max_num_batched_tokens>\d{1,12})",
        r"Using max model len (?P<max_model_len>\d{1,12})",
        r"Setting attention block size to (?P<block_size>\d{1,9}) tokens",
        r"Using (?:AttentionBackendEnum\.)?(?P<attention_backend>[A-Z][A-Z0-9_]{3,40}) (?:attention )?backend",
        r"Using (?P<attention_backend>Flash Attention|FlashInfer|XFormers|Triton) backend(?: on V1 engine|\.)",
        r"device_name=(?P<gpu>[\w-]{2,60}?)(?:\.json|,)",
    )
)

BANNER = re.compile(
    r"Initializing an? (?:V[01] )?LLM engine \(v?(?P<version>[\w.+-]{1,64})\)(?: with config: (?P<config>.*))?"
)
ASKED = re.compile(r"(?:█ +version +|vLLM API server version )(?P<version>[\w.+-]{1,64})")
NON_DEFAULT = re.compile(r"non-default args: \{(?P<arguments>.*)")
NAMESPACE = re.compile(r"\] args: Namespace\((?P<arguments>.*)")
MODEL = re.compile(r"Starting to load model (?P<model>\S{1,400}?)\.\.\.")
PROCESS = re.compile(
    r"\((?P<name>[A-Za-z]\w{0,60})(?P<rank> \w{1,24}(?:=\d{1,6})?)? pid=(?P<pid>\d{1,10})"
    r"(?:, ip=(?P<ip>[\w.:]{2,45}))?[^)]{0,60}\)"
)
RANKS = re.compile(r"(?:DP|PP|TP|EP|PCP|DCP)\d{1,5}")
REPEATED = re.compile(r"\[repeated \d{1,6}x across cluster\]")

ENGINE_CONFIG = {
    **{"max_seq_len": "max_model_len", "device_config": "device", "chunked_prefill_enabled": "enable_chunked_prefill"},
    **{
        name: name
        for name in (
            *("dtype", "quantization", "kv_cache_dtype", "enforce_eager", "load_format", "revision", "tokenizer"),
            *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_prefix_caching"),
            *("decode_context_parallel_size", "enable_chunked_prefill", "speculative_config", "quantization_config"),
        )
    },
}
"""Names in the engine's line of settings: ours. The resolved values; the arguments are what was asked for."""
ARGUMENTS = (
    *("max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "block_size", "swap_space", "cpu_offload_gb"),
    *("kv_cache_memory_bytes", "enable_lora", "max_loras", "max_lora_rank", "enable_expert_parallel", "max_model_len"),
    *(
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "quantization",
        "kv_cache_dtype",
        "dtype",
    ),
    *("enforce_eager", "enable_prefix_caching", "load_format", "speculative_config", "num_gpu_blocks_override"),
)

CHECKED = re.compile(r"0\.(?:[6-9]|[12]\d|3[0-3])(?:\D|$)")
KV = ("kv_cache_memory", "gpu_blocks", "kv_cache_tokens")
