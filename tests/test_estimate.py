from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations, pairwise
from math import isqrt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analytic
from analytic.errors import UllageError, UsageError
from analytic.estimator import largest, run
from analytic.hardware import custom_gpu
from analytic.ledger import ALLOCATED, COMPONENTS
from analytic.models import catalog
from analytic.models.model import Model
from analytic.placement import balance
from analytic.report.estimate import document as estimate_document
from analytic.request import Request

GIB = 2**30


def test_llama_2_70b_needs_two_80_gb_gpus_at_16_bits_where_the_rule_says_three() -> None:
    answer = analytic.estimate("llama-2-70b", gpu="h100-80gb")
    weights = 68_976_648_192 * 2
    # 80 layers x (keys and values) x 8 heads x 128 x 2,048 tokens x 2 bytes, at the peak of the prefill
    state = 80 * 2 * 8 * 128 * 2048 * 2
    assert answer.fullest.components["weights"].bytes == weights
    assert answer.fullest.components["sequence_state"].bytes == state
    assert not answer.fits
    assert answer.gpus_needed == 2
    assert answer.rule_of_thumb.gpus_needed == 2  # 165.5 GB of 85.5 GB GPUs; of 80 GB ones it is three


def test_the_totals_are_sums_of_the_components() -> None:
    row = analytic.estimate("mixtral-8x7b", gpu="h200", quantization="bnb-int8", batch_size=3).fullest
    allocated = sum(row.components[name].bytes for name in ALLOCATED)
    assert row.allocated.bytes == allocated
    assert row.device.bytes == sum(row.components[name].bytes for name in COMPONENTS)
    assert row.device.low_bytes <= row.device.bytes <= row.device.high_bytes


def test_a_token_of_context_costs_what_the_heads_hold() -> None:
    # 32 layers x (keys and values) x 8 heads x 128 x 2 bytes
    assert analytic.estimate("llama-3.1-8b").sequence_state_bytes_per_token == 32 * 2 * 8 * 128 * 2


def test_what_is_given_splits_into_as_many_rows_and_keeps_every_weight() -> None:
    whole = analytic.estimate("llama-2-70b", gpu="h100-80gb")
    split = analytic.estimate("llama-2-70b", gpu="h100-80gb:3")
    assert [row.rank for row in split.ledgers] == ["tp0/pp0", "tp0/pp1", "tp0/pp2"]
    assert split.ledgers[0].layers[0] == 0  # type: ignore[index]
    assert all(a.layers[1] == b.layers[0] for a, b in pairwise(split.ledgers))  # type: ignore[index]
    for component in ("weights", "sequence_state"):
        total = sum(row.components[component].bytes for row in split.ledgers)  # type: ignore[index]
        assert total == whole.fullest.components[component].bytes  # type: ignore[index]


def test_the_gpus_needed_hold_the_split_and_one_fewer_do_not() -> None:
    answer = analytic.estimate("llama-3.1-405b", gpu="h100-80gb")
    assert answer.gpus_needed is not None
    assert analytic.estimate("llama-3.1-405b", gpu="h100-80gb", gpus=answer.gpus_needed).fits
    assert not analytic.estimate("llama-3.1-405b", gpu="h100-80gb", gpus=answer.gpus_needed - 1).fits


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    answer = analytic.estimate("llama-3.1-8b", gpu="l4")
    assert answer.max_sequences
    assert analytic.estimate("llama-3.1-8b", gpu="l4", batch_size=answer.max_sequences).fits
    assert not analytic.estimate("llama-3.1-8b", gpu="l4", batch_size=answer.max_sequences + 1).fits


def test_no_number_of_gpus_helps_where_one_layer_is_too_much() -> None:
    from analytic.hardware import custom_gpu

    answer = analytic.estimate("llama-2-70b", gpu=custom_gpu(GIB))
    assert answer.gpus_needed is None
    assert answer.fits is False


