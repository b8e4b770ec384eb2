"""Which recorded starts are laid beside estimates, what a user adds to each, and which are not, with the reason."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from start_texts import text_of

from analytic.hardware import find_gpu
from analytic.logs import read_log
from analytic.starts.beside import Beside, beside

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A start, and what a user would type to lay it beside the estimate."""

    name: str
    source: str
    printed: str
    """The model, as the log calls it."""
    text: str
    """The log."""
    gpu: str | None = None
    """``--gpu``."""
    model: str | None = None
    """``--model``."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Other flags."""


def read(case: Case, **more: Any) -> Beside:
    """The case through the same path as a user's file."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "engine.log"
        file.write_text(case.text, encoding="utf-8")
        (run,) = read_log(file)
    gpu = None if case.gpu is None else find_gpu(case.gpu)
    return beside(run, source=case.source, model=case.model, gpu=gpu, given=case.given, **more)


def records(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DATA / name).read_text("utf-8"))["records"]
    return found


_QUANTISED = {
    "RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic": "fp8-dynamic",
    "RedHatAI/Qwen2.5-7B-Instruct-fp8-dynamic": "fp8-dynamic",
    "redhatai/Llama-3.3-70B-Instruct-quantized.w8a8": "w8a8",
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8": "w8a8",
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16": "w4a16",
    "RedHatAI/Qwen2.5-7B-Instruct-quantized.w8a8": "w8a8",
}
"""Quantised copies in the logs of 0.19, which the catalogue does not have."""

NO_ROTARY = "ibm-granite/granite-3.1-2b-instruct"
"""The catalogue's config does not say how it scales its rotary embedding: ullage asks for the config.json instead."""


def of_0_19() -> Iterator[Case]:
    """H100, all settings and all components."""
    for record in records("vllm_logs.json"):
        if record["model"] == NO_ROTARY:
            continue
        quantised = _QUANTISED.get(record["model"])
        degrees = f"tp{record['tensor_parallel_size']} pp{record['pipeline_parallel_size']}"
        yield Case(
            name=f"{record['model']} {record['quantization']} {record['dtype']} {degrees}",
            source=record["source"],
            printed=record["model"],
            text=text_of(record),
            gpu=record["gpu"],
            model=record["catalog"] if quantised else None,
            given={"quantization": quantised} if quantised else {},
        )


def of_lengths() -> Iterator[Case]:
    """H100, 0.19: bytes and tokens of the KV cache, of several lengths."""
    for record in records("engine_logs.json"):
        for length, cache, tokens in record["runs"]:
            yield Case(
                name=f"{record['model']} {length} {cache}",
                source=record["source"],
                printed=record["model"],
                text=(
                    "INFO [v1/engine/core.py:105] Initializing a V1 LLM engine (v0.19.0) with config: "
                    f"model='{record['model']}', dtype=torch.bfloat16, max_seq_len={length}, tensor_parallel_size=1, "
                    f"kv_cache_dtype={cache}, enable_prefix_caching=False\n"
                    f"INFO [v1/worker/gpu_worker.py:436] Available KV cache memory: {record['kv_cache_gib']} GiB\n"
                    f"INFO [v1/core/kv_cache_utils.py:1319] GPU KV cache size: {tokens:,} tokens\n"
                ),
                gpu="h100-80gb",
                given={"gpu_memory_utilization": 0.95},
            )


_A100, _H100 = "a100-80gb", "h100-80gb"
_OWN_CHOICE = "a checkpoint whose own list of 16-bit layers is needed"
_LORA = "LoRA adapters' buffers are in the printed weights, which are not modelled"

