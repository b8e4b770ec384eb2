"""The options of ``vllm serve``: which change memory.

options.json has every option of vLLM 0.33.0 as its own parser declares it (tests/record_vllm_options.py). Each of
them is one that is modelled, one that changes memory and is not modelled, or one without effect on a GPU's memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

MODELLED = frozenset(
    (
        *(
            "dtype",
            "quantization",
            "kv_cache_dtype",
            "kv_cache_dtype_skip_layers",
            "revision",
            "tokenizer",
            "load_format",
        ),
        *("hf_overrides", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization"),
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel"),
        *("decode_context_parallel_size", "prefill_context_parallel_size", "enforce_eager", "block_size"),
        *("enable_prefix_caching", "enable_chunked_prefill", "kv_cache_memory_bytes", "num_gpu_blocks_override"),
        *("cpu_offload_gb", "compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size"),
        *("optimization_level", "attention_backend", "speculative_config", "enable_lora", "max_loras", "max_lora_rank"),
        *("lora_dtype", "fully_sharded_loras", "mamba_block_size", "mamba_cache_mode", "mamba_cache_dtype"),
        *("mamba_ssm_cache_dtype", "limit_mm_per_prompt", "language_model_only", "skip_mm_profiling"),
        *("mm_encoder_tp_mode", "disable_hybrid_kv_cache_manager", "disable_sliding_window"),
    )
)
"""Their values are read; callers decide which of them they take."""

UNMODELLED = frozenset(
    (
        *("additional_config", "all2all_backend", "attention_config", "aux_output_config", "async_scheduling"),
        *("convert", "cp_kv_cache_interleave_size", "cpu_offload_params", "dcp_comm_backend"),
        *("dcp_kv_cache_interleave_size", "dcp_q_replicate", "default_mm_loras", "device_ids", "diffusion_config"),
        *("disable_cascade_attn", "disable_chunked_mm_input", "disable_custom_all_reduce", "ec_manager_config"),
        *("ec_transfer_config", "elastic_ep_max_dp_size", "enable_batch_sharded_sampling", "enable_cumem_allocator"),
        *("enable_dbo", "enable_elastic_ep", "enable_ep_weight_filter", "enable_eplb", "enable_hc_sp"),
        *("enable_mamba_shared_prefix_checkpoint", "enable_mixed_moe_lora_format", "enable_mm_embeds"),
        *(
            "enable_moe_shared_loras",
            "enable_nccl_comm_suspend",
            "enable_prompt_embeds",
            "enable_return_routed_experts",
        ),
        *("enable_sleep_mode", "enable_tower_connector_lora", "engram_config", "eplb_config", "hf_config_path"),
        *("gdn_prefill_backend", "ir_op_priority", "kda_decode_backend", "kda_prefill_backend", "kernel_config"),
        *("kv_offloading_size", "kv_sharing_fast_prefill", "kv_transfer_config", "linear_backend", "lora_modules"),
        *("lora_target_modules", "mamba_backend", "max_lora_cls_labels", "max_logprobs", "max_num_active_seqs"),
        *("max_num_scheduled_tokens", "mm_device_do_normalize", "mm_encoder_attn_backend", "mm_encoder_attn_dtype"),
        *("mm_encoder_only", "mm_ipc_gpu_memory_gb", "mm_processor_device", "mm_processor_kwargs", "mm_tensor_ipc"),
        *("model_class_overrides", "model_impl", "model_loader_extra_config", "moe_backend", "monokernel"),
        *("offload_backend", "offload_group_size", "offload_num_in_group", "offload_params", "offload_prefetch_step"),
        *("performance_mode", "pooler_config", "prefix_match_unit", "pt_load_map_location", "quantization_config"),
        *("reasoning_config", "replayssm_buffer_len", "return_sampling_mask", "runner", "sleep_mode_backend"),
        *("sleep_mode_offload_cudagraph", "sleep_preserve_parameter_names", "sparse_indexer_topk_backend"),
        *("spec_method", "spec_model", "spec_tokens", "specialize_active_lora", "swa_bounded_replay", "ubatch_size"),
        *("dbo_decode_token_threshold", "dbo_prefill_token_threshold", "use_fp64_gumbel", "use_replayssm"),
        *("logits_processors", "video_pruning_method", "video_pruning_rate", "weight_transfer_config", "worker_cls"),
        *("worker_extension_cls", "config_format", "media_io_kwargs", "expert_placement_strategy", "watermark_config"),
        *("enable_flashinfer_autotune", "io_processor_plugin", "enable_flash_late_interaction"),
    )
)
"""They change what a GPU holds, or may: kernels with workspaces, other models beside, other placements."""

IGNORED = frozenset(
    (
        *("aggregate_engine_logging", "allow_credentials", "allow_deprecated_quantization", "allowed_headers"),
        *("allowed_local_media_path", "allowed_media_domains", "allowed_methods", "allowed_origins"),
        *("anthropic_disabled_thinking_effort", "api_key", "api_server_count", "chat_template"),
        *("chat_template_content_format", "code_revision", "cohere_format", "cohere_is_reasoning_model"),
        *(
            "collect_detailed_traces",
            "cpu_distributed_timeout_seconds",
            "cudagraph_metrics",
            "custom_histogram_buckets",
        ),
        *("data_parallel_address", "data_parallel_backend", "data_parallel_external_lb", "data_parallel_hybrid_lb"),
        *("data_parallel_multi_port_external_lb", "data_parallel_rank", "data_parallel_rpc_port"),
        *("data_parallel_size_local", "data_parallel_start_rank", "data_parallel_supervisor_port"),
        *("default_chat_template_kwargs", "disable_access_log_for_endpoints", "disable_fastapi_docs"),
        *("disable_log_stats", "disable_nccl_for_dp_synchronization", "disable_uvicorn_access_log"),
        *(
            "distributed_executor_backend",
            "distributed_timeout_seconds",
            "download_dir",
            "dp_supervisor_probe_interval_s",
        ),
        *("dp_supervisor_probe_failure_threshold", "dp_supervisor_probe_timeout_s", "dp_sync_interval"),
        *(
            "enable_auto_tool_choice",
            "enable_fault_tolerance",
            "enable_force_include_usage",
            "enable_layerwise_nvtx_tracing",
        ),
        *("enable_log_deltas", "enable_log_outputs", "enable_log_requests", "enable_logging_iteration_details"),
        *("enable_mamba_cache_stochastic_rounding", "enable_mfu_metrics", "enable_offline_docs"),
        *(
            "enable_per_request_metrics",
            "enable_prompt_tokens_details",
            "enable_request_id_headers",
            "enable_scale_out",
        ),
        *(
            "enable_server_load_tracking",
            "enable_shm_tensor_arena",
            "enable_ssl_refresh",
            "enable_tokenizer_info_endpoint",
        ),
        *("enable_trace_replay", "exclude_tools_when_tool_choice_none", "fail_on_environ_validation"),
        *("fault_tolerance_config", "fingerprint_mode", "fingerprint_value", "generation_config", "grpc", "grpc_port"),
        *("h11_max_header_count", "h11_max_incomplete_event_size", "headless", "hf_token", "host", "ignore_patterns"),
        *("interleave_mm_strings", "jit_monitor_mode", "jit_monitor_verbose", "kv_cache_metrics"),
        *("kv_cache_metrics_sample", "kv_events_config", "kv_offloading_backend", "log_config_file", "log_error_stack"),
        *("log_level", "logging_config", "logprobs_mode", "long_prefill_token_threshold"),
        *("long_prefill_token_threshold_adaptive", "mamba_cache_philox_rounds", "mamba_ssu_algorithm", "master_addr"),
        *("master_port", "max_cpu_loras", "max_log_len", "max_num_queued_reqs", "max_num_queued_tokens"),
        *(
            "max_parallel_loading_workers",
            "middleware",
            "mm_encoder_fp8_scale_path",
            "mm_encoder_fp8_scale_save_margin",
        ),
        *("mm_encoder_fp8_scale_save_path", "mm_hasher_algorithm", "mm_processor_cache_gb", "mm_processor_cache_type"),
        *("mm_shm_cache_max_object_size_mb", "nnodes", "node_rank", "numa_bind", "numa_bind_cpus", "numa_bind_nodes"),
        *("otlp_traces_endpoint", "override_generation_config", "per_request_spec_decode_metrics", "port"),
        *(
            "prefill_schedule_interval",
            "prefix_cache_retention_interval",
            "prefix_caching_hash_algo",
            "profiler_config",
        ),
        *("ray_workers_use_nsight", "reasoning_effort_map", "reasoning_parser", "reasoning_parser_plugin"),
        *(
            "renderer_num_workers",
            "response_role",
            "return_tokens_as_token_ids",
            "root_path",
            "safetensors_load_strategy",
        ),
        *("safetensors_prefetch_block_size", "safetensors_prefetch_num_threads", "scheduler_cls"),
        *("scheduler_reserve_full_isl", "scheduling_policy", "seed", "served_model_name"),
        *("show_hidden_metrics_for_version", "shutdown_timeout", "skip_tokenizer_init", "sse_keep_alive_interval"),
        *("ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_ciphers", "ssl_keyfile", "stream_interval"),
        *("structured_outputs_config", "tokenizer_mode", "tokenizer_revision", "tokens_only", "tool_call_parser"),
        *("tool_parser_plugin", "tool_server", "tool_strict_level", "trust_remote_code", "trust_request_chat_template"),
        *("trust_request_mm_kwargs", "uds", "use_tqdm_on_load", "uvicorn_log_level", "watchdog_config", "watermark"),
    )
)
"""The API, logs, metrics, how weights travel, which request runs next, and what the host holds."""

STRUCTURE = frozenset({"help", "model", "config"})
"""Read by themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One option, with everything that a parser needs to know of it."""

    name: str
    """In vLLM's dataclasses."""
    names: tuple[str, ...]
    """On the command line."""
    off: tuple[str, ...] = ()
    """That set a flag to False."""
    kind: str
    """``flag``, ``int``, ``float``, ``str``, ``count`` (8k), ``length`` (or auto), ``json``, ``object``, ``object or
    str``; after ``none or`` where ``None`` and the empty string are no value."""
    takes: str | None = None
    """``+``: one or more values; ``?``: none or one; None: one."""
    repeats: bool = False
    """Whether each use adds a value."""
    choices: tuple[object, ...] | None = None
    is_gone: bool = False
    """Of a version before 0.33."""


