"""The truth is the real library: models loaded by from_pretrained on the CPU, tensor by tensor."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import TINY, tiny_config

from analytic.errors import UllageError
from analytic.models import catalog
from analytic.models.meta import from_config
from analytic.models.model import Model
from analytic.weights import weigh

FORMATS = (None, "bnb-int8", "bnb-nf4", "bnb-fp4", "bnb-nf4-dq", "bnb-fp4-dq")


def quantization_config(name: str | None) -> Any:
    if name is None:
        return None
    if name == "bnb-int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    _, kind, *double = name.split("-")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=bool(double)
    )


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def saved(model_type: str) -> Path:
        config = tiny_config(model_type)
        folder = tmp_path_factory.mktemp(model_type)
        torch.manual_seed(0)
        resolved = transformers.AutoConfig.for_model(**config)
        model = getattr(transformers, config["architectures"][0])._from_config(resolved, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        return folder

    return saved


def estimated(model_type: str, monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> Model:
    monkeypatch.setenv("ULLAGE_CACHE_DIR", str(cache_dir))
    return from_config(tiny_config(model_type), id=model_type)


def side_tensors(parameter: Any) -> dict[str, torch.Tensor]:
    """What bitsandbytes hangs beside a quantised weight."""
    state = getattr(parameter, "quant_state", None)
    scales = getattr(parameter, "SCB", None)
    if scales is not None:
        return {"SCB": scales}
    if state is None:
        return {}
    sides = {"absmax": state.absmax, "code": state.code}
    if state.nested:
        sides |= {"offset": state.offset, "nested_absmax": state.state2.absmax, "nested_code": state.state2.code}
    return sides


def resident_bytes(model: Any) -> dict[str, int]:
    """Bytes of every parameter and persistent buffer with what stands beside it, ties once."""
    persistent = set(model.state_dict())
    tensors = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in persistent)]
    return {
        name: sum(t.untyped_storage().nbytes() for t in (tensor, *side_tensors(tensor).values()))
        for name, tensor in tensors
    }


def estimated_bytes(model: Model, dtype: str, quantization: str | None) -> dict[str, int]:
    rows = weigh(model, dtype=dtype, quantization=quantization).served
    return {
        row.group.name.replace("{}", str(layer)): row.each_bytes
        for row in rows
        if row.group.persistent
        for layer in (row.group.layers or (0,))
    }


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("model_type", TINY)
def test_every_tensor_has_the_bytes_that_a_real_load_leaves(
    model_type: str, quantization: str | None, checkpoints: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoints(model_type),
        dtype=torch.bfloat16,
        quantization_config=quantization_config(quantization),
        device_map={"": "cpu"},
    )
    ours = estimated_bytes(estimated(model_type, monkeypatch, tmp_path), "bfloat16", quantization)
    assert ours == resident_bytes(real)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("model_type", ["gpt_oss", "deepseek_v3", "llama"])
def test_tensors_that_transformers_keeps_in_float32(
    model_type: str, dtype: str, checkpoints: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = transformers.AutoModelForCausalLM.from_pretrained(checkpoints(model_type), dtype=dtype)
    assert estimated_bytes(estimated(model_type, monkeypatch, tmp_path), dtype, None) == resident_bytes(real)


@pytest.mark.parametrize("name", [entry.name for entry in catalog.entries()])
def test_the_real_int8_quantiser_converts_the_modules_that_the_catalogue_marks(name: str) -> None:
    from transformers.initialization import no_tie_weights
    from transformers.quantizers.auto import AutoHfQuantizer

    from profiler.models import build

    model = catalog.load(name)
    with no_tie_weights():  # from_pretrained ties when the weights are there
        real = build(model.config)
    quantizer = AutoHfQuantizer.from_config(quantization_config("bnb-int8"), pre_quantized=False)
    quantizer._process_model_before_weight_loading(real, device_map={"": "cuda"})
    converted = {n + ".weight" for n, m in real.named_modules() if type(m).__name__ == "Linear8bitLt"}
    marked = {re.sub(r"\{\}", str(i), g.name) for g in model.tensors if g.converts for i in g.layers or (0,)}
    assert marked == converted


def test_fused_experts_and_the_head_stay_in_the_serving_dtype() -> None:
    weights = weigh(catalog.load("qwen3-30b-a3b"), dtype="bfloat16", quantization="bnb-nf4")
    # 48 layers x 128 experts x (2 * 768 x 2048 and 2048 x 768) x 2 bytes
    assert weights.unconverted["model.layers.{}.mlp.experts.gate_up_proj"] == 48 * 128 * 1536 * 2048 * 2
    assert weights.unconverted["model.layers.{}.mlp.experts.down_proj"] == 48 * 128 * 2048 * 768 * 2
    assert weights.unconverted["lm_head.weight"] == 151936 * 2048 * 2


def test_llama_2_70b_in_bfloat16_has_the_bytes_of_its_published_index() -> None:
    # 68,976,648,192 parameters x 2 bytes; meta-llama/Llama-2-70b-hf's index says total_size 137,953,296,384
    assert weigh(catalog.load("llama-2-70b"), dtype="bfloat16", quantization=None).bytes == 137_953_296_384


def test_a_published_quantised_model_is_not_quantised_again() -> None:
    with pytest.raises(UllageError, match="fp8"):
        weigh(catalog.load("deepseek-v3"), dtype="bfloat16", quantization="bnb-nf4")


def test_a_format_whose_dequantised_size_is_unknown_is_not_dequantised() -> None:
    from dataclasses import replace

    model = catalog.load("llama-2-7b")
    packed = replace(model, config={**model.config, "quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(UllageError, match="gptq"):
        weigh(packed, dtype="bfloat16", quantization="none")
