import json
import logging
from typing import Any

import pytest
from record_device_maps import PATH, ROOMS, folded, prepared, real_map
from record_distribution import PLANS, TREES, classes, fresh_plans, fresh_trees, rendered, tied_config

from analytic.engines.transformers.device_map import Span, infer_device_map
from analytic.errors import UllageError, UsageError
from analytic.models import catalog, meta
from analytic.models.model import Model
from analytic.weights import weigh

ROWS = json.loads(PATH.read_bytes())
GiB = 2**30


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def memory(sizes: list[int], *, has_host: bool) -> dict[Any, int]:
    return dict(enumerate(sizes[:-1])) | {"cpu": sizes[-1]} if has_host else dict(enumerate(sizes))


def placed(model: Model, strategy: Any, room: dict[Any, int], **asked: Any) -> Any:
    """The folded map, or that it was refused; the weights of all devices are those of the model."""
    try:
        placement = infer_device_map(model, device_map=strategy, max_memory=room, **asked)
    except UllageError:
        return "refused"
    expected = weigh(model, dtype=asked["dtype"], quantization=asked["quantization"]).bytes
    assert sum(placement.weights.values()) == expected
    return folded(placement.devices)


def test_a_fresh_run_writes_the_same_tables() -> None:
    assert TREES.read_text() == rendered(fresh_trees())
    assert PLANS.read_text() == rendered(fresh_plans())


def test_many_models_were_recorded() -> None:
    assert len({row[0] for row in ROWS}) >= 35
    assert {len(row[4]) - row[5] for row in ROWS} == {1, 2, 3, 4, 8}
    assert sum(row[-1] == "refused" for row in ROWS) < len(ROWS) / 5


@pytest.mark.parametrize("name", dict.fromkeys(row[0] for row in ROWS))
def test_modules_are_where_transformers_placed_them(name: str) -> None:
    for _, dtype, quantization, strategy, sizes, has_host, is_free, said in (row for row in ROWS if row[0] == name):
        room = memory(sizes, has_host=has_host)
        asked = {"dtype": dtype, "quantization": quantization, "is_free": is_free}
        assert placed(catalog.load(name), strategy, room, **asked) == said, (strategy, room, asked)


FAMILIES = [
    *("llama", "bart", "biogpt", "bloom", "falcon_mamba", "gemma2", "gemma3n_text", "gpt_oss", "granitemoehybrid"),
    *("jamba", "lfm2", "mamba2", "minimax", "mpt", "opt", "pegasus", "qwen2_moe", "t5", "xglm"),
]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_tiny_model_is_where_the_installed_transformers_places_it(model_type: str, is_tied: bool) -> None:
    config = {**tied_config(model_type), "tie_word_embeddings": is_tied, "architectures": classes(model_type)[-1:]}
    model, (real, _) = meta.from_config(config, id=model_type), prepared(config, None, "bfloat16")
    total = weigh(model, dtype="bfloat16", quantization=None).bytes
    asked: dict[str, Any] = {"dtype": "bfloat16", "quantization": None}
    for strategy, gpus, host, is_free in ROOMS:
        sizes = [int(total * share) for share in (*gpus, *([] if host is None else [host]))]
        room = memory(sizes, has_host=host is not None)
        found = real_map(real, None, strategy, room, is_free=is_free)
        assert placed(model, strategy, room, is_free=is_free, **asked) == folded(found), (strategy, room)


def test_the_first_gpu_keeps_room_for_the_largest_layer() -> None:
    model = catalog.load("llama-2-7b")
    placement = infer_device_map(
        model, device_map="sequential", max_memory={0: 4 * GiB, "cpu": 32 * GiB}, dtype="float16"
    )
    layer = 4 * 4096**2 * 2 + 3 * 4096 * 11008 * 2 + 2 * 4096 * 2  # attention, feed-forward, norms: 404,766,720
    embedding = 32000 * 4096 * 2
    fits = (4 * GiB - embedding - layer) // layer
    assert placement.spans == (Span(device=0, first=0, past=fits), Span(device="cpu", first=fits, past=32))
    assert placement.weights[0] == embedding + fits * layer
    assert placement.offloaded["lm_head"] == "cpu"


def test_without_max_memory_a_tenth_of_a_single_gpu_is_kept() -> None:
    model = catalog.load("llama-2-7b")
    room = int(1.08 * weigh(model, dtype="float16", quantization=None).bytes)
    for is_free, devices in ((False, {0}), (True, {0, "disk"})):
        placement = infer_device_map(model, device_map="auto", max_memory={0: room}, dtype="float16", is_free=is_free)
        assert {*placement.devices.values()} == devices


def test_tied_embeddings_count_once_and_stay_together() -> None:
    model = catalog.load("llama-3.2-1b")
    room = {0: GiB, 1: 2 * GiB, 2: 2 * GiB}
    placement = infer_device_map(model, device_map="sequential", max_memory=room, dtype="bfloat16")
    assert placement.devices["model.embed_tokens"] == placement.devices["lm_head"] == 0
    assert sum(placement.weights.values()) == 1_235_814_400 * 2


def test_bitsandbytes_is_refused_where_it_does_not_fit() -> None:
    with pytest.raises(UllageError, match="offloads nothing") as raised:
        infer_device_map(
            catalog.load("llama-2-7b"),
            device_map="auto",
            max_memory={0: 2 * GiB, "cpu": 64 * GiB},
            dtype="float16",
            quantization="bnb-nf4",
        )
    assert raised.value.hint


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"device_map": "even"}, "device_map: 'even' is not known"),
        ({"dtype": "int8"}, "dtype: 'int8' is not known"),
        ({"max_memory": {}}, "max_memory"),
        ({"max_memory": {1: GiB}}, "max_memory: 1 are not devices"),
        ({"max_memory": {0: GiB, "tpu": GiB}}, "tpu are not devices"),
        ({"max_memory": {0: -1}}, "cannot be negative"),
    ],
)
def test_what_is_not_known_is_refused_by_name(asked: dict[str, Any], said: str) -> None:
    usual = {"device_map": "auto", "max_memory": {0: GiB}, "dtype": "float16"}
    with pytest.raises(UsageError, match=said):
        infer_device_map(catalog.load("gpt2"), **{**usual, **asked})


def test_a_format_whose_modules_have_other_sizes_before_loading_is_refused() -> None:
    with pytest.raises(UllageError, match="how large transformers takes modules in gptq"):
        infer_device_map(
            catalog.load("llama-2-7b"),
            device_map="auto",
            max_memory={0: GiB},
            dtype="float16",
            quantization="gptq-int4",
        )


def test_dequantised_mxfp4_is_refused() -> None:
    with pytest.raises(UllageError, match="biases of openai/gpt-oss-20b"):
        infer_device_map(
            catalog.load("gpt-oss-20b"), device_map="auto", max_memory={0: GiB}, dtype="bfloat16", quantization="none"
        )


def test_a_tower_of_another_kind_is_refused() -> None:
    gemma = catalog.load("gemma-3-4b")
    other = {**gemma.config, "vision_config": {"model_type": "clip_vision_model"}}
    model = Model(
        id="x", source="local", architecture=gemma.architecture, dtype=None, config=other, tensors=gemma.tensors
    )
    with pytest.raises(UllageError, match="clip_vision_model tower"):
        infer_device_map(model, device_map="auto", max_memory={0: 9 * GiB}, dtype="bfloat16")
