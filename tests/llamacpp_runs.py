"""The real llama.cpp (package xllamacpp, built for processors) on tiny sparse GGUF files: the buffers that it prints.

`python tests/llamacpp_runs.py` finds out which tensors each architecture wants (llama.cpp names what is missing, and
the shape that it expects), runs the matrix, and writes tests/data/llamacpp/runs.json.
"""

import json
import re
import subprocess
import sys
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

from made_gguf import LLAMA, write_gguf

DATA = Path(__file__).parent / "data" / "llamacpp" / "runs.json"

_CHILD = """
import json, os, socket, sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.verbosity, params.warmup, params.fit_params = sys.argv[1], 5, False, False
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    params.port = free.getsockname()[1]
for name, value in json.loads(sys.argv[2]).items():
    if name.startswith("cache_type"):
        value = getattr(xllamacpp.ggml_type, "GGML_TYPE_" + value.upper())
    if name == "flash_attn_type":
        value = getattr(xllamacpp.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_" + value)
    setattr(params, name, value)
try:
    xllamacpp.Server(params)
except Exception as error:
    print("refused:", error)
sys.stdout.flush()
time.sleep(5)  # its log is written by a thread; whoever reads it does not wait for the end
os._exit(0)
"""


_LAST = re.compile(r"compute buffer size|refused:|error loading model|failed to init|GGML_ASSERT")


def output_of(path: Path, *, seconds: float = 20, **settings: Any) -> str:
    """What loading a model prints up to its last buffer, or its first error; the server that follows is not needed."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path), json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    timer = threading.Timer(seconds, child.kill)
    timer.start()
    lines = []
    assert child.stdout
    for line in child.stdout:
        lines.append(line)
        if _LAST.search(line):
            break
    timer.cancel()
    child.kill()
    child.stdout.close()
    child.wait()
    return "".join(lines)


_MISSING = re.compile(r"tensor '([^']+)' not found")
_SHAPE = re.compile(r"tensor '([^']+)' has wrong shape; expected ([\d, ]+), got")
_CACHE = re.compile(
    r"llama_kv_cache: size = +([\d.]+) MiB \( *(\d+) cells, +(\d+) layers, +(\d+)/(\d+) seqs\), "
    r"K \((\w+)\): +([\d.]+) MiB, V \((\w+)\): +([\d.]+) MiB"
)
_RECURRENT = re.compile(
    r"llama_memory_recurrent: size = +([\d.]+) MiB \( *(\d+) cells, +(\d+) layers, +(\d+) seqs[^)]*\), "
    r"R \((\w+)\): +([\d.]+) MiB, S \((\w+)\): +([\d.]+) MiB"
)
_MODEL = re.compile(r"load_tensors: +(\S+) model buffer size = +([\d.]+) MiB")
_CONTEXT = re.compile(r"llama_context: n_ctx +?= (\d+)")


def buffers(printed: str) -> dict[str, Any]:
    """The caches, states and model buffers that llama.cpp named, in MiB; of several passes the last."""
    caches = [[int(m[2]), int(m[3]), int(m[4]), int(m[5]), float(m[7]), float(m[9])] for m in _CACHE.finditer(printed)]
    states = [[int(m[2]), int(m[3]), int(m[4]), float(m[6]), float(m[8])] for m in _RECURRENT.finditer(printed)]
    errors = re.findall(r" E (.*)", printed)
    return {
        "n_ctx": [int(n) for n in _CONTEXT.findall(printed)][-1:],
        "caches": caches,
        "states": states,
        "model": {name: float(size) for name, size in _MODEL.findall(printed)},
        "error": errors[0].strip()[:200] if errors and not caches and not states else "",
    }


def run(path: Path, **settings: Any) -> dict[str, Any]:
    """The buffers of one load; tried again where the log was lost before it was read."""
    for _ in range(8):
        printed = output_of(path, **settings)
        if "couldn't bind" not in printed and ("compute buffer size" in printed or buffers(printed)["error"]):
            break
    return buffers(printed)


_PLAIN = re.compile(r"bias|norm|sinks|ssm_(a|d|conv1d)\b|shortconv\.conv")
"""Tensors that converters leave in float32."""


def _block(name: str) -> str:
    return re.sub(r"^blk\.\d+", "blk", name)


def discover(architecture: str, metadata: dict[str, Any], folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors that llama.cpp wants of such a model, found by its own errors."""
    hidden = metadata["embedding_length"]
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"token_embd.weight": ("F16", (512, hidden))}
    for layer in UNASKED.get(architecture, ()):
        tensors[f"blk.{layer}.ssm_conv1d.bias"] = ("F32", (576,))
    for _ in range(600):
        path = write_gguf(folder / f"{architecture}.gguf", architecture, metadata, tensors)
        printed = output_of(path, seconds=5, n_ctx=256)
        if shape := _SHAPE.search(printed):
            sizes = tuple(int(n) for n in shape[2].split(","))
            while len(sizes) > 1 and sizes[-1] == 1:
                sizes = sizes[:-1]
            plain = len(sizes) == 1 or _PLAIN.search(shape[1])
            tensors[shape[1]] = ("F32" if plain else "F16", sizes[::-1])
        elif missing := _MISSING.search(printed):
            alike = (name for name in tensors if _block(name) == _block(missing[1]))
            tensors[missing[1]] = tensors.get(next(alike, ""), ("F32", (1,)))
        elif found := re.findall(r"(?:error loading model: |GGML_ASSERT)(.*)", printed):
            raise RuntimeError(f"{architecture}: {found[-1]}")
        elif _CACHE.search(printed) or _RECURRENT.search(printed):
            return tensors
    raise RuntimeError(f"{architecture}: no end of tensors")


