"""What vLLM printed when it started on real GPUs, quoted from public threads (data/startup_logs.json)."""

import json
from pathlib import Path
from typing import Any

import pytest

from analytic.loaded.vllm import vllm_weights
from analytic.models.resolve import resolve

RECORDS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "startup_logs.json").read_text())[
    "records"
]

EXACT, BLOCKS = 0.0001, 0.008
"""The figure counts what PyTorch's allocator gave: up to 1 MiB more where a matrix is no multiple of 2 MiB."""

CASES = (  # as printed, our name, quantisation, capability, tolerance
    ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b", None, (8, 0), EXACT),
    ("meta-llama/Meta-Llama-3-8B", "llama-3-8b", None, (8, 0), EXACT),
    ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b-v0.2", None, (8, 0), EXACT),
    ("unsloth/Llama-3.2-3B-Instruct", "llama-3.2-3b", None, (8, 0), EXACT),
    ("Qwen/Qwen3-0.6B", "qwen3-0.6b", None, (8, 0), EXACT),
    ("Qwen/Qwen3-32B", "qwen3-32b", None, (8, 0), EXACT),
    ("Qwen2.5-7B", "qwen2.5-7b", None, (8, 0), BLOCKS),
    ("deepseek-ai/DeepSeek-V2-Lite", "deepseek-v2-lite", None, (8, 0), BLOCKS),
    ("neuralmagic/Meta-Llama-3-8B-Instruct-FP8", "llama-3-8b", "fp8", (9, 0), EXACT),
    ("neuralmagic/Meta-Llama-3.1-70B-Instruct-quantized.w8a8", "llama-3.1-70b", "w8a8", (9, 0), EXACT),
    ("Qwen/Qwen2.5-0.5B-Instruct-AWQ", "qwen2.5-0.5b", "awq", (8, 0), BLOCKS),
    ("Qwen3-32B-AWQ", "qwen3-32b", "awq", (8, 0), BLOCKS),
    ("jakiAJK/DeepSeek-R1-Distill-Qwen-7B_GPTQ-int4", "qwen2.5-7b", "gptq", (8, 0), BLOCKS),
)


@pytest.mark.parametrize(("printed", "name", "quantization", "capability", "tolerance"), CASES)
def test_weights_are_what_vllm_printed(
    printed: str, name: str, quantization: str | None, capability: tuple[int, int], tolerance: float
) -> None:
    records = [r for r in RECORDS if r["model"] == printed and not r["lora"] and r["tensor_parallel_size"] == 1]
    assert records
    dtype = "float16" if quantization == "awq" else "bfloat16"
    (ours,) = vllm_weights(resolve(name), dtype=dtype, quantization=quantization, capability=capability)
    for record in records:
        said = gib(record["weights"])
        shown = len(record["weights"].split(".")[1].rstrip("GiB "))
        assert -tolerance - 0.5 * 10**-shown / said < ours.bytes / 2**30 / said - 1 < EXACT + 0.5 * 10**-shown / said


def gib(printed: str) -> float:
    """vLLM used to print GB and mean GiB."""
    return float(printed.rstrip("GiB "))


def test_every_record_names_its_source_and_a_figure() -> None:
    assert len(RECORDS) >= 80
    for record in RECORDS:
        assert record["source"].startswith("https://"), record
        assert gib(record["weights"]) > 0
