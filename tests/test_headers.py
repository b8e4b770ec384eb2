"""Headers and a config against the real library: what transformers builds of the same config on the meta device."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_weights import quantization_config, resident_bytes
from tiny import tiny_config

from analytic.errors import UllageError
from analytic.formats.dtypes import DTYPE_BITS, ROW_OF_DTYPE
from analytic.formats.table import find_format
from analytic.models import catalog
from analytic.models.headers import UnfamiliarError, from_headers, stored_dtype
from analytic.models.meta import from_config
from analytic.models.model import Model
from analytic.models.packed import unpack
from analytic.models.safetensors import StoredTensor, read_directory, stored_bytes
from analytic.models.served_names import family_of, split_index
from analytic.weights import weigh
from profiler.models import describe

SERVED_AS = (("bfloat16", None), ("float16", None), ("bfloat16", "bnb-nf4"), ("bfloat16", "bnb-int8"))
MORE_FAMILIES = sorted(
    {str(catalog.load(e.name).config["model_type"]) for e in catalog.entries() if "Conditional" not in e.architecture}
    & {*tiny_models.config_classes()} - {*tiny.TINY}
)


def config_of(model_type: str) -> dict[str, Any]:
    if model_type in tiny.TINY:
        foreign = {"num_key_value_heads"} if model_type == "opt" else set()  # its class knows no such key
        return {key: value for key, value in tiny_config(model_type).items() if key not in foreign}
    names = {catalog.load(e.name).config["model_type"]: e.architecture for e in catalog.entries()}
    own = tiny_models.tiny_config(model_type) | tiny_models.IGNORED
    return {**own, "architectures": [names[model_type]], "dtype": "bfloat16"}


def save(config: Mapping[str, Any], folder: Path, **options: Any) -> Path:
    """A random checkpoint of ``config``, as save_pretrained publishes it, with the config beside it as given."""
    torch.manual_seed(0)
    resolved = transformers.AutoConfig.for_model(**config)
    model = getattr(transformers, config["architectures"][0])._from_config(resolved, dtype=torch.bfloat16)
    model.save_pretrained(folder, **options)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read(folder: Path, config: Mapping[str, Any]) -> Model:
    stored = read_directory(folder)
    assert stored is not None
    return from_headers(stored, config, id="tiny", source="local")


def truth(config: Mapping[str, Any]) -> Model:
    made = describe(config)
    return Model(
        id="meta",
        source="meta",
        architecture=made["architecture"],
        dtype="bfloat16",
        config=config,
        tensors=made["tensors"],
    )


def weight_bytes(model: Model, dtype: str, quantization: str | None) -> tuple[int, dict[str, int], dict[str, int]]:
    weights = weigh(model, dtype=dtype, quantization=quantization)
    return weights.bytes, weights.by_role, weights.by_format


def tensor(name: str, dtype: str, *shape: int, file: str = "model.safetensors") -> StoredTensor:
    return StoredTensor(name=name, dtype=dtype, shape=shape, bytes=stored_bytes(dtype, shape, name), file=file)


def published(model: Model) -> tuple[StoredTensor, ...]:
    """A bfloat16 checkpoint with the served tensors of ``model``."""
    return tuple(
        tensor(group.name.replace("{}", str(layer)), "BF16", *group.shape)
        for group in model.tensors
        if group.persistent
        for layer in (group.layers or (0,))
    )


def edit(folder: Path, add: Mapping[str, torch.Tensor], drop: tuple[str, ...] = ()) -> None:
    """Rewrite the single file of a checkpoint."""
    tensors = load_file(folder / "model.safetensors") | dict(add)
    kept = {name: value for name, value in tensors.items() if not any(part in name for part in drop)}
    save_file(kept, folder / "model.safetensors")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save(tiny_config("llama"), tmp_path)


# What is served.


@pytest.mark.parametrize("model_type", [*tiny.TINY, *MORE_FAMILIES])
def test_headers_tell_what_the_real_class_builds(model_type: str, tmp_path: Path) -> None:
    config = config_of(model_type)
    real = truth(config)
    ours = read(save(config, tmp_path), config)
    assert ours.parameters == real.parameters
    assert ours.active_parameters == real.active_parameters
    assert {g.name for g in ours.tensors if g.persistent} == {g.name for g in real.tensors if g.persistent}
    for dtype, quantization in SERVED_AS:
        assert weight_bytes(ours, dtype, quantization) == weight_bytes(real, dtype, quantization)


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_shards_tell_the_same_as_one_file(model_type: str, tmp_path: Path) -> None:
    config = tiny_config(model_type)
    one = read(save(config, tmp_path / "one"), config)
    many = save(config, tmp_path / "many", max_shard_size="100KB")
    assert len(list(many.glob("model-*.safetensors"))) > 1
    assert {*read(many, config).tensors} == {*one.tensors}


@pytest.mark.parametrize("name", {e.architecture: e.name for e in catalog.entries()}.values())
def test_a_checkpoint_of_every_catalogued_class_is_understood(name: str) -> None:
    model = catalog.load(name)
    config = {k: v for k, v in model.config.items() if k != "quantization_config"}
    ours = from_headers(published(model), config, id=name, source="local")
    assert (ours.parameters, ours.active_parameters) == (model.parameters, model.active_parameters)
    assert {g.name: g.converts for g in ours.tensors} == {g.name: g.converts for g in model.tensors}


@pytest.mark.parametrize("name", {e.architecture: e.name for e in catalog.entries()}.values())
def test_a_class_ties_its_head_by_default_as_its_configuration_does(name: str) -> None:
    from analytic.models.config_reader import ALIASES

    model = catalog.load(name)
    model_type = str(model.config["model_type"])
    family = family_of(model.architecture, model_type, quantized=None)
    assert family is not None
    default = type(transformers.AutoConfig.for_model(ALIASES.get(model_type, model_type))).tie_word_embeddings
    assert family.tied_by_default == default


def test_a_config_without_architectures_means_the_class_of_its_model_type(llama: Path) -> None:
    config = {k: v for k, v in tiny_config("llama").items() if k != "architectures"}
    assert read(llama, config).architecture == "LlamaForCausalLM"


def test_a_checkpoint_of_the_bare_model_gets_its_prefix(tmp_path: Path) -> None:
    config = tiny_config("gpt2")
    folder = save(config, tmp_path)
    bare = {name.removeprefix("transformer."): t for name, t in load_file(folder / "model.safetensors").items()}
    save_file(bare, folder / "model.safetensors")
    assert read(folder, config).parameters == truth(config).parameters


def test_older_multimodal_names_are_understood() -> None:
    model = catalog.load("gemma-3-4b")
    old = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower.vision_model."}
    stored = []
    for t in published(model):
        new = next((before for before in old if t.name.startswith(before)), "model.")
        stored.append(tensor(old.get(new, "") + t.name.removeprefix(new), t.dtype, *t.shape))
    ours = from_headers(tuple(stored), model.config, id="old", source="local")
    assert ours.parameters == model.parameters
    assert not ours.notes


def test_a_bias_that_the_config_asks_for_is_served(tmp_path: Path) -> None:
    config = {**tiny_config("llama"), "attention_bias": True}
    ours = read(save(config, tmp_path), config)
    for dtype, quantization in SERVED_AS:
        assert weight_bytes(ours, dtype, quantization)[0] == weight_bytes(truth(config), dtype, quantization)[0]


# What is stored in vain.


def test_a_tied_head_that_is_stored_all_the_same_is_served_once(tmp_path: Path) -> None:
    config = tiny_config("qwen2")
    folder = save(config, tmp_path)
    edit(folder, {"lm_head.weight": torch.zeros(384, 64, dtype=torch.bfloat16)})
    ours = read(folder, config)
    assert ours.parameters == truth(config).parameters
    assert ours.notes == (f"stored but not served: lm_head.weight ({384 * 64 * 2:,} bytes)",)


def test_a_prediction_layer_beyond_the_config_s_layers_is_not_served(tmp_path: Path) -> None:
    config = tiny_config("deepseek_v3")
    folder = save({**config, "num_hidden_layers": 3}, tmp_path)
    edit(folder, {"model.layers.2.eh_proj.weight": torch.zeros(64, 128, dtype=torch.bfloat16)})
    ours = read(folder, config)
    assert ours.parameters == truth(config).parameters
    assert "model.layers.2." in ours.notes[0]


def test_buffers_of_old_checkpoints_are_not_served(tmp_path: Path) -> None:
    config = tiny_config("gpt_neox")
    folder = save(config, tmp_path)
    old = {
        "attention.bias": torch.ones(1, 1, 512, 512, dtype=torch.bool),
        "attention.masked_bias": torch.tensor(-1e9),
        "attention.rotary_emb.inv_freq": torch.ones(2),
    }
    edit(folder, {f"gpt_neox.layers.{i}.{name}": value.clone() for i in (0, 1) for name, value in old.items()})
    ours = read(folder, config)
    assert ours.parameters == truth(config).parameters
    assert "and 4 more" in ours.notes[0]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert ours.parameters == sum(p.numel() for p in loaded.parameters())


# dtypes.


def test_a_mixed_checkpoint_is_cast_to_the_config_s_dtype(llama: Path) -> None:
    edit(llama, {"lm_head.weight": torch.zeros(384, 64), "model.norm.weight": torch.ones(64)})
    ours = read(llama, tiny_config("llama"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(llama)
    assert ours.dtype == "bfloat16"
    assert weight_bytes(ours, "bfloat16", None)[0] == sum(p.nbytes for p in loaded.parameters())


def test_without_a_dtype_in_the_config_the_first_float_of_the_first_file_decides(llama: Path) -> None:
    config = {k: v for k, v in tiny_config("llama").items() if k != "dtype"}
    (llama / "config.json").write_text(json.dumps(config))
    edit(llama, {"lm_head.weight": torch.zeros(384, 64, dtype=torch.float16)})  # "lm_head" < "model"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(llama)
    assert loaded.dtype == torch.float16
    assert read(llama, config).dtype == "float16"


def test_the_first_file_comes_before_the_first_name() -> None:
    stored = (tensor("a", "F32", 1, file="2"), tensor("b", "BF16", 1, file="1"), tensor("c", "F16", 1, file="1"))
    assert stored_dtype(stored) == "bfloat16"
    assert stored_dtype((tensor("a", "I32", 1),)) is None


# Already quantised.


def fp8_checkpoint(config: Mapping[str, Any]) -> list[StoredTensor]:
    """As DeepSeek publishes: unfused experts, a float32 scale a tile of every matrix that is float8."""
    stored = []
    for t in truth(config).tensors:
        if not t.persistent:
            continue
        for layer in t.layers or (0,):
            name = t.name.replace("{}", str(layer))
            for own, shape in unfused(name, t.shape):
                if t.stored != "fp8-128x128":
                    stored.append(tensor(own, "F32" if "bias" in own else "BF16", *shape))
                    continue
                tiles = tuple(-(-size // 128) for size in shape)
                stored += [tensor(own, "F8_E4M3", *shape), tensor(f"{own}_scale_inv", "F32", *tiles)]
    return stored


def unfused(name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    if len(shape) < 3:
        return [(name, shape)]
    base, _, part = name.rpartition(".")
    experts, rows, columns = shape
    parts = {"gate_up_proj": ("gate_proj", "up_proj")}.get(part, (part,))
    own = (rows // len(parts), columns)
    return [(f"{base}.{expert}.{p}.weight", own) for expert in range(experts) for p in parts]


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def test_fp8_tiles_count_as_stored_and_can_be_served_dequantised() -> None:
    config = {**tiny_config("deepseek_v3"), "moe_intermediate_size": 128, "quantization_config": FP8}
    real = truth(config)
    extra = [tensor("model.layers.2.eh_proj.weight", "F8_E4M3", 64, 128)]
    extra.append(tensor("model.layers.2.eh_proj.weight_scale_inv", "F32", 1, 1))
    ours = from_headers((*fp8_checkpoint(config), *extra), config, id="fp8", source="local")
    assert ours.parameters == real.parameters
    assert ours.native_format == "fp8"
    assert "eh_proj" in ours.notes[0]
    for quantization in (None, "none"):
        assert weight_bytes(ours, "bfloat16", quantization) == weight_bytes(real, "bfloat16", quantization)
    as_stored = sum(t.bytes for t in fp8_checkpoint(config))
    assert weigh(ours, dtype="bfloat16", quantization=None).bytes == as_stored


def test_mxfp4_blocks_count_as_stored() -> None:
    config = {
        **tiny_config("gpt_oss"),
        "quantization_config": catalog.load("gpt-oss-20b").config["quantization_config"],
    }
    real = truth(config)
    stored: list[StoredTensor] = []
    for group in (g for g in real.tensors if g.persistent):
        for layer in group.layers or (0,):
            name = group.name.replace("{}", str(layer))
            if group.stored == "mxfp4":
                experts, columns, rows = group.shape
                stored.append(tensor(f"{name}_blocks", "U8", experts, rows, columns // 32, 16))
                stored.append(tensor(f"{name}_scales", "U8", experts, rows, columns // 32))
            else:
                stored.append(tensor(name, "BF16", *group.shape))
    ours = from_headers(tuple(stored), config, id="mxfp4", source="local")
    # 160 columns of down_proj's input and 64 of gate_up_proj's are whole blocks of 32, so nothing is padded
    assert ours.parameters == real.parameters
    assert weight_bytes(ours, "bfloat16", None) == weight_bytes(real, "bfloat16", None)


def packed_llama(pack: Any) -> tuple[StoredTensor, ...]:
    """A tiny Llama whose seven matrices a layer are packed."""
    stored: list[StoredTensor] = []
    for t in published(truth(tiny_config("llama"))):
        stored += pack(t) if ".layers." in t.name and len(t.shape) == 2 else [t]
    return tuple(stored)


def gptq(bits: int) -> Any:
    def pack(t: StoredTensor) -> list[StoredTensor]:
        rows, columns = t.shape
        module = t.name.removesuffix(".weight")
        return [
            tensor(f"{module}.qweight", "I32", columns * bits // 32, rows),
            tensor(f"{module}.qzeros", "I32", 1, rows * bits // 32),
            tensor(f"{module}.scales", "F16", 1, rows),
            tensor(f"{module}.g_idx", "I32", columns),
        ]

    return pack


def awq(t: StoredTensor) -> list[StoredTensor]:
    rows, columns = t.shape
    module = t.name.removesuffix(".weight")
    return [
        tensor(f"{module}.qweight", "I32", columns, rows // 8),
        tensor(f"{module}.qzeros", "I32", 1, rows // 8),
        tensor(f"{module}.scales", "F16", 1, rows),
    ]


def bnb_4bit(t: StoredTensor) -> list[StoredTensor]:
    count = prod(t.shape)
    return [
        tensor(t.name, "U8", count // 2, 1),
        tensor(f"{t.name}.absmax", "F32", count // 64),
        tensor(f"{t.name}.quant_map", "F32", 16),
        tensor(f"{t.name}.quant_state.bitsandbytes__nf4", "U8", 80),
    ]


def widths(*bits: Any) -> dict[str, Any]:
    groups = {
        f"group_{i}": {"weights": {"num_bits": width, "type": "int", "strategy": "channel"}, "targets": ["Linear"]}
        for i, width in enumerate(bits)
    }
    return {"quant_method": "compressed-tensors", "config_groups": groups}


PACKED = {
    "gptq-4": (gptq(4), {"quant_method": "gptq", "bits": 4}),
    "gptq-3": (gptq(3), {"quant_method": "gptq", "bits": 3}),
    "gptq-8": (gptq(8), {"quant_method": "gptq", "bits": 8}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": -1}),
    "bitsandbytes": (bnb_4bit, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


@pytest.mark.parametrize("method", PACKED)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "NobodysLlama"])
def test_packed_weights_count_as_stored_and_their_parameters_unpacked(method: str, architecture: str) -> None:
    pack, native = PACKED[method]
    config = {**tiny_config("llama"), "quantization_config": native, "architectures": [architecture]}
    stored = packed_llama(pack)
    ours = from_headers(
        (*stored, tensor("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 8)), config, id=method, source="local"
    )
    assert ours.parameters == truth(tiny_config("llama")).parameters
    assert weigh(ours, dtype="bfloat16", quantization=None).bytes == sum(
        t.bytes for t in stored if "quant_state" not in t.name
    )
    assert "inv_freq" in ours.notes[0]


@pytest.mark.parametrize("quantization", ["bnb-nf4", "bnb-fp4-dq", "bnb-int8"])
def test_a_checkpoint_saved_by_bitsandbytes_has_the_bytes_of_a_real_load(
    quantization: str, llama: Path, tmp_path: Path
) -> None:
    real = transformers.AutoModelForCausalLM.from_pretrained(
        llama, dtype=torch.bfloat16, quantization_config=quantization_config(quantization), device_map={"": "cpu"}
    )
    real.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    ours = read(tmp_path / "saved", config)
    assert ours.parameters == truth(tiny_config("llama")).parameters
    assert weigh(ours, dtype="bfloat16", quantization=None).bytes == sum(resident_bytes(real).values())


def test_a_quantisation_config_of_the_text_part_counts() -> None:
    model = catalog.load("gemma-3-4b")
    text = {**model.config["text_config"], "quantization_config": {"quant_method": "gptq", "bits": 4}}  # type: ignore[dict-item]
    ours = from_headers(published(model), {**model.config, "text_config": text}, id="x", source="local")
    assert ours.native_format == "gptq"


# What is refused.


def refused(folder: Path, config: Mapping[str, Any]) -> UllageError:
    with pytest.raises(UllageError) as raised:
        read(folder, config)
    assert raised.value.hint
    assert "\n" not in raised.value.message
    return raised.value


def test_an_unknown_class_needs_the_class_itself(llama: Path) -> None:
    error = refused(llama, {**tiny_config("llama"), "architectures": ["NobodysLlama"]})
    assert isinstance(error, UnfamiliarError)
    assert "NobodysLlama" in error.message


def test_a_tensor_that_no_catalogued_model_has_is_named(llama: Path) -> None:
    edit(llama, {"model.layers.0.self_attn.gadget.weight": torch.zeros(1)})
    error = refused(llama, tiny_config("llama"))
    assert isinstance(error, UnfamiliarError)
    assert "self_attn.gadget.weight" in error.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 3}, "says 3 layers, the checkpoint holds none at model.layers.2"),
        ({"vocab_size": 400}, r"embedding of \[400, 64\], the checkpoint holds \[384, 64\]"),
        ({"hidden_size": 128}, r"embedding of \[384, 128\]"),
        ({"num_key_value_heads": 4}, "says 64 rows of model.layers.0.self_attn.k_proj.weight, the checkpoint holds 32"),
        ({"intermediate_size": 96}, "says 96 rows of model.layers.0.mlp.up_proj.weight, the checkpoint holds 160"),
        ({"architectures": "LlamaForCausalLM"}, "architectures cannot be 'LlamaForCausalLM'"),
        ({"architectures": [3]}, "architectures cannot be"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings cannot be 'no'"),
        ({"model_type": "nobodys"}, "model_type 'nobodys' is not known"),
        ({"num_hidden_layers": -1}, "num_hidden_layers cannot be -1"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers cannot be"),
        ({"quantization_config": "gptq"}, "quantization_config cannot be 'gptq'"),
        ({"quantization_config": {}}, "no quant_method"),
        ({"quantization_config": {"quant_method": "magic"}}, "'magic' is not known"),
        ({"quantization_config": {"quant_method": "gptq"}}, "bits cannot be None"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 0}}, "bits cannot be 0"),
        ({"quantization_config": {"quant_method": "gptq", "bits": [4]}}, "bits cannot be"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4.0}}, "bits cannot be 4.0"),
        ({"quantization_config": widths([4])}, r"num_bits cannot be \[4\]"),
    ],
)
def test_a_config_that_the_checkpoint_belies_is_refused(llama: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UllageError, match=said):
        read(llama, {**tiny_config("llama"), **change})


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        ("model.norm", "lacks model.norm.weight"),
        ("lm_head", "lacks the output head"),
        ("1.mlp.up_proj", "lacks model.layers.1.mlp.up_proj.weight"),
        ("0.mlp.up_proj", "lacks model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_a_checkpoint_that_lacks_a_tensor_is_refused(llama: Path, drop: str, said: str) -> None:
    edit(llama, {}, drop=(drop,))
    assert said in refused(llama, tiny_config("llama")).message


def test_another_number_of_experts_is_refused(tmp_path: Path) -> None:
    folder = save(tiny_config("mixtral"), tmp_path)
    error = refused(folder, {**tiny_config("mixtral"), "num_local_experts": 8})
    assert "config.json says 8 experts, model.layers.{}.mlp.experts.gate_up_proj holds 4" in error.message


@pytest.mark.parametrize("drop", ["experts.2.w1", ".w1.", "0.block_sparse_moe.experts.3.", "experts.3."])
def test_missing_experts_are_refused(tmp_path: Path, drop: str) -> None:
    folder = save(tiny_config("mixtral"), tmp_path)
    edit(folder, {}, drop=(drop,))
    assert "experts" in refused(folder, tiny_config("mixtral")).message


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    folder = save(tiny_config("gpt_neox"), tmp_path)
    edit(folder, {"lm_head.weight": torch.zeros(384, 64, dtype=torch.bfloat16)})  # beside embed_out.weight
    assert "lm_head.weight is stored under two names" in refused(folder, tiny_config("gpt_neox")).message


def test_experts_of_different_shapes_are_refused(tmp_path: Path) -> None:
    folder = save(tiny_config("mixtral"), tmp_path)
    edit(folder, {"model.layers.0.block_sparse_moe.experts.1.w1.weight": torch.zeros(80, 64)})
    assert "different shapes" in refused(folder, tiny_config("mixtral")).message


def test_an_output_head_of_another_vocabulary_is_refused(llama: Path) -> None:
    edit(llama, {"lm_head.weight": torch.zeros(512, 64)})
    assert "output head of [384, 64], the checkpoint holds [512, 64]" in refused(llama, tiny_config("llama")).message


def test_a_weight_of_another_rank_is_refused(llama: Path) -> None:
    edit(llama, {"model.layers.0.self_attn.q_proj.weight": torch.zeros(4096)})
    assert "1 dimensions, not 2" in refused(llama, tiny_config("llama")).message


def test_packed_weights_without_a_quantization_config_are_refused(llama: Path) -> None:
    edit(llama, {"model.layers.0.self_attn.q_proj.weight": torch.zeros(64, 64, dtype=torch.uint8)})
    assert "no quantization_config" in refused(llama, tiny_config("llama")).message


def test_scales_of_another_size_are_refused() -> None:
    stored = [tensor("x.weight", "F8_E4M3", 256, 256), tensor("x.weight_scale_inv", "F32", 1, 1)]
    with pytest.raises(UllageError, match=r"is F32 \[1, 1\], but fp8-128x128 of a 256 x 256 weight has .* \[2, 2\]"):
        list(unpack(stored, FP8))


@pytest.mark.parametrize(("dtype", "size"), [("F4", 4), ("F6_E2M3", 6), ("F8_E8M0", 8), ("BOOL", 8), ("U32", 32)])
def test_every_dtype_of_the_format_is_understood(dtype: str, size: int) -> None:
    (found,) = unpack([tensor("x", dtype, 4, 8)], None)
    assert find_format(found.stored).bytes(found.shape) == found.bytes == 32 * size // 8


def test_every_format_of_a_dtype_is_a_row() -> None:
    assert all(find_format(name) for name in ROW_OF_DTYPE.values())
    assert ROW_OF_DTYPE.keys() == DTYPE_BITS.keys()


def test_an_inventory_from_the_config_agrees_with_one_from_the_headers(
    llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ULLAGE_CACHE_DIR", str(tmp_path / "cache"))
    alone = from_config(tiny_config("llama"), id="x")
    assert {g for g in alone.tensors if g.persistent} == {
        g for g in read(llama, tiny_config("llama")).tensors if g.persistent
    }


def test_numbers_that_no_layer_has_are_part_of_a_name() -> None:
    """Python turns no text of more than 4,300 digits into a number."""
    digits = "9" * 5000
    assert split_index(f"model.layers.{digits}.weight") == (f"model.layers.{digits}.weight", None)
    assert split_index("model.layers.12.mlp.weight") == ("model.layers.{}.mlp.weight", 12)
    family = family_of("Qwen3MoeForCausalLM", "qwen3_moe", quantized=None)
    assert family is not None
    assert family.find(f"model.layers.{{}}.mlp.experts.{digits}.up_proj.weight") is None
    found = family.find("model.layers.{}.mlp.experts.7.up_proj.weight")
    assert found is not None
    assert (found.expert, found.part) == (7, "up_proj")
