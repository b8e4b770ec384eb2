"""Headers as the real safetensors library writes them, and as an enemy would."""

import json
import os
import struct
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save, save_file

from analytic.errors import UllageError
from analytic.models.configfile import parse_config, read_config
from analytic.models.safetensors import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    StoredTensor,
    parse_header,
    read_directory,
    read_file,
)

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "C64": torch.complex64,
}
CONFIG = b'{"model_type": "llama"}'


def header(entries: object) -> bytes:
    return json.dumps(entries).encode()


def entry(dtype: str = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_of(blob: bytes, data_bytes: int) -> bytes:
    return struct.pack("<Q", len(blob)) + blob + bytes(data_bytes)


def write_shard(folder: Path, name: str, *tensors: str) -> None:
    save_file({tensor: torch.zeros(4) for tensor in tensors}, folder / name)


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# What the real library writes


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_every_torch_dtype_round_trips(dtype: str, tmp_path: Path) -> None:
    tensor = torch.zeros(3, 5, dtype=TORCH_DTYPES[dtype])
    save_file({"a": tensor}, tmp_path / "m.safetensors")
    expected = StoredTensor(name="a", dtype=dtype, shape=(3, 5), bytes=15 * tensor.itemsize, file="m.safetensors")
    assert read_file(tmp_path / "m.safetensors") == (expected,)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from(sorted(TORCH_DTYPES)), st.lists(st.integers(0, 5), max_size=4)),
        max_size=6,
    ),
    st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4), min_size=1, max_size=2),
)
def test_what_safetensors_writes_is_read_back(
    model: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None
) -> None:
    tensors = {name: torch.zeros(shape, dtype=TORCH_DTYPES[dtype]) for name, (dtype, shape) in model.items()}
    blob = save(tensors, metadata)
    length = struct.unpack("<Q", blob[:8])[0]
    stored = parse_header(blob[8 : 8 + length], data_bytes=len(blob) - 8 - length, where="m.safetensors")
    assert {t.name: (t.dtype, list(t.shape)) for t in stored} == model
    assert {t.name: t.bytes for t in stored} == {name: t.numel() * t.itemsize for name, t in tensors.items()}


