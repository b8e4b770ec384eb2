import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analytic.errors import UllageError
from analytic.holding import EngineFlags
from analytic.inspection import inspect
from analytic.models import catalog
from analytic.report.inspection import document as inspection_document


def inspected(name: str, **flags: Any) -> dict[str, Any]:
    return inspection_document(inspect(catalog.load(name), **flags))


def test_every_view_sums_to_the_same_weights() -> None:
    for name in ("llama-3.1-8b", "qwen3-30b-a3b", "gemma-3-4b", "deepseek-v3", "gpt-oss-20b"):
        found = inspected(name)
        views = [found[view].values() for view in ("by_role", "by_format", "by_layer")]
        views.append([tensor["bytes"] for tensor in found["tensors"]])
        assert {sum(view) for view in views} == {found["weights_bytes"]}, name
        assert sum(tensor["parameters"] for tensor in found["tensors"]) == found["model"]["parameters"]


def test_llama_in_numbers() -> None:
    """32 layers of 8 key/value heads of 128 in bfloat16; 128,256 x 4,096 embeddings."""
    found = inspected("llama-3.1-8b", tokens=1000, sequences=3)
    state = found["sequence_state"]
    assert state["bytes_per_token"] == 32 * 8 * (128 + 128) * 2
    held = {h["holder"]: h["bytes"] for h in state["holders"]}
    assert held["transformers, dynamic cache"] == 3 * 1000 * 131_072
    assert held["transformers, static cache"] == 3 * 1000 * 131_072 + 32 * 8  # and each layer's count of tokens
    assert held["transformers, quantized cache"] == 3 * 1000 * 65_536 // 64 * (32 + 2 * 2)  # 64 of 4 bits, scale, zero
    assert found["by_role"]["embedding"] == 128_256 * 4096 * 2
    assert len(found["by_layer"]) == 32 + 2


def test_what_is_not_quantised_and_why() -> None:
    """Fused experts are plain parameters to bitsandbytes (its issue 1849), but not to GPTQ."""
    left = {row["name"]: row for row in inspected("qwen3-30b-a3b", quantization="bnb-nf4")["unquantized"]}
    assert "stacked experts" in left["model.layers.{}.mlp.experts.down_proj"]["why"]
    assert left["model.layers.{}.mlp.experts.gate_up_proj"]["bytes"] == 48 * 128 * 2 * 768 * 2048 * 2
    gptq = {row["name"] for row in inspected("qwen3-30b-a3b", quantization="gptq")["unquantized"]}
    assert gptq == {"lm_head.weight", "model.embed_tokens.weight", "model.layers.{}.mlp.gate.weight"}
    assert inspected("qwen3-30b-a3b")["unquantized"] == []


def test_the_kinds_of_a_hybrid_cache() -> None:
    kinds = {row["kind"]: row for row in inspected("gemma-3-4b", tokens=8192)["sequence_state"]["kinds"]}
    assert kinds["sliding window 1,024"]["layers"] == 29
    assert kinds["sliding window 1,024"]["bytes_per_token"] == 0
    assert kinds["full attention (GQA)"]["bytes_per_token"] == 5 * 4 * (256 + 256) * 2
    latent = inspected("deepseek-v3")["sequence_state"]["kinds"]
    assert [row["bytes_per_token"] for row in latent] == [61 * (512 + 64) * 2]


def test_what_each_engine_loads() -> None:
    """Rows of 131,072 positions x 128 elements in vLLM; llama.cpp holds a tied head twice."""
    rows = {row["engine"]: row for row in inspected("llama-3.1-8b")["loaded"]}
    (gpu,) = rows["vLLM"]["rows"]
    assert {"what": "rotary table of 131,072 positions", "bytes": 131_072 * 128 * 2} in gpu["changes"]
    assert rows["transformers"]["rows"][0]["bytes"] + sum(c["bytes"] for c in gpu["changes"]) == gpu["bytes"]
    tied = {row["engine"]: row for row in inspected("gemma-3-4b", quantization="Q8_0")["loaded"]}
    on = {row["place"]: row for row in tied["llama.cpp"]["rows"]}
    head = 262_144 * 2560 // 32 * 34
    assert on["host"]["bytes"] == head
    assert {"what": "output head, tied to the embedding, a second time", "bytes": head} in on["GPU"]["changes"]
    assert "no GGUF" in tied["vLLM"]["refused"]


def test_kernels_depend_on_the_gpu() -> None:
    flags = [EngineFlags(capability=capability) for capability in (None, (8, 0), (9, 0))]
    found = [inspected("llama-3.1-8b", quantization="gptq", flags=own)["loaded"][1] for own in flags]
    assert "depends on the GPU" in found[0]["refused"]
    assert "--gpu" in found[0]["hint"]
    zero_points = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096) // 128 // 2  # Marlin frees them
    assert found[2]["rows"][0]["bytes"] - found[1]["rows"][0]["bytes"] == zero_points


def test_a_format_that_is_not_known() -> None:
    with pytest.raises(UllageError, match="'int3' is not known"):
        inspected("llama-3.1-8b", quantization="int3")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-ctk", "q3"], "--cache-type-k: 'q3' is not known"),
        (["--kv-cache-dtype", "magic"], "--kv-cache-dtype: 'magic' is not known"),
        (["--block-size", "0"], "--block-size: 0 must lie between"),
        (["-np", "0"], "--sequences: 0 must lie between"),
        (["-ngl", "-1"], "--n-gpu-layers: -1 must be 0 or more"),
        (["--gpu", "h1000"], "unknown GPU 'h1000'"),
        (["-c", "0"], "--tokens: '0' must be"),
    ],
)
def test_a_flag_that_cannot_be_meant(flags: list[str], said: str) -> None:
    done = run("inspect", "llama-3.1-8b", *flags)
    assert done.returncode == 2
    assert said in done.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from analytic.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path) -> None:
    shown = run("inspect", "qwen3-0.6b", "--tensors", "--layers", "-c", "32K", "-np", "2")
    assert shown.returncode == 0
    assert "model.layers.{}.self_attn.q_proj.weight" in shown.stdout
    assert "2 sequences of 32,768 tokens" in shown.stdout
    written = run("inspect", "qwen3-0.6b", "--json", "-o", str(tmp_path / "x.json"))
    assert json.loads(written.stdout) == json.loads((tmp_path / "x.json").read_text())
    assert run("inspect", "qwen3-0.6b", "--quantization", "magic").returncode == 2
    assert run("inspect", "nobody").returncode == 1


def test_formats_are_listed() -> None:
    rows = {row["name"]: row for row in json.loads(run("formats", "--json").stdout)["quantization"]}
    assert rows["gptq-int4"]["bits_per_weight"] == pytest.approx(4 + 4 / 128 + 16 / 128 + 32 / 4096)
    assert rows["bnb-nf4"]["bits_per_weight"] == pytest.approx(4 + 32 / 64 + 512 / 4096**2)
    assert "nvfp4" in run("formats").stdout