def test_every_catalogue_model_has_an_answer() -> None:
    for entry in catalog.entries():
        dtype = "auto" if catalog.load(entry.name).dtype else "bfloat16"
        document = estimate_document(analytic.estimate(entry.name, gpu="h200", dtype=dtype))
        assert document["model"]["parameters"] == entry.parameters, entry.name
        assert document["per_gpu"][0]["components"]["weights"]["bytes"] > 0, entry.name


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "gemma-3-4b", "mistral-7b-v0.1", "deepseek-v2-lite"])
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 300),
    prompt=st.integers(1, 40_000),
    output=st.integers(1, 4_000),
    more=st.integers(1, 500),
    quantization=st.sampled_from([None, "bnb-int8", "bnb-nf4"]),
    attention=st.sampled_from(["sdpa", "eager"]),
)
def test_more_work_never_needs_less_memory(
    name: str, batch: int, prompt: int, output: int, more: int, quantization: str | None, attention: Any
) -> None:
    model = catalog.load(name)
    asked = Request(
        batch_size=batch,
        prompt_tokens=prompt,
        output_tokens=output,
        quantization=quantization,
        attention=attention,
    )
    small = run(model, asked).fullest
    broad, longer, further = (
        run(model, replace(asked, **{field: getattr(asked, field) + more})).fullest
        for field in ("batch_size", "prompt_tokens", "output_tokens")
    )
    assert max(phase.bytes for phase in broad.phases) > max(phase.bytes for phase in small.phases)
    assert broad.device.bytes >= small.device.bytes  # what loading has left cached may be enough for either
    assert further.device.bytes >= small.device.bytes
    assert longer.allocated.bytes >= small.allocated.bytes
    if all(window is None for window in windows(model)):  # a cache that ends at its window outgrows less
        assert longer.device.bytes >= small.device.bytes


def windows(model: Model) -> list[int | None]:
    return [getattr(layer.mixer, "window_tokens", None) for layer in model.geometry.layers]


@pytest.mark.parametrize(
    ("name", "gpu", "flags"),
    [
        ("qwen3-0.6b", "a100-80gb-2g.20gb", {"batch_size": 64, "prompt_tokens": 512, "output_tokens": 2}),
        ("command-r", "rtx-pro-6000", {"batch_size": 8, "prompt_tokens": 512, "output_tokens": 2}),
        ("llama-3.1-8b", "l4:3", {}),
    ],
)
def test_the_largest_batch_and_context_fit_and_one_more_does_not(name: str, gpu: str, flags: dict[str, Any]) -> None:
    answer = analytic.estimate(name, gpu=gpu, **flags)
    assert answer.max_sequences
    assert answer.max_tokens
    prompt = answer.max_tokens - answer.request.output_tokens
    for field, value in (("batch_size", answer.max_sequences), ("prompt_tokens", prompt)):
        assert analytic.estimate(name, gpu=gpu, **{**flags, field: value}).fits
        assert not analytic.estimate(name, gpu=gpu, **{**flags, field: value + 1}).fits


def test_a_search_that_meets_no_limit_of_memory_ends_at_the_largest_that_may_be_asked() -> None:
    answer = analytic.estimate("gpt2", gpu=custom_gpu(10**17), dtype="float16", prompt_tokens=1, output_tokens=1)
    assert answer.max_sequences == 1_000_000


@pytest.mark.parametrize(
    ("native", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4}, 4),
        ({"quant_method": "gptq", "bits": 3}, 4),  # the next that the rule knows
        ({"quant_method": "gptq", "bits": 8}, 8),
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 8),
    ],
)
def test_the_rule_of_thumb_takes_the_published_precision(native: dict[str, Any], bits: int) -> None:
    llama = catalog.load("tinyllama-1.1b")
    model = replace(llama, config={**llama.config, "quantization_config": native})
    assert run(model, Request()).rule_of_thumb.bits == bits
    assert run(llama, Request()).rule_of_thumb.bits == 16