STARTS: dict[str, dict[str, Any]] = {
    "Qwen2___5-7B-Instruct": {},
    "qwen-2.5-7b": {"model": "qwen2.5-7b", "gpu": "a10g"},
    "Qwen/Qwen2-7B-Instruct": {"model": "qwen2.5-7b"},
    "mistralai/Mistral-7B-Instruct-v0.2": {},
    "neuralmagic/Meta-Llama-3-8B-Instruct-FP8": {"model": "llama-3-8b", "quantization": "fp8", "gpu": _H100},
    "Meta-Llama-3-8B-Instruct": {},
    "Meta-Llama-3.1-70B-Instruct": {"gpu": "h200"},
    "Qwen/Qwen2.5-0.5B-Instruct-AWQ": {"model": "qwen2.5-0.5b", "quantization": "awq", "gpu": "rtx-a6000"},
    "Qwen3-32B-AWQ": {"model": "qwen3-32b", "quantization": "awq", "gpu": "rtx-3090"},
    "hugging-quants/Meta-Llama-3.1-405B-Instruct-AWQ-INT4": {
        **{"model": "llama-3.1-405b", "quantization": "awq", "gpu": "h100-nvl"}
    },
    "jakiAJK/DeepSeek-R1-Distill-Qwen-7B_GPTQ-int4": {"model": "qwen2.5-7b", "quantization": "gptq", "gpu": _A100},
    "sophosympatheia/Midnight-Miqu-70B-v1.0": {"model": "llama-2-70b", "gpu": _H100},
    "deepseek-r1": {"enable_expert_parallel": True, "gpu": _H100},
    "86518964eaef84e3fdd98e9861759a1384f9c29d": {"model": "deepseek-v3", "gpu": _H100},
    "Gemma-3-27b": {"model": "gemma-3-27b", "gpu": "a100-40gb"},
    "google/gemma-3-27b-it": {"gpu": "t4"},
    "medusa-1.0-zephyr-7b-beta": {"model": "mistral-7b-v0.1", "gpu": _H100},
    "Qwen2.5-7B": {"gpu": "rtx-3070-laptop"},
    "unsloth/Llama-3.2-3B-Instruct": {"model": "llama-3.2-3b", "gpu": "t4"},
    "gpt-oss-120b": {"gpu": _A100},
    "Qwen2-7B-Instruct": {"model": "qwen2.5-7b", "gpu": _A100},
    "deepseek-ai/DeepSeek-V2-Lite": {"gpu": _A100},
    "Qwen/Qwen3-30B-A3B": {"gpu": "a10", "tensor_parallel_size": 4},
    "openai/gpt-oss-120b": {"model": "gpt-oss-120b", "gpu": _H100},
    "meta-llama/Meta-Llama-3-8B": {"model": "llama-3-8b", "gpu": _H100, "max_model_len": 8192},
    "neuralmagic/Meta-Llama-3.1-70B-Instruct-quantized.w8a8": {
        **{"model": "llama-3.1-70b", "quantization": "w8a8", "gpu": _H100, "max_model_len": 2048}
    },
    "meta-llama/Llama-3.1-8B-Instruct": {"model": "llama-3.1-8b", "gpu": {"RTX 3090": "rtx-3090"}},
    "openai/gpt-oss-20b": {"model": "gpt-oss-20b", "gpu": _H100},
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic": {
        **{"model": "llama-3.3-70b", "quantization": "fp8-dynamic", "gpu": _H100}
    },
    "Qwen/Qwen3-0.6B": {"model": "qwen3-0.6b", "gpu": _H100},
    "Qwen/Qwen3-32B": {"model": "qwen3-32b", "gpu": _H100},
}
"""By the model's printed name: what a user adds, of fields and flags that the log does not have."""

