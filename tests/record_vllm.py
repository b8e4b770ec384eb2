"""Records what vLLM's own planner says of a model's KV cache, into tests/data/vllm/*.json.

Run it by hand where vLLM is importable; no GPU, no weights, no compiled extension is needed:

    python tests/record_vllm.py

Recorded with vLLM 0.33.0 (the .py files of its wheel on PYTHONPATH), torch 2.13.0 (CPU), transformers 5.23.0 and vLLM's
pure Python dependencies. Unchanged vLLM code computes every figure: the specs (``Attention.get_kv_cache_spec`` and its
siblings), the states' shapes (each model's ``get_mamba_state_shape_from_config``), the alignment of hybrids
(``Platform.update_block_size_for_backend``), groups and blocks (``kv_cache_planning``), concurrency
(``kv_cache_utils``) and the blocks that a request holds (``KVCacheManager``). What stands in: packages that are
imported and never called, and the configuration object, which carries the keys that those functions read. Which layers
slide, and by how much, is read from transformers' config classes by the rule of each vLLM model file, which is named
beside the case.
"""

import contextlib
import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any
from unittest import mock

import torch

FOLDER = Path(__file__).parent / "data" / "vllm"

NEVER_CALLED = frozenset(
    (
        *("tvm_ffi", "flashinfer", "fastapi", "starlette", "uvicorn", "mistral_common", "cv2", "mcp", "anthropic"),
        *("xgrammar", "outlines_core", "lark", "llguidance", "lmformatenforcer", "partial_json_parser", "ijson"),
        *("tiktoken", "orjson", "numba", "prometheus_fastapi_instrumentator", "setproctitle", "watchfiles"),
        *("opentelemetry", "tilelang", "quack", "cutlass", "humming"),
    )
)
"""Packages that vLLM imports and that nothing here calls."""


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] not in NEVER_CALLED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__name__, module.__version__, module.__spec__ = [], spec.name, "0", spec
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


sys.meta_path.insert(0, StandIn())

import vllm.config.vllm  # noqa: E402
from transformers import AutoConfig  # noqa: E402
from vllm.config.cache import CacheConfig  # noqa: E402
from vllm.config.model import ModelConfig  # noqa: E402
from vllm.model_executor.layers.attention.attention import Attention  # noqa: E402
from vllm.model_executor.layers.attention.chunked_local_attention import ChunkedLocalAttention  # noqa: E402
from vllm.model_executor.layers.attention.mla_attention import MLAAttention, MLACommonBackend  # noqa: E402
from vllm.model_executor.layers.mamba.abstract import MambaBase  # noqa: E402
from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention  # noqa: E402
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2  # noqa: E402
from vllm.model_executor.models import (  # noqa: E402  # noqa: E402
    ModelRegistry,
    falcon_h1,
    granitemoehybrid,
    jamba,
    lfm2,
    mamba,
    mamba2,
    nemotron_h,
    qwen3_next,
)
from vllm.model_executor.models import config as model_configs  # noqa: E402
from vllm.model_executor.models.deepseek_v2 import DeepseekV32IndexerCache  # noqa: E402
from vllm.platforms.interface import Platform  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE  # noqa: E402
from vllm.v1.attention.backend import AttentionType  # noqa: E402
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend  # noqa: E402
from vllm.v1.attention.backends.flashinfer import FlashInferBackend  # noqa: E402
from vllm.v1.attention.backends.mla.flashmla import FlashMLABackend  # noqa: E402
from vllm.v1.attention.backends.mla.flashmla_sparse import FlashMLASparseBackend  # noqa: E402
from vllm.v1.attention.backends.mla.indexer import DeepseekV32IndexerBackend  # noqa: E402
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend  # noqa: E402
from vllm.v1.core import kv_cache_planning as planning  # noqa: E402
from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: E402
from vllm.v1.core.kv_cache_utils import (  # noqa: E402
    generate_scheduler_kv_cache_config,
    get_kv_cache_capacity,
    resolve_kv_cache_block_sizes,
)
from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs, get_kv_cache_spec_kind  # noqa: E402
from vllm.v1.request import Request  # noqa: E402
from vllm.v1.worker.utils import customize_attention_spec  # noqa: E402
from vllm.version import __version__  # noqa: E402