@given(sizes=st.lists(st.integers(0, 100), min_size=1, max_size=9), data=st.data())
def test_no_cut_of_the_layers_is_more_even_than_the_balanced_one(sizes: list[int], data: st.DataObject) -> None:
    gpus = data.draw(st.integers(1, len(sizes)))

    def fullest(cuts: Iterable[int]) -> int:
        return max(sum(sizes[first:end]) for first, end in pairwise([0, *cuts, len(sizes)]))

    spans = balance(sizes, gpus=gpus)
    assert [first for first, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert len(spans) == gpus
    assert spans[-1][1] == len(sizes)
    assert all(first < end for first, end in spans)
    every = combinations(range(1, len(sizes)), gpus - 1)
    assert fullest(first for first, _ in spans[1:]) == min(map(fullest, every))


@pytest.mark.parametrize(
    ("name", "gpu", "flags"),
    [
        ("llama-2-70b", "h100-80gb", {}),
        ("llama-2-70b", "rtx-4090", {"batch_size": 8}),
        ("mixtral-8x7b", "a100-80gb", {"batch_size": 32, "prompt_tokens": 8192}),
        ("gemma-2-27b", "l4", {"quantization": "bnb-int8"}),
        ("deepseek-v3", "h200", {}),
    ],
)
def test_the_fewest_gpus_hold_it_and_one_less_does_not(name: str, gpu: str, flags: dict[str, Any]) -> None:
    needed = analytic.estimate(name, gpu=gpu, **flags).gpus_needed
    assert needed is not None
    assert analytic.estimate(name, gpu=gpu, gpus=needed, **flags).fits
    assert not any(analytic.estimate(name, gpu=gpu, gpus=fewer, **flags).fits for fewer in range(1, needed))


@pytest.mark.parametrize(("name", "gpus"), [("llama-2-70b", 8), ("gemma-3-1b", 26), ("qwen3-30b-a3b", 5)])
def test_gpus_together_hold_each_tensor_once(name: str, gpus: int) -> None:
    # a tied head stays with the embedding on the first GPU
    def weights(gpus: int) -> int:
        return sum(row.components["weights"].bytes for row in analytic.estimate(name, gpus=gpus).ledgers)

    assert weights(gpus) == weights(1)


RISING: dict[str, Callable[[int], int]] = {
    "a line": lambda n: n,
    "a curve": lambda n: n**2 // 1000,
    "another": lambda n: 100 * isqrt(n),
    "steps": lambda n: n // 512,
    "one step": lambda n: 10**9 * (n > 700),
}


@given(threshold=st.integers(0, 10**6), start=st.integers(1, 10**4), shape=st.sampled_from(sorted(RISING)))
def test_the_search_finds_the_threshold(threshold: int, start: int, shape: str) -> None:
    rising = RISING[shape]
    for limit in (10**6, 5000):
        found = largest(lambda n: rising(n) - rising(threshold), start=start, limit=limit)
        assert rising(max(found, 1)) <= rising(threshold) or found == 0
        assert found == limit or rising(found + 1) > rising(threshold)


def test_the_search_takes_few_calls_along_a_line() -> None:
    asked: list[int] = []
    assert largest(lambda n: asked.append(n) or 3 * n - 100_000, start=1, limit=10**8) == 33_333
    assert len(asked) < 8


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"prompt_tokens": 10**12},
        {"output_tokens": 0},
        {"dtype": "float8"},
        {"quantization": "int3"},
        {"attention": "flash"},
        {"engine": "tgi"},
        {"ubatch_size": 512},
        {"engine": "vllm", "device_map": "auto"},
        {"double_quant": True},
        {"gpu_memory_utilization": 0.0},
        {"gpu_memory_utilization": 1.5},
        {"gpu": "h1000"},
        {"gpu": "h100-80gb:0"},
        {"gpu": "h100-80gb:2", "gpus": 3},
        {"gpus": 0},
        {"colour": "blue"},
    ],
)
def test_what_cannot_be_meant_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        analytic.estimate("llama-2-7b", **bad)  # type: ignore[arg-type]


def test_a_cache_in_another_dtype_is_refused_by_name() -> None:
    with pytest.raises(UllageError, match="dynamic cache"):
        analytic.estimate("llama-2-7b", kv_cache_dtype="float32")


def test_more_gpus_than_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="33 GPUs for 32 layers"):
        analytic.estimate("llama-2-7b", gpu="h100-80gb:33")


def test_an_fp8_checkpoint_is_served_dequantised_below_8_9() -> None:
    on_a100 = analytic.estimate("deepseek-v3", gpu="a100-80gb")
    assert on_a100.request.quantization == "none"
    assert on_a100.fullest.components["weights"].bytes > 671_026_419_200 * 2
    assert any("8.9" in warning for warning in on_a100.warnings)