NOT_HELD: dict[str, str] = {
    "models": "a folder's name alone, of an embedding model",
    "functionary-small-v2.4": "a fine-tune with a vocabulary of its own",
    "Llama-2-7b-chat-hf": _LORA,
    "Qwen/Qwen2-VL-7B-Instruct-AWQ": "vision tower and format together are not in the catalogue",
    "unsloth/Mistral-Small-24B-Instruct-2501-unsloth-bnb-4bit": _OWN_CHOICE,
    "intfloat/e5-mistral-7b-instruct": "an embedding model",
    "DeepSeek-R1-Distill-Qwen-32B-Q4_K_M.gguf": "vLLM 0.33 itself loads no GGUF; on ROCm",
    "Mistral-Nemo-Instruct-2407/": "stages over two nodes whose cut the log does not print",
    "ai21labs/AI21-Jamba-1.5-Mini": "experts_int8, and a Jamba, were not recorded",
    "Qwen2.5-VL-72B-Instruct": "not in the catalogue",
    "Qwen2-VL-7B-Instruct": "not in the catalogue",
    "llama": "a folder's name alone, of Llama 3.2 Vision, whose cross-attention is not modelled",
    "Llama-3.2-11B-Vision-Instruct": "cross-attention is not modelled",
    "Qwen/Qwen2-Audio-7B-Instruct": "an audio tower is not modelled",
    "Qwen2-Audio-7B-Instruct": "an audio tower is not modelled",
    "MiniCPM-o-2_6": "needs the repository's own code, which is never run",
    "openai/whisper-large-v3": "an encoder with a decoder is not modelled",
    "openai/whisper-large-v3-turbo": "an encoder with a decoder is not modelled",
    "ibm-research/PowerMoE-3b": "not in the catalogue",
    "starcoder2-15b": "not in the catalogue",
    "facebook/opt-125m": "not in the catalogue",
    "Erland/DeepSeek-R1-0528-Qwen3-8B": _LORA,
    "unsloth/meta-llama-3.1-8b-instruct-unsloth-bnb-4bit": _OWN_CHOICE,
    "unsloth/Llama-3.2-1B-Instruct-FP8-Block": _LORA,
    "unsloth/mistral-7b-instruct-v0.3-bnb-4bit": _LORA,
    "unsloth/phi-4-bnb-4bit": _LORA,
    "unsloth/qwen2.5-3b-instruct-unsloth-bnb-4bit": _LORA,
    "unsloth/qwen2.5-vl-7b-instruct-unsloth-bnb-4bit": "vision tower and format together are not in the catalogue",
    "unsloth/Qwen3-4B-Base": _LORA,
    "unsloth/Qwen3-8B-FP8": _LORA,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": _OWN_CHOICE,
    "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16": "not in the catalogue",
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": "not in the catalogue",
    "Qwen/Qwen3.6-27B-FP8": "served without its vision tower, and the checkpoint is not in the catalogue",
    "Qwen/Qwen3.6-35B-A3B": "served without its vision tower (--language-model-only), which is not modelled",
    "Qwen/Qwen3.6-35B-A3B-FP8": "served without its vision tower, and the checkpoint is not in the catalogue",
    "google/gemma-4-26B-A4B-it": "what vLLM holds of a Gemma 4 was not recorded",
    "google/gemma-4-12B-it": "a build of no release, of a model that is not in the catalogue",
    "Meta-Llama-3.1-405B-Instruct-FP8": _OWN_CHOICE,
    "Qwen3-235B-A22B-FP8": "vllm#21348: one rank's bytes of cache beside the tokens of the rank that had least",
    "mistral-large2": "the catalogue's config does not say how it scales its rotary embedding",
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": "its vision tower is not in the catalogue",
}
"""By the model's printed name."""


def of_starts() -> Iterator[Case]:
    """All other public starts, many without settings."""
    for index, record in enumerate(records("startup_logs.json")):
        printed = record["model"]
        if printed in NOT_HELD or "LoRA buffers" in (record["notes"] or ""):
            continue
        if record["quantization"] == "bitsandbytes":  # what vLLM holds of it was not recorded
            continue
        added = dict(STARTS[printed])
        if record["version"] is None:
            degrees = record["tensor_parallel_size"]
            added.setdefault("tensor_parallel_size", degrees)
            if record["max_model_len"]:
                added.setdefault("max_model_len", record["max_model_len"])
            if record["source"].endswith("empirical-vllm-memory-results.md"):
                added["block_size"] = 128
        yield Case(
            name=f"{index} {printed} {record['version']}",
            source=record["source"],
            printed=printed,
            text=text_of(record),
            gpu=gpu if isinstance(gpu := added.pop("gpu", None), str | None) else gpu.get(record["gpu"], _H100),
            model=added.pop("model", None),
            given=added,
        )


def quoted() -> Iterator[Case]:
    """Lines of further threads."""
    for record in json.loads((DATA / "engine_logs.json").read_text("utf-8"))["quoted"]:
        added = dict(record["add"])
        banner = f"INFO Initializing a V1 LLM engine (v{record['version']}) with config: model='{record['model']}'"
        yield Case(
            name=f"{record['model']} {record['source'].rpartition('/')[2]}",
            source=record["source"],
            printed=record["model"],
            text="\n".join([*([banner] if record["version"] else []), *record["lines"]]) + "\n",
            gpu=added.pop("gpu", None),
            model=added.pop("model", None),
            given=added,
        )


def cases() -> list[Case]:
    """All of vLLM."""
    return [*of_0_19(), *of_lengths(), *of_starts(), *quoted()]


def others(engine: str) -> list[Case]:
    """Of ``sglang`` or ``llamacpp``; the former mostly on a GB10, whose memory other processes share."""
    logs = json.loads((DATA / "engine_logs.json").read_text("utf-8"))[engine]
    found = []
    for index, record in enumerate(logs):
        added = dict(record.get("add", {}))
        if "tensor_split" in added:
            added["tensor_split"] = tuple(map(float, added["tensor_split"]))
        found.append(
            Case(
                name=f"{index} {record['model']}",
                source=record["source"],
                printed=record["model"],
                text="\n".join(record["lines"]) + "\n",
                model=added.pop("model", None),
                given=added,
            )
        )
    return found
