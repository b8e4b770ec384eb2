"""The closed forms of vLLM's profiling pass beside what its own worker asked PyTorch for (record_vllm_peaks.py)."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from analytic.engines.vllm.defaults import defaults
from analytic.engines.vllm.memory import (
    VllmRun,
    activation_peak,
    capture_sizes,
    compile_bytes,
    cuda_graph_bytes,
    non_torch_bytes,
    runner_bytes,
)
from analytic.errors import UllageError
from analytic.hardware import custom_gpu, find_gpu
from analytic.models.geometry import Recurrent
from analytic.models.model import Model
from analytic.models.resolve import resolve
from analytic.models.twin import twin_config

CASES: list[dict[str, Any]] = [
    case
    for case in json.loads((Path(__file__).parent / "data" / "vllm_peaks.json").read_text("utf-8"))["cases"]
    if "failed" not in case
]
TOLERANCE = 0.001
"""Of the peaks in bytes requested: all but a few are equal to the byte."""
FURTHER = {
    "nemotron-3-nano-30b-a3b": 0.006,  # Triton's benchmark buffer is as wide as the norm in float32 that is counted
    "gpt-oss-20b": 0.012,  # 8 MiB that Marlin keeps, on capability 8.0
    "qwen3-30b-a3b fp8-blocks": 0.04,  # the attention's output is quantised beside the experts' workspace
}
"""What is further off, and why."""
UNEXPLAINED = ("llama-4-scout",)
"""Whose first start needs 29 % more than the form says: only the interval covers it."""


@lru_cache(maxsize=256)
def cut(name: str, layers: int) -> Model:
    model = resolve(name)
    return replace(model, config=twin_config(dict(model.config), layers=layers))


def run_of(case: dict[str, Any]) -> VllmRun:
    model = cut(case["model"], case["layers"])
    positions = model.geometry.max_position_embeddings or 2048
    return VllmRun(
        dtype=case.get("dtype", "bfloat16"),
        quantization=case.get("format") or case.get("quantization"),
        tensor_parallel_size=case.get("tp", 1),
        enable_expert_parallel=case.get("ep", False),
        max_num_batched_tokens=case["tokens"],
        max_num_seqs=case["seqs"],
        max_model_len=case.get("len", min(4096, positions)),
        enforce_eager=case["eager"],
        capability=divmod(case["capability"], 10),
    )


def name_of(case: dict[str, Any]) -> str:
    keys = ("model", "capability", "tokens", "seqs", "format", "quantization", "dtype", "tp", "ep", "len")
    return " ".join(str(case[key]) for key in keys if key in case) + ("" if case["eager"] else " compiled")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_peak_is_what_vllm_asked_for(case: dict[str, Any]) -> None:
    """A warm start, as the low end says: the pass or the sampler, whichever needs more."""
    model, run = cut(case["model"], case["layers"]), run_of(case)
    found, moment = activation_peak(model, replace(run, enforce_eager=True) if case["eager"] else run)
    held = runner_bytes(model, run)
    warm = max(case["forward"], case["sampler"])
    own = f"{case['model']} {case['format']}" if "format" in case else case["model"]
    assert found.low_bytes - held == pytest.approx(warm, rel=FURTHER.get(own, TOLERANCE))
    assert (found.low_bytes - held) * (1 - TOLERANCE) <= case["allocated"] <= found.high_bytes - held
    if case["eager"]:
        assert (moment == "sampler") == (case["sampler"] >= case["forward"])


@pytest.mark.parametrize("case", [case for case in CASES if "cold" in case], ids=name_of)
def test_first_start_tunes_on_a_copy_of_the_embedding(case: dict[str, Any]) -> None:
    model, run = cut(case["model"], case["layers"]), run_of(case)
    found, held = activation_peak(model, run)[0], runner_bytes(model, run)
    first = max(case["cold"], case["sampler"])
    assert found.low_bytes - held <= first * (1 + TOLERANCE)
    assert first <= found.high_bytes - held
    if case["model"] not in UNEXPLAINED:
        own = FURTHER.get(case["model"], TOLERANCE)
        assert max(compile_bytes(model, run), case["forward"]) == pytest.approx(case["cold"], rel=own)
        assert found.bytes - held == pytest.approx(first, rel=own)


@pytest.mark.parametrize("case", [case for case in CASES if "runner" in case], ids=name_of)
def test_runner_holds_what_vllm_asked_for(case: dict[str, Any]) -> None:
    """To the byte, but for indices of recurrent states: up to 3 KiB a request."""
    model = cut(case["model"], case["layers"])
    recurrent = any(isinstance(layer.mixer, Recurrent) for layer in model.geometry.layers)
    assert 0 <= case["runner"] - runner_bytes(model, run_of(case)) <= 3200 * case["seqs"] * recurrent


def test_sampler_is_arithmetic_on_the_vocabulary() -> None:
    """1,024 requests of a vocabulary of 128,256, after a pass over 8,192 tokens of 4,096."""
    model = resolve("llama-3.1-8b")
    run = VllmRun(dtype="bfloat16", max_num_batched_tokens=8192, max_num_seqs=1024, max_model_len=8192)
    found, moment = activation_peak(model, run)
    logits = 1024 * 128256 * (2 + 4 + 4 + 4)  # bfloat16; a copy in float32, masked, its softmax
    states = (8192 + 1024) * 4096 * 2
    assert moment == "sampler"
    assert found.bytes - runner_bytes(model, run) == logits + states + 2**20 + 45 * 1024 + 4


def test_defaults_follow_memory_but_for_an_a100() -> None:
    assert defaults(find_gpu("h100-80gb"), max_model_len=8192) == (8192, 1024)
    assert defaults(find_gpu("a100-80gb"), max_model_len=8192) == (2048, 256)
    assert defaults(find_gpu("b200"), max_model_len=8192) == (16384, 1024)
    assert defaults(find_gpu("rtx-4090"), max_model_len=8192) == (2048, 256)
    assert defaults(custom_gpu(100 * 2**30), max_model_len=8192) == (8192, 1024)
    assert defaults(None, max_model_len=8192) == (2048, 256)
    assert defaults(None, max_model_len=4) == (1024, 256)  # 256 sequences of 4 tokens


def test_captured_batches_are_vllms() -> None:
    """Of 0.33 itself: PIECEWISE=51 and FULL=35 are what it logs for 256 sequences."""
    run = VllmRun(dtype="bfloat16", max_num_batched_tokens=2048, max_num_seqs=256, max_model_len=4096)
    sizes = capture_sizes(run)
    assert len(sizes) == 51
    assert (sizes[:4], sizes[-1]) == ((1, 2, 4, 8), 512)
    assert sum(size <= 256 for size in sizes) == 35
    assert capture_sizes(replace(run, max_num_seqs=1)) == (1, 2)
    assert capture_sizes(replace(run, max_num_seqs=1024, capability=(10, 0)))[-1] == 1024
    assert capture_sizes(replace(run, enforce_eager=True)) == ()


def test_no_graphs_without_capture() -> None:
    run = VllmRun(
        dtype="bfloat16", max_num_batched_tokens=2048, max_num_seqs=256, max_model_len=4096, enforce_eager=True
    )
    assert cuda_graph_bytes(resolve("llama-3.1-8b"), run).high_bytes == 0
    assert non_torch_bytes(run, None).bytes < non_torch_bytes(replace(run, tensor_parallel_size=2), None).bytes


def test_a_type_that_was_not_recorded_is_refused() -> None:
    run = VllmRun(dtype="bfloat16", max_num_batched_tokens=2048, max_num_seqs=256, max_model_len=4096)
    model = resolve("llama-3.1-8b")
    model = replace(model, config={**model.config, "model_type": "nemotron"})
    with pytest.raises(UllageError, match="nemotron"):
        activation_peak(model, run)
