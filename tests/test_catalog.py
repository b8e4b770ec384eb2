import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from analytic.errors import UllageError
from analytic.formats.table import find_format
from analytic.models import catalog
from analytic.models.inventory import ROLES
from analytic.weights import weigh
from profiler.catalog import FOLDER, INDEX, regenerate, render, render_index
from profiler.models import build, describe

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_parameters.json").read_text())
NATIVE = [n for n in NAMES if "quantization_config" in json.loads((FOLDER / f"{n}.json").read_bytes())["config"]]


def test_it_holds_the_models_that_people_serve() -> None:
    assert len(catalog.entries()) >= 50
    assert [entry.name for entry in catalog.entries()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_run_writes_the_same_file(name: str) -> None:
    path = FOLDER / f"{name}.json"
    assert path.read_text() == render(regenerate(json.loads(path.read_bytes())))


def test_a_fresh_index_is_the_same() -> None:
    documents = {name: json.loads((FOLDER / f"{name}.json").read_bytes()) for name in NAMES}
    assert INDEX.read_text() == render_index(documents)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["model"])
def test_parameters_equal_the_published_count(row: dict[str, object]) -> None:
    assert catalog.load(str(row["model"])).parameters == row["parameters"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3.1-405b", 405_853_388_800),
        ("mixtral-8x7b", 46_702_792_704),
        ("deepseek-v3", 671_026_419_200),
    ],
)
def test_the_counts_that_everybody_knows(name: str, parameters: int) -> None:
    assert catalog.load(name).parameters == parameters


def test_names_are_found_whatever_their_case_and_none_means_two_models() -> None:
    assert catalog.find("Meta-Llama/LLAMA-2-70B-hf") == "llama-2-70b"
    named = [name.lower() for e in catalog.entries() for name in {e.name, e.id, *e.aliases}]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_has_a_source_and_roles_that_exist(name: str) -> None:
    document = json.loads((FOLDER / f"{name}.json").read_bytes())
    assert len(document["source"]) > 10
    assert {row[1] for row in document["tensors"]} <= set(ROLES)


@pytest.mark.parametrize("name", [n for n in NATIVE if "gpt-oss" not in n])
def test_fp8_checkpoints_weigh_what_the_real_fp8_modules_hold(name: str) -> None:
    from transformers.quantizers.auto import AutoHfQuantizer

    model = catalog.load(name)
    real = build(model.config)
    native = dict(model.config["quantization_config"])  # type: ignore[call-overload]
    AutoHfQuantizer.from_config(native, pre_quantized=True)._process_model_before_weight_loading(real)
    float32 = {g.name for g in model.tensors if g.stored == "float32-unless-float64"}
    expected = sum(
        p.numel() * (4 if re.sub(r"\.\d+\.", ".{}.", name, count=1) in float32 else p.element_size())
        for name, p in real.state_dict().items()
    )
    assert weigh(model, dtype="bfloat16", quantization=None).bytes == expected


def test_gpt_oss_20b_weighs_what_its_mxfp4_blocks_scales_and_biases_hold() -> None:
    weights = weigh(catalog.load("gpt-oss-20b"), dtype="bfloat16", quantization=None)
    experts = 24 * 32 * (2880 * 5760 + 2880 * 2880)  # 24 layers, 32 experts, gate and up, down
    assert weights.by_format["mxfp4"] == experts // 2 + experts // 32
    assert find_format("mxfp4").bytes((32,)) == 17
    assert weights.by_format["float32"] == 24 * 32 * (5760 + 2880) * 4


def test_torch_and_the_table_agree_on_the_size_of_a_dtype() -> None:
    for name in ("float64", "float32", "float16", "bfloat16", "int8", "int16", "int32", "int64", "bool", "complex64"):
        assert find_format(name).bytes((7,)) == 7 * getattr(torch, name).itemsize


@pytest.mark.parametrize(
    ("native", "said"),
    [
        ({"weight_block_size": [64, 64]}, r"weight_block_size \[64, 64\]"),
        ({"weight_block_size": [128, 128], "scale_fmt": "ue8m0"}, "scale_fmt 'ue8m0'"),
    ],
)
def test_an_fp8_of_another_shape_is_refused_by_name(native: dict[str, Any], said: str) -> None:
    config = {**catalog.load("deepseek-v3").config, "quantization_config": {"quant_method": "fp8", **native}}
    with pytest.raises(UllageError, match=said) as raised:
        describe({**config, "num_hidden_layers": 4})
    assert raised.value.hint
