"""Formats of checkpoints against libraries that stand beside test_checkpoint_formats.py's: recorded, or asked here."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_checkpoint_formats import SIZES, dense, holds, inner_bytes, named, recorded, stored

from analytic.errors import UllageError
from analytic.formats.fp8 import Fp8
from analytic.formats.registry import find_method
from analytic.formats.scheme import Scheme
from analytic.models.headers import from_headers
from analytic.models.model import Model
from analytic.models.resolve import resolve
from analytic.weights import weigh

MOE = {**SIZES, "head_dim": 64, "num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 128}

DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
}


def written(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes as a safetensors header names them."""
    return {name: (DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}


def read(header: Mapping[str, tuple[str, Any]], config: Mapping[str, Any], native: Mapping[str, Any]) -> Model:
    tensors = tuple(stored(name, dtype, shape) for name, (dtype, shape) in header.items())
    said = json.loads(json.dumps({**config, "quantization_config": native}))
    return from_headers(tensors, said, id="tiny", source="local")


def plain_config(real: Any) -> dict[str, Any]:
    return json.loads(real.config.to_json_string(use_diff=False))


def moe() -> Any:
    with torch.device("meta"):
        return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**MOE)).to(torch.bfloat16)


# AutoRound


def auto_round(kind: str) -> list[Any]:
    """Cases of whole models, or of one matrix, by what they record."""
    cases = [case for case in recorded("auto_round") if kind in case]
    return [pytest.param(case, id=labelled(case)) for case in cases]


def labelled(case: dict[str, Any]) -> str:
    native, asked = case["quantization_config"], case.get("asked", {})
    made = native.get("packing_format") or native["quant_method"]
    return f"{made}-{asked.get('scheme') or native['bits']}-{native.get('group_size')}"


@pytest.mark.parametrize("case", auto_round("tensors"))
def test_matrices_are_packed_as_auto_round_exports_them(case: dict[str, Any]) -> None:
    native = case["quantization_config"]
    scheme = find_method(native["quant_method"]).read(native).scheme("model.layers.0.mlp.down_proj")
    assert scheme is not None
    holds_with_or_without_usual_parts(scheme, tuple(case["shape"]), case["tensors"])


def holds_with_or_without_usual_parts(scheme: Scheme, shape: tuple[int, ...], tensors: Mapping[str, Any]) -> None:
    """As `holds`; AutoRound leaves g_idx out in some packings."""
    usual = {p.suffix[1:]: (p.dtypes[0], p.shape) for p in scheme.parts(shape) if p.presence == "usual"}
    holds(scheme, shape, {**usual, **tensors})


@pytest.mark.parametrize("case", auto_round("header"))
def test_checkpoints_of_auto_round_are_read_to_the_byte(case: dict[str, Any]) -> None:
    header = {
        f"{module}.{tensor}": held
        for modules, tensors in case["header"]
        for module in modules
        for tensor, held in tensors.items()
    }
    real = dense() if case["model"] == "llama" else moe()
    model = read(header, plain_config(real) | {"architectures": [type(real).__name__]}, case["quantization_config"])
    weights = weigh(model, dtype="bfloat16", quantization=None)
    stored_bytes = sum(stored(name, *held).bytes for name, held in header.items())
    assert weights.bytes - widened(header, case["quantization_config"]) == model.stored_bytes == stored_bytes
    assert model.parameters == real.num_parameters()
    packed = [n for n in header if n.endswith((".qweight", ".weight_packed")) or header[n][0] in ("F8_E4M3", "U32")]
    packed = [n for n in packed if not n.endswith("weight_scale")]
    assert sum(g.count for g in model.tensors if g.pieces or g.stored.startswith("fp8-")) == len(packed)


def widened(header: Mapping[str, tuple[str, Any]], native: Mapping[str, Any]) -> int:
    """What transformers adds as it loads an fp8 checkpoint: FP8Linear's scales are float32, whatever the file's are."""
    scales = [stored(n, *held).bytes for n, held in header.items() if n.endswith("_scale_inv") and held[0] == "BF16"]
    return sum(scales) if native["quant_method"] == "fp8" else 0


# AWQ


@pytest.mark.parametrize("case", named(recorded("autoawq")))
def test_awq_is_laid_out_as_autoawq_does(case: dict[str, Any]) -> None:
    scheme = find_method("awq").read({"bits": case["bits"], "group_size": case["group_size"]}).default
    assert scheme is not None
    holds(scheme, tuple(case["shape"]), case["tensors"])


# fp8 as transformers holds it


