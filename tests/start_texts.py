"""Recorded figures of starts, as the lines that vLLM of that version prints them in.

The figures are quoted in ``data/vllm_logs.json`` (0.19.0) and ``data/startup_logs.json`` (0.4 to 0.26); the wording is
that of vLLM's sources, which ``tests/test_logs.py`` holds against whole lines of public logs.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

V1_SINCE, V0_UNTIL = (0, 8), (0, 10)
WORKER_OF_V0 = "https://github.com/vllm-project/vllm/pull/10511"
"""Its lines come from ``worker.py``."""


def lines_of_0_19(record: Mapping[str, Any]) -> Iterator[str]:
    """A start of 0.19.0, which prints the first rank of each kind."""
    asked = {
        "model_tag": record["model"],
        "model": record["model"],
        "max_model_len": record["max_model_len"],
        "gpu_memory_utilization": record["gpu_memory_utilization"],
        "tensor_parallel_size": record["tensor_parallel_size"],
        "pipeline_parallel_size": record["pipeline_parallel_size"],
        "enable_prefix_caching": False,
    }
    budget = 79.19 * record["gpu_memory_utilization"]
    server, engine = "(APIServer pid=1) INFO 04-22 19:59:08", "(EngineCore pid=245) INFO 04-22 19:59:21"
    yield f"{server} [entrypoints/utils.py:233] non-default args: {asked}"
    tokens = record["max_num_batched_tokens"]
    yield f"{server} [config/scheduler.py:238] Chunked prefill is enabled with max_num_batched_tokens={tokens}."
    yield (
        f"{engine} [v1/engine/core.py:105] Initializing a V1 LLM engine (v{record['version']}) with config: "
        f"model='{record['model']}', dtype=torch.{record['dtype']}, max_seq_len={record['max_model_len']}, "
        f"tensor_parallel_size={record['tensor_parallel_size']}, "
        f"pipeline_parallel_size={record['pipeline_parallel_size']}, data_parallel_size=1, "
        f"quantization={record['quantization']}, enforce_eager=False, "
        f"kv_cache_dtype={record.get('kv_cache_dtype', 'auto')}, enable_prefix_caching=False"
    )
    runner, worker = f"{engine} [v1/worker/gpu_model_runner.py:4820]", f"{engine} [v1/worker/gpu_worker.py:436]"
    yield f"{runner} Model loading took {record['weights_gib']} GiB memory and 5.420225 seconds"
    yield f"{runner} Estimated CUDA graph memory: {record['graphs_estimated_gib']} GiB total"
    yield f"{worker} Available KV cache memory: {record['kv_cache_gib']} GiB"
    if "kv_cache_tokens" in record:
        yield f"{engine} [v1/core/kv_cache_utils.py:1319] GPU KV cache size: {record['kv_cache_tokens']:,} tokens"
    yield f"{runner} Graph capturing finished in 5 secs, took {record['graphs_gib']} GiB"
    yield (
        f"{worker} Free memory on device (78.66/79.19 GiB) on startup. Desired GPU memory utilization is "
        f"({record['gpu_memory_utilization']}, {round(budget, 2)} GiB). Actual usage is {record['weights_gib']} GiB "
        f"for weight, {record['activation_peak_gib']} GiB for peak activation, {record['non_torch_gib']} GiB for "
        f"non-torch memory, and {record['graphs_gib']} GiB for CUDAGraph memory."
    )


def version_of(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """The first two numbers."""
    match = re.match(r"(\d+)\.(\d+)", record["version"] or "")
    return (int(match[1]), int(match[2])) if match else None


def is_v0(record: Mapping[str, Any]) -> bool:
    """Whether the V0 engine printed it: only that swapped to the CPU, and profiled in one line."""
    version = version_of(record)
    if record["source"] == WORKER_OF_V0:
        return True
    if record["cpu_blocks"] is not None or (version is not None and version < V1_SINCE):
        return True
    return record["activation_peak"] is not None and version is not None and version <= V0_UNTIL


def lines_of_a_start(record: Mapping[str, Any]) -> Iterator[str]:
    """Only what the record has."""
    runner = "[model_runner.py:1110]" if is_v0(record) else "[gpu_model_runner.py:1347]"
    names = ("max_num_seqs", "gpu_memory_utilization", "max_num_batched_tokens")
    if asked := {name: record[name] for name in names if record[name] is not None}:
        yield f"INFO [cli_args.py:300] non-default args: {asked}"
    if record["version"]:
        settings = {
            "model": repr(record["model"]),
            "dtype": f"torch.{record['dtype']}" if record["dtype"] else None,
            "max_seq_len": record["max_model_len"],
            "tensor_parallel_size": record["tensor_parallel_size"],
            "pipeline_parallel_size": record["pipeline_parallel_size"],
            "quantization": record["quantization"] or "None",
            "enforce_eager": record["enforce_eager"],
            "kv_cache_dtype": record["kv_cache_dtype"],
        }
        config = ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
        kind = "an" if is_v0(record) else "a V1"
        yield f"INFO Initializing {kind} LLM engine (v{record['version']}) with config: {config}"
    if not record["version"]:
        yield f"INFO {runner} Starting to load model {record['model']}..."
    yield f"INFO {runner} {record['weights_line'] or 'Model loading took'} {record['weights']}"
    yield from _memory(record)
    if record["kv_cache_tokens"]:
        yield f"INFO [kv_cache_utils.py:637] GPU KV cache size: {record['kv_cache_tokens']:,} tokens"
    if record["gpu_blocks"]:
        cpu = f", # CPU blocks: {record['cpu_blocks']}" if record["cpu_blocks"] is not None else ""
        yield f"INFO [executor_base.py:111] # cuda blocks: {record['gpu_blocks']}{cpu}"
    if record["maximum_concurrency"]:
        yield f"INFO Maximum concurrency for {record['maximum_concurrency']}"
    if record["graph_capturing"]:
        yield f"INFO {runner} Graph capturing finished in {record['graph_capturing']}"


def _memory(record: Mapping[str, Any]) -> Iterator[str]:
    total = re.search(r"total_gpu_memory[ =](\d+\.\d+) ?GiB", record["notes"] or "")
    share = record["gpu_memory_utilization"]
    if is_v0(record) and record["activation_peak"] and record["kv_cache_memory"]:
        if total and share:
            budget = f"{float(total[1]) * share:.2f}"
            yield (
                f"INFO [worker.py:267] the current vLLM instance can use total_gpu_memory ({total[1]}GiB) x "
                f"gpu_memory_utilization ({share:.2f}) = {budget}GiB"
            )
        yield (
            f"INFO [worker.py:267] model weights take {record['weights'].split()[0].rstrip('GiB')[:5]}GiB; "
            f"non_torch_memory takes {record['non_torch']}; PyTorch activation peak memory takes "
            f"{record['activation_peak']}; the rest of the memory reserved for KV Cache is {record['kv_cache_memory']}."
        )
        return
    if total:
        yield f"INFO [gpu_worker.py:227] total_gpu_memory={total[1]}GiB"
    for name, words in (("non_torch", "non_torch_memory="), ("activation_peak", "PyTorch activation peak memory ")):
        if record[name]:
            yield f"INFO [gpu_worker.py:228] {words}{record[name].replace(' ', '')}"
    if record["kv_cache_memory"]:
        left = record["kv_cache_memory"].removesuffix("GiB").strip()
        yield f"INFO [gpu_worker.py:227] Available KV cache memory: {left} GiB"


def text_of(record: Mapping[str, Any]) -> str:
    """The whole log."""
    return "\n".join(lines_of_0_19(record) if "weights_gib" in record else lines_of_a_start(record)) + "\n"