def test_numpy_files_and_safe_open_agree(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_numpy({"w": np.zeros((7, 2), np.float16), "b": np.zeros((), np.int64)}, path, metadata={"format": "np"})
    with safe_open(path, "np") as truth:
        slices = {name: truth.get_slice(name) for name in truth.keys()}  # noqa: SIM118
        assert {t.name: (t.dtype, list(t.shape)) for t in read_file(path)} == {
            name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()
        }
    assert sum(t.bytes for t in read_file(path)) == 7 * 2 * 2 + 8


@pytest.mark.parametrize(("dtype", "shape", "size"), [("F4", (6, 5), 15), ("F6_E2M3", (4, 3), 9), ("F6_E3M2", (8,), 6)])
def test_dtypes_below_a_byte_are_counted_in_bits(dtype: str, shape: tuple[int, ...], size: int) -> None:
    (tensor,) = parse_header(header({"a": entry(dtype, shape, (0, size))}), data_bytes=size, where="f")
    assert tensor.bytes == size == prod(shape) * DTYPE_BITS[dtype] // 8


def test_an_empty_header_holds_no_tensors() -> None:
    assert parse_header(b"{}   ", data_bytes=0, where="f") == ()


def test_empty_tensors_share_an_offset_and_file_order_is_kept() -> None:
    entries = {
        "b": entry(offsets=(0, 24)),
        "empty": entry(shape=(0, 9), offsets=(24, 24)),
        "a": entry(offsets=(24, 48)),
    }
    stored = parse_header(header(entries), data_bytes=48, where="x/y.safetensors")
    assert [(t.name, t.bytes, t.file) for t in stored] == [
        ("b", 24, "y.safetensors"),
        ("empty", 0, "y.safetensors"),
        ("a", 24, "y.safetensors"),
    ]


def test_an_unknown_file_size_is_no_error() -> None:
    assert len(parse_header(header({"a": entry()}), data_bytes=None, where="f")) == 1


# What it never writes

BAD_HEADERS = {
    "an array": (b"[]", "does not start"),
    "leading space": (b" {}", "does not start"),
    "nothing": (b"", "does not start"),
    "not JSON": (b"{nope", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not UTF-8 at byte 2"),
    "two values": (b"{}{}", "not valid JSON"),
    "depth": (b'{"a":' * 100_000, "nested too deeply"),
    "duplicate tensor": (b'{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
    "duplicate field": (
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4], "dtype": "F16"}}',
        "duplicate key 'dtype'",
    ),
    "duplicate metadata": (b'{"__metadata__": {"x": "1", "x": "2"}}', "duplicate key 'x'"),
    "duplicate by an escape": (
        b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4], "\\u0064type": "F32"}}',
        "duplicate",
    ),
    "as many strings, another field": (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "is not described by"),
    "lone surrogate": (b'{"\\ud800": 1}', "not valid JSON"),
    "huge number": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "NaN": (b'{"a": NaN}', "NaN is not a number"),
    "metadata list": (header({"__metadata__": []}), "__metadata__"),
    "metadata number": (header({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata null": (header({"__metadata__": None}), "__metadata__"),
    "entry a list": (header({"a": []}), "tensor 'a' is not described"),
    "entry lacks shape": (header({"a": {"dtype": "F32", "data_offsets": [0, 4]}}), "tensor 'a' is not described"),
    "entry has more": (header({"a": entry() | {"strides": []}}), "tensor 'a' is not described"),
    "unknown dtype": (header({"a": entry("F2")}), "tensor 'a': unknown dtype 'F2'"),
    "dtype a list": (header({"a": entry(["F32"])}), "wrong type"),  # type: ignore[arg-type]
    "bool dimension": (header({"a": entry(shape=[True, 6])}), "wrong type"),
    "float dimension": (header({"a": entry(shape=[2.0, 3])}), "wrong type"),
    "negative dimensions": (header({"a": entry(shape=[-2, -3])}), "wrong type"),
    "text shape": (header({"a": entry(shape="23")}), "wrong type"),
    "dimension over 63 bits": (header({"a": entry(shape=[1 << 63])}), "wrong type"),
    "absurd product": (header({"a": entry(shape=[1 << 40, 1 << 40])}), "not a possible number of bytes"),
    "too many dimensions": (header({"a": entry(shape=[1] * 65)}), "65 dimensions"),
    "part of a byte": (header({"a": entry("F4", [3], [0, 1])}), "not a possible number of bytes"),
    "one offset": (header({"a": entry(offsets=[24])}), "wrong type"),
    "backwards": (header({"a": entry(offsets=[24, 0])}), "spans -24 bytes, but F32 of shape [2, 3] takes 24"),
    "wrong span": (header({"a": entry(offsets=[0, 23])}), "spans 23 bytes, but F32 of shape [2, 3] takes 24"),
    "hole at the start": (header({"a": entry(offsets=[8, 32])}), "hole of 8 bytes"),
    "hole": (header({"a": entry(), "b": entry(offsets=[25, 49])}), "tensor 'b' leaves a hole of 1 bytes"),
    "overlap": (header({"a": entry(), "b": entry(offsets=[23, 47])}), "tensor 'b' overlaps"),
    "same bytes twice": (header({"a": entry(), "b": entry()}), "overlaps"),
    "file too short": (header({"a": entry(shape=[100], offsets=[0, 400])}), "cut short: 24 bytes of data"),
    "file too long": (header({"a": entry(shape=[1], offsets=[0, 4])}), "longer than its tensors: 24 bytes"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header_is_refused_by_name(case: str) -> None:
    blob, message = BAD_HEADERS[case]
    with pytest.raises(UllageError) as caught:
        parse_header(blob, data_bytes=24, where="dir/bad.safetensors")
    assert message in caught.value.message
    assert caught.value.message.startswith("dir/bad.safetensors")
    assert "\n" not in caught.value.message


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda b: b"{" + b + b"}"))
def test_arbitrary_bytes_raise_nothing_but_named_errors(blob: bytes) -> None:
    with suppress(UllageError):
        assert parse_header(blob, data_bytes=None, where="f") == ()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(sorted(DTYPE_BITS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["dtype", "shape", "data_offsets"]), st.sampled_from("abc"), JSON_VALUES, st.booleans())
def test_a_field_of_any_json_raises_nothing_but_named_errors(field: str, name: str, value: object, last: bool) -> None:
    entries: dict[str, dict[str, object]] = {n: entry(offsets=(i * 24, i * 24 + 24)) for i, n in enumerate("abc")}
    entries[name][field] = value
    try:
        stored = parse_header(header(entries), data_bytes=72 if last else None, where="f")
    except UllageError:
        return
    assert sum(t.bytes for t in stored) == 72
    assert all(t.bytes * 8 == prod(t.shape) * DTYPE_BITS[t.dtype] for t in stored)


TWO_LAYERS = save({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.float16)}, {"format": "pt"})


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(TWO_LAYERS) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, len(TWO_LAYERS)),
)
def test_a_mutated_file_is_refused_or_still_adds_up(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], keep: int
) -> None:
    raw = bytearray(TWO_LAYERS)
    for position, value in edits:
        raw[position] = value
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(raw[:keep] if keep % 3 == 0 else raw)
    try:
        stored = read_file(path)
    except UllageError:
        return
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    assert sum(t.bytes for t in stored) == path.stat().st_size - 8 - length
    assert all(t.bytes * 8 == prod(t.shape) * DTYPE_BITS[t.dtype] for t in stored)


