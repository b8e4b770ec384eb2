import contextlib
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from loopback_hub import LoopbackHub
from made_gguf import LLAMA, llama_tensors, write_gguf

from analytic.errors import UllageError
from analytic.formats.ggml import BY_NAME, TYPES, row_of, tensor_bytes
from analytic.formats.table import find_format
from analytic.models.gguf import Skipped, parse_gguf, read_gguf
from analytic.models.resolve import resolve
from analytic.weights import weigh

# ggml's types.


def test_every_type_of_the_package_has_its_sizes() -> None:
    assert {t.id: (t.name, t.block_elements, t.block_bytes) for t in TYPES.values()} == {
        t.value: (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType
    }


def test_the_package_quantises_to_as_many_bytes() -> None:
    weight = np.ones((4, 512), dtype=np.float32)
    tried = 0
    for kind in gguf.GGMLQuantizationType:
        try:
            made = gguf.quants.quantize(weight, kind)
        except NotImplementedError:
            continue
        assert made.nbytes == tensor_bytes(BY_NAME[kind.name], (4, 512), "x") == find_format(_row(kind)).bytes((4, 512))
        tried += 1
    assert tried >= 10


def _row(kind: Any) -> str:
    return row_of(BY_NAME[kind.name])


def test_rows_are_whole_blocks() -> None:
    with pytest.raises(UllageError, match="rows of 100 are no whole blocks of Q4_K"):
        tensor_bytes(BY_NAME["Q4_K"], (4, 100), "x")


# Files.


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", "llama", LLAMA, llama_tensors())


@pytest.mark.parametrize("kind", [t.name for t in TYPES.values() if t.name not in ("Q8_1", "Q8_K", "F64", "I64")])
def test_tensors_are_those_of_the_real_reader(kind: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", LLAMA, llama_tensors(kind=kind))
    real = gguf.GGUFReader(path)
    ours = read_gguf(path)
    assert [(t.name, t.type.name, t.shape[::-1], t.bytes) for t in ours.tensors] == [
        (t.name, t.tensor_type.name, tuple(map(int, t.shape)), t.n_bytes) for t in real.tensors
    ]
    assert ours.metadata.keys() == {key for key in real.fields if not key.startswith("GGUF.")}


def test_long_arrays_are_passed_over(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_token_list([f"token {i}" for i in range(200_000)])
    writer.add_token_scores([0.0] * 200_000)
    writer.add_array("llama.some", [1, 2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    found = read_gguf(tmp_path / "x.gguf").metadata
    assert found["tokenizer.ggml.tokens"] == found["tokenizer.ggml.scores"] == Skipped(200_000)
    assert found["llama.some"] == (1, 2, 3)


def test_a_header_is_asked_for_in_few_pieces(file: Path) -> None:
    blob, asked = file.read_bytes(), []

    def read(first: int, length: int) -> bytes:
        asked.append(length)
        return blob[first : first + length]

    assert parse_gguf(read, size=None, where="x").tensors == parse_gguf(read, size=len(blob), where="x").tensors
    assert len(asked) <= 4


def test_split_files_are_read_together(tmp_path: Path) -> None:
    tensors = list(llama_tensors().items())
    for number in range(3):
        own = dict(tensors[number * 7 : (number + 1) * 7])
        split = {"split.count": 3, "split.no": number, "split.tensors.count": len(tensors)}
        write_gguf(tmp_path / f"m-{number + 1:05d}-of-00003.gguf", "llama", {**LLAMA, **split}, own)
    whole = write_gguf(tmp_path / "whole.gguf", "llama", LLAMA, llama_tensors())
    for number in (1, 3):
        model = resolve(str(tmp_path / f"m-{number:05d}-of-00003.gguf"))
        assert weigh(model, dtype="float16", quantization=None) == weigh(
            resolve(str(whole)), dtype="float16", quantization=None
        )
    (tmp_path / "m-00002-of-00003.gguf").rename(tmp_path / "other.gguf")
    with pytest.raises(UllageError, match=r"m-00002-of-00003\.gguf: no such file"):
        resolve(str(tmp_path / "m-00001-of-00003.gguf"))
    with pytest.raises(UllageError, match="a part of 3, which its name does not"):
        resolve(str(tmp_path / "other.gguf"))


def test_a_model_has_the_bytes_of_its_tensors(file: Path) -> None:
    model, real = resolve(str(file)), gguf.GGUFReader(file)
    weights = weigh(model, dtype="float16", quantization=None)
    assert weights.bytes == model.stored_bytes == sum(t.n_bytes for t in real.tensors)
    assert model.parameters == sum(int(np.prod(t.shape)) for t in real.tensors)
    assert set(weights.by_format) == {"Q4_K", "Q6_K", "float32"}
    assert (model.source, model.native_format, model.geometry.model_type) == ("gguf", "gguf", "llama")
    plain = weigh(model, dtype="float16", quantization="none")
    norms = sum(g.elements * g.count for g in model.tensors if g.role == "norm")
    assert plain.bytes == 2 * (model.parameters - norms) + 4 * norms


# What is refused.


def refused(path: Path, blob: bytes) -> UllageError:
    path.write_bytes(blob)
    with pytest.raises(UllageError) as raised:
        resolve(str(path))
    assert "\n" not in raised.value.message
    return raised.value


def header(tensors: int = 0, pairs: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, pairs)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


@pytest.mark.parametrize(
    ("blob", "said"),
    [
        (b"", "cut short inside its header"),
        (b"GGML" + bytes(100), "does not start with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (header(version=1), "GGUF version 1"),
        (header(version=4), "GGUF version 4"),
        (header(version=3 << 24), "big-endian"),
        (header(tensors=1 << 60), "tensors; at most"),
        (header(pairs=1 << 60), "metadata entries; at most"),
        (header(pairs=1) + struct.pack("<Q", 1 << 50), "bytes in a key; at most"),
        (header(pairs=1) + text("a") + struct.pack("<I", 77), "'a' is of unknown type 77"),
        (header(pairs=1) + text("a") + struct.pack("<IQ", 8, 1 << 40), "the text of 'a'; at most"),
        (header(pairs=1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 50), "entries of 'a'; at most"),
        (header(pairs=1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "an array of unknown type 9"),
        (header(pairs=1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 20), "cut short inside its header"),
        (header(pairs=1) + struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 1), "is not UTF-8"),
        (header(pairs=2) + 2 * (text("a") + struct.pack("<IB", 0, 1)), "'a' twice"),
        (header(tensors=1) + text("t") + struct.pack("<I", 5), "5 dimensions"),
        (header(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 0, 0, 0), "impossible shape"),
        (header(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 32, 99, 0), "unknown type 99"),
        (header(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 32, 0, 64), "is said to be at 64"),
        (header(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 32, 0, 0), "cut short: 0 bytes of data"),
        (header(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 33, 2, 0), "no whole blocks of Q4_0"),
        (header(pairs=1) + text("general.alignment") + struct.pack("<II", 4, 24), "general.alignment cannot be 24"),
        (header(), "no general.architecture"),
        (header(pairs=1) + text("general.architecture") + struct.pack("<I", 8) + text("rwkv9"), "'rwkv9' is not known"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(blob: bytes, said: str, tmp_path: Path) -> None:
    error = refused(tmp_path / "x.gguf", blob)
    assert said in error.message
    assert error.hint or "whole blocks" in said or "cut" in said


def test_no_damage_is_anything_but_refused(file: Path, tmp_path: Path) -> None:
    """Every cut of the header, and 600 of its bytes changed one by one."""
    blob, path = file.read_bytes(), tmp_path / "x.gguf"
    end = len(blob) - sum(t.bytes for t in read_gguf(file).tensors)
    for cut in range(0, end, 7):
        refused(path, blob[:cut])
    pick = random.Random(0)
    for _ in range(600):
        at = pick.randrange(end)
        path.write_bytes(blob[:at] + bytes([pick.randrange(256)]) + blob[at + 1 :])
        with contextlib.suppress(UllageError):
            resolve(str(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block_count": 0}, "num_hidden_layers cannot be 0"),
        ({"attention.head_count": 3}, "num_key_value_heads cannot be 2"),
        ({"block_count": "two"}, "llama.block_count cannot be 'two'"),
        ({"attention.head_count_kv": [2, 1]}, r"llama.attention.head_count_kv cannot be (2, 1)"),
    ],
)
def test_metadata_that_cannot_be_meant(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", "llama", {**LLAMA, **change}, llama_tensors())
    with pytest.raises(UllageError) as raised:
        assert resolve(str(path)).geometry
    assert said in raised.value.message


# On the Hub.


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub() as loopback:
        loopback.patch(monkeypatch, tmp_path / "hub")
        names = ("tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "mmproj-tiny-Q4_K_M.gguf", "BF16/tiny-BF16.gguf")
        loopback.add("acme/tiny-GGUF", dict.fromkeys(names, file.read_bytes()))
        yield loopback


@pytest.mark.parametrize(
    "name", ["acme/tiny-GGUF:Q4_K_M", "acme/tiny-GGUF:q4_k_m", "acme/tiny-GGUF/tiny-Q4_K_M.gguf", "acme/tiny-GGUF:BF16"]
)
def test_a_file_of_the_hub_by_its_header(name: str, hub: LoopbackHub, file: Path) -> None:
    model = resolve(name)
    assert model.stored_bytes == resolve(str(file)).stored_bytes
    assert model.id.startswith("acme/tiny-GGUF/")
    assert model.revision
    assert hub.bytes_served("acme/tiny-GGUF") <= 1 << 17


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [
        ("acme/tiny-GGUF:Q2_K", "no GGUF models of Q2_K", "tiny-Q8_0.gguf"),
        ("acme/tiny-GGUF/other.gguf", "no file 'other.gguf'", "tiny-Q4_K_M.gguf"),
        ("acme/none:Q4_K_M", "not found on the Hub", "check the id"),
        ("acme/tiny-GGUF", "no config.json in the repository", "acme/tiny-GGUF:Q4_K_M"),
    ],
)
def test_what_the_hub_does_not_hold(name: str, said: str, hint: str, hub: LoopbackHub) -> None:
    with pytest.raises(UllageError, match=said) as raised:
        resolve(name)
    assert hint in raised.value.hint
