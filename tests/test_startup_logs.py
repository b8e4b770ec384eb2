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

EXACT, SMALL, ABOUT = 0.0001, 0.0015, 0.01
"""Tensors below 10 MiB share segments of 20 MiB, whose rests the figure counts too, and a vision tower has many."""


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

QWEN_7B_HALVES_ENDS = 28 * sum(
    end(matrix(r, c, 16)) for r, c in ((2304, 3584), (3584, 1792), (18944, 3584), (3584, 9472))
)
QWEN_32B_HALVES_ENDS = 64 * sum(
    end(matrix(r, c, 16)) for r, c in ((5120, 5120), (5120, 4096), (25600, 5120), (5120, 12800))
)
"""Of a rank of two."""

SPLIT = (  # as printed, ranks, our name, quantisation, capability, MiB of ends of blocks, tolerance
    ("Meta-Llama-3-8B-Instruct", 2, "llama-3-8b", None, (8, 0), 0, SMALL),
    ("meta-llama/Meta-Llama-3-8B", 2, "llama-3-8b", None, (8, 0), 0, EXACT),
    ("Meta-Llama-3.1-70B-Instruct", 8, "llama-3.1-70b", None, (9, 0), 0, EXACT),
    ("sophosympatheia/Midnight-Miqu-70B-v1.0", 8, "llama-2-70b", None, (9, 0), 0, EXACT),
    ("mistral-large2", 4, "mistral-large-2407", "fp8", (9, 0), 0, EXACT),
    ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 2, "llama-3.3-70b", "fp8-dynamic", (9, 0), 0, EXACT),
    ("Qwen2-7B-Instruct", 2, "qwen2.5-7b", None, (8, 0), QWEN_7B_HALVES_ENDS + 2 * end(matrix(76032, 3584, 16)), EXACT),
    ("Qwen/Qwen3-32B", 2, "qwen3-32b", None, (9, 0), QWEN_32B_HALVES_ENDS + 2 * end(matrix(75968, 5120, 16)), EXACT),
    ("Qwen/Qwen3-30B-A3B", 4, "qwen3-30b-a3b", None, (8, 0), 0, SMALL),
    ("gpt-oss-120b", 4, "gpt-oss-120b", None, (8, 0), 0, SMALL),
    ("deepseek-r1", 16, "deepseek-r1", None, (9, 0), 0, EXACT),
    ("86518964eaef84e3fdd98e9861759a1384f9c29d", 16, "deepseek-v3", None, (9, 0), 0, EXACT),
    ("Gemma-3-27b", 4, "gemma-3-27b", None, (8, 0), 0, ABOUT),
    ("google/gemma-3-27b-it", 8, "gemma-3-27b", None, (8, 0), 0, ABOUT),
)

CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2___5-7B-Instruct": {"max_position_embeddings": 32_768},
    "Qwen2-7B-Instruct": {"max_position_embeddings": 32_768},
    "sophosympatheia/Midnight-Miqu-70B-v1.0": {"max_position_embeddings": 32_764},
    "mistral-large2": {"rope_scaling": None},
}
"""What the rotary table follows from, where the printed model's config differs from the catalogue's, or tells more."""

BY_EXPERT = {"deepseek-r1"}
"""Started with --enable-expert-parallel."""


ROWS = (*((printed, 1, *row) for printed, *row in CASES), *SPLIT)


@pytest.mark.parametrize(("printed", "ranks", "name", "quantization", "capability", "ends_mib", "tolerance"), ROWS)
def test_weights_are_what_vllm_printed(
    printed: str,
    ranks: int,
    name: str,
    quantization: str | None,
    capability: tuple[int, int],
    ends_mib: float,
    tolerance: float,
) -> None:
    records = [r for r in RECORDS if r["model"] == printed and not r["lora"] and r["tensor_parallel_size"] == ranks]
    assert records
    model = resolve(name)
    model = replace(model, config={**model.config, **CONFIGS.get(printed, {})})
    (ours,) = vllm_weights(
        model,
        dtype="float16" if quantization == "awq" else "bfloat16",
        quantization=quantization,
        capability=capability,
        tensor_parallel_size=ranks,
        enable_expert_parallel=printed in BY_EXPERT,
    )
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
