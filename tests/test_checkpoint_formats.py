"""Every packed format against what its own library made: recorded where it needs one that is not installed here."""

import json
import random
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from loopback_hub import LoopbackHub, safetensors_head
from test_weights import resident_bytes

from analytic.errors import UllageError
from analytic.formats.dtypes import DTYPE_BITS
from analytic.formats.registry import find_method, find_preset, methods, presets
from analytic.formats.scheme import Held, Scheme
from analytic.models.headers import from_headers
from analytic.models.packed import unpack
from analytic.models.packing import pack
from analytic.models.resolve import resolve
from analytic.models.safetensors import StoredTensor
from analytic.weights import weigh

RECORDED = Path(__file__).parent / "data" / "checkpoints"

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}


def recorded(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((RECORDED / f"{name}.json").read_text())["cases"]
    return cases


def named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id="-".join(str(v) for v in case.values() if not isinstance(v, dict))) for case in cases]


def stored(name: str, dtype: str, shape: Any) -> StoredTensor:
    size = prod(shape) * DTYPE_BITS[dtype] // 8
    return StoredTensor(name=name, dtype=dtype, shape=tuple(shape), bytes=size, file="model.safetensors")


def holds(scheme: Scheme, shape: tuple[int, ...], tensors: Mapping[str, tuple[str, Any]]) -> None:
    """The scheme finds the matrix behind the tensors, and would make the same of it."""
    held = {f".{suffix}": Held(dtype, tuple(size)) for suffix, (dtype, size) in tensors.items()}
    assert scheme.shape_of(held) == shape
    made = {part.suffix: (part.dtypes, part.shape) for part in scheme.parts(shape) if part.presence != "rare"}
    assert made.keys() == held.keys()
    for suffix, (dtypes, size) in made.items():
        assert held[suffix].dtype in dtypes
        assert held[suffix].shape == size


@pytest.mark.parametrize("case", named(recorded("gptqmodel")))
def test_gptq_and_awq_are_laid_out_as_gptqmodel_does(case: dict[str, Any]) -> None:
    native = {"bits": case["bits"], "group_size": case["group_size"]}
    scheme = find_method(case["method"]).read(native).default
    assert scheme is not None
    holds(scheme, tuple(case["shape"]), case["tensors"])


@pytest.mark.parametrize("case", named(recorded("mlx")))
def test_mlx_is_laid_out_as_mlx_does(case: dict[str, Any]) -> None:
    native = {key: case[key] for key in ("mode", "bits", "group_size")}
    scheme = find_method("mlx").read(native).default
    assert scheme is not None
    holds(scheme, tuple(case["shape"]), case["tensors"])


def dense() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).to(torch.bfloat16)


@pytest.mark.parametrize("case", named(recorded("modelopt")))
def test_checkpoints_of_modelopt_are_read_to_the_byte(case: dict[str, Any]) -> None:
    tensors = tuple(stored(name, dtype, shape) for name, (dtype, shape) in case["header"].items())
    model = from_headers(tensors, case["config"], id="tiny", source="local")
    weights = weigh(model, dtype="bfloat16", quantization=None)
    scales_of_cache = sum(t.bytes for t in tensors if t.name.endswith((".k_scale", ".v_scale")))
    assert weights.bytes + scales_of_cache == model.stored_bytes == sum(t.bytes for t in tensors)
    assert model.parameters == dense().num_parameters()
    assert sum(1 for group in model.tensors if group.pieces) == 7


def older(case: dict[str, Any]) -> dict[str, Any]:
    """The config of an older checkpoint, which says nothing of its quantisation."""
    return {key: value for key, value in case["config"].items() if key != "quantization_config"}