def fp8(**said: Any) -> Any:
    return transformers.FineGrainedFP8Config(**said)


FP8 = {
    "tiles": {},
    "small-tiles": {"weight_block_size": [64, 32]},
    "tiles-ue8m0": {"scale_fmt": "ue8m0"},
    "mxfp8": {"scale_fmt": "ue8m0", "weight_block_size": [1, 32]},
    "tensor": {"weight_block_size": None},
    "tensor-ue8m0": {"weight_block_size": None, "scale_fmt": "ue8m0"},
    "static": {"activation_scheme": "static"},
    "experts-fp4": {"expert_dtype": "fp4"},
    "experts-fp4-ue8m0": {"expert_dtype": "fp4", "scale_fmt": "ue8m0"},
    "skipped": {"modules_to_not_convert": ["lm_head", "gate", "model.layers.0.self_attn"]},
}


@pytest.mark.parametrize("build", [dense, moe])
@pytest.mark.parametrize("said", FP8.values(), ids=FP8)
def test_fp8_checkpoints_are_as_transformers_modules_hold_them(said: dict[str, Any], build: Callable[[], Any]) -> None:
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    real, config = build().to("meta"), fp8(**{"modules_to_not_convert": ["lm_head", "gate"], **said})
    published, plain = real.num_parameters(), plain_config(real)
    skipped = [*config.modules_to_not_convert, "mlp.gate", "lm_head"]
    replace_with_fp8_linear(real, skipped, config, pre_quantized=True)
    header = written(real.state_dict())
    model = read(header, {**plain, "architectures": [type(real).__name__]}, config.to_dict())
    weights = weigh(model, dtype="bfloat16", quantization=None)
    assert weights.bytes == model.stored_bytes == sum(stored(n, *held).bytes for n, held in header.items())
    assert model.parameters == published


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
@pytest.mark.parametrize("written_as", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tile", [[128, 128], [64, 32]])
def test_scales_are_held_in_one_dtype_whatever_the_file_has(
    scale_fmt: str, written_as: torch.dtype, tile: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded by transformers, on a processor, which would dequantise if it were asked (DeepSeek-V3.1: ue8m0, F32)."""
    from safetensors.torch import save_file
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    real = dense().to("meta")
    config, plain = fp8(scale_fmt=scale_fmt, weight_block_size=tile, modules_to_not_convert=["lm_head"]), real.config
    said = {**plain_config(real), "architectures": ["LlamaForCausalLM"], "quantization_config": config.to_dict()}
    replace_with_fp8_linear(real, ["lm_head"], config, pre_quantized=True)
    names = {n: written_as if n.endswith("scale_inv") else t.dtype for n, t in real.state_dict().items()}
    ones = {n: torch.ones(t.shape).to(names[n]) for n, t in real.state_dict().items()}
    (tmp_path / "config.json").write_text(json.dumps({**said, "dtype": str(plain.dtype or torch.bfloat16)[6:]}))
    save_file(ones, tmp_path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda self, *args, **flags: None)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map={"": "cpu"})
    held = sum(t.untyped_storage().nbytes() for t in loaded.state_dict().values())
    assert weigh(resolve(str(tmp_path)), dtype="bfloat16", quantization=None).bytes == held


@pytest.mark.parametrize("shape", [(256, 512), (200, 96), (2, 256, 512)])
def test_mxfp8_says_its_tiles_and_its_scales_by_its_name(shape: tuple[int, ...]) -> None:
    scheme = find_method("mxfp8").read({"quant_method": "mxfp8", "ignored_layers": ["lm_head"]}).default
    assert isinstance(scheme, Fp8)
    (_, scales) = scheme.parts(shape)
    assert scales.shape == (*shape[:-1], shape[-1] // 32)
    assert scales.dtypes[:2] == ("F8_E8M0", "U8")


def test_an_embedding_of_fp8_has_one_scale() -> None:
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_embedding

    config = fp8(modules_to_convert=["embed_tokens"], modules_to_not_convert=["lm_head"])
    real = dense().to("meta")
    replace_with_fp8_embedding(real, config.modules_to_convert)
    plain, header = plain_config(real), written(real.state_dict())
    model = read(header, {**plain, "architectures": ["LlamaForCausalLM"]}, config.to_dict())
    weights = weigh(model, dtype="bfloat16", quantization=None)
    assert weights.by_format["fp8-tensor"] == 512 * 256 + 4
    assert weights.bytes == model.stored_bytes


# FBGEMM


LLAMA4 = {
    **{key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")},
    **{"num_key_value_heads": 2, "intermediate_size": 128, "intermediate_size_mlp": 512, "head_dim": 64},
    **{"num_local_experts": 2, "interleave_moe_layer_step": 1, "tie_word_embeddings": False},
}


def llama4() -> Any:
    with torch.device("meta"):
        return transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**LLAMA4)).to(torch.bfloat16)


@pytest.mark.parametrize("build", [dense, llama4])
def test_fbgemm_checkpoints_are_as_transformers_modules_hold_them(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import fbgemm_fp8

    monkeypatch.setattr(fbgemm_fp8, "get_quantize_fp8_per_row", lambda: None)  # CUDA's kernel: nothing is quantised
    real, native = build().to("meta"), {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}
    published, plain = real.num_parameters(), plain_config(real)
    fbgemm_fp8.replace_with_fbgemm_fp8_linear(real, ["lm_head", "router"], pre_quantized=True)
    header = written(real.state_dict())
    model = read(header, {**plain, "architectures": [type(real).__name__]}, native)
    weights = weigh(model, dtype="bfloat16", quantization=None)
    assert weights.bytes == model.stored_bytes == sum(stored(n, *held).bytes for n, held in header.items())
    assert model.parameters == published
    assert "fp8-row" in weights.by_format


# torchao


def torchao_native(config: Any) -> dict[str, Any]:
    return transformers.TorchAoConfig(config).to_dict()


def flat(weight: torch.Tensor) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What transformers writes of a weight of torchao's, by suffix."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    tensors, _ = flatten_tensor_state_dict({"m.weight": weight})
    return {name.removeprefix("m."): held for name, held in written(tensors).items()}


@pytest.mark.parametrize("case", [case for case in recorded("torchao_int4") if "tensors" in case])
def test_plain_int4_is_laid_out_as_torchao_quantises(case: dict[str, Any]) -> None:
    scheme = find_method("torchao").read({"quant_type": {"default": case["config"]}}).default
    assert scheme is not None
    holds(scheme, tuple(case["shape"]), case["tensors"])


@pytest.mark.parametrize("case", [case for case in recorded("torchao_int4") if "header" in case])
def test_plain_int4_checkpoints_are_read_to_the_byte(case: dict[str, Any]) -> None:
    config = {**plain_config(dense()), "architectures": ["LlamaForCausalLM"]}
    model = read(case["header"], config, case["quantization_config"])
    weights = weigh(model, dtype="bfloat16", quantization=None)
    assert weights.bytes == model.stored_bytes == sum(stored(n, *held).bytes for n, held in case["header"].items())
    assert model.parameters == dense().num_parameters()
    matrices = 256 * (2 * 256 + 2 * 128 + 3 * 512)
    assert weights.by_format["torchao-int4-g128"] == matrices // 2 + matrices // 128 * 2 * 2
    assert weigh(preset_model(), dtype="bfloat16", quantization="torchao-int4").bytes == weights.bytes


def preset_model() -> Model:
    real = dense()
    tensors = tuple(stored(n, *held) for n, held in written(dict(real.named_parameters())).items())
    config = {**plain_config(real), "architectures": ["LlamaForCausalLM"]}
    return from_headers(tensors, config, id="tiny", source="local")


@pytest.mark.parametrize("ntile", [8, 16])
@pytest.mark.parametrize("group", [32, 64, 128, 256])
@pytest.mark.parametrize("shape", [(64, 1024), (40, 2048), (2, 64, 1024)])
def test_int4_tiles_are_laid_out_as_torchao_packs(
    ntile: int, group: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quant_api import _int4_weight_only_quantize_tensor

    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda: (9, 0)
    )  # all that it asks of a GPU before it packs
    config = Int4WeightOnlyConfig(
        group_size=group, int4_packing_format="tile_packed_to_4d", int4_tile_packed_ntile=ntile
    )
    weight = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    tensors = flat(_int4_weight_only_quantize_tensor(weight, config))
    scheme = find_method("torchao").read(torchao_native(config)).default
    assert scheme is not None
    padded = (*shape[:-2], -(-shape[-2] // ntile) * ntile, shape[-1])
    holds(scheme, padded, tensors)
    made = scheme.parts(shape)
    assert [part.shape for part in made] == [size for _, size in tensors.values()]


def test_int4_words_keep_the_tensors_that_torchao_documents() -> None:
    """Only XPU and Ascend can pack them: the shapes are those that ``Int4PlainInt32Tensor`` documents."""
    from torchao.quantization import Int4PlainInt32Tensor, Int4WeightOnlyConfig

    words = torch.empty(256, 512 // 8, dtype=torch.int32)
    scale, zero = torch.empty(512 // 64, 256, dtype=torch.bfloat16), torch.empty(512 // 64, 256, dtype=torch.int8)
    tensors = flat(Int4PlainInt32Tensor(words, scale, zero, [1, 64], torch.Size((256, 512))))
    config = Int4WeightOnlyConfig(group_size=64, int4_packing_format="plain_int32")
    scheme = find_method("torchao").read(torchao_native(config)).default
    assert scheme is not None
    holds(scheme, (256, 512), tensors)


def test_torchao_configs_by_module(tmp_path: Path) -> None:
    from torchao import quantization as ao

    made = ao.FqnToConfig(
        {
            "model.layers.0.self_attn.q_proj": ao.Int8WeightOnlyConfig(),
            r"re:model\.layers\..+\.down_proj": ao.Float8WeightOnlyConfig(),
            "model.layers.0.mlp.up_proj": None,
            "_default": ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32)),
        }
    )
    dense().save_pretrained(tmp_path / "dense")
    real = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense",
        dtype=torch.bfloat16,
        quantization_config=transformers.TorchAoConfig(made),
        device_map={"": "cpu"},
    )
    real.save_pretrained(tmp_path / "packed")
    model = resolve(str(tmp_path / "packed"))
    weights = weigh(model, dtype="bfloat16", quantization=None)
    assert weights.bytes == model.stored_bytes == sum(inner_bytes(p) for p in real.parameters())
    assert model.parameters == dense().num_parameters()
    assert weights.by_format["torchao-int8"] == 256 * 256 + 256 * (4 + 1)  # q_proj; a row's scale and its zero point
    assert {"torchao-float8", "torchao-intx-g32"} <= weights.by_format.keys()


@pytest.mark.parametrize("name", ["Int4PreshuffledTensor", "IntxOpaqueTensor"])
def test_packings_that_are_refused_cannot_be_written_to_safetensors(name: str) -> None:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    fake = type(name, (torch.Tensor,), {})
    with pytest.raises(ValueError, match="Unsupported tensor type"):
        flatten_tensor_state_dict({"m.weight": torch.empty(2).as_subclass(fake)})


# What is not known


INT4 = {"_type": "Int4WeightOnlyConfig", "_version": 2}


@pytest.mark.parametrize(
    ("native", "said"),
    [
        ({"quant_method": "torchao", "quant_type": {"default": {**INT4, "_version": 1}}}, "_version cannot be 1"),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {**INT4, "_data": {"int4_packing_format": "marlin"}}},
            },
            "int4_packing_format cannot be 'marlin'",
        ),
        (
            {
                "quant_method": "torchao",
                "quant_type": {
                    "default": {**INT4, "_data": {"int4_packing_format": {"_type": "F", "_data": "PRESHUFFLED"}}}
                },
            },
            "int4_packing_format cannot be 'preshuffled': known: plain, plain_int32, tile_packed_to_4d",
        ),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Float8DynamicActivationInt4WeightConfig"}},
            },
            "int4_packing_format cannot be 'preshuffled'",
        ),
        (
            {
                "quant_method": "torchao",
                "quant_type": {
                    "default": {
                        "_type": "IntxWeightOnlyConfig",
                        "_data": {"intx_packing_format": "opaque_aten_kleidiai"},
                    }
                },
            },
            "intx_packing_format cannot be 'opaque_aten_kleidiai'",
        ),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "FqnToConfig"}}}, "fqn_to_config cannot be"),
        ({"quant_method": "fp8", "expert_dtype": "fp6"}, "expert_dtype cannot be 'fp6'"),
        ({"quant_method": "mxfp8", "moe_quant_algo": "NVFP4"}, "moe_quant_algo cannot be 'NVFP4'"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "nf"}, "data_type cannot be 'nf'"),
        ({"quant_method": "auto-round", "bits": 6, "group_size": 32, "data_type": "mx_fp"}, "bits cannot be 6"),
        (
            {"quant_method": "auto-round", "bits": 8, "group_size": -1, "packing_format": "auto_round:fake"},
            "packing_format cannot be 'auto_round:fake'",
        ),
        (
            {"quant_method": "auto-round", "bits": 4, "group_size": 32, "extra_config": {"(a+)+": {"bits": 8}}},
            "a pattern cannot be",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_its_name(native: dict[str, Any], said: str) -> None:
    with pytest.raises(UllageError, match=re.escape(said)) as raised:
        find_method(native["quant_method"]).read(native)
    assert raised.value.hint
