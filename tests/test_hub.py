"""The Hub through the real client, against a server on the loopback that counts what leaves it."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from analytic.errors import UllageError, UsageError
from analytic.models import hub as hub_module
from analytic.models.hub import fetch
from tests.loopback_hub import LoopbackHub, SparseFile, safetensors_head

CONFIG = b'{"model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}, "vocab_size": 8}'
GIB = 1 << 30
SINGLE = safetensors_head({"embed": ("BF16", (4096, 1024), 4096 * 1024 * 2), "scale": ("F32", (), 4)}, format="pt")


def sharded(shards: int, tensors: int = 3) -> dict[str, bytes | SparseFile]:
    """A model of ``shards`` files with tensors of 1 GiB each."""
    files: dict[str, bytes | SparseFile] = {"config.json": CONFIG}
    weight_map: dict[str, str] = {}
    for shard in range(1, shards + 1):
        name = f"model-{shard:05}-of-{shards:05}.safetensors"
        names = [f"layers.{shard}.{i}" for i in range(tensors)]
        files[name] = safetensors_head(dict.fromkeys(names, ("U8", (GIB,), GIB)))
        weight_map |= dict.fromkeys(names, name)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(hub_module, "RETRY_SECONDS", 0.01)
    with LoopbackHub() as server:
        server.patch(monkeypatch, tmp_path)
        server.add("acme/single", {"config.json": CONFIG, "model.safetensors": SINGLE})
        yield server


def named(repo_id: str, message: str, *, revision: str | None = None, hint: str = "") -> UllageError:
    """The one-line error that fetching raises."""
    with pytest.raises(UllageError) as caught:
        fetch(repo_id, revision=revision)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert repo_id in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


# What it gives and what it costs


def test_a_single_file_costs_its_header_and_nothing_more(hub: LoopbackHub) -> None:
    model = fetch("acme/single")
    assert (model.id, model.commit) == ("acme/single", hub.repositories["acme/single"].commit)
    assert model.config == json.loads(CONFIG)
    assert [(t.name, t.dtype, t.shape, t.bytes, t.file) for t in model.tensors or ()] == [
        ("embed", "BF16", (4096, 1024), 8 * 1024 * 1024, "model.safetensors"),
        ("scale", "F32", (), 4, "model.safetensors"),
    ]
    assert hub.bytes_served("acme/single/model.safetensors") == len(SINGLE.head)
    assert all(request.range for request in hub.requests if request.path.endswith(".safetensors"))


def test_shards_are_read_at_once_each_for_its_header(hub: LoopbackHub) -> None:
    files = sharded(40)
    hub.add("acme/large", files)
    hub.stall_seconds = 0.1
    model = fetch("acme/large")
    assert sum(t.bytes for t in model.tensors or ()) == 40 * 3 * GIB
    heads = [file.head for file in files.values() if isinstance(file, SparseFile)]
    assert hub.bytes_served("acme/large/model-") == sum(map(len, heads))
    assert 4 < hub.most_in_flight <= 16


def test_a_commit_in_the_cache_is_not_asked_for_again(hub: LoopbackHub) -> None:
    first = fetch("acme/single")
    asked = len(hub.requests)
    assert fetch("acme/single") == first
    assert len(hub.requests) == asked + 1  # which commit is main now?
    assert fetch("acme/single", revision=first.commit) == first
    assert len(hub.requests) == asked + 1  # a commit never changes


def test_a_new_commit_is_read_anew(hub: LoopbackHub) -> None:
    fetch("acme/single")
    hub.add("acme/single", {"config.json": b'{"model_type": "gemma"}', "model.safetensors": SINGLE})
    assert fetch("acme/single").config == {"model_type": "gemma"}


def test_a_named_revision_is_followed_to_its_commit(hub: LoopbackHub) -> None:
    hub.add("acme/tagged", {"config.json": CONFIG, "model.safetensors": SINGLE}, revisions=("refs/pr/1",))
    assert fetch("acme/tagged", revision="refs/pr/1").commit == hub.repositories["acme/tagged"].commit


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema": 1}', b"\xff", b'{"schema": 0}'])
def test_a_corrupt_cache_is_fetched_again(hub: LoopbackHub, tmp_path: Path, damage: bytes) -> None:
    model = fetch("acme/single")
    file = tmp_path / "ullage" / "hub" / "acme--single" / f"{model.commit}.json"
    sound = file.read_bytes()
    for raw in (damage, sound[: len(sound) // 2], sound.replace(b'"BF16"', b'"BF17"'), sound.replace(b"4096", b"-1")):
        file.write_bytes(raw)
        assert fetch("acme/single") == model
        assert file.read_bytes() == sound
    assert [path.name for path in file.parent.iterdir() if path.suffix == ".tmp"] == []


def test_a_cache_that_cannot_be_written_is_no_error(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "ullage").write_bytes(b"a file where the directory should be")
    assert fetch("acme/single").tensors


def test_repositories_without_safetensors_have_none(hub: LoopbackHub) -> None:
    hub.add("acme/pickle", {"config.json": CONFIG, "pytorch_model.bin": b"cos\nsystem\n"})
    hub.add("acme/nested", {"config.json": CONFIG, "unet/model.safetensors": SINGLE})
    assert fetch("acme/pickle").tensors is None
    assert fetch("acme/pickle").tensors is None  # from the cache, not ()
    assert fetch("acme/nested").tensors is None
    assert hub.bytes_served("acme/pickle/pytorch") == 0


def test_numbered_shards_without_an_index(hub: LoopbackHub) -> None:
    files = sharded(3)
    del files["model.safetensors.index.json"]
    hub.add("acme/bare", files)
    assert len(fetch("acme/bare").tensors or ()) == 9
    del files["model-00002-of-00003.safetensors"]
    hub.add("acme/bare", files)
    named("acme/bare", "shard 2 of 3 of 'model' is missing")


def test_a_token_stays_with_the_hub_when_a_file_is_elsewhere(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.add("acme/gated", {"config.json": CONFIG, "model.safetensors": SINGLE}, gated=True)
    with LoopbackHub() as storage:
        storage.add("acme/gated", {"model.safetensors": SINGLE}, commit=hub.repositories["acme/gated"].commit)
        hub.redirect_to = storage.url
        assert fetch("acme/gated").tensors
        assert {request.authorization for request in hub.requests} == {f"Bearer {hub.token}"}
        assert {request.authorization for request in storage.requests} == {None}
        assert storage.bytes_served("acme/gated") == len(SINGLE.head)


# What goes wrong


def test_gated_models_ask_for_a_token(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("acme/gated", {"config.json": CONFIG, "model.safetensors": SINGLE}, gated=True)
    named("acme/gated", "the model is gated", hint="HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    named("acme/gated", "the model is gated", hint="accept the model's terms")
    assert hub.bytes_served("acme/gated") == 0


def test_what_is_absent_is_named(hub: LoopbackHub) -> None:
    named("acme/none", "not found on the Hub, or private", hint="check the id")
    named("acme/single", "@v9: no such revision", revision="v9", hint="a branch, a tag or a commit")
    hub.add("acme/gguf", {"model.gguf": b"GGUF"})
    named("acme/gguf", "no config.json in the repository", hint="acme/gguf:Q4_K_M")


@pytest.mark.parametrize(
    "repo_id", ["", "a/b/c", "../etc", "acme/", "a--b", "with space", "/absolute/path", "acme/x.git"]
)
def test_what_cannot_be_an_id_is_a_usage_error(hub: LoopbackHub, repo_id: str) -> None:
    with pytest.raises(UsageError, match="nor a Hub id"):
        fetch(repo_id)
    assert hub.requests == []


def test_an_empty_revision_is_a_usage_error(hub: LoopbackHub) -> None:
    with pytest.raises(UsageError, match="revision is empty"):
        fetch("acme/single", revision=" ")


def test_a_hub_that_refuses_or_stalls_is_named(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.stall_seconds = 5
    named("acme/single", "the Hub could not be reached: timed out", hint="HF_HUB_OFFLINE=1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    named("acme/single", "the Hub could not be reached", hint="HF_ENDPOINT")


def test_a_server_that_is_no_hub_is_named(hub: LoopbackHub) -> None:
    hub.repositories["acme/single"].commit = "../../etc"
    named("acme/single", "the server names no commit")


def test_broken_connections_and_busy_servers_are_tried_again(hub: LoopbackHub) -> None:
    hub.fail_next = [0, 503, 1]
    assert fetch("acme/single").tensors
    assert hub.fail_next == []


def test_a_connection_that_keeps_breaking_is_named(hub: LoopbackHub) -> None:
    hub.fail_next = [0] * 9
    named("acme/single", "model.safetensors: the Hub could not be reached")
    assert len(hub.fail_next) == 9 - hub_module.ATTEMPTS


@pytest.mark.parametrize(("status", "message"), [(401, "access is refused"), (403, "access is refused"), (418, "418")])
def test_other_refusals_are_named(hub: LoopbackHub, status: int, message: str) -> None:
    hub.fail_next = [status]
    named("acme/single", message)


def test_a_server_that_ignores_ranges_is_cut_off(hub: LoopbackHub) -> None:
    huge = safetensors_head({"a": ("U8", (15 * GIB,), 15 * GIB)})
    hub.add("acme/huge", {"config.json": CONFIG, "model.safetensors": huge})
    hub.ignore_range = True
    assert [t.bytes for t in fetch("acme/huge").tensors or ()] == [15 * GIB]
    assert hub.bytes_served("acme/huge/model.safetensors") < 32 << 20  # what sockets buffer, twice; not 15 GiB


@pytest.mark.parametrize(
    ("content_range", "message"),
    [
        ("bytes 100-107/1000", "the server answered with others"),
        ("bytes */1000", "the server answered with others"),
        ("nonsense", "the server answered with others"),
        (f"bytes 0-7/{SINGLE.size + 1}", "by the server"),
    ],
)
def test_a_lying_content_range_is_refused(hub: LoopbackHub, content_range: str, message: str) -> None:
    hub.content_range = content_range
    named("acme/single", message)


def test_a_lying_file_list_is_refused(hub: LoopbackHub) -> None:
    hub.repositories["acme/single"].listed_sizes["model.safetensors"] = SINGLE.size - 4
    named("acme/single", "by the file list")


@pytest.mark.parametrize("listed", [None, "many", [1], True])
def test_a_size_that_only_the_server_tells_is_used(hub: LoopbackHub, listed: object) -> None:
    hub.repositories["acme/single"].listed_sizes["model.safetensors"] = listed
    assert fetch("acme/single").tensors
    short = SparseFile(head=SINGLE.head, size=SINGLE.size - 1)
    hub.add("acme/short", {"config.json": CONFIG, "model.safetensors": short}, listed_sizes={"model.safetensors": None})
    named("acme/short", "cut short")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (struct.pack("<Q", 100_000_001) + b"{}", "claims a header of 100,000,001 bytes"),
        (struct.pack("<Q", 5_000_000) + b"{}", "a header of 5000000 bytes in a file of 1000000"),
        (struct.pack("<Q", 0), "a header of 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (struct.pack("<Q", 8) + b"{nonsens", "not valid JSON"),
    ],
)
def test_a_bad_header_is_refused_before_more_is_read(hub: LoopbackHub, head: bytes, message: str) -> None:
    files: dict[str, bytes | SparseFile] = {"model.safetensors": SparseFile(head=head, size=1_000_000)}
    hub.add("acme/bad", {"config.json": CONFIG} | files)
    named("acme/bad", message)
    assert hub.bytes_served("acme/bad/model.safetensors") <= 16


def test_a_file_shorter_than_its_length_is_refused(hub: LoopbackHub) -> None:
    hub.add("acme/stub", {"config.json": CONFIG, "model.safetensors": b"12345"})
    named("acme/stub", "5 bytes came of 8")
    hub.add("acme/stub", {"config.json": CONFIG, "model.safetensors": b""})
    named("acme/stub", "the file is shorter than its header says")


def test_a_bad_index_is_refused(hub: LoopbackHub) -> None:
    files = sharded(2)
    index = {"weight_map": {"a": "../../config.safetensors"}}
    hub.add("acme/evil", files | {"model.safetensors.index.json": json.dumps(index).encode()})
    named("acme/evil", "not the name of a safetensors file")
    del files["model-00002-of-00002.safetensors"]
    hub.add("acme/partial", files)
    named("acme/partial", "missing shard 'model-00002-of-00002.safetensors'")
    assert hub.bytes_served("acme/partial/model-") == 0


def test_a_config_that_is_too_large_or_wrong_is_refused(hub: LoopbackHub) -> None:
    hub.add("acme/fat", {"config.json": SparseFile(head=b"{", size=10_000_001), "model.safetensors": SINGLE})
    named("acme/fat", "10,000,001 bytes, which no such file is")
    assert hub.bytes_served("acme/fat") == 0
    hub.add("acme/odd", {"config.json": b"[]"})
    named("acme/odd", "config.json: holds a JSON list")


def test_a_small_file_that_does_not_end_is_stopped(hub: LoopbackHub) -> None:
    fat = SparseFile(head=b"{", size=2 * GIB)
    hub.add("acme/endless", {"config.json": fat}, listed_sizes={"config.json": 100})
    with pytest.raises(UllageError, match="the server sends more than 100,000,000 bytes"):
        fetch("acme/endless")
    assert hub.bytes_served("acme/endless") < 160_000_000


# Offline


def test_offline_answers_from_our_cache(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fetch("acme/single")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert fetch("acme/single") == fetch("acme/single", revision=model.commit) == model
    assert len(hub.requests) == asked
    named("acme/single", "@v2: offline mode is on and the model is not cached", revision="v2", hint="HF_HUB_OFFLINE")
    named("acme/other", "offline mode is on and the model is not cached")


def test_offline_answers_from_the_librarys_snapshot(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hf" / "models--acme--downloaded"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_bytes(CONFIG)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    named("acme/downloaded", "only its config.json is cached", hint="config.json")
    (snapshot / "model.safetensors").write_bytes(SINGLE.head)
    os.truncate(snapshot / "model.safetensors", SINGLE.size)
    model = fetch("acme/downloaded")
    assert (model.commit, model.config) == (commit, json.loads(CONFIG))
    assert [t.name for t in model.tensors or ()] == ["embed", "scale"]
    assert hub.requests == []


def test_the_librarys_environment_is_honoured_by_a_fresh_process(hub: LoopbackHub, tmp_path: Path) -> None:
    script = (
        "import sys; from analytic.models.hub import fetch\n"
        "assert not {'huggingface_hub', 'rich', 'platformdirs'} & set(sys.modules), 'importing must be light'\n"
        "model = fetch('acme/gated'); print(model.commit, len(model.tensors))"
    )
    hub.add("acme/gated", {"config.json": CONFIG, "model.safetensors": SINGLE}, gated=True)
    environment = os.environ | hub.environment(tmp_path / "process") | {"HF_TOKEN": hub.token}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment | extra, capture_output=True, text=True, check=True
        )
        for extra in ({}, {"HF_HUB_OFFLINE": "1"})
    ]
    expected = f"{hub.repositories['acme/gated'].commit} 2\n"
    assert [(run.stdout, run.stderr) for run in outputs] == [(expected, "")] * 2


def test_a_terminal_sees_progress_and_a_pipe_does_not(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("acme/large", sharded(9))
    fetch("acme/large")
    assert capsys.readouterr().err == ""
    hub.add("acme/large", sharded(10))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    fetch("acme/large")
    captured = capsys.readouterr()
    assert "headers" in captured.err
    assert captured.out == ""
