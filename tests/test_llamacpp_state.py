"""Caches and model buffers beside what the real llama.cpp prints, to the 0.01 MiB that it prints."""

import json
from pathlib import Path
from typing import Any

import pytest
from llamacpp_runs import ARCHITECTURES, DATA, run
from made_gguf import LLAMA, llama_tensors, write_gguf

from analytic.errors import UllageError
from analytic.models.config_reader import read_geometry
from analytic.models.geometry import Geometry
from analytic.models.gguf import read_gguf
from analytic.models.gguf_config import config_of
from analytic.models.resolve import resolve
from analytic.state.llamacpp import CACHE_TYPES, llamacpp_state

MIB = 2**20
RECORDED: list[dict[str, Any]] = json.loads(DATA.read_text())["cases"]


def asked(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings under our names."""
    names = {
        "n_ctx": "ctx_size",
        "n_parallel": "parallel",
        "n_ubatch": "ubatch_size",
        "cache_type_k": "cache_type_k",
        "cache_type_v": "cache_type_v",
        "swa_full": "swa_full",
        "kv_unified": "kv_unified",
    }
    return {names[key]: value for key, value in settings.items() if key in names}


def geometry_of(case: dict[str, Any], folder: Path) -> Geometry:
    path = write_gguf(folder / "model.gguf", case["architecture"], ARCHITECTURES[case["architecture"]], case["tensors"])
    return read_geometry(config_of(read_gguf(path)))


@pytest.mark.parametrize("case", [pytest.param(case, id=case["architecture"]) for case in RECORDED])
def test_caches_are_as_llamacpp_prints_them(case: dict[str, Any], tmp_path: Path) -> None:
    geometry = geometry_of(case, tmp_path)
    for printed in case["runs"]:
        if printed["error"]:
            with pytest.raises(UllageError):
                llamacpp_state(geometry, **asked(printed["settings"]))
            continue
        rows = llamacpp_state(geometry, **asked(printed["settings"]))
        caches = sorted(row.bytes / MIB for row in rows if row.kind != "recurrent")
        states = sum(row.bytes / MIB for row in rows if row.kind == "recurrent")
        same = sorted(keys + values for *_, keys, values in printed["caches"])
        assert caches == pytest.approx(same, abs=0.011), printed  # two figures, each to 0.005
        assert states == pytest.approx(sum(r + s for *_, r, s in printed["states"]), abs=0.011), printed
        cells = sorted(f"{cells:,} cells" for cells, *_ in printed["caches"])
        assert (
            sorted(row.note.split(" in ")[0].split(",  ")[0].split(", K")[0] for row in rows if "cells" in row.note)
            == cells
        )


def test_there_are_enough_architectures() -> None:
    assert len(RECORDED) >= 20
    runs = [printed for case in RECORDED for printed in case["runs"]]
    assert all(printed["caches"] or printed["states"] or printed["error"] for printed in runs)
    assert {printed["error"] for printed in runs if printed["error"]} == {
        "llama_init_from_model: model does not support different K (q4_0) and V (f16) cache types"
    }


@pytest.mark.parametrize("case", [pytest.param(case, id=case["architecture"]) for case in RECORDED])
def test_the_model_buffer_holds_the_tensors(case: dict[str, Any], tmp_path: Path) -> None:
    """On a processor it maps the file: the tensors with their padding, and a tied head once."""
    metadata = ARCHITECTURES[case["architecture"]]
    model = resolve(str(write_gguf(tmp_path / "m.gguf", case["architecture"], metadata, case["tensors"])))
    printed = case["runs"][0]["model"]["CPU_Mapped"]
    assert (model.stored_bytes or 0) / MIB == pytest.approx(printed, abs=0.011)


LIVE = ("llama", "gemma3", "deepseek2", "falcon-h1", "granitehybrid", "gpt-oss")


@pytest.mark.parametrize("architecture", LIVE)
@pytest.mark.parametrize(
    "settings",
    [
        {"n_ctx": 3000, "n_parallel": 2, "kv_unified": False},
        {"n_ctx": 2048, "cache_type_k": "bf16", "cache_type_v": "bf16"},
    ],
)
def test_the_real_llamacpp_of_today(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    case = next(case for case in RECORDED if case["architecture"] == architecture)
    geometry = geometry_of(case, tmp_path)
    printed = run(tmp_path / "model.gguf", **settings)
    assert not printed["error"]
    rows = llamacpp_state(geometry, **asked(settings))
    same = sum(keys + values for *_, keys, values in printed["caches"]) + sum(r + s for *_, r, s in printed["states"])
    assert sum(row.bytes for row in rows) / MIB == pytest.approx(same, abs=0.03)


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_every_cache_type_of_the_real_one(name: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA, llama_tensors(kind="F16"))
    printed = run(path, n_ctx=8192, cache_type_k=name, cache_type_v=name, flash_attn_type="ENABLED")
    (row,) = llamacpp_state(
        read_geometry(config_of(read_gguf(path))), ctx_size=8192, cache_type_k=name, cache_type_v=name
    )
    assert printed["caches"], printed
    assert row.bytes / MIB == pytest.approx(sum(printed["caches"][0][-2:]), abs=0.011)


def test_what_llamacpp_refuses() -> None:
    geometry = resolve("llama-3.1-8b").geometry
    for flags, said in (
        ({"cache_type_k": "q3_k"}, "-ctk 'q3_k' is no cache type"),
        ({"cache_type_v": "q8_0", "flash_attention": False}, "needs flash attention"),
    ):
        with pytest.raises(UllageError, match=said):
            llamacpp_state(geometry, ctx_size=4096, **flags)  # type: ignore[arg-type]
    odd = resolve("phi-2").geometry  # heads of 80
    with pytest.raises(UllageError, match="heads of 80 are no whole blocks of Q8_0"):
        llamacpp_state(odd, ctx_size=4096, cache_type_k="q8_0")