GONE = (
    Option(name="swap_space", names=("--swap-space",), kind="float", is_gone=True),
    Option(name="max_seq_len_to_capture", names=("--max-seq-len-to-capture",), kind="int", is_gone=True),
    Option(name="cuda_graph_sizes", names=("--cuda-graph-sizes",), kind="int", takes="+", is_gone=True),
    Option(name="num_scheduler_steps", names=("--num-scheduler-steps",), kind="int", is_gone=True),
    Option(name="num_lookahead_slots", names=("--num-lookahead-slots",), kind="int", is_gone=True),
    Option(name="max_num_partial_prefills", names=("--max-num-partial-prefills",), kind="int", is_gone=True),
    Option(name="speculative_model", names=("--speculative-model",), kind="str", is_gone=True),
    Option(name="num_speculative_tokens", names=("--num-speculative-tokens",), kind="int", is_gone=True),
    Option(name="rope_scaling", names=("--rope-scaling",), kind="json", is_gone=True),
    Option(name="rope_theta", names=("--rope-theta",), kind="float", is_gone=True),
    Option(name="task", names=("--task",), kind="str", is_gone=True),
    Option(name="device", names=("--device",), kind="str", is_gone=True),
    Option(name="guided_decoding_backend", names=("--guided-decoding-backend",), kind="str", is_gone=True),
    Option(name="use_v2_block_manager", names=("--use-v2-block-manager",), kind="flag", is_gone=True),
    Option(name="enable_reasoning", names=("--enable-reasoning",), kind="flag", is_gone=True),
    Option(name="worker_use_ray", names=("--worker-use-ray",), kind="flag", is_gone=True),
    Option(
        name="disable_frontend_multiprocessing",
        names=("--disable-frontend-multiprocessing",),
        kind="flag",
        is_gone=True,
    ),
)
"""Of vLLM 0.6 to 0.32 (vllm/engine/arg_utils.py then), where such lines are still about."""
GONE_MODELLED = frozenset({"swap_space", "max_seq_len_to_capture", "cuda_graph_sizes"})
GONE_IGNORED = frozenset(("guided_decoding_backend", "use_v2_block_manager", "enable_reasoning", "worker_use_ray")) | {
    "disable_frontend_multiprocessing"
}