# Files

BAD_FILES = {
    "empty": (b"", "0 bytes long"),
    "seven bytes": (b"1234567", "7 bytes long"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html>", "claims a header of"),
    "header over the limit": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "claims a header of 100,000,001 bytes"),
    "cut in the header": (struct.pack("<Q", 100) + b"{}", "cut short inside its header"),
    "cut in the data": (file_of(header({"a": entry()}), 23), "cut short: 23 bytes of data, the header describes 24"),
    "more behind the data": (file_of(header({"a": entry()}), 25), "longer than its tensors"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    raw, message = BAD_FILES[case]
    (tmp_path / "bad.safetensors").write_bytes(raw)
    with pytest.raises(UllageError) as caught:
        read_file(tmp_path / "bad.safetensors")
    assert message in caught.value.message
    assert "bad.safetensors" in caught.value.message


def test_missing_directory_pipe_and_unreadable_files_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("gone", "no such file"), (".", "is a directory"), ("pipe", "not a regular file")):
        with pytest.raises(UllageError, match=message):
            read_file(tmp_path / name)
    with pytest.raises(UllageError, match="cannot be read"):
        read_file(tmp_path / ("n" * 300))


def test_a_sparse_file_of_terabytes_costs_its_header(tmp_path: Path) -> None:
    size = 1 << 42
    (tmp_path / "m.safetensors").write_bytes(file_of(header({"a": entry("U8", [size], [0, size])}), 0))
    os.truncate(tmp_path / "m.safetensors", (tmp_path / "m.safetensors").stat().st_size + size)
    assert read_file(tmp_path / "m.safetensors")[0].bytes == size


# Directories


def test_an_indexed_model_is_joined(tmp_path: Path) -> None:
    write_shard(tmp_path, "x-1.safetensors", "a")
    write_shard(tmp_path, "x-2.safetensors", "b", "not-in-the-index")
    write_shard(tmp_path, "stale.safetensors", "a")
    write_index(tmp_path, {"b": "x-2.safetensors", "a": "x-1.safetensors"})
    tensors = read_directory(tmp_path)
    assert tensors is not None
    assert [(t.name, t.file) for t in tensors] == [
        ("a", "x-1.safetensors"),
        ("b", "x-2.safetensors"),
        ("not-in-the-index", "x-2.safetensors"),  # from_pretrained loads it too
    ]


def test_one_file_wins_over_others_without_an_index(tmp_path: Path) -> None:
    write_shard(tmp_path, "model.safetensors", "a")
    write_shard(tmp_path, "consolidated.safetensors", "a")
    assert [t.file for t in read_directory(tmp_path) or ()] == ["model.safetensors"]


def test_numbered_and_free_sets_without_an_index(tmp_path: Path) -> None:
    write_shard(tmp_path, "encoder.safetensors", "e")
    assert [t.name for t in read_directory(tmp_path) or ()] == ["e"]
    write_shard(tmp_path, "model-00001-of-00002.safetensors", "a")
    write_shard(tmp_path, "model-00002-of-00002.safetensors", "b")
    assert [t.name for t in read_directory(tmp_path) or ()] == ["a", "b"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["m-00001-of-00003", "m-00003-of-00003"], "shard 2 of 3 of 'm' is missing"),
        (["m-00001-of-00001", "n-00001-of-00001"], "several sets of shards"),
        (["m-00000-of-00002", "m-00001-of-00002"], "shard 2 of 2 of 'm' is missing"),
        (["m-1-of-00002", "m-00001-of-00002"], "shard 2 of 2 of 'm' is missing"),
        (["m-00001-of-999999999"], "shard 2 of 999999999 of 'm' is missing"),
    ],
)
def test_an_incomplete_numbered_set_is_noticed(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        write_shard(tmp_path, f"{name}.safetensors", name)
    with pytest.raises(UllageError, match=message):
        read_directory(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "gone.safetensors", "b": "m.safetensors"}, "missing shard 'gone.safetensors'"),
        ({"z": "m.safetensors"}, "tensor 'z' is not in its shard 'm.safetensors'"),
        ({"a": "../m.safetensors"}, "not the name of a safetensors file"),
        ({"a": "/m.safetensors"}, "not the name of a safetensors file"),
        ({"a": "sub\\m.safetensors"}, "not the name of a safetensors file"),
        ({"a": "config.json"}, "not the name of a safetensors file"),
        ({"a": "m\0.safetensors"}, "not the name of a safetensors file"),
        ({"a": 1}, "not the name of a safetensors file"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_a_bad_index_is_refused(weight_map: object, message: str, tmp_path: Path) -> None:
    write_shard(tmp_path, "m.safetensors", "a", "b")
    write_index(tmp_path, weight_map)
    with pytest.raises(UllageError, match=message):
        read_directory(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, "1.safetensors", "a", "b")
    write_shard(tmp_path, "2.safetensors", "b")
    write_index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    with pytest.raises(UllageError, match=r"tensor 'b' is in several files: 1\.safetensors, 2\.safetensors"):
        read_directory(tmp_path)


def test_config_alone_is_none_and_an_empty_checkpoint_is_empty(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert read_directory(tmp_path) is None
    save_file({}, tmp_path / "model.safetensors")
    assert read_directory(tmp_path) == ()


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    os.mkfifo(tmp_path / "pytorch_model-00001-of-00002.bin")  # opening it would block
    with pytest.raises(UllageError, match="which ullage never opens") as caught:
        read_directory(tmp_path)
    assert "safetensors" in caught.value.hint


def test_a_directory_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UllageError, match=r"neither config\.json nor safetensors"):
        read_directory(tmp_path)
    with pytest.raises(UllageError, match="no such directory"):
        read_directory(tmp_path / "gone")


# config.json

BAD_CONFIGS = {
    "empty": (b"", "not valid JSON"),
    "list": (b"[]", "holds a JSON list"),
    "no model_type": (b'{"architectures": ["A"]}', "no model_type"),
    "model_type null": (b'{"model_type": null}', "no model_type"),
    "model_type empty": (b'{"model_type": ""}', "no model_type"),
    "byte order mark": (b"\xef\xbb\xbf" + CONFIG, "byte order mark"),
    "UTF-16": (CONFIG.decode().encode("utf-16"), "not UTF-8 at byte 0"),
    "latin-1": ('{"model_type": "é"}'.encode("latin-1"), "not UTF-8 at byte 16"),
    "infinity": (b'{"model_type": "a", "x": Infinity}', "Infinity is not a number"),
    "minus infinity": (b'{"model_type": "a", "x": -Infinity}', "-Infinity is not a number"),
    "infinite in effect": (b'{"model_type": "a", "x": 1e999}', "1e999 is too large"),
    "depth": (b'{"model_type": "a", "x":' + b"[" * 100_000, "nested too deeply"),
    "size": (b" " * 10_000_001, "larger than 10,000,000 bytes"),
    "duplicate": (b'{"model_type": "a", "model_type": "b"}', "duplicate key 'model_type'"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_config_is_refused_by_name(case: str, tmp_path: Path) -> None:
    raw, message = BAD_CONFIGS[case]
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(UllageError) as caught:
        read_config(tmp_path)
    assert message in caught.value.message
    assert caught.value.message.startswith(str(tmp_path / "config.json"))


def test_config_is_read_from_a_file_or_its_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(
        b'{"model_type": "a", "auto_map": {"AutoModel": "evil.Model"}, "e": "\\ud83d\\ude00"}'
    )
    expected = {"model_type": "a", "auto_map": {"AutoModel": "evil.Model"}, "e": "😀"}
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == expected
    with pytest.raises(UllageError, match="no such file"):
        read_config(tmp_path / "other.json")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_config_of_arbitrary_bytes_raises_nothing_but_named_errors(raw: bytes) -> None:
    with pytest.raises(UllageError):
        parse_config(raw, "config.json")
