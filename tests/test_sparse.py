"""Sparse checkpoints: the real library names the tensors, loads the file and runs the model."""

import errno
import fcntl
import filecmp
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tiny import TINY, tiny_config

from analytic.errors import UllageError, UsageError
from analytic.models import catalog
from profiler import models, sparse
from profiler.models import build
from profiler.sparse import EMBEDDED_TOKENS, SparseCheckpoint, keeps_holes, sparse_checkpoint

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8}
LLAMA = tiny_config("llama")
ROUTED = ("gemma4", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    model_type: str
    header: dict[str, Any]
    model: Any
    info: Any


def header_of(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    assert header.pop("__metadata__") == {"format": "pt"}
    return header


def data_bytes(checkpoint: SparseCheckpoint) -> int:
    headers = [header_of(file) for file in checkpoint.path.glob("*.safetensors")]
    return sum(max(tensor["data_offsets"][1] for tensor in header.values()) for header in headers)


def load(path: Path, **options: Any) -> Any:
    config = json.loads((path / "config.json").read_text())
    return getattr(transformers, config["architectures"][0]).from_pretrained(path, **options)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=TINY)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    with sparse_checkpoint(tiny_config(request.param), dtype="bfloat16", folder=folder) as checkpoint:
        model, info = load(checkpoint.path, dtype=torch.bfloat16, output_loading_info=True)
        header = header_of(checkpoint.path / "model.safetensors")
    return Loaded(model_type=request.param, header=header, model=model, info=info)


def test_every_tensor_is_found_where_the_real_library_looks(loaded: Loaded) -> None:
    assert not any(loaded.info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_names_shapes_and_dtypes_are_those_that_save_pretrained_writes(loaded: Loaded, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(**tiny_config(loaded.model_type))
    type(loaded.model)._from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    real = header_of(tmp_path / "model.safetensors")
    assert {n: (t["dtype"], t["shape"]) for n, t in loaded.header.items()} == {
        n: (t["dtype"], t["shape"]) for n, t in real.items()
    }


def test_the_header_sums_to_the_bytes_of_the_parameters(loaded: Loaded) -> None:
    stored = sum(prod(t["shape"]) * ITEM_BYTES[t["dtype"]] for t in loaded.header.values())
    resident = {t.data_ptr(): t.numel() * 2 for t in loaded.model.state_dict().values()}  # 2 bytes whatever it becomes
    assert stored == sum(resident.values())


def test_the_data_is_contiguous_and_every_tensor_aligned(loaded: Loaded) -> None:
    ends = [0]
    for tensor in loaded.header.values():
        begin, end = tensor["data_offsets"]
        assert begin == ends[-1]
        assert begin % ITEM_BYTES[tensor["dtype"]] == 0
        assert end - begin == prod(tensor["shape"]) * ITEM_BYTES[tensor["dtype"]]
        ends.append(end)


def test_generation_runs_and_what_reaches_the_head_is_not_zero(loaded: Loaded) -> None:
    prompt = torch.tensor([[5, 6, 7, 8], [11, 12, 13, 14]])
    generated = loaded.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    assert generated.sequences.shape == (2, 4 + 2)
    assert all(step.isfinite().all() for step in generated.logits)
    first, *_ = generated.hidden_states
    assert all(layer.isfinite().all() and (layer != 0).any(dim=-1).all() for layer in first)


def test_the_embedding_and_every_router_are_random(loaded: Loaded) -> None:
    # std 0.02; 4 x 64 values estimate it to 0.02 / sqrt(2 x 256) = 0.0009, five of which are 0.0045
    embedding = loaded.model.get_input_embeddings().weight
    names = ("gate.weight", "router.weight", "router.proj.weight")
    routers = [p for name, p in loaded.model.named_parameters() if name.endswith(names)]
    assert bool(routers) == (loaded.model_type in ROUTED)
    for weight in (embedding, *routers):
        assert weight.float().std().item() == pytest.approx(0.02, abs=0.0045)


@pytest.mark.parametrize(("model_type", "weight"), [("llama", 1), ("gemma2", 0)])
def test_norms_pass_their_input_on(model_type: str, weight: int, tmp_path: Path) -> None:
    # Llama multiplies by its weight, Gemma by one plus it
    with sparse_checkpoint(tiny_config(model_type), dtype="bfloat16", folder=tmp_path) as checkpoint:
        model = load(checkpoint.path)
    assert (model.model.norm.weight == weight).all()


def test_only_the_first_rows_of_a_large_embedding_are_written(tmp_path: Path) -> None:
    vocabulary = EMBEDDED_TOKENS + 100
    with sparse_checkpoint({**LLAMA, "vocab_size": vocabulary}, dtype="float32", folder=tmp_path) as checkpoint:
        rows = load(checkpoint.path).model.embed_tokens.weight
    assert (rows[:EMBEDDED_TOKENS] != 0).any(dim=1).all()
    assert (rows[EMBEDDED_TOKENS:] == 0).all()


def test_the_same_config_gives_the_same_bytes_whatever_the_random_state(tmp_path: Path) -> None:
    config = tiny_config("gpt_oss")  # its sinks and biases are drawn at random, not constants
    with sparse_checkpoint(config, dtype="bfloat16", folder=tmp_path) as one:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        with sparse_checkpoint(config, dtype="bfloat16", folder=tmp_path) as other:
            for name in ("config.json", "model.safetensors"):
                assert filecmp.cmp(one.path / name, other.path / name, shallow=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("dtype", "item_bytes"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_weights_are_stored_and_loaded_in_the_dtype_asked_for(dtype: str, item_bytes: int, tmp_path: Path) -> None:
    # embedding and head 384 x 64; 2 layers of q and o 64 x 64, k and v 32 x 64, three of 160 x 64, two norms; a norm
    parameters = 2 * 384 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64 + 2 * 64) + 64
    with sparse_checkpoint({**LLAMA, "torch_dtype": "bfloat16"}, dtype=dtype, folder=tmp_path) as checkpoint:
        assert data_bytes(checkpoint) == parameters * item_bytes
        assert load(checkpoint.path).dtype == getattr(torch, dtype)


def test_other_dtypes_are_kept_and_come_first_by_width(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sparse, "build", lambda config: with_buffer(build(config), torch.int64))
    with sparse_checkpoint(LLAMA, dtype="bfloat16", folder=tmp_path) as checkpoint:
        header = header_of(checkpoint.path / "model.safetensors")
    assert next(iter(header.items())) == ("odd", {"dtype": "I64", "shape": [3, 3], "data_offsets": [0, 3 * 3 * 8]})


def test_a_dtype_that_safetensors_cannot_name_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sparse, "build", lambda config: with_buffer(build(config), torch.complex128))
    with (
        pytest.raises(UllageError, match=r"odd: .*complex128"),
        sparse_checkpoint(LLAMA, dtype="bfloat16", folder=tmp_path),
    ):
        pass


def with_buffer(model: Any, dtype: torch.dtype) -> Any:
    model.register_buffer("odd", torch.empty((3, 3), dtype=dtype, device="meta"))
    return model


def test_an_embedding_that_is_stored_converted_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def converted(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: t.T.contiguous() if "embed" in name else t for name, t in state.items()}

    monkeypatch.setattr(models, "revert_weight_conversion", converted)
    with pytest.raises(UllageError, match="embed_tokens"), sparse_checkpoint(LLAMA, dtype="bfloat16", folder=tmp_path):
        pass


def test_a_type_that_is_built_as_another_loads_as_it_without_its_remote_code(tmp_path: Path) -> None:
    kimi = {**tiny_config("deepseek_v3"), "model_type": "kimi_k2", "auto_map": {"AutoConfig": "configuration.Other"}}
    with sparse_checkpoint(kimi, dtype="bfloat16", folder=tmp_path) as checkpoint:
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.path)
    assert type(model).__name__ == "DeepseekV3ForCausalLM"


@pytest.mark.parametrize("native", [{"quant_method": "fp8"}, {"quant_method": "mxfp4"}])
@pytest.mark.parametrize("nested", [False, True])
def test_a_quantised_config_is_refused_with_the_way_out(native: Any, nested: bool, tmp_path: Path) -> None:
    quantised = {"quantization_config": native}
    config = {**LLAMA, **({"text_config": quantised} if nested else quantised)}
    with (
        pytest.raises(UllageError, match=native["quant_method"]) as raised,
        sparse_checkpoint(config, dtype="bfloat16", folder=tmp_path),
    ):
        pass
    assert "--quantization none" in raised.value.hint


def test_an_unknown_dtype_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int4"), sparse_checkpoint(LLAMA, dtype="int4", folder=tmp_path):
        pass


def test_llama_2_70b_has_its_published_bytes_and_takes_next_to_no_disk(tmp_path: Path) -> None:
    if not keeps_holes(tmp_path):
        pytest.skip(f"the file system of {tmp_path} keeps no holes: 138 GB would be written")
    config = catalog.load("llama-2-70b").config
    with sparse_checkpoint(config, dtype="bfloat16", folder=tmp_path) as checkpoint:
        # 68,976,648,192 parameters x 2 bytes; meta-llama/Llama-2-70b-hf's index says total_size 137,953,296,384
        assert data_bytes(checkpoint) == 137_953_296_384
        sizes = [file.stat().st_size for file in checkpoint.path.glob("*.safetensors")]
        assert sum(sizes) == checkpoint.file_bytes
        # of 5 GB, in none of which the next tensor found room: at least 138 / 5 files, the largest tensor 0.52 GB
        assert 138 / 5 <= len(sizes) <= 138 / (5 - 0.53)
        # 1,024 rows of 8,192 and 161 norms of 8,192, 2 bytes each: 19.4 MB
        assert checkpoint.disk_bytes < 64 * 2**20


def test_several_files_load_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with sparse_checkpoint(LLAMA, dtype="bfloat16", folder=tmp_path) as whole:
        expected = transformers.AutoModelForCausalLM.from_pretrained(whole.path).state_dict()
    monkeypatch.setattr(sparse, "_SHARD_BYTES", 60_000)
    with sparse_checkpoint(LLAMA, dtype="bfloat16", folder=tmp_path) as split:
        assert len(list(split.path.glob("*.safetensors"))) > 2
        index = json.loads((split.path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in expected.values())
        found = transformers.AutoModelForCausalLM.from_pretrained(split.path).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("raised", [ValueError, OSError, KeyboardInterrupt, SystemExit, None])
def test_the_directory_goes_and_the_exception_of_the_caller_stays(
    raised: type[BaseException] | None, tmp_path: Path
) -> None:
    def use() -> None:
        with sparse_checkpoint(LLAMA, dtype="bfloat16", folder=tmp_path) as checkpoint:
            assert sorted(file.name for file in checkpoint.path.iterdir()) == ["config.json", "model.safetensors"]
            if raised is not None:
                raise raised

    if raised is None:
        use()
    else:
        with pytest.raises(raised):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def left_behind(folder: Path, name: str) -> Path:
    directory = folder / name
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"left")
    return directory


def make_one(folder: Path) -> None:
    with sparse_checkpoint(LLAMA, dtype="bfloat16", folder=folder):
        pass


@pytest.mark.parametrize("kind", ["job", "sparse"])
def test_what_a_killed_process_left_is_removed(kind: str, dead_pid: int, tmp_path: Path) -> None:
    left_behind(tmp_path, f"ullage-{kind}-{dead_pid}-abcd_123")
    make_one(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_made_is_kept(tmp_path: Path) -> None:
    living = left_behind(tmp_path, f"ullage-sparse-{os.getppid()}-abcd_123")
    make_one(tmp_path)
    assert (living / "model.safetensors").exists()


def test_what_another_container_holds_is_kept_though_its_pid_is_unknown_here(dead_pid: int, tmp_path: Path) -> None:
    held = left_behind(tmp_path, f"ullage-sparse-{dead_pid}-abcd_123")
    lock = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        make_one(tmp_path)
    finally:
        os.close(lock)
    assert (held / "model.safetensors").exists()


def test_a_checkpoint_in_use_is_locked(tmp_path: Path) -> None:
    with sparse_checkpoint(LLAMA, dtype="bfloat16", folder=tmp_path) as checkpoint:
        other = os.open(checkpoint.path, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(other)


def test_look_alikes_are_kept(dead_pid: int, tmp_path: Path) -> None:
    folder, target = tmp_path / "folder", tmp_path / "target"
    folder.mkdir()
    left_behind(tmp_path, "target")
    (folder / f"ullage-sparse-{dead_pid}-aaaaaaaa").write_text("a file")
    (folder / f"ullage-sparse-{dead_pid}-bbbbbbbb").symlink_to(target)
    for name in (
        "ullage-sparse-{}",
        "ullage-sparse-{}-abc",
        "my-ullage-sparse-{}-abcdefgh",
        "ullage-sparse-{}-abcdefgh.d",
    ):
        left_behind(folder, name.format(dead_pid))
    left_behind(folder, f"ullage-sparse-{10**30}-abcdefgh")
    before = sorted(folder.iterdir())
    make_one(folder)
    assert sorted(folder.iterdir()) == before
    assert (target / "model.safetensors").exists()


def test_what_another_user_left_is_kept(dead_pid: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = left_behind(tmp_path, f"ullage-sparse-{dead_pid}-abcd_123")
    somebody_else = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody_else)
    make_one(tmp_path)
    assert theirs.exists()


def disk_with_free(free_bytes: int) -> Any:
    return lambda _: SimpleNamespace(free=free_bytes)


def test_without_holes_a_file_that_does_not_fit_is_refused_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sparse, "keeps_holes", lambda _: False)
    monkeypatch.setattr(sparse, "_write", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(shutil, "disk_usage", disk_with_free(100_000_000_000))
    with (
        pytest.raises(UllageError) as raised,
        sparse_checkpoint(catalog.load("llama-2-70b").config, dtype="bfloat16", folder=tmp_path),
    ):
        pass
    # 137,953,296,384 bytes of data and a header of some 92 thousand
    assert all(said in raised.value.message for said in (str(tmp_path), "137,953,38", "100,000,000,000"))
    assert "ULLAGE_SPARSE_DIR" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free_fraction", "fits"), [(1.00, False), (1.05, False), (1.06, True)])
def test_without_holes_a_twentieth_of_the_disk_stays_free(
    free_fraction: float, fits: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # needed <= 0.95 x free means free >= 1.0526 x needed
    with sparse_checkpoint(LLAMA, dtype="bfloat16", folder=tmp_path) as checkpoint:
        needed_bytes = checkpoint.file_bytes
    monkeypatch.setattr(sparse, "keeps_holes", lambda _: False)
    monkeypatch.setattr(shutil, "disk_usage", disk_with_free(int(needed_bytes * free_fraction)))
    if fits:
        make_one(tmp_path)
    else:
        with pytest.raises(UllageError, match=r"do not fit into"):
            make_one(tmp_path)


def test_a_full_file_system_is_not_probed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reading a hole of a full tmpfs ends the process by SIGBUS."""
    monkeypatch.setattr(sparse, "keeps_holes", lambda _: pytest.fail("probed"))
    monkeypatch.setattr(shutil, "disk_usage", disk_with_free(100_000))
    with pytest.raises(UllageError, match="is full"):
        make_one(tmp_path)


def test_a_hole_that_reading_fills_is_none(tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or "tmpfs /dev/shm" not in Path("/proc/mounts").read_text():
        pytest.skip("no tmpfs at /dev/shm")
    mine = shared_memory / tmp_path.name
    mine.mkdir()
    try:
        assert not keeps_holes(mine)
    finally:
        shutil.rmtree(mine)


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "full"), (errno.EDQUOT, "quota"), (errno.EFBIG, "that large"), (errno.EACCES, "denied")],
)
def test_a_disk_that_refuses_the_data_is_explained(
    number: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sparse, "_write", refuse)
    with pytest.raises(UllageError, match=said) as raised:
        make_one(tmp_path)
    assert str(tmp_path) in raised.value.message
    assert "ULLAGE_SPARSE_DIR" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_largest_file_that_the_system_allows_is_named_as_the_reason(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 2**20, hard))
    try:
        with (
            pytest.raises(UllageError, match="that large"),
            sparse_checkpoint(catalog.load("llama-2-7b").config, dtype="bfloat16", folder=tmp_path),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(UllageError, match=folder.name):
            make_one(folder)


def test_the_environment_names_the_folder_unless_the_caller_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = tmp_path / "named"
    named.mkdir()
    monkeypatch.setenv("ULLAGE_SPARSE_DIR", str(named))
    with sparse_checkpoint(LLAMA, dtype="bfloat16") as checkpoint:
        assert checkpoint.path.parent == named
    with sparse_checkpoint(LLAMA, dtype="bfloat16", folder=tmp_path) as checkpoint:
        assert checkpoint.path.parent == tmp_path
