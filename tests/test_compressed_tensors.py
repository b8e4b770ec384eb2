"""compressed-tensors' own compressor and transformers' own loading, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from test_weights import resident_bytes

from analytic.errors import UllageError
from analytic.estimator import estimate
from analytic.formats.registry import find_preset
from analytic.models.model import Model
from analytic.models.packing import pack
from analytic.models.resolve import resolve
from analytic.models.safetensors import read_file
from analytic.weights import weigh

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}


def dense() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).to(torch.bfloat16)


def compress(scheme: str, folder: Path, **changes: Any) -> None:
    """A checkpoint as llm-compressor publishes it: every linear layer but the head, and one left out by expression."""
    model = dense()
    made = preset_name_to_scheme(scheme, ["Linear"])
    for key, value in changes.items():
        setattr(made.weights, key, value)
    config = QuantizationConfig(config_groups={"group_0": made}, ignore=["lm_head", "re:.*1.mlp.up_proj$"])
    apply_quantization_config(model, config)
    for module in model.modules():
        for name in ("weight_scale", "weight_global_scale", "input_global_scale", "input_scale"):
            if isinstance(getattr(module, name, None), torch.nn.Parameter):
                getattr(module, name).data.fill_(1)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


SCHEMES = sorted(set(PRESET_SCHEMES) - {"UNQUANTIZED", "MXFP4XFP8"})


@pytest.fixture(scope="module", params=SCHEMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    compress(request.param, folder)
    return request.param, folder


def in_file(folder: Path) -> dict[str, int]:
    return {tensor.name: tensor.bytes for tensor in read_file(folder / "model.safetensors")}


def by_name(model: Model) -> dict[str, int]:
    """Bytes of every weight as it is stored, by its name without the suffix of a part."""
    return {
        group.name.replace("{}", str(layer)).removesuffix(".weight"): sum(piece.bytes for piece in group.pieces)
        for group in model.tensors
        for layer in group.layers or (0,)
        if group.pieces
    }


def test_every_scheme_of_the_library_is_read_to_the_byte(checkpoint: tuple[str, Path]) -> None:
    _, folder = checkpoint
    model, stored = resolve(str(folder)), in_file(folder)
    assert model.stored_bytes == sum(stored.values())
    assert model.parameters == dense().num_parameters()
    packed = by_name(model)
    assert len(packed) == 2 * 7 - 1
    for module, count in packed.items():
        parts = {n: b for n, b in stored.items() if n.startswith(f"{module}.") and not n.endswith(NOT_PARTS)}
        assert count == sum(parts.values()), parts


NOT_PARTS = (".input_scale", ".input_global_scale", ".input_zero_point")


@pytest.mark.parametrize(
    ("preset", "scheme"),
    [
        ("w4a16", "W4A16"),
        ("w4a16-asym", "W4A16_ASYM"),
        ("w8a16", "W8A16"),
        ("w8a8", "W8A8"),
        ("fp8-dynamic", "FP8_DYNAMIC"),
        ("mxfp8", "MXFP8"),
    ],
)
def test_what_a_preset_would_make_is_what_the_library_makes(preset: str, scheme: str, tmp_path: Path) -> None:
    compress(scheme, tmp_path / "packed")
    dense().save_pretrained(tmp_path / "dense")
    packed, plain = resolve(str(tmp_path / "packed")), resolve(str(tmp_path / "dense"))
    row, method = find_preset(preset)
    made = {g.name: g for g in pack(plain.tensors, row, decoder=filter(plain.is_decoder, plain.tensors))}
    assert method.transformers.decompresses
    for group in packed.tensors:
        if group.pieces:
            assert (group.stored, {p.suffix: p.bytes for p in group.pieces}) == (
                made[group.name].stored,
                {p.suffix: p.bytes for p in made[group.name].pieces},
            )


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16"])
def test_transformers_serves_them_in_16_bits(scheme: str, tmp_path: Path) -> None:
    """It decompresses at the first forward pass: the packed weights go, what stands beside them stays."""
    compress(scheme, tmp_path)
    real = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model = resolve(str(tmp_path))
    assert sum(resident_bytes(real).values()) == model.stored_bytes
    with torch.no_grad():
        real(torch.arange(4)[None])
    weights = weigh(model, dtype="bfloat16", quantization=None)
    assert weights.bytes == model.stored_bytes
    added = sum(s.decompressed_bytes * s.group.count - s.bytes for s in weights.served if s.decompressed_bytes)
    assert weights.bytes + added == sum(resident_bytes(real).values())
    served = estimate(model, prompt_tokens=4, output_tokens=1, dtype="bfloat16").fullest
    assert {part.name: part.bytes for part in served.parts}["decompressed"] == added


def test_what_is_packed_against_the_config_is_refused(tmp_path: Path) -> None:
    compress("W4A16", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    native = config["quantization_config"]
    for change, said in (
        ({"ignore": ["lm_head", "re:.*down_proj"]}, "leaves model.layers.0.mlp.down_proj unquantised"),
        ({"config_groups": {"group_0": _with(native, group_size=64)}}, "ct-int4-g64 of a 256 x 320 weight"),
        (
            {"config_groups": {"group_0": _with(native, num_bits=8)}},
            "but ct-int8-g128 of a",
        ),
        ({"config_groups": {"group_0": _with(native, num_bits=9)}}, "num_bits cannot be 9"),
        ({"config_groups": {"group_0": _with(native, strategy="magic")}}, "strategy cannot be 'magic'"),
        ({"config_groups": {}}, "config_groups cannot be"),
        ({"ignore": ["re:(a+)+b"]}, "a pattern cannot be"),
        ({"ignore": ["re:("]}, "a pattern cannot be"),
        ({"ignore": "lm_head"}, "ignore cannot be 'lm_head'"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights are not known"),
        ({"config_groups": {"group_0": {**_with(native), "format": "marlin-24"}}}, "format cannot be 'marlin-24'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {**native, **change}}))
        with pytest.raises(UllageError, match=said):
            resolve(str(tmp_path))


def _with(native: dict[str, Any], **changes: Any) -> dict[str, Any]:
    row = native["config_groups"]["group_0"]
    return {**row, "weights": {**row["weights"], **changes}}
