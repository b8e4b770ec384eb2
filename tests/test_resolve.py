"""What MODEL means: a path, a catalogue name or a Hub id, and what none of them is."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback_hub import LoopbackHub, safetensors_head
from tiny import tiny_config

import analytic
from analytic.errors import UllageError, UsageError
from analytic.models import catalog, meta
from analytic.models.resolve import resolve

LLAMA = tiny_config("llama")
PARAMETERS = 135_488
# 2 x 384 x 64 (embedding, head) + 64 (norm) + 2 layers x (2 x 64 x 64 + 2 x 32 x 64 + 3 x 160 x 64 + 2 x 64)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: saved(name, tmp_path_factory.mktemp(name)) for name in ("llama", "deepseek_v3", "gemma2")}


def saved(model_type: str, folder: Path) -> Path:
    config = tiny_config(model_type)
    resolved = transformers.AutoConfig.for_model(**config)
    getattr(transformers, config["architectures"][0])._from_config(resolved, dtype=torch.bfloat16).save_pretrained(
        folder
    )
    write(folder, config)
    return folder


def write(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


@pytest.fixture
def llama(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["llama"], tmp_path / "llama"))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ULLAGE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        server.patch(monkeypatch, tmp_path)
        yield server


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "profiler.models", None)


def refused(name: str | Path, **options: Any) -> UllageError:
    with pytest.raises(UllageError) as raised:
        resolve(str(name), **options)
    assert "\n" not in raised.value.message
    return raised.value


# Paths.


@pytest.mark.parametrize("inside", ["", "model.safetensors"])
def test_a_directory_and_a_weights_file_are_read_without_torch(llama: Path, inside: str, no_torch: None) -> None:
    model = resolve(str(llama / inside))
    assert (model.source, model.parameters, model.dtype) == ("local", PARAMETERS, "bfloat16")


def test_a_tilde_is_the_home_directory(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(llama.parent))
    assert resolve("~/llama").parameters == PARAMETERS


def test_the_home_of_nobody_is_refused() -> None:
    assert "no-such-user" in refused("~no-such-user/llama").message


def test_a_directory_named_like_a_hub_id_or_a_catalogue_model_wins(
    llama: Path, monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub
) -> None:
    shutil.copytree(llama, llama.parent / "acme" / "tiny")
    shutil.copytree(llama, llama.parent / "gpt2")
    monkeypatch.chdir(llama.parent)
    assert resolve("acme/tiny").source == "local"
    assert resolve("gpt2").source == "local"
    assert not hub.requests


def test_a_revision_of_a_path_is_a_contradiction(llama: Path) -> None:
    assert isinstance(refused(llama, revision="main"), UsageError)


@pytest.mark.parametrize("name", ["", "   ", "a\0b"])
def test_a_name_of_nothing_is_a_usage_error(name: str) -> None:
    assert isinstance(refused(name), UsageError)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/config.json", "nowhere.safetensors", "nowhere.gguf", "x.bin"])
def test_a_path_to_nothing_is_named(name: str) -> None:
    assert "no such file" in refused(name).message


def test_a_name_too_long_for_a_path_is_refused() -> None:
    refused("./" + "x" * 5000)
    refused("x" * 5000)
    refused("acme/" + "x" * 5000)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m.gguf", "cut short"),
        ("pytorch_model.bin", "unpickling can run code"),
        ("m.pt", "pickle"),
        ("notes.txt", "not a"),
    ],
)
def test_files_of_other_formats_are_refused_by_name(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    error = refused(tmp_path / name)
    assert said in error.message
    assert name in error.message
    assert error.hint


def test_a_directory_of_pickles_is_refused(tmp_path: Path) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "pickle" in refused(tmp_path).message


def test_a_directory_without_a_config_is_refused(llama: Path) -> None:
    (llama / "config.json").unlink()
    assert "config.json: no such file" in refused(llama).message
    assert "config.json: no such file" in refused(llama / "model.safetensors").message


def test_a_missing_shard_is_named(llama: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "missing shard 'model-00001-of-00002.safetensors'" in refused(llama).message


# The catalogue.


def test_a_catalogue_name_an_alias_and_a_hub_id_are_one_model(hub: LoopbackHub) -> None:
    assert resolve("llama-2-70b") is resolve("meta-llama/Llama-2-70b-hf") is resolve("LLAMA-2-70B")
    assert not hub.requests


def test_an_unknown_name_gets_what_resembles_it() -> None:
    assert "llama-2-70b" in refused("llama2-70b").hint
    assert "ullage models" in refused("xyzzy").hint


def test_the_catalogue_has_no_revisions() -> None:
    assert refused("llama-2-70b", revision="main").hint.endswith("meta-llama/Llama-2-70b-hf")


# The Hub.


def tiny_repository() -> dict[str, Any]:
    model = catalog.load("smollm2-360m")
    tensors = {
        group.name.replace("{}", str(layer)): ("BF16", group.shape, 2 * group.elements)
        for group in model.tensors
        if group.persistent
        for layer in (group.layers or (0,))
    }
    return {"config.json": json.dumps(model.config).encode(), "model.safetensors": safetensors_head(tensors)}


def test_a_hub_id_is_estimated_from_its_headers(hub: LoopbackHub, no_torch: None) -> None:
    repository = hub.add("acme/tiny", tiny_repository())
    answer = analytic.estimate("acme/tiny")
    known = analytic.estimate("smollm2-360m")
    assert (answer.model.source, answer.model.revision) == ("hub", repository.commit)
    assert answer.model.parameters == known.model.parameters
    assert answer.fullest.components == known.fullest.components
    assert hub.bytes_served("acme/tiny") < 100_000  # of 724 MB


def test_a_hub_model_seen_once_is_estimated_offline(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.add("acme/tiny", tiny_repository())
    online = analytic.estimate("acme/tiny", revision="main")
    seen = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert analytic.estimate("acme/tiny", revision="main").fullest == online.fullest
    assert len(hub.requests) == seen
    with pytest.raises(UllageError, match="offline mode is on and the model is not cached"):
        analytic.estimate("acme/other")


def test_a_model_that_the_hub_lacks_is_named(hub: LoopbackHub) -> None:
    error = refused("acme/absent")
    assert "acme/absent: not found on the Hub" in error.message
    assert error.hint


def test_a_revision_sends_a_catalogued_id_to_the_hub(hub: LoopbackHub) -> None:
    hub.add("meta-llama/Llama-2-70b-hf", tiny_repository())
    assert resolve("meta-llama/Llama-2-70b-hf", revision="main").source == "hub"


# A config alone.


def test_a_config_alone_is_built_on_the_meta_device_once(tmp_path: Path) -> None:
    script = (
        "import sys, analytic; a = analytic.estimate(sys.argv[1]); print(a.model.parameters, 'torch' in sys.modules)"
    )
    write(tmp_path, LLAMA)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    for imports_torch in (True, False):
        command = [sys.executable, "-c", script, str(tmp_path / "config.json")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(PARAMETERS), str(imports_torch)]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"architecture": 1, "tensors": []}',
        '{"architecture": "X", "tensors": [["a"]]}',
        '{"architecture": "X", "tensors": [["a", "norm", "", null, ["b"], "model", ""]]}',
    ],
)
def test_a_corrupt_cache_file_is_ignored_and_replaced(tmp_path: Path, damage: str) -> None:
    write(tmp_path, LLAMA)
    assert resolve(str(tmp_path)).parameters == PARAMETERS
    (file,) = (tmp_path / "cache" / "meta").iterdir()
    good = file.read_text()
    file.write_text(damage)
    assert resolve(str(tmp_path)).parameters == PARAMETERS
    assert file.read_text() == good


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ULLAGE_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert resolve(str(write(tmp_path, LLAMA))).parameters == PARAMETERS


FP8_TILES = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def test_a_quantisation_config_of_the_text_part_counts_without_headers_too() -> None:
    config = dict(catalog.load("gemma-3-4b").config)
    text = {**config["text_config"], "quantization_config": FP8_TILES}  # type: ignore[dict-item]
    assert meta.from_config({**config, "text_config": text}, id="x").native_format == "fp8"
    with pytest.raises(UllageError, match="bits cannot be None"):
        meta.from_config({**config, "text_config": {**text, "quantization_config": {"quant_method": "gptq"}}}, id="x")


def test_a_packed_checkpoint_from_its_config_alone() -> None:
    """Every linear layer of the decoder as GPTQ packs it, but for those that ``dynamic`` leaves out."""
    config = dict(catalog.load("qwen3-0.6b").config)
    native = {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*layers\\.[01]\\.": {}}}
    found = meta.from_config({**config, "quantization_config": native}, id="x")
    up = [g for g in found.tensors if g.name.endswith("mlp.up_proj.weight")]
    assert [(g.stored, len(g.layers or ())) for g in up] == [("model", 2), ("gptq-int4-g128", 26)]
    rows, columns = 3072, 1024
    assert [p.bytes for p in up[1].pieces] == [rows * columns // 2, 8 * rows // 2, 8 * rows * 2, columns * 4]
    assert found.parameters == catalog.load("qwen3-0.6b").parameters


def test_a_config_alone_needs_torch(tmp_path: Path, no_torch: None) -> None:
    error = refused(write(tmp_path, LLAMA))
    assert isinstance(error, meta.NoTorchError)
    assert "ullage[profiler]" in error.hint


def test_unfamiliar_headers_go_to_the_meta_device_and_that_is_said(llama: Path) -> None:
    weights = safetensors.torch.load_file(llama / "model.safetensors")
    safetensors.torch.save_file(
        {**weights, "gadget.weight": torch.zeros(1, dtype=torch.bfloat16)}, llama / "model.safetensors"
    )
    model = resolve(str(write(llama, {k: v for k, v in LLAMA.items() if k != "dtype"})))
    assert (model.architecture, model.dtype, model.parameters) == ("LlamaForCausalLM", "bfloat16", PARAMETERS)
    assert any("gadget.weight" in note for note in model.notes)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("LlamaForSequenceClassification", "does not generate text"),
        ("LlamaModel", "does not generate text"),
        ("NobodysLlama", "no class NobodysLlama"),
        (None, "architectures cannot be [None]"),
    ],
)
def test_a_class_that_does_not_generate_is_refused(llama: Path, named: object, said: str) -> None:
    error = refused(write(llama, {**LLAMA, "architectures": [named]}))
    assert said in error.message
    assert error.hint


def test_a_class_may_be_spelled_in_other_case(llama: Path) -> None:
    assert resolve(str(write(llama, {**LLAMA, "architectures": ["LLaMAForCausalLM"]}))).parameters == PARAMETERS


def test_unfamiliar_headers_without_torch_say_what_is_unfamiliar(llama: Path, no_torch: None) -> None:
    error = refused(write(llama, {**LLAMA, "architectures": ["NobodysLlama"]}))
    assert "NobodysLlama" in error.message
    assert "ullage[profiler]" in error.hint


def test_a_model_that_needs_its_own_code_is_refused_and_never_run(llama: Path) -> None:
    code = llama.parent / "ran"
    (llama / "modeling.py").write_text(f"open({str(code)!r}, 'w')")
    own = {"model_type": "nobodys", "auto_map": {"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"}}
    for folder in (llama, write(llama.parent, {**LLAMA, **own})):
        error = refused(write(folder, {**LLAMA, **own}))
        assert "auto_map" in error.message
        assert error.hint
    assert not code.exists()


def test_code_beside_a_known_model_type_is_not_needed(llama: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling.M"}
    assert resolve(str(write(llama, {**LLAMA, "auto_map": auto_map}))).parameters == PARAMETERS


@pytest.mark.parametrize(
    "change",
    [{"quantization_config": 4}, {"hidden_size": "64"}, {"architectures": [5]}, {"rope_parameters": 7}],
)
def test_a_config_that_transformers_cannot_build_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UllageError):
        analytic.estimate(str(write(tmp_path, {**LLAMA, **change})))


# Anything at all in config.json.

GARBAGE = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 3, 2**31, 10**30, -(10**18), 0.5, -1.5, 1e300]),
    st.sampled_from(["", "x", "bfloat16", "llama", "full_attention", "null"]),
    st.recursive(
        st.none() | st.integers(-3, 3),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=2),
        max_leaves=5,
    ),
)
EXTRA = (
    "quantization_config",
    "text_config",
    "layer_types",
    "tie_word_embeddings",
    "sliding_window",
    "head_dim",
    "rope_scaling",
)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    model_type = draw(st.sampled_from(["llama", "deepseek_v3", "gemma2"]))
    config = copy.deepcopy(tiny_config(model_type))
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from([*sorted(config), *EXTRA]))
        if draw(st.booleans()):
            config.pop(key, None)
        else:
            config[key] = draw(GARBAGE)
    return model_type, config


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(mutation=mutations())
def test_a_damaged_config_gives_an_answer_or_a_named_error(
    mutation: tuple[str, dict[str, Any]], checkpoints: dict[str, Path], tmp_path: Path, no_torch: None
) -> None:
    model_type, config = mutation
    folder = tmp_path / model_type
    if not folder.exists():
        shutil.copytree(checkpoints[model_type], folder)
    with suppress(UllageError):
        answer = analytic.estimate(str(write(folder, config)), gpu="h100-80gb")
        assert answer.fullest.device.bytes > 0
        assert answer.gpus_needed == 1
        assert answer.warnings is not None
