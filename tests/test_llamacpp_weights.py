"""Weights beside the buffers that the real llama.cpp makes for them, to the byte (record_llamacpp_weights.py)."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llamacpp_runs import run
from made_gguf import LLAMA, llama_tensors, write_gguf
from record_llamacpp_weights import DATA, configs, files, write
from test_gguf_mixtures import model as as_recorded

from analytic.engines.llamacpp.graph import compute_buffers
from analytic.errors import UllageError, UsageError
from analytic.loaded import Loaded
from analytic.loaded.gguf_file import gguf_file
from analytic.loaded.llamacpp import llamacpp_weights
from analytic.models.as_gguf import converted
from analytic.models.geometry import Attention
from analytic.models.model import Model
from analytic.models.resolve import resolve

MIB = 2**20
RECORDED: dict[str, dict[str, Any]] = json.loads(DATA.read_text())
MIXTURES = json.loads((DATA.parents[1] / "gguf_mixtures.json").read_text())["models"]


def held(model: Model, *, quantization: str | None = None, **settings: Any) -> dict[str, Loaded]:
    rows = llamacpp_weights(model, dtype="bfloat16", quantization=quantization, **settings)
    return {row.place: row for row in rows}


def changes(row: Loaded) -> dict[str, int]:
    return {change.what: change.bytes for change in row.changes}


def require_same(model: Model, quantization: str | None, recorded: list[Any]) -> None:
    for backend, layers, mmap, experts, buffers in recorded:
        settings = {"backend": backend, "gpu_layers": layers, "mmap": mmap, "cpu_moe_layers": experts}
        rows = held(model, quantization=quantization, **settings)
        assert rows["GPU"].bytes == buffers.get("GPU", 0), settings
        assert rows["host"].bytes == sum(buffers.values()) - buffers.get("GPU", 0), settings
        stored = sum(
            t.bytes for t in gguf_file(model, dtype="bfloat16", quantization=quantization, gpu_layers=999).tensors
        )
        assert stored + sum(sum(changes(row).values()) for row in rows.values()) == sum(r.bytes for r in rows.values())


@pytest.mark.parametrize("file", [pytest.param(file, id=file[0]) for file in files()])
def test_a_file_is_held_as_llama_cpp_holds_it(file: tuple[Any, ...], tmp_path: Path) -> None:
    name, *content = file
    require_same(resolve(str(write(tmp_path, *content))), None, RECORDED["runs"][name])


@pytest.mark.parametrize("made", [pytest.param(made, id=made[0]) for made in configs()])
def test_a_model_is_held_as_its_converted_and_quantised_file(made: tuple[Any, ...], tmp_path: Path) -> None:
    name, mixture, config = made
    (tmp_path / "config.json").write_text(json.dumps(config))
    require_same(resolve(str(tmp_path / "config.json")), mixture, RECORDED["hub"][name])


@pytest.mark.parametrize("name", MIXTURES)
def test_every_tensor_has_the_name_that_the_converter_gives_it(name: str) -> None:
    config = {k: v for k, v in as_recorded(name).config.items() if k != "quantization_config"}
    file = gguf_file(replace(resolve(name), config=config), dtype="bfloat16", quantization=None, gpu_layers=999)
    ours = {re.sub(r"^blk\.\d+", "blk.{}", tensor.name) for tensor in file.tensors}
    assert ours == {name for name, *_ in MIXTURES[name]["converted"]}


@pytest.mark.parametrize("name", MIXTURES)
def test_every_tensor_has_the_shape_that_the_converter_gives_it(name: str) -> None:
    ours = Counter(
        (re.sub(r"^blk\.\d+", "blk.{}", tensor.name), tensor.shape, tensor.type.name)
        for tensor in converted(as_recorded(name), dtype="bfloat16")
    )
    assert ours == {(own, tuple(shape), kind): count for own, shape, kind, count in MIXTURES[name]["converted"]}


@pytest.mark.parametrize(("name", "key_heads"), [("falcon-7b", 1), ("falcon-40b", 8)])
def test_a_falcon_file_is_read_as_the_config_that_it_was_converted_from(
    name: str, key_heads: int, tmp_path: Path
) -> None:
    model = resolve(name)
    layers, mixer = model.geometry.layers, model.geometry.layers[0].mixer
    assert isinstance(mixer, Attention)
    metadata = {  # conversion/falcon.py
        "context_length": 2048,
        "tensor_data_layout": "jploski",
        "embedding_length": model.geometry.hidden_size,
        "feed_forward_length": 4 * model.geometry.hidden_size,
        "block_count": len(layers),
        "attention.head_count": mixer.heads,
        "attention.head_count_kv": key_heads,
        "attention.layer_norm_epsilon": 1e-5,
    }
    tensors = {
        tensor.name: ("F16" if tensor.type.name == "BF16" else "F32", tensor.shape)
        for tensor in converted(model, dtype="bfloat16")
    }
    file = resolve(str(write_gguf(tmp_path / "falcon.gguf", "falcon", metadata, tensors)))
    assert file.geometry.layers == layers
    settings: dict[str, Any] = {"dtype": "float16", "quantization": None, "ctx_size": 4096}
    assert compute_buffers(file, **settings) == compute_buffers(model, **settings)
    with pytest.raises(UllageError, match="head_count_kv cannot be"):
        resolve(
            str(
                write_gguf(tmp_path / "rw.gguf", "falcon", metadata | {"attention.head_count_kv": mixer.heads}, tensors)
            )
        )


@pytest.mark.parametrize(("kind", "tied"), [("Q4_0", True), ("Q8_0", False)])
def test_the_installed_llama_cpp_prints_the_same_of_the_host(kind: str, tied: bool, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", LLAMA, llama_tensors(kind=kind, tied=tied))
    printed = run(path, n_ctx=256)["model"]
    rows = held(resolve(str(path)), backend="cpu")
    assert rows["GPU"].bytes == 0
    assert rows["host"].bytes / MIB == pytest.approx(sum(printed.values()), abs=0.005 * len(printed) + 1e-6)
    assert ("CPU_REPACK" in printed) == (kind == "Q4_0")


def test_each_change_is_named_and_adds_up(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", LLAMA, llama_tensors(kind="Q4_0", tied=True))
    gpu, host = held(resolve(str(path)))["GPU"], held(resolve(str(path)))["host"]
    head = 512 * 256 // 32 * 18
    # 7 matrices of each of 2 layers and the head; only ffn_down's rows of 512 are whole
    padding = (2 * 6 + 1) * 256 // 32 * 18
    assert changes(gpu) == {
        "output head, tied to the embedding, a second time": head,
        "quantised tensors padded to rows of 512 elements": padding,
        "tensors aligned to 128 bytes": (2 * 6 + 1) * (128 - 144 % 128),
    }
    assert host == Loaded(place="host", bytes=head)


def test_a_graphics_card_printed_the_same() -> None:
    """Lines of CUDA's own runs: Ollama in June 2025 of an 8B Llama; ggml-org/llama.cpp issue 13729, build 5466."""
    llama = held(resolve("llama-3.1-8b"), quantization="Q4_K_M")
    assert [round(row.bytes / MIB, 2) for row in llama.values()] == [4403.49, 281.81]
    qwen = resolve("qwen3-30b-a3b")  # 30 layers offloaded, which then did not include the head
    some, head = (held(qwen, quantization="Q4_K_M", gpu_layers=layers) for layers in (31, 1))
    assert (some["GPU"].bytes - head["GPU"].bytes) / MIB == pytest.approx(10750.86, abs=0.0051)
    assert (some["host"].bytes + head["GPU"].bytes) / MIB == pytest.approx(6940.48, abs=0.0051)