_HEADS = {"attention.key_length": 64, "attention.value_length": 64}
_RMS = {"attention.layer_norm_rms_epsilon": 1e-5}
_NORM = {"attention.layer_norm_epsilon": 1e-5}
_MOE = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 256}
_GRANITE = {"logit_scale": 8.0, "residual_scale": 0.2, "embedding_scale": 12.0, "attention.scale": 0.01}
_SSM = {"ssm.conv_kernel": 4, "ssm.state_size": 16}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, **_HEADS},
    "qwen3moe": {**LLAMA, **_HEADS, **_MOE},
    "gemma2": {**LLAMA, **_HEADS, "block_count": 4, "attention.sliding_window": 512},
    "gemma3": {**LLAMA, **_HEADS, "block_count": 7, "attention.sliding_window": 512},
    "gpt-oss": {**LLAMA, **_HEADS, **_MOE, "block_count": 4, "attention.sliding_window": 128},
    "command-r": {**LLAMA, **_NORM, "logit_scale": 0.5},
    "cohere2": {**LLAMA, **_HEADS, **_NORM, "block_count": 8, "attention.sliding_window": 256, "logit_scale": 0.5},
    "glm4": {**LLAMA, **_HEADS},
    "granite": {**LLAMA, **_GRANITE},
    "olmo2": LLAMA,
    "starcoder2": {**LLAMA, **_NORM},
    "stablelm": {**LLAMA, **_NORM, "use_parallel_residual": False},
    "seed_oss": {**LLAMA, **_HEADS},
    "deepseek2": {
        **LLAMA,
        **_MOE,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 96,
        "attention.kv_lora_rank": 128,
        "attention.key_length": 128 + 32,
        "attention.value_length": 128,
        "attention.key_length_mla": 64 + 32,
        "attention.value_length_mla": 64,
        "rope.dimension_count": 32,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
        "expert_gating_func": 2,
    },
    "llama4": {
        **LLAMA,
        **_HEADS,
        **_MOE,
        "block_count": 4,
        "interleave_moe_layer_step": 1,
        "attention.chunk_size": 1024,
    },
    "mamba": {**_SSM, **_RMS, "block_count": 2, "context_length": 4096, "embedding_length": 256, "vocab_size": 512}
    | {"ssm.inner_size": 512, "ssm.time_step_rank": 16, "attention.head_count": 0, "feed_forward_length": 0},
    "mamba2": {**_SSM, **_RMS, "block_count": 2, "context_length": 4096, "embedding_length": 256, "vocab_size": 512}
    | {"ssm.inner_size": 512, "ssm.time_step_rank": 8, "ssm.group_count": 2}
    | {"attention.head_count": 0, "feed_forward_length": 0},
    "falcon-h1": {**LLAMA, **_HEADS, **_SSM, "ssm.inner_size": 512, "ssm.time_step_rank": 8, "ssm.group_count": 2},
    "lfm2": {**LLAMA, "block_count": 4, "attention.head_count_kv": [0, 2, 0, 2], "shortconv.l_cache": 3},
    "granitehybrid": {
        **LLAMA,
        **_GRANITE,
        **_SSM,
        "block_count": 4,
        "attention.head_count_kv": [0, 2, 0, 0],
        "ssm.inner_size": 512,
        "ssm.time_step_rank": 8,
        "ssm.group_count": 2,
    },
    "qwen3next": {
        **LLAMA,
        **_HEADS,
        **_MOE,
        "block_count": 4,
        "full_attention_interval": 4,
        "expert_shared_feed_forward_length": 256,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 32,
        "ssm.group_count": 2,
        "ssm.time_step_rank": 4,
        "ssm.inner_size": 128,
    },
}
"""Metadata of a tiny model of each architecture."""

