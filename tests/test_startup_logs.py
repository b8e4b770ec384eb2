"""What vLLM printed when it started on real GPUs, quoted from public threads (data/startup_logs.json)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analytic.loaded.vllm import vllm_weights
from analytic.models.resolve import resolve

RECORDS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "startup_logs.json").read_text())[
    "records"
]

EXACT, SMALL = 0.0001, 0.0015
"""Tensors below 10 MiB share segments of 20 MiB, whose rests the figure counts too."""


def end(mib: float) -> float:
    """MiB of a block that is not split: of the segment of whole 2 MiB for one large tensor, a rest of up to 1 MiB."""
    rest = -mib % 2
    return rest if rest <= 1 else 0


def matrix(rows: int, columns: int, bits: int) -> float:
    """MiB."""
    return rows * columns * bits / 8 / 2**20


QWEN_7B_ENDS = 28 * sum(end(matrix(r, c, 16)) for r, c in ((4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944)))
QWEN_32B_ENDS = 64 * sum(end(matrix(r, c, 4)) for r, c in ((10240, 5120), (5120, 8192), (51200, 5120), (5120, 25600)))
"""Queries, keys and values in one; output; gate and up in one; down."""

CASES = (  # as printed, our name, quantisation, capability, MiB of ends of blocks, tolerance
    ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b", None, (8, 0), 0, EXACT),
    ("meta-llama/Meta-Llama-3-8B", "llama-3-8b", None, (8, 0), 0, EXACT),
    ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b-v0.2", None, (8, 0), 0, EXACT),
    ("unsloth/Llama-3.2-3B-Instruct", "llama-3.2-3b", None, (8, 0), 0, EXACT),
    ("Qwen/Qwen3-0.6B", "qwen3-0.6b", None, (8, 0), 0, EXACT),
    ("Qwen/Qwen3-32B", "qwen3-32b", None, (8, 0), 0, EXACT),
    ("Qwen2___5-7B-Instruct", "qwen2.5-7b", None, (8, 0), QWEN_7B_ENDS + 2 * end(matrix(152064, 3584, 16)), EXACT),
    ("deepseek-ai/DeepSeek-V2-Lite", "deepseek-v2-lite", None, (8, 0), 0, SMALL),
    ("neuralmagic/Meta-Llama-3-8B-Instruct-FP8", "llama-3-8b", "fp8", (9, 0), 0, EXACT),
    ("neuralmagic/Meta-Llama-3.1-70B-Instruct-quantized.w8a8", "llama-3.1-70b", "w8a8", (9, 0), 0, EXACT),
    ("Qwen/Qwen2.5-0.5B-Instruct-AWQ", "qwen2.5-0.5b", "awq", (8, 0), end(matrix(151936, 896, 16)), SMALL),
    ("Qwen3-32B-AWQ", "qwen3-32b", "awq", (8, 0), QWEN_32B_ENDS + 2 * end(matrix(151936, 5120, 16)), SMALL),
    (
        "jakiAJK/DeepSeek-R1-Distill-Qwen-7B_GPTQ-int4",
        *("qwen2.5-7b", "gptq", (8, 0), 2 * end(matrix(152064, 3584, 16)), SMALL),
    ),
)

POSITIONS = {"Qwen2___5-7B-Instruct": 32_768}
"""Of the rotary table, where the printed model's config has others than the catalogue's (max_position_embeddings)."""


@pytest.mark.parametrize(("printed", "name", "quantization", "capability", "ends_mib", "tolerance"), CASES)
def test_weights_are_what_vllm_printed(
    printed: str, name: str, quantization: str | None, capability: tuple[int, int], ends_mib: float, tolerance: float
) -> None:
    records = [r for r in RECORDS if r["model"] == printed and not r["lora"] and r["tensor_parallel_size"] == 1]
    assert records
    model = resolve(name)
    positions = POSITIONS.get(printed, model.geometry.max_position_embeddings)
    model = replace(model, config={**model.config, "max_position_embeddings": positions})
    dtype = "float16" if quantization == "awq" else "bfloat16"
    (ours,) = vllm_weights(model, dtype=dtype, quantization=quantization, capability=capability)
    for record in records:
        said = gib(record["weights"])
        half_a_digit = 0.5 * 10 ** -len(record["weights"].split(".")[1].rstrip("GiB "))
        assert ours.bytes / 2**30 + ends_mib / 2**10 == pytest.approx(said, abs=tolerance * said + half_a_digit)


def gib(printed: str) -> float:
    """vLLM used to print GB and mean GiB."""
    return float(printed.rstrip("GiB "))


def test_every_record_names_its_source_and_a_figure() -> None:
    assert len(RECORDS) >= 80
    for record in RECORDS:
        assert record["source"].startswith("https://"), record
        assert gib(record["weights"]) > 0
