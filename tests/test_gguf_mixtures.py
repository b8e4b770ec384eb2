"""GGUF mixtures against llama.cpp's own converter and quantiser, run over whole models (record_gguf_mixtures.py)."""

import json
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest

from analytic.errors import UllageError
from analytic.formats import gguf_mixtures
from analytic.formats.ggml import tensor_bytes
from analytic.models.as_gguf import ARCHITECTURES, converted, facts_of
from analytic.models.model import Model
from analytic.models.resolve import resolve
from analytic.weights import weigh

RECORDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "gguf_mixtures.json").read_text())[
    "models"
]


@cache
def model(name: str) -> Model:
    """As it was recorded: with what ``published`` says of rotary scaling, and no other."""
    found = resolve(name)
    config: dict[str, Any] = {**found.config, "rope_scaling": None, **RECORDED[name]["published"]}
    if "text_config" in config:
        config["text_config"] = {**config["text_config"], "rope_scaling": None}
    return replace(found, config=config)


@pytest.mark.parametrize("name", RECORDED)
def test_a_model_is_converted_as_llama_cpp_converts_it(name: str) -> None:
    ours = Counter(
        (re.sub(r"^blk\.\d+", "blk.{}", tensor.name), tensor.shape, tensor.type.name)
        for tensor in converted(model(name), dtype="bfloat16")
    )
    theirs = {(name, tuple(shape), kind): count for name, shape, kind, count in RECORDED[name]["converted"]}
    assert _matrices(ours) == _matrices(theirs)
    assert _vector_elements(ours) == _vector_elements(theirs)


def _matrices(tensors: dict[Any, int]) -> dict[Any, int]:
    return {key: count for key, count in tensors.items() if key[2] != "F32"}


def _vector_elements(tensors: dict[Any, int]) -> int:
    return sum(prod(shape) * count for (_, shape, kind), count in tensors.items() if kind == "F32")


@pytest.mark.parametrize("name", RECORDED)
def test_a_mixture_gives_each_tensor_the_type_that_llama_quantize_gives_it(name: str) -> None:
    whole, facts = converted(model(name), dtype="bfloat16"), facts_of(model(name))
    for mixture, said in RECORDED[name]["mixtures"].items():
        ours = gguf_mixtures.quantized(whole, mixture, facts)
        assert Counter(tensor.type.name for tensor in ours) == said["types"], mixture
        mib = sum(tensor_bytes(tensor.type, tensor.shape, tensor.name) for tensor in ours) / 2**20
        assert mib == pytest.approx(said["mib"], abs=0.0051), mixture


def test_every_mixture_was_made() -> None:
    assert all({"F32", *record["mixtures"]} == set(gguf_mixtures.DEFAULTS) for record in RECORDED.values())


def test_every_family_was_converted_by_llama_cpp() -> None:
    assert {model(name).geometry.model_type for name in RECORDED} == set(ARCHITECTURES)


# llama.cpp 0.5, tools/quantize/README.md: Llama 3.1 8B, GiB.
PUBLISHED = {
    "IQ1_S": 1.87, "IQ1_M": 2.01, "IQ2_XXS": 2.23, "IQ2_XS": 2.42, "IQ2_S": 2.56, "IQ2_M": 2.74, "IQ3_XXS": 3.04,
    "IQ3_XS": 3.27, "IQ3_S": 3.42, "IQ3_M": 3.52, "IQ4_XS": 4.17, "IQ4_NL": 4.38, "Q2_K_S": 2.78, "Q2_K": 2.95,
    "Q3_K_S": 3.41, "Q3_K_M": 3.74, "Q3_K_L": 4.02, "Q4_K_S": 4.36, "Q4_K_M": 4.58, "Q5_K_S": 5.21, "Q5_K_M": 5.33,
    "Q6_K": 6.14, "Q8_0": 7.95, "F16": 14.96,
}  # fmt: skip


@pytest.mark.parametrize("mixture", PUBLISHED)
def test_sizes_are_those_that_llama_cpp_publishes(mixture: str) -> None:
    weights = weigh(model("llama-3.1-8b"), dtype="float16", quantization=mixture)
    assert weights.bytes / 2**30 == pytest.approx(PUBLISHED[mixture], abs=0.0051)


def test_llama_cpp_converts_fp8_checkpoints_and_no_packed_ones() -> None:
    # bartowski/deepseek-ai_DeepSeek-V3-0324-GGUF lists Q4_K_M at 404.43 GB.
    assert weigh(resolve("deepseek-v3"), dtype="bfloat16", quantization="Q4_K_M").bytes / 1e9 == pytest.approx(
        404.4, abs=0.1
    )
    with pytest.raises(UllageError, match="mxfp4, which transformers does not quantise again"):
        weigh(resolve("gpt-oss-20b"), dtype="bfloat16", quantization="Q4_K_M")


def test_a_family_that_was_never_converted_is_refused_by_name() -> None:
    with pytest.raises(UllageError, match=r"how llama\.cpp converts 'opt' is not known"):
        weigh(resolve("opt-6.7b"), dtype="float16", quantization="Q4_K_M")