OTHERS: Mapping[str, tuple[str, ...]] = {
    "llama.cpp": (
        *("-ngl", "--gpu-layers", "--n-gpu-layers", "-c", "--ctx-size", "-np", "--parallel", "-fa", "--flash-attn"),
        *("-ctk", "--cache-type-k", "-ctv", "--cache-type-v", "-ub", "-b", "--batch-size"),
        *("-ncmoe", "--n-cpu-moe", "-ot", "--override-tensor", "-hf", "-m", "--mmproj", "-ts", "--tensor-split"),
    ),
    "SGLang": (
        *("--mem-fraction-static", "--tp-size", "--tp", "--dp-size", "--ep-size", "--context-length", "--model-path"),
        *(
            "--chunked-prefill-size",
            "--max-running-requests",
            "--max-total-tokens",
            "--page-size",
            "--cuda-graph-max-bs",
        ),
        *("--disable-cuda-graph", "--disable-radix-cache"),
    ),
    "text-generation-inference": ("--model-id", "--num-shard", "--sharded", "--max-input-tokens"),
}
"""Flags of other servers that vLLM has not."""


@cache
def options() -> Mapping[str, Option]:
    """Every option by its name, those of vLLM 0.33.0 and those that are gone."""
    text = (files("analytic.engines.vllm") / "options.json").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = json.loads(text)["options"]
    present = {name: Option(name=name, **_tuples(row)) for name, row in rows.items()}
    return {**present, **{option.name: option for option in GONE}}


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