GIB = 2**30
BUDGET_BYTES = 40 * GIB
LENGTHS = (100, 4096, 32768, 131072)
HELD_LENGTHS = (1, 15, 16, 17, 100, 1023, 1024, 1025, 5000, 20000)
BACKENDS = {
    "flash_attn": FlashAttentionBackend,
    "flashinfer": FlashInferBackend,
    "flashmla": FlashMLABackend,
    "flashmla_sparse": FlashMLASparseBackend,
    "mla": MLACommonBackend,
    "triton": TritonAttentionBackend,
}
MLACommonBackend.get_supported_kernel_block_sizes = staticmethod(lambda kv_cache_spec=None: [])

Dense = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 1000}


def dense(model_type: str, *, layers: int, heads: int, kv_heads: int, head_dim: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        **Dense,
        "hidden_size": heads * head_dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        **more,
    }


LLAMA_3_8B = dense("llama", layers=32, heads=32, kv_heads=8, head_dim=128)
LLAMA_3_70B = dense("llama", layers=80, heads=64, kv_heads=8, head_dim=128)
FALCON_7B = {
    **{"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71},
    **{"multi_query": True, "new_decoder_architecture": False, "vocab_size": 65024},
}
FALCON_40B = {
    **{"model_type": "falcon", "hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128},
    **{"num_kv_heads": 8, "new_decoder_architecture": True, "vocab_size": 65024},
}
DEEPSEEK_V3 = {
    **{"model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128},
    **{"num_key_value_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128},
    **{"qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280},
}
DEEPSEEK_V3_2 = {**DEEPSEEK_V3, "model_type": "deepseek_v32", "index_head_dim": 128, "index_n_heads": 64}
MISTRAL_V01 = dense("mistral", layers=32, heads=32, kv_heads=8, head_dim=128, sliding_window=4096)
GEMMA_2_9B = dense("gemma2", layers=42, heads=16, kv_heads=8, head_dim=256, sliding_window=4096)
GEMMA_3_27B = dense("gemma3_text", layers=62, heads=32, kv_heads=16, head_dim=128, sliding_window=1024)
GPT_OSS_20B = dense("gpt_oss", layers=24, heads=64, kv_heads=8, head_dim=64, sliding_window=128, num_local_experts=32)
COMMAND_R7B = dense("cohere2", layers=32, heads=32, kv_heads=8, head_dim=128, sliding_window=4096)
LLAMA_4_SCOUT = dense("llama4_text", layers=48, heads=40, kv_heads=8, head_dim=128, attention_chunk_size=8192)
QWEN3_NEXT = {
    **dense("qwen3_next", layers=48, heads=16, kv_heads=2, head_dim=256),
    **{"full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128},
    **{"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128},
}
QWEN3_5_27B = {
    **dense("qwen3_5_text", layers=64, heads=24, kv_heads=4, head_dim=256, mamba_ssm_dtype="float32"),
    **{"full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128},
    **{"linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_value_head_dim": 128},
}
NEMOTRON_3_NANO = {
    **dense("nemotron_h", layers=52, heads=32, kv_heads=2, head_dim=128),
    **{"hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", "n_groups": 8},
    **{"mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "conv_kernel": 4, "chunk_size": 128},
}
JAMBA_MINI = {
    **dense("jamba", layers=32, heads=32, kv_heads=8, head_dim=128, attn_layer_period=8, attn_layer_offset=4),
    **{"mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_dt_rank": 256},
}
GRANITE_4_SMALL = {
    **{"model_type": "granitemoehybrid", "hidden_size": 4096, "num_hidden_layers": 40, "vocab_size": 100352},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "mamba_n_heads": 128, "mamba_d_head": 64},
    **{"mamba_n_groups": 1, "mamba_d_state": 128, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 256},
    "layer_types": ["attention" if index % 10 == 5 else "mamba" for index in range(40)],
}
FALCON_H1_7B = {
    **dense("falcon_h1", layers=44, heads=12, kv_heads=2, head_dim=128, hidden_size=3072),
    **{"mamba_d_ssm": 3072, "mamba_n_heads": 24, "mamba_d_head": 128, "mamba_n_groups": 1, "mamba_d_state": 256},
    **{"mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 256},
}
LFM2_1B = {
    **{"model_type": "lfm2", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "conv_L_cache": 3, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "vocab_size": 65536},
    **{"conv_dim": 2048},
}
MAMBA_2B = {
    **{"model_type": "mamba", "hidden_size": 2560, "num_hidden_layers": 64, "state_size": 16, "conv_kernel": 4},
    **{"expand": 2, "intermediate_size": 5120, "vocab_size": 50280},
}
MAMBA2_2B = {
    **{"model_type": "mamba2", "hidden_size": 2560, "num_hidden_layers": 64, "state_size": 128, "conv_kernel": 4},
    **{"expand": 2, "num_heads": 80, "head_dim": 64, "n_groups": 1, "vocab_size": 50288, "chunk_size": 256},
}
GEMMA_4_26B = {
    **dense("gemma4_text", layers=30, heads=16, kv_heads=8, head_dim=256, sliding_window=1024, hidden_size=2816),
    **{"global_head_dim": 512, "num_global_key_value_heads": 2, "attention_k_eq_v": True, "num_kv_shared_layers": 0},
}
GEMMA_4_E2B = {
    **dense("gemma4_text", layers=35, heads=8, kv_heads=1, head_dim=256, sliding_window=512, hidden_size=1536),
    **{"global_head_dim": 512, "num_kv_shared_layers": 20, "attention_k_eq_v": False},
}


def case(config: dict[str, Any], **request: Any) -> dict[str, Any]:
    """One recording; ``request`` holds what differs from vLLM's defaults on a Hopper GPU."""
    return {"config": config, "request": request}


CASES: dict[str, dict[str, Any]] = {
    "llama-3-8b": case(LLAMA_3_8B),
    "llama-3-8b-float32": case(LLAMA_3_8B, dtype="float32"),
    "llama-3-8b-fp8": case(LLAMA_3_8B, kv_cache_dtype="fp8"),
    "llama-3-8b-fp8-e5m2": case(LLAMA_3_8B, kv_cache_dtype="fp8_e5m2", backend="triton"),
    "llama-3-8b-int8": case(LLAMA_3_8B, kv_cache_dtype="int8_per_token_head", backend="triton"),
    "llama-3-8b-int4": case(LLAMA_3_8B, kv_cache_dtype="int4_per_token_head", backend="triton"),
    "llama-3-8b-nvfp4": case(LLAMA_3_8B, kv_cache_dtype="nvfp4", backend="flashinfer"),
    "llama-3-8b-blocks-of-64": case(LLAMA_3_8B, block_size=64),
    "llama-3-70b-tp4": case(LLAMA_3_70B, tensor_parallel_size=4),
    "llama-3-70b-tp16": case(LLAMA_3_70B, tensor_parallel_size=16),
    "falcon-7b": case(FALCON_7B),
    "falcon-40b": case(FALCON_40B, tensor_parallel_size=2),
    "deepseek-v3": case(DEEPSEEK_V3, backend="flashmla", block_size=64),
    "deepseek-v3-tp8": case(DEEPSEEK_V3, backend="mla", tensor_parallel_size=8),
    "deepseek-v3-fp8": case(DEEPSEEK_V3, backend="flashmla", block_size=64, kv_cache_dtype="fp8"),
    "deepseek-v3.2": case(DEEPSEEK_V3_2, backend="flashmla_sparse", block_size=64),
    "deepseek-v3.2-fp8": case(
        DEEPSEEK_V3_2, backend="flashmla_sparse", block_size=64, kv_cache_dtype="fp8_ds_mla", tensor_parallel_size=8
    ),
    "mistral-7b-v0.1": case(MISTRAL_V01),
    "gemma-2-9b": case(GEMMA_2_9B),
    "gemma-3-27b": case(GEMMA_3_27B),
    "gemma-3-27b-small-batches": case(GEMMA_3_27B, max_num_batched_tokens=2048),
    "gpt-oss-20b": case(GPT_OSS_20B),
    "command-r7b": case(COMMAND_R7B),
    "llama-4-scout": case(LLAMA_4_SCOUT),
    "qwen3-next-80b": case(QWEN3_NEXT),
    "qwen3-next-80b-tp2": case(QWEN3_NEXT, tensor_parallel_size=2),
    "qwen3-next-80b-triton": case(QWEN3_NEXT, gdn_prefill_backend="triton"),
    "qwen3-next-80b-uncached": case(QWEN3_NEXT, enable_prefix_caching=False),
    "qwen3-next-80b-fp8": case(QWEN3_NEXT, kv_cache_dtype="fp8"),
    "qwen3.5-27b": case(QWEN3_5_27B),
    "nemotron-3-nano-30b": case(NEMOTRON_3_NANO),
    "nemotron-3-nano-30b-tp4": case(NEMOTRON_3_NANO, tensor_parallel_size=4),
    "jamba-mini": case(JAMBA_MINI),
    "granite-4-small": case(GRANITE_4_SMALL),
    "granite-4-small-tp2": case(GRANITE_4_SMALL, tensor_parallel_size=2),
    "granite-4-small-float32-state": case(GRANITE_4_SMALL, mamba_ssm_cache_dtype="float32"),
    "falcon-h1-7b": case(FALCON_H1_7B),
    "lfm2-1.2b": case(LFM2_1B),
    "mamba-2.8b": case(MAMBA_2B),
    "mamba2-2.7b": case(MAMBA2_2B),
    "gemma-4-26b": case(GEMMA_4_26B),
    "gemma-4-26b-tp4": case(GEMMA_4_26B, tensor_parallel_size=4),
    "gemma-4-e2b": case(GEMMA_4_E2B),
}

MODEL_CLASSES: dict[str, Any] = {
    "qwen3_next": qwen3_next.Qwen3NextForCausalLM,
    # qwen3_5.py calls the same calculator with the same keys; importing it needs torchvision
    "qwen3_5_text": qwen3_next.Qwen3NextForCausalLM,
    "nemotron_h": nemotron_h.NemotronHForCausalLM,
    "jamba": jamba.JambaForCausalLM,
    "granitemoehybrid": granitemoehybrid.GraniteMoeHybridForCausalLM,
    "falcon_h1": falcon_h1.FalconH1ForCausalLM,
    "lfm2": lfm2.Lfm2ForCausalLM,
    "mamba": mamba.MambaForCausalLM,
    "mamba2": mamba2.Mamba2ForCausalLM,
}
MIXERS: dict[str, type] = {
    **dict.fromkeys(("qwen3_next", "qwen3_5_text"), QwenGatedDeltaNetAttention),
    **dict.fromkeys(("nemotron_h", "granitemoehybrid", "falcon_h1", "mamba2"), MambaMixer2),
}
VERIFIED: dict[str, Any] = {
    "nemotron_h": model_configs.NemotronHForCausalLMConfig,
    "qwen3_5_text": model_configs.Qwen3_5ForCausalLMConfig,
}
ATTENTION_FREE = ("mamba", "mamba2")


def kinds_of(hf: Any) -> list[str]:
    """Each layer's kind by the rule of its vLLM model file; ``both`` attends and has a state."""
    layers = range(hf.num_hidden_layers)
    rules: dict[str, Callable[[int], str]] = {
        "deepseek_v32": lambda _: "full",
        "mamba": lambda _: "state",
        "mamba2": lambda _: "state",
        "falcon_h1": lambda _: "both",  # falcon_h1.py, FalconH1ParallelHybrid
        "jamba": lambda i: {"attention": "full"}.get(hf.layers_block_type[i], "state"),  # jamba.py, Jamba*DecoderLayer
        "llama4_text": lambda i: "chunked" if hf.no_rope_layers[i] else "full",  # llama4.py, Llama4Attention
        "gpt_oss": lambda i: "full" if i % 2 else "sliding",  # gpt_oss.py, OAIAttention
        "nemotron_h": lambda i: {"*": "full", "M": "state"}.get(hf.hybrid_override_pattern[i], "none"),
    }
    listed = getattr(hf, "layer_types", None)
    names = {"full_attention": "full", "sliding_attention": "sliding", "attention": "full"}
    if hf.model_type in rules:
        return [rules[hf.model_type](index) for index in layers]
    if listed:
        return [names.get(kind, "state") for kind in listed]
    return ["sliding" if getattr(hf, "sliding_window", None) else "full" for _ in layers]  # EngineArgs: all slide


def window_of(hf: Any) -> int:
    return hf.sliding_window + (hf.model_type == "cohere2")  # commandr.py, CohereAttention: one more


def heads_of(hf: Any, kind: str) -> tuple[int, int]:
    """Key heads of the whole model and their size."""
    if hf.model_type == "gemma4_text" and kind == "full":  # gemma4.py, Gemma4DecoderLayer
        own = hf.per_layer_config[hf.layer_types.index("full_attention")]
        return own.num_key_value_heads, own.head_dim
    if hf.model_type == "falcon":  # falcon.py, FalconAttention
        kv_heads = hf.num_kv_heads if hf.new_decoder_architecture else 1 if hf.multi_query else hf.num_attention_heads
        return kv_heads, hf.hidden_size // hf.num_attention_heads
    size = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    return hf.num_key_value_heads, size


def settings(hf: Any, request: dict[str, Any]) -> Namespace:
    """The keys of a VllmConfig that the planner reads."""
    dtype = STR_DTYPE_TO_TORCH_DTYPE[request.get("dtype", "bfloat16")]
    tensor_parallel = request.get("tensor_parallel_size", 1)
    batched = request.get("max_num_batched_tokens", 8192)
    parallel = Namespace(tensor_parallel_size=tensor_parallel, decode_context_parallel_size=1, pipeline_parallel_size=1)
    mla = hasattr(hf, "kv_lora_rank")
    kv_heads, head_dim = (1, hf.kv_lora_rank + hf.qk_rope_head_dim) if mla else (0, 0)
    if not mla and hf.model_type not in ATTENTION_FREE:
        kv_heads, head_dim = heads_of(hf, "sliding")
    model = Namespace(
        dtype=dtype,
        hf_config=hf,
        hf_text_config=hf,
        max_model_len=LENGTHS[-1],
        original_max_model_len=LENGTHS[-1],
        use_mla=mla,
        is_hybrid=hf.model_type in MODEL_CLASSES and hf.model_type not in ATTENTION_FREE,
        supports_kv_cache_grouping=False,
        architecture=hf.model_type,
        model_arch_config=Namespace(total_num_kv_heads=kv_heads),
        get_head_size=lambda: head_dim,
    )
    model.get_num_kv_heads = lambda parallel_config: ModelConfig.get_num_kv_heads(model, parallel_config)
    caching = request.get("enable_prefix_caching", hf.model_type not in ATTENTION_FREE)
    cache = CacheConfig(
        block_size=request.get("block_size", 16),
        cache_dtype=request.get("kv_cache_dtype", "auto"),
        enable_prefix_caching=caching,
        mamba_ssm_cache_dtype=request.get("mamba_ssm_cache_dtype", "auto"),
    )
    cache.kv_cache_layout = "LBNHC"
    return Namespace(
        model_config=model,
        cache_config=cache,
        parallel_config=parallel,
        scheduler_config=Namespace(
            max_num_batched_tokens=batched, disable_hybrid_kv_cache_manager=False, enable_chunked_prefill=True
        ),
        attention_config=Namespace(hisparse_config=None),
        compilation_config=Namespace(static_forward_context={}),
        speculative_config=None,
        kv_transfer_config=None,
        num_speculative_tokens=0,
        num_prefill_lookahead_tokens=0,
        max_in_flight_tokens=2 * batched,  # VllmConfig.max_concurrent_batches: asynchronous scheduling, no pipeline
    )


def states_of(hf: Any, config: Namespace, request: dict[str, Any]) -> Any:
    """A layer that holds the model's state, with vLLM's own ``get_kv_cache_spec``."""
    model_class = MODEL_CLASSES[hf.model_type]
    base = MIXERS.get(hf.model_type, MambaBase)
    exports = (  # qwen_gdn_linear_attn.py, QwenGatedDeltaNetAttention.__init__
        config.cache_config.mamba_cache_mode == "align"
        and request.get("gdn_prefill_backend", "flashinfer") == "flashinfer"
    )
    fields = {
        "__init__": lambda self: None,
        "get_state_shape": lambda self: model_class.get_mamba_state_shape_from_config(config),
        "get_state_dtype": lambda self: tuple(model_class.get_mamba_state_dtype_from_config(config)),
        "mamba_type": "state",
        "_checkpoint_alignment": 64 if exports else None,
        "vllm_config": config,
        "_exports_checkpoints": exports,
    }
    if base is not QwenGatedDeltaNetAttention:
        del fields["_checkpoint_alignment"], fields["_exports_checkpoints"]
    made = type("State", (base,), fields)
    made.__abstractmethods__ = frozenset()
    return made()


def specs_of(hf: Any, config: Namespace, request: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    backend = BACKENDS[request.get("backend", "flash_attn")]
    for index, kind in enumerate(kinds_of(hf)):
        shares = index >= hf.num_hidden_layers - getattr(hf, "num_kv_shared_layers", 0)
        if kind in ("full", "sliding", "chunked", "both") and not shares:
            layer = attention_of(hf, config, "full" if kind == "both" else kind, backend)
            spec = type_of(hf, kind).get_kv_cache_spec(layer, config)
            yield f"layers.{index}.self_attn.attn", customize_attention_spec(backend, spec)
        if hf.model_type == "deepseek_v32":  # deepseek_v2.py, Indexer: a scale of 4 bytes for every 128
            size = hf.index_head_dim + hf.index_head_dim // 128 * 4
            keys = Namespace(cache_config=config.cache_config, head_dim=size, dtype=torch.uint8)
            spec = DeepseekV32IndexerCache.get_kv_cache_spec(keys, config)
            yield f"layers.{index}.self_attn.indexer", customize_attention_spec(DeepseekV32IndexerBackend, spec)
        if kind in ("state", "both"):
            yield f"layers.{index}.mixer", states_of(hf, config, request).get_kv_cache_spec(config)


def type_of(hf: Any, kind: str) -> Any:
    return MLAAttention if hasattr(hf, "kv_lora_rank") else ChunkedLocalAttention if kind == "chunked" else Attention


def attention_of(hf: Any, config: Namespace, kind: str, backend: Any) -> Namespace:
    cache_dtype = config.cache_config.cache_dtype
    latent = hasattr(hf, "kv_lora_rank")
    total, size = (1, hf.kv_lora_rank + hf.qk_rope_head_dim) if latent else heads_of(hf, kind)
    return Namespace(
        attn_type=AttentionType.DECODER,
        attn_backend=backend,
        sliding_window=window_of(hf) if kind == "sliding" else None,
        attention_chunk_size=hf.attention_chunk_size if kind == "chunked" else None,
        num_kv_heads=max(1, total // config.parallel_config.tensor_parallel_size),  # as every model file has it
        head_size=size,
        head_size_v=size,
        kv_cache_dtype=cache_dtype,
        kv_cache_torch_dtype=STR_DTYPE_TO_TORCH_DTYPE.get(cache_dtype, config.model_config.dtype),
        topk_buffer_width=None,
        indexer=None,
        non_causal_multi_token_decode=False,
    )


def align(hf: Any, config: Namespace, request: dict[str, Any]) -> None:
    """What vLLM settles before it builds specs: state dtypes, cache mode, block sizes."""
    if hf.model_type in VERIFIED:
        VERIFIED[hf.model_type].verify_and_update_config(config)
    if hf.model_type not in MODEL_CLASSES:
        return
    model_configs.MambaModelConfig.verify_and_update_config(config)
    if hf.model_type in ATTENTION_FREE:
        return
    backend = BACKENDS[request.get("backend", "flash_attn")]
    platform = type("P", (Platform,), {"_find_non_ssm_backends": classmethod(lambda cls, _: [backend])})
    config.compilation_config.static_forward_context["mixer"] = states_of(hf, config, request)
    config.cache_config.user_specified_block_size = True
    config.cache_config.kv_cache_dtype_skip_layers = []
    resolved = (MODEL_CLASSES[hf.model_type], hf.model_type)
    with (
        mock.patch.object(type(ModelRegistry), "resolve_model_cls", return_value=resolved),
        mock.patch.object(vllm.config.vllm, "set_current_vllm_config", return_value=contextlib.nullcontext()),
    ):
        platform.update_block_size_for_backend(config)


def layers_of(group: Any) -> list[Any]:
    spec = group.kv_cache_spec
    return list(spec.kv_cache_specs.values()) if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]


def blocks_of(group: Any, config: Namespace) -> int:
    spec = group.kv_cache_spec
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return spec.max_memory_usage_pages(config)
    return -(-spec.max_memory_usage_bytes(config) // spec.page_size_bytes)


def held_of(config: Namespace, plan: Any) -> dict[str, list[int]]:
    """Blocks a request holds in each group as it decodes its last token, all others prefilled."""
    scheduler_block, hash_block = resolve_kv_cache_block_sizes(plan, config)
    held = {}
    for length in HELD_LENGTHS:
        manager = KVCacheManager(
            plan, LENGTHS[-1], scheduler_block, hash_block, config.max_in_flight_tokens, enable_caching=False
        )
        request = Request("r", [0] * length, SamplingParams(max_tokens=1), None)
        held[str(length)] = replay(manager, request, length, config.scheduler_config.max_num_batched_tokens)
    return held


def replay(manager: Any, request: Any, length: int, batched: int) -> list[int]:
    while request.num_computed_tokens < length:
        rest = length - request.num_computed_tokens
        step = min(batched, max(rest - 1, 1))
        assert manager.allocate_slots(request, step) is not None
        request.num_computed_tokens += step
    groups = manager.coordinator.single_type_managers
    return [sum(not block.is_null for block in group.req_to_blocks["r"]) for group in groups]


def record(model: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    hf = AutoConfig.for_model(**model)
    hf.allow_global_per_layer_attribute_access = True
    config = settings(hf, request)
    align(hf, config, request)
    specs = dict(specs_of(hf, config, request))
    groups = planning.get_global_kv_cache_groups(config, [specs])
    plan = planning.get_kv_cache_configs(config, [specs], [BUDGET_BYTES], groups)[0]
    lengths = {}
    for length in LENGTHS:
        config.model_config.max_model_len = length
        if hf.model_type in MODEL_CLASSES and not config.cache_config.enable_prefix_caching:
            config.cache_config.mamba_block_size = length
        tokens, concurrency = get_kv_cache_capacity(config, plan)
        blocks = [blocks_of(group, config) for group in plan.kv_cache_groups]
        lengths[str(length)] = {"blocks": blocks, "capacity_tokens": tokens, "max_concurrency": concurrency}
    config.model_config.max_model_len = LENGTHS[-1]
    small = planning._estimate_max_model_len_from_groups(
        planning.DefaultKVCacheConfigBuilder(), config, plan.kv_cache_groups, GIB
    )
    aligned = config.cache_config.block_size
    config.cache_config.block_size = min(layers_of(group)[0].block_size for group in plan.kv_cache_groups)  # EngineCore
    return {
        "block_size": aligned,
        "block_bytes": plan.kv_cache_tensors[0].size // plan.num_blocks,
        "blocks_in_budget": plan.num_blocks,
        "longest_in_1_gib": small,
        "groups": [
            {
                "kind": get_kv_cache_spec_kind(layers_of(group)[0]).value,
                "layers": len(group.layer_names),
                "block_tokens": layers_of(group)[0].block_size,
                "page_bytes": sorted({spec.page_size_bytes for spec in layers_of(group)}),
            }
            for group in plan.kv_cache_groups
        ],
        "lengths": lengths,
        "held": held_of(config, generate_scheduler_kv_cache_config([plan])),
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[1:] or CASES
    for name in wanted:
        model, request = CASES[name]["config"], CASES[name]["request"]
        outcome = record(model, request)
        page = {"vllm": __version__, "config": model, "request": request, "budget_bytes": BUDGET_BYTES, **outcome}
        (FOLDER / f"{name}.json").write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
        print(name, outcome["block_size"], outcome["block_bytes"], outcome["groups"][:4], outcome["lengths"]["32768"])


if __name__ == "__main__":
    main()
