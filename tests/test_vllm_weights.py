"""Held to what vLLM 0.33.0's own loader held of the same models (``record_vllm_weights.py``)."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from analytic.errors import UllageError
from analytic.loaded import Loaded
from analytic.loaded.vllm import vllm_weights
from analytic.models import catalog
from analytic.models.meta import from_config
from analytic.models.model import Model
from analytic.models.twin import twin, twin_config

RECORDED = json.loads((Path(__file__).parent / "data" / "vllm_weights.json").read_text("utf-8"))
FORMATS, CASES = RECORDED["formats"], RECORDED["cases"]
ROUTED = ("qwen3-30b-a3b", "mixtral-8x7b", "phi-3.5-moe", "glm-4.5-air", "qwen3-next-80b-a3b", "llama-4-scout")
HALVES = ("float16", "bfloat16")
BEYOND = {
    ("gemma-4-26b-a4b", None),  # norms without a weight, keys a second time as values: one model is no rule
    ("deepseek-v2-lite", "fp8-blocks", 90),  # 10,944 outputs are no multiple of 128: tiles over two matrices
    ("deepseek-v2-lite", "fp8-blocks", 100),  # nor are as many inputs: another kernel
    *(("falcon-7b", made) for made in ("w4a16", "modelopt-fp8")),  # FalconLinear, which some tools leave out
    *((model, "modelopt-fp8", 100) for model in ROUTED),
    *((model, "w4a16", 90) for model in ("qwen3-next-80b-a3b", "qwen3.5-9b")),  # 32 or 64 rows: Marlin pads
    ("qwen3-30b-a3b", "fp8-static", 100),  # the kernel depends on the routing
    *(("qwen3-30b-a3b", made, 120) for made in ("ct-nvfp4", "fp8-static", "fp8-blocks", "nvfp4", "modelopt-fp8")),
    ("qwen3-30b-a3b", "fp8_per_block", 120),
    *(
        (model, made, 120)
        for model, made in (("deepseek-v3", None), ("minimax-m2.5", None), ("deepseek-v2-lite", "fp8-blocks"))
    ),
    *((model, "ct-fp8", 86) for model in ("llama-3.1-8b", "qwen3-30b-a3b", "qwen2.5-0.5b")),  # no row for one format
}
"""What was recorded and is refused: model, format and, with one, capability."""
PRESETS = {
    "gptq-int4": "gptq",
    "gptq-int8": "gptq-int8",
    "awq": "awq",
    "w4a16": "w4a16",
    "w4a16-asym": "w4a16-asym",
} | {name: name for name in ("w8a16", "w8a8")}
"""What ``--quantization`` makes of a model, and the recorded format that is the same."""


def name_of(case: dict[str, Any]) -> str:
    keys = ("model", "layers", "dtype", "capability", "format", "quantization")
    rope = case.get("config", {}).get("rope_scaling", {})
    said = [*(case.get(key) for key in keys), rope.get("rope_type", rope.get("type"))]
    return "-".join(str(part) for part in said if part)


def is_beyond(case: dict[str, Any]) -> bool:
    made = case.get("format") or case.get("quantization")
    return bool({(case["model"], made), (case["model"], made, case["capability"])} & BEYOND)


COVERED = [case for case in CASES if "bytes" in case and not is_beyond(case)]
REFUSED = [case for case in CASES if "refused" in case or ("bytes" in case and is_beyond(case))]


@cache
def cut(name: str, layers: int | None) -> Model:
    """A model of the catalogue, with the config that was recorded."""
    whole = replace(catalog.load(name), source="local", config=RECORDED["configs"][name])
    return whole if layers is None else twin(whole, layers=layers)


def model_of(case: dict[str, Any]) -> Model:
    """The recorded model, as its config.json gives it."""
    model = cut(case["model"], case["layers"])
    if "format" in case:
        config = twin_config(RECORDED["configs"][case["model"]], layers=case["layers"])
        return from_config({**config, "quantization_config": FORMATS[case["format"]]}, id=model.id)
    changed = case.get("config", {})
    if "text_config" in model.config:
        changed = {"text_config": {**model.config["text_config"], **changed}}  # type: ignore[dict-item]
    return replace(model, config={**model.config, **changed})


def loaded(case: dict[str, Any]) -> Loaded:
    (gpu,) = vllm_weights(
        model_of(case),
        dtype=case["dtype"],
        quantization=case.get("quantization"),
        capability=divmod(case["capability"], 10),
    )
    return gpu


def find(**wanted: Any) -> dict[str, Any]:
    return next(case for case in CASES if all(case.get(key) == value for key, value in wanted.items()))


def changes_of(name: str, **request: Any) -> dict[str, int]:
    (gpu,) = vllm_weights(cut(name, None), **{"dtype": "bfloat16", "quantization": None, **request})
    return {change.what: change.bytes for change in gpu.changes}


def test_much_is_recorded():
    assert len(COVERED) >= 350
    assert {case["class"] for case in COVERED} >= {"LlamaForCausalLM", "DeepseekV3ForCausalLM", "GptOssForCausalLM"}


@pytest.mark.parametrize("case", COVERED, ids=name_of)
def test_weights_are_what_vllm_holds(case):
    assert loaded(case).bytes == case["bytes"]


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_what_vllm_refuses_or_no_rule_covers_is_refused(case):
    with pytest.raises(UllageError) as caught:
        loaded(case)
    assert caught.value.hint


@pytest.mark.parametrize("case", COVERED[::7], ids=name_of)
def test_changes_are_all_that_differs_from_the_checkpoint(case):
    whole = loaded(case)
    assert all(change.bytes for change in whole.changes)
    assert whole.bytes - sum(change.bytes for change in whole.changes) > 0.5 * whole.bytes


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("capability", [80, 90])
def test_a_preset_is_the_checkpoint_that_it_would_make(preset, capability):
    case = find(model="llama-3.1-8b", format=PRESETS[preset], capability=capability)
    (gpu,) = vllm_weights(
        cut("llama-3.1-8b", 2), dtype="bfloat16", quantization=preset, capability=divmod(capability, 10)
    )
    assert gpu.bytes == case["bytes"]


def test_a_rotary_table_has_a_row_a_position():
    assert changes_of("llama-3.2-1b") == {
        "scales of queries, keys, values and probabilities": 16 * 4 * 4,  # 16 layers
        "rotary table of 131,072 positions": 131_072 * 64 * 2,
    }


def test_a_vocabulary_is_padded_to_64():
    assert changes_of("gpt2")["vocabulary padded to a multiple of 64"] == (50_304 - 50_257) * 768 * 2  # tied: once


def test_a_latent_is_absorbed_without_a_copy_unless_it_is_packed():
    absorbed = "W_UK_T and W_UV, dequantised beside kv_b_proj"
    assert absorbed not in changes_of("deepseek-v2")
    assert changes_of("deepseek-v3", capability=(9, 0))[absorbed] == 61 * 128 * (128 + 128) * 512 * 2


def test_routers_of_glm_are_in_float32():
    assert changes_of("glm-4.5")["gate in float32"] == 89 * 160 * 5120 * (4 - 2)


def test_upcasts_of_transformers_are_not_vllms():
    gpt_oss = cut("gpt-oss-20b", None)
    halves = [vllm_weights(gpt_oss, dtype=dtype, quantization=None, capability=(9, 0)) for dtype in HALVES]
    assert halves[0] == halves[1]  # transformers holds its norms in float32 beside float16


def test_a_bias_that_the_checkpoint_has_in_float32_is_no_change():
    assert not [what for what in changes_of("deepseek-v3", capability=(9, 0)) if "float32" in what]


def llama(**changed: Any) -> Model:
    model = cut("llama-3.1-8b", 2)
    return replace(model, config={**model.config, **changed})


def packed(format: str) -> Model:
    return model_of(find(model="llama-3.1-8b", format=format))


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        (lambda: llama(model_type="cohere2", num_key_value_heads=8), {}, "cohere2"),
        (lambda: cut("gemma-4-26b-a4b", None), {}, "gemma4_text"),
        (llama, {"dtype": "int8"}, "int8"),
        (llama, {"quantization": "bnb-nf4", "capability": (9, 0)}, "bnb-nf4"),
        (llama, {"quantization": "mlx-4bit"}, "mlx"),
        (llama, {"quantization": "q4_k_m", "capability": (9, 0)}, "GGUF"),
        (lambda: packed("gptq"), {}, "depends on the GPU"),
        (lambda: packed("gptq"), {"capability": (7, 5)}, "7.5"),
        (lambda: packed("gptq"), {"capability": (9, 0), "dtype": "float32"}, "float32"),
        (lambda: packed("gptq-ordered"), {"capability": (9, 0)}, "desc_act"),
        (lambda: packed("gptq-asymmetric"), {"capability": (9, 0)}, "sym"),
        (lambda: packed("bitsandbytes"), {"capability": (9, 0)}, "bnb"),
        (lambda: packed("fp8-blocks"), {"capability": (9, 0), "quantization": "none"}, "dequantise"),
        (lambda: cut("mixtral-8x7b", 2), {"capability": (9, 0), "quantization": "fp8"}, "mixtral"),
        (lambda: llama(rope_scaling={"rope_type": "spiral"}), {}, "spiral"),
        (lambda: llama(rope_scaling={"rope_type": "yarn", "factor": 4.0}), {}, "original_max_position_embeddings"),
        (lambda: llama(rope_scaling=[4]), {}, "rope_parameters"),
        (lambda: llama(dual_chunk_attention_config={"chunk_size": 8192}), {}, "dual chunk"),
        (lambda: cut("nemotron-3-nano-30b-a3b", None), {}, "1856"),
    ],
)
def test_what_is_not_known_is_refused_by_name(model, options, named):
    with pytest.raises(UllageError) as caught:
        vllm_weights(model(), **{"dtype": "bfloat16", "quantization": None, **options})
    assert named in caught.value.message
    assert caught.value.hint