def test_what_older_checkpoints_of_modelopt_say_in_a_file_beside(tmp_path: Path) -> None:
    case = next(case for case in recorded("modelopt") if case["name"] == "nvfp4")
    (tmp_path / "config.json").write_text(json.dumps(older(case)))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(case["hf_quant_config"]))
    tensors = {n: (d, tuple(s), stored(n, d, s).bytes) for n, (d, s) in case["header"].items()}
    (tmp_path / "model.safetensors").write_bytes(safetensors_head(tensors).head)
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.truncate(safetensors_head(tensors).size)
    model = resolve(str(tmp_path))
    assert model.native_format == "modelopt"
    assert "nvfp4" in weigh(model, dtype="bfloat16", quantization=None).by_format
    (tmp_path / "config.json").write_text(json.dumps(case["config"]))
    other = {"quantization": {**case["hf_quant_config"]["quantization"], "quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(other))
    with pytest.raises(UllageError, match=r"says quant_algo 'FP8', config\.json 'NVFP4'"):
        resolve(str(tmp_path))


def test_the_same_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in recorded("modelopt") if case["name"] == "fp8")
    tensors = {n: (d, tuple(s), stored(n, d, s).bytes) for n, (d, s) in case["header"].items()}
    with LoopbackHub() as hub:
        hub.patch(monkeypatch, tmp_path)
        said = json.dumps(case["hf_quant_config"]).encode()
        files = {"config.json": json.dumps(older(case)).encode(), "hf_quant_config.json": said}
        hub.add("acme/fp8", {**files, "model.safetensors": safetensors_head(tensors)})
        assert resolve("acme/fp8").native_format == "modelopt"


def test_mlx_packs_the_embedding_too() -> None:
    model = resolve("llama-3.1-8b")
    weights = weigh(model, dtype="bfloat16", quantization="mlx-int4")
    matrices = sum(g.elements * g.count for g in model.tensors if len(g.shape) == 2)
    assert weights.by_format["mlx-int4-g64"] == matrices * 9 // 16  # 4 bits and 2 x 16 a group of 64


TORCHAO = {
    "torchao-int8": "Int8WeightOnlyConfig()",
    "torchao-float8": "Float8WeightOnlyConfig()",
    "torchao-intx-g32": "Int8DynamicActivationIntxWeightConfig()",
}


@pytest.mark.parametrize("name", TORCHAO)
def test_torchao_checkpoints_and_what_a_preset_would_make(name: str, tmp_path: Path) -> None:
    import torchao.quantization

    made = eval(TORCHAO[name], vars(torchao.quantization))
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
    assert name in weights.by_format
    assert weights.bytes == model.stored_bytes == sum(inner_bytes(p) for p in real.parameters())
    assert model.parameters == dense().num_parameters()
    if name in presets():
        assert made_of_dense(tmp_path / "dense", name) == weights.bytes


def inner_bytes(parameter: Any) -> int:
    """Bytes of a parameter, or of the tensors inside a subclass of torchao's."""
    inner = parameter.__tensor_flatten__()[0] if hasattr(parameter, "__tensor_flatten__") else ()
    tensors = [getattr(parameter, name) for name in inner] or [parameter]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def made_of_dense(folder: Path, preset: str) -> int:
    return weigh(resolve(str(folder)), dtype="bfloat16", quantization=preset).bytes


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_hqq_packs_as_its_scheme_says(bits: int, tmp_path: Path) -> None:
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    real = dense()
    real.save_pretrained(tmp_path / "dense")
    config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=1)
    AutoHQQHFModel.quantize_model(real, quant_config=config, compute_dtype=torch.bfloat16, device="cpu")
    AutoHQQHFModel.save_to_safetensors(real, str(tmp_path / "packed"))
    written = json.loads((tmp_path / "packed" / "config.json").read_text())
    native = {"quant_method": "hqq", "quant_config": config, "skip_modules": ["lm_head"]}
    (tmp_path / "packed" / "config.json").write_text(json.dumps({**written, "quantization_config": native}))
    model = resolve(str(tmp_path / "packed"))
    weights = weigh(model, dtype="bfloat16", quantization=None)
    assert model.parameters == dense().num_parameters()
    packed = [m for m in real.modules() if hasattr(m, "W_q")]
    assert len(packed) == 7
    assert weights.by_format[f"hqq-int{bits}-g64"] == sum(
        t.untyped_storage().nbytes() for m in packed for t in (m.W_q, m.meta["scale"], m.meta["zero"])
    )
    if f"hqq-int{bits}" in presets():
        assert made_of_dense(tmp_path / "dense", f"hqq-int{bits}") == weights.bytes


@pytest.mark.parametrize(
    "flags",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    ],
    ids=["int8", "nf4", "fp4-dq"],
)
def test_bitsandbytes_checkpoints_as_they_are_loaded(flags: dict[str, Any], tmp_path: Path) -> None:
    dense().save_pretrained(tmp_path / "dense")
    real = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense",
        dtype=torch.bfloat16,
        quantization_config=transformers.BitsAndBytesConfig(**flags),
        device_map={"": "cpu"},
    )
    real.save_pretrained(tmp_path / "packed")
    model = resolve(str(tmp_path / "packed"))
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "packed", dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    assert weigh(model, dtype="bfloat16", quantization=None).bytes == sum(resident_bytes(again).values())
    published = {name: tuple(p.shape) for name, p in dense().named_parameters()}
    assert {g.name.replace("{}", "0"): g.shape for g in model.tensors if g.persistent} == published