def test_99_layers_are_not_all_of_a_model_of_126() -> None:
    gpu, host = held(resolve("llama-3.1-405b"), quantization="Q4_K_M", gpu_layers=99).values()
    everything = held(resolve("llama-3.1-405b"), quantization="Q4_K_M")["host"]
    file = gguf_file(resolve("llama-3.1-405b"), dtype="bfloat16", quantization="Q4_K_M", gpu_layers=99)
    # 126 + 1 - 99 layers stay
    staying = sum(t.bytes for t in file.tensors if t.layer is not None and t.layer < 28)
    rotary = 4 * 128 // 2  # float32 factors of half a head: layers on the host have their own
    assert host.bytes == staying + everything.bytes + rotary
    assert gpu.bytes > host.bytes


def test_prediction_layers_count_for_ngl_and_are_not_loaded() -> None:
    model = resolve("glm-4.5-air")  # 46 layers and one for prediction
    all_but_one = held(model, quantization="Q4_K_M", gpu_layers=47)
    assert all_but_one["GPU"].bytes < held(model, quantization="Q4_K_M", gpu_layers=48)["GPU"].bytes
    assert held(model, quantization="Q4_K_M", gpu_layers=48) == held(model, quantization="Q4_K_M")


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", LLAMA, llama_tensors())
    file, small = resolve(str(path)), resolve("llama-3.2-1b")
    for model, settings, said in (
        (small, {"quantization": "gptq"}, "no quantisation 'gptq'"),
        (small, {"quantization": "bnb-nf4"}, "no quantisation 'bnb-nf4'"),
        (small, {"quantization": "Q9_K"}, "'Q9_K' is not known"),
        (file, {"quantization": "Q4_K_M"}, "is a GGUF file"),
        (resolve("gpt-oss-20b"), {}, "how llama.cpp converts mxfp4"),
        (resolve("opt-1.3b"), {"quantization": "Q4_K_M"}, "how llama.cpp converts 'opt'"),
        (resolve("qwen3-next-80b-a3b"), {"quantization": "Q4_K_M", "gpu_layers": 20}, "prediction layers"),
        (small, {"gpu_layers": 4}, "in any order"),
        (replace(file, id="org/name/model.gguf"), {"gpu_layers": 1}, "in any order"),
        (replace(file, id="org/name/model.gguf", stored_bytes=1), {"gpu_layers": 1}, "prediction layers"),
    ):
        with pytest.raises(UllageError, match=said) as refused:
            held(model, **settings)
        assert refused.value.hint
    for settings in ({"gpu_layers": -1}, {"cpu_moe_layers": -1}, {"backend": "metal"}):
        with pytest.raises(UsageError):
            held(file, **settings)


def test_a_tensor_without_a_known_place_is_refused(tmp_path: Path) -> None:
    tensors = {**llama_tensors(), "cls.weight": ("F16", (2, 256))}
    path = write_gguf(tmp_path / "model.gguf", "llama", LLAMA, tensors)
    with pytest.raises(UllageError, match=r"where llama.cpp keeps cls\.weight of llama"):
        held(resolve(str(path)))


def test_a_file_on_the_hub_is_held_as_the_same_file_here(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", LLAMA, llama_tensors())
    model = resolve(str(path))
    assert held(replace(model, id="org/name/model.gguf")) == held(model)