UNASKED = {"falcon-h1": (0, 1), "granitehybrid": (0, 2, 3)}
"""Layers with a convolution's bias (of 512 + 2 x 2 x 16 channels), without which llama.cpp loads and then crashes."""

SETTINGS: tuple[dict[str, Any], ...] = (
    {"n_ctx": 1000},
    {"n_ctx": 5000, "n_parallel": 1, "kv_unified": False},
    {"n_ctx": 4096, "n_parallel": 4, "kv_unified": False},
    {"n_ctx": 4100, "n_parallel": 3, "kv_unified": False},
    {"n_ctx": 4096, "n_parallel": 4, "kv_unified": True},
    {"n_ctx": 8192, "n_parallel": 2, "kv_unified": False, "n_ubatch": 128, "n_batch": 256},
    {"n_ctx": 20000, "n_parallel": 1},
    {"n_ctx": 4096, "n_parallel": 1, "swa_full": True},
    {"n_ctx": 4096, "n_parallel": 1, "cache_type_k": "q8_0", "cache_type_v": "q8_0", "flash_attn_type": "ENABLED"},
    {"n_ctx": 4096, "n_parallel": 1, "cache_type_k": "q4_0", "cache_type_v": "f16"},
)


def record() -> None:
    """Write what llama.cpp prints over all architectures and settings."""
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture, metadata in ARCHITECTURES.items():
            try:
                tensors = discover(architecture, metadata, Path(folder))
            except RuntimeError as unwanted:
                print(unwanted, file=sys.stderr)
                continue
            path = write_gguf(Path(folder) / "model.gguf", architecture, metadata, tensors)
            runs = [{"settings": settings, **run(path, **settings)} for settings in SETTINGS]
            cases.append({"architecture": architecture, "tensors": tensors, "runs": runs})
            print(architecture, runs[0]["caches"], runs[0]["states"], runs[0]["error"], file=sys.stderr)
    rows = ",\n".join(f"  {json.dumps(case)}" for case in cases)
    DATA.parent.mkdir(exist_ok=True, parents=True)
    DATA.write_text(f'{{\n "xllamacpp": "{version("xllamacpp")}", "cases": [\n{rows}\n ]\n}}\n')


if __name__ == "__main__":
    record()