@pytest.mark.parametrize("name", sorted(name for name, (preset, _) in presets().items() if not preset.mixture))
def test_every_preset_says_what_a_catalogued_model_would_be(name: str) -> None:
    """The parts of every matrix are held against the scheme's own reading of them (mixtures: test_gguf_mixtures.py)."""
    model = resolve("qwen3-30b-a3b")
    preset, _ = find_preset(name)
    groups = pack(model.tensors, preset, decoder=filter(model.is_decoder, model.tensors))
    packed = [g for g in groups if g.pieces or g.stored == preset.scheme.name]
    assert packed
    assert {g.elements * g.count for g in groups} == {g.elements * g.count for g in model.tensors}
    smaller = sum(p.bytes * p.count for g in packed for p in g.pieces)
    assert smaller < 2 * sum(g.elements for g in packed)
    assert preset.source


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}
LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("native", "tensors", "said"),
    [
        (FP8, {".weight": ("F8_E4M3", (256, 256))}, r"fp8-128x128 has F32 \[2, 2\] at .*_scale_inv, which is missing"),
        ({**FP8, "modules_to_not_convert": ["mlp"]}, {".weight": ("F8_E4M3", (256, 256))}, "leaves .* unquantised"),
        ({**FP8, "weight_block_size": [0, 1]}, {}, "weight_block_size cannot be"),
        ({**FP8, "fmt": "e5m2"}, {}, "fmt cannot be 'e5m2'"),
        (
            {"quant_method": "gptq", "bits": 8, "group_size": 128},
            {
                ".qweight": ("I32", (32, 256)),
                ".qzeros": ("I32", (2, 32)),
                ".scales": ("F16", (2, 256)),
                ".g_idx": ("I32", (256,)),
            },
            r"qzeros is I32 \[2, 32\], but gptq-int8-g128 of a 256 x 128 weight has I32 \[1, 64\]",
        ),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:(a+)+": {}}}, {}, "a pattern cannot be"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 100}, {}, "group_size cannot be 100"),
        ({"quant_method": "awq", "bits": 3}, {}, "bits cannot be 3"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, {}, "version cannot be 'gemv'"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, {}, "quant_algo cannot be 'MIXED_PRECISION'"),
        ({"quant_method": "torchao", "quant_type": "int4"}, {}, "quant_type cannot be 'int4'"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Magic"}}}, {}, "_type cannot be 'Magic'"),
        ({"quant_method": "hqq", "quant_config": {}}, {}, "quant_config cannot be"),
        ({"quant_method": "mlx", "bits": 7, "group_size": 64}, {}, "bits cannot be 7"),
        ({"quant_method": "mlx", "bits": 8, "group_size": 32, "mode": "mxfp4"}, {}, "it has 4 bits and groups of 32"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 128, "packing_format": "x"}, {}, "packing_format"),
        ({"quant_method": "magic"}, {}, "'magic' is not known to ullage"),
    ],
)
def test_a_config_and_headers_that_contradict_each_other_are_both_shown(
    native: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...]]], said: str
) -> None:
    held = [stored(f"{LAYER}{suffix}", dtype, shape) for suffix, (dtype, shape) in tensors.items()]
    with pytest.raises(UllageError, match=said) as raised:
        list(unpack(held, native))
    assert raised.value.hint


_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 4, 8, 128, 10**30, 1.5),
    *("", "gemm", "int", "group", "nf4", "re:(", "NVFP4", "pack-quantized", "nvfp4-pack-quantized"),
    *([], [1], ["lm_head"], ["re:.*"], {}, {"a": 1}, [128, 128], [0, 0]),
)
_KEYS = (
    *("bits", "group_size", "desc_act", "dynamic", "modules_to_not_convert", "version", "config_groups", "format"),
    *("ignore", "fmt", "mode", "weight_block_size", "scale_fmt", "quant_algo", "quant_type", "quant_config"),
    *("load_in_4bit", "packing_format", "extra_config"),
)
_SUFFIXES = (
    *(".weight", ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_packed", ".weight_scale", ".weight_shape"),
    *("_blocks", "_scales", ".W_q", ".scale", ".zero", ".weight.absmax", "._weight_qdata", "._weight_scale"),
    *(".weight_scale_inv", ".biases"),
)
_DTYPES = ("F32", "BF16", "I32", "U8", "I8", "U32", "F8_E4M3", "I64")


def _config(pick: random.Random, method: str) -> dict[str, Any]:
    """A config that a stranger might write: now and then nearly right."""
    weights = {key: pick.choice(_VALUES) for key in ("type", "strategy", "group_size") if pick.random() < 0.5}
    right = {
        "bits": 4,
        "group_size": 128,
        "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": pick.choice([4, 8]), **weights}}},
        "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": pick.choice(_VALUES)}}},
        "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": pick.choice([64, 8, 0])}},
        "quant_algo": "NVFP4",
    }
    kept = {key: value for key, value in right.items() if pick.random() < 0.7}
    wrong = {key: pick.choice(_VALUES) for key in pick.sample(_KEYS, pick.randint(0, 3))}
    return {"quant_method": method, **kept, **wrong}


def _tensors(pick: random.Random) -> Iterator[StoredTensor]:
    for suffix in pick.sample(_SUFFIXES, 4):
        shape = pick.choices((0, 1, 2, 16, 64, 128), k=pick.choice((0, 1, 2, 2, 3, 5)))
        yield stored(f"{LAYER}{suffix}", pick.choice(_DTYPES), shape)


def test_no_config_and_no_headers_are_anything_but_read_or_refused() -> None:
    pick, known = random.Random(0), sorted(methods())
    refused = 0
    for _ in range(6000):
        held, native = list(_tensors(pick)), _config(pick, pick.choice(known))
        try:
            list(unpack(held, native))
        except UllageError:
            refused += 1
    assert 2000 < refused < 6000


def test_formats_are_found_by_their_files() -> None:
    files = {p.stem for p in (Path(__file__).parents[1] / "analytic" / "formats").glob("*.py")}
    assert {name.replace("-", "_") for name in methods()} - files == {"fbgemm_fp8", "modelopt_fp4", "mxfp8"}
